"""Tables and goals of finished runs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from imagined.arms import BASELINE, GENERATORS, Task
from wardround.deploy.report.summary import Spread, signed
from wardround.deploy.report.tables import Table

Run = Mapping[str, Any]
Runs = Mapping[str, Sequence[Run]]

GENERATOR = "generator-"
FEWEST, POINTS, FAITHFUL = 5, 2.0, 0.8
"""Goals: with so few labelled volumes so many points over strong augmentation; and so faithful to the masks."""


@dataclass(frozen=True)
class Results:
    """What is finished.

    Parameters
    ----------
    judge
        What the judge makes of real images; empty where it is not there.
    generators, arms
        Name of a run → its results, one a seed.
    """

    judge: Run = field(default_factory=dict)
    generators: Runs = field(default_factory=dict)
    arms: Runs = field(default_factory=dict)

    @property
    def sizes(self) -> list[int]:
        """Numbers of labelled volumes."""
        return sorted({run["k"] for runs in self.arms.values() for run in runs})


def dice_of(run: Run, structure: str = "") -> float:
    """Mean over test cases and structures, or of one structure."""
    values = [value for case in run["scores"].values() for name, value in case.items() if structure in ("", name)]
    known = [value for value in values if math.isfinite(value)]
    return math.fsum(known) / len(known) if known else math.nan


def against(runs: Sequence[Run], others: Sequence[Run]) -> tuple[Spread, tuple[float, float]]:
    """Paired difference in Dice points, spread over seeds, and its 95 % interval by bootstrap over cases."""
    by_seed = {run["seed"]: run for run in others}
    pairs = [(run, by_seed[run["seed"]]) for run in runs if run["seed"] in by_seed]
    if not pairs:
        return Spread(), (math.nan, math.nan)
    cases = sorted(pairs[0][0]["scores"])
    each = np.array(
        [
            [
                100 * (np.nanmean([*one["scores"][case].values()]) - np.nanmean([*two["scores"][case].values()]))
                for case in cases
            ]
            for one, two in pairs
        ]
    )
    over_cases = each.mean(axis=0)
    draws = np.random.default_rng(0).choice(over_cases, size=(2000, len(cases))).mean(axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return Spread.of(100 * (dice_of(one) - dice_of(two)) for one, two in pairs), (float(low), float(high))


def tables_of(task: Task, results: Results) -> dict[str, Table]:
    """All of them, by title."""
    found = {f"Test Dice, k = {k}": main_table(task, results, k) for k in results.sizes}
    found["Generators"] = quality_table(task, results)
    found["Power per band of spatial frequency, synthetic against held-out real, dB"] = spectrum_table(task, results)
    found["What a reference lends"] = style_table(results)
    found["Cost"] = cost_table(task, results)
    return {title: table for title, table in found.items() if table.rows}


def main_table(task: Task, results: Results, k: int) -> Table:
    """A row an arm: mean ± sd over seeds."""
    rows = []
    structures: dict[str, None] = {}
    for runs in results.arms.values():
        structures |= {name: None for case in runs[0]["scores"].values() for name in case}
    baseline = results.arms.get(f"{BASELINE}-k{k}", ())
    for name, arm in task.arms.items():
        if not (runs := results.arms.get(f"{name}-k{k}", ())):
            continue
        difference, (low, high) = against(runs, baseline)
        own = name == BASELINE or not difference.known
        rows.append(
            (
                arm.title,
                *(Spread.of(dice_of(run, part) for run in runs).text() for part in structures),
                Spread.of(dice_of(run) for run in runs).text(),
                "–" if own else difference.text(1),
                "–" if own else f"{signed(low)} … {signed(high)}",
                _mean(run["used"]["made"] / max(1, run["used"]["made"] + run["used"]["real"]) for run in runs).text(2),
                _mean(moved(run) for run in runs).text(2),
                str(len(runs)),
            )
        )
    headers = (
        *("arm", *(f"Dice {part}" for part in structures), "mean Dice", "against strong, points"),
        *("95 % over cases", "made share", "max |ΔA|", "seeds"),
    )
    return Table(headers, tuple(rows))


def moved(run: Run) -> float:
    """How far the searched operators have moved; NaN where there are none."""
    if "architecture" not in run:
        return math.nan
    return float(np.abs(np.subtract(run["architecture"]["end"], run["architecture"]["start"])).max())


def judged_runs(task: Task, results: Results) -> dict[tuple[int, str], list[tuple[Run, Run]]]:
    """(k, title) → runs and what was found of what they made: generators, and arms that make pairs as they go."""
    found: dict[tuple[int, str], list[tuple[Run, Run]]] = {}
    for k in results.sizes:
        for name, generator in GENERATORS.items():
            for run in results.generators.get(f"{GENERATOR}{name}-k{k}", ()):
                found.setdefault((k, generator.title), []).append((run, run["quality"]))
        for name in task.arms:
            for run in results.arms.get(f"{name}-k{k}", ()):
                if "quality" in run:
                    found.setdefault((k, f"{name}, at the end"), []).append((run, run["quality"]))
    return found


def quality_table(task: Task, results: Results) -> Table:
    """A row a generator: mean over seeds."""
    rows = []
    if quality := results.judge.get("quality"):
        distance = quality["kernel distance"]
        interval = f"{distance['value']:.3f} [{distance['low']:.3f}, {distance['high']:.3f}]"
        cells = (f"{quality['faithfulness']:.3f}", f"{quality['shuffled']:.3f}", interval)
        rows.append(("real images of held-out cases", "–", *cells, *("–",) * 4))
    for (k, title), runs in judged_runs(task, results).items():
        found = [quality for _, quality in runs]
        distances = [quality["kernel distance"] for quality in found]
        value, low, high = (_mean(one[key] for one in distances).mean for key in ("value", "low", "high"))
        memory = [quality["memorisation"] for quality in found]
        rows.append(
            (
                title,
                str(k),
                Spread.of(quality["faithfulness"] for quality in found).text(),
                Spread.of(quality["shuffled"] for quality in found).text(),
                f"{value:.3f} [{low:.3f}, {high:.3f}]",
                Spread.of(one["nearer"] for one in memory).text(2),
                "/".join(f"{one['synthetic']:.3f}" for one in memory)
                + " : "
                + "/".join(f"{one['held out']:.3f}" for one in memory),
                "/".join(str(one["copies"]) for one in memory),
                "/".join("yes" if one["passed"] else "no" for one in memory),
            )
        )
    headers = (
        *("generator", "k", "faithfulness", "masks shuffled", "kernel distance"),
        *("nearer than held-out", "distance to training, made : held-out", "copies", "passed"),
    )
    return Table(headers, tuple(rows))


def spectrum_table(task: Task, results: Results) -> Table:
    """A row a generator, a column a band: mean over seeds."""
    rows = []
    if quality := results.judge.get("quality"):
        rows.append(("real, half against half", "–", *(f"{gap:+.1f}" for gap in quality["gap"])))
    for (k, title), runs in judged_runs(task, results).items():
        gaps = np.mean([quality["gap"] for _, quality in runs], axis=0)
        rows.append((title, str(k), *(f"{gap:+.1f}" for gap in gaps)))
    bands = len(rows[0]) - 2 if rows else 0
    headers = ("generator", "k", *(f"{band / (2 * bands):.2f}–{(band + 1) / (2 * bands):.2f}" for band in range(bands)))
    return Table(headers, tuple(rows))


def style_table(results: Results) -> Table:
    """A row a generator that heeds a reference."""
    rows = []
    for name, runs in results.generators.items():
        found = [run["style"] for run in runs if run["style"]]
        if found:
            kind, _, k = name.removeprefix(GENERATOR).rpartition("-k")
            keys = ("mean", "sd", "towards", "correlation", "faithful", "faithful own")
            rows.append((GENERATORS[kind].title, k, *(Spread.of(one[key] for one in found).text(2) for key in keys)))
    headers = (
        *("generator", "k", "mean that arrives", "sd that arrives", "towards the reference"),
        *("correlation with it", "faithfulness, other reference", "faithfulness, own image"),
    )
    return Table(headers, tuple(rows))


def cost_table(task: Task, results: Results) -> Table:
    """Minutes of one core a run, and load of the machine."""
    rows = []
    if results.judge:
        rows.append(("judge", "–", f"{results.judge['cores'] / 60:.1f}", "–"))
    for titles, runs in ((GENERATORS, results.generators), (task.arms, results.arms)):
        for name, found in runs.items():
            kind, _, k = name.removeprefix(GENERATOR).rpartition("-k")
            title = f"training of: {titles[kind].title}" if runs is results.generators else titles[kind].title
            minutes = Spread.of(run["cores"] / 60 for run in found)
            rows.append((title, k, minutes.text(1), _mean(run["load"]["after"][0] for run in found).text(1)))
    total = math.fsum(
        run["cores"] for runs in (results.generators, results.arms) for found in runs.values() for run in found
    )
    rows.append(("all", "–", f"{(total + results.judge.get('cores', 0)) / 60:.0f} in all", "–"))
    return Table(("run", "k", "minutes of one core", "load"), tuple(rows))


def goal_lines(task: Task, results: Results) -> list[str]:
    """Each goal, and by how much it is met or missed."""
    lines = []
    baseline = results.arms.get(f"{BASELINE}-k{FEWEST}", ())
    for name, arm in task.arms.items():
        runs = results.arms.get(f"{name}-k{FEWEST}", ())
        if runs and arm.source and baseline:
            difference, (low, high) = against(runs, baseline)
            by = difference.mean - POINTS
            lines.append(
                f"- {name}, k = {FEWEST}: {signed(difference.mean)} points over strong augmentation "
                f"[{signed(low)} … {signed(high)}], goal ≥ +{POINTS:.0f}: {_verdict(by, 'points')}"
            )
    chance = results.judge.get("quality", {}).get("shuffled", math.nan)
    for (k, title), runs in judged_runs(task, results).items():
        quality = [found for _, found in runs]
        faithful = _mean(found["faithfulness"] for found in quality).mean
        shuffled = _mean(found["shuffled"] for found in quality).mean
        lines.append(
            f"- {title}, k = {k}: faithfulness {faithful:.3f}, goal ≥ {FAITHFUL}: {_verdict(faithful - FAITHFUL, '')}; "
            f"{shuffled:.3f} with shuffled masks, where real images have {chance:.3f}"
        )
        nearer = _mean(found["memorisation"]["nearer"] for found in quality).mean
        lines.append(
            f"- {title}, k = {k}: nearer to training images than held-out people with probability {nearer:.2f}, "
            f"goal ≤ 0.50: {_verdict(0.5 - nearer, '')}"
        )
    for k in results.sizes:
        parts = [results.generators.get(f"{GENERATOR}{name}-k{k}", ()) for name in ("medsad", "medsad-no-ffda")]
        if all(parts):
            gated, plain = (np.mean([np.abs(run["quality"]["gap"]) for run in runs], axis=0) for runs in parts)
            nearer = int((gated < plain).sum())
            lines.append(
                f"- frequency gate, k = {k}: closer to the real spectrum in {nearer} of {len(gated)} bands, by "
                + ", ".join(f"{by:+.1f}" for by in plain - gated)
                + f" dB, goal all: {'met' if nearer == len(gated) else f'missed by {len(gated) - nearer} bands'}"
            )
    return lines


def _verdict(by: float, unit: str) -> str:
    return f"{'met' if by >= 0 else 'missed'} by {abs(by):.2f} {unit}".rstrip()


def _mean(values: Any) -> Spread:
    """Without a spread in its text."""
    spread = Spread.of(values)
    return Spread(spread.mean, math.nan, min(1, spread.count))
