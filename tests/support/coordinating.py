"""Runs on disk, and a Flower that is played."""

import datetime
from collections.abc import Mapping

import numpy as np

from wardround.deploy.coordinator import runs
from wardround.deploy.coordinator.control import FlowerRun
from wardround.errors import ConnectionFailed
from wardround.server.journal import Evaluation, Journal, RoundRecord, SiteReport

NOW = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.UTC)

SETTINGS: Mapping[str, object] = {"run": "study", "rounds": 3, "model": "unet3d-small", "labels": 3, "seed": 0}


class FlowerStub:
    """A SuperLink's runs, which end only when a test says so."""

    def __init__(self) -> None:
        self.known: dict[int, FlowerRun] = {}
        self.down = False
        self.stopping_takes_long = False

    def start_run(self, bundle: bytes, folder: str) -> int:
        self._check()
        number = len(self.known) + 1
        self.known[number] = FlowerRun(number, "running", "", "", folder)
        return number

    def stop_run(self, run: int) -> None:
        self._check()
        if not self.known[run].finished and not self.stopping_takes_long:
            self.end(run, "stopped")

    def run(self, run: int) -> FlowerRun | None:
        self._check()
        return self.known.get(run)

    def runs(self) -> list[FlowerRun]:
        self._check()
        return list(reversed(self.known.values()))

    def end(self, run: int, outcome: str, details: str = "") -> None:
        self.known[run] = FlowerRun(run, "finished", outcome, details, self.known[run].folder)

    @property
    def at_work(self) -> list[int]:
        return [number for number, run in self.known.items() if not run.finished]

    def _check(self) -> None:
        if self.down:
            raise ConnectionFailed("the SuperLink is down")


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def close_rounds(run: runs.Run, up_to: int, *, evaluated: bool = True) -> None:
    """Write rounds into the journal of a run, as its ServerApp does."""
    with Journal(run.folder) as journal:
        for number in range(len(run.rounds()) + 1, up_to + 1):
            report = SiteReport({"num-examples": 4.0, "loss": 0.5}, 100, 100, 1.5)
            record = RoundRecord(
                number,
                "plan",
                {"north": report, "south": report},
                refused={"west": "not-finite"} if number == 2 else {},
                missing={"east": "late"} if number == 2 else {},
                seconds={"sites": 4.0, "aggregate": 1.0},
            )
            journal.write(record, {"weight": np.full((2, 3), number, dtype=np.float32)}, {})
            if evaluated and number == run.request.rounds:
                scores = {"north": {"num-examples": 1.0, "dice": 0.5}, "south": {"num-examples": 3.0, "dice": 0.9}}
                journal.write_evaluation(number, Evaluation(scores))
