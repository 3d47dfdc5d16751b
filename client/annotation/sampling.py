"""Resampling of many small 2D slices at once: warping, pyramids and Gaussians, on the device of the tensors.

Separable filters are matrix products, which on slices of this size are faster than convolutions. Their matrices are
kept; they are ordinary tensors also where they are first asked for in inference mode, so that gradients may pass.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

# On fewer pixels than this along a side there is nothing left to align.
SMALLEST_LEVEL = 12


def warp(images: Tensor, displacement: Tensor) -> Tensor:
    """Pull images through displacements, bilinearly; beyond the edge the edge continues.

    Parameters
    ----------
    images
        Shape ``[P, C, H, W]``, float32.
    displacement
        Shape ``[P, 2, H, W]`` in pixels along H and W, as
        :func:`wardround.client.annotation.registration.register` returns it.

    Returns
    -------
    Tensor
        ``[P, C, H, W]``: at ``x`` the value of the image at ``x + u(x)``.
    """
    height, width = images.shape[-2:]
    dtype, device = displacement.dtype, displacement.device
    rows = torch.arange(height, dtype=dtype, device=device)[:, None] + displacement[:, 0]
    columns = torch.arange(width, dtype=dtype, device=device)[None, :] + displacement[:, 1]
    grid = torch.stack([columns * (2 / max(width - 1, 1)) - 1, rows * (2 / max(height - 1, 1)) - 1], dim=-1)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)


def normalised(images: Tensor) -> Tensor:
    """Every image of ``[P, H, W]`` with zero mean and unit deviation, float32; a constant one becomes zero."""
    images = images.to(torch.float32)
    centred = images - images.mean(dim=(1, 2), keepdim=True)
    deviation = centred.square().mean(dim=(1, 2), keepdim=True).sqrt()
    return centred / deviation.clamp_min(1e-6)


def filtered(fields: Tensor, matrices: tuple[Tensor, ...]) -> Tensor:
    """Multiply along H and W: separable filters and resampling as matrix products."""
    return matrices[0] @ (fields @ matrices[1].T)


def pyramid(sides: tuple[int, int], iterations: Sequence[int]) -> Iterator[tuple[tuple[int, int], int]]:
    """The levels of a coarse-to-fine search: sides in pixels, and steps to take there.

    Parameters
    ----------
    sides
        Height and width of the slices at full resolution.
    iterations
        Steps on every level, coarsest first; level ``n`` of ``N`` has the resolution ``2 ** -(N - 1 - n)``. Levels on
        which a side would be shorter than :data:`SMALLEST_LEVEL` are left out, save the last.
    """
    height, width = sides
    for level, steps in enumerate(iterations):
        shrink = 2 ** (len(iterations) - 1 - level)
        if shrink == 1 or min(sides) >= SMALLEST_LEVEL * shrink:
            yield (-(-height // shrink), -(-width // shrink)), steps


def resize(images: Tensor, sides: tuple[int, int]) -> Tensor:
    """Bring images ``[..., H, W]`` to a coarser grid, without aliasing; corners stay on corners."""
    height, width = images.shape[-2:]
    if (height, width) == sides:
        return images
    return filtered(images, (_resampler(height, sides[0], images.device), _resampler(width, sides[1], images.device)))


def rescale(displacement: Tensor, sides: tuple[int, int]) -> Tensor:
    """Bring a displacement ``[P, 2, H, W]`` in pixels to a finer grid, in its pixels; corners stay on corners."""
    height, width = displacement.shape[-2:]
    if (height, width) == sides:
        return displacement
    factors = [(new - 1) / max(old - 1, 1) for new, old in zip(sides, (height, width), strict=True)]
    device = displacement.device
    larger = filtered(displacement, (_interpolator(height, sides[0], device), _interpolator(width, sides[1], device)))
    return larger * torch.tensor(factors, dtype=larger.dtype, device=larger.device)[:, None, None]


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def gaussian(length: int, sigma: float, device: torch.device) -> Tensor:
    """``[length, length]``: a Gaussian filter, renormalised at the edges."""
    positions = np.arange(length, dtype=np.float64)
    if sigma <= 0:
        return torch.eye(length, device=device)
    weights = np.exp(-0.5 * ((positions[:, None] - positions[None, :]) / sigma) ** 2)
    weights[weights < 1e-4] = 0
    return torch.from_numpy((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)).to(device)


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _interpolator(length: int, new: int, device: torch.device) -> Tensor:
    """``[new, length]``: linear interpolation, first and last sample kept."""
    positions = np.linspace(0, length - 1, new)
    weights = np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(length)[None, :]))
    return torch.from_numpy(weights.astype(np.float32)).to(device)


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _resampler(length: int, new: int, device: torch.device) -> Tensor:
    """``[new, length]``: anti-aliasing Gaussian, then linear interpolation."""
    shrink = (length - 1) / max(new - 1, 1)
    sigma = 0.5 * (shrink - 1) + 0.25 if shrink > 1 else 0.0
    return _interpolator(length, new, device) @ gaussian(length, sigma, device)
