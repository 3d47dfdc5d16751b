"""Rules of weighting in the round loop: what is combined, written down, carried on and refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround.errors import Interrupted, PlanError, UsageError
from wardround.server.app import read_settings
from wardround.server.journal import Journal, read_rounds
from wardround.server.rounds import LoopSettings, RunResult, run_rounds
from wardround.strategies.catalogue import make_strategy
from wardround.strategies.contract import Weights
from wardround.strategies.weighting import BY_EXAMPLES, Weighting, make_weighting


class Scene:
    """Three sites that tell how far they are from their targets as their loss."""

    def __init__(self, toy_grid: Any, learner: Any, clock: Any, plans: Any, folder: Path) -> None:
        class Telling(learner):  # type: ignore[misc]
            def answer(self, message: Any, weights: Weights | None, metrics: dict[str, Any]) -> Any:
                return learner.answer(message, weights, metrics | ({"loss": self.target} if weights else {}))

        self.sites = {"near": Telling(1.0, 8), "far": Telling(4.0, 1), "middle": Telling(2.0, 1)}
        self.toy_grid, self.clock, self.plans, self.folder = toy_grid, clock, plans, folder

    def run(
        self,
        weighting: Weighting = BY_EXAMPLES,
        *,
        initial: Weights,
        name: str = "journal",
        strategy: str = "fedavg",
        until: int | None = None,
    ) -> RunResult:
        grid = self.toy_grid(self.sites)
        closed: list[int] = []
        with Journal(self.folder / name) as journal:
            return run_rounds(
                grid,
                make_strategy(strategy),
                self.plans,
                initial,
                journal,
                LoopSettings(rounds=self.plans(1).rounds, quorum=3, deadline_s=60.0),
                site_name=grid.name_of,
                on_event=lambda event: closed.append(event.round) if event.kind == "round-end" else None,
                stop=lambda: until in closed,
                pace=self.clock.pace(),
                weighting=weighting,
            )


@pytest.fixture
def scene(toy_grid: Any, learner: Any, clock: Any, plans: Any, tmp_path: Path) -> Scene:
    return Scene(toy_grid, learner, clock, plans, tmp_path)


@pytest.mark.parametrize(
    ("weighting", "mean"),
    [
        (BY_EXAMPLES, (8 * 1 + 1 * 4 + 1 * 2) / 10),
        (make_weighting("equal"), (1 + 4 + 2) / 3),
        (make_weighting("examples", max_share=0.5), 0.5 * 1 + 0.25 * 4 + 0.25 * 2),
        # 8 · 1, 1 · 4 and 1 · 2 of 14, the first held at one half.
        (make_weighting("qffl"), 0.5 * 1 + (4 * 4 + 2 * 2) / 12),
    ],
)
def test_what_is_combined_is_what_the_rule_says(
    scene: Scene, initial: Weights, weighting: Weighting, mean: float
) -> None:
    zero = {name: np.zeros_like(array) for name, array in initial.items()}
    with pytest.raises(Interrupted):
        scene.run(weighting, initial=zero, until=1)
    with Journal(scene.folder / "journal") as journal:
        # In round 1 a site goes a third of the way to its target.
        assert journal.weights(1)["w"] == pytest.approx(mean / 3, rel=1e-6)


def test_shares_and_memory_are_in_the_journal(scene: Scene, initial: Weights) -> None:
    records = scene.run(make_weighting("afl", rate=0.1), initial=initial).rounds
    assert records == read_rounds(scene.folder / "journal")
    assert records[0].shares == pytest.approx({"near": 1 / 3, "middle": 1 / 3, "far": 1 / 3})
    # λ + 0.1 · (1, 2, 4) less 7/30 each.
    assert records[0].remembered == pytest.approx({"near": 0.2, "middle": 0.3, "far": 0.5})
    assert records[1].shares == pytest.approx(records[0].remembered)
    plain = scene.run(initial=initial, name="plain").rounds
    assert all(not record.shares and not record.remembered for record in plain)


@pytest.mark.parametrize("rule", ["afl", "worst-site"])
def test_a_run_that_is_stopped_remembers(scene: Scene, initial: Weights, rule: str) -> None:
    whole = scene.run(make_weighting(rule), initial=initial, name="whole")
    with pytest.raises(Interrupted):
        scene.run(make_weighting(rule), initial=initial, until=2)
    again = scene.run(make_weighting(rule), initial=initial)
    assert all(again.weights[name].tobytes() == array.tobytes() for name, array in whole.weights.items())
    assert [record.shares for record in again.rounds] == [record.shares for record in whole.rounds]


def test_a_rule_may_not_change_on_the_way(scene: Scene, initial: Weights) -> None:
    scene.run(make_weighting("qffl"), initial=initial)
    with pytest.raises(PlanError, match=r"weighting\.q was 1\.0, is 2\.0"):
        scene.run(make_weighting("qffl", q=2.0), initial=initial)


def test_a_strategy_that_counts_all_alike_takes_no_rule(scene: Scene, initial: Weights) -> None:
    with pytest.raises(UsageError, match="FedMedian"):
        scene.run(make_weighting("qffl"), initial=initial, strategy="fedmedian")
    assert not (scene.folder / "journal" / "run.json").exists()


def test_the_configuration_of_a_real_federation_takes_a_rule() -> None:
    config = {"model": "unet3d-small", "labels": 3, "rounds": 4, "output": "journal"}
    assert read_settings(config).weighting == BY_EXAMPLES
    found = read_settings({**config, "weighting": "worst-site", "weighting-options.max-share": 0.4})
    assert found.weighting == make_weighting("worst-site", max_share=0.4)
    for wrong in (
        {"weighting": "fairest"},
        {"weighting-options.q": 1.0},
        {"weighting": "qffl", "strategy": "krum"},
    ):
        with pytest.raises(UsageError, match=str(next(iter(wrong.values()))).replace("1.0", "q")):
            read_settings({**config, **wrong})
