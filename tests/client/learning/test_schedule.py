"""Budgets: every slice and every update of the plan is spent, none twice."""

import math

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
