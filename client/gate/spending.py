"""What the gate says of the privacy budget: whether a round's steps can be afforded, and what all charges come to."""

import logging
import math
from collections.abc import Callable, Sequence

from wardround.client.gate import codes
from wardround.client.gate.budget import Accountant, Budget, Charge, Charges
from wardround.client.gate.ledger import Ledger
from wardround.client.gate.lines import refused
from wardround.client.gate.policy import Policy
from wardround.errors import StorageError
from wardround.strategies.plan import RoundPlan

log = logging.getLogger(__name__)


class Spending:
    """The budget of a site under its policy.

    Parameters
    ----------
    budget
        What the site's cases were charged.
    ledger
        Knows how many charges there must be.
    accountant
        Turns charges into ε; without one nothing can be afforded.
    """

    def __init__(self, budget: Budget, ledger: Ledger, accountant: Accountant | None) -> None:
        self._budget = budget
        self._ledger = ledger
        self._accountant = accountant
        self._charged: int | None = None

    def afford(self, policy: Policy, plan: RoundPlan, steps: int) -> tuple[Charges, float]:
        """The charges with these steps, and what they come to, if the policy allows it.

        Raises
        ------
        GateRefused
            ``budget-spent`` or ``budget-unreadable``.
        """
        self.charges()
        charges = self._budget.with_charge(plan.run, plan.round, plan.noise_multiplier, plan.sample_rate, steps)
        epsilon = self.epsilon(policy, charges)
        if not epsilon <= policy.max_epsilon:
            raise refused("budget-spent")
        return charges, epsilon

    def pay(self, charges: Charges, write_line: Callable[[], object]) -> None:
        """Put the charges on the disk, and then their line into the ledger.

        Raises
        ------
        GateRefused
            ``budget-unreadable`` if they cannot be written; whatever `write_line` raises.
        """
        try:
            self._budget.write(charges)
        except StorageError as error:
            log.error("%s", error)
            raise refused("budget-unreadable") from None
        write_line()
        self._charged = (self._charged or 0) + 1

    def epsilon(self, policy: Policy, charges: Sequence[Charge]) -> float:
        """What charges come to, at the policy's δ.

        Raises
        ------
        GateRefused
            If it is no number, or nobody can say.
        """
        if self._accountant is None:
            raise refused("budget-unreadable")
        epsilon = self._accountant(charges, policy.delta, policy.accountant)
        if not 0 <= epsilon < math.inf:
            raise refused("budget-spent")
        return epsilon

    def epsilon_of(self, policy: Policy, plan: RoundPlan) -> float:
        """ε spent so far, this round included.

        Raises
        ------
        GateRefused
            ``not-charged`` if the round was not charged; as :meth:`epsilon` and :meth:`charges`.
        """
        charges = self.charges()
        if not any((charge.run, charge.round) == (plan.run, plan.round) for charge in charges):
            raise refused("not-charged")
        return self.epsilon(policy, charges)

    def charges(self) -> Charges:
        """Every charge; refused if the file holds fewer than the ledger, as where it was removed or put back."""
        try:
            if self._charged is None:
                self._charged = self._ledger.count(codes.CHARGED)
            return whole_charges(self._budget, self._charged)
        except StorageError as error:
            log.error("%s", error)
            raise refused("budget-unreadable") from None


def whole_charges(budget: Budget, charged: int) -> Charges:
    """Every charge of a budget, of which the ledgers, read before, hold so many.

    Raises
    ------
    StorageError
        If the file cannot be read, or holds fewer.
    """
    charges = budget.charges()
    if len(charges) < charged:
        raise StorageError(
            f"the privacy budget in {budget.path} holds {len(charges)} charges, and the ledger {charged}",
            "it was removed, or an older copy put back",
            "bring the newest copy of that file back",
        )
    return charges
