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
    inside: Tensor | None = None,
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
    inside
        ``[N, *spatial]``, bool or 0 … 1: voxels of the image. What was filled up round it is nobody's neighbour. None
        for every voxel.
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
    if image.shape != (probability.shape[0], 1, *probability.shape[2:]) or any(
        found is not None and found.shape != image[:, 0].shape for found in (receivers, inside)
    ):
        raise UsageError(
            f"an image of shape {tuple(image.shape)} does not fit probabilities of shape {tuple(probability.shape)}",
            "all must lie on one grid",
            "resample them together",
        )
    steps = relative(spacing or (1.0,) * axes)
    everywhere = torch.ones_like(image[:, 0])
    present = everywhere if inside is None else inside.to(probability.dtype)
    mask = present * (everywhere if receivers is None else receivers.to(probability.dtype))
    offsets = half_window(settings.radius, steps, image.shape[2:], flat)
    kernel = tuple((offset, -0.5 * squared_length(offset, steps) / settings.position**2) for offset in offsets)
    fixed = (image.detach(), mask.detach(), present.detach(), kernel, settings.intensity)
    energy: Tensor = _Pairs.apply(probability, *fixed)  # type: ignore[no-untyped-call]
    return energy


def multi_view_crf(
    logits: Tensor,
    image: Tensor,
    receivers: Tensor | None = None,
    *,
    inside: Tensor | None = None,
    spacing: Sequence[float] | None = None,
    settings: CrfSettings = CrfSettings(),
    grid: tuple[int, int, int] | None = None,
) -> Tensor:
    """Mean of :func:`gated_crf` over the three stacks of slices of a volume (Zhai et al. 2023).

    Parameters
    ----------
    logits
        ``[N, C, I, J, K]``: what is resampled are logits; softmax comes after.
    image, receivers, inside, spacing, settings
        As of :func:`gated_crf`.
    grid
        Sides to resample to before, see :func:`resampled`. None stays on the grid of the image.

    Returns
    -------
    Tensor
        Scalar.
    """
    spacing = tuple(spacing or (1.0, 1.0, 1.0))
    if grid is not None:
        spacing = tuple(step * side / new for step, side, new in zip(spacing, image.shape[2:], grid, strict=True))
        logits, image, receivers, inside = resampled(grid, logits, image, receivers, inside)
    probability = torch.softmax(logits, dim=1)
    views = [
        gated_crf(probability, image, receivers, inside=inside, spacing=spacing, settings=settings, flat=axis)
        for axis in range(3)
    ]
    return torch.stack(views).mean()


def resampled(
    grid: Sequence[int], logits: Tensor, image: Tensor, receivers: Tensor | None, inside: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """What :func:`gated_crf` compares, on a grid of these sides: linearly, and masks by nearest neighbour."""
    mode = "bilinear" if len(grid) == 2 else "trilinear"

    def soft(part: Tensor) -> Tensor:
        return F.interpolate(part, size=list(grid), mode=mode, align_corners=False)

    def hard(mask: Tensor | None) -> Tensor | None:
        if mask is None:
            return None
        return F.interpolate(mask[:, None].to(image), size=list(grid), mode="nearest-exact")[:, 0]

    return soft(logits), soft(image), hard(receivers), hard(inside)


class _Pairs(torch.autograd.Function):
    """The energy and, where it is wanted, its gradient in one pass over the offsets."""

    @staticmethod
    def forward(  # noqa: PLR0917
        context: Any,
        probability: Tensor,
        image: Tensor,
        mask: Tensor,
        present: Tensor,
        kernel: Sequence[tuple[tuple[int, ...], float]],
        intensity: float,
    ) -> Tensor:
        """Energy of all pairs over the number of receivers."""
        wanted = probability.requires_grad
        energy = probability.new_zeros(())
        gradient = torch.zeros_like(probability) if wanted else None
        for offset, exponent in kernel:
            (p, q), (a, b), (u, v), (x, y) = (ends(part, offset) for part in (probability, image[:, 0], mask, present))
            # A pair is met once and counts for each of its ends that is a receiver.
            weight = (u * y + v * x) * torch.exp(exponent - 0.5 * ((a - b) / intensity).square())
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
    @once_differentiable
    def backward(context: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        """What was added up in the forward pass, scaled."""
        (gradient,) = context.saved_tensors
        return upstream * gradient, None, None, None, None, None
