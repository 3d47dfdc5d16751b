"""What the learner is asked to match, and how much each voxel counts.

The target blends the proxy mask with the prediction that was frozen before the case (temporal fusion, Tian et al. 2023,
arXiv 2312.06072): ``y = (1 − w) p⁰ + w q``. Drawn voxels keep the drawing.
"""

import math
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from wardround.client.annotation.expansion import EXPANSIONS, expand_points
from wardround.client.annotation.point_sets import point_sets
from wardround.client.annotation.prompts import UNLABELLED, Labels3D, PointPrompt
from wardround.client.annotation.propagation import ProxyMask
from wardround.client.cases.volume import Volume
from wardround.strategies.plan import CERTAINTY, Expansion, FusionSchedule, Supervision

Share = float | npt.NDArray[np.float32]

# Reach of the Gaussian of boundary smoothing, in standard deviations.
_TRUNCATE = 3.0


def proxy_share(
    schedule: FusionSchedule, fusion: float, progress: float, trust: float, confidence: npt.NDArray[np.float32]
) -> Share:
    """The share ``w`` of the proxy in the target ``y = (1 − w) p⁰ + w q``.

    Tian et al. 2023 let the share follow the place ``x = n / N`` of volume n in a stream of N. Here `fusion` names the
    share at the end of the stream, and ``s(x) = σ(4 (x − ½)) / σ(2)`` rises from 0.14 to 1:

    ==================  ==================================================  ===========================================
    schedule            ``w``                                               in the paper
    ==================  ==================================================  ===========================================
    ``linear``          ``1 − (1 − fusion) x``                              –
    ``constant``        ``fusion``                                          constant weight
    ``sigmoid``         ``fusion · s(x)``                                   ``σ(4 (x − ½))`` for fusion = σ(2) = 0.88
    ``inverse-sigmoid`` ``1 − (1 − fusion) s(x)``                           ``1 − σ(4 (x − ½))`` for fusion = 0.12
    ``trust``           ``1 − (1 − fusion) · trust``                        –
    ``confidence``      ``1 − (1 − fusion) x (1 − confidence)``, a map      spatial map
    ==================  ==================================================  ===========================================

    At the very start of a stream (``x = 0``) the share is 1 for all but ``trust``: an untrained network has nothing to
    say (the paper smooths no first volume either).

    Parameters
    ----------
    schedule
        How the share develops.
    fusion
        0 … 1.
    progress
        Place ``x`` in the stream, 0 … 1.
    trust
        What the frozen prediction has earned so far, 0 (nothing) … 1.
    confidence
        ``[I, J, K]``, 0 … 1, of the proxy.

    Returns
    -------
    float or ndarray
        0 … 1; ``[I, J, K]``, float32, for ``confidence``.
    """
    doubt = 1 - fusion
    if schedule == "trust":
        return 1 - doubt * trust
    if progress <= 0:
        return 1.0
    if schedule == "linear":
        return 1 - doubt * progress
    if schedule == "constant":
        return fusion
    if schedule == "confidence":
        return np.asarray(1 - doubt * progress * (1 - confidence), dtype=np.float32)
    rise = _sigmoid(4 * (progress - 0.5)) / _sigmoid(2)
    return fusion * rise if schedule == "sigmoid" else 1 - doubt * rise


def point_seeds(
    image: Volume, points: Sequence[PointPrompt], expansion: Expansion = "geodesic", awaited: Collection[int] = ()
) -> Labels3D:
    """What points say of voxels: seven round a structure spread, any other says what lies under it.

    Which points belong together is told by :func:`~wardround.client.annotation.point_sets.point_sets`. As long as a
    structure is begun and not enclosed, or awaited, nothing is known to be background but the points that say so: the
    structure may lie where the boxes of the others end.

    Parameters
    ----------
    image
        Of the case.
    points
        In the order in which they were set.
    expansion
        How far the sevens spread, as in the plan.
    awaited
        Labels of structures that somebody may still come to; those that have their seven are awaited no more.

    Returns
    -------
    Labels3D
        ``[I, J, K]``, uint8, as :func:`wardround.client.annotation.expansion.expand_points` gives it;
        :data:`~wardround.client.annotation.prompts.UNLABELLED` everywhere else where there are no seven.
    """
    sets = point_sets(points, image.shape)
    if sets.complete:
        seeds = expand_points(image.array.astype(np.float32), image.spacing, sets.points, EXPANSIONS[expansion])
        if sets.begun or not {seven.label for seven in sets.complete}.issuperset(awaited):
            seeds[seeds == 0] = UNLABELLED
    else:
        seeds = np.full(image.shape, UNLABELLED, dtype=np.uint8)
    for point in points:
        seeds[point.index] = point.label
    return seeds


def with_seeds(proxy: ProxyMask, seeds: Labels3D) -> ProxyMask:
    """The proxy with what points were spread to as if it had been drawn; what was drawn holds.

    Parameters
    ----------
    proxy
        Of the case.
    seeds
        ``[I, J, K]``, uint8, of :func:`point_seeds`.
    """
    said = (seeds != UNLABELLED) & ~proxy.annotated
    probabilities = proxy.probabilities.copy()
    probabilities[:, said] = seeds[said] == np.arange(len(probabilities), dtype=np.uint8)[:, None]
    return ProxyMask(probabilities, proxy.annotated | said, np.where(said, np.float32(1), proxy.confidence))


def make_target(
    proxy: ProxyMask,
    before: npt.NDArray[np.float32],
    share: Share,
    *,
    boundary_smoothing: float,
    spacing: tuple[float, float, float],
) -> npt.NDArray[np.float16]:
    """Blend proxy and frozen prediction, soften the border where the proxy is unsure, and keep the drawing.

    Parameters
    ----------
    proxy
        Probabilities ``[C, I, J, K]``, drawn voxels and confidence.
    before
        ``[C, I, J, K]``, float32, the prediction ``p⁰`` frozen before the case.
    share
        Of the proxy, as :func:`proxy_share` gives it.
    boundary_smoothing
        Half-width of the softened band along the proxy's border, in voxels of the finest axis; 0 for none. See
        :func:`soften_border`.
    spacing
        Distance between voxel centres along i, j, k in millimetres.

    Returns
    -------
    ndarray
        ``[C, I, J, K]``, float16, 0 … 1, sums to one over C to half precision.
    """
    target = np.asarray(share * proxy.probabilities + (1 - share) * before, dtype=np.float32)
    if boundary_smoothing > 0:
        target = soften_border(target, proxy, boundary_smoothing, spacing)
    target[:, proxy.annotated] = proxy.probabilities[:, proxy.annotated]
    return target.astype(np.float16)


def soften_border(
    target: npt.NDArray[np.float32], proxy: ProxyMask, width: float, spacing: tuple[float, float, float]
) -> npt.NDArray[np.float32]:
    """Label smoothing for borders nobody drew: ``y' = (1 − m) y + m · (G * y)`` with ``m = 1 − confidence`` in a band.

    The Gaussian G mixes each voxel's target with its neighbours' (spatially varying label smoothing, Islam and Glocker
    2021, arXiv 2104.05788, equation 5). Its standard deviation is half of `width`, in millimetres the same along all
    axes. The band holds the voxels within `width` of a border between two of the proxy's labels; outside of it, and
    where the proxy is sure, the target stays as it is.

    Parameters
    ----------
    target
        ``[C, I, J, K]``, float32, sums to one over C.
    proxy
        Whose border and confidence count.
    width
        In voxels of the finest axis, above 0.
    spacing
        Millimetres between voxel centres.

    Returns
    -------
    ndarray
        As `target`; a copy.
    """
    softened = target.copy()
    labels = proxy.labels
    border = _border(labels)
    if not border.any():
        return softened
    reach = width * min(spacing)
    sigma = tuple(0.5 * reach / distance for distance in spacing)
    box = []
    for axis, side in enumerate(labels.shape):
        along = np.flatnonzero(border.any(axis=tuple(other for other in range(3) if other != axis)))
        margin = math.ceil(reach / spacing[axis]) + math.ceil(_TRUNCATE * sigma[axis]) + 1
        box.append(slice(max(0, int(along[0]) - margin), min(side, int(along[-1]) + margin + 1)))
    inside = tuple(box)
    distance = ndimage.distance_transform_edt(~border[inside], sampling=spacing)
    mix = np.where(distance <= reach, 1 - proxy.confidence[inside], 0).astype(np.float32)
    for values in softened:
        local = values[inside]
        local += mix * (ndimage.gaussian_filter(local, sigma, mode="nearest", truncate=_TRUNCATE) - local)
    return softened


def spread_labels(
    target: npt.NDArray[np.float16], known: npt.NDArray[np.bool_], spacing: tuple[float, float, float]
) -> npt.NDArray[np.float16]:
    """Fill the target of voxels that count nothing with that of the nearest one that counts.

    Augmentation interpolates targets. A stroke of one voxel's width would be mixed with whatever lies beside it, and
    its own label would end in the minority.

    Parameters
    ----------
    target
        ``[C, I, J, K]``, float16, probabilities.
    known
        ``[I, J, K]``, bool: voxels whose target holds.
    spacing
        Millimetres between voxel centres.

    Returns
    -------
    ndarray
        As `target`, which stays as it is; the same where nothing is known.
    """
    if known.all() or not known.any():
        return target
    nearest = ndimage.distance_transform_edt(~known, sampling=spacing, return_distances=False, return_indices=True)
    return np.ascontiguousarray(target[:, *nearest])


def voxel_weights(
    proxy: ProxyMask,
    asked: npt.NDArray[np.bool_],
    *,
    annotated_weight: float,
    confidence_weight: float,
    supervision: Supervision,
) -> npt.NDArray[np.float16]:
    """How much each voxel counts in the loss: ``1 + λ`` where it was drawn (Tian et al. 2023), less elsewhere.

    Elsewhere the weight is ``1 − γ + γ · confidence^m`` with γ = `confidence_weight` and m =
    :data:`~wardround.strategies.plan.CERTAINTY`: unsure voxels count less. Under partial supervision it is 0. Where
    dense labels are the target, `asked` decides in place of what was drawn, so that all arms of an experiment weigh by
    the same rule.

    Parameters
    ----------
    proxy
        Drawn voxels and confidence.
    asked
        ``[I, J, K]``, bool: the slices that the plan's budget asked for.
    annotated_weight
        λ, at least 0.
    confidence_weight
        γ, 0 … 1.
    supervision
        As in the plan.

    Returns
    -------
    ndarray
        ``[I, J, K]``, float16, 0 … 1 + λ.
    """
    drawn = asked if supervision == "dense" else proxy.annotated
    if supervision == "partial":
        elsewhere = np.zeros(asked.shape, dtype=np.float32)
    else:
        elsewhere = 1 - confidence_weight * (1 - proxy.confidence**CERTAINTY)
    return np.where(drawn, 1 + annotated_weight, elsewhere).astype(np.float16)


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def _border(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """``[I, J, K]``, bool: voxels that share a face with another label."""
    border = np.zeros(labels.shape, dtype=bool)
    for axis in range(3):
        ahead = (slice(None),) * axis + (slice(1, None),)
        behind = (slice(None),) * axis + (slice(None, -1),)
        differs = labels[ahead] != labels[behind]
        border[ahead] |= differs
        border[behind] |= differs
    return border
