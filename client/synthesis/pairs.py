"""Pairs of an image and its labels on a generator's grid: cut from samples, and turned into samples again.

All pairs of a generator have one shape. A sample is stretched to fill it, each axis by its own factor, and what is
made on the grid is stretched back to the shape of the sample that its labels came from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from wardround.client.learning.replay import Sample

# Less of a slice or a volume known than this share, and it makes no pair: a generator would learn gaps as background.
KNOWN = 0.9

# What the names of synthetic samples begin with: no case of a site is called so.
SYNTHETIC = "synthetic/"


@dataclass(frozen=True, eq=False)
class Pair:
    """An image and what is drawn in it, on a generator's grid.

    Parameters
    ----------
    case_id
        The case that it comes from.
    image
        ``[*spatial]`` with two or three axes, float32, in the intensities of the normalised volume.
    labels
        ``[*spatial]``, uint8, 0 for background.
    position
        Which slice along the last axis of the case; 0 for a volume.
    """

    case_id: str
    image: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]
    position: int = 0


def grid_of(shape: Sequence[int], dimensions: int, side: int, stride: int) -> tuple[int, ...]:
    """The grid for samples like one of `shape`.

    Parameters
    ----------
    shape
        Voxels along i, j, k.
    dimensions
        Spatial axes of the generator: one with two sees slices across k.
    side
        Longest side of the grid in voxels; what is smaller is not enlarged.
    stride
        All sides of the grid are multiples of it, rounded to the nearest and at least two.

    Returns
    -------
    tuple of int
        As many sides as `dimensions`.
    """
    sides = np.array(shape[:dimensions])
    scaled = sides * min(1.0, side / int(sides.max()))
    first, *others = (stride * max(2, round(float(own) / stride)) for own in scaled)
    return (first, *others)


def pairs_of(sample: Sample, grid: tuple[int, ...], smallest: int = 1) -> list[Pair]:
    """The pairs of one sample.

    Parameters
    ----------
    sample
        Its labels are the most likely ones of its target. What counts for nothing is not known.
    grid
        Sides of the pairs, of :func:`grid_of`. Two: a pair for each slice across k. Three: one for the volume.
    smallest
        Slices with fewer voxels of structures on the grid are left out; 0 takes all. A volume is taken in any case.

    Returns
    -------
    list of Pair
        In the order of the slices; empty where less than :data:`KNOWN` of each is known.
    """
    labels = sample.target.argmax(axis=0).astype(np.uint8)
    known = sample.weight > 0
    if len(grid) == 3:
        if known.mean() < KNOWN:
            return []
        return [Pair(sample.case_id, resized(sample.image, grid), resized_labels(labels, grid))]
    found = []
    for position in range(sample.image.shape[2]):
        if known[..., position].mean() < KNOWN or np.count_nonzero(labels[..., position]) < smallest:
            continue
        own = resized_labels(labels[..., position], grid)
        if np.count_nonzero(own) >= smallest:
            found.append(Pair(sample.case_id, resized(sample.image[..., position], grid), own, position))
    return found


def synthetic_sample(
    name: str,
    image: npt.NDArray[np.float32],
    labels: npt.NDArray[np.uint8],
    *,
    classes: int,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    weight: float,
) -> Sample:
    """What a generator made, as something to learn from.

    Parameters
    ----------
    name
        What tells it from others; :data:`SYNTHETIC` comes before it.
    image
        On the generator's grid: ``[I, J, K]``; ``[I, J]`` becomes a single slice; slices of one case can be stacked
        along a last axis.
    labels
        Like `image`: the labels that it was made from. They are taken to be right everywhere.
    classes
        Labels including background.
    shape, spacing
        Of the sample; the last side of `shape` is 1 for a single slice.
    weight
        γ: how much the sample counts as a whole.
    """
    if image.ndim == 2:
        image, labels = image[..., None], labels[..., None]
    drawn = resized_labels(labels, shape)
    target = np.stack([drawn == label for label in range(classes)]).astype(np.float16)
    counts = np.ones(shape, dtype=np.float16)
    everywhere = np.ones(shape, dtype=bool)
    return Sample(SYNTHETIC + name, resized(image, shape), target, counts, everywhere, spacing, factor=weight)


def is_synthetic(sample: Sample) -> bool:
    """Whether `sample` was made by :func:`synthetic_sample`."""
    return sample.case_id.startswith(SYNTHETIC)


def stacked(pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """Images ``[N, 1, *spatial]``, float32, and labels ``[N, *spatial]``, int64, of pairs on one grid."""
    images = torch.from_numpy(np.stack([pair.image for pair in pairs]))[:, None]
    labels = torch.from_numpy(np.stack([pair.labels for pair in pairs]).astype(np.int64))
    return images, labels


def resized(image: npt.NDArray[np.float32], shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """Stretch an image ``[*spatial]`` to `shape`, linearly; what becomes smaller is smoothed first."""
    values = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))
    for axis, side in enumerate(shape):
        if values.shape[axis] != side:
            values = _along(values, axis, side)
    return np.asarray(values.numpy(), dtype=np.float32)


def resized_labels(labels: npt.NDArray[np.uint8], shape: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Stretch labels ``[*spatial]`` to `shape`: a voxel gets the label that has most of it, the lowest of equals."""
    if labels.shape == tuple(shape):
        return labels.copy()
    present = np.unique(labels)
    shares = np.stack([resized((labels == label).astype(np.float32), shape) for label in present])
    return np.asarray(present[shares.argmax(axis=0)], dtype=np.uint8)


def _along(values: Tensor, axis: int, side: int) -> Tensor:
    """Resample along one axis: the other axes together are rows of a plane that stay as they are."""
    rows = values.movedim(axis, -1)
    plane = rows.reshape(1, 1, -1, rows.shape[-1])
    plane = functional.interpolate(plane, (plane.shape[2], side), mode="bilinear", align_corners=False, antialias=True)
    return plane.reshape(*rows.shape[:-1], side).movedim(-1, axis).contiguous()
