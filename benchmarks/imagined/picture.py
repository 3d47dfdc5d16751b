"""Picture of finished runs: masks, what every generator makes of them beside real slices, and the bars of Dice."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from imagined.arms import GENERATORS, Task
from imagined.cases import images_of, labels_of, shown, slices_of
from imagined.tables import GENERATOR, Results, dice_of
from wardround.client.cases.dataset import Dataset
from wardround.deploy.report.summary import Spread

COLUMNS = 6
_STRUCTURES = ("#ffd84d", "#4cc3ff", "#ff8f5a")
_BARS = ("#0068b0", "#4c9bd0", "#a8cfea")


def draw(task: Task, results: Results, folder: Path, dataset: Dataset, path: Path) -> None:
    """Examples are those of the fewest labelled volumes and the first seed."""
    k, seed = results.sizes[0], next(iter(results.arms.values()))[0]["seed"]
    rows: list[tuple[str, npt.NDArray[np.float32], npt.NDArray[np.uint8]]] = []
    some = next(iter(results.arms.values()))[0]
    grid = (some["recipe"]["patch"][0], some["recipe"]["patch"][1])
    real = shown(slices_of(dataset, some["manifest"]["held out"][: COLUMNS // 2], grid))
    step = max(1, len(real) // COLUMNS)
    rows.append(("real, held out", images_of(real[step // 2 :: step]), labels_of(real[step // 2 :: step])))
    for name, generator in GENERATORS.items():
        kept = folder / f"{GENERATOR}{name}-k{k}-{seed}.npz"
        if kept.exists():
            with np.load(kept) as made:
                rows.append((generator.title, made["images"], made["labels"]))
    for name, arm in task.arms.items():
        kept = folder / f"{name}-k{k}-{seed}.npz"
        if kept.exists():
            with np.load(kept) as made:
                rows.append((arm.title.removeprefix("+ "), made["images"], made["labels"]))
    figure = Figure(figsize=(11, 1.05 * len(rows) + 3.6), layout="constrained")
    whole = figure.add_gridspec(len(rows) + 1, 2 * COLUMNS, height_ratios=[1.0] * len(rows) + [3.4])
    low, high = np.percentile(rows[0][1], (1, 99))
    for number, (title, images, labels) in enumerate(rows):
        for column in range(min(COLUMNS, len(images))):
            for part in range(2):
                axes = figure.add_subplot(whole[number, 2 * column + part])
                axes.imshow(images[column].T, cmap="gray", vmin=low, vmax=high)
                axes.set_xticks([])
                axes.set_yticks([])
                if part == 0 and column == 0:
                    axes.set_ylabel(title, fontsize=6, rotation=0, ha="right", va="center", wrap=True)
                if part == 1:
                    _outline(axes, labels[column])
    axes = figure.add_subplot(whole[len(rows), :])
    names = [name for name in task.arms if any(f"{name}-k{size}" in results.arms for size in results.sizes)]
    width = 0.8 / len(results.sizes)
    lowest = 1.0
    for index, size in enumerate(results.sizes):
        spreads = [Spread.of(dice_of(run) for run in results.arms.get(f"{name}-k{size}", ())) for name in names]
        places = np.arange(len(names)) + (index - (len(results.sizes) - 1) / 2) * width
        errors = [0.0 if np.isnan(spread.sd) else spread.sd for spread in spreads]
        means = [spread.mean for spread in spreads]
        lowest = min([lowest, *(mean for mean in means if np.isfinite(mean))])
        axes.bar(places, means, width, yerr=errors, capsize=2, color=_BARS[index % len(_BARS)], label=f"k = {size}")
    axes.set_xticks(range(len(names)), names, fontsize=7)
    axes.set_ylabel("test Dice (mean ± sd over seeds)")
    axes.set_ylim(max(0.0, lowest - 0.1), 1)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def _outline(axes: Any, labels: npt.NDArray[np.uint8]) -> None:
    for label in range(1, int(labels.max()) + 1):
        mask = label == labels.T
        if mask.any():
            axes.contour(mask, levels=[0.5], colors=_STRUCTURES[(label - 1) % len(_STRUCTURES)], linewidths=0.9)
