"""An answer that got lost on its way is asked for again, also where others have answered."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from wardround.errors import RoundError
from wardround.server.journal import Journal
from wardround.server.rounds import LoopSettings, RunResult, run_rounds
from wardround.strategies.catalogue import make_strategy
from wardround.strategies.contract import Weights
from wardround.strategies.plan import RoundPlan

Site = Callable[[Message], Message | None]
LOST = Error(ErrorCode.CLIENT_APP_CRASHED, "restarted")


class Scene:
    """Three sites, of which two are enough."""

    def __init__(  # noqa: PLR0917
        self, toy_grid: Any, learner: Any, clock: Any, initial: Weights, plans: Callable[[int], RoundPlan], folder: Path
    ) -> None:
        self.grid = toy_grid({name: learner(float(place)) for place, name in enumerate(("east", "north", "south"))})
        self.clock, self.initial, self.plans, self.folder = clock, initial, plans, folder
        self.runs = 0

    def run(self, deadline_s: float = 600.0) -> RunResult:
        self.runs += 1
        settings = LoopSettings(rounds=4, quorum=2, deadline_s=deadline_s, retries=3, retry_wait_s=30.0)
        with Journal(self.folder / str(self.runs)) as journal:
            return run_rounds(
                self.grid, make_strategy("fedavg"), self.plans, self.initial, journal, settings,
                site_name=self.grid.name_of, pace=self.clock.pace(),
            )  # fmt: skip

    def lose(self, name: str, kind: str, times: int) -> list[float]:
        """The first answers of a site to that kind of message get lost; when it was asked."""
        act: Site = self.grid.sites[name]
        asked: list[float] = []

        def site(message: Message) -> Message | None:
            if message.metadata.message_type != kind:
                return act(message)
            asked.append(self.clock.seconds)
            return Message(LOST, reply_to=message) if len(asked) <= times else act(message)

        self.grid.sites[name] = site
        return asked


@pytest.fixture
def scene(  # noqa: PLR0917
    toy_grid: Any, learner: Any, clock: Any, initial: Weights, plans: Callable[[int], RoundPlan], tmp_path: Path
) -> Scene:
    return Scene(toy_grid, learner, clock, initial, plans, tmp_path)


def same(one: Weights, other: Weights) -> bool:
    return all(one[name].tobytes() == other[name].tobytes() for name in one | other)


def test_a_lost_update_is_asked_for_again_although_the_others_are_enough(scene: Scene) -> None:
    whole = scene.run()
    asked = scene.lose("north", "train", 2)
    again = scene.run()
    assert same(again.weights, whole.weights)
    assert all((record.refused, record.missing, record.attempts) == ({}, {}, 1) for record in again.rounds)
    assert asked[1] - asked[0] == asked[2] - asked[1] == 30.0


def test_who_stays_away_does_not_hold_up_the_others(scene: Scene) -> None:
    scene.lose("north", "train", 4)
    result = scene.run()
    assert [list(record.sites) for record in result.rounds] == [["east", "south"], *[["east", "north", "south"]] * 3]
    assert result.rounds[0].missing == {"north": "restarted"}


def slow_down(scene: Scene, name: str, seconds: float) -> None:
    """A site takes so long to train in the first round."""
    act: Site = scene.grid.sites[name]
    began = scene.clock.seconds

    def site(message: Message) -> Message | None:
        is_first = message.metadata.message_type == "train" and message.metadata.group_id == "1"
        return None if is_first and scene.clock.seconds < began + seconds else act(message)

    scene.grid.sites[name] = site


def test_who_lost_an_answer_does_not_wait_for_the_slowest(scene: Scene) -> None:
    whole = scene.run()
    asked = scene.lose("north", "train", 2)
    slow_down(scene, "east", 500.0)
    began = scene.clock.seconds
    again = scene.run()
    assert same(again.weights, whole.weights)
    assert [seconds - began for seconds in asked[:3]] == pytest.approx([0.0, 30.0, 90.0], abs=5)
    seconds = {name: report.seconds for name, report in again.rounds[0].sites.items()}
    assert seconds == pytest.approx({"east": 500.0, "north": 0.0, "south": 0.0}, abs=5)
    assert all((record.refused, record.missing, record.attempts) == ({}, {}, 1) for record in again.rounds)


def test_who_comes_back_when_the_others_are_done_is_asked_still(scene: Scene) -> None:
    """However often it was asked while they were at it."""
    whole = scene.run()
    asked = scene.lose("north", "train", 6)
    slow_down(scene, "east", 500.0)
    began = scene.clock.seconds
    again = scene.run()
    assert same(again.weights, whole.weights)
    assert [seconds - began for seconds in asked[:7]] == pytest.approx([0, 30, 90, 210, 450, 530, 560], abs=10)


def test_whoever_is_still_at_it_at_the_deadline_is_late(scene: Scene) -> None:
    scene.lose("north", "train", 100)
    slow_down(scene, "east", 10_000.0)
    with pytest.raises(RoundError) as caught:
        scene.run(deadline_s=300.0)
    assert caught.value.cause == "east: late, north: restarted"


def test_nobody_is_asked_again_after_the_deadline(scene: Scene) -> None:
    asked = scene.lose("north", "train", 4)
    began = scene.clock.seconds
    scene.run(deadline_s=40.0)
    # At once, after 30 s, and at the end; then the round is over.
    assert [seconds - began for seconds in asked[:3]] == [0.0, 30.0, 40.0]
    assert asked[3] >= asked[2]


def test_who_went_offline_is_asked_when_it_is_back(scene: Scene) -> None:
    whole = scene.run()
    scene.lose("north", "train", 1)
    act = scene.grid.sites["north"]

    def leaving(message: Message) -> Message | None:
        reply = act(message)
        if reply is not None and reply.has_error():
            scene.grid.online.remove("north")
        return reply

    scene.grid.sites["north"] = leaving
    began = scene.clock.seconds
    wait = scene.clock.wait

    def waiting(seconds: float) -> None:
        wait(seconds)
        if scene.clock.seconds > began + 45 and "north" not in scene.grid.online:
            scene.grid.online.append("north")

    scene.clock.wait = waiting
    again = scene.run()
    assert same(again.weights, whole.weights)
    assert all((record.refused, record.missing) == ({}, {}) for record in again.rounds)


def test_lost_scores_are_asked_for_again(scene: Scene) -> None:
    whole = scene.run()
    asked = scene.lose("south", "evaluate", 2)
    again = scene.run()
    assert again.evaluation == whole.evaluation
    assert len(asked) == 3
    assert again.rounds[-1].evaluation is not None
    assert (again.rounds[-1].evaluation.refused, again.rounds[-1].evaluation.missing) == ({}, {})


def test_scores_of_a_site_that_stays_away_are_not_waited_for_for_ever(scene: Scene) -> None:
    scene.lose("south", "evaluate", 100)
    result = scene.run()
    assert set(result.evaluation) == {"east", "north"}
    assert result.rounds[-1].evaluation is not None
    assert result.rounds[-1].evaluation.missing == {"south": "restarted"}
