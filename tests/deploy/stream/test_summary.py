"""The numbers of a stream, against values worked by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from wardround.deploy.report.results import Results
from wardround.deploy.stream.summary import (
    Interval,
    against,
    curves,
    dense_point,
    effort_at,
    partner,
    points,
    prequential,
    reaches,
    resample,
    runs_by_name,
)


@pytest.mark.parametrize(
    ("dice", "level", "expected"),
    [
        ((0.5, 0.7, 0.9), 0.8, 0.35),
        ((0.5, 0.7, 0.9), 0.7, 0.2),
        ((0.5, 0.7, 0.9), 0.6, 0.15),
        ((0.5, 0.7, 0.9), 0.4, 0.1),
        ((0.5, 0.7, 0.9), 0.95, math.inf),
        # The first place that reaches it counts, also where a larger budget falls back.
        ((0.5, 0.9, 0.6), 0.7, 0.15),
    ],
)
def test_effort_at_a_level_is_interpolated(dice: tuple[float, ...], level: float, expected: float) -> None:
    assert effort_at((0.1, 0.2, 0.5), dice, level) == pytest.approx(expected)


def test_an_arm_is_a_curve_over_its_budgets(curve: Results) -> None:
    lines = curves(curve)
    assert list(lines) == ["proxy", "dense", "slices-only"]
    assert [(point.budget, point.effort.mean) for point in lines["proxy"]] == [(4, 0.1), (8, 0.3)]
    point = lines["proxy"][1]
    assert point.dice.mean == pytest.approx(0.81)
    assert point.dice.low == pytest.approx(0.76)
    assert point.dice.high == pytest.approx(0.86)
    assert point.dice.count == 3
    assert point.seeds == (0, 1)
    assert point.proxy_dice.mean == pytest.approx(0.9)
    assert point.updates.mean == 100


def test_the_effort_at_a_share_of_dense_follows_the_line(curve: Results) -> None:
    found = {item.family: item for item in reaches(curve)}
    assert set(found) == {"proxy", "slices-only"}
    # From 0.77 at 0.1 to 0.81 at 0.3: 0.792 lies 0.022 / 0.04 of the way.
    assert found["proxy"].level == pytest.approx(0.792)
    assert found["proxy"].effort == pytest.approx(0.1 + 0.2 * 0.55)
    assert found["proxy"].low <= found["proxy"].effort <= found["proxy"].high
    assert not found["proxy"].bound
    assert math.isinf(found["slices-only"].effort)
    assert "not reached" in found["slices-only"].text()


def test_a_smallest_budget_that_reaches_it_is_an_upper_bound(made_up: SimpleNamespace) -> None:
    record = made_up.results([made_up.run("proxy", 4, 0.1, [0.8, 0.8]), made_up.run("dense", 4, 1.0, [0.8, 0.8])])
    (found,) = reaches(record)
    assert (found.effort, found.bound) == (0.1, True)
    assert found.text().startswith("≤ 0.100")


def test_differences_are_paired_by_case(curve: Results) -> None:
    found = against(curve, "proxy-4", "dense-8")
    assert found is not None
    # The cases differ by ten points; their differences do not.
    assert (found.mean, found.low, found.high) == pytest.approx((-3.0, -3.0, -3.0))
    assert against(curve, "dense-8", "dense-8") is None
    assert against(curve, "dense-8", "missing-8") is None


def test_the_partner_draws_as_many_slices(curve: Results) -> None:
    assert {point.name: partner(curve, point) for point in points(curve)} == {
        "proxy-4": "slices-only-4",
        "proxy-8": "slices-only-8",
        "dense-8": "slices-only-8",
        "slices-only-4": "",
        "slices-only-8": "",
    }


def test_the_prequential_score_is_a_running_mean_over_the_last_cases(curve: Results) -> None:
    course = prequential(runs_by_name(curve)["proxy-8"], window=3)
    assert course.size == 10
    assert course[:4] == pytest.approx([0.5, 0.505, 0.51, 0.52])
    assert course[-1] == pytest.approx(0.58)


def test_a_stream_without_dense_has_no_level(curve: Results) -> None:
    rest = curve.model_copy(update={"arms": tuple(arm for arm in curve.arms if arm.family != "dense")})
    assert dense_point(rest) is None
    assert reaches(rest) == []


def test_resampling_keeps_a_case_together_and_is_the_same_every_time() -> None:
    values = np.array([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]])
    drawn = resample(values)
    assert drawn[:, 1] - drawn[:, 0] == pytest.approx(1.0)
    assert (drawn == resample(values)).all()
    assert (drawn != resample(values, 1)).any()
    assert drawn[:, 0].mean() == pytest.approx(1.0, abs=0.05)


def test_an_interval_of_nothing_is_told_as_nothing() -> None:
    assert Interval.of([math.nan]).text() == "–"
    assert Interval.of([0.5]).text() == "0.500"
    assert Interval.of([0.5]).points() == "+50.0"
