"""A site's rounds under record-level privacy: what may leave, who paid for it, and what one case can touch."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import MetricRecord, RecordDict

from wardround.client.annotation.annotator import SimulatedAnnotator, Truth
from wardround.client.cases.phantoms import draw_phantom
from wardround.client.cases.store import CaseStore
from wardround.client.gate.budget import Budget
from wardround.client.gate.gate import Gate
from wardround.client.learning.accountant import epsilon_of
from wardround.client.learning.learner import OnlineLearner
from wardround.client.learning.replay import ReplayMemory, Reservoir, Sample
from wardround.client.learning.round import OnlineRound
from wardround.client.learning.state import SiteState, Standing
from wardround.client.private_round import SPENT, begun_with, steps_of
from wardround.client.site import Site
from wardround.errors import DataError, GateRefused
from wardround.models.catalogue import build
from wardround.models.weights import weights_of
from wardround.strategies.contract import ARRAYS, METRICS, Update, Weights
from wardround.strategies.plan import RoundPlan
from wardround.strategies.record_privacy import PRIVATE_METRICS

START = weights_of(build("unet3d-small", labels=3, seed=0))
SCHEDULE = [["case-0", "case-1"], ["case-2"]]


def plan(round_: int = 1, **fields: object) -> RoundPlan:
    settings: dict[str, object] = {
        "run": "test", "round": round_, "rounds": 2, "seed": 3, "model": "unet3d-small", "labels": 3,
        "updates_per_case": 2, "slices_per_case": 4, "annotation_rounds": 2, "batch_size": 1, "privacy": "record",
        "validation_cases": 0, "model_vote": 0.0, "noise_multiplier": 2.0, "clip_norm": 0.1, "sample_rate": 0.7,
    }  # fmt: skip
    return RoundPlan.model_validate(settings | fields)


def site(
    folder: Path, seeds: dict[str, int] | None = None, charge: Callable[[RoundPlan, int], float] | None = None
) -> Site:
    """Three cases; `seeds` draws some of them otherwise."""
    drawn = {
        name: draw_phantom(np.random.default_rng((seeds or {}).get(name, number)), shape=(16, 24, 16))
        for number, name in enumerate(("case-0", "case-1", "case-2"))
    }
    folder.mkdir(parents=True)
    with CaseStore(folder / "store") as store:
        for name, (image, _) in drawn.items():
            store.add_case(name, image, role="stream")
    settings = {"name": "north", "schedule": SCHEDULE, "test": [], "author": "tester", "store": "store"}
    (folder / "site.json").write_text(json.dumps(settings))
    annotator = SimulatedAnnotator({name: Truth(labels) for name, (_, labels) in drawn.items()})
    return Site(folder, annotator, device="cpu", charge=charge)


def same(one: Weights, other: Weights) -> bool:
    return all(np.array_equal(array, other[name]) for name, array in one.items())


def both_rounds(hospital: Site) -> Update:
    first = hospital.train(plan(1), START)
    return hospital.train(plan(2), first.weights)


def test_only_counts_leave_beside_the_weights_and_every_step_is_charged(tmp_path: Path) -> None:
    update = both_rounds(site(tmp_path / "north"))
    assert set(update.metrics) == PRIVATE_METRICS
    assert update.metrics == {"num-examples": 3.0, "cases": 1.0, "updates": 2.0}
    assert not same(update.weights, START)
    found = Budget(tmp_path / "north" / SPENT).charges()
    assert [(each.round, each.steps, each.noise_multiplier, each.sample_rate) for each in found] == [
        (1, 4, 2.0, 0.7),
        (2, 2, 2.0, 0.7),
    ]


def test_a_case_whose_gradient_is_left_out_changes_no_bit_of_what_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The neighbouring relation of the guarantee, with the noise held fixed: whatever else touched the weights or the
    scalars (trust, order, number of steps, a check against other cases) would show."""
    sample = ReplayMemory.sample

    def without_case_1(memory: ReplayMemory, name: str) -> Sample:
        found = sample(memory, name)
        return replace(found, weight=np.zeros_like(found.weight), padding=0.0) if name == "case-1" else found

    monkeypatch.setattr(ReplayMemory, "sample", without_case_1)
    one = both_rounds(site(tmp_path / "one"))
    other = both_rounds(site(tmp_path / "other", {"case-1": 77}))
    assert same(one.weights, other.weights)
    assert one.metrics == other.metrics
    third = both_rounds(site(tmp_path / "third", {"case-0": 77}))
    assert not same(one.weights, third.weights)


def test_nothing_is_learnt_while_a_case_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A case at hand that every step learnt from could not be sampled."""
    monkeypatch.setattr(OnlineRound, "learn_privately", lambda *_: None)
    assert same(site(tmp_path / "north").train(plan(), START).weights, START)


def test_a_round_that_is_asked_for_again_costs_nothing_and_answers_the_same(tmp_path: Path) -> None:
    hospital = site(tmp_path / "north")
    first = hospital.train(plan(1), START)
    hospital.close()
    again = Site(tmp_path / "north", hospital._annotator, device="cpu").train(plan(1), START)
    assert same(first.weights, again.weights)
    assert dict(first.metrics) == dict(again.metrics)
    assert len(Budget(tmp_path / "north" / SPENT).charges()) == 1


def test_another_question_about_the_same_round_is_paid_for(tmp_path: Path) -> None:
    hospital = site(tmp_path / "north")
    hospital.train(plan(1), START)
    hospital.train(plan(1, clip_norm=0.2), START)
    assert len(Budget(tmp_path / "north" / SPENT).charges()) == 2


def test_a_spent_budget_stops_the_round_before_its_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def refuse(_: RoundPlan, steps: int) -> float:
        asked.append(steps)
        raise GateRefused("spent", code="budget-spent")

    monkeypatch.setattr(OnlineRound, "learn_privately", lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(GateRefused):
        site(tmp_path / "north", charge=refuse).train(plan(1), START)
    assert asked == [4]


def test_a_crash_in_the_middle_has_paid_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    hospital = site(tmp_path / "north")
    monkeypatch.setattr("wardround.client.learning.private_steps.PrivateSteps.finish", fail)
    with pytest.raises(KeyboardInterrupt):
        hospital.train(plan(1), START)
    monkeypatch.undo()
    assert len(Budget(tmp_path / "north" / SPENT).charges()) == 1
    hospital.train(plan(1), START)
    assert len(Budget(tmp_path / "north" / SPENT).charges()) == 2


def test_a_private_round_goes_on_from_private_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[dict[str, object]] = []
    monkeypatch.setattr(OnlineLearner, "load_optimiser_state", lambda self, arrays: taken.append(dict(arrays)))
    both_rounds(site(tmp_path / "north"))
    assert not taken[0]
    assert taken[1]


def test_a_private_round_after_one_without_noise_is_refused_and_costs_nothing(tmp_path: Path) -> None:
    hospital = site(tmp_path / "north")
    hospital.train(plan(1, privacy="none"), START)
    with pytest.raises(DataError, match=r"private.* → .*without noise → begin a new run"):
        hospital.train(plan(2), START)
    assert not Budget(tmp_path / "north" / SPENT).charges()


def test_a_private_round_takes_over_nothing_else_of_one_without_noise() -> None:
    """Where nothing is remembered, moments and what a codec left out may still be of cases."""
    left = {"one": np.ones(1)}
    state = SiteState(1, Reservoir(4), left, (), {}, Standing(), left)
    begun = begun_with(state, plan(2))
    assert not begun.optimiser
    assert not begun.local
    assert begun_with(state, plan(2, privacy="none")) is state


def test_steps_follow_from_the_number_of_cases() -> None:
    assert steps_of(plan(updates_per_case=10), 3) == 30
    assert steps_of(plan(updates_per_case=10, rehearsal=0.5), 0) == 5


def test_a_gate_counts_what_a_site_takes_and_says_so_in_its_ledger(tmp_path: Path) -> None:
    """Site, gate and opacus together: as many rounds as the policy's ε allows, and not one more."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "policy.toml").write_text("max-epsilon = 3.0\nmin-cases = 1\n")
    gate = Gate(home, accountant=epsilon_of)
    hospital = site(tmp_path / "north", charge=gate.charge)
    found = plan(1, noise_multiplier=4.0)
    update = hospital.train(found, START)
    content = RecordDict({ARRAYS: update.record(), METRICS: MetricRecord(dict(update.metrics))})
    gate.release("train", found, content, given=START, cases=2)
    expected = epsilon_of(gate.budget.charges(), 1e-5)
    assert 1 < expected < 3
    assert list(gate.ledger.entries())[-1].epsilon == pytest.approx(expected)
    with pytest.raises(GateRefused) as refused:
        hospital.train(plan(2, noise_multiplier=0.5), update.weights)
    assert refused.value.code == "budget-spent"
    assert gate.spent() == pytest.approx(expected)
