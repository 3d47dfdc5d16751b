"""A few bounded numbers that a validation loss may turn: how strongly to augment, how much to trust what was made up.

Where GenSeg (Zhang et al. 2025, doi 10.1038/s41467-025-61754-6) searches the operators of a generator, the same
:func:`~wardround.client.synthesis.hypergradient.hypergradient` can turn a few knobs. They cost less, can be read, and
say little enough of a site to be averaged between sites.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wardround.client.learning.augmentation import THIN


@dataclass(frozen=True)
class Knob:
    """One number within bounds.

    Parameters
    ----------
    name
        What it stands for.
    low, high
        Bounds, in its own unit.
    start
        Where it stands before anything is learnt, between them.
    """

    name: str
    low: float
    high: float
    start: float

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.start < self.high < math.inf:
            raise ValueError(f"the knob {self.name} has to start between its bounds: {self}")


AUGMENTATION = (
    Knob("rotation", 0, 45, 10),
    Knob("scale", 0, 0.5, 0.15),
    Knob("shift", 0, 0.4, 0.08),
    Knob("contrast", 0, 0.8, 0.2),
    Knob("brightness", 0, 0.8, 0.2),
    Knob("noise", 0, 0.5, 0.1),
)
"""What :func:`augment` reads. Every start is that of the light augmentation."""
SYNTHESIS = (Knob("synthetic_weight", 0, 2, 1), Knob("style_scale", 0, 2, 1))
"""γ, the weight of synthetic pairs in the segmenter's loss, and the factor on the style that a generator is given."""


class Knobs(nn.Module):
    """Knobs as one vector without bounds, ``value = low + (high − low) · sigmoid(position)``.

    The average of positions of several sites is a position too, and the knobs are then within their bounds.

    Parameters
    ----------
    knobs
        At least one, with names of their own.
    """

    def __init__(self, knobs: Sequence[Knob] = AUGMENTATION + SYNTHESIS) -> None:
        super().__init__()
        self.knobs = tuple(knobs)
        if not self.knobs or len({knob.name for knob in self.knobs}) < len(self.knobs):
            raise ValueError("knobs need names of their own, and there has to be one")
        starts = [(knob.start - knob.low) / (knob.high - knob.low) for knob in self.knobs]
        self.position = nn.Parameter(torch.logit(torch.tensor(starts, dtype=torch.float64)).float())

    def forward(self) -> dict[str, Tensor]:
        """Value of every knob by its name: scalars that lead back to `position`."""
        turned = torch.sigmoid(self.position)
        return {
            knob.name: knob.low + (knob.high - knob.low) * one for knob, one in zip(self.knobs, turned, strict=True)
        }

    def values(self) -> dict[str, float]:
        """Value of every knob by its name, as numbers for people."""
        return {name: value.item() for name, value in self().items()}


@dataclass(frozen=True)
class KnobAugmentation:
    """Augments the batches of a learner as the knobs stand, and turns none of them.

    Parameters
    ----------
    knobs
        Of :data:`AUGMENTATION`, those that are there.
    """

    knobs: Knobs

    def __call__(
        self, image: Tensor, target: Tensor, weight: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As of :meth:`wardround.client.learning.augmentation.Augmentation.__call__`."""
        with torch.no_grad():
            return augment(self.knobs(), image, target, weight, rng)


def augment(
    strengths: Mapping[str, Tensor], image: Tensor, target: Tensor, weight: Tensor, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Deform image, target and weight alike and change the image's intensities, differentiably in all strengths.

    What is drawn does not depend on the strengths: it is multiplied by them.

    Parameters
    ----------
    strengths
        By name, each at least 0; what is missing is left out. ``rotation``: largest angle in degrees in every plane
        that is not made of thick slices. ``scale``: largest natural logarithm of the factor along each axis. ``shift``:
        largest translation, as a fraction of half the field of view. ``contrast``, ``brightness``: half-widths of gain
        and offset, in standard deviations of the image. ``noise``: largest standard deviation of Gaussian noise, in the
        same unit.
    image
        ``[N, 1, *spatial]``, two or three axes, normalised.
    target
        ``[N, C, *spatial]``, probabilities. What moves in from outside is background.
    weight
        ``[N, W, *spatial]``, at least 0. What moves in from outside is 0; nothing is interpolated, and nothing leads
        back from it.
    rng
        The only source of randomness.
    """
    count, sides = image.shape[0], image.shape[2:]
    everywhere = (count, *(1,) * (image.ndim - 1))

    def drawn(name: str, shape: tuple[int, ...], low: float = -1) -> Tensor:
        found = torch.from_numpy(rng.uniform(low, 1, shape)).to(image)
        return found * strengths.get(name, image.new_zeros(()))

    turns = torch.deg2rad(drawn("rotation", (count, len(_planes(sides)))))
    factors = torch.exp(drawn("scale", (count, len(sides))))
    offsets = drawn("shift", (count, len(sides)))
    theta = _maps(turns, factors, offsets, sides)
    grid = F.affine_grid(theta, list(image.shape), align_corners=False)

    def move(tensor: Tensor) -> Tensor:
        return F.grid_sample(tensor, grid, padding_mode="zeros", align_corners=False)

    gain, lift = 1 + drawn("contrast", everywhere), drawn("brightness", everywhere)
    grain = torch.Generator().manual_seed(int(rng.integers(2**62)))
    noise = drawn("noise", everywhere, 0) * torch.randn(image.shape, generator=grain).to(image)
    background = torch.zeros_like(target)
    background[:, 0] = 1
    # What lies outside is sampled as 0, and background is 1 there: so it is taken off, and put on again.
    target = move(target - background) + background
    weight = F.grid_sample(weight, grid.detach(), mode="nearest", padding_mode="zeros", align_corners=False)
    return move(image) * gain + lift + noise, target, weight


def _planes(sides: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of axes in which an image may be turned: thick slices are not cut obliquely."""
    pairs = itertools.combinations(range(len(sides)), 2)
    return [(i, j) for i, j in pairs if max(sides[i], sides[j]) <= THIN * min(sides[i], sides[j])]


def _maps(turns: Tensor, factors: Tensor, offsets: Tensor, sides: Sequence[int]) -> Tensor:
    """Affine maps from output to input as :func:`torch.nn.functional.affine_grid` takes them, ``[N, axes, axes + 1]``.

    Parameters
    ----------
    turns
        Angles in radians in each of the image's planes, ``[N, planes]``: what is round in voxels stays round.
    factors
        Along each axis, ``[N, axes]``.
    offsets
        Along each axis, in half fields of view, ``[N, axes]``.
    sides
        Of the image in voxels.
    """
    matrix = torch.diag_embed(factors)
    for (i, j), angle in zip(_planes(sides), turns.unbind(1), strict=True):
        turn = torch.eye(len(sides)).to(turns).repeat(len(turns), 1, 1)
        turn[:, i, i] = turn[:, j, j] = torch.cos(angle)
        turn[:, i, j], turn[:, j, i] = -torch.sin(angle), torch.sin(angle)
        matrix = matrix @ turn
    half = torch.tensor(sides).to(turns)
    matrix = matrix * half / half[:, None]
    # The library counts axes from the last one.
    return torch.cat([matrix.flip(1, 2), offsets.flip(1)[..., None]], dim=2)
