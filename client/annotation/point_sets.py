"""Which of somebody's clicks belong together: seven for a structure, in the order in which a person sets them.

A program gives all seven of a structure at once. A person may stop half-way, take one back, go to another structure and
come back, or click once more to correct something. Points say nothing but their voxel and its label, so that order and
place have to tell: seven that follow one another belong together where six of them enclose one that lies in a
structure; what is left is read once more without them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from wardround.client.annotation.expansion import POINTS, SevenPoints, seven_points
from wardround.client.annotation.prompts import PointPrompt, Shape
from wardround.errors import UsageError

# Sets in all, those with a point for each end, those that begin inside, and voxels of their boxes, taken off.
_Score = tuple[int, int, int, int]


@dataclass(frozen=True)
class PointSets:
    """What points say, sorted.

    Parameters
    ----------
    complete
        Sets of seven, in the order in which they were found.
    begun
        Points of a structure that is not enclosed yet, in the order in which they were set, the first one in it; seven
        at the most. Empty where no point of a structure lies outside of the boxes of that structure: whatever is left
        then corrects a single voxel.
    """

    complete: tuple[SevenPoints, ...] = ()
    begun: tuple[PointPrompt, ...] = ()

    @property
    def points(self) -> tuple[PointPrompt, ...]:
        """Of all complete sets, for :func:`~wardround.client.annotation.expansion.expand_points`."""
        return tuple(point for seven in self.complete for point in (seven.inner, *seven.outer))


def point_sets(points: Sequence[PointPrompt], shape: Shape) -> PointSets:
    """Sort points into sets of seven, and what is left.

    Parameters
    ----------
    points
        In the order in which they were set; those of an image of `shape`.
    shape
        ``(I, J, K)``.
    """
    left, complete = list(points), []
    while found := _consecutive(left, shape):
        complete += [seven for _, seven in found]
        taken = {place for start, _ in found for place in range(start, start + POINTS)}
        left = [point for place, point in enumerate(left) if place not in taken]
    for place, point in enumerate(left):
        if point.label and not any(_holds(seven, point, shape) for seven in complete):
            return PointSets(tuple(complete), tuple(left[place : place + POINTS]))
    return PointSets(tuple(complete))


def _consecutive(points: Sequence[PointPrompt], shape: Shape) -> list[tuple[int, SevenPoints]]:
    """Places and sets of points that follow one another and enclose a structure: as many as there can be.

    Of two ways to find as many, the one in which more sets have a point for each end is taken, then the one in which
    more begin with the point inside, then the one whose boxes are smaller, since points of two structures in one set
    reach from one to the other, then the earlier one.
    """
    best: list[tuple[_Score, list[tuple[int, SevenPoints]]]] = [((0, 0, 0, 0), [])] * (len(points) + POINTS)
    for start in range(len(points) - POINTS, -1, -1):
        best[start] = best[start + 1]
        seven = _enclosing(points[start : start + POINTS], shape)
        if seven is not None:
            (count, ended, first, volume), rest = best[start + POINTS]
            size = math.prod(side.stop - side.start for side in seven.box)
            score = (count + 1, ended + _has_ends(seven), first + (seven.inner is points[start]), volume - size)
            if score >= best[start][0]:
                best[start] = (score, [(start, seven), *rest])
    return best[0][1]


def _has_ends(seven: SevenPoints) -> bool:
    """Whether each of the outer points is the outermost one in a direction of its own."""
    places = np.array([point.index for point in seven.outer])
    outermost = np.hstack([places == places.min(axis=0), places == places.max(axis=0)])
    rows, columns = linear_sum_assignment(outermost, maximize=True)
    return bool(outermost[rows, columns].all())


def _enclosing(points: Sequence[PointPrompt], shape: Shape) -> SevenPoints | None:
    try:
        return seven_points(points, shape)[0]
    except UsageError:
        return None


def _holds(seven: SevenPoints, point: PointPrompt, shape: Shape) -> bool:
    """Whether a point lies where its structure may be by what the seven say."""
    return seven.label == point.label and all(
        side.start <= at < side.stop for side, at in zip(seven.within(shape), point.index, strict=True)
    )
