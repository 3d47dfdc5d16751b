"""A denoiser for diffusion: what noise is in an image, given a mask for the anatomy and a style for the texture.

A U-Net after semantic diffusion (Wang et al. 2022, arXiv 2207.00050): the noisy image goes into the encoder, the mask
into the decoder alone, through spatially adaptive normalisation (SPADE; Park et al. 2019, arXiv 1903.07291). What
MEDSAD adds (2025, doi 10.1002/ima.70007; the paper gives no formulas, so these are ours): the texture of a real image
reaches the decoder as a style vector (:mod:`wardround.models.texture`), and a gate weighs features in the frequency
domain (:mod:`wardround.models.spectral`).
"""

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Pool
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from torch import Tensor, nn

from wardround.models.spectral import FrequencyGate


@dataclass(frozen=True)
class DenoiserSettings:
    """What fixes the shape of a denoiser and of the style encoder beside it.

    Parameters
    ----------
    dimensions
        2 or 3 spatial axes.
    labels
        Channels of the one-hot mask: classes including background, at least 2.
    channels
        Feature channels of every resolution level, finest first; multiples of 4.
    style
        Length of a style vector; 0 leaves texture injection out.
    frequency
        Whether the decoder gates its features in the frequency domain.
    mask_channels
        Channels that a mask is embedded into, once a level.
    style_channels
        Feature channels of the style encoder's levels.
    """

    dimensions: int
    labels: int
    channels: tuple[int, ...] = (32, 64, 128)
    style: int = 64
    frequency: bool = True
    mask_channels: int = 16
    style_channels: tuple[int, ...] = (8, 16, 16)

    def __post_init__(self) -> None:
        if self.dimensions not in (2, 3):
            raise ValueError(f"a denoiser has 2 or 3 spatial axes, not {self.dimensions}")
        if self.labels < 2:
            raise ValueError(f"a mask has at least background and one structure, not {self.labels} classes")
        if not self.channels or any(width < 4 or width % 4 for width in self.channels):
            raise ValueError(f"channels are multiples of 4, at least one level; not {self.channels}")
        if self.style < 0 or self.mask_channels < 1 or not self.style_channels or min(self.style_channels) < 1:
            raise ValueError("a style has no negative length, and masks and styles need at least one channel")

    @property
    def stride(self) -> int:
        """Spatial sizes of an image must be a multiple of this."""
        return int(2 ** (len(self.channels) - 1))

    @property
    def time(self) -> int:
        """Length of the time embedding."""
        return 4 * self.channels[0]


class Denoiser(nn.Module):
    """Predict what a scheduler asks for (noise, velocity or image) from a noisy image, a time step, a mask and a style.

    Its last layer starts at zero, and so does its prediction.

    Parameters
    ----------
    settings
        Its shape.

    Attributes
    ----------
    null_style
        ``[style]`` parameter: the style where none is given. None where `settings.style` is 0.
    """

    def __init__(self, settings: DenoiserSettings) -> None:
        super().__init__()
        self.settings = settings
        channels, axes = settings.channels, settings.dimensions
        convolution = Conv[Conv.CONV, axes]
        self.null_style = nn.Parameter(torch.zeros(settings.style)) if settings.style else None
        self.time = nn.Sequential(
            nn.Linear(channels[0], settings.time), nn.SiLU(), nn.Linear(settings.time, settings.time)
        )
        self.stem = convolution(1, channels[0], 3, padding=1)
        self.masks = nn.ModuleList(
            nn.Sequential(convolution(settings.labels, settings.mask_channels, 3, padding=1), nn.SiLU())
            for _ in channels
        )
        self.pool = Pool[Pool.AVG, axes](2)
        self.encoder = nn.ModuleList(_EncoderBlock(width, settings) for width in channels)
        self.down = nn.ModuleList(
            convolution(fine, coarse, 3, stride=2, padding=1) for fine, coarse in itertools.pairwise(channels)
        )
        self.up = nn.ModuleList(convolution(coarse, fine, 1) for fine, coarse in itertools.pairwise(channels))
        self.decoder = nn.ModuleList(_DecoderBlock(width, settings) for width in channels)
        self.norm = nn.GroupNorm(4, channels[0])
        self.head = convolution(channels[0], 1, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def stride(self) -> int:
        """Spatial sizes of an image must be a multiple of this."""
        return self.settings.stride

    def forward(self, noisy: Tensor, timestep: Tensor, mask: Tensor, style: Tensor | None = None) -> Tensor:
        """Predict.

        Parameters
        ----------
        noisy
            ``[N, 1, *spatial]`` float; every side a multiple of :attr:`stride`, and at least one of them longer.
        timestep
            ``[N]``, integer or float.
        mask
            ``[N, labels, *spatial]`` one-hot float, axis order of `noisy`; zero everywhere for no mask.
        style
            ``[N, style]``; None for :attr:`null_style`.

        Returns
        -------
        Tensor
            ``[N, 1, *spatial]``.

        Raises
        ------
        ValueError
            If the shapes do not fit, or a style is given to a denoiser without texture injection.
        """
        self._check(noisy, timestep, mask, style)
        time = self.time(get_timestep_embedding(timestep, self.settings.channels[0]).to(noisy.dtype))
        if style is None and self.null_style is not None:
            style = self.null_style.expand(len(noisy), -1)
        masks = [mask.to(noisy.dtype)]
        for _ in self.down:  # shares of a coarse voxel: nearest neighbours would lose thin structures
            masks.append(self.pool(masks[-1]))
        feature = self.stem(noisy)
        skips: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            feature = block(feature, time)
            if level < len(self.down):
                skips.append(feature)
                feature = self.down[level](feature)
        for level in reversed(range(len(self.decoder))):
            if level < len(self.up):
                rising = F.interpolate(self.up[level](feature), scale_factor=2.0, mode="nearest")
                feature = rising + skips[level]
            feature = self.decoder[level](feature, time, self.masks[level](masks[level]), style)
        prediction: Tensor = self.head(F.silu(self.norm(feature)))
        return prediction

    def _check(self, noisy: Tensor, timestep: Tensor, mask: Tensor, style: Tensor | None) -> None:
        settings = self.settings
        sides, count = tuple(noisy.shape[2:]), len(noisy)
        if len(sides) != settings.dimensions or noisy.shape[1] != 1:
            raise ValueError(f"an image has shape [N, 1] and {settings.dimensions} sides, not {tuple(noisy.shape)}")
        if any(side % self.stride for side in sides) or max(sides) < 2 * self.stride:
            raise ValueError(f"sides {sides} are not multiples of {self.stride}, or none of them is longer than that")
        if tuple(mask.shape) != (count, settings.labels, *sides):
            raise ValueError(f"a mask has shape {(count, settings.labels, *sides)}, not {tuple(mask.shape)}")
        if tuple(timestep.shape) != (count,):
            raise ValueError(f"there is one time step an image, {(count,)}, not {tuple(timestep.shape)}")
        if style is not None and not settings.style:
            raise ValueError("this denoiser was built without texture injection; it takes no style")
        if style is not None and tuple(style.shape) != (count, settings.style):
            raise ValueError(f"styles have shape {(count, settings.style)}, not {tuple(style.shape)}")


class _EncoderBlock(nn.Module):
    """A residual block that knows the time step and neither mask nor style."""

    def __init__(self, channels: int, settings: DenoiserSettings) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.time = nn.Linear(settings.time, 2 * channels)
        self.convolution = Conv[Conv.CONV, settings.dimensions](channels, channels, 3, padding=1)

    def forward(self, feature: Tensor, time: Tensor) -> Tensor:
        out: Tensor = feature + self.convolution(F.silu(_modulated(self.norm(feature), self.time(time))))
        return out


class _DecoderBlock(nn.Module):
    """A residual block whose two normalisations take the mask and then the style, and that ends in the gate."""

    def __init__(self, channels: int, settings: DenoiserSettings) -> None:
        super().__init__()
        convolution = Conv[Conv.CONV, settings.dimensions]
        self.first_norm = _Conditioned(channels, settings)
        self.first = convolution(channels, channels, 3, padding=1)
        self.time = nn.Linear(settings.time, channels)
        self.second_norm = _Conditioned(channels, settings)
        self.second = convolution(channels, channels, 3, padding=1)
        self.gate = FrequencyGate(channels, settings.dimensions, settings.time) if settings.frequency else None

    def forward(self, feature: Tensor, time: Tensor, mask: Tensor, style: Tensor | None) -> Tensor:
        out = self.first(F.silu(self.first_norm(feature, mask, style))) + _per_channel(self.time(time), feature)
        out = feature + self.second(F.silu(self.second_norm(out, mask, style)))
        gated: Tensor = out if self.gate is None else self.gate(out, time)
        return gated


class _Conditioned(nn.Module):
    """SPADE and adaptive instance normalisation (AdaIN) in one: h ← σ(style) ⊙ (γ(mask) ⊙ IN(h) + β(mask)) + μ(style).

    One instance normalisation serves both: a second one between the two would take out what the mask has just put in.
    The mask comes embedded, and so has seen its neighbourhood: 1×1 convolutions do here. (MONAI's SPADE embeds it anew
    for every layer, at several times the cost.) σ is 1 and μ is 0 at the start.
    """

    def __init__(self, channels: int, settings: DenoiserSettings) -> None:
        super().__init__()
        # With a group a channel this is instance normalisation, which torch has a much slower kernel for on a CPU.
        self.norm = nn.GroupNorm(channels, channels, affine=False)
        self.mask = Conv[Conv.CONV, settings.dimensions](settings.mask_channels, 2 * channels, 1)
        self.style = nn.Linear(settings.style, 2 * channels) if settings.style else None
        with torch.no_grad():
            self.mask.bias[:channels] += 1
            if self.style is not None:
                nn.init.zeros_(self.style.weight)
                nn.init.zeros_(self.style.bias)

    def forward(self, feature: Tensor, mask: Tensor, style: Tensor | None) -> Tensor:
        scale, shift = self.mask(mask).chunk(2, dim=1)
        out = torch.addcmul(shift, self.norm(feature), scale)
        return out if self.style is None or style is None else _modulated(out, self.style(style))


def _modulated(feature: Tensor, values: Tensor) -> Tensor:
    """Scale every channel by 1 + the first half of ``[N, 2·C]`` and shift it by the second."""
    scale, shift = (_per_channel(half, feature) for half in values.chunk(2, dim=1))
    return torch.addcmul(shift, feature, 1 + scale)


def _per_channel(values: Tensor, feature: Tensor) -> Tensor:
    """``[N, C]`` as ``[N, C, 1, …]``, to meet a feature map."""
    return values.reshape(*values.shape, *(1 for _ in feature.shape[2:]))
