"""Dealing cases over sites and rounds, and the folder of an experiment."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardround.client.cases.dataset import Federation, load_dataset
from wardround.client.cases.store import CaseStore
from wardround.deploy import preparation
from wardround.deploy.dealing import capped_split, evaluated_at, schedule
from wardround.deploy.preparation import claim, prepare, store_folder, stored_settings
from wardround.deploy.settings import SimulationSettings, changed_settings, settings_from
from wardround.deploy.simulation import Arm
from wardround.errors import DataError, PlanError, UsageError

TINY = {"sites": 2, "cases": 3, "tests": 1, "shape": (24, 24, 24)}


def settings(**values: object) -> SimulationSettings:
    return SimulationSettings.model_validate({"phantoms": TINY, "rounds": 2, **values})


@given(count=st.integers(1, 60), rounds=st.integers(1, 40), seed=st.integers(0, 5))
def test_a_schedule_deals_every_case_once_and_evenly(count: int, rounds: int, seed: int) -> None:
    cases = [f"case{number}" for number in range(count)]
    dealt = schedule(cases, rounds, np.random.default_rng(seed))
    assert len(dealt) == rounds
    assert sorted(case for part in dealt for case in part) == sorted(cases)
    sizes = [len(part) for part in dealt]
    assert max(sizes) - min(sizes) <= 1
    assert sizes[0] >= 1
    if count >= rounds:
        assert sizes[-1] >= 1


def test_a_schedule_follows_its_generator() -> None:
    cases = [str(number) for number in range(20)]
    one, again, other = (schedule(cases, 4, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one == again
    assert one != other


def test_a_shared_test_case_is_scored_at_one_site_only() -> None:
    federation = Federation(
        sites={"a": ("t1",), "b": ("t2",), "c": ("t3",)},
        tests={"a": ("x",), "b": ("x", "y", "z"), "c": ("y",)},
    )
    dealt = evaluated_at(federation)
    assert sorted(case for cases in dealt.values() for case in cases) == ["x", "y", "z"]
    assert all(set(cases) <= set(federation.tests[site]) for site, cases in dealt.items())


def test_reference_labels_are_stored_under_the_name_that_a_site_looks_for() -> None:
    from wardround.client.site import REFERENCE

    assert preparation.REFERENCE == REFERENCE


def test_preparing_twice_changes_nothing_and_every_arm_finds_its_cases(tmp_path: Path) -> None:
    wanted = settings(arms=("federated", "dense", "pooled", "local"), seeds=(0, 1))
    claim(tmp_path / "out", wanted, "wardround simulate")
    runs = prepare(tmp_path / "out", wanted)
    written = {path: path.read_bytes() for path in (tmp_path / "out" / "arms").rglob("*.json")}
    assert prepare(tmp_path / "out", wanted) == runs
    assert {path: path.read_bytes() for path in (tmp_path / "out" / "arms").rglob("*.json")} == written

    assert [run.name for run in runs if run.seed == 1][-2:] == ["local-site_1-seed1", "local-site_2-seed1"]
    dataset = load_dataset(tmp_path / "out" / "data")
    for run in runs:
        streams = {}
        for site, folder in run.site_folders().items():
            content = json.loads((folder / "site.json").read_text())
            streams[site] = [case for part in content["schedule"] for case in part]
            with CaseStore(folder / content["store"]) as store:
                assert set(streams[site]) <= set(store.cases("stream"))
                assert set(content["test"]) <= set(store.cases("test"))
                assert all(store.label(case, preparation.REFERENCE) is not None for case in content["test"])
                assert not any(store.label(case, preparation.REFERENCE) for case in streams[site])
        if run.arm == "pooled":
            assert len(streams["pooled"]) == len(set(streams["pooled"])) == 6
        if run.arm == "local":
            assert len(content["test"]) == 2
    assert {case for cases in streams.values() for case in cases} <= set(dataset.cases)


def test_all_arms_of_a_seed_stream_in_the_same_order_and_seeds_differ(tmp_path: Path) -> None:
    wanted = settings(arms=("federated", "dense"), seeds=(0, 1), phantoms=TINY | {"cases": 6})
    claim(tmp_path, wanted, "")
    orders = {
        run.name: json.loads((folder / "site.json").read_text())["schedule"]
        for run in prepare(tmp_path, wanted)
        for site, folder in run.site_folders().items()
        if site == "site_1"
    }
    assert orders["federated-seed0"] == orders["dense-seed0"]
    assert orders["federated-seed0"] != orders["federated-seed1"]


def test_a_folder_with_an_experiment_or_anything_else_is_never_taken(tmp_path: Path) -> None:
    claim(tmp_path / "one", settings(), "")
    with pytest.raises(UsageError, match="--resume"):
        claim(tmp_path / "one", settings(), "")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "thesis.docx").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        claim(tmp_path / "two", settings(), "")


def test_settings_come_back_as_they_were(tmp_path: Path) -> None:
    wanted = settings(plan={"learning_rate": 1e-3, "allocation": (2, 6, 0)}, seeds=(3, 4), strategy="fedprox")
    claim(tmp_path, wanted, "")
    assert stored_settings(tmp_path) == wanted
    assert changed_settings(stored_settings(tmp_path), settings(seeds=(3, 4))) == [
        "plan.allocation",
        "plan.learning_rate",
        "strategy",
    ]


def test_a_folder_without_an_experiment_or_with_a_broken_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no experiment"):
        stored_settings(tmp_path)
    (tmp_path / "experiment.json").write_text("{")
    with pytest.raises(PlanError, match=r"experiment\.json"):
        stored_settings(tmp_path)


def test_a_site_with_a_damaged_image_is_named_before_anything_is_written(tmp_path: Path) -> None:
    preparation.write_phantoms(tmp_path / "data", settings().phantoms)  # type: ignore[arg-type]
    victim = next((tmp_path / "data" / "imagesTr").glob("*.nii.gz"))
    victim.write_bytes(victim.read_bytes()[:200])
    broken = SimulationSettings.model_validate({"data": tmp_path / "data", "sites": "split.json"})
    with pytest.raises(DataError, match=victim.name):
        preparation.check(broken)


def test_caps_keep_the_first_cases(tmp_path: Path) -> None:
    preparation.write_phantoms(tmp_path / "data", settings().phantoms)  # type: ignore[arg-type]
    values = {"data": tmp_path / "data", "sites": "split.json", "rounds": 2}
    dataset = load_dataset(tmp_path / "data")
    whole = capped_split(dataset, SimulationSettings.model_validate(values))
    capped = capped_split(dataset, SimulationSettings.model_validate(values | {"cases_per_site": 2}))
    assert {site: cases[:2] for site, cases in whole.sites.items()} == dict(capped.sites)
    assert store_folder(tmp_path, "site_1") == tmp_path / "sites" / "site_1" / "store"


def test_the_process_that_only_waits_never_loads_torch() -> None:
    code = (
        "import sys, wardround.deploy.cli, wardround.deploy.experiment, wardround.deploy.progress\n"
        "import wardround.deploy.preparation, wardround.deploy.collection\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_site_is_told_which_kind_of_label_its_people_give(tmp_path: Path) -> None:
    kinds = {"site_1": "points", "site_2": "dense"}
    wanted = settings(arms=("federated", "dense", "local"), site_prompts=kinds, strokes="simulated")
    claim(tmp_path, wanted, "")
    told = {
        (run.arm, site): json.loads((folder / "site.json").read_text()).get("prompts")
        for run in prepare(tmp_path, wanted)
        for site, folder in run.site_folders().items()
    }
    for arm in ("federated", "local"):
        assert {site: told[arm, site] for site in kinds} == kinds
    # Where dense labels are what all others are compared with, everybody gives them.
    assert told["dense", "site_1"] is told["dense", "site_2"] is None
    assert all(json.loads(file.read_text())["strokes"] == "simulated" for file in tmp_path.glob("arms/*/arm.json"))
    assert stored_settings(tmp_path) == wanted
    assert wanted.flat()["site_prompts.site_1"] == "points"


def test_a_kind_of_label_for_a_site_that_is_not_there_is_refused(tmp_path: Path) -> None:
    wanted = settings(site_prompts={"elsewhere": "points"})
    claim(tmp_path, wanted, "")
    with pytest.raises(UsageError, match="elsewhere"):
        prepare(tmp_path, wanted)


def test_networks_of_two_axes_are_simulated_too() -> None:
    assert settings_from({"phantoms": TINY, "plan": {"model": "unet2d-small"}}).plan["model"] == "unet2d-small"


def test_whoever_learns_alone_is_asked_for_nothing_that_only_a_strategy_can_combine(tmp_path: Path) -> None:
    values = {"phantoms": TINY, "rounds": 2, "strategy": "scaffold", "plan": {"control_variates": True}}
    wanted = settings_from({**values, "arms": ("pooled", "federated", "local")})
    with pytest.raises(PlanError, match="scaffold"):
        settings_from({**values, "arms": ("pooled", "federated"), "strategy": "fedavg"})
    claim(tmp_path / "out", wanted, "wardround simulate")
    found = {}
    for run in prepare(tmp_path / "out", wanted):
        told = Arm.read(run.folder)
        found[run.name] = told.strategy, told.plan.control_variates
    alone = {"pooled-seed0", "local-site_1-seed0", "local-site_2-seed0"}
    assert found == dict.fromkeys(alone, ("fedavg", False)) | {"federated-seed0": ("scaffold", True)}
