"""Goals are judged on the numbers of the run, and only where a goal is set."""

import math

import pytest

from wardround.deploy.report.results import Results
from wardround.deploy.stream.goals import StreamTargets, stream_goals

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
        "largest total effort": True,
        "effort at 99% of dense": True,
    }


def test_the_largest_budget_within_the_effort_is_judged(curve: Results) -> None:
    found = verdicts(curve, StreamTargets(effort=0.2, dense_margin=1.5))
    assert found["proxy-4 − dense-8"] is False
    assert found["proxy-8 − dense-8"] is None


def test_no_budget_within_the_effort_is_a_goal_missed(curve: Results) -> None:
    assert verdicts(curve, StreamTargets(effort=0.05, dense_margin=1.5))["proxy − dense-8"] is False


@pytest.mark.parametrize(("limit", "met"), [(0.29, False), (0.31, True)])
def test_efforts_have_an_upper_limit(curve: Results, limit: float, met: bool) -> None:
    assert verdicts(curve, StreamTargets(total_effort=limit))["largest total effort"] is met


@pytest.mark.parametrize(("limit", "met"), [(0.2, False), (0.22, True)])
def test_the_effort_at_a_share_of_dense_has_one(curve: Results, limit: float, met: bool) -> None:
    assert verdicts(curve, StreamTargets(share_effort=limit))["effort at 99% of dense"] is met


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


def test_whether_dense_has_the_same_voxel_weights_is_said(curve: Results) -> None:
    texts = {line.title: line.text for line in stream_goals(curve)}
    assert "voxel weights of dense: the same" in texts["proxy-8 − dense-8"]
    assert "those of 8 slices" in texts["proxy-4 − dense-8"]
