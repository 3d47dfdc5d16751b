"""Where to draw next: the residual map, how a budget is shared between planes, and which slices to ask for."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from wardround.client.annotation.prompts import Annotations, SliceRequest
from wardround.client.annotation.propagation import ProxyMask
from wardround.errors import UsageError

RULES = ("information", "residual", "residual-sampled", "even", "random")

# A volume counts as thick-sliced along its last axis if its slices are that much further apart than its pixels, or if
# it has that much fewer slices than pixels along the sides (for headers whose spacing is not physical).
THICK_SPACING = 2.0
THICK_SHAPE = 1 / 3
# Share of a thick-sliced object's slices that is drawn at most.
THICK_SHARE = 0.375

Counts = tuple[int, int, int]


def residual_map(proxy: ProxyMask, prediction: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Where proxy and prediction disagree (Tian et al. 2023): ``½ Σ_c |q_c − p_c|``, the total variation distance.

    Parameters
    ----------
    proxy
        Of the case, probabilities ``[C, I, J, K]``.
    prediction
        Class probabilities ``[C, I, J, K]``, float32.

    Returns
    -------
    ndarray
        ``[I, J, K]``, float32, 0 (agreement) … 1.
    """
    if prediction.shape != proxy.probabilities.shape:
        raise UsageError(
            f"a prediction of shape {prediction.shape} does not fit a proxy of shape {proxy.probabilities.shape}",
            "they belong to two cases or two sets of labels",
            "predict the case that was annotated",
        )
    return np.asarray(0.5 * np.abs(proxy.probabilities - prediction).sum(axis=0), dtype=np.float32)


def suggestion_map(proxy: ProxyMask, prediction: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The residual where the proxy itself is in doubt: ``(1 − max_c q_c) · ½ Σ_c |q_c − p_c|``.

    The plain residual follows every mistake of a young network, also next to drawn slices where the proxy is right
    anyway. Weighted by the proxy's doubt it names slices whose drawing changes the proxy.

    Parameters
    ----------
    proxy, prediction
        As in :func:`residual_map`.

    Returns
    -------
    ndarray
        ``[I, J, K]``, float32, 0 … 1.
    """
    doubt = 1 - proxy.probabilities.max(axis=0)
    return np.asarray(doubt * residual_map(proxy, prediction), dtype=np.float32)


def allocate(
    total: int,
    size: tuple[int, int, int],
    spacing: tuple[float, float, float],
    shape: tuple[int, int, int] | None = None,
) -> Counts:
    """Share a budget of slices between the three array axes.

    All of them go across the longest side of the object: those slices are the smallest, hence the cheapest, and the
    object changes least from one to the next, so that registration carries the labels over the gaps. Where the volume
    is thick-sliced, they go across the thick axis, because the other planes are too coarse to draw on; there each slice
    is a large part of a full segmentation, so that no more than :data:`THICK_SHARE` of the object's slices are drawn.

    Parameters
    ----------
    total
        Slices to draw on one case.
    size
        Object extent in voxels; the volume's shape where the extent is not known.
    spacing
        Distance between voxel centres in millimetres.
    shape
        The volume's shape, by default `size`: a header's spacing need not be physical, so a volume with few slices and
        many pixels also counts as thick-sliced.

    Returns
    -------
    tuple of int
        Slices across axes 0, 1 and 2; their sum is at most `total`.
    """
    counts = [0, 0, 0]
    axis = _thick_axis(spacing, shape or size)
    if axis is None:
        lengths = [voxels * distance for voxels, distance in zip(size, spacing, strict=True)]
        axis = int(np.argmax(lengths))
        counts[axis] = min(total, size[axis])
    else:
        counts[axis] = min(total, max(1, round(THICK_SHARE * size[axis])))
    return counts[0], counts[1], counts[2]


def _thick_axis(spacing: tuple[float, float, float], shape: tuple[int, int, int]) -> int | None:
    for axis in (2, 1, 0):
        others = [other for other in range(3) if other != axis]
        if spacing[axis] >= THICK_SPACING * max(spacing[other] for other in others):
            return axis
        if shape[axis] < THICK_SHAPE * min(shape[other] for other in others):
            return axis
    return None


def next_slices(
    annotations: Annotations,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    *,
    rule: str,
    total: int,
    allocation: Counts | None,
    rounds: int,
    step: int,
    proxy: ProxyMask | None,
    prediction: npt.NDArray[np.float32],
    uncertainty: npt.NDArray[np.float32] | None,
    rng: np.random.Generator,
) -> tuple[SliceRequest, ...]:
    """The slices to draw in annotation round `step`, under a budget of slices for the whole case.

    Parameters
    ----------
    annotations
        What was drawn so far, and the extent if it is known.
    shape, spacing
        Of the volume; millimetres between voxel centres.
    rule
        One of :data:`RULES`.
    total
        Slices to draw on the case over all rounds.
    allocation
        Slices across axes 0, 1 and 2, or None to choose.
    rounds, step
        Number of annotation rounds, and which this is (0-based).
    proxy
        Of what was drawn so far; None before the first round.
    prediction
        Class probabilities ``[C, I, J, K]`` of the model.
    uncertainty
        ``[I, J, K]``, 0 … 1, the model's own doubt, or None.
    rng
        Only source of randomness.
    """
    if allocation is None:
        extent = annotations.extent
        size = shape
        if extent is not None:
            i, j, k = (high - low + 1 for low, high in zip(extent.lower, extent.upper, strict=True))
            size = (i, j, k)
        allocation = allocate(total, size, spacing, shape)
    i, j, k = (slices_at(count, rounds, step) for count in allocation)
    residual = None if proxy is None else suggestion_map(proxy, prediction)
    return suggest(annotations, shape, (i, j, k), rule=rule, residual=residual, rng=rng)


def slices_at(total: int, rounds: int, step: int) -> int:
    """How many of `total` slices of one plane to draw in annotation round `step` of `rounds`; early rounds get more."""
    return -(-total * (step + 1) // rounds) + -total * step // rounds


def suggest(
    annotations: Annotations,
    shape: tuple[int, int, int],
    counts: Counts,
    *,
    rule: str,
    residual: npt.NDArray[np.floating] | None,
    rng: np.random.Generator,
) -> tuple[SliceRequest, ...]:
    """Choose the slices to draw next; never one that is drawn, never one outside the extent.

    Parameters
    ----------
    annotations
        What was drawn so far.
    shape
        Of the volume.
    counts
        New slices across axes 0, 1 and 2. Fewer are returned where an axis has no more.
    rule
        ``even``: as far as possible from what is drawn. ``random``: uniform. ``residual``: one after the other the
        slice with the largest mass of the residual, which then counts less for its neighbours. ``residual-sampled``:
        drawn without replacement with probability proportional to the mass (Tian et al. 2023).
    residual
        ``[I, J, K]``, not negative. Both residual rules fall back to ``even`` without it, or where it is zero.
    rng
        Only source of randomness.

    Raises
    ------
    UsageError
        If the rule is unknown or the residual has another shape.
    """
    if rule not in RULES:
        raise UsageError(f"there is no suggestion rule called {rule!r}", "", f"choose one of {', '.join(RULES)}")
    if residual is not None and residual.shape != shape:
        raise UsageError(
            f"a residual map of shape {residual.shape} does not fit a volume of shape {shape}",
            "they belong to two cases",
            "pass the residual map of the case",
        )
    requests: list[SliceRequest] = []
    for axis in range(3):
        low, high = 0, shape[axis] - 1
        if annotations.extent is not None:
            low, high = max(low, annotations.extent.lower[axis]), min(high, annotations.extent.upper[axis])
        drawn = sorted(prompt.index for prompt in annotations.on_axis(axis))
        free = [index for index in range(low, high + 1) if index not in drawn]
        count = min(counts[axis], len(free))
        if count <= 0:
            continue
        mass = np.zeros(len(free))
        if residual is not None and rule.startswith("residual"):
            others = tuple(other for other in range(3) if other != axis)
            mass = residual.sum(axis=others, dtype=np.float64)[free]
        if rule == "random":
            chosen = rng.choice(free, size=count, replace=False).tolist()
        elif rule.startswith("residual") and mass.max() > 0:
            if rule == "residual":
                chosen = _peaks(np.array(free), mass, count, high - low + 1)
                chosen += _even(low, high, sorted(drawn + chosen), count - len(chosen))
            else:
                chosen = _sampled(np.array(free), mass, count, rng)
        else:
            chosen = _even(low, high, drawn, count)
        requests.extend(SliceRequest(axis, int(index)) for index in sorted(chosen))
    return tuple(requests)


def _even(low: int, high: int, drawn: list[int], count: int) -> list[int]:
    """Evenly spaced positions; where some are drawn, the middle of the widest gap again and again."""
    inside = [index for index in drawn if low <= index <= high]
    if not inside:
        step = (high - low + 1) / count
        return sorted({int(np.floor(low + step * (n + 0.5))) for n in range(count)})
    chosen: list[int] = []
    taken = sorted({low - 1, *inside, high + 1})
    for _ in range(count):
        # The object ends at the extent, so a gap at an end is half as open as one between two drawn slices.
        widths = [upper - lower for lower, upper in pairwise(taken)]
        widest = int(np.argmax(widths))
        middle = (taken[widest] + taken[widest + 1]) // 2
        chosen.append(middle)
        taken.insert(widest + 1, middle)
    return chosen


def _peaks(free: npt.NDArray[np.int_], mass: npt.NDArray[np.float64], count: int, length: int) -> list[int]:
    """Largest mass first; a chosen slice suppresses its neighbours with a Gaussian of an eighth of the extent.

    Fewer than `count` where no mass is left.
    """
    mass = mass.copy()
    chosen: list[int] = []
    width = max(length / 8, 1.0)
    for _ in range(count):
        best = int(np.argmax(mass))
        if mass[best] <= 0:
            break
        chosen.append(int(free[best]))
        mass *= 1 - np.exp(-0.5 * ((free - free[best]) / width) ** 2)
        mass[[index in chosen for index in free]] = -1
    return chosen


def _sampled(
    free: npt.NDArray[np.int_], mass: npt.NDArray[np.float64], count: int, rng: np.random.Generator
) -> list[int]:
    positive = int(np.count_nonzero(mass))
    weights = mass / mass.sum()
    chosen = rng.choice(free, size=min(count, positive), replace=False, p=weights).tolist()
    rest = [index for index in free.tolist() if index not in chosen]
    if len(chosen) < count:
        chosen += rng.choice(rest, size=count - len(chosen), replace=False).tolist()
    return [int(index) for index in chosen]
