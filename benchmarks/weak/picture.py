"""Pictures of finished runs: an example under every arm and the bars beside it; a kernel over training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from wardround.deploy.report.summary import Spread
from weak.arms import Task
from weak.tables import Runs, mean_of

_COLOURS = ("#ffd84d", "#4cc3ff", "#ff8f5a")


def draw_example(  # noqa: PLR0917
    task: Task,
    runs: Runs,
    image: npt.NDArray[Any],
    truth: npt.NDArray[np.uint8],
    examples: Mapping[str, npt.NDArray[np.uint8]],
    path: Path,
) -> None:
    """The slice of an example with most structure, with contours of truth (white) and of each arm; Dice below."""
    names = [name for name in task.arms if name in examples]
    index = int(np.argmax((truth > 0).sum(axis=(0, 1))))
    figure = Figure(figsize=(2.4 * max(3, len(names)), 6.4), layout="constrained")
    grid = figure.add_gridspec(2, max(1, len(names)), height_ratios=(3, 2))
    low, high = np.percentile(image, (1, 99))
    where = np.argwhere(truth[:, :, index] > 0)
    first, last = (where.min(0), where.max(0)) if len(where) else (np.zeros(2), np.array(truth.shape[:2]))
    margin = 20
    for number, name in enumerate(names):
        axes = figure.add_subplot(grid[0, number])
        axes.imshow(image[:, :, index].T, cmap="gray", vmin=low, vmax=high)
        for label in range(1, int(truth.max()) + 1):
            for labels, colour, width in ((truth, "white", 0.8), (examples[name], _COLOURS[(label - 1) % 3], 1.4)):
                mask = label == labels[:, :, index].T
                if mask.any():
                    axes.contour(mask, levels=[0.5], colors=colour, linewidths=width)
        axes.set(xlim=(first[0] - margin, last[0] + margin), ylim=(last[1] + margin, first[1] - margin))
        axes.set_title(task.arms[name].title, fontsize=7, wrap=True)
        axes.axis("off")
    axes = figure.add_subplot(grid[1, :])
    spreads = [Spread.of(mean_of(run) for run in runs.get(name, ())) for name in names]
    heights = [spread.mean for spread in spreads]
    errors = [0.0 if np.isnan(spread.sd) else spread.sd for spread in spreads]
    axes.bar(range(len(names)), heights, yerr=errors, color="#0068b0", capsize=3)
    axes.set_xticks(range(len(names)), [name.replace("attention-", "attention\n") for name in names], fontsize=7)
    axes.set_ylabel("test Dice (mean ± sd over seeds)")
    axes.set_ylim(0, 1)
    figure.savefig(path, dpi=120)


def draw_health(runs: Runs, names: Sequence[str], path: Path) -> None:
    """Mean affinity and ratio of pairs of one label to pairs of two, over training, a line a seed."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, colour in zip(names, ("#c94f00", "#0068b0"), strict=False):
        for number, run in enumerate(runs.get(name, ())):
            entries = [entry for entry in run["log"] if "ratio" in entry]
            updates = [entry["updates"] for entry in entries]
            label = name if number == 0 else None
            left.plot(updates, [entry["mean"] for entry in entries], color=colour, label=label)
            right.plot(updates, [entry["ratio"] for entry in entries], color=colour, label=label)
    left.set(xlabel="updates", ylabel="mean K", yscale="log")
    right.set(xlabel="updates", ylabel="K(same label) / K(different)")
    right.axhline(1.0, color="#999999", linewidth=0.8)
    left.legend()
    figure.savefig(path, dpi=120)
