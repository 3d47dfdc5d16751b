"""From a handful of scribbled pixels or points to a vote for every voxel.

Every label spreads from its own seeds along geodesics of the image: a path is long where it is long in millimetres and
where it crosses edges. A voxel then votes for the labels in proportion to how near they are. Wang et al. 2018
(DeepIGeoS, arXiv 1707.00652) and Zhai et al. 2023 (PA-Seg, arXiv 2208.05669) expand scribbles and points by geodesic
distance; here every label competes, as in the geodesic segmentation of Bai and Sapiro 2009 (doi
10.1007/s11263-008-0191-z), so that no threshold on a distance is needed.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from wardround.client.annotation.geodesic import Convention, geodesic_distance
from wardround.client.annotation.prompts import UNLABELLED, Annotations, Labels3D, Shape, plane
from wardround.errors import UsageError

FloatArray = npt.NDArray[np.float32]
Spacing = tuple[float, float, float]

# Distances below this, in voxels of the finest axis, count as this: ratios stay finite at the seeds.
NEAREST = 1e-3


@dataclass(frozen=True)
class SeedSettings:
    """How seeds spread.

    Parameters
    ----------
    convention, weight, sweeps
        Of :func:`~wardround.client.annotation.geodesic.geodesic_distance`. Length is counted in voxels of the finest
        axis and intensity in robust standard deviations, see :func:`normalised`.
    smoothing
        Width of the Gaussian over the image before, in voxels of the finest axis: noise does not add up to edges.
    sharpness
        Exponent of the ratio of distances: votes are proportional to distance ** -sharpness. At 3 the larger vote is
        about the frequency with which it is right.
    reach
        Distance, in the units of the cost, over which confidence loses a factor of e.
    rival
        A structure is not looked for where it is more than so many times as far as background: with a sharpness of 3 a
        label that is 4 times as far has a vote of 0.02.

    The defaults were chosen on training cases by ``benchmarks/seeds.py``.
    """

    convention: Convention = "additive"
    weight: float = 0.95
    sweeps: int = 4
    smoothing: float = 0.5
    sharpness: float = 3.0
    reach: float = 100.0
    rival: float = float("inf")


# How many states of the seeds are kept: a step that is taken back, or two, costs nothing.
_STATES = 3

_Spread = dict[int, tuple[npt.NDArray[np.bool_], FloatArray]]


@dataclass(eq=False)
class SeedStore:
    """What spreading the seeds of one image needs again.

    Parameters
    ----------
    image
        As :func:`normalised` left it; None before the first time.
    states
        The last calls, newest last: by label its seeds and the distance of every voxel from them.
    """

    image: FloatArray | None = None
    states: list[_Spread] = field(default_factory=list)

    def start(self, seeds: Labels3D) -> _Spread:
        """The newest state of which nothing is gone, label by label; empty where background is gone from all.

        Distances of a structure may have been left out where background was near, so they hold no more than its do.
        """
        for state in reversed(self.states):
            if all(label or not (before & (seeds != label)).any() for label, (before, _) in state.items()):
                return {
                    label: (before, found)
                    for label, (before, found) in state.items()
                    if not (before & (seeds != label)).any()
                }
        return {}

    def keep(self, state: _Spread) -> None:
        """Remember one more state."""
        self.states = [*self.states, state][-_STATES:]


def seed_map(annotations: Annotations, shape: Shape) -> Labels3D:
    """The labels of all scribbles and points in one volume; the later prompt holds where two meet.

    Parameters
    ----------
    annotations
        Must lie in the image, see :meth:`~wardround.client.annotation.prompts.Annotations.checked`.
    shape
        ``(I, J, K)`` of the image.

    Returns
    -------
    Labels3D
        ``[I, J, K]``, uint8, :data:`~wardround.client.annotation.prompts.UNLABELLED` where nothing was drawn.
    """
    seeds = np.full(shape, UNLABELLED, dtype=np.uint8)
    for scribble in annotations.scribbles:
        where = plane(scribble.axis, scribble.index)
        seeds[where] = np.where(scribble.labels != UNLABELLED, scribble.labels, seeds[where])
    for point in annotations.points:
        seeds[point.index] = point.label
    return seeds


def drawn_labels(annotations: Annotations, shape: Shape) -> Labels3D:
    """All that was drawn in one volume: slices, and the scribbles and points that hold where they lie on one.

    Parameters and result are as of :func:`seed_map`.
    """
    labels = np.full(shape, UNLABELLED, dtype=np.uint8)
    for prompt in annotations.slices:
        labels[plane(prompt.axis, prompt.index)] = prompt.labels
    if annotations.scribbles or annotations.points:
        seeds = seed_map(annotations, shape)
        np.copyto(labels, seeds, where=seeds != UNLABELLED)
    return labels


def expand(
    image: FloatArray,
    spacing: Spacing,
    seeds: Labels3D,
    labels: int,
    settings: SeedSettings = SeedSettings(),
    *,
    store: SeedStore | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Spread every label from its seeds and let the labels compete for each voxel.

    Parameters
    ----------
    image
        ``[I, J, K]``, intensities in any unit.
    spacing
        Of the voxels along i, j, k, in millimetres.
    seeds
        ``[I, J, K]``, uint8: the label where something was drawn,
        :data:`~wardround.client.annotation.prompts.UNLABELLED` elsewhere. If no seed says background, the rim of the
        image does, see :func:`with_background`.
    labels
        Number of labels C including background.
    settings
        How seeds spread.
    store
        Of this very image, spacing and settings: distances are then taken up from the seeds of the last call. Scans
        that had to end before nothing changed are taken up as well, so that the result may be nearer the exact one.

    Returns
    -------
    probabilities
        ``[C, I, J, K]``, float32, sums to 1 over C; 1 for its label at a seed, 0 everywhere for a label without seeds.
    confidence
        ``[I, J, K]``, float32, 0 … 1: about the probability that the most probable label is right. 1 at a seed, falls
        with the distance to it, and at most 1/2 where two labels are equally near. Without any seed all is background
        with confidence 0.

    Raises
    ------
    UsageError
        If the shapes differ, a seed is not below `labels`, or the image is not finite.
    """
    _check(image, seeds, labels)
    probabilities = np.zeros((labels, *image.shape), dtype=np.float32)
    confidence = np.zeros(image.shape, dtype=np.float32)
    if (seeds == UNLABELLED).all():
        probabilities[0] = 1
        return probabilities, confidence
    finest = min(spacing)
    steps = (spacing[0] / finest, spacing[1] / finest, spacing[2] / finest)
    store = store or SeedStore()
    if store.image is None:
        store.image = normalised(image, steps, settings.smoothing)
    spread = with_background(seeds)
    distances = np.full(probabilities.shape, np.inf, dtype=np.float32)
    start, end = store.start(spread), _Spread()
    bound = None
    for label in range(labels):
        own = spread == label
        if label == 1 and np.isfinite(settings.rival):
            bound = np.float32(settings.rival) * distances[0]
        if own.any():
            distances[label] = geodesic_distance(
                store.image,
                own,
                steps,
                convention=settings.convention,
                weight=settings.weight,
                sweeps=settings.sweeps,
                known=start[label][1] if label in start else None,
                bound=bound,
            )
            end[label] = (own, distances[label])
    store.keep(end)
    nearest = distances.min(axis=0)
    np.divide(np.maximum(nearest, NEAREST), np.maximum(distances, NEAREST), out=probabilities)
    probabilities **= settings.sharpness
    probabilities /= probabilities.sum(axis=0)
    confidence[:] = probabilities.max(axis=0) * np.exp(-nearest / settings.reach)
    drawn = seeds != UNLABELLED
    probabilities[:, drawn] = seeds[drawn] == np.arange(labels, dtype=np.uint8)[:, None]
    confidence[drawn] = 1
    return probabilities, confidence


def normalised(image: FloatArray, steps: Spacing, smoothing: float) -> FloatArray:
    """Intensities in robust standard deviations round the median, a little smoothed.

    The deviation is a quarter of the way from the 2nd to the 98th percentile (which is about one standard deviation of
    normally distributed intensities), so that a few very bright voxels do not set the scale; beyond twice that way
    intensities are cut off. A change of scale or offset of the image changes nothing.

    Parameters
    ----------
    image
        ``[I, J, K]``.
    steps
        Spacing in voxels of the finest axis.
    smoothing
        Width of the Gaussian, in the same unit.
    """
    low, middle, high = np.percentile(image, (2, 50, 98))
    deviation = (high - low) / 4
    if deviation <= 0:
        deviation = float(np.std(image)) or 1.0
    scaled = np.clip((np.asarray(image, dtype=np.float32) - np.float32(middle)) / np.float32(deviation), -8, 8)
    if smoothing > 0:
        scaled = ndimage.gaussian_filter(scaled, [smoothing / step for step in steps], mode="nearest")
    return np.asarray(scaled, dtype=np.float32)


def with_background(seeds: Labels3D) -> Labels3D:
    """The same seeds, and background at the rim of the image if no seed says background.

    Who marks only the structure leaves open where it ends. The image (or the crop that is worked on) is larger than
    the structure as a rule, so its outermost voxels are taken for background, but not on a face that the structure is
    known to touch: one whose outermost slice holds a seed of a structure. An axis of fewer than three voxels has no
    inside, and its faces are left alone. Where nothing of the rim is left, the edges of the image are used.
    """
    if (seeds == 0).any():
        return seeds
    free = seeds == UNLABELLED
    rim = np.zeros(seeds.shape, dtype=bool)
    for axis, side in enumerate(seeds.shape):
        for index in (0, side - 1) if side > 2 else ():
            face = plane(axis, index)
            if free[face].all():
                rim[face] = True
    if not rim.any():
        faces = np.zeros(seeds.shape, dtype=np.uint8)
        for axis, side in enumerate(seeds.shape):
            for index in (0, side - 1) if side > 2 else ():
                faces[plane(axis, index)] += 1
        rim = faces >= 2
    return np.where(rim & free, np.uint8(0), seeds)


def beyond(shape: Shape, inner: tuple[slice, slice, slice]) -> npt.NDArray[np.bool_]:
    """Where a crop that is larger than the object's extent is surely background: its outermost voxels.

    Use these as background seeds where the extent is known, and not all that lies outside the extent: the object
    touches the extent's faces but seldom fills its corners, and a background that starts right there takes half the
    way to the first stroke of the object.

    Parameters
    ----------
    shape
        ``(I, J, K)`` of the crop.
    inner
        The extent within the crop; a side on which both end together has no background.

    Returns
    -------
    ndarray
        ``[I, J, K]``, bool.
    """
    rim = np.zeros(shape, dtype=bool)
    for axis, (side, within) in enumerate(zip(shape, inner, strict=True)):
        if within.start > 0:
            rim[plane(axis, 0)] = True
        if within.stop < side:
            rim[plane(axis, side - 1)] = True
    return rim


def _check(image: FloatArray, seeds: Labels3D, labels: int) -> None:
    if image.ndim != 3 or image.shape != seeds.shape:
        raise UsageError(
            f"seeds of shape {seeds.shape} do not fit an image of shape {image.shape}",
            "both must be volumes of one shape",
            "collect the seeds on the image that is propagated",
        )
    drawn = seeds[seeds != UNLABELLED]
    if labels < 2 or (drawn.size and int(drawn.max()) >= labels):
        raise UsageError(
            f"the seeds do not fit {labels} labels",
            "a stroke has a label that the plan does not know, or there is nothing beside background",
            "raise the number of labels",
        )
