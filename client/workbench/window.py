"""Which part of a large image a desk works on: the box round what is drawn, in which a stroke is answered in time.

Whoever draws sees and says everything in voxels of the image. Inside, a case is propagated, learnt from and predicted
in its window, which moves when somebody draws near its border. A small image is its own window.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from wardround.client.annotation.point_sets import point_sets
from wardround.client.annotation.prompts import (
    UNLABELLED,
    Annotations,
    ErasePrompt,
    ExtentPrompt,
    PointPrompt,
    Prompt,
    ScribblePrompt,
    Shape,
    SlicePrompt,
    SliceRequest,
)
from wardround.client.cases.volume import Volume
from wardround.client.workbench.layers import Box6

LIVE_VOXELS = 2**22
"""An image of no more voxels is worked on as a whole."""
SIDE = 128
"""Voxels along each side of a window, at least, where the image has so many."""
MARGIN = 32
"""Voxels of a new window round what is drawn."""
# Whoever draws nearer to the border than this moves the window: propagation looks so far beyond a drawing.
_RIM = 8


@dataclass(frozen=True)
class Window:
    """A box of an image.

    Parameters
    ----------
    image
        ``(I, J, K)`` of the image.
    box
        ``(i0, i1, j0, j1, k0, k1)``, half-open.
    """

    image: Shape
    box: Box6

    @property
    def origin(self) -> Shape:
        """First voxel."""
        return self.box[0], self.box[2], self.box[4]

    @property
    def end(self) -> Shape:
        """One past the last voxel."""
        return self.box[1], self.box[3], self.box[5]

    @property
    def shape(self) -> Shape:
        """Voxels along each side."""
        i0, i1, j0, j1, k0, k1 = self.box
        return i1 - i0, j1 - j0, k1 - k0

    @property
    def is_whole(self) -> bool:
        """Whether it is the image."""
        return self.shape == self.image

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """What to index the image with."""
        i0, i1, j0, j1, k0, k1 = self.box
        return slice(i0, i1), slice(j0, j1), slice(k0, k1)

    def crop(self, volume: Volume) -> Volume:
        """The part of `volume` that lies in it, at the same place of the patient."""
        if self.is_whole:
            return volume
        affine = volume.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ np.array(self.origin)
        return Volume(np.ascontiguousarray(volume.array[self.slices]), affine)

    def answers(self, annotations: Annotations) -> bool:
        """Whether everything that matters of what is drawn lies well inside."""
        needed = _needed(self.image, annotations)
        return self.is_whole or all(
            (low - _RIM >= first or first == 0) and (high + _RIM <= end or end == side)
            for low, high, first, end, side in zip(*needed, self.origin, self.end, self.image, strict=True)
        )

    def local(self, prompt: Prompt) -> Prompt | None:
        """The same prompt in voxels of the window; None where nothing of it lies inside."""
        if self.is_whole:
            return prompt
        if isinstance(prompt, PointPrompt):
            i, j, k = (at - first for at, first in zip(prompt.index, self.origin, strict=True))
            inside = all(0 <= at < side for at, side in zip((i, j, k), self.shape, strict=True))
            return replace(prompt, index=(i, j, k)) if inside else None
        index = prompt.index - self.origin[prompt.axis]
        if not 0 <= index < self.shape[prompt.axis]:
            return None
        cut = tuple(side for axis, side in enumerate(self.slices) if axis != prompt.axis)
        if isinstance(prompt, ErasePrompt):
            return ErasePrompt(prompt.axis, index, np.ascontiguousarray(prompt.mask[cut]))
        labels = np.ascontiguousarray(prompt.labels[cut])
        if isinstance(prompt, ScribblePrompt) and (labels == UNLABELLED).all():
            return None
        return replace(prompt, index=index, labels=labels)

    def locals(self, *prompts: Prompt) -> tuple[Prompt, ...]:
        """What of `prompts` lies inside."""
        return tuple(found for prompt in prompts if (found := self.local(prompt)) is not None)

    def local_extent(self, extent: ExtentPrompt | None) -> ExtentPrompt | None:
        """The part of an extent that lies inside."""
        if extent is None or self.is_whole:
            return extent
        sides = [
            (min(max(low - first, 0), side - 1), min(max(high - first, 0), side - 1))
            for low, high, first, side in zip(extent.lower, extent.upper, self.origin, self.shape, strict=True)
        ]
        (i0, i1), (j0, j1), (k0, k1) = sides
        return ExtentPrompt((i0, j0, k0), (i1, j1, k1))

    def outside(self, request: SliceRequest) -> SliceRequest:
        """A slice of the window as one of the image."""
        return replace(request, index=request.index + self.origin[request.axis])


def window_for(image: Shape, annotations: Annotations) -> Window:
    """Where to work on an image of that shape on which this is drawn; its middle where nothing is."""
    if math.prod(image) <= LIVE_VOXELS:
        return Window(image, (0, image[0], 0, image[1], 0, image[2]))
    lower, upper = _needed(image, annotations)
    box = []
    for low, high, side in zip(lower, upper, image, strict=True):
        extent, middle = (high - low, (low + high) / 2) if low <= high else (0, side / 2)
        wanted = min(side, max(SIDE, math.ceil(extent) + 2 * MARGIN))
        first = min(max(round(middle - wanted / 2), 0), side - wanted)
        box += [first, first + wanted]
    return Window(image, (box[0], box[1], box[2], box[3], box[4], box[5]))


def around(labels: npt.NDArray[np.uint8]) -> Window:
    """Where to work on an image of which this ``[I, J, K]`` is the whole label."""
    i, j, k = labels.shape
    found = np.flatnonzero(labels.any(axis=(0, 1)))
    if math.prod(labels.shape) <= LIVE_VOXELS or not found.size:
        return window_for((i, j, k), Annotations())
    part = labels[:, :, found[0] : found[-1] + 1]
    rows, columns = np.flatnonzero(part.any(axis=(1, 2))), np.flatnonzero(part.any(axis=(0, 2)))
    extent = ExtentPrompt(
        (int(rows[0]), int(columns[0]), int(found[0])), (int(rows[-1]), int(columns[-1]), int(found[-1]))
    )
    return window_for((i, j, k), Annotations(extent=extent))


def _needed(image: Shape, annotations: Annotations) -> tuple[list[float], list[float]]:
    """First and one past the last voxel of what must lie inside: structures, or all strokes where they show none."""
    for least in (1, 0):
        lower, upper = [math.inf] * 3, [-math.inf] * 3
        for first, end in _drawn_boxes(image, annotations, least):
            lower = [min(pair) for pair in zip(lower, first, strict=True)]
            upper = [max(pair) for pair in zip(upper, end, strict=True)]
        if lower[0] <= upper[0]:
            break
    return lower, upper


def _drawn_boxes(image: Shape, annotations: Annotations, least: int) -> list[tuple[list[int], list[int]]]:
    """First and one past the last voxel of each drawing, of its labels from `least` on."""
    found = []
    if annotations.extent is not None:
        found.append((list(annotations.extent.lower), [last + 1 for last in annotations.extent.upper]))
    for point in annotations.points:
        if point.label >= least:
            found.append((list(point.index), [at + 1 for at in point.index]))
    # Six of seven points say where a structure ends, and hold the label of what lies there.
    for seven in point_sets(annotations.points, image).complete:
        found.append(([side.start for side in seven.box], [side.stop for side in seven.box]))
    planes: tuple[SlicePrompt | ScribblePrompt, ...] = (*annotations.slices, *annotations.scribbles)
    for prompt in planes:
        drawn = (prompt.labels >= least) & (prompt.labels != UNLABELLED)
        rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
        if rows.size:
            first, end = [int(rows[0]), int(columns[0])], [int(rows[-1]) + 1, int(columns[-1]) + 1]
            first.insert(prompt.axis, prompt.index)
            end.insert(prompt.axis, prompt.index + 1)
            found.append((first, end))
    return found
