"""Which cases belong to which round, at a site where cases arrive over time.

In a simulation a schedule says beforehand what streams in when. At a live site a round takes what has arrived since the
last one. Which cases these are is written down before the round begins to learn: asked for again, it takes the same.
Every run of a federation begins anew and learns from all cases.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wardround.errors import DataError, StorageError
from wardround.files import write_text

IMPORTED = "imported"
"""Author of the labels that came with the cases."""
REFERENCE = "reference"
"""Author of the labels that a site holds back to evaluate on; nothing is ever learnt from them."""
RUNS_KEPT = 2
"""How many runs a site can go on with. What it kept for older ones holds images, and is removed."""
_FORMAT = 1


class Arrivals:
    """The rounds of all runs and their cases, as one file. Written by the process that trains, and by no other.

    Parameters
    ----------
    path
        The file; it need not exist.

    Raises
    ------
    StorageError
        If it is damaged or of a newer version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._runs: dict[str, dict[int, list[str]]] = {}
        self._over: list[str] = []
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != _FORMAT:
                raise ValueError("another format")
            for run in content["runs"]:
                self._runs[run["run"]] = {int(number): list(cases) for number, cases in run["rounds"].items()}
            self._over = [str(run) for run in content["over"]]
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StorageError(
                f"cannot read {path}",
                f"the file is damaged or of a newer version ({type(error).__name__})",
                "bring it back from a copy; without it no round can be repeated",
            ) from error

    @property
    def latest(self) -> str | None:
        """The run in which a round was begun last."""
        return next(reversed(self._runs), None)

    def take(self, run: str, round_: int, since: int, waiting: Sequence[str], most: int) -> list[str]:
        """The cases of a round: those it was given before, else the first `most` of the waiting ones, from now on.

        Parameters
        ----------
        since
            The last round that was learnt before this one, 0 for none. What was given to rounds in between, which never
            ended, waits again.
        waiting
            Ids of all cases that have arrived, in that order.

        Raises
        ------
        DataError
            If the run is over at this site.
        StorageError
            If the disk is full or not writable.
        """
        if run in self._over:
            raise DataError(
                "this run is over at this site",
                f"it keeps the memory of the last {RUNS_KEPT} runs, and others began since",
                "start a new run",
            )
        rounds = self._runs.get(run, {})
        if round_ in rounds:
            return list(rounds[round_])
        rounds = {number: cases for number, cases in rounds.items() if not since < number < round_}
        given = {case for cases in rounds.values() for case in cases}
        taken = [case for case in waiting if case not in given][:most]
        runs = {name: kept for name, kept in self._runs.items() if name != run}
        runs[run] = dict(sorted({**rounds, round_: taken}.items()))
        over = list(runs)[:-RUNS_KEPT]
        self._write({name: kept for name, kept in runs.items() if name not in over}, [*self._over, *over])
        return list(taken)

    def leave(self, run: str, round_: int, cases: Sequence[str]) -> None:
        """Let a round that took more have only `cases`; the others wait again.

        Raises
        ------
        StorageError
            If the disk is full or not writable.
        """
        if self._runs[run][round_] != list(cases):
            # In their order, since the last one is the latest.
            runs = {
                name: {**rounds, round_: list(cases)} if name == run else rounds for name, rounds in self._runs.items()
            }
            self._write(runs, self._over)

    @property
    def runs(self) -> tuple[str, ...]:
        """The runs that can go on."""
        return tuple(self._runs)

    def _write(self, runs: dict[str, dict[int, list[str]]], over: list[str]) -> None:
        content: dict[str, Any] = {
            "format": _FORMAT,
            "runs": [{"run": run, "rounds": rounds} for run, rounds in runs.items()],
            "over": over,
        }
        write_text(self._path, json.dumps(content, indent=1))
        self._runs, self._over = runs, over
