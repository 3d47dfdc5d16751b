"""Tables and goals of finished runs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from wardround.deploy.report.summary import Spread
from wardround.deploy.report.tables import Table
from weak.arms import Task

Runs = Mapping[str, Sequence[Mapping[str, Any]]]
"""Arm → its finished runs, one a seed."""


def mean_of(run: Mapping[str, Any], key: str = "dice", structure: str = "") -> float:
    """Over structures (or of one) and test cases."""
    values = [
        found[key]
        for case in run["scores"].values()
        for name, found in case.items()
        if not structure or name == structure
    ]
    return math.fsum(values) / len(values) if values else math.nan


def main_table(task: Task, runs: Runs) -> Table:
    """A row an arm: mean ± sd over seeds."""
    structures = _structures(runs)
    headers = (
        "arm",
        *(f"Dice {name}" for name in structures),
        "mean Dice",
        f"HD95, {task.unit}",
        "missed",
        f"against {task.arms[task.baseline].title}, points" if task.baseline in task.arms else "against baseline",
        "effort",
        "strict effort",
        "seeds",
    )
    rows = []
    for name, arm in task.arms.items():
        found = runs.get(name, ())
        rows.append(
            (
                arm.title,
                *(Spread.of(mean_of(run, structure=part) for run in found).text() for part in structures),
                Spread.of(mean_of(run) for run in found).text(),
                Spread.of(mean_of(run, "hd95") for run in found).text(1),
                Spread.of(_missed(run) for run in found).text(1),
                "–" if name == task.baseline else against(runs, name, task.baseline).text(1),
                *(
                    Spread.of(run["effort"][count] for run in found).text(2).partition(" ")[0]
                    for count in ("contour", "strict")
                ),
                str(len(found)),
            )
        )
    return Table(headers, tuple(rows))


def against(runs: Runs, arm: str, baseline: str) -> Spread:
    """Paired difference in Dice points: same seed, same cases; spread over seeds."""
    others = {run["seed"]: run for run in runs.get(baseline, ())}
    pairs = [(run, others[run["seed"]]) for run in runs.get(arm, ()) if run["seed"] in others]
    return Spread.of(100 * (mean_of(one) - mean_of(other)) for one, other in pairs)


def structure_table(task: Task, runs: Runs) -> Table:
    """HD95 of every structure."""
    structures = _structures(runs)
    rows = [
        (
            arm.title,
            *(Spread.of(mean_of(run, "hd95", part) for run in runs.get(name, ())).text(1) for part in structures),
        )
        for name, arm in task.arms.items()
    ]
    return Table(("arm", *(f"HD95 {name}, {task.unit}" for name in structures)), tuple(rows))


def gap_table(task: Task, runs: Runs) -> Table:
    """How much of the gap between floor and ceiling an arm closes, and its share of dense Dice, by seed."""
    floor, ceiling = ({run["seed"]: mean_of(run) for run in runs.get(name, ())} for name in (task.floor, task.ceiling))
    rows = []
    for name, arm in task.arms.items():
        closed, share = [], []
        for run in runs.get(name, ()):
            seed, dice = run["seed"], mean_of(run)
            if seed in floor and seed in ceiling:
                closed.append(100 * (dice - floor[seed]) / (ceiling[seed] - floor[seed]))
                share.append(dice / ceiling[seed])
        rows.append((arm.title, Spread.of(closed).text(0), Spread.of(share).text(3)))
    return Table(("arm", "gap closed, %", "share of dense Dice"), tuple(rows))


def cost_table(task: Task, runs: Runs) -> Table:
    """Minutes and machine load."""
    rows = [
        (
            arm.title,
            Spread.of(run["seconds"]["training"] / 60 for run in runs.get(name, ())).text(1),
            Spread.of(run["load"]["after"][0] for run in runs.get(name, ())).text(1),
        )
        for name, arm in task.arms.items()
    ]
    return Table(("arm", "minutes of training", "load of the machine"), tuple(rows))


def health_table(runs: Runs, names: Sequence[str]) -> Table:
    """A kernel at the start and at the end of training, on pairs of strokes."""
    rows = []
    for name in names:
        noted = [[entry for entry in run["log"] if "ratio" in entry] for run in runs.get(name, ())]
        noted = [entries for entries in noted if entries]
        cells = [
            Spread.of(entries[at][key] for entries in noted).text(4 if key == "mean" else 2)
            for key in ("mean", "ratio")
            for at in (0, -1)
        ]
        rows.append((name, *cells, str(len(noted))))
    headers = ("kernel", "mean K, first", "mean K, last", "same / different, first", "same / different, last", "seeds")
    return Table(headers, tuple(rows))


def _missed(run: Mapping[str, Any]) -> float:
    """Structures of test cases of which nothing was found, or that were found where there are none."""
    return math.fsum(part["missed"] for case in run["scores"].values() for part in case.values())


def _structures(runs: Runs) -> list[str]:
    found: dict[str, None] = {}
    for arm in runs.values():
        for run in arm:
            for case in run["scores"].values():
                found |= dict.fromkeys(case)
    return list(found)
