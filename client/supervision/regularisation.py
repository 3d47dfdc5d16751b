"""What is asked of the voxels that nobody drew: agree with those that look alike."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from wardround.client.supervision.attentive import (
    WindowSettings,
    attentive_similarity,
    released_affinity,
    windowed_affinity,
)
from wardround.client.supervision.crf import CrfSettings, gated_crf, multi_view_crf, resampled
from wardround.client.supervision.variance import intensity_variance
from wardround.models.attention import Attended

Kernel = Literal["windowed", "released"]


@dataclass(frozen=True)
class Regularisation:
    """Weights of the losses that need no label, beside the one on what was drawn.

    Parameters
    ----------
    crf
        Of the gated CRF: of the slices for a 2D network, of the three stacks of slices for a 3D one.
    variance
        Of intensity variance within each class.
    attentive
        Of attentive similarity; it needs a network with attention.
    kernel
        Of attentive similarity: ``windowed`` (ours) or ``released``.
    side
        Longest side of the grid on which neighbours are compared; larger images are resampled before.
    strength
        Share of all these weights that holds now, 0 … 1, see :func:`ramp`.
    neighbours, window
        What is near and alike, for the CRF and for attentive similarity.
    """

    crf: float = 0.0
    variance: float = 0.0
    attentive: float = 0.0
    kernel: Kernel = "windowed"
    side: int = 64
    strength: float = 1.0
    neighbours: CrfSettings = field(default_factory=CrfSettings)
    window: WindowSettings = field(default_factory=WindowSettings)

    @property
    def active(self) -> bool:
        """Whether anything is asked at all."""
        return self.strength > 0 and (self.crf > 0 or self.variance > 0 or self.attentive > 0)

    def at(self, strength: float) -> "Regularisation":
        """The same with another strength."""
        return replace(self, strength=strength)

    def __call__(
        self,
        logits: Tensor,
        image: Tensor,
        drawn: Tensor,
        spacings: Sequence[Sequence[float]],
        attended: Attended | None = None,
        *,
        inside: Tensor | None = None,
        air: Tensor | None = None,
    ) -> Tensor:
        """The weighted sum of what is switched on.

        Parameters
        ----------
        logits
            ``[N, C, *spatial]`` with two or three spatial axes.
        image
            ``[N, 1, *spatial]``, normalised.
        drawn
            ``[N, *spatial]``, bool: voxels whose label somebody drew, or that lie outside the image; the CRF does not
            penalise them.
        spacings
            Millimetres along each spatial axis, of every image.
        attended
            What the network attended to in this pass; without it there is no attentive similarity.
        inside
            ``[N, *spatial]``, bool: voxels of the image, not filled up round it; None for all.
        air
            ``[N, *spatial]``, bool: what is left out of the variance of background; None for what is as dark as the
            darkest voxel of each image.
        """
        total = logits.new_zeros(())
        if not self.active:
            return total
        if self.crf:
            for spacing in dict.fromkeys(map(tuple, spacings)):
                own = [number for number, other in enumerate(spacings) if tuple(other) == spacing]
                share = len(own) / len(spacings)
                total = total + self.crf * share * self._crf(
                    logits[own], image[own], ~drawn[own], None if inside is None else inside[own], spacing
                )
        if self.variance or (self.attentive and attended is not None):
            probability = torch.softmax(logits, dim=1)
            if self.variance:
                if air is None:
                    air = (image <= image.amin(dim=tuple(range(1, image.ndim)), keepdim=True))[:, 0]
                total = total + self.variance * intensity_variance(probability, image, ~air, inside)
            if self.attentive and attended is not None:
                total = total + self.attentive * self._attentive(probability, attended)
        return self.strength * total

    def _crf(
        self, logits: Tensor, image: Tensor, receivers: Tensor | None, inside: Tensor | None, spacing: Sequence[float]
    ) -> Tensor:
        sides = tuple(image.shape[2:])
        grid = tuple(min(side, self.side) for side in sides)
        if len(sides) == 3:
            small = None if grid == sides else (grid[0], grid[1], grid[2])
            return multi_view_crf(
                logits, image, receivers, inside=inside, spacing=spacing, settings=self.neighbours, grid=small
            )
        if grid != sides:
            spacing = tuple(step * side / new for step, side, new in zip(spacing, sides, grid, strict=True))
            logits, image, receivers, inside = resampled(grid, logits, image, receivers, inside)
        probability = torch.softmax(logits, dim=1)
        return gated_crf(probability, image, receivers, inside=inside, spacing=spacing, settings=self.neighbours)

    def _attentive(self, probability: Tensor, attended: Attended) -> Tensor:
        queries, keys, grid = attended.queries.float(), attended.keys.float(), attended.grid
        if self.kernel == "released":
            affinity = released_affinity(queries, keys, grid, attended.scale, attended.offset, self.window)
        else:
            affinity = windowed_affinity(queries, keys, grid, self.window)
        return attentive_similarity(probability, affinity)


def ramp(progress: float, until: float) -> float:
    """``exp(−5 (1 − progress / until)²)`` before `until`, then 1 (Zhai et al. 2023, PA-Seg, section on training).

    Parameters
    ----------
    progress
        Share of training that lies behind, 0 … 1.
    until
        Where the ramp ends, 0 … 1; 0 for no ramp.
    """
    return 1.0 if progress >= until else math.exp(-5 * (1 - progress / until) ** 2)
