"""What a plan that keeps cases private cannot have, each with its reason."""

import pytest

from wardround.errors import PlanError
from wardround.strategies.plan import RoundPlan


def plan(**fields: object) -> RoundPlan:
    usual = {"run": "demo", "round": 1, "rounds": 2, "seed": 0, "model": "unet3d-small", "labels": 2}
    private = {"privacy": "record", "validation_cases": 0, "model_vote": 0.0}
    return RoundPlan.model_validate(usual | private | fields)


def test_a_plan_without_what_lets_cases_touch_one_another_is_taken() -> None:
    found = plan(replay="random-subset", distill_weight=0.4, stored_logits=0.1, crf_weight=0.1, proximal_mu=0.1)
    assert RoundPlan.from_record(found.to_record()) == found


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"validation_cases": 4}, "other cases would decide"),
        ({"model_vote": 0.4}, "trust that other cases earned"),
        ({"adaptivity": 0.5}, "how long is learnt"),
        ({"fusion_schedule": "trust"}, "other cases earned"),
        ({"replay": "class-balanced"}, "what they hold"),
        ({"replay": "most-interfered"}, "what they hold"),
        ({"replay_capacity": 0}, "1 at least"),
        ({"memory": "generative"}, "generator"),
        ({"memory": "both"}, "generator"),
        ({"synthesis": "medsad"}, "generator"),
    ],
)
def test_what_would_break_the_guarantee_is_refused_by_name(change: dict[str, object], why: str) -> None:
    (name,) = change
    with pytest.raises(PlanError) as error:
        plan(**change)
    assert name.replace("_", "-") in error.value.cause
    assert why in error.value.cause
    assert plan(**change, privacy="none").privacy == "none"


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": 0.0},
        {"clip_norm": 0.0},
        {"sample_rate": 0.0},
        {"sample_rate": 1.5},
        {"noise_multiplier": float("inf")},
        {"privacy": "central"},
    ],
)
def test_numbers_that_give_no_privacy_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(PlanError):
        plan(**change)
