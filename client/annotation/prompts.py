"""Prompts: what an annotator draws, as values.

Planes are named by the array axis that they cut: a slice on axis ``a`` at index ``n`` is ``numpy.take(volume, n, a)``,
and its two axes are the remaining ones in ascending order.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

UNLABELLED = 255

Labels2D = npt.NDArray[np.uint8]


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
    """Strokes on one slice; pixels without a stroke hold :data:`UNLABELLED`."""

    axis: int
    index: int
    labels: Labels2D


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
class Annotations:
    """All that was drawn on one case so far. Immutable: :meth:`adding` returns a new value."""

    slices: tuple[SlicePrompt, ...] = ()
    extent: ExtentPrompt | None = None
    scribbles: tuple[ScribblePrompt, ...] = field(default=())
    points: tuple[PointPrompt, ...] = field(default=())

    def adding(self, *slices: SlicePrompt) -> "Annotations":
        """These annotations and `slices`; a slice drawn again replaces its earlier version."""
        new = {prompt.request for prompt in slices}
        kept = tuple(prompt for prompt in self.slices if prompt.request not in new)
        return replace(self, slices=kept + slices)

    def on_axis(self, axis: int) -> tuple[SlicePrompt, ...]:
        """The drawn slices of one plane, in ascending order of index."""
        return tuple(sorted((p for p in self.slices if p.axis == axis), key=lambda p: p.index))
