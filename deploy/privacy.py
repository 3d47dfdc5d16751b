"""What the sites of a simulation have spent of their privacy, in words."""

import json
from pathlib import Path

from wardround.client.gate.budget import Budget
from wardround.deploy.preparation import ARM, INDEX
from wardround.server.records import read_rounds

DELTA = 1e-5
"""At which ε of a simulated site is told; a live one has a policy."""


def privacy_lines(out: Path) -> list[str]:
    """One line for every run of an experiment that has noise.

    Of record-level privacy it is the site that has spent most, of central privacy the whole run.
    """
    lines = []
    for entry in json.loads((out / INDEX).read_text(encoding="utf-8"))["runs"]:
        folder = out / "arms" / entry["folder"]
        arm = json.loads((folder / ARM).read_text(encoding="utf-8"))
        name = f"{arm['arm']}, seed {arm['seed']}"
        if arm["plan"].get("privacy") == "record":
            # Imported here: nobody else waits for torch and opacus.
            from wardround.client.learning.accountant import epsilon_of
            from wardround.client.private_round import SPENT

            spent = {site: Budget(folder / "sites" / site / SPENT).charges() for site in arm["sites"]}
            found = {site: epsilon_of(charges, DELTA) for site, charges in spent.items()}
            most = max(found, key=lambda site: found[site])
            lines.append(f"{name}: every case is private, by an epsilon of {found[most]:.3g} at {most} "
                         f"(delta {DELTA:g})")  # fmt: skip
        elif arm.get("strategy") == "dpfedavg":
            rounds = read_rounds(folder / "journal")
            epsilon = rounds[-1].epsilon if rounds else None
            told = "no bound that means anything" if epsilon is None else f"an epsilon of {epsilon:.3g}"
            delta = arm["strategy_options"].get("delta", DELTA)
            lines.append(f"{name}: every site is private, by {told} (delta {delta:g})")
    return lines
