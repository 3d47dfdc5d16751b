"""What a handful of strokes or clicks gives: Dice of the expanded seeds against effort, and what the distance costs.

Every row is one kind of prompt, expanded with one cost of a step. Where the data set holds strokes of an expert, they
are used. Besides, strokes are simulated from the labels (on three slices the centre line of each structure and four
short arcs of background), and clicks on the deepest voxel of each structure. Only training cases of the split are read,
because settings are chosen from this table.

Run on the folder of a data set that has a ``dataset.json`` and a ``split.json``::

    OMP_NUM_THREADS=1 python benchmarks/seeds.py DATA/hippocampus --cases 20
    OMP_NUM_THREADS=1 python benchmarks/seeds.py DATA/acdc_scribbles --cases 20
    OMP_NUM_THREADS=1 python benchmarks/seeds.py DATA/lgg_multisite --points --cases 64

With ``--points`` seven points a structure are expanded instead, with every cost of a step and every pair of thresholds
on a grid, and of each cost that pair is printed whose seeds have a precision of :data:`PRECISE` at the best recall.

The tables are printed as Markdown. Seconds are CPU time of this process; on a busy machine trust their ratios alone.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage, stats

from wardround.client.annotation.clicks import seven_clicks
from wardround.client.annotation.effort import effort_of, full_effort, strict_full_effort
from wardround.client.annotation.expansion import (
    CONTRASTED,
    ExpansionSettings,
    Reach,
    expand_points,
    reach_of,
    seven_points,
)
from wardround.client.annotation.geodesic import exact_geodesic_distance, geodesic_distance
from wardround.client.annotation.prompts import (
    UNLABELLED,
    Annotations,
    ExtentPrompt,
    Labels3D,
    PointPrompt,
    plane,
    scribbles_of,
)
from wardround.client.annotation.seeds import SeedSettings, beyond, expand, normalised, seed_map, with_background
from wardround.client.cases.dataset import load_dataset, read_scribbles, split_by_file
from wardround.client.cases.nifti import read_image, read_labels
from wardround.client.cases.volume import Volume

Box = tuple[slice, slice, slice]
Mask = npt.NDArray[np.bool_]

MARGIN = 4
SLICES = 3
BEST = SeedSettings()
EUCLIDEAN = SeedSettings(weight=0)
METHODS = {
    "length alone": EUCLIDEAN,
    "additive, w = 0.8": SeedSettings(weight=0.8),
    "additive, w = 0.95": SeedSettings(weight=0.95),
    "additive, w = 0.98": SeedSettings(weight=0.98),
    "gradient-speed, w = 0.2": SeedSettings("gradient-speed", 0.2),
    "gradient-speed, w = 0.5": SeedSettings("gradient-speed", 0.5),
}

PRECISE = 0.9
COSTS = {
    "length alone": ("additive", 0.0),
    **{f"additive, w = {w}": ("additive", w) for w in (0.5, 0.8, 0.9, 0.95, 0.98)},
    **{f"gradient-speed, w = {w}": ("gradient-speed", w) for w in (0.1, 0.2, 0.3, 0.5)},
}
THRESHOLDS = (0.1, 0.125, 0.15, 0.175, 0.2, 0.225, 0.25, 0.275, 0.3, 0.35, 0.4, 0.5, 1.0)
RIVALS = (0.4, 0.44, 0.48, *(round(0.5 + 0.02 * n, 2) for n in range(16)), 1.0)
FIXED = {
    "default": ExpansionSettings(),
    "CONTRASTED": CONTRASTED,
    "0.2 as PA-Seg": ExpansionSettings("gradient-speed", 0.5, threshold=0.2, rival=1.0),
}


@dataclass(frozen=True, eq=False)
class Case:
    """A training case; `expert` holds strokes where somebody drew them."""

    image: Volume
    labels: Labels3D
    classes: int
    expert: Labels3D | None


@dataclass(frozen=True)
class Figures:
    """Of one case: Dice of the object, mean Dice of structures, effort in both counts, mean confidence, accuracy."""

    whole: float
    structures: float
    effort: float
    strict: float
    confidence: float
    accuracy: float


def training_cases(folder: Path, count: int) -> Iterator[Case]:
    """The first training cases that hold an object."""
    dataset = load_dataset(folder)
    federation = split_by_file(dataset, Path("split.json"))
    for case in sorted(case for cases in federation.sites.values() for case in cases):
        files = dataset.cases[case]
        if files.label is None or not count:
            continue
        labels = read_labels(files.label).array.astype(np.uint8)
        if labels.any():
            count -= 1
            expert = read_scribbles(dataset, case).array.astype(np.uint8) if files.scribble is not None else None
            yield Case(read_image(files.image), labels, len(dataset.label_names), expert)


def centre_line(mask: Mask, share: float = 0.6) -> Mask:
    """A stroke along the middle of the largest part of `mask` ``[H, W]``, over `share` of its longer axis."""
    stroke = np.zeros_like(mask)
    parts, count = ndimage.label(mask)
    if not count:
        return stroke
    largest = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    along = int(np.argmax([np.ptp(where) for where in np.nonzero(largest)]))
    rows, drawn = np.moveaxis(largest, along, 0), np.moveaxis(stroke, along, 0)
    filled = np.flatnonzero(rows.any(axis=1))
    length = max(1, round(share * len(filled)))
    start = (len(filled) - length) // 2
    for row in filled[start : start + length]:
        inside = np.flatnonzero(rows[row])
        drawn[row, inside[len(inside) // 2]] = True
    return stroke


def arcs(mask: Mask, distance: int = 3, degrees: float = 15.0) -> Mask:
    """Four short strokes of background round `mask` ``[H, W]``, above, below, left and right of it."""
    away = ndimage.distance_transform_edt(~mask)
    ring = (away > distance) & (away <= distance + 1)
    if not mask.any():
        return np.zeros_like(mask)
    rows, columns = np.indices(mask.shape) - np.argwhere(mask).mean(axis=0)[:, None, None]
    angle = np.degrees(np.arctan2(rows, columns)) % 90
    return np.asarray(ring & (np.minimum(angle, 90 - angle) <= degrees))


def simulated_strokes(labels: Labels3D, classes: int, axis: int) -> Labels3D:
    """Strokes on :data:`SLICES` slices, evenly spread over the object along `axis`."""
    strokes = np.full(labels.shape, UNLABELLED, dtype=np.uint8)
    others = tuple(other for other in range(3) if other != axis)
    filled = np.flatnonzero((labels > 0).any(axis=others))
    for part in (np.arange(SLICES) + 0.5) / SLICES:
        where = plane(axis, round(float(filled[0] + part * (filled[-1] - filled[0]))))
        strokes[where][arcs(labels[where] > 0)] = 0
        for label in range(1, classes):
            strokes[where][centre_line(labels[where] == label)] = label
    return strokes


def deepest_points(labels: Labels3D, classes: int) -> tuple[PointPrompt, ...]:
    """One click a structure, in its deepest voxel."""
    points = []
    for label in range(1, classes):
        if (labels == label).any():
            depth = ndimage.distance_transform_edt(np.pad(labels == label, 1))[1:-1, 1:-1, 1:-1]
            i, j, k = np.unravel_index(depth.argmax(), depth.shape)
            points.append(PointPrompt((int(i), int(j), int(k)), label))
    return tuple(points)


def extent_of(labels: Labels3D) -> ExtentPrompt:
    """Six clicks on the object's ends."""
    i, j, k = ((int(where.min()), int(where.max())) for where in np.nonzero(labels))
    return ExtentPrompt((i[0], j[0], k[0]), (i[1], j[1], k[1]))


def prompts_of(case: Case) -> dict[str, Annotations]:
    """What is drawn on a case, by name."""
    # The finest plane that cuts the object often: slices of thick stacks, coronal slices of others.
    spacing = case.image.spacing
    axis = int(np.argmax(spacing)) if max(spacing) > 1.5 * min(spacing) or case.classes == 2 else 1
    named: dict[str, Annotations] = {}
    if case.expert is not None:
        every = scribbles_of(case.expert)
        named["expert's strokes, every slice"] = Annotations().adding(*every)
        named["expert's strokes, every third slice"] = Annotations().adding(*every[1::3])
    extent = extent_of(case.labels)
    strokes = scribbles_of(simulated_strokes(case.labels, case.classes, axis), axis)
    named[f"strokes on {SLICES} slices and extent"] = Annotations(extent=extent).adding(*strokes)
    points = deepest_points(case.labels, case.classes)
    named["a click a structure and extent"] = Annotations(extent=extent).adding(*points)
    return named


def box_of(annotations: Annotations, seeds: Labels3D) -> tuple[Box, Box]:
    """The crop, and where within it the object may lie: the extent, or all of it."""
    if annotations.extent is None:
        where = np.nonzero(seeds != UNLABELLED)
        lower, upper = [int(w.min()) - MARGIN for w in where], [int(w.max()) + MARGIN for w in where]
    else:
        lower, upper = list(annotations.extent.lower), list(annotations.extent.upper)
    margin = 0 if annotations.extent is None else MARGIN
    sides = [
        (max(low - margin, 0), min(high + margin + 1, side))
        for low, high, side in zip(lower, upper, seeds.shape, strict=True)
    ]
    i, j, k = (slice(*side) for side in sides)
    a, b, c = (
        slice(max(low, 0) - start, min(high + 1, side) - start)
        for low, high, side, (start, _) in zip(lower, upper, seeds.shape, sides, strict=True)
    )
    return (i, j, k), (a, b, c)


def prepared(case: Case, annotations: Annotations) -> tuple[npt.NDArray[np.float32], Labels3D, Box, Box]:
    """The crop, its seeds, and where they lie."""
    seeds = seed_map(annotations, case.image.shape)
    box, inner = box_of(annotations, seeds)
    local = seeds[box].copy()
    if annotations.extent is not None:
        local[beyond(case.labels[box].shape, inner) & (local == UNLABELLED)] = 0
    return np.ascontiguousarray(case.image.array[box], dtype=np.float32), local, box, inner


def measure(case: Case, annotations: Annotations, settings: SeedSettings) -> Figures:
    """Expand one case's prompts."""
    crop, seeds, box, inner = prepared(case, annotations)
    probabilities, confidence = expand(crop, case.image.spacing, seeds, case.classes, settings)
    found = np.zeros_like(case.labels)
    found[box][inner] = probabilities.argmax(axis=0)[inner]
    guessed = np.zeros(crop.shape, dtype=bool)
    guessed[inner] = True
    guessed &= seeds == UNLABELLED
    right = found[box] == case.labels[box]
    effort = effort_of(annotations, full_effort(case.labels), strict_full_effort(case.labels))
    return Figures(
        dice(found > 0, case.labels > 0),
        float(np.mean([dice(found == label, case.labels == label) for label in range(1, case.classes)])),
        effort.contour,
        effort.strict,
        float(confidence[guessed].mean()),
        float(right[guessed].mean()),
    )


def dice(one: Mask, other: Mask) -> float:
    """Dice of two masks; two empty ones agree."""
    total = np.count_nonzero(one) + np.count_nonzero(other)
    return 2 * np.count_nonzero(one & other) / total if total else 1.0


def time_distances(cases: list[Case]) -> None:
    """Print what one distance map costs on the crop of the simulated strokes, beside Dijkstra and scipy's EDT."""
    seconds: dict[str, list[float]] = defaultdict(list)
    errors: dict[str, list[tuple[float, float]]] = defaultdict(list)
    voxels = []
    for case in cases:
        crop, seeds, _, _ = prepared(case, prompts_of(case)[f"strokes on {SLICES} slices and extent"])
        finest = min(case.image.spacing)
        i, j, k = (step / finest for step in case.image.spacing)
        image = normalised(crop, (i, j, k), BEST.smoothing)
        own = with_background(seeds) == 1
        if not own.any():
            continue
        voxels.append(own.size)

        def timed(name: str, function: Callable[[], npt.NDArray[np.floating]]) -> npt.NDArray[np.floating]:
            start = time.process_time()
            found = function()
            seconds[name].append(time.process_time() - start)
            return found

        def straight(own: Mask = own, steps: tuple[float, float, float] = (i, j, k)) -> npt.NDArray[np.floating]:
            return np.asarray(ndimage.distance_transform_edt(~own, sampling=steps))

        timed("scipy's EDT (straight lines)", straight)
        for convention, weight in (("additive", BEST.weight), ("gradient-speed", 0.5)):
            arguments = (image, own, (i, j, k))
            options = {"convention": convention, "weight": weight}
            exact = timed(f"{convention}, Dijkstra", lambda a=arguments, o=options: exact_geodesic_distance(*a, **o))
            far = exact > 0
            for sweeps in (2, 4, 8):
                name = f"{convention}, {sweeps} pairs of scans"
                found = timed(name, lambda a=arguments, o=options, n=sweeps: geodesic_distance(*a, **o, sweeps=n))
                relative = found[far] / exact[far] - 1
                errors[name].append((float(relative.mean()), float(relative.max())))
    print(f"\nOne distance map, {len(voxels)} cases, {np.mean(voxels):.0f} voxels in the mean\n")
    print("| distance | CPU seconds | against EDT | against Dijkstra | relative error, mean | largest |")
    print("|---|---|---|---|---|---|")
    base = np.mean(seconds["scipy's EDT (straight lines)"])
    for name, spent in seconds.items():
        ratio = np.mean(seconds.get(f"{name.split(',')[0]}, Dijkstra", [np.nan])) / np.mean(spent)
        error = [f"{np.mean(column):.2%}" for column in zip(*errors[name], strict=True)] if errors[name] else ["", ""]
        faster = "" if np.isnan(ratio) else f"{ratio:.1f} x faster"
        cells = [name, f"{np.mean(spent):.4f}", f"{np.mean(spent) / base:.1f} x", faster, *error]
        print(f"| {' | '.join(cells)} |")


def grid_of(reach: Reach, own: Mask) -> npt.NDArray[np.float64]:
    """Seeds that are right, and seeds, for every pair of thresholds: ``[2, len(THRESHOLDS), len(RIVALS)]``."""
    counts = np.zeros((2, len(THRESHOLDS), len(RIVALS)))
    for number, threshold in enumerate(THRESHOLDS):
        near = reach.inner < threshold * reach.inner.max()
        share = reach.inner / (reach.inner + reach.faces)
        for row, chosen in enumerate((near & own, near)):
            counts[row, number] = np.searchsorted(np.sort(share[chosen]), RIVALS)
    return counts


def compare_points(cases: list[Case], whole: bool) -> None:
    """Print what each cost of a step makes of seven points a structure, at its best thresholds."""
    truths = [(case.labels > 0).astype(np.uint8) if whole else case.labels for case in cases]
    every = [seven_clicks(labels, case.image.spacing) for case, labels in zip(cases, truths, strict=True)]
    structures = [
        (case.image, labels == seven.label, seven)
        for case, labels, points in zip(cases, truths, every, strict=True)
        for seven in seven_points(points, case.image.shape)
    ]
    print(f"{len(structures)} structures, seven points each; mean over structures\n")
    print("| cost of a step | threshold | rival | precision | recall | Dice | precise in | correlation with EDT |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (convention, weight) in COSTS.items():
        settings = ExpansionSettings(convention, weight)
        counts, sizes, alike = [], [], []
        for image, own, seven in structures:
            reach = reach_of(image.array, image.spacing, seven, settings)
            counts.append(grid_of(reach, own[reach.box]))
            sizes.append(np.count_nonzero(own))
            straight = ndimage.distance_transform_edt(reach.inner > 0, sampling=image.spacing)
            alike.append(np.corrcoef(straight.ravel(), reach.inner.ravel())[0, 1])
        right, seeds = np.moveaxis(np.array(counts), 1, 0)
        size = np.array(sizes)[:, None, None]
        precision = np.where(seeds > 0, right / np.maximum(seeds, 1), 1.0)
        means = precision.mean(axis=0), (right / size).mean(axis=0), (2 * right / (seeds + size)).mean(axis=0)
        steady = (precision >= PRECISE).mean(axis=0)
        alone = np.arange(len(RIVALS)) == len(RIVALS) - 1
        for kind, allowed in (("both", True), ("threshold alone", alone)):
            good = np.where((means[0] >= PRECISE) & allowed, means[1], -1)
            _row(f"{name}, {kind}", np.unravel_index(good.argmax(), good.shape), (*means, steady), np.mean(alike))
        for kind, fixed in FIXED.items():
            if (fixed.convention, fixed.weight) == (convention, weight):
                place = THRESHOLDS.index(fixed.threshold), RIVALS.index(fixed.rival)
                _row(f"{name}, {kind}", place, (*means, steady), np.mean(alike))
    shares = []
    for case, labels, points in zip(cases, truths, every, strict=True):
        found = expand_points(case.image.array, case.image.spacing, points)
        shares.append([(labels[found == 0] == 0).mean(), *(np.mean(found == kind) for kind in (0, UNLABELLED))])
    means = np.mean(shares, axis=0)
    print(f"\nDefault: background {means[0]:.4f} right; {means[1]:.1%} background, {means[2]:.1%} undecided")


def _row(name: str, place: tuple[int, int], means: tuple[npt.NDArray[np.float64], ...], alike: float) -> None:
    cells = [f"{THRESHOLDS[place[0]]}", f"{RIVALS[place[1]]}", *(f"{column[place]:.3f}" for column in means)]
    print(f"| {name} | {' | '.join(cells)} | {alike:.3f} |", flush=True)


def main() -> None:
    """Measure every prompt with every cost and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--timed-cases", type=int, default=5)
    parser.add_argument("--points", action="store_true", help="expand seven points a structure instead")
    parser.add_argument("--whole", action="store_true", help="with --points: all structures are one")
    options = parser.parse_args()
    cases = list(training_cases(options.data, options.cases))
    if options.points:
        print(f"{len(cases)} training cases of {options.data.name}, one thread; nothing is random; ", end="")
        compare_points(cases, options.whole)
        return
    print(f"{len(cases)} training cases of {options.data.name}, one thread; nothing is random; mean over cases (sd)\n")
    print("| drawn | cost of a step | effort | strict effort | Dice, whole | Dice, structures | confidence | right |")
    print("|---|---|---|---|---|---|---|---|")
    drawn = [prompts_of(case) for case in cases]
    rows: dict[tuple[str, str], list[Figures]] = {}
    for prompt in drawn[0]:
        for method, settings in METHODS.items():
            rows[prompt, method] = found = [
                measure(case, named[prompt], settings) for case, named in zip(cases, drawn, strict=True)
            ]
            whole, structures = ([getattr(row, name) for row in found] for name in ("whole", "structures"))
            means = [
                *(f"{np.mean([getattr(row, name) for row in found]):.3f}" for name in ("effort", "strict")),
                *(f"{np.mean(values):.3f} ({np.std(values):.3f})" for values in (whole, structures)),
                *(f"{np.mean([getattr(row, name) for row in found]):.3f}" for name in ("confidence", "accuracy")),
            ]
            print(f"| {prompt} | {method}{' (default)' * (settings == BEST)} | {' | '.join(means)} |", flush=True)
    best = next(name for name, settings in METHODS.items() if settings == BEST)
    print("\nThe default against length alone, case by case (Wilcoxon signed-rank test, one-sided):\n")
    for prompt in drawn[0]:
        pair = (rows[prompt, best], rows[prompt, "length alone"])
        gain = np.array([one.structures - other.structures for one, other in zip(*pair, strict=True)])
        test = stats.wilcoxon(gain, alternative="greater")
        print(f"- {prompt}: {gain.mean():+.3f} Dice of structures, p = {test.pvalue:.1e}, n = {len(gain)}")
    time_distances(cases[: options.timed_cases])


if __name__ == "__main__":
    main()
