"""Random deformation and intensity change of a training batch, the same for every arm of an experiment."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """How strongly a batch is changed.

    Parameters
    ----------
    scale
        Each axis is stretched by a factor from ``[1 - scale, 1 + scale]``.
    shear
        Standard deviation of the off-diagonal entries of the affine map (small rotations and shears).
    shift
        Largest translation as a fraction of half the field of view.
    contrast, brightness
        Half-widths of the random gain and offset, in units of the image's standard deviation.
    noise
        Largest standard deviation of added Gaussian noise, in the same unit.
    """

    scale: float = 0.15
    shear: float = 0.06
    shift: float = 0.08
    contrast: float = 0.2
    brightness: float = 0.2
    noise: float = 0.1

    def __call__(
        self, image: Tensor, target: Tensor, weight: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Deform image, target and weight alike, and change the image's intensities.

        Parameters
        ----------
        image
            ``[N, 1, *spatial]`` with two or three spatial axes, normalised intensities.
        target
            ``[N, C, *spatial]``, probabilities. What moves in from outside the volume is background.
        weight
            ``[N, 1, *spatial]``, at least 0. What moves in from outside counts nothing.
        rng
            The only source of randomness.
        """
        count, axes = image.shape[0], image.ndim - 2
        matrix = np.eye(axes) * rng.uniform(1 - self.scale, 1 + self.scale, (count, 1, axes))
        matrix = matrix + rng.normal(0, self.shear, (count, axes, axes)) * (1 - np.eye(axes))
        offset = rng.uniform(-self.shift, self.shift, (count, axes, 1))
        theta = torch.from_numpy(np.concatenate([matrix, offset], axis=2)).to(image)
        grid = F.affine_grid(theta, list(image.shape), align_corners=False)
        one_each = (count, *(1,) * (axes + 1))

        def move(tensor: Tensor, mode: str = "bilinear") -> Tensor:
            return F.grid_sample(tensor, grid, mode=mode, padding_mode="zeros", align_corners=False)

        target = move(target)
        target = torch.cat([target[:, :1] + (1 - target.sum(1, keepdim=True)), target[:, 1:]], dim=1)
        gain = torch.from_numpy(rng.uniform(1 - self.contrast, 1 + self.contrast, one_each)).to(image)
        lift = torch.from_numpy(rng.uniform(-self.brightness, self.brightness, one_each)).to(image)
        grain = torch.Generator().manual_seed(int(rng.integers(2**62)))
        sigma = torch.from_numpy(rng.uniform(0, self.noise, one_each)).to(image)
        noise = torch.randn(image.shape, generator=grain).to(image)
        return move(image) * gain + lift + sigma * noise, target, move(weight, "nearest")
