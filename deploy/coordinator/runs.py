"""A run on disk: what its operator wants, and how far it is.

::

    runs/<name>/request.json    written by the operator's commands: settings, and whether the run is wanted
                state.json      written by the process that serves: queued, running, finished, failed or stopped
                error.json      written by the ServerApp where it ended by an error of its own
                run.json, rounds/ …   the journal

Each file has one writer, so that a command and the process that serves never overwrite each other.
"""

import datetime
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from wardround.errors import StorageError, UsageError
from wardround.files import is_locked, new_folder, write_text
from wardround.server.home import CoordinatorHome
from wardround.server.journal import RoundRecord, read_rounds

REQUEST = "request.json"
STATE = "state.json"
ERROR = "error.json"

Phase = Literal["queued", "running", "finished", "failed", "stopped"]
OVER: tuple[Phase, ...] = ("finished", "failed", "stopped")
"""Phases that a run leaves only when its operator says so."""

_FORMAT = 1


@dataclass(frozen=True)
class Request:
    """What an operator wants of a run.

    Parameters
    ----------
    name
        Of the run.
    created
        UTC; runs are worked off in this order.
    settings
        The run configuration of :mod:`wardround.server.app`, without ``output``.
    wanted
        Whether the run shall go on.
    wish
        Counts the operator's wishes: a run that is over begins again only for a new one.
    """

    name: str
    created: datetime.datetime
    settings: Mapping[str, object]
    wanted: bool = True
    wish: int = 1

    @property
    def rounds(self) -> int:
        """How many rounds were asked for."""
        rounds = self.settings["rounds"]
        assert isinstance(rounds, int)
        return rounds


@dataclass(frozen=True)
class State:
    """How far a run is, as far as the process that serves knows.

    Parameters
    ----------
    phase
        See :data:`Phase`.
    wish
        The wish that it stands for.
    flower_run
        Number of the Flower run that works on it, or None.
    attempts
        How many Flower runs were started for it.
    fruitless
        How many of the last ones closed no round.
    closed
        Rounds that were closed when the last attempt began.
    reason
        Why it is where it is; empty where that is plain.
    updated
        UTC; None where nothing was written yet.
    """

    phase: Phase = "queued"
    wish: int = 0
    flower_run: int | None = None
    attempts: int = 0
    fruitless: int = 0
    closed: int = 0
    reason: str = ""
    updated: datetime.datetime | None = None


@dataclass(frozen=True)
class OwnError:
    """The error by which a ServerApp ended itself.

    Parameters
    ----------
    kind
        Name of the class in :mod:`wardround.errors`.
    problem, cause, fix
        What it says.
    """

    kind: str
    problem: str
    cause: str = ""
    fix: str = ""


@dataclass(frozen=True)
class Run:
    """One run: its folder and what is in it.

    Parameters
    ----------
    folder
        Holds all of it.
    request
        What is wanted.
    state
        How far it is.
    """

    folder: Path
    request: Request
    state: State = field(default_factory=State)

    @property
    def name(self) -> str:
        """Of the run."""
        return self.request.name

    @property
    def phase(self) -> Phase:
        """The phase, with a wish in mind that the process that serves has not seen yet."""
        if self.request.wanted and self.request.wish > self.state.wish:
            return "queued"
        return self.state.phase

    @property
    def at_work(self) -> bool:
        """Whether a ServerApp holds the journal now."""
        return is_locked(self.folder / ".lock")

    def rounds(self) -> list[RoundRecord]:
        """The closed rounds."""
        return read_rounds(self.folder) if (self.folder / "rounds").is_dir() else []

    @property
    def complete(self) -> bool:
        """Whether the last round is closed and was evaluated."""
        rounds = self.rounds()
        return bool(rounds) and rounds[-1].round >= self.request.rounds and rounds[-1].evaluation is not None

    def own_error(self) -> OwnError | None:
        """The error by which the last ServerApp ended itself, or None."""
        try:
            body = json.loads((self.folder / ERROR).read_text(encoding="utf-8"))
            return OwnError(str(body["error"]), str(body["problem"]), str(body["cause"]), str(body["fix"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(self.folder / ERROR) from error

    def forget_error(self) -> None:
        """Remove what the last ServerApp left, before the next one begins."""
        (self.folder / ERROR).unlink(missing_ok=True)

    def save_state(self, now: datetime.datetime, **changes: Any) -> "Run":
        """Write a new state; returns the run with it."""
        state = replace(self.state, updated=now, **changes)
        body = {
            "format": _FORMAT,
            "state": state.phase,
            "wish": state.wish,
            # As text: a number of 64 bits is not safe in every reader of JSON.
            "flower-run-id": None if state.flower_run is None else str(state.flower_run),
            "attempts": state.attempts,
            "fruitless": state.fruitless,
            "closed": state.closed,
            "reason": state.reason,
            "updated": now.isoformat(timespec="seconds"),
        }
        write_text(self.folder / STATE, json.dumps(body, indent=1) + "\n")
        return replace(self, state=state)

    def ask(self, *, wanted: bool) -> "Run":
        """Write down whether the run is wanted; returns it with that wish."""
        request = replace(self.request, wanted=wanted, wish=self.request.wish + 1)
        write_text(self.folder / REQUEST, _request_text(request))
        return replace(self, request=request)


def create(home: CoordinatorHome, name: str, settings: Mapping[str, object], now: datetime.datetime) -> Run:
    """Ask for a new run.

    Raises
    ------
    UsageError
        If there is one of that name, or it cannot be called so.
    StorageError
        If it cannot be written.
    """
    folder = home.run_folder(name)
    if folder.exists():
        raise UsageError(
            f"there is a run {name!r} already",
            "a run is never overwritten",
            f"go on with `wardround coordinator run {name} --resume`, or choose another name",
        )
    request = Request(name, now, dict(settings))
    with new_folder(folder) as temporary:
        (temporary / REQUEST).write_text(_request_text(request), encoding="utf-8")
    return Run(folder, request)


def find(home: CoordinatorHome, name: str) -> Run:
    """Read a run.

    Raises
    ------
    UsageError
        If there is none of that name.
    StorageError
        If one of its files is damaged.
    """
    folder = home.run_folder(name)
    if not (folder / REQUEST).exists():
        known = ", ".join(run.name for run in all_runs(home)) or "there is none yet"
        raise UsageError(f"there is no run {name!r}", f"known: {known}", "look at `wardround coordinator status`")
    return _read(folder)


def all_runs(home: CoordinatorHome, damaged: Callable[[StorageError], None] | None = None) -> list[Run]:
    """All runs, in the order in which they were asked for.

    Parameters
    ----------
    home
        Of the coordinator.
    damaged
        Told of a run that cannot be read, which is then left out; by default the error is raised.

    Raises
    ------
    StorageError
        If a file is damaged.
    """
    found = []
    for path in sorted(home.runs.glob(f"*/{REQUEST}")):
        if path.parent.name.startswith("."):
            continue
        try:
            found.append(_read(path.parent))
        except StorageError as error:
            if damaged is None:
                raise
            damaged(error)
    return sorted(found, key=lambda run: (run.request.created, run.name))


def _read(folder: Path) -> Run:
    path = folder / REQUEST
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        request = Request(
            name=body["name"],
            created=datetime.datetime.fromisoformat(body["created"]),
            settings=dict(body["settings"]),
            wanted=bool(body["wanted"]),
            wish=int(body["wish"]),
        )
        if body["format"] != _FORMAT or request.name != folder.name or not isinstance(request.settings["rounds"], int):
            raise ValueError
        path = folder / STATE
        return Run(folder, request, _read_state(path) if path.exists() else State())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path) from error


def _read_state(path: Path) -> State:
    body = json.loads(path.read_text(encoding="utf-8"))
    if body["format"] != _FORMAT or body["state"] not in get_args(Phase):
        raise ValueError
    return State(
        phase=body["state"],
        wish=int(body["wish"]),
        flower_run=None if body["flower-run-id"] is None else int(body["flower-run-id"]),
        attempts=int(body["attempts"]),
        fruitless=int(body["fruitless"]),
        closed=int(body["closed"]),
        reason=str(body["reason"]),
        updated=datetime.datetime.fromisoformat(body["updated"]),
    )


def _request_text(request: Request) -> str:
    body = {
        "format": _FORMAT,
        "name": request.name,
        "created": request.created.isoformat(),
        "wanted": request.wanted,
        "wish": request.wish,
        "settings": request.settings,
    }
    return json.dumps(body, indent=1) + "\n"


def _damaged(path: Path) -> StorageError:
    return StorageError(
        f"{path} cannot be used", "it is damaged, or another version wrote it", "restore it, or move the run away"
    )
