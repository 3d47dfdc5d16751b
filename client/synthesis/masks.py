"""New masks out of old ones: a label map, turned, stretched and bent a little, for images that a generator makes.

A generator that is handed the mask of a training image is asked for that image. So a mask is never handed on as it is,
nor is a structure lost on the way: both are looked at, not hoped for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from wardround.errors import DataError, UsageError

LabelArray = npt.NDArray[np.uint8]
Field = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DeformationSettings:
    """How far a mask may go from the one that it was made of.

    Lengths are fractions of the size of what is labelled: the geometric mean of the sides of its bounding box, in
    millimetres. A small organ in a large image is bent as much as the same organ in a crop.

    Parameters
    ----------
    rotation
        Standard deviation of the angle in each plane, in degrees.
    scale
        Standard deviation of the logarithm of the stretch along each axis.
    shear
        Standard deviation of the shear of one axis along another.
    shift
        Standard deviation of the translation along each axis, a fraction of the size.
    elastic
        Standard deviation of the elastic displacement along each axis, a fraction of the size. 0 for none.
    smoothness
        Width of the Gaussian that smooths the elastic displacement, a fraction of the size. With a displacement below
        a third of it hardly any point of the map folds.
    kept
        Share of its voxels that every structure keeps at least, 0 … 1: none is pushed out of the image or thinned away.
    attempts
        Draws before a mask is moved by one voxel only. Each is a little weaker than the one before.
    """

    rotation: float = 8.0
    scale: float = 0.1
    shear: float = 0.05
    shift: float = 0.05
    elastic: float = 0.05
    smoothness: float = 0.25
    kept: float = 0.5
    attempts: int = 12


def deformed(
    labels: LabelArray,
    rng: np.random.Generator,
    settings: DeformationSettings = DeformationSettings(),
    *,
    spacing: Sequence[float] | None = None,
) -> LabelArray:
    """Pull a label map through a random affine map and a random smooth displacement, both in millimetres.

    Every label is interpolated linearly by itself, and the strongest wins. Beyond the edge the edge continues, so that
    an organ that the image cuts off goes on to its border.

    Parameters
    ----------
    labels
        ``[*spatial]``, uint8, two or three axes, with at least two different values.
    rng
        The only source of randomness.
    settings
        How far.
    spacing
        Millimetres between voxel centres along each axis; None for 1.

    Returns
    -------
    numpy.ndarray
        ``[*spatial]``, uint8. It differs from `labels`, and holds exactly the values that `labels` holds.

    Raises
    ------
    DataError
        If there is one value only, or nothing can move without losing a structure.
    UsageError
        If `spacing` does not fit.
    """
    steps = np.ones(labels.ndim) if spacing is None else np.asarray(spacing, dtype=np.float64)
    if steps.shape != (labels.ndim,) or not (steps > 0).all():
        raise UsageError(
            f"a mask with {labels.ndim} axes cannot have the spacing {tuple(np.atleast_1d(steps).tolist())}",
            "every axis has one, in millimetres and above 0",
            "pass the spacing of the grid that the mask lies on",
        )
    values = np.unique(labels)
    if len(values) < 2:
        raise DataError(
            "a mask with one value only cannot be deformed",
            "it would stay as it is",
            "leave out slices that show no structure",
        )
    for attempt in range(settings.attempts):
        found = _pulled(labels, values, _map(labels, steps, settings, 1 - attempt / (settings.attempts + 1), rng))
        if _usable(found, labels, values, settings.kept):
            return found
    moves = [move for move in product((-1, 0, 1), repeat=labels.ndim) if any(move)]
    for index in rng.permutation(len(moves)):
        found = ndimage.shift(labels, moves[int(index)], order=0, mode="nearest")
        if _usable(found, labels, values, 0.0):
            return np.asarray(found, dtype=np.uint8)
    raise DataError(
        "this mask cannot be moved without losing a structure",
        "its structures lie at opposite borders of the image, one voxel deep",
        "leave the mask out, or cut it out with a margin",
    )


def _map(
    labels: LabelArray, steps: Field, settings: DeformationSettings, strength: float, rng: np.random.Generator
) -> Field:
    """``[axes, *spatial]``: where each voxel of the new mask lies in the old one, in voxels."""
    axes = labels.ndim
    places = np.argwhere(labels != 0)
    low, high = places.min(axis=0), places.max(axis=0)
    centre = (low + high) / 2
    size = float(np.exp(np.log((high - low + 1) * steps).mean()))

    matrix = np.diag(np.exp(rng.normal(0, settings.scale * strength, axes)))
    matrix = matrix + rng.normal(0, settings.shear * strength, (axes, axes)) * (1 - np.eye(axes))
    for first in range(axes):
        for second in range(first + 1, axes):
            angle = np.deg2rad(rng.normal(0, settings.rotation * strength))
            turn = np.eye(axes)
            turn[[first, second], [first, second]] = np.cos(angle)
            turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
            matrix = matrix @ turn
    shift = rng.normal(0, settings.shift * strength, axes) * size

    grid = np.stack(np.meshgrid(*(np.arange(side) for side in labels.shape), indexing="ij")).astype(np.float64)
    along = (slice(None), *(None,) * axes)
    away = (grid - centre[along]) * steps[along]
    moved = np.tensordot(matrix, away, axes=1) + shift[along]
    if settings.elastic > 0:
        widths = settings.smoothness * size / steps
        for axis in range(axes):
            field = ndimage.gaussian_filter(rng.standard_normal(labels.shape), widths, mode="reflect", truncate=3)
            spread = float(field.std())
            if spread > 0:
                moved[axis] += field / spread * (settings.elastic * strength * size)
    mapped: Field = moved / steps[along] + centre[along]
    return mapped


def _pulled(labels: LabelArray, values: LabelArray, places: Field) -> LabelArray:
    """The strongest label at `places`; the lowest of several that are equally strong."""
    best = np.full(labels.shape, -1.0)
    found = np.zeros_like(labels)
    for value in values:
        share = ndimage.map_coordinates((labels == value).astype(np.float64), places, order=1, mode="nearest")
        stronger = share > best
        best[stronger], found[stronger] = share[stronger], value
    return found


def _usable(found: LabelArray, labels: LabelArray, values: LabelArray, kept: float) -> bool:
    """Whether `found` is another mask, and every value in it still has its share of voxels, and at least one."""
    if np.array_equal(found, labels):
        return False
    before, after = (np.bincount(one.ravel(), minlength=256)[values] for one in (labels, found))
    return bool((after >= np.maximum(1, kept * before)).all())
