"""The ledger: one line for everything that came in or left, each bound to the line before it by its SHA-256.

Decisions on bundles are lines, too: who let one run, or took that back.

Whoever changes, inserts, removes or reorders lines breaks the chain, and :meth:`Ledger.verify` names the line. What a
chain alone does not show, lines cut off at its end, is shown by a second file beside it, which says how far the ledger
went. Who may write the folder could write both anew from the start; against that helps only a hash that was noted
somewhere else, and :meth:`Ledger.verify` says whether the ledger still holds it.

A crash while a line is written leaves it torn. It was never acknowledged, and nothing came in or left on its account:
the next writer drops it and says so in a line of its own.
"""

import fcntl
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from wardround.client.gate.chain import (
    NOTHING,
    Broken,
    Direction,
    Kind,
    LedgerEntry,
    Survey,
    Tail,
    Verdict,
    head_text,
    line_of,
    next_entry,
    read_lines,
    survey,
)
from wardround.client.gate.codes import CODES
from wardround.errors import StorageError
from wardround.files import storage_error, write_text

__all__ = ["NOTHING", "Direction", "Kind", "Ledger", "LedgerDamaged", "LedgerEntry", "Verdict", "Verification"]

log = logging.getLogger(__name__)


class LedgerDamaged(StorageError):
    """The ledger is not as it was written: nothing may come in or leave until somebody has looked into it."""


@dataclass(frozen=True)
class Verification:
    """What a look at the whole ledger found.

    Parameters
    ----------
    ok
        Whether every line is as it was written, and none is missing.
    count
        Good lines, from the first on.
    problem
        What is wrong, in one phrase; empty if nothing is.
    line
        Where, counted from 1.
    head
        Hash of the last good line. Note it somewhere else, and a later verification can ask for it.
    """

    ok: bool
    count: int
    problem: str = ""
    line: int | None = None
    head: str = NOTHING


class Ledger:
    """The ledger in one file, with ``<name>.head`` beside it.

    Making the object neither reads nor writes, and reading never writes. Any number of processes may read while one
    writes; writers wait for each other.

    Parameters
    ----------
    path
        ``ledger.jsonl``.
    clock
        Seconds since 1970.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._head = path.with_suffix(".head")
        self._clock = clock
        self._mutex = threading.Lock()
        self._known: Tail | None = None

    def append(
        self,
        *,
        direction: Direction,
        kind: Kind,
        verdict: Verdict,
        code: str,
        run: str | None = None,
        round: int | None = None,
        plan: str | None = None,
        bytes: int = 0,
        sha256: str | None = None,
        cases: int | None = None,
        epsilon: float | None = None,
        by: str | None = None,
    ) -> LedgerEntry:
        """Add a line; when this returns, it is on the disk. The fields are those of :class:`LedgerEntry`.

        Raises
        ------
        ValueError
            If `code` is not on the list, or a value is not of its field's form.
        LedgerDamaged
            If the ledger is not whole. Nothing is written.
        StorageError
            If it cannot be written. Nothing is added.
        """
        if code not in CODES:
            raise ValueError("the code is not on the list")
        fields = {
            "direction": direction,
            "kind": kind,
            "run": run,
            "round": round,
            "plan": plan,
            "bytes": bytes,
            "sha256": sha256,
            "cases": cases,
            "epsilon": epsilon,
            "verdict": verdict,
            "code": code,
            "by": by,
        }
        with self._writing() as handle:
            self._mend(handle)
            return self._add(handle, fields)

    def heal(self) -> int:
        """Drop a line that a crash tore, and say so in a new one.

        Returns
        -------
        int
            Bytes that were dropped; 0 if the last line is whole.

        Raises
        ------
        LedgerDamaged
            If anything else is wrong with the ledger.
        StorageError
            If it cannot be written.
        """
        if not self.path.exists() and not self._head.exists():
            return 0
        with self._writing() as handle:
            return self._mend(handle)

    def entries(self) -> Iterator[LedgerEntry]:
        """Every line, from the first on, as far as the ledger goes when the first one is asked for.

        A torn last line is left out.

        Raises
        ------
        LedgerDamaged
            On coming to a line that is not a link of the chain.
        StorageError
            If the file cannot be read.
        """
        with self._snapshot() as (stream, size, _):
            try:
                for entry, _ in read_lines(stream, size):
                    yield entry
            except Broken as broken:
                if not broken.torn:
                    raise self._damaged(Survey(broken.tail, broken.problem)) from None

    def count(self, code: str) -> int:
        """How many lines have this code, here and in the ledgers that were set aside beside it.

        Those are counted as far as they can be read, damaged as they may be; a line that stands in two files counts
        once.

        Raises
        ------
        LedgerDamaged
            If this ledger is not whole.
        StorageError
            If a file cannot be read.
        """
        found = {entry.hash for entry in self.entries() if entry.code == code}
        for old in sorted(self.path.parent.glob(f"{self.path.stem}-*{self.path.suffix}")):
            try:
                lines = old.read_bytes().splitlines()
            except OSError as error:
                raise storage_error(error, old) from error
            for line in lines:
                try:
                    values = json.loads(line)
                    if values["code"] == code:
                        found.add(str(values["hash"]))
                except (ValueError, RecursionError, TypeError, KeyError):
                    continue  # A damaged line.
        return len(found)

    def verify(self, head: str | None = None) -> Verification:
        """Look at every byte.

        Parameters
        ----------
        head
            Hash of a line that was noted earlier: the ledger must still hold it.

        Raises
        ------
        StorageError
            If the file cannot be read.
        """
        with self._snapshot() as (stream, size, noted):
            seen = survey(stream, size, noted, NOTHING if head is None else head.strip().lower())
        problem, tail = seen.problem, seen.tail
        if not problem and not seen.found:
            return Verification(False, tail.number, "it does not hold the hash that was noted", None, tail.hash)
        return Verification(not problem, tail.number, problem, tail.number + 1 if problem else None, tail.hash)

    def set_aside(self) -> Path:
        """Begin a new ledger and keep the old one under another name: the way on, once damage was looked into.

        The first line of the new ledger holds the SHA-256 of the old file.

        Returns
        -------
        Path
            Where the old one lies.
        """
        stamp = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y%m%dT%H%M%S%fZ")
        old = self.path.with_name(f"{self.path.stem}-{stamp}{self.path.suffix}")
        digest, size = hashlib.sha256(), 0
        with self._writing() as handle, os.fdopen(os.dup(handle), "rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
                size += len(block)
            # The head goes first: a ledger without one counts as damaged, so that a crash between the two is seen.
            if self._head.exists():
                self._head.rename(old.with_suffix(".head"))
            self.path.rename(old)
            self._known = None
        self.append(
            direction="none", kind="ledger", verdict="allowed", code="set-aside", bytes=size, sha256=digest.hexdigest()
        )
        return old

    @contextmanager
    def _writing(self) -> Iterator[int]:
        """The open file, for this thread of this process alone. A ledger that is not there is made."""
        with self._mutex:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                if not self._head.exists() and not self.path.exists():
                    # Before the ledger itself, so that one without it is always one that lost it.
                    write_text(self._head, head_text(Tail()))
                with _locked(self.path, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX) as handle:
                    yield handle
            except BaseException as error:
                self._known = None
                if isinstance(error, OSError):
                    raise storage_error(error, self.path) from error
                raise

    @contextmanager
    def _snapshot(self) -> Iterator[tuple[BinaryIO, int, str | None]]:
        """The open file, how many bytes of it count, and the text of the head: all of one moment."""
        try:
            handle, size, head = self._open()
            with os.fdopen(handle, "rb") as stream:
                yield stream, size, head
        except OSError as error:
            raise StorageError(
                f"cannot read {self.path}", error.strerror or type(error).__name__, "check the disk and the path"
            ) from error

    def _open(self) -> tuple[int, int, str | None]:
        try:
            with _locked(self.path, os.O_RDONLY, fcntl.LOCK_SH) as locked:
                return os.dup(locked), os.fstat(locked).st_size, self._read_head()
        except FileNotFoundError:
            return os.open(os.devnull, os.O_RDONLY), 0, self._read_head()

    def _read_head(self) -> str | None:
        try:
            with self._head.open("rb") as stream:
                return stream.read(1024).decode("ascii", "replace")
        except FileNotFoundError:
            return None

    def _mend(self, handle: int) -> int:
        """Know where the ledger ends; drop a torn line there and say so. Returns how many bytes were dropped."""
        size = os.fstat(handle).st_size
        if self._known is not None and self._known.offset == size:
            return 0
        with os.fdopen(os.dup(handle), "rb") as stream:
            seen = survey(stream, size, self._read_head())
            if seen.problem and not seen.torn:
                raise self._damaged(seen)
            stream.seek(seen.tail.offset)
            rest = stream.read(seen.torn)
        self._known = seen.tail
        if rest:
            log.warning("the last line of the ledger was torn; %d bytes dropped", len(rest))
            fields = {"direction": "none", "kind": "ledger", "verdict": "allowed", "code": "torn-line-dropped"}
            self._add(handle, {**fields, "bytes": len(rest), "sha256": hashlib.sha256(rest).hexdigest()})
        return len(rest)

    def _add(self, handle: int, fields: dict[str, Any]) -> LedgerEntry:
        """Write a line behind the last good one, over what a crash may have left there."""
        assert self._known is not None
        tail, before = self._known, os.fstat(handle).st_size
        entry = next_entry(tail, self._clock(), fields)
        line = line_of(entry)
        try:
            done = 0
            while done < len(line):
                done += os.pwrite(handle, line[done:], tail.offset + done)
            os.ftruncate(handle, tail.offset + len(line))
            os.fsync(handle)
        except OSError:
            os.ftruncate(handle, before)
            raise
        self._known = Tail(entry.number, entry.hash, tail.offset + len(line))
        self._write_head(self._known)
        return entry

    def _write_head(self, tail: Tail) -> None:
        """Overwrite the head in place, by as many bytes: no room is needed, and it holds either what it held or this.

        It is not flushed. After a power cut it may lag behind the ledger, which is flushed, and never runs ahead of it.
        """
        text = head_text(tail).encode("ascii")
        try:
            handle = os.open(self._head, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(handle, text, 0)
                os.ftruncate(handle, len(text))
            finally:
                os.close(handle)
        except OSError as error:
            # The line itself is safe. Until the head can be written again, lines cut off behind it go unnoticed.
            log.error("%s", storage_error(error, self._head))

    def _damaged(self, seen: Survey) -> LedgerDamaged:
        return LedgerDamaged(
            f"the ledger {self.path} is damaged",
            f"line {seen.tail.number + 1}: {seen.problem}",
            "find out why; then set it aside, and a new one begins",
        )


@contextmanager
def _locked(path: Path, flags: int, lock: int) -> Iterator[int]:
    """The open file under a lock; if it was renamed while we waited, the one that took its name."""
    while True:
        handle = os.open(path, flags | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, lock)
            same = flags & os.O_CREAT == 0 or _is_at(handle, path)
            if same:
                yield handle
                return
        finally:
            # Explicitly: a copy of the handle that outlives this one would keep the lock.
            fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
