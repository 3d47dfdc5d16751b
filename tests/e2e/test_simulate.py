"""`wardround simulate` as a user starts it: a whole run, and one that is killed, stopped and taken up again.

Everything here is a real process with real training on phantoms, as small as it can be.
"""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from wardround.deploy.report.results import load_results
from wardround.models.weights import load_arrays

TINY = ["--sites", "2", "--cases", "2", "--tests", "1", "--shape", "24,24,24"]
# Enough updates that a round lasts long enough to be killed in.
FAST = ["--plan", "updates_per_case=12", "--effort", "4"]
# Three rounds of two cases: the last one only rehearses.
RUN = [*TINY, *FAST, "--rounds", "3", "--compare", ""]


def workers(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The processes that train; beside them there is one that only cleans up after multiprocessing."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def journal(out: Path) -> Path:
    return out / "arms" / "federated-seed0" / "journal" / "rounds"


def weights(out: Path, round_: int = 3) -> bytes:
    return (journal(out) / f"{round_:05d}" / "global.safetensors").read_bytes()


def without_times(record: object) -> object:
    """A record of results without what differs from run to run of the same numbers."""
    changing = {"seconds", "created", "command", "machine", "peak_memory_mb"}
    if isinstance(record, dict):
        return {key: without_times(value) for key, value in record.items() if key not in changing}
    return [without_times(value) for value in record] if isinstance(record, list) else record


def results(out: Path) -> object:
    return without_times(json.loads((out / "results.json").read_text()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, command_line: Any) -> Path:
    """A run that nothing disturbs."""
    out = tmp_path_factory.mktemp("whole") / "out"
    command_line.run("simulate", "--out", str(out), *RUN)
    return out


def test_every_arm_ends_in_the_report(tmp_path: Path, command_line: Any) -> None:
    out = tmp_path / "out"
    shown = command_line.run(
        *("simulate", "--out", str(out), *TINY, *FAST, "--rounds", "2"),
        *("--compare", "dense,local,pooled,proxy", "--jobs", "2"),
    )
    page = (out / "report.html").read_text()
    measured = load_results(out)
    arms = {arm.arm: arm for arm in measured.arms}
    assert set(arms) == {"federated", "dense", "local", "pooled", "proxy"}
    for name, arm in arms.items():
        assert name in shown
        assert name in page
        assert set(arm.models) == ({"site_1", "site_2"} if name == "local" else {"global"})
        for model in arm.models.values():
            assert {score.case: score.sites for score in model.cases} == {
                f"{site}_test_001": (site,) for site in ("site_1", "site_2")
            }
            assert all(0 <= value <= 1 for score in model.cases for value in score.dice.values())
        assert [item.round for item in arm.rounds] == [1, 2]
        assert not any(item.refused for item in arm.rounds)
        assert arm.seconds.total > 0
        assert arm.peak_memory_mb > 100
    # The same number of updates for everybody, and every streamed case exactly once.
    assert len({arm.updates for arm in arms.values()}) == 1
    for arm in arms.values():
        assert len({(row.site, row.case) for row in arm.interactions}) == 4
    assert arms["dense"].effort.contour >= 1
    assert 0 < arms["federated"].effort.contour < arms["dense"].effort.contour
    assert list((out / "examples").glob("*.npz"))


def test_every_site_may_give_a_kind_of_label_of_its_own(tmp_path: Path, command_line: Any) -> None:
    out = tmp_path / "out"
    kinds = {"site_1": "dense", "site_2": "slices", "site_3": "scribbles", "site_4": "points"}
    shown = command_line.run(
        *("simulate", "--out", str(out), "--sites", "4", "--cases", "1", "--tests", "1", "--shape", "24,24,24"),
        *("--rounds", "1", "--compare", "", "--effort", "4", "--prompts", "scribbles"),
        *("--site-prompts", ",".join(f"{site}={kind}" for site, kind in kinds.items() if kind != "scribbles")),
        *("--plan", "updates_per_case=4", "--plan", "crf_weight=0.1", "--plan", "regularisation_side=16"),
        *("--plan", "supervision=partial", "--plan", "augmentation=strong", "--model", "unet2d-small"),
    )
    assert "what was drawn on a case" in shown
    assert "What was drawn on a case" in (out / "report.html").read_text()
    (arm,) = load_results(out).arms
    assert not any(item.refused for item in arm.rounds)
    last = {row.site: row for row in arm.interactions if row.step == 2}
    drawn = {site: (row.slices, row.scribbles, row.points) for site, row in last.items()}
    assert drawn["site_1"][0] > drawn["site_2"][0] == 4
    assert drawn["site_2"] == (4, 0, 0)
    assert drawn["site_3"] == (0, 4, 0)
    assert drawn["site_4"] == (0, 0, 15)
    cheaper = [last[site].strict_effort for site in ("site_2", "site_3")]
    assert last["site_1"].strict_effort > max(cheaper)
    assert min(cheaper) > last["site_4"].strict_effort > 0


@pytest.mark.parametrize(
    "options", [("--augment", "medsad", "--distill", "msmt", "--memory", "both"), ("--augment", "genseg")]
)
def test_sites_remember_and_imagine(tmp_path: Path, command_line: Any, options: tuple[str, ...]) -> None:
    out = tmp_path / "out"
    command_line.run(
        *("simulate", "--out", str(out), "--sites", "2", "--cases", "6", "--tests", "1", "--shape", "16,24,16"),
        *("--rounds", "2", "--compare", "", "--effort", "4", *options),
        *("--plan", "updates_per_case=4", "--plan", "synthesis_updates=4", "--plan", "synthesis_side=16"),
    )
    (arm,) = load_results(out).arms
    assert not any(item.refused for item in arm.rounds)
    for site in ("site_1", "site_2"):
        snapshots = sorted((out / "arms" / "federated-seed0" / "sites" / site / "state").iterdir())
        kept = load_arrays(snapshots[-1] / "local.safetensors")
        assert any(name.startswith("dreams/maker/") for name in kept)
        assert any("/head." in name for name in kept) == ("msmt" in options)
    told = json.loads((out / "arms" / "federated-seed0" / "journal" / "rounds" / "00002" / "round.json").read_text())
    assert all("made-nearer" in answer["metrics"] for answer in told["sites"].values())


def test_the_same_command_gives_the_same_numbers(whole: Path, tmp_path: Path, command_line: Any) -> None:
    out = tmp_path / "out"
    command_line.run("simulate", "--out", str(out), *RUN)
    assert weights(out) == weights(whole)
    assert results(out) == results(whole)


@pytest.mark.parametrize("victim", ["parent", "worker"])
def test_a_killed_run_ends_with_the_same_weights(whole: Path, tmp_path: Path, victim: str, command_line: Any) -> None:
    out = tmp_path / "out"
    process = command_line.start("simulate", "--out", str(out), *RUN)
    # Inside round 2: one site has answered, the other has not.
    answered = out / "arms" / "federated-seed0" / "sites" / "site_1" / "state" / "round-00002"
    command_line.wait_until(answered.exists, process)
    children = workers(process)
    if victim == "parent":
        process.kill()
        assert command_line.finish(process)[0] == -signal.SIGKILL
    else:
        (worker,) = children
        worker.kill()
        code, _, err = command_line.finish(process)
        assert code == 1
        assert "killed" in err
        assert "Traceback" not in err
    assert (journal(out) / "00001").exists()
    assert not (journal(out) / "00002").exists()
    command_line.run("simulate", "--resume", str(out))
    assert weights(out) == weights(whole)
    assert results(out) == results(whole)
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


def test_ctrl_c_says_how_to_go_on(whole: Path, tmp_path: Path, command_line: Any) -> None:
    out = tmp_path / "out"
    process = command_line.start("simulate", "--out", str(out), *RUN)
    command_line.wait_until((journal(out) / "00001").exists, process)
    children = workers(process)
    # As a terminal does it: to the whole group.
    os.killpg(process.pid, signal.SIGINT)
    code, _, err = command_line.finish(process)
    assert code == 130
    assert f"--resume {out}" in err
    assert "Traceback" not in err
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    command_line.run("simulate", "--resume", str(out))
    assert weights(out) == weights(whole)


def test_a_reader_who_leaves_stops_the_run(tmp_path: Path, command_line: Any) -> None:
    out = tmp_path / "out"
    process = command_line.start("simulate", "--out", str(out), *RUN)
    command_line.wait_until((out / "arms" / "federated-seed0" / "sites" / "site_1" / "state").exists, process)
    children = workers(process)
    assert process.stdout is not None
    process.stdout.close()
    process.send_signal(signal.SIGTERM)
    process.wait(command_line.PATIENCE_S)
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


def test_a_finished_run_can_be_resumed_and_reported_again(whole: Path, command_line: Any) -> None:
    before = results(whole)
    command_line.run("simulate", "--resume", str(whole))
    (whole / "report.html").unlink()
    code, out, err = command_line.finish(command_line.start("report", str(whole)))
    assert code == 0, err
    assert "federated" in out
    assert (whole / "report.html").exists()
    assert results(whole) == before


@pytest.mark.ray
def test_flowers_engine_gives_the_same_weights(whole: Path, tmp_path: Path, command_line: Any) -> None:
    out = tmp_path / "out"
    command_line.run("simulate", "--out", str(out), *RUN, "--engine", "ray")
    assert weights(out) == weights(whole)
    assert load_results(out).arms[0].interactions == load_results(whole).arms[0].interactions


def test_a_failing_arm_leaves_the_others(tmp_path: Path, command_line: Any) -> None:
    out = tmp_path / "out"
    process = command_line.start(
        "simulate", "--out", str(out), *TINY, *FAST, "--rounds", "1", "--compare", "pooled", "--jobs", "1"
    )
    # Damage what only the pooled arm reads, while the federated one is at work.
    command_line.wait_until((out / "arms" / "federated-seed0" / "sites" / "site_1" / "state").exists, process)
    for stored in (out / "sites" / "pooled" / "store" / "volumes").rglob("*.*"):
        stored.write_bytes(b"damaged")
    code, _, err = command_line.finish(process)
    assert code == 4
    assert "pooled-seed0" in err
    assert "fix" in err
    assert "Traceback" not in err
    assert [arm.arm for arm in load_results(out).arms] == ["federated"]
