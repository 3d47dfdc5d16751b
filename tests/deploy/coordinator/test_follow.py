import json
from collections.abc import Callable
from io import StringIO

import pytest
from coordinating import NOW, close_rounds
from rich.console import Console

from wardround.deploy.coordinator import runs
from wardround.deploy.coordinator.follow import follow, mean_dice, round_line
from wardround.errors import ConnectionFailed, Interrupted, RoundError, StorageError
from wardround.server.home import CoordinatorHome, hold


class Watcher:
    """Follows a run whose story a test tells, one chapter at each pause."""

    def __init__(self, home: CoordinatorHome, *story: Callable[[], object]) -> None:
        self._home = home
        self._story = list(story)
        self._out = StringIO()

    def watch(self) -> str:
        with hold(self._home.serve_lock):
            follow(self._home, "study", Console(file=self._out, width=160), wait=lambda _: self._story.pop(0)())
        return self._out.getvalue()

    @property
    def out(self) -> str:
        return self._out.getvalue()


def test_every_round_is_one_line(home: CoordinatorHome, run: runs.Run) -> None:
    out = Watcher(
        home,
        lambda: run.save_state(NOW, phase="running", wish=1),
        lambda: close_rounds(run, 2),
        lambda: close_rounds(run, 3),
        lambda: run.save_state(NOW, phase="finished", wish=1),
    ).watch()
    lines = out.splitlines()
    assert [line[:13] for line in lines[:3]] == ["round   1 of ", "round   2 of ", "round   3 of "]
    assert "refused west (not-finite)" in lines[1]
    assert "missing east (late)" in lines[1]
    assert "Dice 0.800" in lines[2]
    assert "finished" in lines[3]


def test_another_attempt_is_said_once(home: CoordinatorHome, run: runs.Run) -> None:
    queued = run.save_state(NOW, phase="queued", wish=1, reason="no heartbeat")
    out = Watcher(home, lambda: None, lambda: queued.save_state(NOW, phase="finished")).watch()
    assert out.count("no heartbeat") == 1


def test_the_error_of_the_run_is_raised(home: CoordinatorHome, run: runs.Run) -> None:
    run.save_state(NOW, phase="failed", wish=1, reason="cannot write")
    with pytest.raises(RoundError, match="cannot write"):
        Watcher(home).watch()
    content = {"error": "StorageError", "exit-code": 4, "problem": "cannot write", "cause": "full", "fix": "make room"}
    (run.folder / "error.json").write_text(json.dumps(content))
    with pytest.raises(StorageError, match="make room; then go on"):
        Watcher(home).watch()
    # A file that somebody made up names no class that we would call.
    (run.folder / "error.json").write_text(json.dumps(content | {"error": "Iterator"}))
    with pytest.raises(RoundError):
        Watcher(home).watch()


def test_a_stopped_run_says_how_to_go_on(home: CoordinatorHome, run: runs.Run) -> None:
    run.save_state(NOW, phase="stopped", wish=1)
    with pytest.raises(Interrupted, match="--resume"):
        Watcher(home).watch()


def test_who_leaves_is_told_that_the_run_goes_on(home: CoordinatorHome, run: runs.Run) -> None:
    def leave() -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="it goes on"):
        Watcher(home, leave).watch()


def test_a_run_that_nobody_serves_is_not_waited_for(home: CoordinatorHome, run: runs.Run) -> None:
    with pytest.raises(ConnectionFailed, match="coordinator serve"):
        follow(home, "study", Console(file=StringIO()))


def test_dice_is_the_mean_over_cases(run: runs.Run) -> None:
    close_rounds(run, 3)
    rounds = run.rounds()
    assert mean_dice(rounds[0]) is None
    assert mean_dice(rounds[2]) == pytest.approx((0.5 + 3 * 0.9) / 4)
    assert round_line(rounds[0], 3) == "round   1 of 3  2 sites, 5 s"
