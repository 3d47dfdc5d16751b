"""`wardround site privacy`: what was spent, of how much, and by whom."""

import json
from pathlib import Path

import pytest

from wardround.client.gate.budget import Budget
from wardround.client.gate.ledger import Ledger
from wardround.client.home import SETTINGS_TEMPLATE, SiteHome
from wardround.client.learning.accountant import epsilon_of
from wardround.deploy.cli import run


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    found = SiteHome(tmp_path)
    found.settings_file.write_text(SETTINGS_TEMPLATE.format(name="north", coordinator="https://localhost:8443"))
    found.policy.write_text("max-epsilon = 8.0\ndelta = 1e-6\n")
    return found


def spend(home: SiteHome, run_: str, round_: int) -> None:
    budget = Budget(home.path / "privacy.json")
    budget.write(budget.with_charge(run_, round_, 4.0, 0.5, 10))


def test_a_site_that_spent_nothing_says_so(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["site", "privacy", "--home", str(home.path)]) == 0
    assert "an epsilon of 0 of 8 is spent at a delta of 1e-06, by rdp" in " ".join(capsys.readouterr().out.split())


def test_it_tells_what_all_runs_spent_together_and_each_by_itself(
    home: SiteHome, capsys: pytest.CaptureFixture[str]
) -> None:
    for run_, round_ in (("first", 1), ("first", 2), ("second", 1)):
        spend(home, run_, round_)
    assert run(["site", "privacy", "--home", str(home.path), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    charges = Budget(home.path / "privacy.json").charges()
    assert about["spent"] == epsilon_of(charges, 1e-6)
    assert [(each["run"], each["rounds"], each["steps"]) for each in about["runs"]] == [
        ("first", 2, 20),
        ("second", 1, 10),
    ]
    assert about["runs"][1]["epsilon"] == epsilon_of(charges[2:], 1e-6) < about["spent"]
    assert run(["site", "privacy", "--home", str(home.path)]) == 0
    assert "second" in capsys.readouterr().out


def test_a_damaged_file_is_told_with_its_fix(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    (home.path / "privacy.json").write_text("{}")
    assert run(["site", "privacy", "--home", str(home.path)]) == 4
    assert "bring that file back from a copy" in " ".join(capsys.readouterr().err.split())


def test_without_a_bound_nothing_is_said_to_be_left(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    home.policy.write_text("")
    spend(home, "first", 1)
    assert run(["site", "privacy", "--home", str(home.path)]) == 0
    assert "the policy sets no bound" in " ".join(capsys.readouterr().out.split())
    assert run(["site", "privacy", "--json", "--home", str(home.path)]) == 0
    assert json.loads(capsys.readouterr().out)["max-epsilon"] is None


@pytest.mark.parametrize("set_aside", [False, True])
def test_a_file_that_lost_charges_is_no_smaller_spending(
    home: SiteHome, capsys: pytest.CaptureFixture[str], set_aside: bool
) -> None:
    spend(home, "first", 1)
    ledger = Ledger(home.ledger)
    ledger.append(direction="none", kind="train", verdict="allowed", code="charged")
    assert run(["site", "privacy", "--home", str(home.path)]) == 0
    (home.path / "privacy.json").unlink()
    if set_aside:
        ledger.set_aside()
    assert run(["site", "privacy", "--home", str(home.path)]) == 4
    assert "bring the newest copy of that file back" in " ".join(capsys.readouterr().err.split())
