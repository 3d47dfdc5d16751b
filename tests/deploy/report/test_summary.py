"""Numbers worked by hand on runs of two or three cases."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from wardround.deploy.report.results import Results, parse_results
from wardround.deploy.report.summary import Spread, best_local, case_scores, goals, signed, summarise


def scored(case: str, sites: list[str], one: float | None, two: float | None = None) -> dict[str, Any]:
    dice = {"1": one} if two is None else {"1": one, "2": two}
    return {"case": case, "sites": sites, "dice": dice}


def run(*arms: tuple[str, int, dict[str, list[dict[str, Any]]]], **more: Any) -> Results:
    return parse_results(
        {
            "dataset": {"labels": ["background", "head", "body"]},
            "arms": [
                {"arm": arm, "seed": seed, "models": {name: {"cases": cases} for name, cases in models.items()}}
                for arm, seed, models in arms
            ],
            **more,
        }
    )


def test_spread_is_over_finite_values_with_the_sample_deviation() -> None:
    spread = Spread.of([1.0, math.nan, 3.0])
    assert (spread.mean, spread.count, spread.low, spread.high) == (2.0, 2, 1.0, 3.0)
    assert spread.sd == pytest.approx(math.sqrt(2.0))
    assert spread.text(1) == "2.0 ± 1.4"
    assert Spread.of([0.5]).text() == "0.500"
    assert Spread.of([math.nan]).text() == "–"


def test_an_arm_is_the_mean_over_cases_then_over_seeds() -> None:
    results = run(
        ("federated", 0, {"global": [scored("a", ["N"], 0.8, 0.6), scored("b", ["S"], 0.9, 0.9)]}),
        ("federated", 1, {"global": [scored("a", ["N"], 0.6, 0.6), scored("b", ["S"], 1.0, 1.0)]}),
    )
    (summary,) = summarise(results)
    assert summary.dice.mean == pytest.approx((0.8 + 0.8) / 2)
    assert summary.label_dice["head"].mean == pytest.approx((0.85 + 0.8) / 2)
    assert summary.label_dice["body"].mean == pytest.approx((0.75 + 0.8) / 2)
    assert summary.site_dice["N"].mean == pytest.approx(0.65)
    assert summary.worst_site == "N"
    assert summary.seeds == (0, 1)
    assert summary.cases == 2


def test_a_site_with_its_own_model_is_scored_with_that_model() -> None:
    cases_north = [scored("a", ["N"], 0.9), scored("b", ["S"], 0.1), scored("c", ["N", "S"], 0.8)]
    cases_south = [scored("a", ["N"], 0.2), scored("b", ["S"], 0.7), scored("c", ["N", "S"], 0.4)]
    results = run(("local", 0, {"N": cases_north, "S": cases_south}))
    scores = case_scores(results.arms[0])
    assert scores == pytest.approx({"a": 0.9, "b": 0.7, "c": 0.6})
    assert case_scores(results.arms[0], site="S") == pytest.approx({"b": 0.7, "c": 0.4})
    (summary,) = summarise(results)
    assert summary.site_dice["N"].mean == pytest.approx(0.85)


def test_the_best_single_site_model_may_come_from_another_site() -> None:
    results = run(
        ("local", 0, {"N": [scored("a", ["N"], 0.9), scored("b", ["S"], 0.8)], "S": [scored("b", ["S"], 0.7)]}),
        ("local", 1, {"N": [scored("a", ["N"], 0.7), scored("b", ["S"], 0.8)], "S": [scored("b", ["S"], 0.85)]}),
        sites={"N": {}, "S": {}},
    )
    best = best_local(results)
    assert best["S"].owner == "N"
    assert best["S"].dice.mean == pytest.approx(0.8)
    assert best["N"].dice.mean == pytest.approx(0.8)


def test_a_paired_difference_uses_only_cases_and_seeds_that_both_arms_have() -> None:
    results = run(
        ("federated", 0, {"global": [scored("a", [], 0.80), scored("b", [], 0.70), scored("only", [], 0.0)]}),
        ("federated", 1, {"global": [scored("a", [], 0.90), scored("b", [], 0.70)]}),
        ("federated", 2, {"global": [scored("a", [], 0.0), scored("b", [], 0.0)]}),
        ("dense", 0, {"global": [scored("a", [], 0.82), scored("b", [], 0.71)]}),
        ("dense", 1, {"global": [scored("a", [], 0.90), scored("b", [], 0.73)]}),
    )
    dense = next(summary for summary in summarise(results) if summary.arm == "dense")
    assert dense.against is not None
    assert dense.against.mean == pytest.approx((1.0 + 2.0) / 2)
    assert dense.against.cases == 2
    assert dense.against.better == 1.0
    assert dense.against.low <= dense.against.mean <= dense.against.high


@pytest.mark.parametrize(("dense", "met"), [(0.819, True), (0.821, False)])
def test_the_goal_against_dense_labels_is_two_points(dense: float, met: bool) -> None:
    results = run(
        ("federated", 0, {"global": [scored("a", ["N"], 0.80)]}), ("dense", 0, {"global": [scored("a", ["N"], dense)]})
    )
    (line,) = goals(results)
    assert line.title == "federated − dense"
    assert line.value == pytest.approx(100 * (0.80 - dense))
    assert line.met is met


def test_a_site_below_its_best_single_model_is_a_missed_goal() -> None:
    results = run(
        ("federated", 0, {"global": [scored("a", ["N"], 0.80), scored("b", ["S"], 0.80)]}),
        ("local", 0, {"N": [scored("a", ["N"], 0.81)], "S": [scored("b", ["S"], 0.79)]}),
    )
    assert {line.title.split(":")[0]: line.met for line in goals(results)} == {"N": False, "S": True}


def test_floor_and_ceiling_are_judged_where_they_are_given() -> None:
    results = run(("federated", 0, {"global": [scored("a", ["N"], 0.80)]}))
    results = results.model_copy(
        update={"arms": (results.arms[0].model_copy(update={"effort": results.arms[0].effort.__class__(contour=0.4)}),)}
    )
    assert goals(results) == []
    assert [line.met for line in goals(results, floor_dice=0.8, most_effort=0.38)] == [True, False]


def test_one_arm_under_two_strategies_gives_two_rows() -> None:
    raw = {"arms": [{"arm": "federated", "strategy": name} for name in ("fedavg", "fedadam")]}
    assert [summary.name for summary in summarise(parse_results(raw))] == ["federated (fedavg)", "federated (fedadam)"]


def test_a_derived_structure_is_shown_and_left_out_of_the_mean() -> None:
    results = run(("federated", 0, {"global": [{"case": "a", "dice": {"1": 0.8, "2": 0.6, "whole": 0.9}}]}))
    (summary,) = summarise(results)
    assert summary.dice.mean == pytest.approx(0.7)
    assert list(summary.label_dice) == ["head", "body", "whole"]


def test_the_made_run_ranks_as_it_was_made(record: Callable[..., Any]) -> None:
    summaries = summarise(parse_results(record()))
    assert [summary.arm for summary in summaries] == ["federated", "dense", "pooled", "local", "proxy"]
    assert summaries[1].dice.mean > summaries[0].dice.mean > summaries[3].dice.mean > summaries[4].dice.mean
    assert all(summary.worst_site == "Westend" for summary in summaries)


@pytest.mark.parametrize(("value", "text"), [(-0.04, "+0.0"), (-1.25, "−1.2"), (2.0, "+2.0"), (math.nan, "–")])
def test_signed(value: float, text: str) -> None:
    assert signed(value) == text


def test_another_hospitals_model_never_stands_in_for_one_that_failed() -> None:
    rows = [scored("a", ["north"], 0.9), scored("b", ["south"], 0.1)]
    results = run(("local", 0, {"north": rows}))
    assert case_scores(results.arms[0]) == pytest.approx({"a": 0.9})
