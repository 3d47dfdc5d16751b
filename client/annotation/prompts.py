"""Prompts: what an annotator draws, as values.

Planes are named by the array axis that they cut: a slice on axis ``a`` at index ``n`` is ``numpy.take(volume, n, a)``,
and its two axes are the remaining ones in ascending order.

A slice says all about its pixels, a scribble or a point only what it touches. Where two of them contradict each other,
the later one holds.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from wardround.errors import UsageError

UNLABELLED = 255

Labels2D = npt.NDArray[np.uint8]
Labels3D = npt.NDArray[np.uint8]
Shape = tuple[int, int, int]


@dataclass(frozen=True, order=True)
class SliceRequest:
    """A question to an annotator: please draw this slice.

    Parameters
    ----------
    axis
        0, 1 or 2: the array axis that the slice cuts.
    index
        Position along that axis, in voxels.
    """

    axis: int
    index: int


@dataclass(frozen=True, eq=False)
class SlicePrompt:
    """A slice on which every pixel is labelled.

    Parameters
    ----------
    axis, index
        Where, as in :class:`SliceRequest`.
    labels
        Shape of the slice (remaining axes in ascending order), uint8: 0 background, 1 … C-1 structures.
    """

    axis: int
    index: int
    labels: Labels2D

    @property
    def request(self) -> SliceRequest:
        """The question that this answers."""
        return SliceRequest(self.axis, self.index)


@dataclass(frozen=True, eq=False)
class ScribblePrompt:
    """Strokes on one slice; pixels without a stroke hold :data:`UNLABELLED`.

    Parameters
    ----------
    axis, index
        Where, as in :class:`SliceRequest`.
    labels
        Shape of the slice, uint8: 0 is a stroke that says background.
    remains
        Whether this is what an eraser left of a drawing. It costs nothing: the drawing as it was is charged.
    """

    axis: int
    index: int
    labels: Labels2D
    remains: bool = False


@dataclass(frozen=True)
class PointPrompt:
    """One click at voxel `index` ``(i, j, k)`` that gives its label."""

    index: tuple[int, int, int]
    label: int


@dataclass(frozen=True)
class ExtentPrompt:
    """The object's extent: two clicks an axis.

    Parameters
    ----------
    lower, upper
        First and last voxel index (inclusive) along i, j, k that holds any structure.
    """

    lower: tuple[int, int, int]
    upper: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class ErasePrompt:
    """An eraser on one slice: whatever was drawn on the voxels under it before is drawn no more.

    Parameters
    ----------
    axis, index
        Where, as in :class:`SliceRequest`.
    mask
        Shape of the slice, bool: True where the eraser went.
    """

    axis: int
    index: int
    mask: npt.NDArray[np.bool_]


Drawn = SlicePrompt | ScribblePrompt | PointPrompt
Prompt = SlicePrompt | ScribblePrompt | PointPrompt | ErasePrompt


@dataclass(frozen=True, eq=False)
class Annotations:
    """All that was drawn on one case so far. Immutable: :meth:`adding` returns a new value.

    Labels of a voxel are read in this order, and the last one holds: slices, scribbles, points, each in the order of
    their tuple. :meth:`adding` keeps this true to the order in which they were drawn.

    What was erased is kept in `erased` as it was drawn: it holds no more, and is paid for.
    """

    slices: tuple[SlicePrompt, ...] = ()
    extent: ExtentPrompt | None = None
    scribbles: tuple[ScribblePrompt, ...] = field(default=())
    points: tuple[PointPrompt, ...] = field(default=())
    erased: tuple[Drawn, ...] = field(default=())

    def adding(self, *prompts: Prompt) -> "Annotations":
        """These annotations and `prompts`, drawn one after the other.

        A slice drawn again replaces its earlier version. Strokes and points add up; those that a later slice or stroke
        covers stay, because they were drawn and are paid for, and take over its labels.

        An eraser takes away what lies under it, on crossing slices as well. Of a slice that loses a pixel, the rest
        goes on as a scribble.
        """
        if any(isinstance(prompt, ErasePrompt) for prompt in prompts):
            known = self
            for prompt in prompts:
                known = known._erasing(prompt) if isinstance(prompt, ErasePrompt) else known.adding(prompt)
            return known
        slices = {prompt.request: prompt for prompt in self.slices}
        scribbles, points = self.scribbles, self.points
        for prompt in prompts:
            match prompt:
                case SlicePrompt():
                    slices.pop(prompt.request, None)
                    slices[prompt.request] = prompt
                    scribbles = tuple(_relabelled_strokes(stroke, prompt) for stroke in scribbles)
                    points = tuple(_relabelled_point(point, prompt) for point in points)
                case ScribblePrompt():
                    scribbles = (*scribbles, prompt)
                    points = tuple(_relabelled_point(point, prompt) for point in points)
                case PointPrompt():
                    points = (*points, prompt)
                case ErasePrompt():
                    raise AssertionError("an eraser is applied on its own")
        return replace(self, slices=tuple(slices.values()), scribbles=scribbles, points=points)

    def _erasing(self, eraser: ErasePrompt) -> "Annotations":
        slices: list[SlicePrompt] = []
        scribbles: list[ScribblePrompt] = []
        erased: list[Drawn] = list(self.erased)
        for number, old in enumerate(self.slices):
            under = _under(eraser, old.axis, old.index, old.labels.shape)
            if under is None or not under.any():
                slices.append(old)
                continue
            erased.append(old)
            rest = ScribblePrompt(old.axis, old.index, np.where(under, np.uint8(UNLABELLED), old.labels), remains=True)
            # As a scribble it would hold over crossing slices, also over those that were drawn after it.
            for later in self.slices[number + 1 :]:
                rest = _relabelled_strokes(rest, later)
            scribbles.append(rest)
        for stroke in self.scribbles:
            under = _under(eraser, stroke.axis, stroke.index, stroke.labels.shape)
            if under is None or not (under & (stroke.labels != UNLABELLED)).any():
                scribbles.append(stroke)
                continue
            if not stroke.remains:
                erased.append(stroke)
            scribbles.append(replace(stroke, labels=np.where(under, np.uint8(UNLABELLED), stroke.labels), remains=True))
        points: list[PointPrompt] = []
        for point in self.points:
            first, second = (at for axis, at in enumerate(point.index) if axis != eraser.axis)
            gone = point.index[eraser.axis] == eraser.index and bool(eraser.mask[first, second])
            (erased if gone else points).append(point)
        return replace(
            self,
            slices=tuple(slices),
            scribbles=tuple(stroke for stroke in scribbles if (stroke.labels != UNLABELLED).any()),
            points=tuple(points),
            erased=tuple(erased),
        )

    def on_axis(self, axis: int) -> tuple[SlicePrompt, ...]:
        """The drawn slices of one plane, in ascending order of index."""
        return tuple(sorted((p for p in self.slices if p.axis == axis), key=lambda p: p.index))

    def checked(self, shape: Shape, labels: int) -> "Annotations":
        """The same annotations, if they can have been drawn on an image of `shape` with `labels` labels.

        Raises
        ------
        UsageError
            If a slice, a scribble, a point or the extent does not lie in the image, or a label is not below `labels`.
        """
        drawings: tuple[SlicePrompt | ScribblePrompt, ...] = self.slices + self.scribbles
        for drawn in drawings:
            _check_drawing(drawn, shape, labels)
        for point in self.points:
            if not all(0 <= at < side for at, side in zip(point.index, shape, strict=True)):
                raise UsageError(
                    f"the point {point.index} does not lie in an image of shape {shape}",
                    "it was set on another case",
                    "set points on the case that is propagated",
                )
            _check_label(point.label, labels, "a point")
        extent = self.extent
        if extent is not None and not all(
            0 <= low <= high < side for low, high, side in zip(extent.lower, extent.upper, shape, strict=True)
        ):
            raise UsageError(
                f"the extent {extent.lower} to {extent.upper} does not lie in an image of shape {shape}",
                "it was given on another case, or its corners are swapped",
                "give the extent on the case that is propagated",
            )
        return self


def plane(axis: int, index: int) -> tuple[slice | int, ...]:
    """What to index a volume with, to get the slice on `axis` at `index`."""
    return (slice(None),) * axis + (index,)


def scribbles_of(strokes: Labels3D, axis: int = 2) -> tuple[ScribblePrompt, ...]:
    """Cut a volume of strokes into scribbles, one for each slice on `axis` that holds any.

    Parameters
    ----------
    strokes
        ``[I, J, K]``, uint8, :data:`UNLABELLED` where there is no stroke.
    """
    cuts = ((index, np.take(strokes, index, axis)) for index in range(strokes.shape[axis]))
    return tuple(ScribblePrompt(axis, index, cut) for index, cut in cuts if (cut != UNLABELLED).any())


def looked_at(annotations: Annotations) -> Annotations:
    """The same with every slice that was scribbled on as a drawn one, for rules that choose further slices.

    A slice that holds a stroke of a structure shows the structure; what no stroke touches reads as background.
    """
    slices = {prompt.request: prompt for prompt in annotations.slices}
    for stroke in annotations.scribbles:
        request = SliceRequest(stroke.axis, stroke.index)
        labels = np.where(stroke.labels == UNLABELLED, np.uint8(0), stroke.labels)
        known = slices.get(request)
        slices[request] = SlicePrompt(
            stroke.axis, stroke.index, labels if known is None else np.maximum(labels, known.labels)
        )
    return replace(annotations, slices=tuple(slices.values()))


def check_prompt(prompt: Prompt, shape: Shape, labels: int) -> None:
    """Refuse a prompt that cannot have been drawn on an image of `shape` with `labels` labels.

    Raises
    ------
    UsageError
        As :meth:`Annotations.checked`, and for an eraser that does not fit.
    """
    if isinstance(prompt, ErasePrompt):
        expected = tuple(side for axis, side in enumerate(shape) if axis != prompt.axis)
        if prompt.axis not in range(3) or prompt.mask.shape != expected or not 0 <= prompt.index < shape[prompt.axis]:
            raise UsageError(
                f"an eraser on axis {prompt.axis} at {prompt.index} does not fit an image of shape {shape}",
                "it was used on another case",
                "erase on the case that is open",
            )
        return
    if not isinstance(prompt, PointPrompt) and prompt.axis not in range(3):
        raise UsageError(f"there is no axis {prompt.axis}", "a volume has the axes 0, 1 and 2", "correct the drawing")
    Annotations().adding(prompt).checked(shape, labels)


def _check_drawing(drawn: SlicePrompt | ScribblePrompt, shape: Shape, labels: int) -> None:
    name = "drawn slice" if isinstance(drawn, SlicePrompt) else "scribble"
    expected = tuple(side for axis, side in enumerate(shape) if axis != drawn.axis)
    if drawn.labels.shape != expected or not 0 <= drawn.index < shape[drawn.axis]:
        raise UsageError(
            f"a {name} on axis {drawn.axis} at {drawn.index} does not fit an image of shape {shape}",
            "it was drawn on another case",
            "draw on the case that is propagated",
        )
    touched = drawn.labels if isinstance(drawn, SlicePrompt) else drawn.labels[drawn.labels != UNLABELLED]
    if touched.size:
        _check_label(int(touched.max()), labels, f"a {name}")


def _check_label(label: int, labels: int, what: str) -> None:
    if not 0 <= label < labels:
        raise UsageError(
            f"{what} holds label {label}, the plan knows {labels} labels",
            "the drawing has more structures than the plan",
            "raise the number of labels or draw fewer structures",
        )


def _under(eraser: ErasePrompt, axis: int, index: int, shape: tuple[int, ...]) -> npt.NDArray[np.bool_] | None:
    """Which pixels of the slice on `axis` at `index` lie under the eraser; None for a parallel slice elsewhere."""
    if eraser.axis == axis:
        return eraser.mask if eraser.index == index else None
    own, other = ([along for along in range(3) if along != cut] for cut in (axis, eraser.axis))
    under = np.zeros(shape, dtype=bool)
    np.moveaxis(under, own.index(eraser.axis), 0)[eraser.index] = np.take(eraser.mask, index, other.index(axis))
    return under


def _relabelled_strokes(old: ScribblePrompt, new: SlicePrompt) -> ScribblePrompt:
    """The strokes of `old` with the labels of `new` where the slice covers them."""
    labels = old.labels
    if old.axis == new.axis:
        over = np.full_like(labels, UNLABELLED) if old.index != new.index else new.labels
    else:
        # Two planes cross in a line: `new.index` along one axis of the old slice, `old.index` along one of the new.
        first, second = ([axis for axis in range(3) if axis != prompt.axis] for prompt in (old, new))
        over = np.full_like(labels, UNLABELLED)
        np.moveaxis(over, first.index(new.axis), 0)[new.index] = np.take(new.labels, old.index, second.index(old.axis))
    covered = (labels != UNLABELLED) & (over != UNLABELLED) & (over != labels)
    return replace(old, labels=np.where(covered, over, labels)) if covered.any() else old


def _relabelled_point(point: PointPrompt, new: SlicePrompt | ScribblePrompt) -> PointPrompt:
    if point.index[new.axis] != new.index:
        return point
    first, second = (at for axis, at in enumerate(point.index) if axis != new.axis)
    label = int(new.labels[first, second])
    return point if label in (UNLABELLED, point.label) else replace(point, label=label)
