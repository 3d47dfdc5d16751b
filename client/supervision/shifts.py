"""Pairs of voxels in a small window, without ever building the window.

An unfolded window holds every neighbour of every voxel at once. A shifted view holds one neighbour of every voxel and
costs no memory, and one half of the window is enough: the other half are the same pairs, met from their other end.
Pairs that would reach beyond the image do not exist, so that no padding becomes a neighbour.
"""

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor

Offset = tuple[int, ...]


def half_window(
    radius: float, steps: Sequence[float], sides: Sequence[int], flat: int | None = None
) -> tuple[Offset, ...]:
    """One offset of each pair ``(o, -o)`` in a window, without the voxel itself.

    Parameters
    ----------
    radius
        Half-width of the window along each axis, in units of `steps`.
    steps
        Distance between voxels along each axis; an axis on which the nearest neighbour is further than `radius` has no
        neighbours.
    sides
        Of the image in voxels: no offset spans more.
    flat
        An axis along which nothing is a neighbour; None for none.
    """
    reach = [
        0 if axis == flat else min(math.floor(radius / step + 1e-6), side - 1)
        for axis, (step, side) in enumerate(zip(steps, sides, strict=True))
    ]
    window = itertools.product(*(range(-far, far + 1) for far in reach))
    return tuple(offset for offset in window if offset > (0,) * len(reach))


def ends(tensor: Tensor, offset: Offset) -> tuple[Tensor, Tensor]:
    """Two views of the last axes of `tensor`: the voxels that have a neighbour at `offset`, and these neighbours.

    Parameters
    ----------
    tensor
        ``[..., *spatial]`` with as many spatial axes as `offset` has entries, each longer than the offset along it.
    """
    here, there = _slices(offset, tensor.shape[-len(offset) :])
    return tensor[here], tensor[there]


@lru_cache(maxsize=4096)
def _slices(offset: Offset, sides: tuple[int, ...]) -> tuple[Any, Any]:
    """Those of both views; an update asks for the same few hundred tens of thousands of times."""
    pairs = tuple(zip(offset, sides, strict=True))
    here = (..., *(slice(max(-by, 0), side - max(by, 0)) for by, side in pairs))
    there = (..., *(slice(max(by, 0), side - max(-by, 0)) for by, side in pairs))
    return here, there


def squared_length(offset: Offset, steps: Sequence[float]) -> float:
    """Squared distance that `offset` spans."""
    return sum((by * step) ** 2 for by, step in zip(offset, steps, strict=True))


def relative(spacing: Sequence[float]) -> tuple[float, ...]:
    """Spacing in voxels of the finest axis."""
    finest = min(spacing)
    return tuple(step / finest for step in spacing)
