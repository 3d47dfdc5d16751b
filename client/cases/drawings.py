"""What one person drew on one case, as a value and as bytes.

A drawing is everything that is needed to go on with it the next day, to show it to somebody else, or to learn from it
again: the prompts step by step, those that were undone, and what became of it.

On disk it is an ``.npz`` file of two arrays of bytes, which NumPy reads as well: ``header``, a JSON text, and
``pixels``, the labels of all strokes and slices one after the other in C order. A stroke is cut to the box of its
pixels. Decoding unpickles nothing, allocates no more than :data:`LARGEST` allows, and refuses whatever :func:`encode`
would not have written.
"""

import io
import math
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

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
from wardround.errors import StorageError, UsageError

State = Literal["open", "accepted", "skipped", "approved", "rejected"]
Source = Literal["proxy", "prediction", "whole"]

REASONS = frozenset(
    {
        "", "image-quality", "not-visible", "wrong-region", "wrong-case", "duplicate", "unsure", "later",
        "incomplete", "inaccurate", "wrong-structure", "other",
    }
)  # fmt: skip
"""Why a case was skipped or a label rejected: a closed list, so that no text about a patient is kept."""
FORMAT = 1
LARGEST = 2**30
"""Pixels that the slices, strokes and erasures of one drawing may have in all, uncut."""

_MAX_HEADER = 2**26
_MAX_SIDE = 2**14
_SAFE_MODEL = re.compile(r"[A-Za-z0-9:._-]{0,128}")
_HEADER, _PIXELS = "header.npy", "pixels.npy"


@dataclass(frozen=True, eq=False)
class Drawing:
    """What one author drew on one case.

    Parameters
    ----------
    case_id, author
        Not empty.
    steps
        In order; a step is what was drawn between two answers of the model. An empty step says nothing.
    extent
        Where the object lies, if the author gave it.
    undone
        Steps that can be done again, the one that was undone last at the end.
    state
        ``open`` is a draft; ``accepted`` and ``skipped`` are the author's word, ``approved`` and ``rejected`` a
        reviewer's on an accepted one.
    source
        What the accepted label is: the ``proxy`` of these steps, the model's ``prediction``, or a ``whole`` label from
        elsewhere.
    effort_contour, effort_strict
        What it cost, in boundary pixels, see :mod:`wardround.client.annotation.effort`; 0 or above.
    round
        The federation's round in which it was drawn, 0 or above.
    model
        Digest of the weights that were in front of the author; empty if not known.
    seconds
        How long the case was open, 0 or above.
    reason
        One of :data:`REASONS`, for a skipped or rejected case.

    Raises
    ------
    UsageError
        If a value is out of its range.
    """

    case_id: str
    author: str
    steps: tuple[tuple[Prompt, ...], ...] = ()
    extent: ExtentPrompt | None = None
    undone: tuple[tuple[Prompt, ...], ...] = ()
    state: State = "open"
    source: Source = "proxy"
    effort_contour: float = 0.0
    effort_strict: float = 0.0
    round: int = 0
    model: str = ""
    seconds: float = 0.0
    reason: str = ""

    def __post_init__(self) -> None:
        wrong = [
            name
            for name, right in (
                ("case_id", bool(self.case_id)),
                ("author", bool(self.author)),
                ("state", self.state in get_args(State)),
                ("source", self.source in get_args(Source)),
                ("effort_contour", _is_amount(self.effort_contour)),
                ("effort_strict", _is_amount(self.effort_strict)),
                ("round", self.round >= 0),
                ("model", _SAFE_MODEL.fullmatch(self.model) is not None),
                ("seconds", _is_amount(self.seconds)),
                ("reason", self.reason in REASONS),
            )
            if not right
        ]
        if wrong:
            raise UsageError(
                f"a drawing cannot have such a value of {wrong[0]}",
                "it is empty, unknown, negative or not finite",
                "correct the call",
            )

    @property
    def drawn(self) -> tuple[tuple[Prompt, ...], ...]:
        """The steps that say something."""
        return tuple(step for step in self.steps if step)

    @property
    def annotations(self) -> Annotations:
        """All that is drawn, as it stands."""
        known = Annotations(extent=self.extent)
        for step in self.steps:
            known = known.adding(*step)
        return known

    def in_groups(self, most: int) -> tuple[tuple[Prompt, ...], ...]:
        """The same prompts in the same order, in at most `most` steps, for a round that answers so often.

        Steps that are too many are put together, as evenly as they go; where they are too few, the prompts are dealt
        out evenly. A step after which nothing is left of what was drawn joins the next one, and is left out at the end.
        """
        parts: Sequence[tuple[Prompt, ...]] = self.drawn
        if len(parts) < most:
            parts = [(prompt,) for step in parts for prompt in step]
        groups: list[tuple[Prompt, ...]] = []
        waiting: tuple[Prompt, ...] = ()
        so_far = Annotations()
        for start, end in _evenly(len(parts), most):
            waiting += tuple(prompt for part in parts[start:end] for prompt in part)
            if _leaves_something(so_far.adding(*waiting)):
                so_far = so_far.adding(*waiting)
                groups.append(waiting)
                waiting = ()
        return tuple(groups)

    @property
    def classes(self) -> int:
        """How many classes, background included, a plan must have to learn from these steps."""
        highest = 0
        for prompt in (prompt for step in self.steps for prompt in step):
            if isinstance(prompt, PointPrompt):
                highest = max(highest, prompt.label)
            elif isinstance(prompt, SlicePrompt | ScribblePrompt):
                touched = prompt.labels[prompt.labels != UNLABELLED]
                highest = max(highest, int(touched.max(initial=0)))
        return highest + 1

    def fits(self, shape: tuple[int, int, int]) -> bool:
        """Whether all of it, what was undone too, can have been drawn on an image of `shape`."""
        steps = (*self.steps, *self.undone)
        inside = all(_fits(prompt, shape) for step in steps for prompt in step)
        extent = self.extent
        return inside and (
            extent is None
            or all(0 <= low <= high < side for low, high, side in zip(extent.lower, extent.upper, shape, strict=True))
        )


_Index = tuple[int, int, int]
_Axis = Annotated[int, Field(ge=0, le=2)]
_Count = Annotated[int, Field(ge=0, lt=2**31)]
_Side = Annotated[int, Field(ge=0, le=_MAX_SIDE)]
_Label = Annotated[int, Field(ge=0, lt=UNLABELLED)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class _Plane(_Strict):
    """A prompt on a plane: its pixels inside `box`, half-open, are the next ones of the array of pixels."""

    kind: Literal["slice", "scribble", "erase"]
    axis: _Axis
    index: _Count
    shape: tuple[_Side, _Side]
    box: tuple[_Side, _Side, _Side, _Side]


class _Point(_Strict):
    kind: Literal["point"]
    index: tuple[_Count, _Count, _Count]
    label: _Label


class _Extent(_Strict):
    lower: _Index
    upper: _Index


_Step = tuple[Annotated[_Plane | _Point, Field(discriminator="kind")], ...]


class _Header(_Strict):
    format: Annotated[int, Field(ge=FORMAT, le=FORMAT)]
    case_id: str
    author: str
    steps: tuple[_Step, ...]
    extent: _Extent | None
    undone: tuple[_Step, ...]
    state: State
    source: Source
    effort_contour: float
    effort_strict: float
    round: int
    model: str
    seconds: float
    reason: str


def encode(drawing: Drawing) -> bytes:
    """The bytes of a drawing: an ``.npz`` file; equal drawings give equal bytes.

    Raises
    ------
    UsageError
        If it is larger than :data:`LARGEST`, or a prompt is none that can be drawn.
    """
    pixels: list[npt.NDArray[np.uint8]] = []
    extent = drawing.extent
    try:
        header = _Header(
            format=FORMAT,
            case_id=drawing.case_id,
            author=drawing.author,
            steps=tuple(_describe(step, pixels) for step in drawing.steps),
            extent=None if extent is None else _Extent(lower=_plain(extent.lower), upper=_plain(extent.upper)),
            undone=tuple(_describe(step, pixels) for step in drawing.undone),
            state=drawing.state,
            source=drawing.source,
            effort_contour=float(drawing.effort_contour),
            effort_strict=float(drawing.effort_strict),
            round=int(drawing.round),
            model=drawing.model,
            seconds=float(drawing.seconds),
            reason=drawing.reason,
        )
        text = header.model_dump_json().encode()
        _check_size(header, len(text))
    except (ValidationError, ValueError, TypeError) as error:
        raise UsageError(
            "the drawing cannot be stored", "it is too large, or holds what cannot be drawn", "draw in smaller steps"
        ) from error
    flat = np.concatenate([part.ravel() for part in pixels]) if pixels else np.zeros(0, dtype=np.uint8)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in ((_HEADER, text), (_PIXELS, flat.tobytes())):
            # ZipInfo's own date: the same drawing must give the same bytes.
            archive.writestr(zipfile.ZipInfo(name), _preamble(len(data)) + data, zipfile.ZIP_DEFLATED, compresslevel=1)
    return stream.getvalue()


def decode(data: bytes) -> Drawing:
    """The drawing in `data`, as :func:`encode` wrote it.

    Raises
    ------
    StorageError
        If it is anything else: damaged, of a newer version, or made to harm.
    """
    try:
        text, raw = _members(data)
        header = _Header.model_validate_json(text)
        _check_size(header, len(text))
        pixels = _Pixels(raw)
        drawing = Drawing(
            case_id=header.case_id,
            author=header.author,
            steps=tuple(pixels.step(step) for step in header.steps),
            extent=None if header.extent is None else ExtentPrompt(header.extent.lower, header.extent.upper),
            undone=tuple(pixels.step(step) for step in header.undone),
            state=header.state,
            source=header.source,
            effort_contour=header.effort_contour,
            effort_strict=header.effort_strict,
            round=header.round,
            model=header.model,
            seconds=header.seconds,
            reason=header.reason,
        )
        pixels.check_end()
    except (
        ValueError,
        TypeError,
        UsageError,
        OSError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
    ) as error:
        raise StorageError(
            "a stored drawing cannot be read",
            f"it is damaged, or of another version ({type(error).__name__})",
            "check the disk, update Wardround, or restore the store from a backup",
        ) from error
    return drawing


class _Pixels:
    """The array of pixels, taken from its front."""

    def __init__(self, raw: bytes) -> None:
        self._flat = np.frombuffer(raw, dtype=np.uint8)
        self._at = 0

    def step(self, step: _Step) -> tuple[Prompt, ...]:
        return tuple(self._prompt(entry) for entry in step)

    def check_end(self) -> None:
        if self._at != len(self._flat):
            raise ValueError("pixels are left over")

    def _prompt(self, entry: _Plane | _Point) -> Prompt:
        if isinstance(entry, _Point):
            return PointPrompt(entry.index, entry.label)
        top, bottom, left, right = entry.box
        height, width = entry.shape
        if not (top <= bottom <= height and left <= right <= width):
            raise ValueError("a box lies outside its plane")
        size = (bottom - top) * (right - left)
        if self._at + size > len(self._flat):
            raise ValueError("pixels are missing")
        inside = self._flat[self._at : self._at + size].reshape(bottom - top, right - left)
        self._at += size
        labels = np.full(entry.shape, 0 if entry.kind == "erase" else UNLABELLED, dtype=np.uint8)
        labels[top:bottom, left:right] = inside
        if entry.kind == "scribble":
            return ScribblePrompt(entry.axis, entry.index, labels)
        if entry.kind == "slice":
            if (labels == UNLABELLED).any():
                raise ValueError("a slice has a pixel without a label")
            return SlicePrompt(entry.axis, entry.index, labels)
        if (inside > 1).any():
            raise ValueError("a mask holds more than yes and no")
        return ErasePrompt(entry.axis, entry.index, labels.astype(bool))


def _describe(step: Sequence[Prompt], pixels: list[npt.NDArray[np.uint8]]) -> _Step:
    """The entries of a step in the header; its pixels are added to `pixels`."""
    return tuple(_entry(prompt, pixels) for prompt in step)


def _entry(prompt: Prompt, pixels: list[npt.NDArray[np.uint8]]) -> _Plane | _Point:
    if isinstance(prompt, PointPrompt):
        return _Point(kind="point", index=_plain(prompt.index), label=int(prompt.label))
    kind: Literal["slice", "scribble", "erase"]
    if isinstance(prompt, ErasePrompt):
        kind, values = "erase", np.asarray(prompt.mask, dtype=bool).astype(np.uint8)
        touched = values != 0
    else:
        kind, values = ("slice" if isinstance(prompt, SlicePrompt) else "scribble"), np.asarray(prompt.labels)
        if values.dtype != np.uint8 or (isinstance(prompt, ScribblePrompt) and prompt.remains):
            raise ValueError("no labels of a prompt")
        touched = values != UNLABELLED
        if kind == "slice" and not touched.all():
            raise ValueError("a slice labels every pixel")
    height, width = values.shape
    box = (0, height, 0, width) if kind == "slice" else _box(touched)
    pixels.append(values[box[0] : box[1], box[2] : box[3]])
    return _Plane(kind=kind, axis=int(prompt.axis), index=int(prompt.index), shape=(height, width), box=box)


def _box(touched: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The smallest box that holds all that is true, half-open; all zeros where nothing is."""
    rows, columns = np.flatnonzero(touched.any(axis=1)), np.flatnonzero(touched.any(axis=0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _check_size(header: _Header, text: int) -> None:
    planes = (entry for step in (*header.steps, *header.undone) for entry in step if isinstance(entry, _Plane))
    if text > _MAX_HEADER or sum(plane.shape[0] * plane.shape[1] for plane in planes) > LARGEST:
        raise ValueError("the drawing is too large")


def _members(data: bytes) -> tuple[bytes, bytes]:
    """Header and pixels, of exactly these two members, each a NumPy array of bytes."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if [entry.filename for entry in entries] != [_HEADER, _PIXELS]:
            raise ValueError("other members than a drawing has")
        found = []
        for entry, most in zip(entries, (_MAX_HEADER, LARGEST), strict=True):
            if entry.file_size > most + len(_preamble(0)) or entry.flag_bits & 1:
                raise ValueError("a member is too large or encrypted")
            content = archive.read(entry)  # no more than `file_size`, and its checksum is verified
            start = len(_preamble(0))
            if content[:start] != _preamble(len(content) - start):
                raise ValueError("a member is no array of bytes")
            found.append(content[start:])
    return found[0], found[1]


def _preamble(size: int) -> bytes:
    """What stands before `size` bytes in a file of NumPy's, version 1.0: 128 bytes."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({size},), }}".encode()
    return b"\x93NUMPY\x01\x00\x76\x00" + text.ljust(117) + b"\n"


def _plain(index: Iterable[int]) -> tuple[int, int, int]:
    i, j, k = (int(at) for at in index)
    return i, j, k


def _evenly(count: int, most: int) -> Iterator[tuple[int, int]]:
    """First and one past the last of `count` things, for each of at most `most` groups; the earlier are the larger."""
    groups = min(most, count)
    end = 0
    for number in range(groups):
        start, end = end, end + count // groups + (number < count % groups)
        yield start, end


def _leaves_something(drawn: Annotations) -> bool:
    strokes = (stroke.labels for stroke in drawn.scribbles)
    return bool(drawn.slices or drawn.points) or any((labels != UNLABELLED).any() for labels in strokes)


def _is_amount(value: float) -> bool:
    return value >= 0 and math.isfinite(value)


def _fits(prompt: Prompt, shape: tuple[int, int, int]) -> bool:
    if isinstance(prompt, PointPrompt):
        return all(0 <= at < side for at, side in zip(prompt.index, shape, strict=True))
    values = prompt.mask if isinstance(prompt, ErasePrompt) else prompt.labels
    expected = tuple(side for axis, side in enumerate(shape) if axis != prompt.axis)
    return 0 <= prompt.axis < 3 and values.shape == expected and 0 <= prompt.index < shape[prompt.axis]
