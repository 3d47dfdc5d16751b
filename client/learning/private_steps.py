"""Steps that are differentially private for each case: clipped sums of gradients, with noise.

Abadi et al. 2016 (arXiv 1607.00133, algorithm 1), with a case as the unit: gradients of all its windows in a step are
one gradient, over all trained weights together, cut to one Euclidean norm. Sums and noise are in double precision, so
that no rounding exceeds the bound by more than a part in 10¹⁵.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wardround.strategies.noise import Noise

Sums = list[Tensor]


@dataclass(frozen=True, eq=False)
class PrivateSteps:
    """How a step is made private.

    Parameters
    ----------
    noise_multiplier
        σ: standard deviation of the noise over `clip_norm`; more than 0.
    clip_norm
        C: largest Euclidean norm of a case's gradient; more than 0.
    sample_rate
        q: probability with which each of `cases` takes part in a step.
    cases
        How many may be sampled. It is public, as is what the sum is divided by: the number that is expected, not the
        number that came.
    noise
        Chooses the cases and their windows, and is added to the sums.
    """

    noise_multiplier: float
    clip_norm: float
    sample_rate: float
    cases: int
    noise: Noise

    @property
    def divisor(self) -> float:
        """Cases that are expected in a step, one at least."""
        return max(1.0, self.sample_rate * self.cases)

    def sampled(self) -> list[int]:
        """Numbers of the cases that take part in a step, each by itself with the same probability (Poisson)."""
        return [case for case, chance in enumerate(self.noise.uniform(self.cases)) if chance < self.sample_rate]

    def generators(self) -> Callable[[int], np.random.Generator]:
        """For one step: by a case's number the source of its windows and augmentation.

        Each is secret and follows from nothing but the step and the number. With one stream for all, whether a case was
        sampled, and often what it holds, would change the windows of those that come after it: its part in the weights
        would no longer be its own clipped gradient, for whoever can foresee the stream.
        """
        secret = self.noise.seed()
        return lambda case: np.random.default_rng(np.random.SeedSequence(secret, spawn_key=(case,)))

    def nothing(self, trained: Sequence[Tensor]) -> Sums:
        """The sum before the first case."""
        return [torch.zeros(parameter.shape, dtype=torch.float64, device=parameter.device) for parameter in trained]

    def add(self, sums: Sums, trained: Sequence[Tensor]) -> None:
        """Add a case's gradients, which lie in `trained`, clipped together.

        Gradients that are not finite count as none: an error, or a step that is left out, would tell of the case.
        """
        gradients = [None if each.grad is None else each.grad.detach().double() for each in trained]
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients if gradient is not None))
        if not math.isfinite(norm):
            return
        factor = min(1.0, self.clip_norm / norm) if norm else 1.0
        for total, gradient in zip(sums, gradients, strict=True):
            if gradient is not None:
                total.add_(gradient, alpha=factor)

    def finish(self, sums: Sums, trained: Sequence[Tensor]) -> None:
        """Put the noisy mean into the gradients of `trained`, where an optimiser finds it."""
        scale = self.noise_multiplier * self.clip_norm
        for total, parameter in zip(sums, trained, strict=True):
            noise = torch.from_numpy(self.noise.normal(tuple(parameter.shape))).to(total.device)
            parameter.grad = ((total + scale * noise) / self.divisor).to(parameter.dtype)
