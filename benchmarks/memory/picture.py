"""Picture of finished streams: the accuracy matrix of every arm, and the course over the stream below."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from memory.arms import Arm
from memory.tables import Runs, course, matrix

_COLOURS = (
    *("#8c8c8c", "#0068b0", "#c94f00", "#008a4f", "#7a3fb0"),
    *("#b08a00", "#d0407f", "#30a0b0", "#5a4030", "#101010"),
)


def draw(arms: Mapping[str, Arm], runs: Runs, path: Path) -> None:
    """Means over seeds; every seed has its own order of regimes, so that axes name places in the stream."""
    names = [name for name in arms if runs.get(name)]
    columns = min(6, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(2.1 * max(4, columns), 2.4 * lines + 3.4), layout="constrained")
    grid = figure.add_gridspec(lines + 1, columns, height_ratios=[2.0] * lines + [3.0])
    for number, name in enumerate(names):
        axes = figure.add_subplot(grid[number // columns, number % columns])
        found = np.mean([matrix(run) for run in runs[name]], axis=0)
        axes.imshow(found, vmin=0, vmax=1, cmap="viridis")
        for (row, column), value in np.ndenumerate(found):
            axes.text(
                column,
                row,
                f"{100 * value:.0f}",
                ha="center",
                va="center",
                color="w" if value < 0.6 else "k",
                fontsize=7,
            )
        axes.set_title(arms[name].title, fontsize=8, wrap=True)
        axes.set_xticks(range(found.shape[1]), [str(place + 1) for place in range(found.shape[1])], fontsize=6)
        axes.set_yticks(range(found.shape[0]), [str(place) for place in range(found.shape[0])], fontsize=6)
        axes.set_xlabel("tested on regime", fontsize=6)
        axes.set_ylabel("after regime", fontsize=6)
    axes = figure.add_subplot(grid[lines, :])
    for number, name in enumerate(names):
        counts = course(runs[name][0])[0]
        means = np.mean([course(run)[1].mean(axis=1) for run in runs[name]], axis=0)
        axes.plot(counts, means, color=_COLOURS[number % len(_COLOURS)], marker=".", label=arms[name].title)
    sides = [point["cases"] for point in runs[names[0]][0]["points"] if point["regime"]]
    for side in sides[:-1]:
        axes.axvline(side, color="#cccccc", linewidth=0.8)
    axes.set(xlabel="cases of the stream", ylabel="Dice, mean over all regimes", ylim=(0, 1))
    axes.legend(fontsize=6, ncols=3)
    figure.savefig(path, dpi=120)
