"""What may leave: answers that were released and not sent yet, each good for one sending, also over a restart."""

import logging
import threading
from collections.abc import Callable, Iterable
from datetime import datetime

from wardround.client.gate import codes
from wardround.client.gate.ledger import Ledger, LedgerEntry
from wardround.client.gate.lines import Line, Lines, line_kind, refused
from wardround.errors import StorageError

log = logging.getLogger(__name__)

RELEASE_LASTS_S = 24 * 3600.0
"""An answer that was released and not sent within this time may not leave any more."""

_COPIED = {"kind", "run", "round", "plan", "bytes", "sha256", "cases", "epsilon"}


class Releases:
    """Releases of one site, by the digest of what may leave.

    Parameters
    ----------
    ledger
        Says what was released before this process was started.
    lines
        Writes there.
    clock
        Seconds since 1970.
    """

    def __init__(self, ledger: Ledger, lines: Lines, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._lines = lines
        self._clock = clock
        self._mutex = threading.Lock()
        self._waiting: dict[str, list[LedgerEntry]] | None = None

    def add(self, line: Line) -> None:
        """Release what `line` is of, and write that down.

        Raises
        ------
        GateRefused
            If the ledger cannot be read or written.
        """
        assert line.sha256 is not None
        with self._mutex:
            waiting = self._load()
            entry = self._lines.write(line, "allowed", codes.RELEASED)
            waiting.setdefault(line.sha256, []).append(entry)

    def send(self, digest: str, kind: str | None, run: str | None, round: int | None) -> bool:
        """Whether a content may be sent now; see :meth:`wardround.client.gate.gate.Gate.released`."""
        with self._mutex:
            now = self._clock()
            waiting = self._load()
            for entry in waiting.get(digest, []):
                same = all(
                    asked is None or asked == noted
                    for asked, noted in ((kind, entry.kind), (run, entry.run), (round, entry.round))
                )
                if same and now - _seconds(entry) <= RELEASE_LASTS_S:
                    fields = entry.model_dump(include=_COPIED)
                    self._lines.append(**fields, direction="out", verdict="allowed", code=codes.SENT)
                    waiting[digest].remove(entry)  # The loop ends here.
                    return True
            known = len(digest) == 64 and set(digest) <= set("0123456789abcdef")
            self._lines.append(
                direction="out",
                kind=line_kind(kind),
                verdict="refused",
                code="not-released",
                sha256=digest if known else None,
            )
            return False

    def _load(self) -> dict[str, list[LedgerEntry]]:
        """What was released and not sent yet, by digest; after a restart, from the ledger."""
        if self._waiting is None:
            try:
                self._waiting = _unsent(self._ledger.entries())
            except StorageError as error:
                log.error("%s", error)
                raise refused("ledger-damaged") from None
        return self._waiting


def _seconds(entry: LedgerEntry) -> float:
    return datetime.fromisoformat(entry.time).timestamp()


def _unsent(entries: Iterable[LedgerEntry]) -> dict[str, list[LedgerEntry]]:
    waiting: dict[str, list[LedgerEntry]] = {}
    for entry in entries:
        if entry.sha256 is None or entry.direction != "out":
            continue
        queue = waiting.setdefault(entry.sha256, [])
        if entry.code == codes.RELEASED:
            queue.append(entry)
        elif entry.code == codes.SENT:
            message = (entry.kind, entry.run, entry.round)
            # Its release may stand in a ledger that was set aside.
            if found := [each for each in queue if (each.kind, each.run, each.round) == message]:
                queue.remove(found[0])
    return {digest: queue for digest, queue in waiting.items() if queue}
