"""What a finished stream says: its accuracy matrix, and the tables and goals that follow from it.

``R[i][j]`` is the Dice on the test of regime j after regime i, in the order of the stream; row 0 is the network before
its first update. *Final* is the mean of the last row, *worst* its least entry. *Backward transfer* is the mean of
``R[T][j] - R[j][j]`` over all regimes but the last, *forward transfer* the mean of ``R[j - 1][j] - R[0][j]`` over all
but the first (Lopez-Paz and Ranzato 2017, arXiv 1706.08840, equations 3 and 4). *Last third* is the mean over all
regimes and over what was tested in the last third of the stream.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from memory.arms import Arm
from wardround.deploy.report.summary import Spread
from wardround.deploy.report.tables import Table

Run = Mapping[str, Any]
Runs = Mapping[str, Sequence[Run]]
"""Arm → its finished runs, one a seed."""

Floats = npt.NDArray[np.float64]

OVER_MEMORY, OVER_FINE_TUNING, KEPT = 1.0, 5.0, 80.0
"""Goals: points over memory alone and over fine-tuning, and the share in percent of what stored replay keeps."""


def _row(point: Mapping[str, Any], names: Sequence[str]) -> list[float]:
    """Mean Dice of every regime over its test cases."""
    return [math.fsum(point["dice"][name].values()) / len(point["dice"][name]) for name in names]


def names_of(run: Run) -> list[str]:
    """Regimes in the order of the stream."""
    return [part["name"] for part in run["regimes"]]


def matrix(run: Run) -> Floats:
    """``R``, ``[T + 1, T]``."""
    return np.array([_row(point, names_of(run)) for point in run["points"] if point["regime"] is not None])


def course(run: Run) -> tuple[list[int], Floats]:
    """Cases so far, and ``[points, T]`` Dice of every regime."""
    names = names_of(run)
    return [point["cases"] for point in run["points"]], np.array([_row(point, names) for point in run["points"]])


def final(run: Run) -> float:
    """Mean Dice over regimes after the stream."""
    return float(matrix(run)[-1].mean())


def worst(run: Run) -> float:
    """Dice of the worst regime after the stream."""
    return float(matrix(run)[-1].min())


def backward(run: Run) -> float:
    """What later regimes took from earlier ones (below 0) or gave them; NaN where all came at once."""
    found = matrix(run)
    regimes = found.shape[1]
    if run["arm"]["joint"] or regimes < 2:
        return math.nan
    return float(np.mean([found[-1, j] - found[j + 1, j] for j in range(regimes - 1)]))


def forward(run: Run) -> float:
    """What earlier regimes gave later ones before these came; NaN where all came at once."""
    found = matrix(run)
    regimes = found.shape[1]
    if run["arm"]["joint"] or regimes < 2:
        return math.nan
    return float(np.mean([found[j, j] - found[0, j] for j in range(1, regimes)]))


def last_third(run: Run) -> float:
    """Mean Dice over all regimes in the last third of the stream."""
    cases, dices = course(run)
    late = [row.mean() for count, row in zip(cases, dices, strict=True) if 3 * count > 2 * cases[-1]]
    return float(np.mean(late))


MEASURES: dict[str, Callable[[Run], float]] = {
    "final Dice": final,
    "worst regime": worst,
    "last third": last_third,
    "backward transfer": backward,
    "forward transfer": forward,
}


def main_table(arms: Mapping[str, Arm], runs: Runs) -> Table:
    """A row an arm: mean ± sd over seeds, and differences paired over seeds."""
    headers = ("arm", *MEASURES, "against memory, points", "against fine-tuning, points", "seeds")
    rows = []
    for name, arm in arms.items():
        found = runs.get(name, ())
        alone = "memory-2" if arm.memory == 2 else "memory-4"
        rows.append(
            (
                arm.title,
                *(Spread.of(measure(run) for run in found).text() for measure in MEASURES.values()),
                *("–" if name == other else against(runs, name, other).text(1) for other in (alone, "fine-tune")),
                str(len(found)),
            )
        )
    return Table(headers, tuple(rows))


def against(runs: Runs, arm: str, other: str) -> Spread:
    """Paired difference of final Dice in points: same seed, same stream; spread over seeds."""
    others = {run["seed"]: run for run in runs.get(other, ())}
    pairs = [(run, others[run["seed"]]) for run in runs.get(arm, ()) if run["seed"] in others]
    return Spread.of(100 * (final(one) - final(two)) for one, two in pairs)


def regime_table(arms: Mapping[str, Arm], runs: Runs) -> Table:
    """Final Dice of every regime, wherever it stood in the streams of the seeds."""
    names = sorted({name for found in runs.values() for run in found for name in names_of(run)})
    rows = []
    for name, arm in arms.items():
        cells = []
        for regime in names:
            values = [
                matrix(run)[-1, names_of(run).index(regime)] for run in runs.get(name, ()) if regime in names_of(run)
            ]
            cells.append(Spread.of(values).text())
        rows.append((arm.title, *cells))
    return Table(("arm", *names), tuple(rows))


def matrix_table(arms: Mapping[str, Arm], runs: Runs) -> Table:
    """``R`` of every arm, means over seeds; places in the stream, since the regimes differ between seeds."""
    width = max(matrix(run).shape[1] for found in runs.values() for run in found)
    rows = []
    for name, arm in arms.items():
        found = [matrix(run) for run in runs.get(name, ())]
        for after, row in enumerate(np.mean(found, axis=0) if found else ()):
            rows.append((arm.title if after == 0 else "", str(after), *(f"{value:.3f}" for value in row)))
    return Table(("arm", "after", *(f"regime {place}" for place in range(1, width + 1))), tuple(rows))


def generator_table(arms: Mapping[str, Arm], runs: Runs) -> Table:
    """What became of generators, means over regimes and seeds."""
    headers = (
        "arm",
        "cases not taken over",
        "network's Dice on made images",
        "with labels shuffled",
        "on real images kept apart",
        "share of made images nearer than unseen people's",
    )
    rows = []
    for name, arm in arms.items():
        if arm.generative:
            made = [found for run in runs.get(name, ()) for found in run["made"]]
            cells = (
                Spread.of(found.get(key, math.nan) for found in made).text(2)
                for key in ("kept", "faithful", "shuffled", "real", "nearer")
            )
            rows.append((arm.title, *cells))
    return Table(headers, tuple(rows))


def cost_table(arms: Mapping[str, Arm], runs: Runs) -> Table:
    """Seconds of one core, and machine load."""
    rows = [
        (
            arm.title,
            *(
                Spread.of(run["seconds"][part] for run in runs.get(name, ())).text(0)
                for part in ("learning", "testing")
            ),
            Spread.of(run["load"]["after"][0] for run in runs.get(name, ())).text(1),
        )
        for name, arm in arms.items()
    ]
    return Table(("arm", "seconds of learning", "seconds of testing", "load of the machine"), tuple(rows))


def goal_lines(runs: Runs) -> list[str]:
    """What the runs show of each goal; nothing of a goal whose arms were not run."""
    lines = []
    for both, title in (("memory-4+msmt", "MSMT"), ("memory-4+kd", "distillation")):
        for other, least, beside in (
            ("memory-4", OVER_MEMORY, "memory alone"),
            ("fine-tune", OVER_FINE_TUNING, "fine-tuning"),
        ):
            found = against(runs, both, other)
            if found.known:
                verdict = "reached" if found.mean >= least else f"missed by {least - found.mean:.1f}"
                lines.append(
                    f"- memory of 4 + {title} against {beside}: {found.text(1)} points (goal ≥ {least:.0f}): {verdict}"
                )
    left = sum(found["kept"] for run in runs.get("generative", ()) for found in run["made"])
    for floor, title in (("fine-tune", "fine-tuning"), ("forgetful", "forgetting every regime's cases")):
        kept = kept_share(runs, floor)
        if not kept.known:
            continue
        verdict = "reached" if kept.mean >= KEPT else f"missed by {KEPT - kept.mean:.0f}"
        if left:
            verdict = f"no verdict, {left:.0f} cases were not taken over"
        lines.append(
            f"- of what stored replay keeps over {title}, generative replay keeps {kept.text(0)} % "
            f"(goal ≥ {KEPT:.0f} %): {verdict}"
        )
    return lines


def kept_share(runs: Runs, floor: str, stored: str = "memory-4") -> Spread:
    """Percent: gain of generative replay over `floor`, over that of stored replay; each a mean over seeds."""
    generated, remembered = against(runs, "generative", floor), against(runs, stored, floor)
    if not generated.known or not remembered.known or remembered.mean <= 0:
        return Spread()
    return Spread.of([100 * generated.mean / remembered.mean])
