"""Where to draw next: the residual map, and which slices to ask for.

The rule *information* plans all slices that the budget still allows from what is known of the shape (the model's
calibrated prediction), draws the most telling ones first, and plans again. Where the model knows nothing yet it spaces
slices as the nodes of Chebyshev interpolation, closer towards the ends of the extent, where the object changes most and
drawing costs least; and evenly where no extent is known either. The rules *residual* and *residual-sampled* follow the
disagreement of proxy and prediction, as Tian et al. 2023 (arXiv 2312.06072) do.
"""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from wardround.client.annotation.allocation import Counts, allocate, slices_at, thick_axis
from wardround.client.annotation.calibration import calibrate, shape_estimate
from wardround.client.annotation.placement import Knots, knots, place
from wardround.client.annotation.prompts import Annotations, SliceRequest
from wardround.client.annotation.propagation import ProxyMask
from wardround.errors import UsageError

RULES = ("information", "residual", "residual-sampled", "even", "random")

# Width of the Gaussian over the residual in which a point is looked for.
POINT_WIDTH = 1.5

FloatArray = npt.NDArray[np.float32]


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


def suggestion_map(
    proxy: ProxyMask, prediction: npt.NDArray[np.float32], uncertainty: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    """The residual where the proxy itself, or the model, is in doubt: ``(1 − (1 − u) max_c q_c) · ½ Σ_c |q_c − p_c|``.

    The plain residual follows every mistake of a young network, also next to drawn slices where the proxy is right
    anyway. Weighted by the proxy's doubt it names slices whose drawing changes the proxy.

    Parameters
    ----------
    proxy, prediction
        As in :func:`residual_map`.
    uncertainty
        The model's own doubt u, ``[I, J, K]``, 0 … 1; None for 0.

    Returns
    -------
    ndarray
        ``[I, J, K]``, float32, 0 … 1.
    """
    certain = proxy.probabilities.max(axis=0)
    doubt = 1 - (certain if uncertainty is None else (1 - uncertainty) * certain)
    return np.asarray(doubt * residual_map(proxy, prediction), dtype=np.float32)


def next_point(
    proxy: ProxyMask, prediction: npt.NDArray[np.float32], spacing: tuple[float, float, float]
) -> tuple[int, int, int] | None:
    """Where to ask for one more point: the middle of the largest disagreement of proxy and prediction.

    The residual is smoothed over :data:`POINT_WIDTH` voxels of the finest axis, so that a region counts and not the
    first of many voxels that are equally wrong.

    Parameters
    ----------
    proxy, prediction
        As in :func:`residual_map`.
    spacing
        Millimetres between voxel centres along i, j, k.

    Returns
    -------
    tuple of int or None
        A voxel that nobody drew; None where proxy and prediction agree on all of these.
    """
    width = [POINT_WIDTH * min(spacing) / step for step in spacing]
    residual = ndimage.gaussian_filter(residual_map(proxy, prediction), width, mode="constant", truncate=3)
    residual[proxy.annotated] = 0
    if not residual.max() > 0:
        return None
    i, j, k = np.unravel_index(int(residual.argmax()), residual.shape)
    return int(i), int(j), int(k)


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
    if rule not in RULES:
        raise UsageError(f"there is no suggestion rule called {rule!r}", "", f"choose one of {', '.join(RULES)}")
    if rule == "information":
        planner = _Planner(annotations, shape, spacing, shape_estimate(annotations, proxy, prediction, uncertainty))
        return planner.next_slices(allocation or planner.allocation(total), rounds, step)
    low, high = _range(annotations, shape)
    if allocation is None:
        allocation = allocate(total, _size(low, high), spacing, shape)
    i, j, k = (slices_at(count, rounds, step) for count in allocation)
    residual = None
    if proxy is not None and rule == "residual-sampled":
        residual = residual_map(proxy, prediction)
    elif proxy is not None:
        residual = suggestion_map(proxy, calibrate(prediction, proxy), uncertainty)
    return suggest(annotations, shape, (i, j, k), rule=rule, residual=residual, rng=rng)


def _range(annotations: Annotations, shape: Counts) -> tuple[Counts, Counts]:
    """First and last voxel that may hold an object."""
    if annotations.extent is not None:
        return annotations.extent.lower, annotations.extent.upper
    return (0, 0, 0), (shape[0] - 1, shape[1] - 1, shape[2] - 1)


def _size(low: Counts, high: Counts) -> Counts:
    return high[0] - low[0] + 1, high[1] - low[1] + 1, high[2] - low[2] + 1


class _Planner:
    """Plans all slices that a budget still allows, and asks for the most telling ones first.

    Parameters
    ----------
    estimate
        Probability of any structure ``[I, J, K]``, or None where nothing is known of the shape.
    """

    def __init__(
        self, annotations: Annotations, shape: Counts, spacing: tuple[float, float, float], estimate: FloatArray | None
    ) -> None:
        self._annotations = annotations
        self._shape, self._spacing = shape, spacing
        self._estimate = estimate
        self._low, self._high = _range(annotations, shape)
        self._drawn = [{prompt.index for prompt in annotations.on_axis(axis)} for axis in range(3)]
        self._planes: dict[int, Knots] = {}

    def allocation(self, total: int) -> Counts:
        """How many slices across each axis: all on one, for what is drawn on it bounds the slices between."""
        size = _size(self._low, self._high)
        counts = allocate(total, size, self._spacing, self._shape)
        axis = int(np.argmax(counts))
        if any(self._drawn):
            axis = int(np.argmax([len(indices) for indices in self._drawn]))
        elif self._estimate is not None and thick_axis(self._spacing, self._shape) is None:
            axis = int(np.argmax(allocate(total, _size(*_bounds(self._estimate)), self._spacing)))
        if not counts[axis]:
            whole = min(total, size[axis])
            return (whole, 0, 0) if axis == 0 else (0, whole, 0) if axis == 1 else (0, 0, whole)
        return counts

    def next_slices(self, allocation: Counts, rounds: int, step: int) -> tuple[SliceRequest, ...]:
        """This round's share of the slices that are planned for this round and those to come."""
        requests: list[SliceRequest] = []
        for axis, whole in enumerate(allocation):
            now = slices_at(whole, rounds, step)
            left = sum(slices_at(whole, rounds, later) for later in range(step, rounds))
            if not now:
                continue
            if self._estimate is None:
                chosen = _spread(self._annotations, axis, self._low[axis], self._high[axis], now)
            else:
                plane, drawn = self._plane(axis), self._drawn[axis]
                planned, _ = place(plane, left, drawn)
                chosen, _ = place(plane, now, drawn, among=planned, price=0)
            requests += [SliceRequest(axis, index) for index in sorted(chosen)]
        return tuple(requests)

    def _plane(self, axis: int) -> Knots:
        assert self._estimate is not None
        if axis not in self._planes:
            closed = self._annotations.extent is not None
            low, high = self._low[axis], self._high[axis]
            self._planes[axis] = knots(self._estimate, axis, low, high, closed=closed, drawn=self._drawn[axis])
        return self._planes[axis]


def _bounds(estimate: FloatArray) -> tuple[Counts, Counts]:
    """First and last voxel of the object along each axis."""
    found = np.argwhere(estimate > 0.5)
    (i, j, k), (last_i, last_j, last_k) = found.min(axis=0).tolist(), found.max(axis=0).tolist()
    return (i, j, k), (last_i, last_j, last_k)


def _spread(annotations: Annotations, axis: int, low: int, high: int, count: int) -> list[int]:
    """Chebyshev nodes of the extent, or even spacing where it is not known; then the widest gap near the object.

    A drawn slice that shows no object bounds the search where others show it.
    """
    prompts = annotations.on_axis(axis)
    if not prompts and annotations.extent is None:
        return _even(low, high, [], min(count, high - low + 1))
    if not prompts:
        nodes = 0.5 - 0.5 * np.cos(np.pi * (np.arange(count) + 0.5) / count)
        chosen = {int(node) for node in np.floor(low + nodes * (high - low + 1))}
        return sorted(chosen) + _even(low, high, sorted(chosen), min(count, high - low + 1) - len(chosen))
    shown = [prompt.index for prompt in prompts if prompt.labels.any()]
    empty = [prompt.index for prompt in prompts if not prompt.labels.any()]
    drawn = sorted(prompt.index for prompt in prompts)
    inner_low, inner_high = low, high
    if shown:
        inner_low = max([low, *(index + 1 for index in empty if index < shown[0])])
        inner_high = min([high, *(index - 1 for index in empty if index > shown[-1])])
    inside = [index for index in drawn if inner_low <= index <= inner_high]
    free = inner_high - inner_low + 1 - len(inside)
    chosen = set(_even(inner_low, inner_high, inside, min(count, free)))
    rest = min(count, high - low + 1 - len([n for n in drawn if low <= n <= high])) - len(chosen)
    return sorted(chosen) + _even(low, high, sorted({*drawn, *chosen}), rest)


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
        drawn without replacement with probability proportional to the mass (Tian et al. 2023). ``information``: as
        ``even``, because the budget of all rounds is not known here; see :func:`next_slices`.
    residual
        ``[I, J, K]``, not negative. Without it, or where it is zero, ``residual`` is as ``even`` and
        ``residual-sampled`` as ``random``.
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
        if rule == "random" or (rule == "residual-sampled" and mass.max() <= 0):
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
