"""Budgets: every slice and every update of the plan is spent, none twice."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wardround.client.learning.schedule import interactive_updates, learning_rate, rehearsal_updates
from wardround.strategies.plan import RoundPlan


def plan(**fields: object) -> RoundPlan:
    given_ = {"run": "test", "round": 1, "rounds": 5, "seed": 0, "model": "unet3d-small", "labels": 2}
    return RoundPlan.model_validate(given_ | fields)


@given(st.integers(0, 200), st.integers(1, 16), st.floats(0, 1))
def test_interactive_and_rehearsal_updates_add_up_to_the_budget(updates: int, rounds: int, rehearsal: float) -> None:
    one = plan(updates_per_case=updates, annotation_rounds=rounds, rehearsal=rehearsal)
    steps = [interactive_updates(one, step) for step in range(rounds)]
    assert sum(steps) + rehearsal_updates(one, 1) == updates
    assert min(steps) >= 0
    assert rehearsal_updates(one, 3) == 3 * rehearsal_updates(one, 1)


def test_without_memory_the_whole_budget_goes_to_the_case_at_hand() -> None:
    one = plan(updates_per_case=60, annotation_rounds=3, rehearsal=0.5, replay_capacity=0)
    assert rehearsal_updates(one, 4) == 0
    assert sum(interactive_updates(one, step) for step in range(3)) == 60


def test_later_rounds_get_more_updates() -> None:
    one = plan(updates_per_case=60, annotation_rounds=3, rehearsal=0.0)
    assert [interactive_updates(one, step) for step in range(3)] == [10, 20, 30]


def test_the_learning_rate_falls_by_a_cosine_from_first_to_last() -> None:
    rates = [learning_rate(plan(round=n, learning_rate=1e-2, learning_rate_end=1e-4)) for n in range(1, 6)]
    assert math.isclose(rates[0], 1e-2)
    assert math.isclose(rates[2], (1e-2 + 1e-4) / 2)
    assert math.isclose(rates[-1], 1e-4)


@given(st.floats(0, 50), st.floats(0, 4))
def test_a_case_gets_more_or_less_than_usual_within_the_plans_factor(ratio: float, adaptivity: float) -> None:
    one = plan(adaptivity=adaptivity)
    factor = learning_rate(one, ratio) / learning_rate(one)
    assert 1 / (1 + adaptivity) - 1e-9 <= factor <= 1 + adaptivity + 1e-9
    usual = sum(interactive_updates(one, step) for step in range(one.annotation_rounds))
    given_ = sum(interactive_updates(one, step, ratio) for step in range(one.annotation_rounds))
    assert usual / (1 + adaptivity) - 0.5 <= given_ <= usual * (1 + adaptivity) + 0.5


@given(st.floats(0, 50), st.integers(0, 200), st.integers(1, 8))
def test_without_adaptivity_no_case_is_special(ratio: float, updates: int, rounds: int) -> None:
    one = plan(updates_per_case=updates, annotation_rounds=rounds)
    assert learning_rate(one, ratio) == learning_rate(one)
    for step in range(rounds):
        assert interactive_updates(one, step, ratio) == interactive_updates(one, step)


def test_a_case_that_disagrees_more_gets_more_and_a_very_odd_one_no_more_than_the_factor() -> None:
    one = plan(updates_per_case=40, annotation_rounds=1, rehearsal=0.0, adaptivity=1.0)
    assert [interactive_updates(one, 0, ratio) for ratio in (0.0, 0.5, 1.0, 2.0, 3.0, 9.0)] == [20, 30, 40, 60, 80, 80]
    rates = [learning_rate(one, ratio) / learning_rate(one) for ratio in (0.0, 1.0, 3.0)]
    assert all(math.isclose(a, b) for a, b in zip(rates, [math.sqrt(0.5), 1.0, math.sqrt(2)], strict=True))


def test_over_a_stream_the_plans_budget_is_spent() -> None:
    one = plan(updates_per_case=24, adaptivity=1.0)
    ratios = np.random.default_rng(0).gamma(4.0, 0.25, 4000)
    ratios /= ratios.mean()
    spent = sum(interactive_updates(one, step, ratio) for ratio in ratios for step in range(one.annotation_rounds))
    usual = len(ratios) * sum(interactive_updates(one, step) for step in range(one.annotation_rounds))
    assert abs(spent / usual - 1) < 0.02
