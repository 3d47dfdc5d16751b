"""What a look at a coordinator's folder finds: sites, runs, rounds, who is online.

Everything is read from the disk, and nothing is written: the same answer comes beside a coordinator at work and beside
one that has stopped. A file that is damaged costs its own line, never the whole overview.
"""

import json
import math
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from wardround.errors import WardroundError
from wardround.server.home import CoordinatorHome
from wardround.server.journal import OpenView, RoundRecord, read_open, read_rounds
from wardround.strategies.contract import DICE, Metrics

ORDER = ("running", "queued")
"""States of a run that wants something, the most urgent first."""
_PATIENCE_S = 2.0


@dataclass(frozen=True)
class SiteView:
    """One site.

    Parameters
    ----------
    name, state
        As in its file: ``invited``, ``enrolled``, ``registered``, ``evicted``.
    online
        Whether the SuperLink counts it as there; None if nobody knows.
    seen
        Seconds since 1970 of its last sign of life; NaN if there was none or nobody knows.
    """

    name: str
    state: str
    online: bool | None = None
    seen: float = math.nan


@dataclass(frozen=True)
class SiteTotals:
    """What a site did in a run so far: rounds it was combined in, refused in and missing from; bytes; quarantine."""

    name: str
    rounds: int
    refused: int
    missing: int
    bytes_down: int
    bytes_up: int
    last_round: int
    dice: float
    reason: str
    quarantined: bool


@dataclass(frozen=True)
class RunView:
    """One run.

    Parameters
    ----------
    name, state
        ``queued``, ``running``, ``finished``, ``failed`` or ``stopped``.
    reason
        Why it is in that state, where somebody wrote it down.
    attempts
        How often it was submitted.
    updated
        Seconds since 1970 of the last change of its state; NaN if unknown.
    planned
        Rounds asked for; 0 if unknown.
    records
        The closed rounds.
    closed
        Seconds since 1970 at which each round was closed.
    trouble
        Why its journal cannot be read; empty if it can.
    quarantined
        Sites that are left out for now.
    open
        The round that is open; None if none is.
    """

    name: str
    state: str
    reason: str = ""
    attempts: int = 0
    updated: float = math.nan
    planned: int = 0
    records: tuple[RoundRecord, ...] = ()
    closed: Mapping[int, float] = field(default_factory=dict)
    trouble: str = ""
    quarantined: tuple[str, ...] = ()
    open: OpenView | None = None

    @property
    def last(self) -> RoundRecord | None:
        """The latest closed round."""
        return self.records[-1] if self.records else None

    def site_totals(self) -> list[SiteTotals]:
        """Every site that the journal names, by name."""
        names = sorted({name for record in self.records for name in (*record.sites, *record.refused, *record.missing)})
        return [self._totals(name) for name in names]

    def _totals(self, name: str) -> SiteTotals:
        reports = [(record.round, record.sites[name]) for record in self.records if name in record.sites]
        last = self.last
        reason = "" if last is None else last.refused.get(name, "") or last.missing.get(name, "")
        return SiteTotals(
            name,
            rounds=len(reports),
            refused=sum(name in record.refused for record in self.records),
            missing=sum(name in record.missing for record in self.records),
            bytes_down=sum(report.bytes_down for _, report in reports),
            bytes_up=sum(report.bytes_up for _, report in reports),
            last_round=reports[-1][0] if reports else 0,
            dice=_last_dice(self.records, name),
            reason=str(reason),
            quarantined=name in self.quarantined,
        )


@dataclass(frozen=True)
class Overview:
    """A coordinator at one moment.

    Parameters
    ----------
    now
        Seconds since 1970.
    serving
        Whether a coordinator is at work on the folder; None if that cannot be told.
    sites, runs
        By name; the runs with the one that matters most first.
    notes
        What could not be read.
    """

    now: float
    serving: bool | None
    sites: tuple[SiteView, ...]
    runs: tuple[RunView, ...]
    notes: tuple[str, ...] = ()

    @property
    def online(self) -> int | None:
        """How many registered sites are online; None if nobody knows."""
        known = [site.online for site in self.sites if site.state == "registered"]
        return None if None in known else sum(1 for online in known if online)

    def run(self, name: str) -> RunView | None:
        """The run of that name."""
        return next((run for run in self.runs if run.name == name), None)


def read_overview(home: CoordinatorHome, now: float | None = None) -> Overview:
    """Look at the folder of a coordinator."""
    moment = time.time() if now is None else now
    notes: list[str] = []
    nodes = _nodes(home.database, notes)
    sites = tuple(_site(path, nodes, moment, notes) for path in _files(home.sites, "*.json"))
    runs = [_run(folder, notes) for folder in _files(home.runs, "*") if folder.is_dir()]
    runs.sort(key=_urgency)
    serving: bool | None
    try:
        serving = home.is_serving()
    except WardroundError as error:
        serving = None
        notes.append(str(error))
    return Overview(moment, serving, sites, tuple(runs), tuple(notes))


def _urgency(run: RunView) -> tuple[int, float, str]:
    rank = ORDER.index(run.state) if run.state in ORDER else len(ORDER)
    return rank, 0.0 if math.isnan(run.updated) else -run.updated, run.name


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def _read(path: Path, notes: list[str]) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none, and a note where it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{path.parent.name}/{path.name} cannot be read ({type(error).__name__})")
        return {}
    if not isinstance(value, dict):
        notes.append(f"{path.parent.name}/{path.name} is damaged")
        return {}
    return value


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    return "" if value is None else str(value)


def _whole(values: Mapping[str, Any], name: str) -> int:
    value = values.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _moment(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return math.nan


def _site(path: Path, nodes: "Mapping[int, _Node] | None", now: float, notes: list[str]) -> SiteView:
    body = _read(path, notes)
    name, state = _text(body, "name") or path.stem, _text(body, "state") or "unknown"
    identity = _text(body, "node-id")
    if nodes is None:
        return SiteView(name, state)
    node = nodes.get(int(identity)) if identity.isdecimal() and len(identity) <= 20 else None
    if node is None:
        return SiteView(name, state, online=False)
    online = state == "registered" and node.status == "online" and node.online_until > now
    return SiteView(name, state, online, now if online else min(node.last, now))


@dataclass(frozen=True)
class _Node:
    status: str
    online_until: float
    last: float


def _nodes(database: Path, notes: list[str]) -> dict[int, _Node] | None:
    """What the SuperLink knows of its nodes, by id; None if it cannot be asked. Nothing is locked or written."""
    if not database.exists():
        return {}
    query = "SELECT node_id, status, online_until, last_activated_at, last_deactivated_at FROM node"
    try:
        connection = sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True, timeout=_PATIENCE_S)
        try:
            rows = connection.execute(query).fetchall()
        finally:
            connection.close()
        # The database keeps unsigned 64-bit ids as signed ones.
        return {int(row[0]) % 2**64: _node(*row[1:]) for row in rows if row[0] is not None}
    except (sqlite3.Error, TypeError, ValueError) as error:
        notes.append(f"superlink.db cannot be read ({type(error).__name__}): nobody knows who is online")
        return None


def _node(status: str | None, until: float | None, activated: str | None, deactivated: str | None) -> _Node:
    last = [moment for moment in (_moment(activated or ""), _moment(deactivated or "")) if not math.isnan(moment)]
    if until:
        last.append(float(until))
    return _Node(status or "", float(until or 0.0), max(last, default=math.nan))


def _run(folder: Path, notes: list[str]) -> RunView:
    state, request = _read(folder / "state.json", notes), _read(folder / "request.json", notes)
    settings = request.get("settings")
    records: tuple[RoundRecord, ...] = ()
    closed: dict[int, float] = {}
    trouble = ""
    try:
        signature = _signature(folder)
        closed = {number: made / 1e9 for number, made, _ in signature}
        records = _records(folder, signature)
    except WardroundError as error:
        trouble = str(error)
    except (OSError, RecursionError) as error:
        trouble = f"its journal cannot be read ({type(error).__name__})"
    return RunView(
        folder.name,
        _text(state, "state") or "unknown",
        _text(state, "reason"),
        _whole(state, "attempts"),
        _moment(_text(state, "updated")),
        _whole(settings, "rounds") if isinstance(settings, dict) else 0,
        records,
        closed,
        trouble,
        _quarantined(records),
        _open(folder, records),
    )


def _open(folder: Path, records: tuple[RoundRecord, ...]) -> OpenView | None:
    """The round that is open; for a moment after it was closed its updates still lie there."""
    view = read_open(folder)
    return view if view is not None and view.round > (records[-1].round if records else 0) else None


def _signature(folder: Path) -> tuple[tuple[int, int, int], ...]:
    """Number of each closed round, and when its two files were written, in nanoseconds."""
    rounds = folder / "rounds"
    if not rounds.is_dir():
        return ()
    found = []
    for path in rounds.iterdir():
        if path.name.isdigit():
            scores = path / "evaluation.json"
            made = (path / "round.json").stat().st_mtime_ns
            found.append((int(path.name), made, scores.stat().st_mtime_ns if scores.exists() else 0))
    return tuple(sorted(found))


@lru_cache(maxsize=16)
def _records(folder: Path, signature: tuple[tuple[int, int, int], ...]) -> tuple[RoundRecord, ...]:
    """The closed rounds; read again only when one of their files has changed."""
    return tuple(read_rounds(folder)) if signature else ()


def _quarantined(records: tuple[RoundRecord, ...]) -> tuple[str, ...]:
    """Sites that sit out the next round."""
    if not records:
        return ()
    last = records[-1]
    return tuple(sorted(site for site, now in last.standing.items() if last.round + 1 <= now.until))


def _last_dice(records: tuple[RoundRecord, ...], name: str) -> float:
    for record in reversed(records):
        if record.evaluation is not None and name in record.evaluation.sites:
            return scalar(record.evaluation.sites[name], DICE)
    return math.nan


def scalar(metrics: Metrics, name: str) -> float:
    """A metric as one number; NaN where there is none."""
    value = metrics.get(name)
    return float(value) if isinstance(value, (int, float)) else math.nan
