"""Strokes as a person would draw them on one slice, made from true labels.

Through the middle of every structure goes one line, much as in the simulator of WSL4MIS (Luo et al. 2022, arXiv
2203.02106): the largest part of the structure is eroded and thinned to its skeleton, of which the longest branch is
kept and a part of it drawn. A round structure has hardly a skeleton and gets a chord. Background gets a curve round the
structures.

Only :mod:`wardround.client.annotation.annotator` may call this: it is the one that sees the truth.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from wardround.client.annotation.prompts import UNLABELLED, Labels2D

LEFT = 0.6

_SQUARE = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class StrokeSettings:
    """How carefully somebody scribbles.

    Parameters
    ----------
    erosion
        Pixels by which a structure is eroded first, fewer where less than :data:`LEFT` of its length would be left.
    shortest
        Smallest share of a branch or chord that is drawn; the share is drawn at random from there to 1.
    away, spread
        Distance in pixels of the background's curve from the structures: at least `away`, up to `away + spread`.
    """

    erosion: int = 2
    shortest: float = 0.6
    away: int = 3
    spread: int = 3


def strokes(labels: Labels2D, rng: np.random.Generator, settings: StrokeSettings = StrokeSettings()) -> Labels2D:
    """One stroke for every label on a slice.

    Parameters
    ----------
    labels
        True labels of a slice, uint8, 0 is background.
    rng
        The only source of randomness: the same generator state draws the same strokes.
    settings
        How carefully.

    Returns
    -------
    Labels2D
        Same shape: the label on a stroke, :data:`~wardround.client.annotation.prompts.UNLABELLED` elsewhere. A stroke
        lies on its own label. An empty slice gets one straight stroke of background.
    """
    drawn = np.full(labels.shape, UNLABELLED, dtype=np.uint8)
    for label in (int(value) for value in np.unique(labels) if value):
        drawn[_through(labels == label, rng, settings)] = label
    background = labels == 0
    around = _around(~background, rng, settings) & background
    if around.any():
        drawn[_line(around, settings.shortest, rng)] = 0
    elif background.any():
        drawn[_through(background, rng, settings)] = 0
    return drawn


def _through(
    structure: npt.NDArray[np.bool_], rng: np.random.Generator, settings: StrokeSettings
) -> npt.NDArray[np.bool_]:
    """A line through the middle of the largest part of a structure."""
    inner = _inner(structure, settings.erosion)
    line = _line(_skeleton(inner), settings.shortest, rng)
    chord = _chord(inner, settings.shortest, rng)
    return line if np.count_nonzero(line) >= np.count_nonzero(chord) else chord


def _inner(structure: npt.NDArray[np.bool_], erosion: int) -> npt.NDArray[np.bool_]:
    """The largest part of a structure, eroded as far as it stays long; never empty for one of a pixel or more."""
    whole = _largest(structure)
    for times in range(erosion, 0, -1):
        inner = ndimage.binary_erosion(whole, iterations=times, border_value=1)
        if inner.any():
            inner = _largest(inner)
            if _side(inner) >= LEFT * _side(whole):
                return inner
    return whole


def _largest(structure: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    parts, count = ndimage.label(structure, structure=_SQUARE)
    return np.asarray(structure if count == 1 else parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]))


def _side(mask: npt.NDArray[np.bool_]) -> int:
    """Longer side of the box round a mask, in pixels."""
    return 1 + max(int(np.ptp(where)) for where in np.nonzero(mask))


def _skeleton(inner: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    thinned = sitk.GetArrayFromImage(sitk.BinaryThinning(sitk.GetImageFromArray(inner.astype(np.uint8)))) > 0
    # What lies at the edge of the image may be thinned away or, rarely, be added to.
    return np.asarray(thinned & inner if (thinned & inner).any() else inner)


def _chord(inner: npt.NDArray[np.bool_], shortest: float, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """A part of a straight line through the middle of a structure, at a random angle, as far as it stays inside."""
    pixels = np.argwhere(inner)
    start = pixels[np.square(pixels - pixels.mean(axis=0)).sum(axis=1).argmin()]
    angle = rng.uniform(0, np.pi)
    direction = np.array([np.sin(angle), np.cos(angle)])
    arms = []
    for sign in (-1, 1):
        steps = np.arange(1, sum(inner.shape))[:, None]
        line = np.rint(start + sign * steps * direction / np.abs(direction).max()).astype(np.intp)
        line = line[np.all((line >= 0) & (line < inner.shape), axis=1)]
        left = np.flatnonzero(~inner[line[:, 0], line[:, 1]])
        arms.append(line[: left[0]] if len(left) else line)
    whole = np.concatenate([arms[0][::-1], start[None], arms[1]])
    return _part(whole, inner.shape, shortest, rng)


def _around(
    structures: npt.NDArray[np.bool_], rng: np.random.Generator, settings: StrokeSettings
) -> npt.NDArray[np.bool_]:
    """A closed curve round all structures; a straight line where there is none."""
    if not structures.any():
        line = np.zeros(structures.shape, dtype=bool)
        axis = int(rng.integers(2))
        where = int(rng.integers(structures.shape[axis]))
        np.moveaxis(line, axis, 0)[where] = True
        return line
    distance = settings.away + int(rng.integers(settings.spread + 1))
    grown = ndimage.binary_fill_holes(ndimage.distance_transform_edt(~structures) <= distance)
    curve = grown & ~ndimage.binary_erosion(grown, border_value=1)
    # A closed curve is opened at a random place: the longest path then goes all the way round.
    pixels = np.argwhere(curve)
    if len(pixels) > 3 * 3:
        row, column = pixels[rng.integers(len(pixels))]
        curve[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = False
    return np.asarray(curve)


def _line(skeleton: npt.NDArray[np.bool_], shortest: float, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """A part of the longest path of a skeleton, as a mask."""
    pixels = np.argwhere(skeleton)
    return _part(pixels[_longest_path(skeleton, pixels)], skeleton.shape, shortest, rng)


def _part(
    path: npt.NDArray[np.intp], shape: tuple[int, ...], shortest: float, rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """A part of a path of pixels ``[n, 2]``, at a random place and of a random length."""
    length = max(1, round(len(path) * rng.uniform(shortest, 1)))
    start = int(rng.integers(len(path) - length + 1))
    drawn = np.zeros(shape, dtype=bool)
    drawn[tuple(path[start : start + length].T)] = True
    return drawn


def _longest_path(skeleton: npt.NDArray[np.bool_], pixels: npt.NDArray[np.intp]) -> list[int]:
    """Between the two ends that are furthest apart along the skeleton, as row numbers of `pixels`.

    Found in two searches: the pixel furthest from any is one end of a longest path of a tree.
    """
    numbers = np.full(skeleton.shape, -1)
    numbers[skeleton] = np.arange(len(pixels))
    tails, heads, lengths = [], [], []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        there = pixels + np.array([down, right])
        inside = np.all((there >= 0) & (there < skeleton.shape), axis=1)
        other = numbers[there[inside, 0], there[inside, 1]]
        tails.append(np.flatnonzero(inside)[other >= 0])
        heads.append(other[other >= 0])
        lengths.append(np.full(len(heads[-1]), np.hypot(down, right)))
    edges = (np.concatenate(lengths), (np.concatenate(tails), np.concatenate(heads)))
    graph = sparse.csr_array(edges, shape=(len(pixels), len(pixels)))
    _, parts = csgraph.connected_components(graph, directed=False)
    begin = int(np.flatnonzero(parts == np.bincount(parts).argmax())[0])
    end = _furthest(graph, begin)[0]
    begin, before = _furthest(graph, end)
    path = [begin]
    while path[-1] != end:
        path.append(int(before[path[-1]]))
    return path


def _furthest(graph: sparse.csr_array, start: int) -> tuple[int, npt.NDArray[np.int32]]:
    distance, before = csgraph.dijkstra(graph, directed=False, indices=start, return_predecessors=True)
    return int(np.argmax(np.where(np.isfinite(distance), distance, -1))), before
