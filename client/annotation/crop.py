"""Which part of a volume is looked at: the crop that votes are made in, and the box that may hold an object."""

import numpy as np
import numpy.typing as npt

from wardround.client.annotation.prompts import UNLABELLED, Annotations

Box = tuple[slice, slice, slice]
LabelArray = npt.NDArray[np.uint8]

# Without an extent the object is looked for this far beyond what was drawn: a share of its size, at least some voxels.
SLACK = 0.25
LEAST_SLACK = 4


def boxes(
    shape: tuple[int, int, int], annotations: Annotations, strokes: LabelArray | None, margin: int, grain: int = 1
) -> tuple[Box, Box | None]:
    """The crop in which votes are made, and the box inside it that may hold an object (None: there is no object).

    Parameters
    ----------
    shape
        Of the volume.
    annotations
        Drawn slices and, where known, the extent, which is the inner box.
    strokes
        ``[I, J, K]``: labels of strokes and points, :data:`UNLABELLED` elsewhere; None if there are none.
    margin
        Voxels of the crop round the inner box.
    grain
        The crop ends at multiples of this, or with the volume.
    """
    whole = (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))
    if annotations.extent is not None:
        bounds = zip(annotations.extent.lower, annotations.extent.upper, strict=True)
        i, j, k = (slice(low, high + 1) for low, high in bounds)
        return _grown((i, j, k), shape, margin, grain), (i, j, k)
    inner = _drawn_box(shape, annotations)
    if strokes is not None:
        inside = np.argwhere((strokes != UNLABELLED) & (strokes > 0))
        if inner is None:
            inner = whole if len(inside) else None
        elif len(inside):
            stroked = zip(inside.min(axis=0).tolist(), inside.max(axis=0).tolist(), strict=True)
            i, j, k = (
                slice(min(side.start, max(low - LEAST_SLACK, 0)), max(side.stop, min(high + 1 + LEAST_SLACK, length)))
                for side, (low, high), length in zip(inner, stroked, shape, strict=True)
            )
            inner = (i, j, k)
    return (whole, None) if inner is None else (_grown(inner, shape, margin, grain), inner)


def within(inner: Box, box: Box) -> Box:
    """`inner` relative to the crop `box` that it lies in."""
    i, j, k = (slice(i.start - b.start, i.stop - b.start) for i, b in zip(inner, box, strict=True))
    return i, j, k


def _drawn_box(shape: tuple[int, int, int], annotations: Annotations) -> Box | None:
    """What was drawn tells how far the object reaches within the drawn planes; None if no slice shows it."""
    bounds: list[list[int]] = [[], [], []]
    for prompt in annotations.slices:
        others = [axis for axis in range(3) if axis != prompt.axis]
        found = prompt.labels > 0
        if not found.any():
            continue
        for position, axis in enumerate(others):
            along = np.flatnonzero(found.any(axis=1 - position))
            bounds[axis] += [int(along[0]), int(along[-1])]
        bounds[prompt.axis] += [prompt.index]
    if not any(bounds):
        return None
    sides = []
    for axis in range(3):
        # Along an axis that only its own slices cut, nothing says where the object ends.
        if not any(prompt.axis != axis and prompt.labels.any() for prompt in annotations.slices):
            sides.append(slice(0, shape[axis]))
            continue
        low, high = min(bounds[axis]), max(bounds[axis])
        slack = max(int((high - low + 1) * SLACK), LEAST_SLACK)
        sides.append(slice(max(low - slack, 0), min(high + 1 + slack, shape[axis])))
    return sides[0], sides[1], sides[2]


def _grown(box: Box, shape: tuple[int, int, int], margin: int, grain: int) -> Box:
    i, j, k = (
        slice(max(side.start - margin, 0) // grain * grain, min(-(-(side.stop + margin) // grain) * grain, whole))
        for side, whole in zip(box, shape, strict=True)
    )
    return i, j, k
