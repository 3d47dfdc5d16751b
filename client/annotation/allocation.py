"""How a budget of slices is shared between the planes of a volume and the rounds of annotation."""

import numpy as np

# A volume counts as thick-sliced along its last axis if its slices are that much further apart than its pixels, or if
# it has that much fewer slices than pixels along the sides (for headers whose spacing is not physical).
THICK_SPACING = 2.0
THICK_SHAPE = 1 / 3
# Share of a thick-sliced object's slices that is drawn at most.
THICK_SHARE = 0.375

Counts = tuple[int, int, int]


def allocate(
    total: int,
    size: tuple[int, int, int],
    spacing: tuple[float, float, float],
    shape: tuple[int, int, int] | None = None,
) -> Counts:
    """Share a budget of slices between the three array axes.

    All of them go across the longest side of the object: those slices are the smallest, hence the cheapest, and the
    object changes least from one to the next, so that registration carries the labels over the gaps. Where the volume
    is thick-sliced, they go across the thick axis, because the other planes are too coarse to draw on; there each slice
    is a large part of a full segmentation, so that no more than :data:`THICK_SHARE` of the object's slices are drawn.

    Parameters
    ----------
    total
        Slices to draw on one case.
    size
        Object extent in voxels; the volume's shape where the extent is not known.
    spacing
        Distance between voxel centres in millimetres.
    shape
        The volume's shape, by default `size`: a header's spacing need not be physical, so a volume with few slices and
        many pixels also counts as thick-sliced.

    Returns
    -------
    tuple of int
        Slices across axes 0, 1 and 2; their sum is at most `total`.
    """
    counts = [0, 0, 0]
    axis = thick_axis(spacing, shape or size)
    if axis is None:
        lengths = [voxels * distance for voxels, distance in zip(size, spacing, strict=True)]
        axis = int(np.argmax(lengths))
        counts[axis] = min(total, size[axis])
    else:
        counts[axis] = min(total, max(1, round(THICK_SHARE * size[axis])))
    return counts[0], counts[1], counts[2]


def thick_axis(spacing: tuple[float, float, float], shape: tuple[int, int, int]) -> int | None:
    """The axis across which slices are thick, or None: see :data:`THICK_SPACING` and :data:`THICK_SHAPE`.

    Parameters
    ----------
    spacing
        Distance between voxel centres in millimetres.
    shape
        The volume's shape in voxels.
    """
    for axis in (2, 1, 0):
        others = [other for other in range(3) if other != axis]
        if spacing[axis] >= THICK_SPACING * max(spacing[other] for other in others):
            return axis
        if shape[axis] < THICK_SHAPE * min(shape[other] for other in others):
            return axis
    return None


def slices_at(total: int, rounds: int, step: int) -> int:
    """How many of `total` slices of one plane to draw in annotation round `step` of `rounds`; early rounds get more.

    Over all rounds they sum to `total`. Whoever draws more often than the plan has rounds has spent the budget: 0.
    """
    if step >= rounds:
        return 0
    return -(-total * (step + 1) // rounds) + -total * step // rounds
