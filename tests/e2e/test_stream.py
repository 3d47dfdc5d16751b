"""`wardround stream` as a user starts it, on phantoms: golden numbers, forgetting, and a run that is killed.

The numbers hold within a tolerance: another processor rounds differently, and training carries that on.
"""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from wardround.deploy.report.results import Results, load_results
from wardround.deploy.stream.summary import dense_point, points, reaches
from wardround.deploy.stream.transfer import forgetting
from wardround.errors import DataError, PlanError, UsageError

# Enough for a model that works. Whether a case's updates are taken back is a yes or no that rounding can turn, so that
# nothing is judged here.
CURVE = [
    *("--cases", "16", "--tests", "6", "--sites", "2", "--shape", "24,28,24", "--budgets", "4,8", "--chunks", "4"),
    *("--arms", "proxy,dense,slices-only", "--arm", "even:suggestion=even,slices_per_case=4,supervision=proxy"),
    *("--plan", "updates_per_case=20", "--plan", "validation_cases=0", "--jobs", "2"),
]
TINY = [
    *("--cases", "6", "--tests", "4", "--sites", "2", "--shape", "24,24,24", "--budgets", "4", "--chunks", "4"),
    *("--order", "by-site", "--arms", "proxy", "--plan", "updates_per_case=4", "--plan", "learning_rate_end=0.004"),
]

TOLERANCE = 0.03
GOLDEN_DICE = {
    "proxy-4": 0.736,
    "proxy-8": 0.756,
    "dense-8": 0.787,
    "slices-only-4": 0.743,
    "slices-only-8": 0.771,
    "even-4": 0.758,
}
# Which slices are drawn follows the model, and so does, a little, what they cost.
EFFORT_TOLERANCE = 0.03
GOLDEN_EFFORT = {
    "proxy-4": 0.186,
    "proxy-8": 0.380,
    "dense-8": 1.000,
    "slices-only-4": 0.195,
    "slices-only-8": 0.391,
}
# Even slices do not depend on the model, so what they cost does not depend on the processor.
EFFORT_OF_EVEN = 0.2353970


@pytest.fixture(scope="module")
def curve(tmp_path_factory: pytest.TempPathFactory, command_line: Any) -> Path:
    """Every default arm by the plan's own rule of suggestion, and one that draws even slices."""
    out = tmp_path_factory.mktemp("curve") / "out"
    command_line.run("stream", "--out", str(out), *CURVE)
    return out


@pytest.fixture(scope="module")
def ordered(tmp_path_factory: pytest.TempPathFactory, command_line: Any) -> Path:
    """Two sites one after the other."""
    out = tmp_path_factory.mktemp("ordered") / "out"
    command_line.run("stream", "--out", str(out), *TINY)
    return out


@pytest.fixture
def measured(curve: Path) -> Results:
    return load_results(curve)


def test_dice_and_effort_are_those_of_this_version(measured: Results) -> None:
    found = points(measured)
    assert {point.name: point.dice.mean for point in found} == pytest.approx(GOLDEN_DICE, abs=TOLERANCE)
    efforts = {point.name: point.effort.mean for point in found}
    assert efforts.pop("even-4") == pytest.approx(EFFORT_OF_EVEN, abs=1e-6)
    assert efforts == pytest.approx(GOLDEN_EFFORT, abs=EFFORT_TOLERANCE)


def test_dense_labels_teach_more_than_four_slices(measured: Results) -> None:
    # Differences between the other arms lie within the tolerance.
    dice = {point.name: point.dice.mean for point in points(measured)}
    assert dice["dense-8"] > dice["proxy-4"]
    assert dice["dense-8"] > dice["slices-only-4"]


def test_every_run_is_trained_as_much_on_the_same_cases_in_the_same_order(measured: Results) -> None:
    assert {arm.updates for arm in measured.arms} == {16 * 20}
    orders = {tuple(item.case for item in arm.interactions if item.step == 0) for arm in measured.arms}
    assert len(orders) == 1
    assert len(set(next(iter(orders)))) == 16
    # Before the first case was drawn on, all models are the same.
    assert len({next(item.model_dice for item in arm.interactions if item.step == 0) for arm in measured.arms}) == 1


def test_test_cases_are_read_by_the_final_model_only(curve: Path, measured: Results) -> None:
    evaluations = sorted(path.name for path in curve.glob("arms/*/sites/stream/evaluations/*.json"))
    assert evaluations == ["round-00004.json"] * len(measured.arms)


def test_the_report_shows_the_curve(curve: Path, measured: Results) -> None:
    page = (curve / "report.html").read_text()
    assert all(point.name in page for point in points(measured))
    assert (curve / "figures" / "curve.png").exists()
    assert dense_point(measured) is not None
    assert {item.family for item in reaches(measured)} == {"proxy", "slices-only", "even"}


def test_sites_one_after_the_other_give_a_matrix(ordered: Path) -> None:
    (found,) = forgetting(load_results(ordered))
    first, second = found.matrix
    assert found.backward.mean == pytest.approx(second[0] - first[0], abs=1e-9)
    # A model that has hardly begun to learn gains on the first site from the second.
    assert found.backward.mean > 0
    sites = [item.case.partition("_case")[0] for item in load_results(ordered).arms[0].interactions if item.step == 0]
    assert sites == ["site_1"] * 3 + ["site_2"] * 3


def test_a_killed_run_ends_with_the_same_numbers(ordered: Path, tmp_path: Path, command_line: Any) -> None:
    out = tmp_path / "out"
    process = command_line.start("stream", "--out", str(out), *TINY)
    # The first site is passed and scored, the second is not.
    run = out / "arms" / "proxy-4-seed0"
    command_line.wait_until((run / "sites" / "stream" / "evaluations" / "round-00002.json").exists, process)
    os.killpg(process.pid, signal.SIGKILL)
    command_line.finish(process)
    command_line.run("stream", "--resume", str(out))
    mine, theirs = load_results(out).arms[0], load_results(ordered).arms[0]
    assert mine.checkpoints == theirs.checkpoints
    assert mine.interactions == theirs.interactions
    last = Path("journal", "rounds", "00004", "global.safetensors")
    assert (run / last).read_bytes() == (ordered / "arms" / run.name / last).read_bytes()


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--arms", "magic"], UsageError.exit_code),
        (["--data", "nowhere"], DataError.exit_code),
        (["--arm", "mine:fusion=2"], PlanError.exit_code),
    ],
)
def test_a_mistake_ends_with_its_exit_code_and_no_folder(
    tmp_path: Path, options: list[str], code: int, command_line: Any
) -> None:
    out = tmp_path / "out"
    found, _, err = command_line.finish(command_line.start("stream", "--out", str(out), *options))
    assert found == code
    assert "fix" in err
    assert "Traceback" not in err
    assert not out.exists()


def test_results_are_plain_json(curve: Path) -> None:
    content = json.loads((curve / "results.json").read_text())
    assert content["kind"] == "stream"
    assert {arm["family"] for arm in content["arms"]} == {"proxy", "dense", "slices-only", "even"}
