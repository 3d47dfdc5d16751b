"""Which few slices of a plane tell most about a shape: knots for shape interpolation, placed for a price.

If the shape were known, one could try out every choice of slices: draw them, interpolate the slices between them as
shape interpolation does (Raya and Udupa 1990), and count the pixels that come out wrong. An estimate of the shape, such
as the model's prediction, is good enough for that: what counts is where it changes, not exactly where it lies. The
pixels that come out wrong between two neighbouring drawn slices depend on no other slice, so that the best choice of
all is a shortest path, found by dynamic programming.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from wardround.client.annotation.effort import VIEWED_SLICE_COST, boundary_pixels

FloatArray = npt.NDArray[np.float32]

# Pixels that may come out wrong to save one traced boundary pixel.
PRICE = 0.3
# Larger planes and longer stacks are looked at in strides.
LARGEST_SIDE = 48
MARGIN = 2


@dataclass(frozen=True, eq=False)
class Knots:
    """The slices of one plane that could be drawn, what they cost, and what stays wrong between any two.

    Parameters
    ----------
    indices
        ``[N]``, ascending: positions along the axis.
    costs
        ``[N]``, float64: expected boundary pixels of a slice and a constant for looking at it.
    errors
        ``[N + 2, N + 2]``, float64, pixels: at ``[a, b]``, a < b, what is expected to be wrong between the neighbouring
        drawn slices a and b. Row 0 and column N + 1 stand for the two ends, where nothing is drawn.
    """

    indices: npt.NDArray[np.int_]
    costs: npt.NDArray[np.float64]
    errors: npt.NDArray[np.float64]

    def cost(self, chosen: Collection[int]) -> float:
        """What the slices at `chosen` cost, in boundary pixels."""
        return float(self.costs[np.isin(self.indices, list(chosen))].sum())


def knots(estimate: FloatArray, axis: int, low: int, high: int, *, closed: bool, drawn: Collection[int] = ()) -> Knots:
    """Work out costs and errors of one plane.

    Parameters
    ----------
    estimate
        Probability of any structure ``[I, J, K]``, 0 … 1.
    axis
        Which the slices cut.
    low, high
        First and last slice that may be drawn.
    closed
        Whether the object is known to end at `low` and `high`, as with an extent. Otherwise propagation continues the
        outermost drawn slice, and an empty slice beyond the object has its use.
    drawn
        Slices that are drawn already.
    """
    stack = np.moveaxis(estimate, axis, 0)
    found = np.argwhere((stack[low : high + 1] > 0.5).any(axis=0))
    if len(found):
        (top, left), (bottom, right) = found.min(axis=0), found.max(axis=0)
        stack = stack[:, max(top - MARGIN, 0) : bottom + MARGIN + 1, max(left - MARGIN, 0) : right + MARGIN + 1]
    across = max(1, -(-max(stack.shape[1:]) // LARGEST_SIDE))
    along = max(1, -(-(high - low + 1) // LARGEST_SIDE))
    indices = np.array(sorted({*range(low, high + 1, along), *(n for n in drawn if low <= n <= high)}))
    # A margin of background, so that a region that fills the window still has a border.
    planes = np.pad(stack[indices, ::across, ::across], ((0, 0), (1, 1), (1, 1))).astype(np.float32)
    costs = [boundary_pixels(np.asarray(plane > 0.5, dtype=np.uint8)) * across for plane in planes]
    ends = np.array([low - 1, *indices, high + 1])
    errors = _errors(planes, ends, closed) * (across * across * along)
    return Knots(indices, np.array(costs, dtype=np.float64) + VIEWED_SLICE_COST, errors)


def place(
    plane: Knots, count: int, drawn: Collection[int] = (), *, among: Collection[int] | None = None, price: float = PRICE
) -> tuple[list[int], float]:
    """The best `count` further slices, and the expected error with them.

    They minimise the expected number of wrong pixels plus `price` times the boundary pixels to be traced.

    Parameters
    ----------
    plane
        From :func:`knots`, with the same `drawn`.
    count
        How many; at most as many as there are slices that are not drawn.
    drawn
        Slices that are drawn already: they are used and cost nothing.
    among
        Only slices from these; None for any.
    price
        Wrong pixels that one boundary pixel is worth.
    """
    allowed = np.isin(plane.indices, plane.indices if among is None else list(among))
    last = len(plane.indices) + 1
    fixed = np.zeros(last + 1, dtype=bool)
    fixed[1:last] = np.isin(plane.indices, list(drawn))
    fixed[last] = True
    count = min(count, int(np.count_nonzero(allowed & ~fixed[1:last])))
    best = np.full((count + 1, last + 1), np.inf)
    origin = np.zeros((count + 1, last + 1), dtype=int)
    best[0, 0] = 0
    reach = 0
    for end in range(1, last + 1):
        # No path leaps over a drawn slice.
        paths = best[:, reach:end] + plane.errors[reach:end, end]
        nearest, least = paths.argmin(axis=1), paths.min(axis=1)
        if fixed[end]:
            best[:, end], origin[:, end] = least, nearest + reach
            reach = end
        elif allowed[end - 1]:
            best[1:, end] = least[:-1] + price * plane.costs[end - 1]
            origin[1:, end] = nearest[:-1] + reach
    chosen: list[int] = []
    end, left = last, count
    while end > 0:
        before = int(origin[left, end])
        if not fixed[end]:
            chosen.append(int(plane.indices[end - 1]))
            left -= 1
        end = before
    return sorted(chosen), float(best[count, last]) - price * plane.cost(chosen)


def _errors(planes: FloatArray, positions: npt.NDArray[np.int_], closed: bool) -> npt.NDArray[np.float64]:
    depths = [None, *(_signed_distance(plane > 0.5) for plane in planes), None]
    last = len(planes) + 1
    errors = np.zeros((last + 1, last + 1))
    for first in range(last):
        for second in range(first + 2, last + 1):
            expected = planes[first : second - 1]
            lower, upper = depths[first], depths[second]
            if lower is None and upper is None:
                errors[first, second] = expected.sum(dtype=np.float64)
                continue
            if lower is None:
                lower = upper if first == 0 and not closed else _gone(upper)
            if upper is None:
                upper = lower if second == last and not closed else _gone(lower)
            between = (positions[first + 1 : second] - positions[first]) / (positions[second] - positions[first])
            share = between.astype(np.float32)[:, None, None]
            depth = (1 - share) * lower + share * upper
            # The share of a pixel that a border at this depth covers.
            found = np.clip(depth + np.float32(0.5), 0, 1)
            errors[first, second] = (found + expected - 2 * found * expected).sum(dtype=np.float64)
    return errors


def _gone(depth: FloatArray | None) -> FloatArray:
    """A shape shrunk so far that it is as absent as it was present: it ends half-way."""
    assert depth is not None
    return np.asarray(depth - 2 * max(float(depth.max()), 0.0), dtype=np.float32)


def _signed_distance(region: npt.NDArray[np.bool_]) -> FloatArray | None:
    """Distance to the region's border in pixels, positive inside; None for an empty region."""
    if not region.any():
        return None
    inside, outside = ndimage.distance_transform_edt(region), ndimage.distance_transform_edt(~region)
    return np.asarray(np.where(region, inside - 0.5, 0.5 - outside), dtype=np.float32)
