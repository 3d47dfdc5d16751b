"""A site's generator in the rounds of a federation: what is kept of it, what is told, and what travels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround.client.annotation.annotator import SimulatedAnnotator, Truth
from wardround.client.cases.phantoms import draw_phantom
from wardround.client.cases.store import CaseStore
from wardround.client.learning.state import Snapshots
from wardround.client.site import Site
from wardround.client.synthesis import imagination
from wardround.errors import NoTrainingCases, PlanError
from wardround.models.weights import OPERATORS
from wardround.server.app import initial_weights
from wardround.strategies.contract import TRAIN_METRICS
from wardround.strategies.plan import RoundPlan

CASES = {f"case-{n}": draw_phantom(np.random.default_rng(n), shape=(16, 24, 16)) for n in range(9)}
SCHEDULE = [[f"case-{n}" for n in range(6)], ["case-6", "case-7", "case-8"], []]


def plan(round_: int = 1, **fields: Any) -> RoundPlan:
    settings: dict[str, Any] = {
        "run": "test", "round": round_, "rounds": 3, "seed": 3, "model": "unet3d-small", "labels": 3,
        "updates_per_case": 2, "slices_per_case": 4, "annotation_rounds": 1, "validation_cases": 0,
        "synthesis_updates": 2, "synthesis_side": 16,
    }  # fmt: skip
    return RoundPlan.model_validate(settings | fields)


def site(folder: Path, schedule: list[list[str]] = SCHEDULE) -> Site:
    if not folder.exists():
        folder.mkdir()
        with CaseStore(folder / "store") as store:
            for name, (image, _) in CASES.items():
                store.add_case(name, image, role="stream")
        settings = {"name": "north", "schedule": schedule, "test": [], "author": "tester", "store": "store"}
        (folder / "site.json").write_text(json.dumps(settings))
    annotator = SimulatedAnnotator({name: Truth(labels) for name, (_, labels) in CASES.items()})
    return Site.open(folder, annotator, None, device="cpu")


@pytest.fixture
def believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generators pass their test after two steps."""
    monkeypatch.setattr(imagination.Verdict, "passed", property(lambda _: True))


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(array, other[name]) for name, array in one.items())


def test_without_a_generator_nothing_is_kept_and_nothing_told(tmp_path: Path) -> None:
    place = site(tmp_path / "north")
    update = place.train(plan(), initial_weights(plan()))
    assert not any(name.startswith("made") for name in update.metrics)
    assert not list((tmp_path / "north" / "state").rglob("local.safetensors"))


@pytest.mark.parametrize("fields", [{"synthesis": "medsad"}, {"synthesis": "genseg"}, {"memory": "generative"}])
def test_a_round_tells_agreed_scalars_sends_the_network_alone_and_is_repeatable(
    tmp_path: Path, believed: None, fields: dict[str, Any]
) -> None:
    place, asked = site(tmp_path / "north"), plan(**fields)
    weights = initial_weights(asked)
    first = place.train(asked, weights)
    assert first.weights.keys() == weights.keys()
    assert set(first.metrics) <= TRAIN_METRICS
    assert first.metrics["made"] == imagination.POOL[3]
    place.close()
    again = site(tmp_path / "north").train(asked, weights)
    assert same(first.weights, again.weights)
    second = site(tmp_path / "north").train(plan(2, **fields), first.weights)
    assert not same(first.weights, second.weights)


def test_cases_that_a_generator_stands_for_are_on_no_disk_after_the_next_round(tmp_path: Path, believed: None) -> None:
    folder, asked = tmp_path / "north", {"memory": "generative"}
    place = site(folder)
    update = place.train(plan(1, **asked), initial_weights(plan()))
    assert len(list((folder / "memory").glob("*.safetensors"))) == 0
    latest = Snapshots(folder / "state").latest()
    assert latest is not None
    assert (latest.reservoir.kept, latest.reservoir.seen) == ((), 6)
    # The second round begins with made pairs, and the third, which brings no case, has nothing else.
    update = place.train(plan(2, **asked), update.weights)
    third = place.train(plan(3, **asked), update.weights)
    assert third.metrics["cases"] == 0
    assert third.metrics["updates"] > 0
    assert not same(update.weights, third.weights)


def test_without_a_case_and_without_a_generator_that_stands_for_one_there_is_nothing_to_learn(tmp_path: Path) -> None:
    place = site(tmp_path / "north", [[]])
    with pytest.raises(NoTrainingCases):
        place.train(plan(memory="generative"), initial_weights(plan()))


def test_what_a_generator_is_outlives_a_round_without_one(tmp_path: Path, believed: None) -> None:
    folder = tmp_path / "north"
    place = site(folder)
    update = place.train(plan(1, memory="generative"), initial_weights(plan()))
    update = place.train(plan(2), update.weights)
    first, second = (Snapshots(folder / "state").before(number, 256) for number in (2, 3))
    assert same(dict(first.local), dict(second.local))


def test_operators_travel_where_the_plan_says_so_and_are_what_the_site_goes_on_with(
    tmp_path: Path, believed: None
) -> None:
    asked = {"synthesis": "genseg", "share_knobs": True, "synthesis_updates": 40}
    place = site(tmp_path / "north")
    weights = initial_weights(plan(**asked))
    assert weights[OPERATORS].shape[1] == 3
    update = place.train(plan(**asked), weights)
    assert update.weights.keys() == weights.keys()
    assert not np.array_equal(update.weights[OPERATORS], weights[OPERATORS])
    assert update.weights[OPERATORS].dtype == weights[OPERATORS].dtype
    mixed = update.weights | {OPERATORS: np.full_like(weights[OPERATORS], 2.0)}
    second = place.train(plan(2, **asked), mixed)
    assert np.abs(second.weights[OPERATORS] - 2.0).max() < 0.5
    with pytest.raises(PlanError, match="operators"):
        place.train(plan(2, **asked), {name: array for name, array in mixed.items() if name != OPERATORS})
    # A plan that does not share them sends the network alone.
    alone = place.train(plan(2, synthesis="genseg"), mixed)
    assert OPERATORS not in alone.weights
