"""Ledger and approvals as tables for a terminal."""

from collections import deque
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from rich.markup import escape
from rich.table import Table

from wardround.client.gate import codes
from wardround.client.gate.approvals import Approval
from wardround.client.gate.ledger import Ledger, LedgerEntry


def last_entries(ledger: Ledger, count: int) -> list[LedgerEntry]:
    """The last `count` lines of a ledger, all for 0.

    Raises
    ------
    LedgerDamaged
        If it is not whole up to there.
    """
    return list(deque(ledger.entries(), maxlen=count or None))


def entries_table(entries: Iterable[LedgerEntry]) -> Table:
    """One row a line of the ledger."""
    table = Table("line", "time", "way", "what", "run", "round", "bytes", "SHA-256", "cases", "ε", "verdict", box=None)
    for entry in entries:
        verdict = codes.describe(entry.code) if entry.verdict == "allowed" else f"refused: {codes.describe(entry.code)}"
        verdict += f" ({entry.by})" if entry.by else ""
        table.add_row(
            str(entry.number),
            entry.time,
            "" if entry.direction == "none" else entry.direction,
            entry.kind,
            escape(entry.run or ""),
            "" if entry.round is None else str(entry.round),
            str(entry.bytes or ""),
            (entry.sha256 or "")[:12],
            "" if entry.cases is None else str(entry.cases),
            "" if entry.epsilon is None else f"{entry.epsilon:g}",
            f"[red]{escape(verdict)}[/]" if entry.verdict == "refused" else escape(verdict),
        )
    return table


def bundles_table(known: Sequence[Approval]) -> Table:
    """One row a bundle."""
    table = Table("SHA-256", "name", "state", "by", "until", "brings", box=None)
    for found in known:
        until = "" if found.expires is None else f"{datetime.fromtimestamp(found.expires, UTC):%Y-%m-%d}"
        brings = ", ".join(found.flags) or "no code"
        table.add_row(found.sha256[:12], escape(found.name), found.state, escape(found.by), until, escape(brings))
    return table
