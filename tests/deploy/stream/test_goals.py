"""Goals are judged on the numbers of the run, and only where a goal is set."""

import math

import pytest

from wardround.client.learning import targets as learners
from wardround.deploy.report.results import Results
from wardround.deploy.stream.goals import CERTAINTY, StreamTargets, stream_goals

TARGETS = StreamTargets(
    effort=0.35, dense_margin=1.5, slices_margin=6.5, total_effort=0.38, share_effort=0.25, backward=-1.0
)


def verdicts(results: Results, targets: StreamTargets | None) -> dict[str, bool | None]:
    return {line.title: line.met for line in stream_goals(results, targets)}


def test_every_line_of_a_curve(curve: Results) -> None:
    assert verdicts(curve, TARGETS) == {
        "proxy-4 − dense-8": None,
        "proxy-8 − dense-8": True,
        "proxy-4 − slices-only-4": True,
        "proxy-8 − slices-only-8": False,
        "largest total effort, mean over cases": True,
        "effort at 99% of dense, proxy": True,
    }


def test_the_largest_budget_within_the_effort_is_judged(curve: Results) -> None:
    found = verdicts(curve, StreamTargets(effort=0.2, dense_margin=1.5))
    assert found["proxy-4 − dense-8"] is False
    assert found["proxy-8 − dense-8"] is None


def test_no_budget_within_the_effort_is_a_goal_missed(curve: Results) -> None:
    assert verdicts(curve, StreamTargets(effort=0.05, dense_margin=1.5))["proxy − dense-8"] is False


@pytest.mark.parametrize(("limit", "met"), [(0.29, False), (0.31, True)])
def test_efforts_have_an_upper_limit(curve: Results, limit: float, met: bool) -> None:
    assert verdicts(curve, StreamTargets(total_effort=limit))["largest total effort, mean over cases"] is met


@pytest.mark.parametrize(("limit", "met"), [(0.2, False), (0.22, True)])
def test_the_effort_at_a_share_of_dense_has_one(curve: Results, limit: float, met: bool) -> None:
    assert verdicts(curve, StreamTargets(share_effort=limit))["effort at 99% of dense, proxy"] is met


def test_only_the_method_is_held_to_backward_transfer(ordered: Results) -> None:
    found = verdicts(ordered, TARGETS)
    assert found["backward transfer, proxy-8"] is True
    assert found["backward transfer, no-replay-8"] is None
    assert verdicts(ordered, StreamTargets(backward=3.0))["backward transfer, proxy-8"] is False


def test_without_targets_everything_is_for_the_record(curve: Results, ordered: Results) -> None:
    for results in (curve, ordered):
        lines = stream_goals(results)
        assert lines
        assert all(line.met is None and math.isnan(line.goal) for line in lines)


def test_every_named_arm_is_held_to_backward_transfer(ordered: Results) -> None:
    found = verdicts(ordered, StreamTargets(backward=-1.0, backward_families=("proxy", "no-replay", "absent")))
    assert found == {"backward transfer, proxy-8": True, "backward transfer, no-replay-8": False} | {
        title: None for title in found if not title.startswith("backward")
    }


def test_the_share_of_cases_above_the_effort_is_told(curve: Results) -> None:
    def told(results: Results) -> str:
        lines = stream_goals(results, StreamTargets(total_effort=0.31))
        return next(line.text for line in lines if line.title.startswith("largest total effort"))

    assert "; 0% of its streamed cases lie above 0.31" in told(curve)
    dear = [
        step.model_copy(update={"effort": 0.9}) if step.step == 2 and step.case in {"case_0", "case_7"} else step
        for step in curve.arms[1].interactions
    ]
    arms = tuple(
        arm.model_copy(update={"interactions": tuple(dear)}) if arm.arm == "proxy-8" and arm.seed == 0 else arm
        for arm in curve.arms
    )
    # Two of the ten cases, under one of two seeds.
    assert "; 10% of its streamed cases lie above 0.31" in told(curve.model_copy(update={"arms": arms}))


@pytest.mark.parametrize(
    ("settings", "off"),
    [
        ({}, "confidence^16"),
        ({"arms.proxy": "supervision=partial"}, "0"),
        ({"arms.proxy": "supervision=slices"}, "0"),
        ({"plan.confidence_weight": 0.0, "arms.proxy": "supervision=proxy"}, "1"),
        ({"plan.confidence_weight": 0.25, "arms.proxy": "supervision=proxy"}, "0.75 + 0.25 · confidence^16"),
        ({"plan.confidence_weight": 0.25, "arms.proxy": "supervision=proxy, confidence_weight=0"}, "1"),
    ],
)
def test_how_the_voxel_weights_of_dense_differ_is_said(curve: Results, settings: dict[str, object], off: str) -> None:
    told = {line.title: line.text for line in stream_goals(curve.model_copy(update={"settings": settings}))}
    for budget in (4, 8):
        assert (
            f"each voxel weighs 1 for dense-8 and {off} for proxy-{budget}, on them 1 + λ for both "
            f"(8 slices for dense-8, {budget} for proxy-{budget})"
        ) in told[f"proxy-{budget} − dense-8"]


def test_the_power_of_the_confidence_is_the_learners() -> None:
    assert CERTAINTY == learners.CERTAINTY
