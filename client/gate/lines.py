"""Lines of the ledger as the gate writes them: one for whatever was judged, whichever way that ended."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from wardround.client.gate import codes
from wardround.client.gate.ledger import Direction, Kind, Ledger, LedgerDamaged, LedgerEntry, Verdict
from wardround.errors import GateRefused, StorageError
from wardround.strategies.plan import RoundPlan

log = logging.getLogger(__name__)

_NO_LEDGER = frozenset({"ledger-damaged", "ledger-not-written"})


@dataclass
class Line:
    """What is known of a message while it is judged."""

    direction: Direction
    kind: Kind
    plan: RoundPlan | None = None
    bytes: int = 0
    sha256: str | None = None
    cases: int | None = None
    epsilon: float | None = None


class Lines:
    """Writes into a ledger; what cannot be written down is refused."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    @contextmanager
    def judging(self, line: Line) -> Iterator[None]:
        """Whatever ends this early is a refusal, and stands in the ledger as one."""
        try:
            yield
        except GateRefused as error:
            if error.code not in _NO_LEDGER:
                self.write(line, "refused", codes.safe_code(error.code))
            raise
        except Exception as error:  # noqa: BLE001  # It ends in a refusal, which is raised.
            # Its text may repeat what came from outside: the name of its class is all that is kept.
            log.error("the gate could not judge a message: %s", type(error).__name__)
            self.write(line, "refused", "malformed")
            raise refused("malformed") from None

    def write(self, line: Line, verdict: Verdict, code: str) -> LedgerEntry:
        """Add a line; when this returns, it is on the disk.

        Raises
        ------
        GateRefused
            ``ledger-damaged`` or ``ledger-not-written``.
        """
        plan = line.plan
        return self.append(
            direction=line.direction,
            kind=line.kind,
            verdict=verdict,
            code=code,
            run=plan.run if plan else None,
            round=plan.round if plan else None,
            plan=plan.digest() if plan else None,
            bytes=line.bytes,
            sha256=line.sha256,
            cases=line.cases,
            epsilon=line.epsilon,
        )

    def append(self, **fields: Any) -> LedgerEntry:
        """As :meth:`write`, of the fields of :class:`~wardround.client.gate.ledger.LedgerEntry`."""
        try:
            return self._ledger.append(**fields)
        except LedgerDamaged as error:
            log.error("%s", error)
            raise refused("ledger-damaged") from None
        except StorageError as error:
            log.error("%s", error)
            raise refused("ledger-not-written") from None


def refused(code: str) -> GateRefused:
    """The error by which the gate refuses."""
    return GateRefused("the gate refused a message", codes.describe(code), "the site's ledger holds it", code=code)


def line_kind(kind: str | None) -> Kind:
    """The kind of a line for a kind of message; ``error`` for one that is not known."""
    known: dict[str | None, Kind] = {"train": "train", "evaluate": "evaluate", "query": "query", "app": "app"}
    return known.get(kind, "error")
