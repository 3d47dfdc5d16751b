"""Drawings and answers as JSON: how the page and the workbench write them to each other.

The labels of a plane travel as runs, in C order: ``{"shape": [a, b], "rle": [[value, count], …]}``. In a scribble 255
stands where nothing is drawn; in the mask of an eraser 1 stands where it went.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wardround.client.annotation.prompts import (
    UNLABELLED,
    Annotations,
    ErasePrompt,
    ExtentPrompt,
    PointPrompt,
    Prompt,
    ScribblePrompt,
    SlicePrompt,
)
from wardround.client.workbench.views import Answer, CaseView, Outcome, Progress
from wardround.errors import UsageError

MOST_PROMPTS = 256
"""In one drawing."""
_MOST_SIDE = 4096

_Axis = Annotated[int, Field(ge=0, le=2)]
_Position = Annotated[int, Field(ge=0, lt=2**20)]
_Label = Annotated[int, Field(ge=0, lt=UNLABELLED)]
_Index = tuple[_Position, _Position, _Position]
_Side = Annotated[int, Field(ge=1, le=_MOST_SIDE)]
_Run = tuple[Annotated[int, Field(ge=0, le=255)], Annotated[int, Field(ge=1, le=_MOST_SIDE**2)]]


class _Json(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PlaneJson(_Json):
    """The values of a plane."""

    shape: tuple[_Side, _Side]
    rle: tuple[_Run, ...]

    @model_validator(mode="after")
    def _fills_its_shape(self) -> "PlaneJson":
        if sum(count for _, count in self.rle) != self.shape[0] * self.shape[1]:
            raise ValueError("the runs do not fill the shape")
        return self

    def values(self) -> npt.NDArray[np.uint8]:
        """As an array of its shape."""
        runs = np.asarray(self.rle, dtype=np.int64)
        return np.repeat(runs[:, 0].astype(np.uint8), runs[:, 1]).reshape(self.shape)


class DrawnJson(_Json):
    """A slice of which every pixel is labelled, or strokes on one."""

    kind: Literal["slice", "scribble"]
    axis: _Axis
    index: _Position
    labels: PlaneJson

    def prompt(self) -> Prompt:
        """As the studio takes it."""
        kind = SlicePrompt if self.kind == "slice" else ScribblePrompt
        return kind(self.axis, self.index, self.labels.values())


class PointJson(_Json):
    """A click."""

    kind: Literal["point"]
    index: _Index
    label: _Label

    def prompt(self) -> Prompt:
        """As the studio takes it."""
        return PointPrompt(self.index, self.label)


class EraseJson(_Json):
    """An eraser on one slice."""

    kind: Literal["erase"]
    axis: _Axis
    index: _Position
    mask: PlaneJson

    def prompt(self) -> Prompt:
        """As the studio takes it."""
        return ErasePrompt(self.axis, self.index, self.mask.values() != 0)


class ExtentJson(_Json):
    """First and last voxel of the object along each axis."""

    lower: _Index
    upper: _Index


class DrawJson(_Json):
    """What was drawn between two answers."""

    prompts: Annotated[
        tuple[Annotated[DrawnJson | PointJson | EraseJson, Field(discriminator="kind")], ...],
        Field(max_length=MOST_PROMPTS),
    ] = ()
    extent: ExtentJson | None = None

    def check(self, shape: tuple[int, int, int]) -> None:
        """Refuse planes that are none of an image of `shape`: a few runs can stand for gigabytes.

        Raises
        ------
        UsageError
            If there is one. Nothing was unpacked by then.
        """
        for prompt in self.prompts:
            if isinstance(prompt, PointJson):
                continue
            given = prompt.mask if isinstance(prompt, EraseJson) else prompt.labels
            if given.shape != tuple(side for axis, side in enumerate(shape) if axis != prompt.axis):
                raise UsageError(
                    f"a plane on axis {prompt.axis} does not fit an image of shape {shape}",
                    "it was drawn on another case",
                    "draw on the case that is open",
                )

    def values(self) -> tuple[tuple[Prompt, ...], ExtentPrompt | None]:
        """As the studio takes it."""
        extent = None if self.extent is None else ExtentPrompt(self.extent.lower, self.extent.upper)
        return tuple(prompt.prompt() for prompt in self.prompts), extent


async def _body(request: Request) -> bytes:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        # A form of another site's page can be sent without asking; JSON cannot.
        raise RequestValidationError([{"loc": ("body",), "type": "no-json"}])
    return await request.body()


def drawing(data: Annotated[bytes, Depends(_body)]) -> DrawJson:
    """A drawing that was sent. It is read in a thread, by a parser that is fast and goes down a few levels only.

    Raises
    ------
    RequestValidationError
        If it cannot be read.
    """
    try:
        return DrawJson.model_validate_json(data)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in found]) from error


_SCHEMAS = "#/components/schemas/"
DRAW_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": f"{_SCHEMAS}{DrawJson.__name__}"}}},
    }
}
"""What the description of our API says of it."""


def draw_schemas() -> dict[str, Any]:
    """The form of a drawing and of its parts, by name, for the components of that description."""
    whole = DrawJson.model_json_schema(ref_template=_SCHEMAS + "{model}")
    parts: dict[str, Any] = whole.pop("$defs")
    return {**parts, DrawJson.__name__: whole}


def plane(values: npt.NDArray[Any]) -> dict[str, Any]:
    """The values of a plane ``[a, b]``, uint8 or bool, as runs."""
    flat = np.ascontiguousarray(values, dtype=np.uint8).ravel()
    starts = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), len(flat)]
    return {
        "shape": list(values.shape),
        "rle": [[int(flat[start]), end - start] for start, end in pairwise(starts) if end > start],
    }


def drawn(annotations: Annotations) -> list[dict[str, Any]]:
    """All that is drawn, in the form in which it is sent here: slices, strokes, points, in the order that holds."""
    kinds = (("slice", annotations.slices), ("scribble", annotations.scribbles))
    planes: list[dict[str, Any]] = [
        {"kind": kind, "axis": one.axis, "index": one.index, "labels": plane(one.labels)}
        for kind, prompts in kinds
        for one in prompts
    ]
    points = [{"kind": "point", "index": list(one.index), "label": one.label} for one in annotations.points]
    return [*planes, *points]


def answer(given: Answer) -> dict[str, Any]:
    """What a person sees after a stroke."""
    extent = given.annotations.extent
    return {
        "case_id": given.case_id,
        "step": given.step,
        "can_undo": given.can_undo,
        "can_redo": given.can_redo,
        "suggestion": [{"axis": one.axis, "index": one.index} for one in given.suggestion],
        "effort_contour": given.effort_contour,
        "effort_strict": given.effort_strict,
        "effort_share": given.effort_share,
        "changed": given.changed,
        "versions": dict(given.versions),
        "latency_ms": dict(given.latency_ms),
        "progress": progress(given.progress),
        "drawn": drawn(given.annotations),
        "extent": None if extent is None else {"lower": list(extent.lower), "upper": list(extent.upper)},
        "prompts": given.prompts,
        "points": {
            "complete": [point_set((one.inner, *one.outer)) for one in given.points.complete],
            "begun": point_set(given.points.begun) if given.points.begun else None,
        },
    }


def point_set(points: Sequence[PointPrompt]) -> dict[str, Any]:
    """The points of one structure, the one inside it first."""
    inner, *outer = points
    return {"label": inner.label, "inner": list(inner.index), "outer": [list(point.index) for point in outer]}


def progress(given: Progress) -> dict[str, Any]:
    """What the model behind a drawing is and does."""
    return asdict(given)


def case(given: CaseView) -> dict[str, Any]:
    """One line of a work list."""
    return asdict(given)


def outcome(given: Outcome) -> Mapping[str, Any]:
    """How a case was closed."""
    return asdict(given)
