"""The order of a stream, its chunks and its arms."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardround.client.cases.dataset import Federation
from wardround.deploy.dealing import ArmRun
from wardround.deploy.preparation import ARM, INDEX, claim, prepare, stored_settings
from wardround.deploy.settings import SimulationSettings, changed_settings
from wardround.deploy.stream.layout import SITE, chunks_per_group, spread, stream_order
from wardround.deploy.stream.settings import StreamSettings, told_plan_field
from wardround.errors import UsageError
from wardround.strategies.plan import RoundPlan

PHANTOMS = {"sites": 2, "cases": 5, "tests": 2, "shape": (24, 24, 24)}


def settings(**values: Any) -> StreamSettings:
    return StreamSettings.model_validate({"phantoms": PHANTOMS, "chunks": 4, **values})


def federation(*sizes: int) -> Federation:
    sites = {f"site{n}": tuple(f"case{n}-{k}" for k in range(size)) for n, size in enumerate(sizes)}
    return Federation(sites=sites, tests={})


def prepared(out: Path, wanted: StreamSettings) -> tuple[ArmRun, ...]:
    claim(out, wanted, "wardround stream")
    return prepare(out, wanted)


def test_runs_are_arms_times_budgets_and_dense_has_the_largest_only() -> None:
    arms = {
        "proxy": {"supervision": "proxy"},
        "dense": {"supervision": "dense"},
        "own": {"slices_per_case": 5, "fusion": 0.5},
        "points": {"prompts": "points"},
        "scribbles": {"prompts": "scribbles"},
    }
    names = [name for name, _, _ in settings(arms=arms, budgets=(4, 8)).runs()]
    assert names == ["proxy-4", "proxy-8", "dense-8", "own-5", "points-8", "scribbles-4", "scribbles-8"]


def test_the_plan_of_an_arm_is_read_back_from_what_the_results_tell() -> None:
    own = {"allocation": (2, 2, 0), "confidence_weight": 0.5, "fusion": 0.7}
    told = settings(arms={"proxy": {"supervision": "proxy"}, "own": own}, plan={"fusion": 0.8}).flat()
    assert told_plan_field(told, "own", "confidence_weight") == "0.5"
    assert (told_plan_field(told, "own", "fusion"), told_plan_field(told, "proxy", "fusion")) == ("0.7", "0.8")
    usual = RoundPlan.model_fields["confidence_weight"].default
    assert float(told_plan_field(told, "proxy", "confidence_weight")) == usual


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), chunks=st.integers(1, 12), seed=st.integers(0, 3))
def test_by_site_every_site_has_as_many_chunks_and_none_is_empty(sizes: list[int], chunks: int, seed: int) -> None:
    dealt = federation(*sizes)
    order = stream_order(dealt, settings(order="by-site", chunks=chunks), seed)
    each = chunks_per_group(dealt, chunks)
    assert len(order) == each * len(sizes)
    assert all(order)
    for number, cases in enumerate(dealt.sites.values()):
        passed = itertools.chain.from_iterable(order[number * each : (number + 1) * each])
        assert sorted(passed) == sorted(cases)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), chunks=st.integers(1, 12))
def test_a_shuffled_stream_holds_every_case_once_and_no_empty_chunk(sizes: list[int], chunks: int) -> None:
    dealt = federation(*sizes)
    order = stream_order(dealt, settings(chunks=chunks), 0)
    assert all(order)
    assert len(order) == min(chunks, sum(sizes))
    assert sorted(itertools.chain.from_iterable(order)) == sorted(itertools.chain.from_iterable(dealt.sites.values()))


def test_seeds_differ_in_their_order() -> None:
    dealt = federation(8, 8)
    for order in ("shuffled", "by-site"):
        assert stream_order(dealt, settings(order=order), 0) != stream_order(dealt, settings(order=order), 1)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), most=st.integers(1, 40))
def test_a_cap_takes_from_every_site_in_proportion(sizes: list[int], most: int) -> None:
    sites = federation(*sizes).sites
    chosen = spread(sites, most)
    assert len(chosen) == min(most, sum(sizes))
    for cases in sites.values():
        taken = [case for case in cases if case in chosen]
        assert taken == list(cases[: len(taken)])
        assert abs(len(taken) - min(most, sum(sizes)) * len(cases) / sum(sizes)) <= 1


def test_all_arms_of_a_seed_have_the_same_order_and_differ_in_their_fields_only(tmp_path: Path) -> None:
    runs = prepared(tmp_path, settings(seeds=(0, 1), budgets=(3, 6)))
    assert len({run.cases[SITE].schedule for run in runs if run.seed == 0}) == 1
    plans = [run.plan.model_dump(exclude={"run", "supervision", "slices_per_case"}) for run in runs if run.seed == 0]
    assert all(plan == plans[0] for plan in plans)
    assert [run.plan.supervision for run in runs[:5]] == ["proxy", "proxy", "dense", "partial", "partial"]
    index = json.loads((tmp_path / INDEX).read_text())
    assert [(entry["family"], entry["budget"]) for entry in index["runs"][:3]] == [
        ("proxy", 3),
        ("proxy", 6),
        ("dense", 6),
    ]
    assert index["groups"] == []


@pytest.mark.parametrize(
    ("more", "expected"), [({}, 0), ({"evaluate_every": 2}, 2), ({"order": "by-site", "chunks": 5}, 2)]
)
def test_test_cases_are_scored_at_the_end_or_after_every_site(
    tmp_path: Path, more: dict[str, Any], expected: int
) -> None:
    run = prepared(tmp_path, settings(**more))[0]
    assert json.loads((run.folder / ARM).read_text())["evaluate_every"] == expected
    assert len(run.cases[SITE].tests) == 4


def test_settings_come_back_as_they_were(tmp_path: Path) -> None:
    wanted = settings(arms={"mine": {"allocation": (2, 3, 1), "fusion": 0.5}}, order="by-site", cases=7)
    claim(tmp_path, wanted, "")
    assert stored_settings(tmp_path) == wanted
    assert changed_settings(wanted, settings(order="by-site", cases=7)) == [
        "arms.dense",
        "arms.mine",
        "arms.proxy",
        "arms.slices-only",
    ]
    with pytest.raises(UsageError, match="already holds") as error:
        claim(tmp_path, wanted, "")
    assert "wardround stream --resume" in error.value.fix


def test_an_experiment_of_an_older_version_is_a_federation(tmp_path: Path) -> None:
    wanted = SimulationSettings.model_validate({"phantoms": PHANTOMS})
    (tmp_path / "experiment.json").write_text(json.dumps({"settings": wanted.model_dump(mode="json")}))
    assert stored_settings(tmp_path) == wanted
