"""A gate in the frequency domain: it weighs the amplitudes of a feature map, frequency by frequency.

A diffusion model of images leaves high frequencies too strong or too weak, and which it is depends on the time step and
on what the feature shows. The gate can mend that because it looks at the spectrum itself. It is a design after the
frequency-domain feature attention that MEDSAD names (2025, doi 10.1002/ima.70007), which gives no formulas; its nearest
published relative is the filter of MedSegDiff (Wu et al. 2022, arXiv 2211.00611), which is learned for one resolution.
"""

import torch
from torch import Tensor, nn

# Radial bumps that the gate's dependence on frequency and time is made of.
BASES = 8


def radius(grid: tuple[int, ...], device: torch.device | None = None) -> Tensor:
    """Distance from zero frequency of every coefficient that ``torch.fft.rfftn`` returns for a grid.

    Parameters
    ----------
    grid
        Spatial sides.

    Returns
    -------
    Tensor
        ``[I, J, …, K // 2 + 1]`` float32, in cycles per voxel: at most 0.5 along one axis, √d/2 in the corner.
    """
    axes = [torch.fft.fftfreq(side, device=device) for side in grid[:-1]]
    axes.append(torch.fft.rfftfreq(grid[-1], device=device))
    total = torch.zeros((), device=device)
    for axis, values in enumerate(axes):
        total = total + values.reshape([-1 if axis == other else 1 for other in range(len(grid))]) ** 2
    return total.sqrt()


class FrequencyGate(nn.Module):
    """Multiply the spectrum F of a feature map h by a gate A in (0, 2): h + F⁻¹((A − 1)·F).

    A = 2·sigmoid(W·log(1 + abs F) + e(radius, t)), with W across channels; the same for the real and the imaginary
    part, so that phases stay. e is a sum of radial bumps whose heights are learned and move with the time step. Every
    learned term starts at zero; A is then exactly 1 and the gate returns its input bit for bit. The radius is in cycles
    per voxel and the transform is orthonormal (noise has the same amplitude at any size), so the same gate works on
    every grid.

    Parameters
    ----------
    channels
        Of the feature map.
    dimensions
        2 or 3 spatial axes.
    time
        Length of the time embedding.
    """

    centres: Tensor

    def __init__(self, channels: int, dimensions: int, time: int) -> None:
        super().__init__()
        self.dimensions = dimensions
        self.amplitude = nn.Parameter(torch.zeros(channels, channels))
        self.heights = nn.Linear(time, channels * BASES)
        nn.init.zeros_(self.heights.weight)
        nn.init.zeros_(self.heights.bias)
        self.register_buffer("centres", torch.linspace(0, 0.5 * dimensions**0.5, BASES), persistent=False)

    def gate(self, spectrum: Tensor, grid: tuple[int, ...], time: Tensor) -> Tensor:
        """A for a spectrum.

        Parameters
        ----------
        spectrum
            ``[N, C, I, J, …, K // 2 + 1]`` complex, orthonormal.
        grid
            Spatial sides of the feature map.
        time
            ``[N, time]`` embedding of the time step.

        Returns
        -------
        Tensor
            Shape of `spectrum`, real, within (0, 2).
        """
        return 1 + self._change(spectrum, grid, time)

    def forward(self, feature: Tensor, time: Tensor) -> Tensor:
        """Weigh the frequencies of a feature map.

        Parameters
        ----------
        feature
            ``[N, C, *grid]``.
        time
            ``[N, time]``.

        Returns
        -------
        Tensor
            Shape and dtype of `feature`.
        """
        axes, grid = tuple(range(-self.dimensions, 0)), tuple(feature.shape[2:])
        # Half-precision transforms take powers of two alone, and lose the weak high frequencies.
        with torch.autocast(feature.device.type, enabled=False):
            precision = torch.promote_types(feature.dtype, torch.float32)
            spectrum = torch.fft.rfftn(feature.to(precision), dim=axes, norm="ortho")
            change = self._change(spectrum, grid, time.to(precision))[..., None] * torch.view_as_real(spectrum)
            moved: Tensor = torch.fft.irfftn(torch.view_as_complex(change), s=grid, dim=axes, norm="ortho")
        return feature + moved.to(feature.dtype)

    def _change(self, spectrum: Tensor, grid: tuple[int, ...], time: Tensor) -> Tensor:
        """A − 1, which is tanh(z / 2) where A is 2·sigmoid(z)."""
        amplitude = torch.log1p(spectrum.abs()).flatten(2)
        distance = radius(grid, spectrum.device).flatten() - self.centres[:, None]
        bumps = torch.exp(-0.5 * (distance / self.centres[1]) ** 2)  # a bump is as wide as the centres are apart
        heights = self.heights(time).reshape(len(time), -1, BASES)
        half = torch.baddbmm(self.amplitude @ amplitude, heights, bumps.expand(len(time), -1, -1), beta=0.5, alpha=0.5)
        return half.tanh().reshape(spectrum.shape)
