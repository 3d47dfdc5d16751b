"""From a few drawn slices to a soft 3D mask: the proxy that a network learns from.

Every plane on which slices are drawn gives a vote for each voxel. A vote comes from registration (both neighbouring
drawn slices are registered to the slice between them and their labels are pulled along; Tian et al. 2023, arXiv
2312.06072, with two neighbours instead of one) and from shape (signed distances of the neighbours' contours are
interpolated; Raya and Udupa 1990). The votes are averaged with weights that fall with the distance to the plane's
nearest drawn slice.

The drawn slices are the only labels that this module sees.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from wardround.client.annotation.prompts import Annotations, ExtentPrompt
from wardround.client.annotation.registration import DemonsSettings, register, warp
from wardround.client.cases.volume import Volume
from wardround.errors import UsageError

FloatArray = npt.NDArray[np.float32]
Box = tuple[slice, slice, slice]

# Weight of a vote however far the nearest drawn slice is.
FAR = 1e-4
# Confidence in background where no drawn slice shows the object, if the extent is not known.
UNSEEN = 0.5


@dataclass(frozen=True, eq=False)
class ProxyMask:
    """A dense guess from sparse drawings.

    Parameters
    ----------
    probabilities
        ``[C, I, J, K]``, float32, sums to 1 over C at every voxel; 0 or 1 on drawn slices.
    annotated
        ``[I, J, K]``, bool: voxels on drawn slices.
    confidence
        ``[I, J, K]``, float32, 0 (a guess) … 1 (drawn): falls with the distance to drawn slices and with disagreement
        between votes.
    """

    probabilities: FloatArray
    annotated: npt.NDArray[np.bool_]
    confidence: FloatArray

    @property
    def labels(self) -> npt.NDArray[np.uint8]:
        """``[I, J, K]``, uint8: the most probable label of every voxel."""
        return np.asarray(np.argmax(self.probabilities, axis=0), dtype=np.uint8)


@dataclass(frozen=True)
class PropagationSettings:
    """How votes are made and merged.

    Parameters
    ----------
    registration
        ``demons``, ``sitk`` (reference) or ``none``.
    shape_weight
        Weight of the shape vote beside the registration vote, at no distance.
    reach, shape_reach
        Distance from a drawn slice, in voxels of the finest axis, over which a plane's registration (shape) vote loses
        a factor of e.
    smoothing
        Width of the Gaussian over the merged votes, in voxels of the finest axis: planes meet without steps.
    margin
        Voxels round the extent that registration sees.
    demons
        Of the registration.
    """

    registration: str = "demons"
    shape_weight: float = 0.5
    reach: float = 2.0
    shape_reach: float = 1.0
    smoothing: float = 0.5
    margin: int = 4
    demons: DemonsSettings = field(default_factory=DemonsSettings)


@dataclass(eq=False)
class PropagationCache:
    """Displacements of slice pairs of one case, so that a next round registers only pairs that are new.

    One cache belongs to one image and one setting; it empties itself where the crop changes.
    """

    _box: tuple[int, ...] = ()
    _fields: dict[tuple[int, int, int], torch.Tensor] = field(default_factory=dict)

    def open(self, box: Box) -> dict[tuple[int, int, int], torch.Tensor]:
        """Displacements by (axis, moving index, fixed index) within the crop `box`."""
        key = tuple(bound for side in box for bound in (side.start, side.stop))
        if key != self._box:
            self._box, self._fields = key, {}
        return self._fields

    def __len__(self) -> int:
        return len(self._fields)


def propagate(
    image: Volume,
    annotations: Annotations,
    labels: int,
    *,
    settings: PropagationSettings = PropagationSettings(),
    cache: PropagationCache | None = None,
) -> ProxyMask:
    """Turn drawn slices into a soft 3D mask.

    Parameters
    ----------
    image
        Intensities ``[I, J, K]``.
    annotations
        Drawn slices and, where given, the extent; outside the extent everything is background.
    labels
        Number of classes C including background.
    settings
        How votes are made and merged.
    cache
        Of this case; the result is the same with and without.

    Returns
    -------
    ProxyMask
        On the grid of `image`. Without any drawn slice it is background with confidence 0.

    Raises
    ------
    UsageError
        If a drawn slice does not fit the image or holds a label that is not below `labels`.
    """
    _check(image.shape, annotations, labels)
    shape = image.shape
    probabilities = np.zeros((labels, *shape), dtype=np.float32)
    probabilities[0] = 1
    confidence = np.zeros(shape, dtype=np.float32)
    annotated = np.zeros(shape, dtype=bool)
    if annotations.slices:
        confidence.fill(UNSEEN if annotations.extent is None else 1)
        box, inner = _boxes(shape, annotations, settings.margin)
        if inner is not None:
            crop = np.ascontiguousarray(image.array[box], dtype=np.float32)
            fields = {} if cache is None else cache.open(box)
            merged, sure = _merge(_Scene(crop, box, image.spacing, labels, settings, fields), annotations)
            local = tuple(slice(i.start - b.start, i.stop - b.start) for i, b in zip(inner, box, strict=True))
            probabilities[(slice(None), *inner)] = merged[(slice(None), *local)]
            confidence[inner] = sure[local]
    for prompt in annotations.slices:
        where = _plane(prompt.axis, prompt.index)
        probabilities[(slice(None), *where)] = _one_hot(prompt.labels, labels)
        annotated[where] = True
    confidence[annotated] = 1
    return ProxyMask(probabilities, annotated, confidence)


def _check(shape: tuple[int, int, int], annotations: Annotations, labels: int) -> None:
    extent = annotations.extent
    if extent is not None and not all(
        0 <= low <= high < side for low, high, side in zip(extent.lower, extent.upper, shape, strict=True)
    ):
        raise UsageError(
            f"the extent {extent.lower} to {extent.upper} does not lie in an image of shape {shape}",
            "it was given on another case, or its corners are swapped",
            "give the extent on the case that is propagated",
        )
    for prompt in annotations.slices:
        expected = tuple(side for axis, side in enumerate(shape) if axis != prompt.axis)
        if prompt.labels.shape != expected or not 0 <= prompt.index < shape[prompt.axis]:
            raise UsageError(
                f"a drawn slice on axis {prompt.axis} at {prompt.index} does not fit an image of shape {shape}",
                "it was drawn on another case",
                "draw on the case that is propagated",
            )
        if prompt.labels.size and int(prompt.labels.max()) >= labels:
            raise UsageError(
                f"a drawn slice holds label {int(prompt.labels.max())}, the plan knows {labels} labels",
                "the drawing has more structures than the plan",
                "raise the number of labels or draw fewer structures",
            )


def _plane(axis: int, index: int) -> tuple[slice | int, ...]:
    return (slice(None),) * axis + (index,)


def _one_hot(labels: npt.NDArray[np.uint8], classes: int) -> FloatArray:
    """``[C, H, W]`` float32."""
    return np.asarray(labels[None] == np.arange(classes, dtype=np.uint8)[:, None, None], dtype=np.float32)


def _extent_box(extent: ExtentPrompt) -> Box:
    bounds = zip(extent.lower, extent.upper, strict=True)
    i, j, k = (slice(low, high + 1) for low, high in bounds)
    return i, j, k


def _boxes(shape: tuple[int, int, int], annotations: Annotations, margin: int) -> tuple[Box, Box | None]:
    """The crop that registration sees, and the box inside it that may hold an object (None: there is no object)."""
    if annotations.extent is not None:
        inner = _extent_box(annotations.extent)
        return _grown(inner, shape, margin), inner
    # Without an extent, what was drawn tells how far the object reaches within the drawn planes.
    bounds: list[list[int]] = [[], [], []]
    for prompt in annotations.slices:
        others = [axis for axis in range(3) if axis != prompt.axis]
        found = prompt.labels > 0
        if not found.any():
            continue
        for position, axis in enumerate(others):
            along = np.flatnonzero(found.any(axis=1 - position))
            bounds[axis] += [int(along[0]), int(along[-1])]
        bounds[prompt.axis] += [prompt.index]
    if not any(bounds):
        return (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])), None
    sides = []
    for axis in range(3):
        seen_across = any(prompt.axis != axis and prompt.labels.any() for prompt in annotations.slices)
        single = all(prompt.axis == axis for prompt in annotations.slices)
        if single or not seen_across:
            sides.append(slice(0, shape[axis]))
            continue
        low, high = min(bounds[axis]), max(bounds[axis])
        slack = max((high - low + 1) // 4, 4)
        sides.append(slice(max(low - slack, 0), min(high + 1 + slack, shape[axis])))
    inner = (sides[0], sides[1], sides[2])
    return _grown(inner, shape, margin), inner


def _grown(box: Box, shape: tuple[int, int, int], margin: int) -> Box:
    i, j, k = (
        slice(max(side.start - margin, 0), min(side.stop + margin, whole))
        for side, whole in zip(box, shape, strict=True)
    )
    return i, j, k


@dataclass(frozen=True, eq=False)
class _Neighbours:
    """For every slice of a plane: the drawn slices below and above, as positions in the list of drawn slices.

    `fraction` is the way from the lower to the upper, 0 … 1; `distance` that to the nearer one, in voxels of the finest
    axis.
    """

    lower: npt.NDArray[np.int_]
    upper: npt.NDArray[np.int_]
    fraction: FloatArray
    distance: FloatArray


def _neighbours(positions: npt.NDArray[np.int_], length: int, step: float) -> _Neighbours:
    targets = np.arange(length)
    upper = np.minimum(np.searchsorted(positions, targets), len(positions) - 1)
    lower = np.maximum(np.searchsorted(positions, targets, side="right") - 1, 0)
    span = positions[upper] - positions[lower]
    fraction = np.where(span > 0, (targets - positions[lower]) / np.maximum(span, 1), 0)
    distance = np.minimum(np.abs(targets - positions[lower]), np.abs(targets - positions[upper])) * step
    return _Neighbours(lower, upper, fraction.astype(np.float32), distance.astype(np.float32))


@dataclass(frozen=True, eq=False)
class _Scene:
    """What all votes of one case share: the cropped image, where it lies, and what is already registered."""

    image: FloatArray
    box: Box
    spacing: tuple[float, float, float]
    labels: int
    settings: PropagationSettings
    fields: dict[tuple[int, int, int], torch.Tensor]


@dataclass(frozen=True, eq=False)
class _DrawnPlane:
    """The drawn slices of one plane: ``[M, C, H, W]`` one-hot within the crop, and their positions relative to it.

    A position may lie beyond the crop: such a slice still bounds the object, but there is no image to register.
    `beyond` holds for every slice of the crop how far it lies on the way from the outermost drawn slice (0) to the
    first slice outside the extent (1); 0 where no extent is known.
    """

    axis: int
    positions: npt.NDArray[np.int_]
    drawings: FloatArray
    spacing: tuple[float, float]
    beyond: FloatArray


def _drawn_plane(scene: _Scene, annotations: Annotations, axis: int) -> _DrawnPlane:
    prompts = annotations.on_axis(axis)
    first, second = (other for other in range(3) if other != axis)
    window = (scene.box[first], scene.box[second])
    indices = np.array([prompt.index for prompt in prompts])
    beyond = np.zeros(scene.image.shape[axis], dtype=np.float32)
    if annotations.extent is not None:
        targets = np.arange(scene.box[axis].start, scene.box[axis].stop)
        below = (indices[0] - targets) / max(indices[0] - annotations.extent.lower[axis] + 1, 1)
        above = (targets - indices[-1]) / max(annotations.extent.upper[axis] + 1 - indices[-1], 1)
        beyond = np.clip(np.maximum(below, above), 0, 1).astype(np.float32)
    return _DrawnPlane(
        axis,
        indices - scene.box[axis].start,
        np.stack([_one_hot(prompt.labels[window], scene.labels) for prompt in prompts]),
        (scene.spacing[first], scene.spacing[second]),
        beyond,
    )


def _merge(scene: _Scene, annotations: Annotations) -> tuple[FloatArray, FloatArray]:
    """Average the votes of all planes within the crop: probabilities ``[C, ...]`` and confidence."""
    settings, shape = scene.settings, scene.image.shape
    finest = min(scene.spacing)
    planes = [axis for axis in range(3) if annotations.on_axis(axis)]
    total = np.zeros((scene.labels, *shape), dtype=np.float32)
    weights = np.zeros(shape, dtype=np.float32)
    nearest = np.full(shape, np.inf, dtype=np.float32)
    for axis in planes:
        plane = _drawn_plane(scene, annotations, axis)
        near = _neighbours(plane.positions, shape[axis], scene.spacing[axis] / finest)
        along = [-1 if other == axis else 1 for other in range(3)]
        distance = near.distance.reshape(along)
        if settings.registration != "none":
            weight = np.exp(-distance / settings.reach) + FAR
            total += weight * np.moveaxis(_registration_vote(scene, plane, near), 0, axis + 1)
            weights += weight
        if settings.shape_weight:
            near_weight = np.exp(-distance / settings.shape_reach)
            # Beyond the outermost drawn slices the extent is known to the shape vote alone, so it counts longer there.
            end_weight = np.exp(-distance / settings.reach) * (plane.beyond.reshape(along) > 0)
            weight = settings.shape_weight * np.maximum(near_weight, end_weight) + FAR * FAR
            total += weight * np.moveaxis(_shape_vote(plane, near, finest), 0, axis + 1)
            weights += weight
        nearest = np.minimum(nearest, distance)
    total /= weights
    if settings.smoothing:
        widths = [settings.smoothing * finest / step for step in scene.spacing]
        total = ndimage.gaussian_filter(total, (0, *widths), mode="nearest", truncate=3)
    return total, np.asarray(total.max(axis=0) * np.exp(-nearest / 8), dtype=np.float32)


def _registration_vote(scene: _Scene, plane: _DrawnPlane, near: _Neighbours) -> FloatArray:
    """``[N, C, H, W]``: drawings of both neighbours, pulled to every slice and blended by distance."""
    slices = np.ascontiguousarray(np.moveaxis(scene.image, plane.axis, 0))
    vote = np.zeros((len(slices), *plane.drawings.shape[1:]), dtype=np.float32)
    pairs: list[tuple[int, int, float]] = []
    for target in range(len(slices)):
        ends = ((near.lower[target], 1 - near.fraction[target]), (near.upper[target], near.fraction[target]))
        for which, share in ends:
            inside = 0 <= plane.positions[which] < len(slices)
            if plane.positions[which] == target or not inside or not plane.drawings[which, 1:].any():
                vote[target] += share * plane.drawings[which]
            elif share > 0:
                pairs.append((int(which), target, float(share)))
    if not pairs:
        return vote
    keys = [(plane.axis, int(plane.positions[which]), target) for which, target, _ in pairs]
    missing = [key for key in keys if key not in scene.fields]
    if missing:
        moving, fixed = (torch.from_numpy(slices[[key[end] for key in missing]]) for end in (1, 2))
        found = register(
            moving, fixed, plane.spacing, settings=scene.settings.demons, backend=scene.settings.registration
        )
        scene.fields.update(zip(missing, found, strict=True))
    displacement = torch.stack([scene.fields[key] for key in keys])
    drawings = torch.from_numpy(plane.drawings[[which for which, _, _ in pairs]])
    for (_, target, share), pulled in zip(pairs, warp(drawings, displacement).numpy(), strict=True):
        vote[target] += share * pulled
    return vote


def _shape_vote(plane: _DrawnPlane, near: _Neighbours, finest: float) -> FloatArray:
    """``[N, C, H, W]``: interpolate signed distances between the neighbours, then softmax.

    Beyond the outermost drawn slices the shape shrinks linearly until its deepest pixel is gone at the extent's end.
    """
    depths = np.stack([_signed_distances(drawing, plane.spacing) for drawing in plane.drawings]) / finest
    fraction = near.fraction[:, None, None, None]
    between = (1 - fraction) * depths[near.lower] + fraction * depths[near.upper]
    deepest = np.maximum(depths[:, 1:].max(axis=(1, 2, 3)), 0)
    shrunk = (plane.beyond * deepest[near.lower])[:, None, None, None]
    between[:, :1] += shrunk
    between[:, 1:] -= shrunk
    between = np.exp(2 * (between - between.max(axis=1, keepdims=True)))
    return np.asarray(between / between.sum(axis=1, keepdims=True), dtype=np.float32)


def _signed_distances(drawing: FloatArray, spacing: tuple[float, float]) -> FloatArray:
    """``[C, H, W]``: distance to the region's border, positive inside; a label that is absent is as deep outside as
    the slice's deepest structure is inside, so that a structure which ends between two slices ends half-way."""
    depths = np.empty_like(drawing)
    for label, region in enumerate(drawing > 0.5):
        if region.all() or not region.any():
            depths[label] = np.nan
            continue
        inside = ndimage.distance_transform_edt(region, sampling=spacing)
        outside = ndimage.distance_transform_edt(~region, sampling=spacing)
        depths[label] = np.where(region, inside, -outside) - np.where(region, 0.5, -0.5) * min(spacing)
    whole = np.isnan(depths).all(axis=(1, 2))
    limit = 10 * min(spacing)
    depths[whole] = np.where(drawing[whole] > 0.5, limit, -limit)
    return np.clip(depths, -limit, limit)
