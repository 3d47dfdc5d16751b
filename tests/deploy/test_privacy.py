"""What is told of the privacy of a simulation's sites, from what its runs left on disk."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from wardround.client.gate.budget import Budget
from wardround.client.learning.accountant import epsilon_of
from wardround.deploy.privacy import privacy_lines
from wardround.server.journal import Journal
from wardround.server.records import RoundRecord


def experiment(out: Path, **arm: Any) -> Path:
    folder = out / "arms" / "federated-seed0"
    folder.mkdir(parents=True)
    about = {"arm": "federated", "seed": 0, "sites": ["north", "south"], "plan": {}, "strategy": "fedavg"}
    (folder / "arm.json").write_text(json.dumps(about | {"strategy_options": {}} | arm))
    (out / "index.json").write_text(json.dumps({"runs": [{"folder": "federated-seed0"}]}))
    return folder


def test_nothing_is_said_of_runs_without_noise(tmp_path: Path) -> None:
    experiment(tmp_path)
    assert privacy_lines(tmp_path) == []


def test_the_site_that_spent_most_is_named(tmp_path: Path) -> None:
    folder = experiment(tmp_path, plan={"privacy": "record"})
    for site, steps in (("north", 10), ("south", 20)):
        budget = Budget(folder / "sites" / site / "privacy.json")
        budget.path.parent.mkdir(parents=True)
        budget.write(budget.with_charge("run", 1, 4.0, 0.5, steps))
    (line,) = privacy_lines(tmp_path)
    assert f"an epsilon of {epsilon_of(budget.charges(), 1e-5):.3g} at south" in line


def test_of_central_noise_the_last_round_tells(tmp_path: Path) -> None:
    folder = experiment(tmp_path, strategy="dpfedavg", strategy_options={"delta": 1e-6})
    assert "no bound" in privacy_lines_of_no_round(folder, tmp_path)
    with Journal(folder / "journal") as journal:
        journal.begin({})
        for number in (1, 2):
            record = RoundRecord(number, "0" * 64, {}, epsilon=number * 1.5)
            journal.write(record, {"w": np.zeros(1, np.float32)}, {})
    (line,) = privacy_lines(tmp_path)
    assert "an epsilon of 3 (delta 1e-06)" in line


def privacy_lines_of_no_round(folder: Path, out: Path) -> str:
    (folder / "journal" / "rounds").mkdir(parents=True)
    (line,) = privacy_lines(out)
    (folder / "journal" / "rounds").rmdir()
    return line
