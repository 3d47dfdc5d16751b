"""`wardround compare` and `benchmarks/strategies.py` as a user starts them, on phantoms: what is equal for all arms,
a run that is killed under a simulated clock, and the page."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wardround.deploy.compare.summary import BEST_SINGLE, LOCAL_ONLY, rows
from wardround.deploy.report.results import Results, load_results
from wardround.errors import PlanError, UsageError

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "strategies.py"
TINY = [
    *("--sites", "2", "--cases", "2", "--tests", "1", "--shift", "3", "--shape", "24,24,24", "--rounds", "2"),
    *("--plan", "updates_per_case=2", "--plan", "validation_cases=0", "--seeds", "0", "--jobs", "2"),
]
# One update closes a round: while the slow site is at work, the other one closes both.
BUFFERED = ["--arm", "fedbuff:strategy=fedbuff,buffer=1", "--slow", "site_2=1.5", "--beside", "local,pooled"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, command_line: Any) -> Path:
    out = tmp_path_factory.mktemp("compared") / "out"
    command_line.run("compare", "--out", str(out), *TINY, "--strategies", "fedavg", *BUFFERED)
    return out


@pytest.fixture
def measured(compared: Path) -> Results:
    return load_results(compared)


def test_every_arm_is_scored_on_every_site(measured: Results) -> None:
    found = {row.name: row for row in rows(measured)}
    assert list(found) == ["fedavg", "fedbuff", "pooled", LOCAL_ONLY, BEST_SINGLE]
    assert {site for row in found.values() for site in row.sites} == {"site_1", "site_2"}
    assert all(set(row.sites) == {"site_1", "site_2"} for row in found.values())
    assert all(0 <= row.worst.mean <= row.dice.mean <= 1 for row in found.values())


def test_all_arms_begin_with_the_same_weights(measured: Results) -> None:
    # Before the first case was drawn on, the model of every arm is the same.
    first = {
        next(item.model_dice for item in arm.interactions if item.step == 0 and item.site in ("site_1", "pooled"))
        for arm in measured.arms
        if arm.arm != "pooled"
    }
    assert len(first) == 1


def test_nobody_waits_for_the_slow_site(compared: Path) -> None:
    clocks = {
        arm: json.loads((compared / "arms" / f"{arm}-seed0" / "clock.json").read_text())["now"]
        for arm in ("fedavg", "fedbuff")
    }
    assert clocks == {"fedavg": 3.0, "fedbuff": 1.5}


def test_the_page_shows_the_picture_and_the_table(compared: Path, measured: Results) -> None:
    page = (compared / "report.html").read_text()
    assert (compared / "figures" / "strategies.png").stat().st_size > 5000
    for row in rows(measured):
        assert row.name in page
        assert row.dice.text() in page


def test_a_killed_comparison_ends_with_the_same_numbers(
    compared: Path, measured: Results, tmp_path: Path, command_line: Any
) -> None:
    out = tmp_path / "out"
    command = ["compare", "--out", str(out), *TINY, "--strategies", "fedavg", *BUFFERED]
    process = command_line.start(*command)
    # The buffered run has closed a round, and the slow site is at work on it.
    closed = out / "arms" / "fedbuff-seed0" / "journal" / "rounds" / "00001" / "round.json"
    command_line.wait_until(closed.exists, process)
    os.killpg(process.pid, signal.SIGKILL)
    command_line.finish(process)
    command_line.run("compare", "--resume", str(out))
    for mine, theirs in zip(load_results(out).arms, measured.arms, strict=True):
        assert (mine.arm, mine.models) == (theirs.arm, theirs.models)
    last = Path("arms", "fedbuff-seed0", "journal", "rounds", "00002", "global.safetensors")
    assert (out / last).read_bytes() == (compared / last).read_bytes()


def test_a_mistake_ends_with_its_exit_code_and_no_folder(tmp_path: Path, command_line: Any) -> None:
    for options, expected in (
        (["--strategies", "fedbest"], UsageError),
        (["--weightings", "fairest"], UsageError),
        (["--arm", "mine:strategy=krum,eta=1"], PlanError),
        (["--strategies", "fedavg,fedadam", "--arm", "fedavg:strategy=fedprox"], UsageError),
    ):
        out = tmp_path / "out"
        code, _, err = command_line.finish(command_line.start("compare", "--out", str(out), *options))
        assert code == expected.exit_code
        assert "fix" in err
        assert "Traceback" not in err
        assert not out.exists()


def test_the_time_to_equal_dice_is_that_from_which_a_curve_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from asynchronous import BUFFERED as buffered
    from asynchronous import SYNCHRONOUS, reached, table_of

    assert reached([[1, 0.5], [2, 0.4], [3, 0.5], [4, 0.6]], 0.5) == 3
    assert reached([[1, 0.5], [2, 0.4]], 0.5) == float("inf")
    # Equal is 0.45, which waiting for everybody has after 20 s, and waiting for nobody after 3 s.
    table = table_of({SYNCHRONOUS: [[[10, 0.3], [20, 0.5]]], buffered: [[[1, 0.46], [2, 0.2], [3, 0.45]]]})
    assert table.rows == ((SYNCHRONOUS, "20", "0.500", "20", "1.00"), (buffered, "3", "0.450", "3", "0.15"))


@pytest.mark.long
def test_the_benchmark_prints_its_table_and_goes_on_where_it_was(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "phantoms", "--out", str(tmp_path), "--seeds", "0"]
    texts = [subprocess.run(command, capture_output=True, text=True, timeout=900, check=True).stdout for _ in range(2)]
    tables = [text[text.index("| strategy |") :] for text in texts]
    assert tables[0] == tables[1]
    for name in ("fedavg", "fedbuff", "afl", "pooled", LOCAL_ONLY, BEST_SINGLE):
        assert f"| {name} |" in tables[0]
