"""`wardround simulate --privacy`, as a user starts it: what was spent is counted, told, and bounded by nothing here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround.client.gate.budget import Budget
from wardround.client.learning.accountant import epsilon_of
from wardround.models.weights import load_arrays
from wardround.server.records import read_rounds

TINY = [
    *("--sites", "2", "--cases", "2", "--tests", "1", "--shape", "16,24,16", "--rounds", "2", "--compare", ""),
    *("--plan", "updates_per_case=2", "--effort", "2", "--plan", "annotation_rounds=1"),
]


def test_every_case_is_private_and_its_price_is_told(tmp_path: Path, command_line: Any) -> None:
    out = tmp_path / "out"
    privacy = ("--privacy", "record", "--plan", "noise_multiplier=2", "--plan", "sample_rate=0.7")
    shown = command_line.run("simulate", "--out", str(out), *TINY, *privacy)
    arm = out / "arms" / "federated-seed0"
    spent = [epsilon_of(Budget(path).charges(), 1e-5) for path in sorted(arm.glob("sites/*/privacy.json"))]
    assert len(spent) == 2
    assert f"an epsilon of {max(spent):.3g}" in " ".join(shown.split())
    (first, *_) = Budget(arm / "sites" / "site_1" / "privacy.json").charges()
    assert (first.round, first.noise_multiplier, first.sample_rate, first.steps) == (1, 2.0, 0.7, 2)
    for record in read_rounds(arm / "journal"):
        for report in record.sites.values():
            assert set(report.metrics) == {"num-examples", "cases", "updates"}


@pytest.mark.long
def test_every_site_is_private(tmp_path: Path, command_line: Any) -> None:
    """Noise of a hundred times the bound drowns what two sites have learnt, and is told to be worth something."""
    found = {}
    for name, noise in (("little", "1e-6"), ("much", "100")):
        out = tmp_path / name
        privacy = ("--privacy", "central", "--strategy-option", f"noise_multiplier={noise}")
        shown = command_line.run("simulate", "--out", str(out), *TINY, *privacy, "--strategy-option", "clip_norm=0.01")
        journal = out / "arms" / "federated-seed0" / "journal"
        weights = load_arrays(journal / "rounds" / "00002" / "global.safetensors")
        found[name] = float(np.sqrt(sum(np.square(array.astype(np.float64)).sum() for array in weights.values())))
        told = "no bound that means anything" if name == "little" else "an epsilon of 0.0"
        assert told in " ".join(shown.split())
        arm = json.loads((out / "arms" / "federated-seed0" / "arm.json").read_text())
        assert arm["strategy"] == "dpfedavg"
    assert found["much"] > 5 * found["little"]
