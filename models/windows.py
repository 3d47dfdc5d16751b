"""How a volume of any size goes through a network: whole where it fits, in overlapping windows otherwise.

A bundle (:mod:`wardround.models.bundle`) carries a copy of this file, so that it predicts as we do. It imports nothing
of ours for that reason.
"""

from collections.abc import Sequence

import torch
from monai.inferers import Inferer, SliceInferer, SlidingWindowInferer

WINDOW_LIMIT = 128
"""Longest side of a window in voxels: smaller volumes are predicted in one piece."""

SLICES_AT_ONCE = 8
"""Windows that a network of two axes sees in one batch."""


def padded_shape(shape: Sequence[int], stride: int) -> tuple[int, ...]:
    """Round every side of `shape` up to a multiple of `stride`, and all of them to two where one would do for each.

    A network's lowest level has one voxel a stride, and a single voxel has no variance to normalise by.
    """
    if all(side <= stride for side in shape):
        return (2 * stride,) * len(shape)
    return tuple(-(-side // stride) * stride for side in shape)


class FittingInferer(Inferer):  # type: ignore[misc]
    """Slides a window that fits each volume (MONAI's sliding window), blended with Gaussian weights.

    Parameters
    ----------
    stride
        Spatial sizes of the network's input are multiples of it.
    window
        Sides of the window in voxels; by default those of the volume, rounded up and capped at :data:`WINDOW_LIMIT`.
    dimensions
        Spatial axes of the network: one with two sees a volume slice by slice, along its last axis.
    """

    def __init__(self, stride: int, window: Sequence[int] | None = None, dimensions: int = 3) -> None:
        super().__init__()
        self._stride = stride
        self._window = window
        self._dimensions = dimensions

    def __call__(self, inputs: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
        """Logits ``[N, C, I, J, K]`` of images ``[N, 1, I, J, K]``."""
        sides = (self._window or [min(side, WINDOW_LIMIT) for side in inputs.shape[2:]])[: self._dimensions]
        flat = self._dimensions == 2
        slide = (SliceInferer if flat else SlidingWindowInferer)(
            roi_size=padded_shape(sides, self._stride),
            sw_batch_size=SLICES_AT_ONCE if flat else 1,
            overlap=0.25,
            mode="gaussian",
            padding_mode="constant",
            **({"spatial_dim": 2} if flat else {}),
        )
        logits: torch.Tensor = slide(inputs, network)
        return logits
