"""Deformable registration of many small 2D slices at once.

Symmetric-forces demons (Vercauteren et al. 2009, "Diffeomorphic demons", equation 5 with the efficient second-order
gradient) with compositive updates, a coarse-to-fine pyramid and Gaussian smoothing of update and field. All pairs of a
plane form one batch, so that the cost is a few matrix products instead of one optimiser per pair.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from wardround.errors import UsageError

# On fewer pixels than this along a side there is nothing left to align.
SMALLEST_LEVEL = 12


@dataclass(frozen=True)
class DemonsSettings:
    """How the demons move.

    Parameters
    ----------
    iterations
        Steps on every pyramid level, coarsest first; level ``n`` of ``N`` has the resolution ``2 ** -(N - 1 - n)``.
        A level on which a slice would be smaller than :data:`SMALLEST_LEVEL` is left out.
    update_sigma
        Width of the Gaussian that smooths every update (fluid-like), in pixels of the level along its finer axis.
    field_sigma
        Width of the Gaussian that smooths the whole field after every step (elastic), in the same unit.
    step
        Longest update in pixels of the level, along its finer axis.
    """

    iterations: tuple[int, ...] = (10, 10, 8)
    update_sigma: float = 0.5
    field_sigma: float = 1.0
    step: float = 1.0


def register(
    moving: Tensor,
    fixed: Tensor,
    spacing: tuple[float, float] = (1.0, 1.0),
    *,
    settings: DemonsSettings = DemonsSettings(),
    backend: str = "demons",
) -> Tensor:
    """Find where each pixel of `fixed` lies in `moving`.

    Parameters
    ----------
    moving, fixed
        Shape ``[P, H, W]``, float32, on one device, where everything is computed. Any intensity scale: every slice is
        normalised to zero mean and unit deviation.
    spacing
        Distance between pixel centres along H and W, in any unit.
    settings
        Of the demons.
    backend
        ``demons`` for the batched ones, ``sitk`` for SimpleITK's symmetric-forces demons, one pair after the other
        (a reference, about ten times slower).

    Returns
    -------
    Tensor
        Displacement ``[P, 2, H, W]`` in pixels along H and W: ``fixed(x)`` corresponds to ``moving(x + u(x))``, as
        :func:`warp` expects it.

    Raises
    ------
    UsageError
        If the shapes differ or the backend is unknown.
    """
    if moving.shape != fixed.shape or moving.ndim != 3:
        raise UsageError(
            f"cannot register slices of shape {tuple(moving.shape)} to slices of shape {tuple(fixed.shape)}",
            "both must be [pairs, height, width]",
            "crop both from one volume",
        )
    if backend == "sitk":
        return _register_with_sitk(_normalised(moving), _normalised(fixed), spacing)
    if backend != "demons":
        raise UsageError(f"there is no registration called {backend!r}", "", "choose demons or sitk")
    if not len(moving):
        return moving.new_zeros((0, 2, *moving.shape[1:]))
    with torch.inference_mode():
        return _demons(_normalised(moving), _normalised(fixed), spacing, settings)


def warp(images: Tensor, displacement: Tensor) -> Tensor:
    """Pull images through displacements, bilinearly; beyond the edge the edge continues.

    Parameters
    ----------
    images
        Shape ``[P, C, H, W]``, float32.
    displacement
        Shape ``[P, 2, H, W]`` in pixels along H and W, as :func:`register` returns it.

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


def _normalised(images: Tensor) -> Tensor:
    images = images.to(torch.float32)
    centred = images - images.mean(dim=(1, 2), keepdim=True)
    deviation = centred.square().mean(dim=(1, 2), keepdim=True).sqrt()
    return centred / deviation.clamp_min(1e-6)


def _demons(moving: Tensor, fixed: Tensor, spacing: tuple[float, float], settings: DemonsSettings) -> Tensor:
    height, width = fixed.shape[1:]
    finest = min(spacing)
    # Smoothing is isotropic in the patient, hence narrower in pixels along a coarse axis.
    scale = (finest / spacing[0], finest / spacing[1])
    levels, device = len(settings.iterations), fixed.device
    displacement: Tensor | None = None
    for level, iterations in enumerate(settings.iterations):
        shrink = 2 ** (levels - 1 - level)
        if shrink > 1 and min(height, width) < SMALLEST_LEVEL * shrink:
            continue
        sides = (_side(height, shrink), _side(width, shrink))
        small_moving, small_fixed = (_resize(image, sides) for image in (moving, fixed))
        displacement = (
            moving.new_zeros((len(moving), 2, *sides))
            if displacement is None
            else _rescale(displacement, (height, width), sides)
        )
        smooth_update, smooth_field = (
            tuple(_gaussian(side, sigma * factor, device) for side, factor in zip(sides, scale, strict=True))
            for sigma in (settings.update_sigma, settings.field_sigma)
        )
        for _ in range(iterations):
            update = _apply(_force(small_moving, small_fixed, displacement, scale, settings.step), smooth_update)
            displacement = _apply(update + warp(displacement, update), smooth_field)
    assert displacement is not None
    return displacement


def _force(moving: Tensor, fixed: Tensor, displacement: Tensor, scale: tuple[float, float], step: float) -> Tensor:
    """``[P, 2, H, W]`` in pixels: where the demons push, no further than `step` pixels of the finer axis."""
    to_finest = torch.tensor(scale, dtype=fixed.dtype, device=fixed.device)[:, None, None]
    warped = warp(moving[:, None], displacement)[:, 0]
    difference = fixed - warped
    gradient = _gradient(0.5 * (fixed + warped)) * to_finest
    # The norm of d * g / (g^2 + d^2 / (4 s^2)) is at most s, reached where |g| = |d| / (2 s).
    strength = difference / (gradient.square().sum(dim=1) + difference.square() / (4 * step * step) + 1e-6)
    return strength[:, None] * gradient * to_finest


def _gradient(images: Tensor) -> Tensor:
    """Central differences along H and W, one-sided at the edge: ``[P, 2, H, W]``."""
    padded = functional.pad(images[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    rows = 0.5 * (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1])
    columns = 0.5 * (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2])
    return torch.stack([rows, columns], dim=1)


def _apply(fields: Tensor, matrices: tuple[Tensor, ...]) -> Tensor:
    """Multiply along H and W: separable filters and resampling as matrix products."""
    return matrices[0] @ (fields @ matrices[1].T)


def _side(length: int, shrink: int) -> int:
    return -(-length // shrink)


def _resize(images: Tensor, sides: tuple[int, int]) -> Tensor:
    height, width = images.shape[-2:]
    if (height, width) == sides:
        return images
    return _apply(images, (_resampler(height, sides[0], images.device), _resampler(width, sides[1], images.device)))


def _rescale(displacement: Tensor, whole: tuple[int, int], sides: tuple[int, int]) -> Tensor:
    """Bring a displacement to a finer level; corners stay on corners."""
    height, width = displacement.shape[-2:]
    if (height, width) == sides:
        return displacement
    factors = [(new - 1) / max(old - 1, 1) for new, old in zip(sides, (height, width), strict=True)]
    device = displacement.device
    larger = _apply(displacement, (_interpolator(height, sides[0], device), _interpolator(width, sides[1], device)))
    return larger * torch.tensor(factors, dtype=larger.dtype, device=larger.device)[:, None, None]


@lru_cache(maxsize=256)
def _gaussian(length: int, sigma: float, device: torch.device) -> Tensor:
    """``[length, length]``: a Gaussian filter, renormalised at the edges."""
    positions = np.arange(length, dtype=np.float64)
    if sigma <= 0:
        return torch.eye(length, device=device)
    weights = np.exp(-0.5 * ((positions[:, None] - positions[None, :]) / sigma) ** 2)
    weights[weights < 1e-4] = 0
    return torch.from_numpy((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)).to(device)


@lru_cache(maxsize=256)
def _interpolator(length: int, new: int, device: torch.device) -> Tensor:
    """``[new, length]``: linear interpolation, first and last sample kept."""
    positions = np.linspace(0, length - 1, new)
    weights = np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(length)[None, :]))
    return torch.from_numpy(weights.astype(np.float32)).to(device)


@lru_cache(maxsize=256)
def _resampler(length: int, new: int, device: torch.device) -> Tensor:
    """``[new, length]``: anti-aliasing Gaussian, then linear interpolation."""
    shrink = (length - 1) / max(new - 1, 1)
    sigma = 0.5 * (shrink - 1) + 0.25 if shrink > 1 else 0.0
    return _interpolator(length, new, device) @ _gaussian(length, sigma, device)


def _register_with_sitk(moving: Tensor, fixed: Tensor, spacing: tuple[float, float]) -> Tensor:
    import SimpleITK as sitk

    demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfIterations(40)
    demons.SetStandardDeviations(min(spacing))
    demons.SetNumberOfThreads(1)
    pixel = np.array([spacing[1], spacing[0]])
    fields: list[npt.NDArray[np.float32]] = []
    for one_moving, one_fixed in zip(moving.cpu().numpy(), fixed.cpu().numpy(), strict=True):
        images = [sitk.GetImageFromArray(image) for image in (one_fixed, one_moving)]
        for image in images:
            image.SetSpacing(pixel.tolist())
        field = sitk.GetArrayFromImage(demons.Execute(*images)) / pixel
        fields.append(np.stack([field[..., 1], field[..., 0]]).astype(np.float32))
    if not fields:
        return moving.new_zeros((0, 2, *moving.shape[1:]))
    return torch.from_numpy(np.stack(fields)).to(moving.device)
