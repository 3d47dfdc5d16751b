"""Deformable registration of many small 2D slices at once.

Symmetric-forces demons (Vercauteren et al. 2009, "Diffeomorphic demons", equation 5 with the efficient second-order
gradient) with compositive updates, a coarse-to-fine pyramid and Gaussian smoothing of update and field. All pairs of a
plane form one batch, so that the cost is a few matrix products instead of one optimiser per pair.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from wardround.client.annotation.sampling import (
    filtered,
    gaussian,
    normalised,
    pyramid,
    rescale,
    resize,
    warp,
)
from wardround.client.annotation.velocity import VelocitySettings, velocity_field
from wardround.errors import UsageError

BACKENDS = ("demons", "velocity", "sitk")
# Pixels of all pairs of a batch on the CPU.
BATCH_PIXELS = 1 << 17


@dataclass(frozen=True)
class DemonsSettings:
    """How the demons move.

    Parameters
    ----------
    iterations
        Steps on every pyramid level, coarsest first; level ``n`` of ``N`` has the resolution ``2 ** -(N - 1 - n)``.
        A level on which a slice would be smaller than
        :data:`~wardround.client.annotation.sampling.SMALLEST_LEVEL` is left out.
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
    velocity: VelocitySettings | None = None,
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
    velocity
        Of the stationary velocity field, by default its usual ones.
    backend
        ``demons`` for the batched ones; ``velocity`` for a stationary velocity field, whose result is a diffeomorphism
        (:mod:`wardround.client.annotation.velocity`); ``sitk`` for SimpleITK's symmetric-forces demons, one pair after
        the other on the CPU, a reference.

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
    if backend not in BACKENDS:
        raise UsageError(f"there is no registration called {backend!r}", "", f"choose one of {', '.join(BACKENDS)}")
    if not len(moving):
        return torch.zeros((0, 2, *moving.shape[1:]), device=moving.device)
    if backend == "sitk":
        return _register_with_sitk(normalised(moving), normalised(fixed), spacing)
    # Batches whose fields fit the processor's cache are faster than one large batch; a GPU takes all at once.
    size = len(moving) if moving.is_cuda else max(1, BATCH_PIXELS // (moving.shape[1] * moving.shape[2]))
    parts: list[Tensor] = []
    for start in range(0, len(moving), size):
        some_moving, some_fixed = moving[start : start + size], fixed[start : start + size]
        if backend == "velocity":
            parts.append(velocity_field(some_moving, some_fixed, spacing, velocity or VelocitySettings()))
        else:
            with torch.inference_mode():
                parts.append(_demons(normalised(some_moving), normalised(some_fixed), spacing, settings))
    return torch.cat(parts)


def _demons(moving: Tensor, fixed: Tensor, spacing: tuple[float, float], settings: DemonsSettings) -> Tensor:
    height, width = fixed.shape[1:]
    finest = min(spacing)
    # Smoothing is isotropic in the patient, hence narrower in pixels along a coarse axis.
    scale = (finest / spacing[0], finest / spacing[1])
    device = fixed.device
    displacement: Tensor | None = None
    for sides, iterations in pyramid((height, width), settings.iterations):
        small_moving, small_fixed = (resize(image, sides) for image in (moving, fixed))
        displacement = (
            moving.new_zeros((len(moving), 2, *sides)) if displacement is None else rescale(displacement, sides)
        )
        smooth_update, smooth_field = (
            tuple(gaussian(side, sigma * factor, device) for side, factor in zip(sides, scale, strict=True))
            for sigma in (settings.update_sigma, settings.field_sigma)
        )
        for _ in range(iterations):
            update = filtered(_force(small_moving, small_fixed, displacement, scale, settings.step), smooth_update)
            displacement = filtered(update + warp(displacement, update), smooth_field)
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
    return torch.from_numpy(np.stack(fields)).to(moving.device)
