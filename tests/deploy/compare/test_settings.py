"""Arms of a comparison: names, arms of one's own, and how cases are dealt to them."""

import json
from pathlib import Path
from typing import Any

import pytest

from wardround.deploy.compare.settings import Combination, CompareSettings, compare_settings_from, named_arms, own_arm
from wardround.deploy.preparation import ARM, INDEX, claim, prepare, stored_settings
from wardround.errors import PlanError, UsageError
from wardround.strategies.catalogue import names
from wardround.strategies.weighting import rules

PHANTOMS = {"sites": 2, "cases": 3, "tests": 1, "shape": (24, 24, 24)}


def settings(**values: Any) -> CompareSettings:
    return compare_settings_from({"phantoms": PHANTOMS, "rounds": 2, **values})


def test_every_name_of_the_catalogue_and_every_rule_is_an_arm() -> None:
    arms = settings(arms=named_arms(names(), rules()), beside=()).arms
    assert list(arms) == [*names(), *rules()]
    assert arms["krum"].strategy == "krum"
    assert (arms["qffl"].strategy, arms["qffl"].weighting) == ("fedavg", "qffl")


def test_an_arm_of_ones_own_is_sorted_into_what_it_sets() -> None:
    made = own_arm({"strategy": "fedadam", "eta": 0.1, "weighting": "qffl", "q": 2, "max_share": 0.4, "fusion": 0.5})
    found = settings(arms={"mine": made}).arms["mine"]
    assert found == Combination(
        strategy="fedadam",
        options={"eta": 0.1},
        weighting="qffl",
        weighting_options={"q": 2, "max_share": 0.4},
        plan={"fusion": 0.5},
    )
    assert found.text() == "fedadam, weighting=qffl, eta=0.1, q=2, max_share=0.4, fusion=0.5"


def test_the_plan_of_an_arm() -> None:
    wanted = settings(
        arms={"plain": {}, "mine": {"plan": {"fusion": 0.5}}, "fedbn": {"strategy": "fedbn"}},
        plan={"updates_per_case": 3},
        beside=("local", "dense"),
    )
    plans = {arm: wanted.round_plan(arm, 4, run="r", labels=3) for arm in ("plain", "mine", "fedbn", "local", "dense")}
    assert {plan.updates_per_case for plan in plans.values()} == {3}
    assert {plan.seed for plan in plans.values()} == {4}
    assert (plans["mine"].fusion, plans["plain"].fusion) == (0.5, plans["local"].fusion)
    assert plans["fedbn"].local_keys
    assert not plans["local"].local_keys
    assert (plans["dense"].supervision, plans["plain"].supervision) == ("dense", "proxy")


@pytest.mark.parametrize(
    ("values", "error", "named"),
    [
        ({"arms": {}}, UsageError, "at least one"),
        ({"arms": {"a": {"strategy": "fedbest"}}}, UsageError, "fedbest"),
        ({"arms": {"a": {"options": {"eta": 1.0}}}}, UsageError, "eta"),
        ({"arms": {"a": {"strategy": "krum", "weighting": "qffl"}}}, UsageError, "qffl"),
        ({"arms": {"a": {"strategy": "krum", "plan": {"secure": True}}}}, PlanError, "Krum"),
        ({"arms": {"a": {"strategy": "dpfedavg", "weighting": "equal"}}}, UsageError, "weights of its own"),
        ({"arms": {"a": {"plan": {"normalised_steps": 3}}}}, PlanError, "fednova"),
        ({"arms": {"a": {"plan": {"rounds": 3}}}}, UsageError, "rounds"),
        ({"arms": {"a": {"plan": {"model": "unet3d"}}}}, UsageError, "--model"),
        ({"arms": {"a": {"plan": {"fusion": 3}}}}, PlanError, "fusion"),
        ({"arms": {"pooled": {}}}, UsageError, "once"),
        ({"beside": ("nothing",)}, UsageError, "beside"),
    ],
)
def test_what_cannot_work_is_named(values: dict[str, Any], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        settings(**values)


def test_unknown_names_are_refused_with_those_that_are_known() -> None:
    with pytest.raises(UsageError, match="fedavg, fedprox"):
        named_arms(["fedbest"], [])
    with pytest.raises(UsageError, match="worst-site"):
        named_arms([], ["fairest"])


def test_all_arms_of_a_seed_see_the_same_cases_in_the_same_order(tmp_path: Path) -> None:
    wanted = settings(
        arms={"plain": {}, "fair": {"weighting": "afl", "weighting_options": {"rate": 0.2}}}, seeds=(0, 1)
    )
    out = tmp_path / "out"
    claim(out, wanted, "wardround compare")
    runs = prepare(out, wanted)
    assert stored_settings(out) == wanted
    alone = {f"local-site_{site}-seed{seed}" for site in (1, 2) for seed in (0, 1)}
    assert {run.name for run in runs} == alone | {f"{a}-seed{s}" for a in ("plain", "fair", "pooled") for s in (0, 1)}

    def streamed(run: str, site: str) -> list[list[str]]:
        return json.loads((out / "arms" / run / "sites" / site / "site.json").read_text())["schedule"]

    for site in ("site_1", "site_2"):
        assert streamed("plain-seed0", site) == streamed("fair-seed0", site) == streamed(f"local-{site}-seed0", site)
    fair = json.loads((out / "arms" / "fair-seed1" / ARM).read_text())
    assert (fair["weighting"], fair["weighting_options"]) == ("afl", {"rate": 0.2})
    pooled = json.loads((out / "arms" / "pooled-seed1" / ARM).read_text())
    assert (pooled["weighting"], pooled["strategy"], pooled["sites"]) == ("examples", "fedavg", ["pooled"])
    # Seeds one after the other: what is stopped has whole comparisons.
    assert [entry["seed"] for entry in json.loads((out / INDEX).read_text())["runs"]] == [0] * 5 + [1] * 5
