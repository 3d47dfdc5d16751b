"""The bytes of a drawing, as the case store and the rounds keep them.

They are an ``.npz`` file of two arrays of bytes, which NumPy reads as well: ``header``, a JSON text, and ``pixels``,
the labels of all strokes and slices one after the other in C order. A stroke is cut to the box of its pixels. Decoding
unpickles nothing, allocates no more than :data:`LARGEST` allows, and refuses whatever :func:`encode` would not have
written.
"""

import io
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wardround.client.annotation.prompts import (
    UNLABELLED,
    ErasePrompt,
    ExtentPrompt,
    PointPrompt,
    Prompt,
    ScribblePrompt,
    SlicePrompt,
)
from wardround.client.cases.drawings import Drawing, Source, State
from wardround.errors import StorageError, UsageError

FORMAT = 1
LARGEST = 2**30
"""Pixels that the slices, strokes and erasures of one drawing may have in all, uncut."""

_MAX_HEADER = 2**26
_MAX_SIDE = 2**14
_HEADER, _PIXELS = "header.npy", "pixels.npy"

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
