"""Who answers: the annotator's interface, and one that is simulated from true labels.

Only :class:`Truth` carries dense labels, and only :class:`SimulatedAnnotator` holds one. What leaves this module is a
slice, strokes, points or an extent that somebody asked for. Nothing that learns or propagates may import it.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from wardround.client.annotation import strokes as simulator
from wardround.client.annotation.clicks import seven_clicks
from wardround.client.annotation.effort import full_effort, strict_full_effort
from wardround.client.annotation.prompts import (
    UNLABELLED,
    ExtentPrompt,
    Labels3D,
    PointPrompt,
    ScribblePrompt,
    SlicePrompt,
    SliceRequest,
)
from wardround.client.annotation.strokes import StrokeSettings
from wardround.client.cases.volume import Volume
from wardround.errors import DataError, UsageError

STROKES = StrokeSettings()

_Prompt = TypeVar("_Prompt", SlicePrompt, ScribblePrompt, PointPrompt)


class Truth:
    """True labels of one case, sealed: it answers the questions below, and no others.

    Parameters
    ----------
    labels
        Label volume ``[I, J, K]``, 0 background, 1 … C-1 structures. Any real dtype whose values are whole numbers
        where they are asked for.
    """

    __slots__ = ("__labels", "__spacing")

    def __init__(self, labels: Volume) -> None:
        self.__labels = labels.array
        self.__spacing = labels.spacing

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
        _check_request(request, self.__labels.shape)
        values = np.take(self.__labels, request.index, axis=request.axis)
        return SlicePrompt(request.axis, request.index, _whole(values))

    def strokes(
        self, request: SliceRequest, rng: np.random.Generator, settings: StrokeSettings = STROKES
    ) -> ScribblePrompt:
        """One simulated stroke for every label on a slice, see :func:`wardround.client.annotation.strokes.strokes`.

        Errors are those of :meth:`slice`.
        """
        labels = self.slice(request).labels
        return ScribblePrompt(request.axis, request.index, simulator.strokes(labels, rng, settings))

    def points(self, components: int = 1) -> tuple[PointPrompt, ...]:
        """Seven points a structure, see :func:`wardround.client.annotation.clicks.seven_clicks`.

        Raises
        ------
        DataError
            If a label is anything but a whole number from 0 to 254.
        """
        return seven_clicks(_whole(self.__labels), self.__spacing, components)

    def label_at(self, index: tuple[int, int, int]) -> PointPrompt:
        """The label of one voxel.

        Raises
        ------
        UsageError
            If there is no such voxel.
        DataError
            If its label is anything but a whole number from 0 to 254.
        """
        if not all(0 <= at < side for at, side in zip(index, self.__labels.shape, strict=True)):
            raise UsageError(
                f"there is no voxel {index}",
                f"the case has the shape {self.__labels.shape}",
                "ask for a voxel inside the volume",
            )
        return PointPrompt(index, int(_whole(np.asarray(self.__labels[index]))))

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

    def strokes(self, case_id: str, request: SliceRequest) -> ScribblePrompt:
        """A few strokes on one slice."""

    def points(self, case_id: str) -> tuple[PointPrompt, ...]:
        """Seven points for every structure, see :mod:`wardround.client.annotation.expansion`."""

    def label_at(self, case_id: str, index: tuple[int, int, int]) -> PointPrompt:
        """One click: the label of this voxel."""


class SimulatedAnnotator:
    """Answers from the truth, and only what it is asked.

    Whatever is random follows from the seed, the case's id and the slice: asked again, the same strokes are drawn, in
    every epoch and every arm of an experiment. Strokes drawn anew each time would tell the whole mask in the end.

    Parameters
    ----------
    truths
        The truth by case id: a mapping, or a function that fetches one.
    strokes
        Strokes that somebody drew, by case id: ``[I, J, K]``, uint8,
        :data:`~wardround.client.annotation.prompts.UNLABELLED` where there is none. A mapping, or a function that
        fetches them. For a case that is not in it (or None) strokes are simulated.
    seed
        Of simulated strokes.
    settings
        Of simulated strokes.
    components
        How many parts of a structure get points of their own, see
        :func:`~wardround.client.annotation.clicks.seven_clicks`.
    """

    def __init__(
        self,
        truths: Callable[[str], Truth] | Mapping[str, Truth],
        strokes: Callable[[str], Labels3D | None] | Mapping[str, Labels3D] | None = None,
        *,
        seed: int = 0,
        settings: StrokeSettings = STROKES,
        components: int = 1,
    ) -> None:
        self._truths = truths
        self._strokes: Callable[[str], Labels3D | None] = strokes if callable(strokes) else (strokes or {}).get
        self._seed = seed
        self._settings = settings
        self._components = components
        self._told: dict[str, npt.NDArray[np.int64]] = {}

    def extent(self, case_id: str) -> ExtentPrompt | None:
        """Where the object lies; None if the case has no object."""
        return self._truth(case_id).extent()

    def draw(self, case_id: str, request: SliceRequest) -> SlicePrompt:
        """The true labels of the slice that was asked for."""
        drawn = self._truth(case_id).slice(request)
        return self._telling(case_id, drawn)

    def strokes(self, case_id: str, request: SliceRequest) -> ScribblePrompt:
        """Strokes on the slice that was asked for: those that somebody drew, or simulated ones.

        Raises
        ------
        UsageError
            If there is no such slice.
        DataError
            If the case is unknown, or its labels are no whole numbers.
        """
        drawn = self._strokes(case_id)
        if drawn is not None:
            _check_request(request, drawn.shape)
            cut = np.take(drawn, request.index, axis=request.axis)
            return self._telling(case_id, ScribblePrompt(request.axis, request.index, cut))
        rng = np.random.default_rng((self._seed, zlib.crc32(case_id.encode()), request.axis, request.index))
        return self._telling(case_id, self._truth(case_id).strokes(request, rng, self._settings))

    def points(self, case_id: str) -> tuple[PointPrompt, ...]:
        """Seven points for every structure: nothing but the labels of these voxels."""
        points = self._truth(case_id).points(self._components)
        for point in points:
            self._telling(case_id, point)
        return points

    def label_at(self, case_id: str, index: tuple[int, int, int]) -> PointPrompt:
        """A click on the voxel that was asked for."""
        return self._telling(case_id, self._truth(case_id).label_at(index))

    def told(self, case_id: str) -> int:
        """Of how many voxels of a case the label was given away so far; a voxel counts once, however often."""
        return len(self._told.get(case_id, ()))

    def full_effort(self, case_id: str) -> tuple[float, float]:
        """Contour and strict effort of a full manual segmentation, in boundary pixels. For reporting only."""
        return self._truth(case_id).full_effort()

    def _telling(self, case_id: str, prompt: _Prompt) -> _Prompt:
        """`prompt`, which is about to be handed out."""
        self._told[case_id] = np.union1d(self._told.get(case_id, np.zeros(0, dtype=np.int64)), _places(prompt))
        return prompt

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


def _places(prompt: SlicePrompt | ScribblePrompt | PointPrompt) -> npt.NDArray[np.int64]:
    """A number for every voxel whose label a prompt says, the same in any prompt of a case."""
    if isinstance(prompt, PointPrompt):
        where = np.array([prompt.index], dtype=np.int64)
    else:
        where = np.argwhere(prompt.labels != UNLABELLED).astype(np.int64)
        where = np.insert(where, prompt.axis, prompt.index, axis=1)
    return np.asarray(where @ np.array([1 << 42, 1 << 21, 1], dtype=np.int64))


def _check_request(request: SliceRequest, shape: tuple[int, ...]) -> None:
    if not 0 <= request.axis < 3 or not 0 <= request.index < shape[request.axis]:
        raise UsageError(
            f"there is no slice {request.index} on axis {request.axis}",
            f"the case has the shape {shape}",
            "ask for a slice inside the volume",
        )


def _whole(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
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
