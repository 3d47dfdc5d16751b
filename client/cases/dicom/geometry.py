"""Where the slices of a stack lie: in which order, how far apart, how far from a regular grid.

All lengths are millimetres in DICOM's patient coordinates (LPS). The normal of a stack is *row × column*: along a row
of pixels first, down a column second. A stack becomes a grid whose axes are the columns ``i``, the rows ``j`` and the
slices ``k`` in the direction of the normal; it is right-handed, and nothing is flipped.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from wardround.client.cases.volume import Volume
from wardround.errors import SeriesRefused

Floats = npt.NDArray[np.float64]

SAME_PLACE_MM = 1e-3
"""Slices this near to each other along the normal are at the same place."""
OFF_PLACE_MM = 0.06
"""Positions are often written with one decimal: so far a slice may lie off its place in any case …"""
OFF_PLACE = 0.02
"""… and this share of the distance between slices …"""
OFF_PLACE_MOST = 0.1
"""… but never a larger share than this, along the normal; nor, sideways, of the smaller side of a pixel."""
UNIT_TOLERANCE = 1e-3
"""Direction cosines may miss length 1 and a right angle by so much."""
MOST_TILT_DEGREES = 45.0
"""No gantry tilts further."""
MOST_VOXELS = 1 << 29
"""Of one volume: 2 GiB as float32."""
WIDEST_GAP = 2.5
"""Resampling bridges a gap of so many usual ones: with one slice missing, not with two."""


@dataclass(frozen=True, eq=False)
class Stack:
    """The slices of one volume, measured.

    Parameters
    ----------
    order
        Shape ``(n,)``: which of the slices as given comes first along the normal, second, …
    positions
        Shape ``(n, 3)``: centres of their first pixels, in that order.
    row, column, normal
        Shape ``(3,)``: unit vectors along a row, down a column, and across.
    pixel
        Distance between pixels along a row and down a column: the columns' spacing first.
    gap
        The usual (median) distance between neighbours along the normal.
    """

    order: npt.NDArray[np.intp]
    positions: Floats
    row: Floats
    column: Floats
    normal: Floats
    pixel: tuple[float, float]
    gap: float

    @property
    def heights(self) -> Floats:
        """Shape ``(n,)``: where along the normal the slices lie, rising."""
        return self.positions @ self.normal

    @property
    def duplicates(self) -> int:
        """How many slices lie where another one lies."""
        return int((np.diff(self.heights) < SAME_PLACE_MM).sum())

    @property
    def missing(self) -> int:
        """How many slices are missing, if every gap were filled with the usual one."""
        gaps = np.diff(self.heights)
        return int(np.maximum(np.round(gaps / self.gap) - 1, 0).sum()) if self.gap >= SAME_PLACE_MM else 0

    @property
    def sideways(self) -> Floats:
        """Shape ``(n, 2)``: how far each slice lies from the first one along its row and its column."""
        away = self.positions - self.positions[0]
        return np.stack([away @ self.row, away @ self.column], axis=1)

    @property
    def tilt(self) -> float:
        """Angle in degrees between the normal and the way from the first slice to the last: that of a gantry, often."""
        way = self.positions[-1] - self.positions[0]
        return float(np.degrees(np.arctan2(np.linalg.norm(self.sideways[-1]), abs(way @ self.normal))))

    @property
    def off_place(self) -> float:
        """How far along the normal the worst slice lies from its place on the regular grid."""
        regular = np.linspace(self.heights[0], self.heights[-1], len(self.heights))
        return float(np.abs(self.heights - regular).max())

    @property
    def is_even(self) -> bool:
        """Whether slices follow each other at one distance, as far as positions are written exactly."""
        mean = float(self.heights[-1] - self.heights[0]) / (len(self.heights) - 1)
        allowed = min(max(OFF_PLACE_MM, OFF_PLACE * mean), OFF_PLACE_MOST * mean)
        return self.duplicates == 0 and self.off_place <= allowed

    @property
    def is_upright(self) -> bool:
        """Whether slices lie above each other: no further sideways than a small part of a pixel."""
        return bool(np.linalg.norm(self.sideways, axis=1).max() <= OFF_PLACE_MOST * min(self.pixel))

    def affine(self) -> Floats:
        """Shape ``(4, 4)``: index ``(i, j, k, 1)`` of an even, upright stack to LPS millimetres."""
        count = len(self.heights)
        step = float(self.heights[-1] - self.heights[0]) / (count - 1)
        return self._grid(self.positions[0], step)

    def _grid(self, origin: Floats, step: float) -> Floats:
        affine = np.eye(4)
        axes = [self.row * self.pixel[0], self.column * self.pixel[1], self.normal * step]
        affine[:3, :3] = np.stack(axes, axis=1)
        affine[:3, 3] = origin
        return affine


def measure(positions: Floats, orientation: Floats, spacing: tuple[float, float]) -> Stack:
    """Measure a stack of at least two slices.

    Parameters
    ----------
    positions
        Shape ``(n, 3)``: Image Position (Patient), in any order.
    orientation
        Shape ``(6,)``: Image Orientation (Patient), the same of all.
    spacing
        Pixel Spacing as DICOM writes it: between rows first, then between columns.

    Raises
    ------
    SeriesRefused
        ``bad-orientation`` if the direction cosines are no right angle of unit vectors.
    """
    row, column = np.asarray(orientation[:3]), np.asarray(orientation[3:])
    off = float(np.abs(np.array([row @ row, column @ column, row @ column]) - [1, 1, 0]).max())
    if not off <= UNIT_TOLERANCE:
        raise SeriesRefused(
            "the orientation of the images is no right angle of unit vectors",
            f"it is off by {off:.4f}, and at most {UNIT_TOLERANCE} can be a matter of writing",
            "export the series again from where it was made",
            reason="bad-orientation",
        )
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    order = np.argsort(positions @ normal, kind="stable")
    ordered = positions[order]
    gap = float(np.median(np.diff(ordered @ normal)))
    return Stack(order, ordered, row, column, normal, (spacing[1], spacing[0]), gap)


def check(stack: Stack, *, uneven: str = "refuse", tilt: str = "refuse") -> bool:
    """Whether the stack has to be resampled to become a grid, if that is allowed.

    Parameters
    ----------
    uneven, tilt
        ``refuse`` or ``resample``.

    Raises
    ------
    SeriesRefused
        ``duplicate-slices``, ``missing-slices``, ``uneven-spacing`` or ``gantry-tilt``, with what was measured.
    """
    if stack.duplicates:
        raise SeriesRefused(
            f"{stack.duplicates} of {len(stack.positions)} slices lie where another slice lies",
            "the series holds several volumes that its headers do not tell apart, or slices were sent twice",
            "export the volumes as series of their own",
            reason="duplicate-slices",
        )
    if not stack.is_even:
        gaps = np.diff(stack.heights)
        measured = f"neighbours are {gaps.min():.4g} to {gaps.max():.4g} mm apart, {stack.gap:.4g} mm as a rule"
        if gaps.max() > WIDEST_GAP * stack.gap or (stack.missing and uneven == "refuse"):
            raise SeriesRefused(
                f"{stack.missing} slices seem to be missing",
                measured,
                "export the whole series again",
                reason="missing-slices",
            )
        if uneven == "refuse":
            raise SeriesRefused(
                "the slices are not at even distances",
                measured,
                "import it with `--uneven resample`, which interpolates between slices",
                reason="uneven-spacing",
            )
    if not stack.is_upright and (tilt == "refuse" or stack.tilt > MOST_TILT_DEGREES):
        away = float(np.linalg.norm(stack.sideways, axis=1).max())
        raise SeriesRefused(
            f"the slices are tilted by {stack.tilt:.2f} degrees against their stack",
            f"they move sideways by up to {away:.4g} mm, as with a tilted gantry",
            "import it with `--tilt resample`, which interpolates within and between slices",
            reason="gantry-tilt",
        )
    return not (stack.is_even and stack.is_upright)


def resampled(stack: Stack, values: npt.NDArray[np.float32]) -> Volume:
    """The stack on an upright, even grid: linear between slices, and bilinear within where slices are moved sideways.

    Parameters
    ----------
    values
        Shape ``(I, J, n)``, in the stack's order.

    Returns
    -------
    Volume
        Slices at the usual distance, rows and columns enough to hold every slice. Where there was no slice, the lowest
        value of the stack.
    """
    offsets = stack.sideways / stack.pixel  # in pixels, along i and j
    if np.abs(offsets).max() <= OFF_PLACE_MOST:
        offsets = np.zeros_like(offsets)
    first = np.floor(offsets.min(axis=0) + 1e-9).astype(int)
    sides = np.ceil(offsets.max(axis=0) - 1e-9).astype(int) - first + values.shape[:2]
    heights = stack.heights
    count = int(np.floor((heights[-1] - heights[0]) / stack.gap + 1e-6)) + 1
    lowest = float(values.min())
    check_voxels(int(sides[0]) * int(sides[1]) * count)
    result = np.empty((*(int(side) for side in sides), count), np.float32)
    for k in range(count):
        height = heights[0] + k * stack.gap
        above = min(int(np.searchsorted(heights, height - SAME_PLACE_MM)), len(heights) - 1)
        below = max(above - 1, 0)
        span = heights[above] - heights[below]
        share = float(np.clip((height - heights[below]) / span, 0, 1)) if span > 0 else 1.0
        part = np.zeros(result.shape[:2])
        for index, weight in ((below, 1 - share), (above, share)):
            if weight > 0:
                part += weight * _moved(values[:, :, index], offsets[index] - first, result.shape[:2], lowest)
        result[:, :, k] = part
    origin = stack.positions[0] + first[0] * stack.pixel[0] * stack.row + first[1] * stack.pixel[1] * stack.column
    return Volume(result, stack._grid(origin, stack.gap))


def check_voxels(count: int) -> None:
    """Refuse a volume of more than :data:`MOST_VOXELS` voxels (``too-many-voxels``)."""
    if count > MOST_VOXELS:
        raise SeriesRefused(
            f"the volume would have {count} voxels",
            f"at most {MOST_VOXELS} are taken",
            "crop it, or split it into several series",
            reason="too-many-voxels",
        )


def _moved(
    values: npt.NDArray[np.float32], offset: Floats, shape: tuple[int, ...], outside: float
) -> npt.NDArray[np.float64]:
    """A slice that begins at `offset` (in pixels) on a larger one."""
    moved: npt.NDArray[np.float64] = ndimage.affine_transform(
        values.astype(np.float64), np.ones(2), -offset, output_shape=shape, order=1, mode="constant", cval=outside
    )
    return moved
