"""From a few drawings to a soft 3D mask: the proxy that a network learns from.

Every plane on which slices are drawn gives two votes for each voxel, one from registration and one from shape; strokes
and points give one along geodesics, and the network may give its own (:mod:`wardround.client.annotation.votes`). Votes
are averaged with weights that fall with the distance to what was drawn. Drawn voxels keep what was drawn.

The drawings are the only labels that this module sees.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from wardround.client.annotation.crop import Box, boxes, within
from wardround.client.annotation.prompts import UNLABELLED, Annotations
from wardround.client.annotation.registration import DemonsSettings
from wardround.client.annotation.seeds import beyond, drawn_labels
from wardround.client.annotation.votes import (
    FloatArray,
    Scene,
    VoteStore,
    drawn_plane,
    one_hot,
    registration_votes,
    seed_vote,
    shape_vote,
    stroke_map,
)
from wardround.client.cases.volume import Volume
from wardround.errors import UsageError

# Weight of a vote however far the nearest drawn slice is.
FAR = 1e-4
# Confidence in background where no drawing shows the object at all, and beyond the box that drawings span.
UNSEEN = 0.5
BEYOND = 0.99
# Coefficients of the calibrated confidence: a logistic regression on undrawn voxels of proxies in which no model had a
# vote (training cases of hippocampus, LGG and ACDC, with and without the extent).
# `python benchmarks/confidence.py DATA/hippocampus --out runs/confidence --fit` measures them inside the extent of 40
# training hippocampi, 4 to 8 slices a case, seed 0: the expected calibration error is 0.017, and 0.041 within three
# voxels of the object; with the vote of a model that had not learnt from these cases (mean Dice 0.855) it is 0.022 and
# 0.055. Mean confidence lies 0.012 and 0.014 below the share of right labels, on the cautious side. The merged
# probability itself has an error of 0.018 and 0.016, without and with the vote; coefficients fitted to half of these
# hippocampi have 0.002 and 0.004 on the other half.
OFFSET, EVIDENCE, REMOTENESS, DISSENT = 1.42, 0.52, 0.49, 0.57


@dataclass(frozen=True, eq=False)
class ProxyMask:
    """A dense guess from sparse drawings.

    Parameters
    ----------
    probabilities
        ``[C, I, J, K]``, float32, sums to 1 over C at every voxel; 0 or 1 where it was drawn.
    annotated
        ``[I, J, K]``, bool: voxels on drawn slices, under strokes and at points.
    confidence
        ``[I, J, K]``, float32, 0 (a guess) … 1 (drawn): probability that the most probable label is the right one, as
        :func:`calibrated_confidence` estimates it from all votes.
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
        ``demons``, ``velocity``, ``sitk`` (reference) or ``none``.
    shape_weight
        Weight of the shape vote beside the registration vote, at no distance.
    reach, shape_reach
        Distance from a drawn slice, in voxels of the finest axis, over which a plane's registration (shape) vote loses
        a factor of e.
    seed_weight, seed_reach
        The same of strokes and points, with the distance to the nearest of them.
    smoothing
        Width of the Gaussian over the merged votes, in voxels of the finest axis: planes meet without steps.
    margin
        Voxels round the extent that registration sees.
    demons
        Of the registration.
    device
        Where registration runs: ``cpu``, ``cuda``.
    grain
        The crop ends at multiples of this many voxels. At 1 every drawing that shows a little more of the object moves
        the crop, and nothing that was found for the old one is of use any more.
    continued
        Whether distances from strokes are taken up where the last drawing left them, and spread no further than they
        matter, see :data:`wardround.client.annotation.votes.LIVE_SEEDS`. A stroke then costs what it changes; the proxy
        is no longer a function of the drawings alone, but of their order, too, within the little that a few scans leave
        open.
    """

    registration: str = "demons"
    shape_weight: float = 0.5
    reach: float = 2.0
    shape_reach: float = 1.0
    seed_weight: float = 1.0
    seed_reach: float = 4.0
    smoothing: float = 0.5
    margin: int = 4
    demons: DemonsSettings = field(default_factory=DemonsSettings)
    device: str = "cpu"
    grain: int = 1
    continued: bool = False


LIVE = PropagationSettings(grain=16, continued=True)
"""For a person who waits."""


@dataclass(eq=False)
class PropagationCache:
    """What votes of one case need again: displacements of slice pairs, signed distances, votes on every slice.

    With it a new drawing costs only the slices between its neighbours. One cache belongs to one image; it empties
    itself where the crop, the settings or the number of labels change.
    """

    _key: object = None
    _store: VoteStore = field(default_factory=VoteStore)

    def open(self, box: Box, labels: int, settings: PropagationSettings) -> VoteStore:
        """What is known of the crop `box`."""
        key = (tuple(bound for side in box for bound in (side.start, side.stop)), labels, settings)
        if key != self._key:
            self._key, self._store = key, VoteStore()
        return self._store

    def __len__(self) -> int:
        """Registered slice pairs."""
        return len(self._store.fields)


def propagate(
    image: Volume,
    annotations: Annotations,
    labels: int,
    *,
    settings: PropagationSettings = PropagationSettings(),
    cache: PropagationCache | None = None,
    prediction: FloatArray | None = None,
    model_weight: float = 0.0,
) -> ProxyMask:
    """Turn drawn slices, strokes and points into a soft 3D mask.

    Parameters
    ----------
    image
        Intensities ``[I, J, K]``.
    annotations
        What was drawn and, where given, the extent; outside the extent everything is background. Where strokes or
        points lie on a drawn slice, they hold.
    labels
        Number of classes C including background.
    settings
        How votes are made and merged.
    cache
        Of this case; the result is the same with and without, unless the settings say `continued`.
    prediction
        The model's class probabilities ``[C, I, J, K]``, a further vote off the drawn voxels.
    model_weight
        Weight of that vote beside a registration vote at no distance; at 0 it has no say.

    Returns
    -------
    ProxyMask
        On the grid of `image`. Without anything drawn it is background with confidence 0.

    Raises
    ------
    UsageError
        If what was drawn, or the prediction, does not fit the image, or a label is not below `labels`.
    """
    annotations.checked(image.shape, labels)
    _check(prediction, model_weight, labels, image.shape)
    shape = image.shape
    probabilities = np.zeros((labels, *shape), dtype=np.float32)
    probabilities[0] = 1
    confidence = np.zeros(shape, dtype=np.float32)
    drawn = drawn_labels(annotations, shape)
    strokes = stroke_map(annotations, shape)
    if annotations.slices or strokes is not None:
        box, inner = boxes(shape, annotations, strokes, settings.margin, settings.grain)
        confidence.fill(UNSEEN if inner is None else BEYOND if annotations.extent is None else 1)
        if inner is not None:
            store = VoteStore() if cache is None else cache.open(box, labels, settings)
            crop = np.ascontiguousarray(image.array[box], dtype=np.float32)
            device = torch.device(settings.device)
            scene = Scene(crop, box, image.spacing, labels, settings.registration, settings.demons, device, store)
            merged = _Merged(scene)
            _add_planes(merged, annotations, settings)
            if strokes is not None:
                fixed = drawn[box].copy()
                if annotations.extent is not None:
                    rim = beyond(fixed.shape, within(inner, box))
                    fixed[rim & (fixed == UNLABELLED)] = 0
                _add_strokes(merged, strokes[box], fixed, settings)
            if prediction is not None and model_weight > 0:
                merged.add(prediction[(slice(None), *box)], np.float32(model_weight))
            found = merged.mean(settings.smoothing)
            sure = calibrated_confidence(found.max(axis=0), merged.doubt(), merged.nearest)
            local = within(inner, box)
            probabilities[(slice(None), *inner)] = found[(slice(None), *local)]
            confidence[inner] = sure[local]
    annotated = drawn != UNLABELLED
    probabilities[:, annotated] = one_hot(drawn[annotated], labels)
    confidence[annotated] = 1
    return ProxyMask(probabilities, annotated, confidence)


def _check(prediction: FloatArray | None, model_weight: float, labels: int, shape: tuple[int, int, int]) -> None:
    if not model_weight >= 0:
        raise UsageError(f"the model's vote cannot weigh {model_weight}", "", "give a weight of 0 or more")
    if prediction is not None and prediction.shape != (labels, *shape):
        raise UsageError(
            f"a prediction of shape {prediction.shape} does not fit {labels} labels on an image of shape {shape}",
            "it belongs to another case or another set of labels",
            "predict the case that is propagated",
        )


def calibrated_confidence(probability: FloatArray, doubt: FloatArray, distance: FloatArray) -> FloatArray:
    """Probability that the most probable label is the right one.

    A logistic regression (Platt 1999, "Probabilistic outputs for support vector machines"), so that confidence grows
    with the merged probability and falls with distance and disagreement:
    ``logit c = 1.42 + 0.52 logit p - 0.49 log(1 + d) - 0.57 v``.

    Parameters
    ----------
    probability
        p, of the most probable label after merging, 0 … 1.
    doubt
        v, variance of the votes about their mean, summed over labels, 0 … 1.
    distance
        d, to the nearest drawn slice along the axis that it cuts, or to the nearest stroke, in voxels of the finest
        axis.

    Returns
    -------
    ndarray
        Same shape, float32, 0 … 1.
    """
    safe = np.clip(probability, 1e-3, 1 - 1e-4)
    odds = np.exp(OFFSET - DISSENT * doubt) * (safe / (1 - safe)) ** EVIDENCE * (1 + distance) ** -REMOTENESS
    return np.asarray(odds / (1 + odds), dtype=np.float32)


class _Merged:
    """Votes on one crop, averaged as they come."""

    def __init__(self, scene: Scene) -> None:
        shape = scene.image.shape
        self.scene = scene
        self.total: FloatArray = np.zeros((scene.labels, *shape), dtype=np.float32)
        self.squares: FloatArray = np.zeros(shape, dtype=np.float32)
        self.weights: FloatArray = np.zeros(shape, dtype=np.float32)
        self.nearest: FloatArray = np.full(shape, np.inf, dtype=np.float32)

    def add(self, vote: FloatArray, weight: FloatArray | np.float32) -> None:
        """A vote ``[C, ...]`` with a weight that fits ``[...]``."""
        self.total += weight * vote
        self.squares += weight * np.square(vote).sum(axis=0)
        self.weights += weight

    def mean(self, smoothing: float) -> FloatArray:
        """Probabilities ``[C, ...]``, smoothed."""
        found: FloatArray = self.total / self.weights
        if not smoothing:
            return found
        finest = min(self.scene.spacing)
        widths = [smoothing * finest / step for step in self.scene.spacing]
        return np.asarray(ndimage.gaussian_filter(found, (0, *widths), mode="nearest", truncate=3), dtype=np.float32)

    def doubt(self) -> FloatArray:
        """Variance of the votes about their mean, summed over labels, 0 … 1."""
        variance = self.squares / self.weights - np.square(self.total / self.weights).sum(axis=0)
        return np.asarray(np.maximum(variance, 0), dtype=np.float32)


def _add_planes(merged: _Merged, annotations: Annotations, settings: PropagationSettings) -> None:
    scene = merged.scene
    planes = [drawn_plane(scene, annotations, axis) for axis in range(3) if annotations.on_axis(axis)]
    votes = registration_votes(scene, planes) if settings.registration != "none" else [None] * len(planes)
    for drawn, vote in zip(planes, votes, strict=True):
        along = [-1 if other == drawn.axis else 1 for other in range(3)]
        distance = drawn.distance.reshape(along)
        if vote is not None:
            merged.add(np.moveaxis(vote, 0, drawn.axis + 1), np.exp(-distance / settings.reach) + FAR)
        if settings.shape_weight:
            near = np.exp(-distance / settings.shape_reach)
            # Beyond the outermost drawn slices the extent is known to the shape vote alone, so it counts longer there.
            end = np.exp(-distance / settings.reach) * (drawn.beyond.reshape(along) > 0)
            weight = settings.shape_weight * np.maximum(near, end) + FAR * FAR
            merged.add(np.moveaxis(shape_vote(scene, drawn), 0, drawn.axis + 1), weight)
        merged.nearest = np.minimum(merged.nearest, distance)


def _add_strokes(
    merged: _Merged, strokes: npt.NDArray[np.uint8], fixed: npt.NDArray[np.uint8], settings: PropagationSettings
) -> None:
    scene = merged.scene
    stroked = strokes != UNLABELLED
    vote, sure = seed_vote(scene, strokes, fixed, scene.store.seeds if settings.continued else None)
    distance: FloatArray = np.full(stroked.shape, np.inf, dtype=np.float32)
    if stroked.any():
        step = min(scene.spacing)
        away = ndimage.distance_transform_edt(~stroked, sampling=[side / step for side in scene.spacing])
        distance = away.astype(np.float32)
        merged.nearest = np.minimum(merged.nearest, distance)
    weight = settings.seed_weight * sure * (np.exp(-distance / settings.seed_reach) + FAR) + FAR * FAR
    merged.add(vote, np.asarray(weight, dtype=np.float32))
