"""The simulated clock: who answers when, and what is left of it after a crash."""

import json
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from wardround.deploy.clock import ClockedGrid, SimulatedClock
from wardround.errors import DataError

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    return Message(RecordDict({"metrics": MetricRecord({"done": 1})}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    return train(message, context)


def message(grid: ClockedGrid, site: str, round: int, kind: str = "train") -> Message:
    (node,) = [node for node in grid.get_node_ids() if grid.site_name(node) == site]
    return Message(RecordDict(), node, kind, group_id=str(round))


def test_a_slow_site_answers_later_and_the_clock_goes_from_one_answer_to_the_next(tmp_path: Path) -> None:
    clock = SimulatedClock(tmp_path / "clock.json", {"slow": 10.0})
    grid = ClockedGrid(app, ["quick", "slow"], clock)
    quick, slow = grid.push_messages([message(grid, "quick", 1), message(grid, "slow", 1)])
    assert not grid.pull_messages([quick, slow])
    clock.wait(0.02)
    assert clock.now() == 1.0
    assert [reply.metadata.reply_to_message_id for reply in grid.pull_messages([quick, slow])] == [quick]
    (again,) = grid.push_messages([message(grid, "quick", 2)])
    clock.wait(0.02)
    assert clock.now() == 2.0
    assert grid.pull_messages([again])
    clock.wait(0.02)
    assert clock.now() == 10.0
    assert grid.pull_messages([slow])
    clock.wait(0.5)
    assert clock.now() == 10.5


def test_evaluation_takes_no_time(tmp_path: Path) -> None:
    clock = SimulatedClock(tmp_path / "clock.json", {"slow": 10.0})
    grid = ClockedGrid(app, ["slow"], clock)
    assert grid.pull_messages(grid.push_messages([message(grid, "slow", 1, "evaluate")]))
    assert clock.now() == 0.0


def test_a_clock_that_stopped_goes_on_with_the_same_work(tmp_path: Path) -> None:
    clock = SimulatedClock(tmp_path / "clock.json", {"slow": 10.0})
    grid = ClockedGrid(app, ["quick", "slow"], clock)
    grid.push_messages([message(grid, "quick", 1), message(grid, "slow", 1)])
    clock.wait(1.0)
    again = SimulatedClock(tmp_path / "clock.json", {"slow": 10.0})
    grid = ClockedGrid(app, ["quick", "slow"], again)
    # Sent once more, it is ready when it was going to be.
    quick, slow = grid.push_messages([message(grid, "quick", 1), message(grid, "slow", 1)])
    assert again.now() == 1.0
    assert grid.pull_messages([quick])
    again.wait(1.0)
    assert again.now() == 10.0
    assert grid.pull_messages([slow])


@pytest.mark.parametrize("content", ["", "[]", json.dumps({"now": "soon", "ready": {}}), json.dumps({"now": 1})])
def test_a_damaged_clock_is_named(tmp_path: Path, content: Any) -> None:
    (tmp_path / "clock.json").write_text(content)
    with pytest.raises(DataError, match=r"clock\.json"):
        SimulatedClock(tmp_path / "clock.json", {})
