"""What a look at a site's home finds: what left and when, what came in, what was refused, and whether it takes part.

Everything is read from the disk, and nothing is written: the same answer comes beside an agent at work and beside one
that has stopped. It tells what the ledger tells, and so nothing of any case.
"""

import math
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from wardround.client.gate.approvals import Approval, Approvals
from wardround.client.gate.codes import ADMITTED, SENT
from wardround.client.gate.ledger import Ledger, LedgerEntry, Verification
from wardround.client.gate.policy import load_policy
from wardround.client.home import SiteHome
from wardround.errors import WardroundError
from wardround.files import is_locked

MOST_LINES = 100
"""So many of the latest lines are shown."""
MOST_DAYS = 14


@dataclass(frozen=True)
class Day:
    """What was sent, came in and was refused on one day (UTC): messages and bytes."""

    date: str
    sent: int = 0
    sent_bytes: int = 0
    received: int = 0
    received_bytes: int = 0
    refused: int = 0


@dataclass(frozen=True)
class Account:
    """What the ledger says.

    Parameters
    ----------
    verification
        Whether it is whole.
    sent, received, refused
        The latest lines of each, newest first.
    days
        The latest days on which something happened, newest first.
    totals
        Lines and bytes by (direction, kind, verdict, code), over the whole ledger.
    given
        The line of the latest weights that came in; None if none did.
    """

    verification: Verification
    sent: tuple[LedgerEntry, ...] = ()
    received: tuple[LedgerEntry, ...] = ()
    refused: tuple[LedgerEntry, ...] = ()
    days: tuple[Day, ...] = ()
    totals: Mapping[tuple[str, str, str, str], tuple[int, int]] = field(default_factory=dict)
    given: LedgerEntry | None = None

    def sum_of(self, *, direction: str | None = None, verdict: str | None = None, code: str | None = None) -> Day:
        """Messages and bytes of all lines that fit, as `sent` and `sent_bytes`."""
        wanted = (direction, None, verdict, code)
        found = [
            value
            for key, value in self.totals.items()
            if all(want is None or want == part for want, part in zip(wanted, key, strict=True))
        ]
        return Day("", sum(lines for lines, _ in found), sum(size for _, size in found))


@dataclass(frozen=True)
class SiteOverview:
    """A site at one moment.

    Parameters
    ----------
    now
        Seconds since 1970.
    name
        As the coordinator knows the site; empty if its settings cannot be read.
    coordinator
        URL; empty as `name`.
    participation
        ``active``, ``paused`` or ``left``; ``unknown`` if it cannot be read.
    agent
        Whether an agent is at work; None if nobody can tell.
    account
        What the ledger says.
    bundles
        Every app bundle that was seen.
    policy
        The limits, by name.
    notes
        What could not be read.
    """

    now: float
    name: str
    coordinator: str
    participation: str
    agent: bool | None
    account: Account
    bundles: tuple[Approval, ...] = ()
    policy: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def waiting(self) -> tuple[Approval, ...]:
        """Bundles that wait for a decision."""
        return tuple(bundle for bundle in self.bundles if bundle.state == "pending")


def read_site(home: SiteHome, now: float | None = None) -> SiteOverview:
    """Look at the home of a site."""
    notes: list[str] = []
    name = coordinator = ""
    participation, agent = "unknown", None
    bundles: tuple[Approval, ...] = ()
    policy: dict[str, Any] = {}
    try:
        name, coordinator = home.settings.name, home.settings.coordinator
    except WardroundError as error:
        notes.append(str(error))
    try:
        participation = home.participation
    except WardroundError as error:
        notes.append(str(error))
    try:
        agent = is_locked(home.lock)
    except WardroundError as error:
        notes.append(str(error))
    try:
        bundles = Approvals(home.path).listing()
    except WardroundError as error:
        notes.append(str(error))
    try:
        policy = load_policy(home.policy).model_dump(by_alias=True)
    except WardroundError as error:
        notes.append(str(error))
    account = read_account(home.ledger, notes)
    moment = time.time() if now is None else now
    return SiteOverview(moment, name, coordinator, participation, agent, account, bundles, policy, tuple(notes))


def read_account(ledger: Path, notes: list[str]) -> Account:
    """Read the whole ledger, or what was found the last time if it has not changed since."""
    try:
        return _account(ledger, _signature(ledger))
    except (WardroundError, OSError) as error:
        notes.append(str(error) if isinstance(error, WardroundError) else "the ledger cannot be read")
        return Account(Verification(False, 0, "it cannot be read"))


def _signature(ledger: Path) -> tuple[tuple[int, int, int], ...]:
    parts = []
    for path in (ledger, ledger.with_suffix(".head")):
        try:
            found = path.stat()
            parts.append((found.st_ino, found.st_size, found.st_mtime_ns))
        except FileNotFoundError:
            parts.append((0, 0, 0))
    return tuple(parts)


@lru_cache(maxsize=2)
def _account(path: Path, signature: tuple[tuple[int, int, int], ...]) -> Account:
    ledger = Ledger(path)
    return count_up(ledger.entries(), ledger.verify())


def count_up(entries: Iterable[LedgerEntry], verification: Verification) -> Account:
    """Go once through the ledger. Of one that is damaged, what lies before the damage counts."""
    sent, received, refused = (deque[LedgerEntry](maxlen=MOST_LINES) for _ in range(3))
    totals: dict[tuple[str, str, str, str], tuple[int, int]] = {}
    days: dict[str, list[int]] = {}
    given: LedgerEntry | None = None
    try:
        for entry in entries:
            key = (entry.direction, entry.kind, entry.verdict, entry.code)
            lines, size = totals.get(key, (0, 0))
            totals[key] = (lines + 1, size + entry.bytes)
            day = days.setdefault(entry.time[:10], [0] * 5)
            if entry.verdict == "refused":
                refused.append(entry)
                day[4] += 1
            elif entry.direction == "out" and entry.code == SENT:
                sent.append(entry)
                day[0], day[1] = day[0] + 1, day[1] + entry.bytes
            elif entry.direction == "in":
                received.append(entry)
                day[2], day[3] = day[2] + 1, day[3] + entry.bytes
                if entry.kind in ("train", "evaluate") and entry.code == ADMITTED:
                    given = entry
    except WardroundError:
        if verification.ok:
            raise
    latest = tuple(Day(date, *days[date]) for date in sorted(days, reverse=True)[:MOST_DAYS])
    return Account(
        verification,
        sent=tuple(reversed(sent)),
        received=tuple(reversed(received)),
        refused=tuple(reversed(refused)),
        days=latest,
        totals=totals,
        given=given,
    )


def seconds_of(entry: LedgerEntry | None) -> float:
    """The time of a line in seconds since 1970; NaN without one."""
    return math.nan if entry is None else datetime.fromisoformat(entry.time).timestamp()
