"""Geodesic distance from seeds: how far a voxel is if crossing an edge of the image counts as a way to go.

A step between two of the 26 neighbours costs more where the intensity changes. Two conventions for that cost are in use
and give different maps, so they are told apart by name (d is the length of the step, |dI| the change of intensity, w
the weight):

``additive``
    ``(1 - w) * d + w * |dI|``, as FastGeodis has it (Asad et al. 2022, doi 10.21105/joss.04532).
``gradient-speed``
    ``d / ((1 - w) + w / (|dI| + 1e-5))``, as GeodisTK has it (Wang et al. 2018, DeepIGeoS, arXiv 1707.00652): where the
    image is flat, going is nearly free.

Both are the plain length of the path at w = 0. Paths run along the grid, so that even then the distance is the one over
26 neighbours, which is up to 13 % longer than the straight line.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse import csgraph

from wardround.errors import UsageError

Convention = Literal["additive", "gradient-speed"]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

CONVENTIONS: tuple[Convention, ...] = ("additive", "gradient-speed")
# Keeps the speed finite where the image is flat; the value that GeodisTK uses.
FLAT = 1e-5

# The 13 neighbours that a scan in the order of memory has already seen.
_BEFORE = np.array([o for o in itertools.product((-1, 0, 1), repeat=3) if o < (0, 0, 0)], dtype=np.int64)


def geodesic_distance(
    image: FloatArray,
    seeds: BoolArray,
    spacing: tuple[float, float, float],
    *,
    convention: Convention = "additive",
    weight: float = 0.5,
    sweeps: int = 8,
    known: FloatArray | None = None,
    bound: FloatArray | None = None,
) -> FloatArray:
    """Distance of every voxel from the nearest seed, by raster scans.

    Scans go forward and backward through memory (Toivanen 1996, doi 10.1016/0167-8655(96)00010-4, in 3D), each passing
    on the distances of the 13 neighbours that it has already seen, until nothing changes. What is found is never less
    than :func:`exact_geodesic_distance`, and is the same once nothing changes.

    The first call of a process compiles the scan; the result is kept beside this file, or in the user's cache, where
    one can be written.

    Parameters
    ----------
    image
        ``[I, J, K]``, finite intensities in the unit in which |dI| is to be weighed against length. A 2D image is a
        volume of one slice.
    seeds
        ``[I, J, K]``, bool.
    spacing
        Of the voxels along i, j, k, above 0; the unit of length.
    convention
        What a step costs.
    weight
        w, from 0 (length alone) to 1 (intensity alone).
    sweeps
        Pairs of one forward and one backward scan at the most, 1 or above.
    known
        What this function found before from some of these seeds, all else being equal. The scans then pass over
        whatever the new seeds do not bring nearer; where they end because nothing changes the result is the same.
    bound
        ``[I, J, K]``: voxels that are further than this stay infinitely far, and no path leads through them.

    Returns
    -------
    FloatArray
        ``[I, J, K]``, float32, 0 at the seeds, infinite everywhere if there are none.

    Raises
    ------
    UsageError
        If an argument is out of its range or the shapes differ.
    """
    _check(image, seeds, spacing, convention, weight)
    if any(given is not None and given.shape != image.shape for given in (known, bound)):
        raise UsageError("known distances do not fit the image", "they are of another crop", "leave them out")
    if sweeps < 1:
        raise UsageError(f"cannot scan {sweeps} times", "at least one pair of scans is needed", "try 8")
    # A rim that is infinitely far spares the scan every question about the border.
    padded = np.pad(np.asarray(image, dtype=np.float32), 1)
    distance = np.full(padded.shape, np.inf, dtype=np.float32)
    inner = distance[1:-1, 1:-1, 1:-1]
    new = seeds
    if known is not None:
        inner[:] = known
        new = seeds & (known > 0)
    inner[seeds] = 0
    rows = np.full(padded.shape[:2], -1, dtype=np.int32)
    rows[1:-1, 1:-1][new.any(axis=2)] = 0
    lengths = np.asarray(np.sqrt(np.square(_BEFORE * np.asarray(spacing)).sum(axis=1)), dtype=np.float32)
    limit = np.zeros(0, dtype=np.float32) if bound is None else np.pad(np.asarray(bound, dtype=np.float32), 1).ravel()
    arguments = (padded, distance, limit, rows, _BEFORE, lengths, convention == "additive", np.float32(weight), sweeps)
    _run_scans(arguments)
    return np.ascontiguousarray(inner)


def exact_geodesic_distance(
    image: FloatArray,
    seeds: BoolArray,
    spacing: tuple[float, float, float],
    *,
    convention: Convention = "additive",
    weight: float = 0.5,
) -> FloatArray:
    """The same distance by Dijkstra's algorithm on the graph of 26 neighbours: exact, and the oracle of the scans.

    The graph takes about 300 bytes a voxel, which suits boxes of up to about 100 voxels a side. Parameters, result and
    errors are those of :func:`geodesic_distance`.
    """
    _check(image, seeds, spacing, convention, weight)
    shape = image.shape
    numbers = np.arange(image.size, dtype=np.int32).reshape(shape)
    intensities = np.asarray(image, dtype=np.float64)
    tails, heads, costs = [], [], []
    for offset in _BEFORE:
        there = tuple(slice(max(o, 0), n + min(o, 0)) for o, n in zip(offset, shape, strict=True))
        here = tuple(slice(max(-o, 0), n + min(-o, 0)) for o, n in zip(offset, shape, strict=True))
        change = np.abs(intensities[here] - intensities[there]).ravel()
        length = float(np.linalg.norm(offset * np.asarray(spacing)))
        tails.append(numbers[here].ravel())
        heads.append(numbers[there].ravel())
        costs.append(_step_cost(length, change, convention, weight))
    if not seeds.any():
        return np.full(shape, np.inf, dtype=np.float32)
    edges = (np.concatenate(costs), (np.concatenate(tails), np.concatenate(heads)))
    graph = sparse.csr_array(edges, shape=(image.size, image.size))
    found = csgraph.dijkstra(graph, directed=False, indices=np.flatnonzero(seeds), min_only=True)
    return np.asarray(found, dtype=np.float32).reshape(shape)


def _step_cost(
    length: float, change: npt.NDArray[np.float64], convention: Convention, weight: float
) -> npt.NDArray[np.float64]:
    if convention == "additive":
        return np.asarray((1 - weight) * length + weight * change)
    return np.asarray(length / ((1 - weight) + weight / (change + FLAT)))


def _check(
    image: FloatArray, seeds: BoolArray, spacing: tuple[float, float, float], convention: Convention, weight: float
) -> None:
    if image.ndim != 3 or image.shape != seeds.shape or seeds.dtype != np.bool_:
        raise UsageError(
            f"an image of shape {image.shape} and seeds of shape {seeds.shape} ({seeds.dtype}) do not fit together",
            "both must be volumes of one shape, the seeds of type bool",
            "pass a 2D image as a volume of one slice",
        )
    if convention not in CONVENTIONS:
        raise UsageError(
            f"unknown cost convention {convention!r}", f"known are {', '.join(CONVENTIONS)}", "choose one of them"
        )
    if not 0 <= weight <= 1 or not all(step > 0 and np.isfinite(step) for step in spacing):
        raise UsageError(
            f"cannot weigh intensity by {weight} on a spacing of {spacing}",
            "the weight lies in 0 … 1 and the spacing above 0",
            "correct the setting, or the image's header",
        )
    if not np.isfinite(image).all():
        raise UsageError("the image holds NaN or infinity", "a step divided by zero", "repair the image")


def _run_scans(arguments: tuple[Any, ...]) -> None:
    try:
        _compiled(True)(*arguments)
    except (OSError, RuntimeError):
        # Nowhere to keep the compiled scan (a read-only installation without a home, a full disk): compile anew.
        # What was scanned before the failure, if anything, only shortens the rest.
        _compiled(False)(*arguments)


@functools.cache
def _compiled(keep: bool) -> Callable[..., None]:
    import numba

    compiled: Callable[..., None] = numba.njit(cache=keep, nogil=True)(_scan)
    return compiled


def _scan(  # noqa: PLR0912, PLR0917 - one loop nest, which Numba compiles as it stands
    image: FloatArray,
    distance: FloatArray,
    limit: FloatArray,
    changed: npt.NDArray[np.int32],
    before: npt.NDArray[np.int64],
    lengths: FloatArray,
    additive: bool,
    weight: np.float32,
    sweeps: int,
) -> None:
    """Lower `distance` in place, nowhere to more than `limit`, which is flat and may be empty.

    All arrays have a rim of one voxel; `changed` holds for every row (i, j) the number of
    the scan that last lowered it, 0 for the seeds and -1 for never, so that rows where nothing is new are passed over.
    """
    one = np.float32(1)
    flat = np.float32(1e-5)
    size_i, size_j, size_k = image.shape
    intensity, far = image.reshape(-1), distance.reshape(-1)
    unlimited = limit.size == 0
    # The way to each neighbour in memory, and the least that a step there costs, whatever the image.
    ways = np.empty(13, dtype=np.int64)
    least = np.empty(13, dtype=np.float32)
    for n in range(13):
        ways[n] = (before[n, 0] * size_j + before[n, 1]) * size_k + before[n, 2]
        least[n] = (one - weight) * lengths[n] if additive else np.float32(0)
    seen = np.full((2, size_i, size_j), -1, dtype=np.int32)
    for scan in range(1, 2 * sweeps + 1):
        backward = (scan + 1) % 2
        sign = 1 - 2 * backward
        moved = False
        for row_i in range(1, size_i - 1):
            i = row_i if sign > 0 else size_i - 1 - row_i
            for row_j in range(1, size_j - 1):
                j = row_j if sign > 0 else size_j - 1 - row_j
                last = seen[backward, i, j]
                news = changed[i, j] > last or changed[i, j - sign] > last
                for other in range(j - 1, j + 2):
                    news = news or changed[i - sign, other] > last
                if not news:
                    continue
                seen[backward, i, j] = scan
                lowered = False
                for column in range(1, size_k - 1):
                    k = column if sign > 0 else size_k - 1 - column
                    here = (i * size_j + j) * size_k + k
                    best = far[here]
                    centre = intensity[here]
                    for n in range(13):
                        there = here + sign * ways[n]
                        start = far[there]
                        if start + least[n] >= best:
                            continue
                        change = abs(centre - intensity[there])
                        if additive:
                            cost = least[n] + weight * change
                        else:
                            change += flat
                            cost = lengths[n] * change / ((one - weight) * change + weight)
                        best = min(best, start + cost)
                    if best < far[here] and (unlimited or best <= limit[here]):
                        far[here] = best
                        lowered = True
                if lowered:
                    changed[i, j] = scan
                    moved = True
        if not moved and scan > 1:
            return
