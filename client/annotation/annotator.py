"""Who answers: the annotator's interface, and one that is simulated from true labels.

Only :class:`Truth` carries dense labels, and only :class:`SimulatedAnnotator` holds one. What leaves this module is a
slice or an extent that somebody asked for. Nothing that learns or propagates may import it.
"""

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from wardround.client.annotation.effort import full_effort, strict_full_effort
from wardround.client.annotation.prompts import UNLABELLED, ExtentPrompt, Labels2D, SlicePrompt, SliceRequest
from wardround.client.cases.volume import Volume
from wardround.errors import DataError, UsageError


class Truth:
    """True labels of one case, sealed: it answers questions about a slice, the extent and the effort, and no others.

    Parameters
    ----------
    labels
        Label volume ``[I, J, K]``, 0 background, 1 … C-1 structures. Any real dtype whose values are whole numbers
        where they are asked for.
    """

    __slots__ = ("__labels",)

    def __init__(self, labels: Volume) -> None:
        self.__labels = labels.array

    def __repr__(self) -> str:
        return f"Truth(shape={self.__labels.shape})"

    def slice(self, request: SliceRequest) -> SlicePrompt:
        """The labels of one slice, as a copy.

        Raises
        ------
        UsageError
            If there is no such slice.
        DataError
            If the slice holds anything but whole numbers from 0 to 254.
        """
        if not 0 <= request.axis < 3 or not 0 <= request.index < self.__labels.shape[request.axis]:
            raise UsageError(
                f"there is no slice {request.index} on axis {request.axis}",
                f"the case has the shape {self.__labels.shape}",
                "ask for a slice inside the volume",
            )
        values = np.take(self.__labels, request.index, axis=request.axis)
        return SlicePrompt(request.axis, request.index, _whole(values))

    def extent(self) -> ExtentPrompt | None:
        """First and last voxel of any structure along each axis; None if there is none."""
        found = np.greater(self.__labels, 0)
        if not found.any():
            return None
        lower, upper = [], []
        for axis in range(3):
            along = np.flatnonzero(found.any(axis=tuple(other for other in range(3) if other != axis)))
            lower.append(int(along[0]))
            upper.append(int(along[-1]))
        return ExtentPrompt((lower[0], lower[1], lower[2]), (upper[0], upper[1], upper[2]))

    def full_effort(self) -> tuple[float, float]:
        """Contour and strict effort of a full manual segmentation, in boundary pixels."""
        return float(full_effort(self.__labels)), strict_full_effort(self.__labels)


@runtime_checkable
class Annotator(Protocol):
    """Whoever answers questions about a case: a person at a screen, or a simulation."""

    def extent(self, case_id: str) -> ExtentPrompt | None:
        """Where the object lies; None if there is no object."""

    def draw(self, case_id: str, request: SliceRequest) -> SlicePrompt:
        """Every pixel of one slice, labelled."""


class SimulatedAnnotator:
    """Answers from the truth, and only what it is asked.

    Parameters
    ----------
    truths
        The truth by case id: a mapping, or a function that fetches one.
    """

    def __init__(self, truths: Callable[[str], Truth] | Mapping[str, Truth]) -> None:
        self._truths = truths

    def extent(self, case_id: str) -> ExtentPrompt | None:
        """Where the object lies; None if the case has no object."""
        return self._truth(case_id).extent()

    def draw(self, case_id: str, request: SliceRequest) -> SlicePrompt:
        """The true labels of the slice that was asked for."""
        return self._truth(case_id).slice(request)

    def full_effort(self, case_id: str) -> tuple[float, float]:
        """Contour and strict effort of a full manual segmentation, in boundary pixels. For reporting only."""
        return self._truth(case_id).full_effort()

    def _truth(self, case_id: str) -> Truth:
        if callable(self._truths):
            return self._truths(case_id)
        try:
            return self._truths[case_id]
        except KeyError:
            raise DataError(
                f"the simulated annotator has no labels of {case_id}",
                "the case is not in its data set",
                "give the data set that holds the labels of every streamed case",
            ) from None


def _whole(values: npt.NDArray[np.generic]) -> Labels2D:
    labels = np.zeros(values.shape, dtype=np.uint8)
    with np.errstate(invalid="ignore"):
        valid = np.greater_equal(values, 0) & np.less(values, UNLABELLED)
        np.copyto(labels, values, where=valid, casting="unsafe")
    if not (valid & (labels == values)).all():
        raise DataError(
            "a true label is not a whole number from 0 to 254",
            "the label image holds fractions, negative numbers or gaps",
            "export the labels as integers",
        )
    return labels
