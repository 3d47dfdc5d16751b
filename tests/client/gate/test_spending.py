"""The gate and the privacy budget: what is spent is known, bounded, written down, and never lost."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from bundles import Clock

from wardround.client.gate import codes
from wardround.client.gate.budget import BUDGET, Charge, Method
from wardround.client.gate.gate import Gate
from wardround.client.gate.policy import POLICY_TEMPLATE
from wardround.errors import GateRefused
from wardround.strategies.contract import Weights, weights_to_record
from wardround.strategies.plan import RoundPlan


def counted(charges: Sequence[Charge], delta: float, method: Method) -> float:
    """An accountant that adds up: a tenth a step, at every δ."""
    return sum(charge.steps for charge in charges) / 10


@pytest.fixture
def private(plan: RoundPlan) -> RoundPlan:
    fields = plan.model_dump() | {"privacy": "record", "validation_cases": 0, "model_vote": 0.0}
    return RoundPlan.model_validate(fields)


@pytest.fixture
def bounded(home: Path, clock: Clock) -> Gate:
    """A gate whose policy allows an ε of 1."""
    (home / "policy.toml").write_text(POLICY_TEMPLATE.replace("max-epsilon = inf", "max-epsilon = 1.0"))
    return Gate(home, clock, counted)


def refusal(gate: Gate, call: Any) -> str:
    with pytest.raises(GateRefused) as error:
        call()
    assert error.value.code in codes.MEANING
    assert list(gate.ledger.entries())[-1].code == error.value.code
    return error.value.code


class TestCharging:
    def test_a_charge_is_on_the_disk_and_in_the_ledger(self, bounded: Gate, private: RoundPlan, home: Path) -> None:
        assert bounded.charge(private, 3) == pytest.approx(0.3)
        assert bounded.charge(private, 2) == pytest.approx(0.5)
        last = list(bounded.ledger.entries())[-1]
        assert (last.code, last.direction, last.kind, last.round) == ("charged", "none", "train", private.round)
        assert last.epsilon == pytest.approx(0.5)
        assert Gate(home, accountant=counted).spent() == pytest.approx(0.5)

    def test_what_would_be_too_much_is_refused_and_costs_nothing(self, bounded: Gate, private: RoundPlan) -> None:
        bounded.charge(private, 6)
        assert refusal(bounded, lambda: bounded.charge(private, 5)) == "budget-spent"
        assert bounded.spent() == pytest.approx(0.6)
        assert bounded.charge(private, 4) == pytest.approx(1.0)  # All of it may be spent.

    def test_without_a_bound_it_is_counted_all_the_same(self, home: Path, private: RoundPlan) -> None:
        gate = Gate(home, accountant=counted)
        assert gate.charge(private, 1000) == pytest.approx(100)

    def test_a_ledger_that_cannot_be_written_leaves_the_charge(
        self, bounded: Gate, private: RoundPlan, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(**_: object) -> None:
            raise GateRefused("the ledger", code="ledger-not-written")

        monkeypatch.setattr(bounded._lines, "append", fail)
        with pytest.raises(GateRefused):
            bounded.charge(private, 3)
        assert sum(charge.steps for charge in bounded.budget.charges()) == 3

    def test_a_budget_that_cannot_be_written_lets_no_step_be_taken(
        self, bounded: Gate, private: RoundPlan, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("wardround.client.gate.budget.write_text", full)
        with pytest.raises(GateRefused):
            bounded.charge(private, 3)

    @pytest.mark.parametrize("spent", [math.nan, math.inf, -1.0])
    def test_an_accountant_that_fails_is_no_free_pass(self, home: Path, private: RoundPlan, spent: float) -> None:
        gate = Gate(home, accountant=lambda *_: spent)
        assert refusal(gate, lambda: gate.charge(private, 1)) == "budget-spent"
        assert gate.budget.charges() == ()

    def test_nobody_who_counts_means_no_private_round(self, gate: Gate, private: RoundPlan) -> None:
        assert refusal(gate, lambda: gate.charge(private, 1)) == "budget-unreadable"


class TestTheFile:
    def test_a_damaged_file_is_no_empty_budget(self, bounded: Gate, private: RoundPlan, home: Path) -> None:
        (home / BUDGET).write_text("{}")
        assert refusal(bounded, lambda: bounded.charge(private, 1)) == "budget-unreadable"

    @pytest.mark.parametrize("how", ["removed", "older"])
    def test_a_file_that_was_removed_or_put_back_is_noticed_by_the_ledger(
        self, bounded: Gate, private: RoundPlan, home: Path, how: str
    ) -> None:
        bounded.charge(private, 1)
        older = (home / BUDGET).read_text()
        bounded.charge(private, 1)
        if how == "removed":
            (home / BUDGET).unlink()
        else:
            (home / BUDGET).write_text(older)
        assert refusal(bounded, lambda: bounded.charge(private, 1)) == "budget-unreadable"
        again = Gate(home, accountant=counted)
        assert refusal(again, lambda: again.charge(private, 1)) == "budget-unreadable"

    @pytest.mark.parametrize("damaged", [False, True])
    def test_a_ledger_that_was_set_aside_still_counts(
        self, bounded: Gate, private: RoundPlan, home: Path, damaged: bool
    ) -> None:
        """Otherwise a budget that was lost, too, as by a restored backup, would begin anew."""
        for _ in range(3):
            bounded.charge(private, 2)
        if damaged:
            bounded.ledger.path.write_bytes(bounded.ledger.path.read_bytes()[:-40] + b"\xff\n")
        bounded.ledger.set_aside()
        kept = (home / BUDGET).read_text()
        again = Gate(home, accountant=counted)
        assert again.charge(private, 1) == pytest.approx(0.7)
        (home / BUDGET).unlink()
        again = Gate(home, accountant=counted)
        assert refusal(again, lambda: again.charge(private, 1)) == "budget-unreadable"
        (home / BUDGET).write_text(kept)  # As it was when the ledger was set aside: the last charge is missing.
        if not damaged:
            assert refusal(again, lambda: again.charge(private, 1)) == "budget-unreadable"

    def test_a_copy_of_a_ledger_counts_no_charge_twice(self, bounded: Gate, private: RoundPlan, home: Path) -> None:
        bounded.charge(private, 2)
        (home / "ledger-copy.jsonl").write_bytes(bounded.ledger.path.read_bytes())
        assert Gate(home, accountant=counted).charge(private, 1) == pytest.approx(0.3)


class TestMessages:
    def test_a_site_with_a_budget_lets_only_private_plans_in(
        self, bounded: Gate, plan: RoundPlan, private: RoundPlan, weights: Weights
    ) -> None:
        record = weights_to_record(weights)
        assert refusal(bounded, lambda: bounded.admit("train", plan, record)) == "plan-privacy"
        bounded.admit("train", private, record)

    def test_a_spent_budget_is_refused_before_the_round_begins(
        self, bounded: Gate, private: RoundPlan, weights: Weights
    ) -> None:
        record = weights_to_record(weights)
        bounded.charge(private, 10)
        assert refusal(bounded, lambda: bounded.admit("train", private, record)) == "budget-spent"
        bounded.admit("evaluate", private, record)

    def test_what_leaves_says_what_was_spent(
        self, bounded: Gate, private: RoundPlan, weights: Weights, answer: Any
    ) -> None:
        content = answer(metrics={"num-examples": 6.0, "cases": 2.0, "updates": 4.0})
        release = lambda: bounded.release("train", private, content, given=weights, cases=6)  # noqa: E731
        assert refusal(bounded, release) == "not-charged"
        bounded.charge(private, 4)
        release()
        assert list(bounded.ledger.entries())[-1].epsilon == pytest.approx(0.4)

    @pytest.mark.parametrize("name", ["loss", "trust", "effort-contour", "seconds-update", "rejected"])
    def test_scalars_without_noise_do_not_leave(
        self, bounded: Gate, private: RoundPlan, weights: Weights, answer: Any, name: str
    ) -> None:
        bounded.charge(private, 4)
        content = answer(metrics={"num-examples": 6.0, name: 0.5})
        release = lambda: bounded.release("train", private, content, given=weights, cases=6)  # noqa: E731
        assert refusal(bounded, release) == "metric"
