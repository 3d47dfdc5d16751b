"""Cases and what an annotator gives for them.

Dense labels stay in :class:`~wardround.client.annotation.annotator.Truth`, which answers an annotator's questions; the
only other reader is the final metric (:func:`true_labels`).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from wardround.client.annotation.annotator import Truth
from wardround.client.annotation.effort import contour_effort, strict_effort
from wardround.client.annotation.prompts import (
    UNLABELLED,
    Annotations,
    ExtentPrompt,
    Labels3D,
    PointPrompt,
    SliceRequest,
    scribbles_of,
)
from wardround.client.annotation.propagation import propagate
from wardround.client.annotation.seeds import drawn_labels
from wardround.client.cases.dataset import Dataset, load_dataset, read_scribbles
from wardround.client.cases.nifti import read_image, read_labels, write_volume
from wardround.client.cases.phantoms import LABEL_NAMES, draw_phantom
from wardround.client.cases.volume import Volume
from wardround.client.learning.inference import normalise
from wardround.client.learning.replay import Sample
from wardround.client.learning.targets import spread_labels
from weak.seeds import SETTINGS, seeds_of

Index = tuple[int, int, int]

INNER = 5
"""Every fifth training case is held out where settings are chosen (``--inner``)."""


@dataclass(frozen=True)
class Split:
    """Case ids that are learnt from, and those that the last weights are tested on."""

    train: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Given:
    """What was given for a case.

    Parameters
    ----------
    known
        ``[I, J, K]``, the label of every voxel that the loss may know, 255 elsewhere.
    annotations
        What was drawn for it: it is charged.
    proxy
        ``[C, I, J, K]``, what was made of it for every voxel; None where the loss knows only what was drawn.
    """

    known: Labels3D
    annotations: Annotations
    proxy: npt.NDArray[np.float32] | None = None


def split_of(root: Path, inner: bool) -> Split:
    """The split of the data's file; `inner` splits its training cases instead and leaves its test cases alone."""
    listed = json.loads((root / "split.json").read_text())
    train, test = tuple(listed["train"]), tuple(listed["validation"])
    if not inner:
        return Split(train, test)
    held = train[::INNER]
    return Split(tuple(case for case in train if case not in held), held)


def load(root: Path) -> Dataset:
    """The data set below `root`."""
    return load_dataset(root)


def sample_of(  # noqa: PLR0917
    case: str, image: Volume, given: Given, labels: int, shrink: int = 1, slices: int = 1
) -> Sample:
    """What is learnt from a case: only `given` and the image, shrunk as :func:`pooled` does."""
    said = given.known == np.arange(labels)[:, None, None, None] if given.proxy is None else given.proxy
    shares = np.stack([pooled(part, shrink, slices) for part in said])
    known = shares.sum(axis=0) > 0
    shares /= np.where(known, shares.sum(axis=0), 1.0)
    first, second, third = image.spacing
    spacing = (first * shrink, second * shrink, third * slices)
    target = spread_labels(shares.astype(np.float16), known, spacing)
    weight = known.astype(np.float16)
    drawn = pooled(drawn_labels(given.annotations, image.shape) != UNLABELLED, shrink, slices) > 0
    # Padding at full weight would drown a few drawn voxels.
    padding = min(1.0, float(weight.mean(dtype=np.float64)))
    shrunk = pooled(normalise(image.array), shrink, slices).astype(np.float32)
    dense = given.proxy is None and known.all()
    return Sample(case, shrunk, target, weight, drawn | dense, spacing, padding)


def pooled(array: npt.NDArray[Any], shrink: int, slices: int = 1) -> npt.NDArray[np.float64]:
    """Means over blocks of `shrink` by `shrink` voxels in plane and `slices` across; the last ones are repeated."""
    blocks = (shrink, shrink, slices)
    padding = [(0, -side % block) for side, block in zip(array.shape, blocks, strict=True)]
    whole = np.pad(array, padding, mode="edge").astype(np.float64)
    rows, columns, depth = (side // block for side, block in zip(whole.shape, blocks, strict=True))
    return np.asarray(whole.reshape(rows, shrink, columns, shrink, depth, slices).mean(axis=(1, 3, 5)))


def _dense(dataset: Dataset, case: str, truth: Truth, image: Volume) -> Given:
    slices = tuple(truth.slice(SliceRequest(2, index)) for index in range(image.shape[2]))
    annotations = Annotations(slices=slices)
    return Given(drawn_labels(annotations, image.shape), annotations)


def _scribbles(dataset: Dataset, case: str, truth: Truth, image: Volume) -> Given:
    """An expert's strokes where the data set has them; otherwise simulated ones on every slice, always the same."""
    if dataset.cases[case].scribble is not None:
        annotations = Annotations(scribbles=scribbles_of(read_scribbles(dataset, case).array))
    else:
        rng = np.random.default_rng([_number(case), 17])
        strokes = tuple(truth.strokes(SliceRequest(2, index), rng) for index in range(image.shape[2]))
        annotations = Annotations(scribbles=strokes)
    return Given(drawn_labels(annotations, image.shape), annotations)


def _slices(dataset: Dataset, case: str, truth: Truth, image: Volume) -> Given:
    """Four slices, evenly through the extent; beyond the extent there is background."""
    extent = truth.extent()
    if extent is None:
        return Given(np.zeros(image.shape, dtype=np.uint8), Annotations())
    low, high = extent.lower[2], extent.upper[2]
    chosen = sorted({round(low + (high - low) * (number + 0.5) / 4) for number in range(4)})
    annotations = Annotations(slices=tuple(truth.slice(SliceRequest(2, at)) for at in chosen), extent=extent)
    known = drawn_labels(annotations, image.shape)
    inside = tuple(slice(first, last + 1) for first, last in zip(extent.lower, extent.upper, strict=True))
    beyond = np.ones(image.shape, dtype=bool)
    beyond[inside] = False
    known[beyond & (known == UNLABELLED)] = 0
    return Given(known, annotations)


def _points(dataset: Dataset, case: str, truth: Truth, image: Volume) -> Given:
    annotations = Annotations(points=truth.points())
    return Given(drawn_labels(annotations, image.shape), annotations)


def _expanded(name: str) -> Callable[[Dataset, str, Truth, Volume], Given]:
    def expand(dataset: Dataset, case: str, truth: Truth, image: Volume) -> Given:
        annotations = Annotations(points=truth.points())
        return Given(seeds_of(name, image, annotations.points), annotations)

    return expand


def _points_and_slices(
    axes: tuple[int, ...], how: Literal["drawn", "spread", "propagated"]
) -> Callable[[Dataset, str, Truth, Volume], Given]:
    """Seven points a structure, one slice of each of `axes` through the middle of their box; beyond it, background.

    The points are ``spread`` by geodesic distance, or all is ``propagated`` to a dense soft mask, as in the loop.
    """

    def give(dataset: Dataset, case: str, truth: Truth, image: Volume) -> Given:
        points = truth.points()
        low, high = box_of(points)
        middle = [(first + last) // 2 for first, last in zip(low, high, strict=True)]
        slices = tuple(truth.slice(SliceRequest(axis, middle[axis])) for axis in axes)
        annotations = Annotations(slices=slices, points=points)
        known = drawn_labels(annotations, image.shape)
        if how == "propagated":
            # Seven points a structure tell the extent: nobody clicks it again.
            enclosed = replace(annotations, extent=ExtentPrompt(low, high))
            labels = len(dataset.label_names)
            return Given(known, annotations, propagate(image, enclosed, labels).probabilities)
        if how == "spread":
            seeds = seeds_of("geodesic", image, points)
            return Given(np.where(known == UNLABELLED, seeds, known), annotations)
        beyond = np.ones(image.shape, dtype=bool)
        beyond[tuple(slice(first, last + 1) for first, last in zip(low, high, strict=True))] = False
        known[beyond & (known == UNLABELLED)] = 0
        return Given(known, annotations)

    return give


def box_of(points: tuple[PointPrompt, ...]) -> tuple[Index, Index]:
    """First and last voxel along each axis between the outermost points."""
    places = np.array([point.index for point in points])
    low, high = places.min(axis=0), places.max(axis=0)
    return (int(low[0]), int(low[1]), int(low[2])), (int(high[0]), int(high[1]), int(high[2]))


KINDS: dict[str, Callable[[Dataset, str, Truth, Volume], Given]] = {
    "dense": _dense,
    "scribbles": _scribbles,
    "slices": _slices,
    "points": _points,
    **{name: _expanded(name) for name in SETTINGS},
    "points+slice": _points_and_slices((2,), "drawn"),
    "geodesic, slice": _points_and_slices((2,), "spread"),
    "geodesic, 3 slices": _points_and_slices((0, 1, 2), "spread"),
    "proxy, slice": _points_and_slices((2,), "propagated"),
    "proxy, 3 slices": _points_and_slices((0, 1, 2), "propagated"),
}


def samples(
    dataset: Dataset, cases: tuple[str, ...], kind: str, shrink: int = 1
) -> tuple[list[Sample], dict[str, float]]:
    """What is learnt from `cases` under one kind of label, and the mean effort a case as fractions of a full one."""
    found, contour, strict = [], [], []
    for case in cases:
        files = dataset.cases[case]
        assert files.label is not None
        image, truth = read_image(files.image), Truth(read_labels(files.label))
        given = KINDS[kind](dataset, case, truth, image)
        found.append(sample_of(case, image, given, len(dataset.label_names), shrink))
        full, full_strict = truth.full_effort()
        contour.append(contour_effort(given.annotations) / max(full, 1.0))
        strict.append(strict_effort(given.annotations) / max(full_strict, 1.0))
    return found, {"contour": float(np.mean(contour)), "strict": float(np.mean(strict))}


def true_labels(dataset: Dataset, case: str) -> npt.NDArray[np.uint8]:
    """For the final metric alone."""
    label = dataset.cases[case].label
    assert label is not None
    return np.asarray(read_labels(label).array, dtype=np.uint8)


def draw_phantoms(folder: Path, train: int, test: int, shape: tuple[int, int, int], seed: int = 0) -> Path:
    """A small data set of phantoms with strokes, in the layout of the real one; kept if it is there."""
    if (folder / "dataset.json").exists():
        return folder
    names, entries = [], []
    for number in range(train + test):
        rng = np.random.default_rng([seed, number])
        image, labels = draw_phantom(rng, shape)
        truth = Truth(labels)
        strokes = np.stack([truth.strokes(SliceRequest(2, k), rng).labels for k in range(shape[2])], axis=2)
        name = f"phantom_{number:03d}"
        entry = {}
        for key, where, volume in (
            ("image", "imagesTr", image),
            ("label", "labelsTr", labels),
            ("scribble", "scribblesTr", labels.with_array(strokes)),
        ):
            (folder / where).mkdir(parents=True, exist_ok=True)
            write_volume(folder / where / f"{name}.nii.gz", volume)
            entry[key] = f"./{where}/{name}.nii.gz"
        names.append(name)
        entries.append(entry)
    split = {"train": names[:train], "validation": names[train:]}
    (folder / "split.json").write_text(json.dumps(split, indent=1))
    described = {str(number): name for number, name in enumerate(LABEL_NAMES)}
    description = {"name": "phantoms", "labels": described, "scribble_ignore_value": UNLABELLED, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(description, indent=1))
    return folder


def _number(case: str) -> int:
    return int.from_bytes(case.encode()[-6:], "big")
