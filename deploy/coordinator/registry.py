"""Who takes part: one small file a site, from its invitation to its eviction.

The files are what the operator wants. The SuperLink is told by the process that serves, which compares both and makes
them agree; so an enrolment can be read in before the SuperLink runs, and one that has lost its database learns all
sites again.
"""

import datetime
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from wardround.deploy.provisioning.invitation import Enrolment, Invitation, check_site_name
from wardround.errors import AuthRefused, StorageError, UsageError
from wardround.files import storage_error, write_text

State = Literal["invited", "enrolled", "registered", "evicted"]

_FORMAT = 1


@dataclass(frozen=True)
class Member:
    """What the coordinator knows of a site.

    Parameters
    ----------
    name
        As the site is called everywhere.
    state
        ``invited``; ``enrolled``: its key is known, and the SuperLink will be told; ``registered``: it may connect;
        ``evicted``: it may not.
    public_key
        One line in OpenSSH's format; empty before the enrolment.
    node_id
        As the SuperLink calls the site; None before it was told.
    token_digest, expires
        Of the invitation that is open; empty and None where none is.
    times
        When the site was ``invited-at``, ``enrolled-at``, ``registered-at`` and ``evicted-at``, UTC.
    retired
        Node ids under which it was known before, and which the SuperLink must forget.
    """

    name: str
    state: State
    public_key: str = ""
    node_id: int | None = None
    token_digest: str = ""
    expires: datetime.datetime | None = None
    times: Mapping[str, str] | None = None
    retired: tuple[int, ...] = ()

    def at(self, moment: str, now: datetime.datetime) -> dict[str, str]:
        """The times, with one more."""
        return {**(self.times or {}), f"{moment}-at": now.isoformat(timespec="seconds")}


class Registry:
    """The sites of a coordinator.

    Parameters
    ----------
    folder
        Made where it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def members(self) -> list[Member]:
        """All sites, in the order of their names.

        Raises
        ------
        StorageError
            If a file is damaged.
        """
        try:
            paths = sorted(self._folder.glob("*.json"))
        except OSError as error:
            raise storage_error(error, self._folder) from error
        return [member for path in paths if (member := _read(path)) is not None]

    def find(self, name: str) -> Member | None:
        """The site of that name, or None."""
        return _read(self._path(name))

    def get(self, name: str) -> Member:
        """The site of that name.

        Raises
        ------
        UsageError
            If there is none.
        """
        member = self.find(name)
        if member is None:
            known = ", ".join(member.name for member in self.members()) or "nobody has been invited"
            raise UsageError(f"there is no site {name!r}", f"known: {known}", "look at `wardround coordinator status`")
        return member

    def invite(self, invitation: Invitation, now: datetime.datetime, *, renew: bool) -> Member:
        """Note that a site was invited.

        Parameters
        ----------
        invitation
            Replaces one of the same site that is open.
        now
            UTC.
        renew
            Whether a site that has enrolled may enrol again, with another key. Its old key stays good until then.

        Raises
        ------
        UsageError
            If the site has enrolled and is not to be renewed.
        """
        with self._changing():
            member = self.find(invitation.site) or Member(invitation.site, "invited")
            if member.state in ("enrolled", "registered") and not renew:
                raise UsageError(
                    f"site {member.name} has enrolled already",
                    "an invitation is for a site that has not",
                    "invite it with --renew if it shall make a new key, or choose another name",
                )
            state: State = "invited" if member.state == "evicted" else member.state
            return self._write(
                replace(
                    member,
                    state=state,
                    token_digest=invitation.token_digest,
                    expires=invitation.expires,
                    times=member.at("invited", now),
                )
            )

    def enrol(self, enrolment: Enrolment, now: datetime.datetime) -> Member:
        """Take a site in. Its enrolment is good once; the very same one again changes nothing.

        Raises
        ------
        AuthRefused
            If no invitation is open that it answers, or the key is another site's.
        """
        with self._changing():
            member = self.find(enrolment.site)
            if member is None:
                raise _not_invited(enrolment.site, "nobody invited a site of that name")
            if not member.token_digest and member.public_key == enrolment.public_key and member.state != "evicted":
                return member
            if not enrolment.answers(member.token_digest):
                raise _not_invited(enrolment.site, "it answers another invitation, or one that was answered before")
            if member.expires is not None and now > member.expires:
                raise _not_invited(enrolment.site, f"its invitation expired {member.expires:%Y-%m-%d %H:%M} UTC")
            if member.state == "invited" and member.public_key == enrolment.public_key:
                raise _not_invited(enrolment.site, "its key was evicted with it; it must make a new one")
            for other in self.members():
                if other.name != member.name and other.public_key == enrolment.public_key:
                    raise _not_invited(enrolment.site, f"site {other.name} has the same key")
            retired = member.retired
            if member.node_id is not None and member.public_key != enrolment.public_key:
                retired = (*retired, member.node_id)
            return self._write(
                replace(
                    member,
                    state="enrolled",
                    public_key=enrolment.public_key,
                    node_id=None,
                    token_digest="",
                    expires=None,
                    times=member.at("enrolled", now),
                    retired=retired,
                )
            )

    def evict(self, name: str, now: datetime.datetime) -> Member:
        """Note that a site may not take part any more. Its invitation, if one is open, is withdrawn.

        Raises
        ------
        UsageError
            If there is no such site.
        """
        with self._changing():
            member = self.get(name)
            if member.state == "evicted":
                return member
            retired = (*member.retired, member.node_id) if member.node_id is not None else member.retired
            return self._write(
                replace(
                    member,
                    state="evicted",
                    node_id=None,
                    token_digest="",
                    expires=None,
                    times=member.at("evicted", now),
                    retired=retired,
                )
            )

    def registered(self, member: Member, node_id: int, now: datetime.datetime) -> None:
        """Note what the SuperLink calls a site. Nothing is noted if the site has changed since `member` was read."""
        with self._changing():
            if self.find(member.name) == member:
                times = member.at("registered", now)
                self._write(replace(member, state="registered", node_id=node_id, times=times))

    def forgotten(self, name: str, node_id: int) -> None:
        """Note that the SuperLink knows a former node of a site no more."""
        with self._changing():
            member = self.get(name)
            self._write(replace(member, retired=tuple(node for node in member.retired if node != node_id)))

    def _path(self, name: str) -> Path:
        return self._folder / f"{check_site_name(name)}.json"

    def _write(self, member: Member) -> Member:
        body = {
            "format": _FORMAT,
            "name": member.name,
            "state": member.state,
            "public-key": member.public_key,
            # As text: a number of 64 bits is not safe in every reader of JSON.
            "node-id": None if member.node_id is None else str(member.node_id),
            "token-sha256": member.token_digest,
            "expires": None if member.expires is None else member.expires.isoformat(),
            "retired": [str(node) for node in member.retired],
            **(member.times or {}),
        }
        write_text(self._path(member.name), json.dumps(body, indent=1) + "\n")
        return member

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One process at a time reads and writes back."""
        path = self._folder / ".lock"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise storage_error(error, path) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _read(path: Path) -> Member | None:
    try:
        body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if body["format"] != _FORMAT or body["state"] not in get_args(State):
            raise ValueError
        return Member(
            name=body["name"],
            state=body["state"],
            public_key=body["public-key"],
            node_id=None if body["node-id"] is None else int(body["node-id"]),
            token_digest=body["token-sha256"],
            expires=None if body["expires"] is None else datetime.datetime.fromisoformat(body["expires"]),
            times={name: str(value) for name, value in body.items() if name.endswith("-at")},
            retired=tuple(int(node) for node in body["retired"]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{path} cannot be used", "it is damaged, or another version wrote it", "restore it from your backup"
        ) from error


def _not_invited(site: str, cause: str) -> AuthRefused:
    return AuthRefused(f"site {site} cannot enrol", cause, f"invite it: `wardround coordinator invite {site}`")
