"""Deformable registration by stationary velocity fields: slower than demons, and never folding.

For every pair a velocity field is optimised by Adam so that the moving slice, carried along it for unit time,
correlates locally with the fixed one (local normalised cross-correlation of Balakrishnan et al. 2019, "VoxelMorph",
arXiv 1809.05231) while the field stays smooth (diffusion regulariser, same paper). Unit time is integrated by scaling
and squaring (Arsigny et al. 2006, "A log-Euclidean framework for statistics on diffeomorphisms"), so that the result is
a diffeomorphism as long as a single small step is one.
"""

from dataclasses import dataclass

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

# Adam's decay rates of the first and the second moment, and what keeps its division finite.
DECAY = (0.9, 0.99)
TINY = 1e-8


@dataclass(frozen=True)
class VelocitySettings:
    """How velocity fields are optimised.

    Parameters
    ----------
    iterations
        Steps on every pyramid level, coarsest first; level ``n`` of ``N`` has the resolution ``2 ** -(N - 1 - n)``.
        Levels on which a slice would be too small are left out.
    rate
        Adam's step, in pixels of the level along its finer axis.
    window
        Side of the square in which correlation is measured, in pixels of the level; odd.
    regularisation
        Weight of the mean squared gradient of the velocity beside the correlation.
    sigma
        Width of the Gaussian through which a velocity field is seen, in pixels of the level along its finer axis.
    squarings
        Velocity is divided by ``2 ** squarings`` and composed with itself so many times.
    """

    iterations: tuple[int, ...] = (20, 20, 10)
    rate: float = 0.25
    window: int = 7
    regularisation: float = 0.05
    sigma: float = 1.0
    squarings: int = 4


def velocity_field(moving: Tensor, fixed: Tensor, spacing: tuple[float, float], settings: VelocitySettings) -> Tensor:
    """Find where each pixel of `fixed` lies in `moving`, one smooth invertible map for each pair.

    Parameters
    ----------
    moving, fixed
        Shape ``[P, H, W]``, float32, any intensity scale, on one device.
    spacing
        Distance between pixel centres along H and W, in any unit.
    settings
        How.

    Returns
    -------
    Tensor
        Displacement ``[P, 2, H, W]`` in pixels, as :func:`wardround.client.annotation.registration.register` has it.
    """
    with torch.inference_mode(False), torch.no_grad():
        # Copies, because tensors that were made in inference mode cannot be part of a gradient.
        moving, fixed = normalised(moving.clone()), normalised(fixed.clone())
        height, width = fixed.shape[1:]
        scale = torch.tensor([min(spacing) / spacing[0], min(spacing) / spacing[1]], device=fixed.device)
        scale = scale[:, None, None]
        velocity: Tensor | None = None
        for sides, iterations in pyramid((height, width), settings.iterations):
            start = fixed.new_zeros((len(fixed), 2, *sides)) if velocity is None else rescale(velocity, sides)
            pair = (resize(moving, sides), resize(fixed, sides))
            velocity = _optimised(start, pair, scale, iterations, settings)
        assert velocity is not None
        return integrate(velocity, settings.squarings)


def integrate(velocity: Tensor, squarings: int) -> Tensor:
    """Follow a stationary velocity for unit time by scaling and squaring (Arsigny et al. 2006).

    Parameters
    ----------
    velocity
        ``[P, 2, H, W]`` in pixels per unit time along H and W.
    squarings
        Number n: the first step is ``velocity / 2 ** n``, and every composition with itself doubles the time.

    Returns
    -------
    Tensor
        Displacement ``[P, 2, H, W]`` in pixels.
    """
    displacement = velocity / float(2**squarings)
    for _ in range(squarings):
        displacement = displacement + warp(displacement, displacement)
    return displacement


def local_correlation(one: Tensor, other: Tensor, window: int) -> Tensor:
    """Squared normalised cross-correlation in a square round every pixel (Balakrishnan et al. 2019).

    Parameters
    ----------
    one, other
        ``[P, H, W]``, float32.
    window
        Side of the square, odd; at the edge of the image only the part inside counts.

    Returns
    -------
    Tensor
        ``[P, H, W]``, 0 … 1.
    """
    means = functional.avg_pool2d(
        torch.stack([one, other, one * one, other * other, one * other], dim=1),
        window,
        stride=1,
        padding=window // 2,
        count_include_pad=False,
    )
    first, second, first_square, second_square, product = means.unbind(dim=1)
    covariance = product - first * second
    variances = (first_square - first * first).clamp_min(0) * (second_square - second * second).clamp_min(0)
    # Where a window is nearly flat in units of the whole slice's deviation, there is nothing to correlate.
    return covariance.square() / (variances + 1e-4)


def _optimised(
    start: Tensor, pair: tuple[Tensor, Tensor], scale: Tensor, iterations: int, settings: VelocitySettings
) -> Tensor:
    """The velocity ``[P, 2, H, W]`` in pixels that fits best, from `start`, by Adam (Kingma and Ba 2015)."""
    moving, fixed = pair
    smooth = tuple(
        gaussian(side, settings.sigma * float(factor), start.device)
        for side, factor in zip(start.shape[2:], scale.flatten(), strict=True)
    )
    correction = torch.zeros_like(start)
    first, second = torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, iterations + 1):
        with torch.enable_grad():
            correction = correction.detach().requires_grad_()
            velocity = start + scale * filtered(correction, smooth)
            warped = warp(moving[:, None], integrate(velocity, settings.squarings))[:, 0]
            mismatch = 1 - local_correlation(warped, fixed, settings.window)
            # A sum over pairs of means over pixels: no pair knows of the others.
            loss = mismatch.mean(dim=(1, 2)).sum() + settings.regularisation * _roughness(velocity / scale, scale)
            (gradient,) = torch.autograd.grad(loss, correction)
        # In units of one pixel, not of the mean, so that a larger slice is not optimised more timidly.
        gradient = gradient * (start.shape[2] * start.shape[3])
        first = DECAY[0] * first + (1 - DECAY[0]) * gradient
        second = DECAY[1] * second + (1 - DECAY[1]) * gradient.square()
        direction = (first / (1 - DECAY[0] ** step)) / ((second / (1 - DECAY[1] ** step)).sqrt() + TINY)
        correction = correction.detach() - settings.rate * direction
    return start + scale * filtered(correction, smooth)


def _roughness(velocity: Tensor, scale: Tensor) -> Tensor:
    """Mean squared gradient of every pair's velocity, summed over pairs (Balakrishnan et al. 2019)."""
    total = velocity.new_zeros(())
    for dimension, factor in zip((2, 3), scale.flatten(), strict=True):
        if velocity.shape[dimension] > 1:
            steps = velocity.diff(dim=dimension) * factor
            total = total + steps.square().sum(dim=1).mean(dim=(1, 2)).sum()
    return total
