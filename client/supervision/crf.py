"""Gated conditional random fields as losses: neighbours that look alike should be labelled alike.

Obukhov et al. 2019 (arXiv 1906.04651) penalise, for every pixel, the neighbours in a window that look like it and are
labelled otherwise. Yang et al. 2023 (AttenScribble, arXiv 2312.06614) let only pixels without a scribble be penalised.
Zhai et al. 2023 (PA-Seg, arXiv 2208.05669) take the three stacks of slices of a volume and average.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from wardround.client.supervision.shifts import ends, half_window, relative, squared_length
from wardround.errors import UsageError


@dataclass(frozen=True)
class CrfSettings:
    """What counts as near and as alike.

    Parameters
    ----------
    radius
        Half-width of the window, in voxels of the finest axis.
    position
        Standard deviation of the Gaussian over distance, in the same unit (the papers: 6).
    intensity
        Standard deviation of the Gaussian over intensity, in standard deviations of the image (the papers: 0.1).
    """

    radius: float = 5.0
    position: float = 6.0
    intensity: float = 0.1


def gated_crf(
    probability: Tensor,
    image: Tensor,
    receivers: Tensor | None = None,
    *,
    spacing: Sequence[float] | None = None,
    settings: CrfSettings = CrfSettings(),
    flat: int | None = None,
) -> Tensor:
    """The energy ``1/|U| Σ_{i in U} Σ_{j in N(i)} k_ij (1 − p_i · p_j)``.

    ``k_ij = exp(−½ (‖x_i − x_j‖² / σ_x² + (I_i − I_j)² / σ_I²))``, N(i) the window round i without i itself. Neighbours
    beyond the edge of the image do not exist.

    Memory does not grow with the window: pairs are met one offset at a time, and the energy is quadratic in p, so that
    its gradient is added up on the way and nothing has to be kept for it. It can be differentiated once, with respect
    to `probability` alone.

    Parameters
    ----------
    probability
        p, ``[N, C, *spatial]`` with two or three spatial axes, sums to one over C.
    image
        I, ``[N, 1, *spatial]``, normalised to zero mean and unit variance.
    receivers
        U, ``[N, *spatial]``, bool or 0 … 1: who is penalised. None for every voxel. Where U is empty the energy is 0.
    spacing
        Millimetres between voxels along each spatial axis; equal by default. Along an axis so coarse that the nearest
        neighbour lies beyond the window there are no neighbours.
    settings
        What counts as near and as alike.
    flat
        A spatial axis along which nothing is a neighbour: the volume is then a stack of slices.

    Returns
    -------
    Tensor
        Scalar, at least 0 up to rounding; 0 for a constant one-hot map.

    Raises
    ------
    UsageError
        If the shapes do not fit together.
    """
    axes = probability.ndim - 2
    if image.shape != (probability.shape[0], 1, *probability.shape[2:]) or (
        receivers is not None and receivers.shape != image[:, 0].shape
    ):
        raise UsageError(
            f"an image of shape {tuple(image.shape)} does not fit probabilities of shape {tuple(probability.shape)}",
            "all must lie on one grid",
            "resample them together",
        )
    steps = relative(spacing or (1.0,) * axes)
    mask = torch.ones_like(image[:, 0]) if receivers is None else receivers.to(probability.dtype)
    offsets = half_window(settings.radius, steps, image.shape[2:], flat)
    kernel = tuple((offset, -0.5 * squared_length(offset, steps) / settings.position**2) for offset in offsets)
    energy: Tensor = _Pairs.apply(probability, image.detach(), mask.detach(), kernel, settings.intensity)  # type: ignore[no-untyped-call]
    return energy


def multi_view_crf(
    logits: Tensor,
    image: Tensor,
    receivers: Tensor | None = None,
    *,
    spacing: Sequence[float] | None = None,
    settings: CrfSettings = CrfSettings(),
    grid: tuple[int, int, int] | None = None,
) -> Tensor:
    """Mean of :func:`gated_crf` over the three stacks of slices of a volume (Zhai et al. 2023).

    Parameters
    ----------
    logits
        ``[N, C, I, J, K]``: what is resampled are logits; softmax comes after.
    image, receivers, spacing, settings
        As of :func:`gated_crf`.
    grid
        Sides to resample to before, trilinearly; receivers by nearest neighbour. None stays on the grid of the image.

    Returns
    -------
    Tensor
        Scalar.
    """
    spacing = tuple(spacing or (1.0, 1.0, 1.0))
    if grid is not None:
        spacing = tuple(step * side / new for step, side, new in zip(spacing, image.shape[2:], grid, strict=True))
        logits = F.interpolate(logits, size=grid, mode="trilinear", align_corners=False)
        image = F.interpolate(image, size=grid, mode="trilinear", align_corners=False)
        if receivers is not None:
            receivers = F.interpolate(receivers[:, None].to(image), size=grid, mode="nearest-exact")[:, 0]
    probability = torch.softmax(logits, dim=1)
    views = [
        gated_crf(probability, image, receivers, spacing=spacing, settings=settings, flat=axis) for axis in range(3)
    ]
    return torch.stack(views).mean()


class _Pairs(torch.autograd.Function):
    """The energy and, where it is wanted, its gradient in one pass over the offsets."""

    @staticmethod
    def forward(  # noqa: PLR0917
        context: Any,
        probability: Tensor,
        image: Tensor,
        mask: Tensor,
        kernel: Sequence[tuple[tuple[int, ...], float]],
        intensity: float,
    ) -> Tensor:
        """Energy of all pairs over the number of receivers."""
        wanted = probability.requires_grad
        energy = probability.new_zeros(())
        gradient = torch.zeros_like(probability) if wanted else None
        for offset, exponent in kernel:
            (p, q), (a, b), (u, v) = (ends(tensor, offset) for tensor in (probability, image[:, 0], mask))
            # A pair is met once and counts for each of its ends that is a receiver.
            weight = (u + v) * torch.exp(exponent - 0.5 * ((a - b) / intensity).square())
            energy += (weight * (1 - (p * q).sum(dim=1))).sum()
            if gradient is not None:
                here, there = ends(gradient, offset)
                here.sub_(weight[:, None] * q)
                there.sub_(weight[:, None] * p)
        count = mask.sum().clamp_min(torch.finfo(mask.dtype).tiny)
        if gradient is not None:
            context.save_for_backward(gradient.div_(count))
        return energy / count

    @staticmethod
    @once_differentiable  # type: ignore[misc, no-untyped-call]
    def backward(context: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        """What was added up in the forward pass, scaled."""
        (gradient,) = context.saved_tensors
        return upstream * gradient, None, None, None, None
