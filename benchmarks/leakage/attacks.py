"""Two attacks on a model: whether a case was learnt from, and how far a planted one was learnt by heart."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]


def area(members: Sequence[float], others: Sequence[float]) -> float:
    """Probability that a member has the higher score than another case: 0.5 says nothing, 1 tells all; ties are half.

    It is the area under the curve of an attack that takes every score above a threshold for a member's.
    """
    inside, outside = np.asarray(members)[:, None], np.asarray(others)[None]
    return float(((inside > outside) + 0.5 * (inside == outside)).mean())


def found_at(members: Sequence[float], others: Sequence[float], false_alarms: float) -> float:
    """Share of the members that are found by a threshold that `false_alarms` of the others pass at most."""
    passing = int(false_alarms * len(others))
    threshold = np.sort(np.asarray(others))[::-1][passing]
    return float((np.asarray(members) > threshold).mean())


def exposure(planted: float, others: Sequence[float]) -> float:
    """Exposure of a planted case in bits (Carlini et al. 2019, arXiv 1802.08232, definition 5).

    ``log₂ of how many there are, less log₂ of its rank by loss``: 0 … log₂(len(others) + 1), and 1.44 on average for a
    case that was never seen.

    Parameters
    ----------
    planted
        Loss on it.
    others
        Losses on cases that were drawn from the same distribution and not planted.
    """
    rank = 1 + sum(loss <= planted for loss in others)
    return math.log2(len(others) + 1) - math.log2(rank)


def gained(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """By how much the loss of each case fell from the weights that a round began with to those that a site sent.

    The attack of somebody who sees an update: a fall says more than the loss, which is high for a hard case anyway.
    """
    return [old - new for old, new in zip(before, after, strict=True)]
