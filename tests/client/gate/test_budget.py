"""The file of charges: it is there whole or not at all, and what cannot be read is no budget of nothing."""

from pathlib import Path

import pytest

from wardround.client.gate.budget import Budget
from wardround.errors import StorageError


def charged(budget: Budget, steps: int, round: int = 1) -> None:
    budget.write(budget.with_charge("demo", round, 2.0, 0.25, steps))


def test_a_site_that_never_spent_has_no_charge(tmp_path: Path) -> None:
    assert Budget(tmp_path / "privacy.json").charges() == ()


def test_charges_are_there_for_whoever_opens_the_file_next(tmp_path: Path) -> None:
    first = Budget(tmp_path / "privacy.json", lambda: 7.0)
    charged(first, 3)
    charged(first, 4, round=2)
    found = Budget(tmp_path / "privacy.json").charges()
    assert [(each.run, each.round, each.noise_multiplier, each.sample_rate, each.steps) for each in found] == [
        ("demo", 1, 2.0, 0.25, 3),
        ("demo", 2, 2.0, 0.25, 4),
    ]
    assert found[0].seconds == 7.0


def test_what_is_asked_for_is_not_yet_charged(tmp_path: Path) -> None:
    budget = Budget(tmp_path / "privacy.json")
    assert len(budget.with_charge("demo", 1, 2.0, 0.25, 3)) == 1
    assert not budget.path.exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"charges": [{}]}',
        '{"charges": [{"run": "a", "round": 1, "noise_multiplier": 0.0, "sample_rate": 0.5, "steps": 1}]}',
        '{"charges": [{"run": "a", "round": 1, "noise_multiplier": NaN, "sample_rate": 0.5, "steps": 1}]}',
        '{"charges": [{"run": "a", "round": 1, "noise_multiplier": 1.0, "sample_rate": 1.5, "steps": 1}]}',
        '{"charges": [{"run": "a", "round": 1, "noise_multiplier": 1.0, "sample_rate": 0.5, "steps": -1}]}',
    ],
)
def test_a_damaged_file_is_not_an_empty_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "privacy.json").write_text(text)
    with pytest.raises(StorageError):
        Budget(tmp_path / "privacy.json").charges()


def test_a_full_disk_leaves_what_was_charged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Budget(tmp_path / "privacy.json")
    charged(budget, 3)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError):
        charged(budget, 4)
    monkeypatch.undo()
    assert [each.steps for each in budget.charges()] == [3]
