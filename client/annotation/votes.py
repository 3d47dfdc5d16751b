"""What every drawn plane, stroke and model says about every voxel, before it is merged to a proxy.

Four votes. Registration: both neighbouring drawn slices are registered to the slice between them and their labels are
pulled along (Tian et al. 2023, arXiv 2312.06072, with two neighbours instead of one). Shape: signed distances of the
neighbours' contours are interpolated (Raya and Udupa 1990, "Shape-based interpolation of multidimensional objects").
Seeds: strokes and points grow along geodesics of the image. Model: the network's own prediction, as it is.

All slice pairs of all planes that have one shape and spacing are registered in one batch. Registration and shape votes
are kept slice by slice in a :class:`VoteStore`, so that a new drawing costs only the slices between its neighbours.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from wardround.client.annotation.crop import Box
from wardround.client.annotation.prompts import UNLABELLED, Annotations
from wardround.client.annotation.registration import DemonsSettings, register
from wardround.client.annotation.sampling import warp
from wardround.client.annotation.seeds import SeedSettings, SeedStore, expand, seed_map

FloatArray = npt.NDArray[np.float32]
LabelArray = npt.NDArray[np.uint8]
PairKey = tuple[int, int, int]
# What a slice's vote depends on: both neighbouring drawings (position and digest) and the way to the extent's end.
VoteKey = tuple[tuple[int, bytes], tuple[int, bytes], float, float]

# Signed distances are cut off at this many pixels of the slice's finer axis.
DEEPEST = 10.0
# How strokes spread for a person who waits.
LIVE_SEEDS = SeedSettings(sweeps=2, rival=4.0)
# Logits per voxel of signed distance.
STEEPNESS = 2.0


@dataclass(eq=False)
class VoteStore:
    """What was computed for one crop of one case and is still of use.

    Parameters
    ----------
    fields
        Displacement ``[2, H, W]`` by (axis, moving position, fixed position).
    depths
        Signed distances ``[C, H, W]`` by (axis, position) and digest of the drawing.
    votes
        By (axis, kind): votes ``[N, C, H, W]`` and what each of the N slices was computed from.
    seeds
        Distances from strokes, to be taken up by the next one.
    """

    fields: dict[PairKey, torch.Tensor] = field(default_factory=dict)
    depths: dict[tuple[int, int, bytes], FloatArray] = field(default_factory=dict)
    votes: dict[tuple[int, str], tuple[FloatArray, list[VoteKey | None]]] = field(default_factory=dict)
    seeds: SeedStore = field(default_factory=SeedStore)

    def slices_of(
        self, axis: int, kind: str, shape: tuple[int, ...], keys: Sequence[VoteKey]
    ) -> tuple[FloatArray, list[int]]:
        """The kept votes ``[N, C, H, W]`` of a plane, and which of the N slices must be computed again.

        Those slices count as unknown until :meth:`settle` says that they were computed.
        """
        kept = self.votes.get((axis, kind))
        if kept is None or kept[0].shape != shape:
            kept = (np.zeros(shape, dtype=np.float32), [None] * len(keys))
            self.votes[axis, kind] = kept
        array, known = kept
        stale = [target for target, key in enumerate(keys) if known[target] != key]
        for target in stale:
            known[target] = None
        return array, stale

    def settle(self, axis: int, kind: str, keys: Sequence[VoteKey]) -> None:
        """All slices of a plane are computed from `keys`."""
        self.votes[axis, kind][1][:] = keys


@dataclass(frozen=True, eq=False)
class Scene:
    """What all votes of one case share.

    Parameters
    ----------
    image
        Intensities of the crop, ``[I, J, K]``, float32.
    box
        Where the crop lies in the volume, in voxels.
    spacing
        Millimetres between voxel centres.
    labels
        Number of classes C.
    registration
        Backend of :func:`wardround.client.annotation.registration.register`, or ``none``.
    demons
        Of the demons.
    device
        Where registration runs.
    store
        What is already known of this crop.
    """

    image: FloatArray
    box: Box
    spacing: tuple[float, float, float]
    labels: int
    registration: str
    demons: DemonsSettings
    device: torch.device
    store: VoteStore


@dataclass(frozen=True, eq=False)
class DrawnPlane:
    """The drawn slices of one plane and, for each of the N slices of the crop, its neighbours among them.

    Parameters
    ----------
    axis
        The array axis that the plane cuts.
    positions
        ``[M]``: index of every drawn slice, relative to the crop. It may lie beyond the crop: such a slice still bounds
        the object, but there is no image to register.
    drawings
        ``[M, C, H, W]``, one-hot, within the crop.
    digests
        Of every drawing.
    spacing
        Millimetres along H and W.
    lower, upper
        ``[N]``: the drawn slices below and above, as positions in `positions`.
    fraction
        ``[N]``: way from the lower to the upper, 0 … 1.
    distance
        ``[N]``: to the nearer drawn slice, in voxels of the volume's finest axis.
    beyond
        ``[N]``: how far a slice lies on the way from the outermost drawn slice (0) to the first slice outside the
        extent (1); 0 where no extent is known.
    """

    axis: int
    positions: npt.NDArray[np.int_]
    drawings: FloatArray
    digests: tuple[bytes, ...]
    spacing: tuple[float, float]
    lower: npt.NDArray[np.int_]
    upper: npt.NDArray[np.int_]
    fraction: FloatArray
    distance: FloatArray
    beyond: FloatArray

    @property
    def keys(self) -> list[VoteKey]:
        """What the vote on every slice of the crop depends on."""
        ends = [(int(position), digest) for position, digest in zip(self.positions, self.digests, strict=True)]
        return [
            (ends[low], ends[high], float(way), float(end))
            for low, high, way, end in zip(self.lower, self.upper, self.fraction, self.beyond, strict=True)
        ]


def one_hot(labels: npt.NDArray[np.uint8], classes: int) -> FloatArray:
    """Labels ``[...]`` as ``[C, ...]``, float32, 0 or 1."""
    numbers = np.arange(classes, dtype=np.uint8).reshape(-1, *[1] * labels.ndim)
    return np.asarray(labels[None] == numbers, dtype=np.float32)


def drawn_plane(scene: Scene, annotations: Annotations, axis: int) -> DrawnPlane:
    """The slices that are drawn across `axis`, as the votes need them; there must be one."""
    prompts = annotations.on_axis(axis)
    first, second = (other for other in range(3) if other != axis)
    window = (scene.box[first], scene.box[second])
    indices = np.array([prompt.index for prompt in prompts])
    targets = np.arange(scene.box[axis].start, scene.box[axis].stop)
    upper = np.minimum(np.searchsorted(indices, targets), len(indices) - 1)
    lower = np.maximum(np.searchsorted(indices, targets, side="right") - 1, 0)
    span = indices[upper] - indices[lower]
    fraction = np.where(span > 0, (targets - indices[lower]) / np.maximum(span, 1), 0)
    gap = np.minimum(np.abs(targets - indices[lower]), np.abs(targets - indices[upper]))
    beyond = np.zeros(len(targets))
    if annotations.extent is not None:
        below = (indices[0] - targets) / max(indices[0] - annotations.extent.lower[axis] + 1, 1)
        above = (targets - indices[-1]) / max(annotations.extent.upper[axis] + 1 - indices[-1], 1)
        beyond = np.clip(np.maximum(below, above), 0, 1)
    labels = [np.ascontiguousarray(prompt.labels[window]) for prompt in prompts]
    return DrawnPlane(
        axis,
        indices - scene.box[axis].start,
        np.stack([one_hot(drawing, scene.labels) for drawing in labels]),
        tuple(hashlib.blake2b(drawing.tobytes(), digest_size=16).digest() for drawing in labels),
        (scene.spacing[first], scene.spacing[second]),
        lower,
        upper,
        fraction.astype(np.float32),
        (gap * (scene.spacing[axis] / min(scene.spacing))).astype(np.float32),
        beyond.astype(np.float32),
    )


@dataclass(frozen=True)
class _Pull:
    """One drawing that is pulled to one slice, and its share of the vote there."""

    plane: int
    drawing: int
    target: int
    share: float
    key: PairKey


def registration_votes(scene: Scene, planes: Sequence[DrawnPlane]) -> list[FloatArray]:
    """Drawings of both neighbours, pulled to every slice and blended by distance.

    Returns
    -------
    list of ndarray
        For every plane ``[N, C, H, W]``, float32, sums to 1 over C; N is the crop's length along the plane's axis. The
        arrays belong to the store: read them.
    """
    votes: list[FloatArray] = []
    pulls: list[_Pull] = []
    used: set[PairKey] = set()
    for number, plane in enumerate(planes):
        length = len(plane.lower)
        shape = (length, *plane.drawings.shape[1:])
        vote, stale = scene.store.slices_of(plane.axis, "registration", shape, plane.keys)
        vote[stale] = 0
        votes.append(vote)
        missing = set(stale)
        for target in range(length):
            ends = ((plane.lower[target], 1 - plane.fraction[target]), (plane.upper[target], plane.fraction[target]))
            for which, share in ends:
                position = int(plane.positions[which])
                inside = 0 <= position < length
                if position == target or not inside or not plane.drawings[which, 1:].any():
                    if target in missing:
                        vote[target] += share * plane.drawings[which]
                elif share > 0:
                    key = (plane.axis, position, target)
                    used.add(key)
                    if target in missing:
                        pulls.append(_Pull(number, int(which), target, float(share), key))
    _register_missing(scene, planes, pulls)
    for number, plane in enumerate(planes):
        mine = [pull for pull in pulls if pull.plane == number]
        if not mine:
            continue
        displacement = torch.stack([scene.store.fields[pull.key] for pull in mine])
        drawings = torch.from_numpy(plane.drawings[[pull.drawing for pull in mine]]).to(scene.device)
        for pull, pulled in zip(mine, warp(drawings, displacement).cpu().numpy(), strict=True):
            votes[number][pull.target] += pull.share * pulled
    for plane in planes:
        scene.store.settle(plane.axis, "registration", plane.keys)
    # What no slice needs any more goes, so that a long session does not keep every pair it ever saw.
    for key in scene.store.fields.keys() - used:
        del scene.store.fields[key]
    return votes


def _register_missing(scene: Scene, planes: Sequence[DrawnPlane], pulls: Sequence[_Pull]) -> None:
    """Register all pairs that the store lacks, one batch for all planes of one shape and spacing."""
    batches: dict[tuple[tuple[int, ...], tuple[float, float]], list[PairKey]] = {}
    for pull in pulls:
        plane = planes[pull.plane]
        if pull.key not in scene.store.fields:
            batches.setdefault((plane.drawings.shape[2:], plane.spacing), []).append(pull.key)
    slices = {plane.axis: np.ascontiguousarray(np.moveaxis(scene.image, plane.axis, 0)) for plane in planes}
    for (_, spacing), keys in batches.items():
        moving, fixed = (
            torch.from_numpy(np.stack([slices[key[0]][key[end]] for key in keys])).to(scene.device) for end in (1, 2)
        )
        found = register(moving, fixed, spacing, settings=scene.demons, backend=scene.registration)
        scene.store.fields.update(zip(keys, found, strict=True))


def shape_vote(scene: Scene, plane: DrawnPlane) -> FloatArray:
    """Interpolate signed distances between the neighbours, then softmax.

    Beyond the outermost drawn slices the shape shrinks linearly until its deepest pixel is gone at the extent's end.

    Returns
    -------
    ndarray
        ``[N, C, H, W]``, float32, sums to 1 over C. It belongs to the store: read it.
    """
    shape = (len(plane.lower), *plane.drawings.shape[1:])
    vote, stale = scene.store.slices_of(plane.axis, "shape", shape, plane.keys)
    if not stale:
        return vote
    known, finest = scene.store.depths, min(scene.spacing)
    for position, digest, drawing in zip(plane.positions, plane.digests, plane.drawings, strict=True):
        key = (plane.axis, int(position), digest)
        if key not in known:
            known[key] = _signed_distances(drawing, plane.spacing) / finest
    depths = [
        known[plane.axis, int(position), digest]
        for position, digest in zip(plane.positions, plane.digests, strict=True)
    ]
    for target in stale:
        low, high, way = plane.lower[target], plane.upper[target], plane.fraction[target]
        between = (1 - way) * depths[low] + way * depths[high]
        if plane.beyond[target] > 0:
            shrunk = plane.beyond[target] * max(float(depths[low][1:].max(initial=0)), 0)
            between[0] += shrunk
            between[1:] -= shrunk
        between = np.exp(STEEPNESS * (between - between.max(axis=0)))
        vote[target] = between / between.sum(axis=0)
    scene.store.settle(plane.axis, "shape", plane.keys)
    current = {
        (plane.axis, int(position), digest) for position, digest in zip(plane.positions, plane.digests, strict=True)
    }
    for key in [key for key in known if key[0] == plane.axis and key not in current]:
        del known[key]
    return vote


def _signed_distances(drawing: FloatArray, spacing: tuple[float, float]) -> FloatArray:
    """``[C, H, W]``: distance to the region's border, positive inside, cut off at :data:`DEEPEST` pixels. A label that
    is absent lies that deep outside everywhere, one that fills the slice that deep inside."""
    depths = np.empty_like(drawing)
    for label, region in enumerate(drawing > 0.5):
        if region.all() or not region.any():
            depths[label] = np.nan
            continue
        inside = ndimage.distance_transform_edt(region, sampling=spacing)
        outside = ndimage.distance_transform_edt(~region, sampling=spacing)
        depths[label] = np.where(region, inside, -outside) - np.where(region, 0.5, -0.5) * min(spacing)
    whole = np.isnan(depths).all(axis=(1, 2))
    limit = DEEPEST * min(spacing)
    depths[whole] = np.where(drawing[whole] > 0.5, limit, -limit)
    return np.asarray(np.clip(depths, -limit, limit), dtype=np.float32)


def stroke_map(annotations: Annotations, shape: tuple[int, int, int]) -> LabelArray | None:
    """Labels of strokes and points, ``[I, J, K]``, :data:`UNLABELLED` elsewhere; None if there are none."""
    if not annotations.scribbles and not annotations.points:
        return None
    return seed_map(annotations, shape)


def seed_vote(
    scene: Scene, strokes: LabelArray, fixed: LabelArray, store: SeedStore | None = None
) -> tuple[FloatArray, FloatArray]:
    """Grow strokes, points and whatever else is known along geodesics of the image.

    Parameters
    ----------
    scene
        The crop.
    strokes
        ``[I, J, K]`` of the crop: labels of strokes and points, :data:`UNLABELLED` elsewhere.
    fixed
        The same of drawn slices and of background outside the extent; strokes go first.
    store
        Of this crop, for distances that are taken up from the last call, and spread no further than they matter; None
        to begin anew and to spread as far as the defaults say.

    Returns
    -------
    tuple of ndarray
        Probabilities ``[C, I, J, K]`` and confidence ``[I, J, K]``, 0 … 1, as
        :func:`wardround.client.annotation.seeds.expand` returns them.
    """
    seeds = np.where(strokes != UNLABELLED, strokes, fixed)
    if store is None:
        return expand(scene.image, scene.spacing, seeds, scene.labels)
    return expand(scene.image, scene.spacing, seeds, scene.labels, LIVE_SEEDS, store=store)
