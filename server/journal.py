"""The journal of a run: what the coordinator must have on disk to go on after any crash, and what a report is made of.

::

    run.json                    settings that may not change between a start and a resume
    rounds/00001/round.json     who took part, who was refused and why, metrics, bytes, seconds
                 global.safetensors      the global weights after the round      ┐ of the last rounds only
                 strategy.safetensors    what the strategy carries on, if any    ┘
                 evaluation.json         per-site scores, where the round was evaluated
    open/00002/                 the updates that were accepted in the round that is open (:mod:`wardround.server.spool`)
    generations/1/rounds/…      rounds that were taken back

A round's folder appears in one step, when all of it is on the disk. A round that was not closed leaves nothing but the
updates that it already has.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import cast
from weakref import WeakValueDictionary

from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from wardround.errors import PlanError, StorageError, UsageError
from wardround.files import lock_alone, new_folder, storage_error, sweep, write_text
from wardround.server.records import (
    EVALUATION,
    ROUND,
    Evaluation,
    LateReport,
    RoundRecord,
    SiteReport,
    Standing,
    damaged,
    dumps,
    numbers,
    read_json,
    read_round,
    read_rounds,
    round_folder,
)
from wardround.server.spool import OpenRound, OpenView, drop_open_rounds, read_open
from wardround.strategies.contract import Weights

__all__ = [
    "Evaluation",
    "Journal",
    "LateReport",
    "OpenView",
    "RoundRecord",
    "SiteReport",
    "Standing",
    "read_open",
    "read_rounds",
    "read_weights",
]

_RUN = "run.json"
_WEIGHTS = "global.safetensors"
_STATE = "strategy.safetensors"
_GENERATIONS = "generations"
_FORMAT = 1

Stored = Mapping[str, object]


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
        for ours in ("rounds", _GENERATIONS):
            # Beside them others may be writing: an operator who wants the run stopped, whoever keeps it going.
            sweep(folder / ours)
        closed = numbers(folder)
        # Without this the weights of a round would stay for ever where a crash came between writing and removing.
        for number in closed[: -self._keep]:
            self._forget(number)
        drop_open_rounds(folder, closed[-1] if closed else 0)

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

    def begin(self, settings: Mapping[str, object], read: Callable[[Stored], Stored] = lambda stored: stored) -> None:
        """Note the settings of a new run, or check that a resumed one has the same.

        Parameters
        ----------
        settings
            What the numbers of the run depend on; nested mappings of plain values.
        read
            Reads what another version may have stored, names joined by dots, as this version would have written it.

        Raises
        ------
        PlanError
            Naming the settings that differ from those on disk.
        """
        path = self._folder / _RUN
        flat: dict[str, object] = json.loads(json.dumps(_flat(settings)))
        digest = hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()
        if not path.exists():
            # What a crash leaves of it is swept there, and nowhere else.
            made = self._folder / "rounds" / _RUN
            write_text(made, json.dumps({"format": _FORMAT, "digest": digest, "settings": flat}, indent=1))
            made.rename(path)
            return
        stored = read_json(path)
        if stored.get("format") != _FORMAT:
            raise PlanError(f"{path} has another format", "another version wrote it", "resume with that version")
        if stored.get("digest") == digest:
            return
        old = read(cast(dict[str, object], stored.get("settings", {})))
        both = old.keys() & flat.keys()
        # A setting that only one of the two knows differs, whatever its value.
        differing = sorted((old.keys() ^ flat.keys()) | {name for name in both if old[name] != flat[name]})
        if not differing:
            return
        raise PlanError(
            f"the run in {self._folder} was started with other settings",
            "; ".join(f"{name} was {_told(old, name)}, is {_told(flat, name)}" for name in differing),
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
        body = asdict(record)
        del body["evaluation"]
        with new_folder(round_folder(self._folder, record.round)) as temporary:
            # One file after the other: what is written is in memory once more.
            body["files"] = {_WEIGHTS: _save(temporary / _WEIGHTS, weights)}
            if state:
                body["files"][_STATE] = _save(temporary / _STATE, state)
            (temporary / ROUND).write_text(dumps(body), encoding="utf-8")
        self._forget(record.round - self._keep)
        drop_open_rounds(self._folder, record.round)

    def write_evaluation(self, round: int, evaluation: Evaluation) -> None:
        """Add the evaluation of a closed round."""
        write_text(round_folder(self._folder, round) / EVALUATION, dumps(asdict(evaluation)))

    def open_round(self, number: int, start: str) -> OpenRound:
        """The round that is open, with the updates that it already has.

        Parameters
        ----------
        number
            The one behind the latest.
        start
            Says what the round starts from: updates that started elsewhere are of no use.
        """
        return OpenRound(self._folder, number, start)

    def roll_back(self, round: int) -> None:
        """Go back to the state after a former round: later rounds are moved to a generation of their own.

        A crash leaves some of them moved, from the last one on; called again, it moves the others.

        Parameters
        ----------
        round
            To be the latest; 0 for the beginning.

        Raises
        ------
        UsageError
            If there is no such round.
        StorageError
            If its weights are not kept any more, or damaged.
        """
        closed = numbers(self._folder)
        if round != 0 and round not in closed:
            raise UsageError(
                f"there is no round {round} to go back to",
                f"{closed[-1] if closed else 0} rounds are closed",
                "choose one of them, or 0 for the beginning",
            )
        if round:
            self.weights(round)
            self.strategy_state(round)
        drop_open_rounds(self._folder)
        later = [number for number in closed if number > round]
        if not later:
            return
        generations = self._folder / _GENERATIONS
        try:
            former = max((int(path.name) for path in generations.glob("[0-9]*")), default=0)
            target = generations / str(former + 1) / "rounds"
            target.mkdir(parents=True)
            for number in reversed(later):
                round_folder(self._folder, number).rename(target / f"{number:05d}")
        except OSError as error:
            raise storage_error(error, self._folder) from error

    def latest(self) -> RoundRecord | None:
        """The last closed round, or None."""
        closed = numbers(self._folder)
        return read_round(self._folder, closed[-1]) if closed else None

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
        return _arrays(self._folder, round, _WEIGHTS)

    def strategy_state(self, round: int) -> Weights:
        """What the strategy carried on after a round; empty where it carried nothing."""
        files = read_json(round_folder(self._folder, round) / ROUND)["files"]
        return _arrays(self._folder, round, _STATE) if _STATE in files else {}

    def _forget(self, round: int) -> None:
        for name in (_WEIGHTS, _STATE):
            (round_folder(self._folder, round) / name).unlink(missing_ok=True)


class _FolderLock:
    """Keeps other processes out of a folder for as long as it lives."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            lock_alone(self._handle)
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


def read_weights(folder: Path, round: int) -> Weights:
    """The global weights after a round of the journal in `folder`; may be called while a coordinator writes there.

    Raises
    ------
    StorageError
        If they are not kept any more, or damaged.
    """
    return _arrays(folder, round, _WEIGHTS)


def _arrays(journal: Path, round: int, name: str) -> Weights:
    folder = round_folder(journal, round)
    expected = read_json(folder / ROUND)["files"][name]
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise StorageError(
            f"cannot read {folder / name}", "only the last rounds keep their weights", "ask for a later round"
        ) from error
    if hashlib.sha256(data).hexdigest() != expected:
        raise damaged(folder / name)
    try:
        return dict(load(data))
    except SafetensorError as error:
        raise damaged(folder / name) from error


def _save(path: Path, arrays: Weights) -> str:
    try:
        save_file(arrays, path)
    except SafetensorError as error:  # What is wrong with the disk is text in it.
        code = errno.ENOSPC if os.strerror(errno.ENOSPC) in str(error) else errno.EIO
        raise storage_error(OSError(code, str(error)), path) from error
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _told(settings: Stored, name: str) -> str:
    return repr(settings[name]) if name in settings else "unknown"


def _flat(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
