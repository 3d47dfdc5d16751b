"""The journal of a run: what the coordinator must have on disk to go on after any crash, and what a report is made of.

::

    run.json                    settings that may not change between a start and a resume
    rounds/00001/round.json     who took part, who was refused and why, metrics, bytes, seconds
                 global.safetensors      the global weights after the round      ┐ of the last rounds only
                 strategy.safetensors    what the strategy carries on, if any    ┘
                 evaluation.json         per-site scores, where the round was evaluated

A round's folder appears in one step, when all of it is on the disk. A round that was not closed leaves nothing.
"""

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, cast
from weakref import WeakValueDictionary

from safetensors import SafetensorError
from safetensors.numpy import load, save

from wardround.errors import PlanError, StorageError
from wardround.files import new_folder, storage_error, sweep, write_text
from wardround.strategies.contract import Metrics, Weights

_RUN = "run.json"
_ROUND = "round.json"
_WEIGHTS = "global.safetensors"
_STATE = "strategy.safetensors"
_EVALUATION = "evaluation.json"
_FORMAT = 1


@dataclass(frozen=True)
class SiteReport:
    """What a site did in a round.

    Parameters
    ----------
    metrics
        The scalars that it sent.
    bytes_down, bytes_up
        Payload to and from the site.
    seconds
        From sending the plan to having the reply.
    """

    metrics: Metrics
    bytes_down: int
    bytes_up: int
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """How the global weights after a round did at the sites.

    Parameters
    ----------
    sites
        The scalars of every site that held cases back.
    refused
        Sites whose reply did not keep the contract, with the code.
    missing
        Sites that did not reply, with the reason.
    """

    sites: Mapping[str, Metrics]
    refused: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundRecord:
    """A closed round, without its weights.

    Parameters
    ----------
    round
        1 …
    plan
        Digest of the plan.
    sites
        The sites whose weights were combined.
    refused
        Sites whose reply did not keep the contract, with the code of the check that refused it.
    missing
        Sites that were asked and did not reply, with the reason.
    seconds
        ``roster``, ``sites``, ``aggregate``: wall-clock time by phase.
    evaluation
        None where the round was not evaluated.
    """

    round: int
    plan: str
    sites: Mapping[str, SiteReport]
    refused: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    evaluation: Evaluation | None = None


class Journal:
    """The journal of one run. Opening it removes what a crash left half-written.

    Parameters
    ----------
    folder
        Made where it does not exist. Held by one process at a time, until :meth:`close` or its end.
    keep
        Of so many last rounds the weights are kept.

    Raises
    ------
    StorageError
        If the folder cannot be written, or another process holds it.
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self._folder = folder
        self._keep = max(1, keep)
        try:
            (folder / "rounds").mkdir(parents=True, exist_ok=True)
            self._lock: _FolderLock | None = _lock(folder)
        except BlockingIOError as error:
            raise StorageError(
                f"{folder} is in use",
                "another coordinator writes its journal there",
                "wait for it, or choose another folder",
            ) from error
        except OSError as error:
            raise storage_error(error, folder) from error
        sweep(folder)
        # Without this the weights of a round would stay for ever where a crash came between writing and removing.
        for number in _numbers(folder)[: -self._keep]:
            self._forget(number)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """Where the journal lies."""
        return self._folder

    def close(self) -> None:
        """Let another process open the folder."""
        self._lock = None

    def begin(self, settings: Mapping[str, object]) -> None:
        """Note the settings of a new run, or check that a resumed one has the same.

        Parameters
        ----------
        settings
            What the numbers of the run depend on; nested mappings of plain values.

        Raises
        ------
        PlanError
            Naming the settings that differ from those on disk.
        """
        path = self._folder / _RUN
        flat = json.loads(json.dumps(_flat(settings)))
        digest = hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()
        if not path.exists():
            write_text(path, json.dumps({"format": _FORMAT, "digest": digest, "settings": flat}, indent=1))
            return
        stored = _read_json(path)
        if stored.get("format") != _FORMAT:
            raise PlanError(f"{path} has another format", "another version wrote it", "resume with that version")
        if stored.get("digest") == digest:
            return
        old = cast(dict[str, object], stored.get("settings", {}))
        differing = sorted(name for name in old.keys() | flat.keys() if old.get(name) != flat.get(name))
        raise PlanError(
            f"the run in {self._folder} was started with other settings",
            "; ".join(f"{name} was {old.get(name)!r}, is {flat.get(name)!r}" for name in differing),
            "resume with the settings of the run, or choose another folder",
        )

    def write(self, record: RoundRecord, weights: Weights, state: Weights) -> None:
        """Close a round: durable and whole, or not there at all.

        Parameters
        ----------
        record
            Its round must be the one behind the latest.
        weights
            The global weights after the round.
        state
            What the strategy carries on; may be empty.

        Raises
        ------
        StorageError
            If it cannot be written; the journal is then as before.
        """
        files = {_WEIGHTS: save(weights)}
        if state:
            files[_STATE] = save(state)
        body = asdict(record)
        del body["evaluation"]
        body["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        folder = self._round_folder(record.round)
        with new_folder(folder) as temporary:
            for name, data in files.items():
                (temporary / name).write_bytes(data)
            (temporary / _ROUND).write_text(_dumps(body))
        self._forget(record.round - self._keep)

    def write_evaluation(self, round: int, evaluation: Evaluation) -> None:
        """Add the evaluation of a closed round."""
        write_text(self._round_folder(round) / _EVALUATION, _dumps(asdict(evaluation)))

    def latest(self) -> RoundRecord | None:
        """The last closed round, or None."""
        numbers = _numbers(self._folder)
        return _read_round(self._folder, numbers[-1]) if numbers else None

    def rounds(self) -> list[RoundRecord]:
        """All closed rounds, in order."""
        return read_rounds(self._folder)

    def weights(self, round: int) -> Weights:
        """The global weights after a round.

        Raises
        ------
        StorageError
            If they are not kept any more, or damaged.
        """
        return self._arrays(round, _WEIGHTS)

    def strategy_state(self, round: int) -> Weights:
        """What the strategy carried on after a round; empty where it carried nothing."""
        files = _read_json(self._round_folder(round) / _ROUND)["files"]
        return self._arrays(round, _STATE) if _STATE in files else {}

    def _forget(self, round: int) -> None:
        for name in (_WEIGHTS, _STATE):
            (self._round_folder(round) / name).unlink(missing_ok=True)

    def _arrays(self, round: int, name: str) -> Weights:
        folder = self._round_folder(round)
        expected = _read_json(folder / _ROUND)["files"][name]
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise StorageError(
                f"cannot read {folder / name}", "only the last rounds keep their weights", "ask for a later round"
            ) from error
        if hashlib.sha256(data).hexdigest() != expected:
            raise _damaged(folder / name)
        try:
            return dict(load(data))
        except SafetensorError as error:
            raise _damaged(folder / name) from error

    def _round_folder(self, round: int) -> Path:
        return self._folder / "rounds" / f"{round:05d}"


class _FolderLock:
    """Keeps other processes out of a folder for as long as it lives."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._handle)
            self._handle = -1
            raise

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)


# A run that was interrupted may be resumed in the same process while a traceback still holds its first journal.
_LOCKS: WeakValueDictionary[Path, _FolderLock] = WeakValueDictionary()


def _lock(folder: Path) -> _FolderLock:
    path = folder.resolve() / ".lock"
    lock = _LOCKS.get(path)
    if lock is None:
        lock = _LOCKS[path] = _FolderLock(path)
    return lock


def read_rounds(folder: Path) -> list[RoundRecord]:
    """All closed rounds of the journal in `folder`, in order; may be called while a coordinator writes there."""
    return [_read_round(folder, number) for number in _numbers(folder)]


def _numbers(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "rounds").iterdir() if path.name.isdigit())


def _read_round(folder: Path, number: int) -> RoundRecord:
    path = folder / "rounds" / f"{number:05d}"
    body = _read_json(path / _ROUND)
    with _blaming(path):
        evaluation = None
        if (path / _EVALUATION).exists():
            scores = _read_json(path / _EVALUATION)
            sites = {site: _metrics(values) for site, values in scores["sites"].items()}
            evaluation = Evaluation(sites, scores["refused"], scores["missing"])
        reports = {
            site: SiteReport(_metrics(report["metrics"]), report["bytes_down"], report["bytes_up"], report["seconds"])
            for site, report in body["sites"].items()
        }
        return RoundRecord(
            body["round"], body["plan"], reports, body["refused"], body["missing"], body["seconds"], evaluation
        )


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> StorageError:
    return StorageError(
        f"{path} is damaged",
        "its content is not what was written",
        "restore it, or move this round's folder and all later ones away to go on from the round before",
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _damaged(path) from error
    if not isinstance(value, dict):
        raise _damaged(path)
    return value


def _dumps(body: dict[str, Any]) -> str:
    """JSON has no NaN and no infinity: both are written as null."""
    return json.dumps(_without_nan(body), allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return value


def _metrics(values: Mapping[str, Any]) -> dict[str, float | list[float]]:
    def number(value: float | None) -> float:
        return math.nan if value is None else value

    return {
        name: [number(item) for item in value] if isinstance(value, list) else number(value)
        for name, value in values.items()
    }


def _flat(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
