"""How much each site counts: every rule with numbers worked by hand, and bounds that no site can talk its way past."""

import math
from typing import Any

import numpy as np
import pytest

from wardround.errors import UsageError
from wardround.strategies.catalogue import make_strategy
from wardround.strategies.plan import RoundPlan
from wardround.strategies.weighting import (
    BY_EXAMPLES,
    Voice,
    bounded,
    check_weighable,
    make_weighting,
    rules,
    weigh,
)

FREE = {"max_share": 1.0, "min_share": 0.0}


def voice(site: str, examples: float = 1.0, staleness: float = 1.0, **metrics: float) -> Voice:
    told = {name.replace("_", "-"): value for name, value in metrics.items()}
    return Voice(site, {"num-examples": examples, **told}, staleness)


def shares(rule: str, *voices: Voice, memory: dict[str, float] | None = None, **options: float) -> list[float]:
    return list(weigh(make_weighting(rule, **{**FREE, **options}), voices, memory or {}).shares)


def test_examples_are_flowers_own_weights() -> None:
    assert BY_EXAMPLES.plain
    assert shares("examples", voice("a", 1), voice("b", 3)) == pytest.approx([0.25, 0.75])
    # A late update counts by its staleness as well: 3 · ½ against 1.
    assert shares("examples", voice("a", 1), voice("b", 3, 0.5)) == pytest.approx([0.4, 0.6])


def test_equal() -> None:
    assert shares("equal", voice("a", 1), voice("b", 99), voice("c", 5)) == pytest.approx([1 / 3] * 3)


def test_effort_counts_a_case_by_how_much_of_it_was_drawn() -> None:
    # 8 cases of which a person drew a quarter each, 2 that were drawn wholly: 8 · ½ against 2 · 1.
    two = voice("a", 8, effort_contour=2.0), voice("b", 2, effort_contour=2.0)
    assert shares("effort", *two) == pytest.approx([4 / 6, 2 / 6])
    assert shares("effort", *two, exponent=1.0) == pytest.approx([0.5, 0.5])
    assert shares("effort", *two, exponent=0.0) == pytest.approx([0.8, 0.2])


def test_trust_has_a_floor() -> None:
    # ¼ + ¾ · 1 against ¼ + ¾ · 0.
    assert shares("trust", voice("a", 2, trust=1.0), voice("b", 2, trust=0.0)) == pytest.approx([0.8, 0.2])
    assert shares("trust", voice("a", 2, trust=1.0), voice("b", 2, trust=0.5), floor=0.0) == pytest.approx(
        [2 / 3, 1 / 3]
    )


def test_the_worst_site_counts_more_and_losses_are_remembered() -> None:
    rule = make_weighting("worst-site", **FREE)
    first = weigh(rule, [voice("a", 1, loss=0.2), voice("b", 3, loss=0.6)], {})
    assert first.shares == pytest.approx((0.7 * 0.25, 0.7 * 0.75 + 0.3))
    assert first.memory == pytest.approx({"a": 0.2, "b": 0.6})
    # ½ · 0.2 + ½ · 0.8 = 0.5 is worse than ½ · 0.6 + ½ · 0.2 = 0.4.
    second = weigh(rule, [voice("a", 1, loss=0.8), voice("b", 3, loss=0.2)], first.memory)
    assert second.memory == pytest.approx({"a": 0.5, "b": 0.4})
    assert second.shares == pytest.approx((0.7 * 0.25 + 0.3, 0.7 * 0.75))


def test_agnostic_weights_follow_the_losses_a_round_behind() -> None:
    rule = make_weighting("afl", rate=0.5, **FREE)
    first = weigh(rule, [voice("a", 1, loss=0.4), voice("b", 9, loss=0.8)], {})
    assert first.shares == pytest.approx((0.5, 0.5))
    # (0.5 + 0.2, 0.5 + 0.4) less 0.3 each lies on the simplex.
    assert first.memory == pytest.approx({"a": 0.4, "b": 0.6})
    second = weigh(rule, [voice("a", 1, loss=0.4), voice("b", 9, loss=0.4)], first.memory)
    assert second.shares == pytest.approx((0.4, 0.6))
    assert second.memory == pytest.approx({"a": 0.4, "b": 0.6})


def test_agnostic_weights_of_who_is_away_stay_and_who_is_new_begins_alike() -> None:
    rule = make_weighting("afl", rate=0.5, **FREE)
    away = weigh(rule, [voice("a", loss=0.4), voice("b", loss=0.8)], {"a": 0.3, "b": 0.3, "c": 0.4})
    assert away.shares == pytest.approx((0.5, 0.5))
    assert away.memory == pytest.approx({"a": 0.2, "b": 0.4, "c": 0.4})
    new = weigh(rule, [voice("a", loss=0.4), voice("b", loss=0.4), voice("d", loss=0.4)], {"a": 0.6, "b": 0.4})
    assert new.shares == pytest.approx((0.4, 4 / 15, 1 / 3))


def test_agnostic_weights_keep_within_the_bounds_so_that_one_lie_is_forgotten() -> None:
    rule = make_weighting("afl", rate=10.0)
    lie = weigh(rule, [voice("a", loss=0.4), voice("b", loss=0.4), voice("c", loss=1e30)], {})
    assert lie.memory == pytest.approx({"a": 0.25, "b": 0.25, "c": 0.5})


def test_q_fairness() -> None:
    # ½ · 0.2 against ½ · 0.6; squared 0.04 against 0.36.
    two = voice("a", 1, loss=0.2), voice("b", 1, loss=0.6)
    assert shares("qffl", *two) == pytest.approx([0.25, 0.75])
    assert shares("qffl", *two, q=2.0) == pytest.approx([0.1, 0.9])
    assert shares("qffl", voice("a", 3, loss=0.2), voice("b", 1, loss=0.6), q=0.0) == pytest.approx([0.75, 0.25])


def test_bounds_are_filled_up_in_proportion() -> None:
    assert bounded([8, 1, 1], 0.0, 0.5) == pytest.approx([0.5, 0.25, 0.25])
    # The first is held at one half, the last raised to 0.1; the one between takes the rest.
    assert bounded([90, 9, 1], 0.1, 0.5) == pytest.approx([0.5, 0.4, 0.1])
    assert bounded([1, 0, 0], 0.0, 0.5) == pytest.approx([0.5, 0.25, 0.25])
    assert bounded([0, 0], 0.0, 1.0) == pytest.approx([0.5, 0.5])
    assert bounded([3], 0.0, 1.0) == pytest.approx([1.0])
    assert bounded([1, 2, 5], 0.0, 1.0) == pytest.approx([0.125, 0.25, 0.625])


LIES = [{name: value} for name in ("loss", "effort_contour", "trust") for value in (0.0, -5.0, 1e30)]


@pytest.mark.parametrize("rule", [rule for rule in rules() if rule != "examples"])
@pytest.mark.parametrize("lie", [*LIES, {"num_examples": 1e6}])
def test_no_site_talks_its_way_past_the_bounds(rule: str, lie: dict[str, float]) -> None:
    honest = {"loss": 0.5, "effort_contour": 1.0, "trust": 0.5}
    sites = [voice("a", 4, **honest), voice("b", 4, **honest), voice("c", 4, **honest)]
    told = {**honest, **lie}
    liar = voice("z", told.pop("num_examples", 4.0), **told)
    weighting, memory = make_weighting(rule), {}
    for _ in range(20):
        found = weigh(weighting, [*sites, liar], memory)
        memory = dict(found.memory)
        assert sum(found.shares) == pytest.approx(1.0, abs=1e-12)
        assert max(found.shares) <= 0.5 + 1e-12
        assert min(found.shares) >= 0.1 / 4 - 1e-12


def test_two_updates_of_a_site_share_one_bound() -> None:
    three = [voice("a", 50), voice("a", 50, 0.25), voice("b", 1), voice("c", 1)]
    found = shares("examples", *three, max_share=0.5)
    assert found == pytest.approx([0.4, 0.1, 0.25, 0.25])


def test_who_does_not_tell_counts_as_the_median() -> None:
    told = [voice("a", 1, loss=0.2), voice("b", 1, loss=0.6), voice("c", 1, loss=0.4), voice("d", 1)]
    assert shares("qffl", *told) == pytest.approx([0.125, 0.375, 0.25, 0.25])
    assert shares("effort", voice("a", 1), voice("b", 3)) == pytest.approx([0.25, 0.75])
    listed = Voice("d", {"num-examples": 1.0, "loss": [9.0, 9.0]})
    assert shares("qffl", *told[:3], listed) == pytest.approx([0.125, 0.375, 0.25, 0.25])


def test_the_order_of_the_sites_does_not_matter() -> None:
    generator = np.random.default_rng(0)
    sites = [voice(name, *generator.uniform(1, 9, 1), loss=float(generator.uniform(0.1, 1))) for name in "abcdef"]
    for rule in rules():
        there = dict(zip("abcdef", weigh(make_weighting(rule), sites, {}).shares, strict=True))
        back = dict(zip("fedcba", weigh(make_weighting(rule), sites[::-1], {}).shares, strict=True))
        assert there == pytest.approx(back)


@pytest.mark.parametrize(
    ("rule", "options", "named"),
    [
        ("fairest", {}, "fairest"),
        ("qffl", {"q": -1.0}, "q"),
        ("qffl", {"rate": 1.0}, "rate"),
        ("afl", {"rate": math.nan}, "rate"),
        ("equal", {"max_share": 0.0}, "max_share"),
        ("effort", {"exponent": "big"}, "exponent"),
    ],
)
def test_what_cannot_work_is_refused_by_name(rule: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        make_weighting(rule, **options)


@pytest.mark.parametrize("rule", rules())
def test_what_a_private_plan_keeps_back_no_rule_looks_at(rule: str) -> None:
    given = {"run": "r", "round": 1, "rounds": 1, "seed": 0, "model": "unet3d-small", "labels": 2}
    private = RoundPlan(**given, privacy="record", validation_cases=0, model_vote=0.0)
    check_weighable(make_strategy("fedavg"), make_weighting(rule), RoundPlan(**given))
    if rule in ("examples", "equal"):
        check_weighable(make_strategy("fedavg"), make_weighting(rule), private)
        return
    with pytest.raises(UsageError, match="privacy record"):
        check_weighable(make_strategy("fedavg"), make_weighting(rule), private)


@pytest.mark.parametrize("strategy", ["fedmedian", "fedtrimmedavg", "krum"])
def test_strategies_that_count_all_alike_take_no_rule(strategy: str) -> None:
    check_weighable(make_strategy(strategy), BY_EXAMPLES)
    with pytest.raises(UsageError, match="qffl"):
        check_weighable(make_strategy(strategy), make_weighting("qffl"))
    check_weighable(make_strategy("fedadam"), make_weighting("qffl"))
