"""What a site's cases have spent of their privacy, as a table and as words."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from wardround.client.gate.budget import BUDGET, Budget, Charge
from wardround.client.gate.codes import CHARGED
from wardround.client.gate.ledger import Ledger
from wardround.client.gate.policy import Policy
from wardround.client.gate.spending import whole_charges
from wardround.client.home import SiteHome
from wardround.client.learning.accountant import epsilon_of


def spending(home: SiteHome, policy: Policy) -> dict[str, Any]:
    """How much was spent, of how much, and by which runs.

    Raises
    ------
    StorageError
        If the file of charges cannot be read, or holds fewer than the ledger: the gate refuses then, too.
    """
    charged = Ledger(home.ledger).count(CHARGED)
    charges = whole_charges(Budget(home.path / BUDGET), charged)
    spent = epsilon_of(charges, policy.delta, policy.accountant)
    by_run: dict[str, list[Charge]] = {}
    for charge in charges:
        by_run.setdefault(charge.run, []).append(charge)
    return {
        "spent": spent,
        "max-epsilon": policy.max_epsilon if policy.max_epsilon < math.inf else None,
        "delta": policy.delta,
        "accountant": policy.accountant,
        "runs": [
            {
                "run": run,
                "rounds": len({charge.round for charge in own}),
                "steps": sum(charge.steps for charge in own),
                "epsilon": epsilon_of(own, policy.delta, policy.accountant),
            }
            for run, own in by_run.items()
        ],
    }


def described(about: Mapping[str, Any]) -> str:
    """In one line."""
    at = f"at a delta of {about['delta']:g}, by {about['accountant']}"
    if about["max-epsilon"] is None:
        return f"an epsilon of {about['spent']:.3g} is spent {at}; the policy sets no bound"
    return f"an epsilon of {about['spent']:.3g} of {about['max-epsilon']:g} is spent {at}"


def runs_table(runs: Sequence[Mapping[str, Any]]) -> Table:
    """One row a run, as it would be by itself: together they cost less than their sum."""
    table = Table("run", "rounds", "steps", "ε by itself", box=None)
    for each in runs:
        table.add_row(escape(each["run"]), str(each["rounds"]), str(each["steps"]), f"{each['epsilon']:.3g}")
    return table
