"""Which app bundles may run at a site: what somebody looked at and approved, until the approval ends or is taken back.

The bytes of every bundle that was seen are kept beside the list, so that what is shown is what is approved, and what is
approved can be compared with the one before. Every decision is a line in the site's ledger as well: who, when, and the
SHA-256 of the bundle.
"""

import difflib
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wardround.client.gate import codes
from wardround.client.gate.bundle import Bundle, read_bundle
from wardround.client.gate.ledger import Ledger
from wardround.client.gate.policy import load_policy
from wardround.errors import GateRefused, StorageError, UsageError
from wardround.files import storage_error, write_bytes, write_text

State = Literal["pending", "approved", "revoked"]

MAX_PENDING = 16
"""Bundles that wait for a decision; when one more comes, the oldest is forgotten."""

_LONGEST_DIFF = 5000
_DAY = 24 * 3600.0


class Approval(BaseModel):
    """What is known of one bundle.

    Parameters
    ----------
    sha256
        Of the bundle.
    name
        ``publisher/app version``, as the bundle says it.
    flags
        As in :class:`~wardround.client.gate.bundle.Bundle`.
    state
        ``pending`` until somebody decides.
    seen, decided, expires
        Seconds since 1970; `expires` where it is approved.
    by
        Who decided.
    with_code
        Whether it was approved in the knowledge that it brings code or runs other apps.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    name: str
    flags: tuple[str, ...] = ()
    state: State = "pending"
    seen: float
    decided: float | None = None
    expires: float | None = None
    by: str = ""
    with_code: bool = False

    def is_valid(self, now: float) -> bool:
        """Whether it may run at `now`."""
        return self.state == "approved" and self.decided is not None and self.decided <= now < (self.expires or 0)


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    bundles: tuple[Approval, ...] = ()


class Approvals:
    """The list in ``approvals.json`` and the bundles in ``bundles/``. Several processes may use it at once.

    Parameters
    ----------
    home
        The site's home.
    clock
        Seconds since 1970.
    ledger
        Holds the decisions; that of the home by default.
    """

    def __init__(self, home: Path, clock: Callable[[], float] = time.time, ledger: Ledger | None = None) -> None:
        self._home = home
        self._ledger = ledger if ledger is not None else Ledger(home / "ledger.jsonl", clock)
        self._file = home / "approvals.json"
        self._folder = home / "bundles"
        self._clock = clock

    def listing(self) -> tuple[Approval, ...]:
        """Every bundle that is known, in the order in which they came.

        Raises
        ------
        StorageError
            If the list cannot be read. Nothing is then approved.
        """
        try:
            text = self._file.read_bytes()
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise self._unreadable(error) from error
        try:
            return _File.model_validate_json(text).bundles
        except ValidationError as error:
            raise self._unreadable(error) from None

    def pending(self) -> tuple[Approval, ...]:
        """Those that wait for a decision."""
        return tuple(found for found in self.listing() if found.state == "pending")

    def get(self, sha256: str) -> Approval | None:
        """What is known of one bundle."""
        return next((found for found in self.listing() if found.sha256 == sha256), None)

    def find(self, beginning: str) -> Approval:
        """The bundle whose SHA-256 begins with `beginning`.

        Raises
        ------
        UsageError
            If none does, or more than one.
        """
        wanted = beginning.strip().lower()
        found = [known for known in self.listing() if known.sha256.startswith(wanted)] if len(wanted) >= 8 else []
        if len(found) != 1:
            raise UsageError(
                "there is no one bundle of that name" if not found else "more than one bundle begins like this",
                "" if found else "a bundle is known once the coordinator has asked for it, or you have brought it",
                "give at least the first 8 characters of its SHA-256",
            )
        return found[0]

    def is_approved(self, sha256: str, now: float) -> bool:
        """Whether a bundle may run at `now`."""
        known = self.get(sha256)
        return known is not None and known.is_valid(now)

    def keep(self, fab: bytes) -> Approval:
        """Read a bundle and keep it for a decision; of one that is known already, bytes that were lost are kept again.

        Raises
        ------
        GateRefused
            If it is not a plain bundle.
        StorageError
            If it cannot be written.
        """
        bundle = read_bundle(fab)
        with self._changing():
            known = self.listing()
            for found in known:
                if found.sha256 == bundle.sha256:
                    if not self._is_whole(bundle.sha256):
                        write_bytes(self._path(bundle.sha256), fab)
                    return found
            new = Approval(
                sha256=bundle.sha256, name=bundle.name, flags=tuple(sorted(bundle.flags)), seen=float(self._clock())
            )
            waiting = [found for found in known if found.state == "pending"]
            forgotten = {found.sha256 for found in waiting[: max(0, len(waiting) + 1 - MAX_PENDING)]}
            # First the bytes, then the list that names them: a crash between leaves a file that nothing names.
            write_bytes(self._path(bundle.sha256), fab)
            self._write((*(found for found in known if found.sha256 not in forgotten), new))
            for digest in forgotten:
                self._path(digest).unlink(missing_ok=True)
        return new

    def approve(self, sha256: str, by: str, *, days: int | None = None, with_code: bool = False) -> Approval:
        """Let a bundle run from now on.

        Parameters
        ----------
        sha256
            Of a bundle that is known.
        by
            Who decides.
        days
            After how many days somebody has to look again; by default what the site's policy says.
        with_code
            Also if it brings code or runs other apps than Wardround's.

        Raises
        ------
        GateRefused
            If it brings code and nobody said that this is known, or if it would replace Wardround.
        UsageError
            If the bundle is not known.
        StorageError
            If its bytes are gone or are not the ones that came, or the ledger cannot be written.
        """
        lasting = load_policy(self._home / "policy.toml").approval_days if days is None else days
        bundle = self.bundle(sha256)
        if "shadows" in bundle.flags:
            raise GateRefused(
                "this bundle cannot be approved",
                "it brings a package that would replace the installed Wardround",
                "ask the coordinator for a bundle without code",
                code="bundle-shadows",
            )
        if bundle.flags and not with_code:
            raise GateRefused(
                "this bundle was not approved",
                "it brings code, or runs other apps than Wardround's",
                "read it; if it may run at your site all the same, approve it with its code",
                code="bundle-code",
            )
        now = float(self._clock())
        name = _signature(by)
        decision = {"state": "approved", "decided": now, "expires": now + lasting * _DAY, "with_code": with_code}
        with self._changing():
            self._known(sha256)
            # The line comes first: what runs was approved by somebody who is named.
            self._note(codes.APPROVED, sha256, name)
            return self._decide(sha256, by=name, **decision)

    def revoke(self, sha256: str, by: str) -> Approval:
        """Let a bundle run no longer.

        Raises
        ------
        UsageError
            If the bundle is not known.
        StorageError
            If the list or the ledger cannot be written. In the second case it runs no longer all the same.
        """
        name = _signature(by)
        with self._changing():
            decided = self._decide(
                sha256, state="revoked", decided=float(self._clock()), expires=None, by=name, with_code=False
            )
            try:
                self._note(codes.REVOKED, sha256, name)
            except StorageError as error:
                raise StorageError(
                    "the bundle may run no longer, but the ledger does not say so",
                    f"{error.problem}: {error.cause}",
                    "see to the ledger; then revoke the bundle once more",
                ) from error
        return decided

    def bundle(self, sha256: str) -> Bundle:
        """A bundle that is known, read again from the bytes that came.

        Raises
        ------
        UsageError
            If it is not known.
        StorageError
            If its bytes are gone or are not the ones that came.
        """
        self._known(sha256)
        path = self._path(sha256)
        try:
            fab = path.read_bytes()
        except OSError as error:
            raise StorageError(
                f"cannot read the bundle {path}", error.strerror or "", "ask the coordinator for it again"
            ) from error
        if hashlib.sha256(fab).hexdigest() != sha256:
            raise StorageError(
                f"the bundle {path} is damaged", "it is not the one that came", "ask the coordinator for it again"
            )
        return read_bundle(fab)

    def diff(self, sha256: str) -> str:
        """What is in a bundle, as a unified diff against the one that was approved last; against nothing if none was.

        Every character that a terminal would not show as it stands is spelt out.

        Raises
        ------
        UsageError, StorageError
            As :meth:`bundle`.
        """
        new = self.bundle(sha256)
        earlier = [found for found in self.listing() if found.state == "approved" and found.sha256 != sha256]
        base = max(earlier, key=lambda found: found.decided or 0.0, default=None)
        old = self.bundle(base.sha256) if base is not None else None
        head = [
            f"bundle  {new.sha256}",
            f"name    {new.name}",
            f"brings  {', '.join(sorted(new.flags)) or 'no code'}",
            f"against {old.sha256 if old else 'nothing: no bundle was approved before'}",
            "",
        ]
        before, after = (old.files if old else {}), new.files
        body = [line for name in sorted({*before, *after}) for line in _diff(name, before.get(name), after.get(name))]
        return "\n".join([*head, *(body or ["no file differs"])]) + "\n"

    def _decide(self, sha256: str, **changes: object) -> Approval:
        decided = self._known(sha256).model_copy(update=changes)
        self._write(tuple(decided if each.sha256 == sha256 else each for each in self.listing()))
        return decided

    def _known(self, sha256: str) -> Approval:
        found = self.get(sha256)
        if found is None:
            raise _unknown()
        return found

    def _note(self, code: str, sha256: str, by: str) -> None:
        self._ledger.append(direction="none", kind="app", verdict="allowed", code=code, sha256=sha256, by=by)

    def _is_whole(self, sha256: str) -> bool:
        """Whether the bytes of a bundle are there, as they came."""
        try:
            return hashlib.sha256(self._path(sha256).read_bytes()).hexdigest() == sha256
        except OSError:
            return False

    def _path(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.fab"

    def _write(self, bundles: tuple[Approval, ...]) -> None:
        write_text(self._file, _File(bundles=bundles).model_dump_json(indent=1) + "\n")

    def _unreadable(self, error: Exception) -> StorageError:
        return StorageError(
            f"the list of approvals {self._file} cannot be read",
            type(error).__name__,
            "take it from a copy, or remove it and approve again; until then nothing is approved",
        )

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One at a time, over all processes."""
        try:
            self._home.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._home / "approvals.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise storage_error(error, self._file) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _unknown() -> UsageError:
    return UsageError(
        "this bundle is not known", "the coordinator has not asked for it yet", "look at the list of those that are"
    )


def _signature(by: str) -> str:
    """A name on one line."""
    shown = _visible(by.strip()).replace("\t", " ")[:100]
    if not shown:
        raise UsageError("an approval needs a name", "nobody was named", "say who decides")
    return shown


def _visible(line: str) -> str:
    """Spell out what a terminal would obey or hide: escapes, overstrikes, letters that reverse the reading order."""
    return re.sub(
        r"[^\t]",
        lambda found: found[0] if found[0].isprintable() else ascii(found[0])[1:-1],
        line,
    )


def _lines(content: bytes | None) -> list[str] | None:
    """Lines of a text; None if it is not one."""
    if content is None:
        return []
    try:
        return [_visible(line) for line in content.decode("utf-8").split("\n")]
    except UnicodeDecodeError:
        return None


def _diff(name: str, before: bytes | None, after: bytes | None) -> list[str]:
    if before == after:
        return []
    old, new = _lines(before), _lines(after)
    names = ("/dev/null" if before is None else f"a/{name}", "/dev/null" if after is None else f"b/{name}")
    if old is None or new is None:
        size = "removed" if after is None else f"{len(after)} bytes, sha256 {hashlib.sha256(after).hexdigest()}"
        return [f"--- {names[0]}", f"+++ {names[1]}", f"  not a text: {size}"]
    if len(old) + len(new) > _LONGEST_DIFF:
        # Line by line would take too long to work out; nothing of it may stay unseen all the same.
        return [f"--- {names[0]}", f"+++ {names[1]}", *(f"-{line}" for line in old), *(f"+{line}" for line in new)]
    return list(difflib.unified_diff(old, new, *names, lineterm=""))
