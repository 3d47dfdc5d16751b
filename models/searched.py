"""A generator that makes an image from labels and whose operators are searched, and the discriminator beside it.

The U-Net of pix2pix (Isola et al. 2017, arXiv 1611.07004) as GenSeg has it (Zhang et al. 2025, doi
10.1038/s41467-025-61754-6): strided convolutions go down, and each step up is a mixture of three transposed
convolutions, weighted by a softmax over three architecture variables (as DARTS, Liu et al. 2019, arXiv 1806.09055)::

    up_i(x) = Σ_k softmax(A_i)_k · T_k(x),   T_k of kernel 4, 6, 8, stride 2, padding 1, 2, 3

Convolution is linear in its kernel and the three are aligned at their centres, so the mixture is one transposed
convolution with the mixed kernel. It is computed as a plain convolution with a kernel of 4 whose output channels are
the voxels of even and odd places (Shi et al. 2016, arXiv 1609.07009): the gradient that oneDNN, within torch 2.13,
gives for a transposed convolution of kernel 8 in three dimensions reads and writes beyond its memory on small grids.

What differs from pix2pix: instances are normalised, never batches; and there is no tanh at the end, since normalised
intensities have no bounds.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn

from wardround.errors import UsageError

# Sides of the kernels that are mixed. A transposed convolution of stride 2 doubles a side if it is padded by half of
# what its kernel is larger than the stride.
KERNELS = (4, 6, 8)
# Spread of a freshly drawn architecture: close to an even mixture.
SPREAD = 1e-3


@dataclass(frozen=True)
class SearchedSettings:
    """Sizes of the generator and the discriminator.

    Parameters
    ----------
    dimensions
        2 or 3 spatial axes.
    labels
        Number of classes including background, at least 2.
    channels
        Feature channels of each level below the image, finest first; each halves the resolution.
    dropout
        Probability of dropout in the coarsest steps up, from 0 to below 1. It is pix2pix's source of variety and works
        whenever an image is made, so the generator depends on torch's random state unless this is 0.
    discriminator_channels
        Of the discriminator's first level.
    discriminator_layers
        Levels of the discriminator behind its first; all but the last halve the resolution.
    """

    dimensions: int
    labels: int
    channels: tuple[int, ...] = (16, 32, 64)
    dropout: float = 0.5
    discriminator_channels: int = 16
    discriminator_layers: int = 2

    def __post_init__(self) -> None:
        if self.dimensions not in (2, 3) or self.labels < 2 or len(self.channels) < 2 or not 0 <= self.dropout < 1:
            raise UsageError(
                "no generator has these settings",
                f"dimensions {self.dimensions}, labels {self.labels}, channels {self.channels}, dropout {self.dropout}",
                "choose 2 or 3 dimensions, 2 labels and 2 levels at least, and a dropout from 0 to below 1",
            )

    @property
    def stride(self) -> int:
        """Sides of masks must be a multiple of this."""
        return int(2 ** len(self.channels))


class SearchedUp(nn.Module):
    """One step up: three transposed convolutions of stride 2, mixed.

    Parameters
    ----------
    dimensions
        2 or 3 spatial axes.
    inputs, outputs
        Channels before and after.
    bias
        Whether a bias is added; the mixture has one.
    """

    def __init__(self, dimensions: int, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        # Normal with 0.02, as pix2pix draws all its kernels.
        self.kernels = nn.ParameterList(
            nn.Parameter(0.02 * torch.randn(inputs, outputs, *(side,) * dimensions)) for side in KERNELS
        )
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self._convolve = F.conv2d if dimensions == 2 else F.conv3d

    def forward(self, feature: Tensor, mixture: Tensor) -> Tensor:
        """Map ``[N, inputs, *grid]`` to ``[N, outputs, *(2 · grid)]``.

        Parameters
        ----------
        feature
            What goes up.
        mixture
            ``[3]``, at least 0 and of sum 1: shares of the kernels, in the order of :data:`KERNELS`.
        """
        axes, outputs, largest = feature.ndim - 2, self.kernels[0].shape[1], KERNELS[-1]
        kernel = sum(
            share * F.pad(own, [(largest - side) // 2] * 2 * axes)
            for share, own, side in zip(mixture, self.kernels, KERNELS, strict=True)
        )
        # Backwards, each axis of the kernel is four taps for even places and four for odd ones by turns.
        taps = kernel.flip(tuple(range(2, 2 + axes)))
        taps = taps.reshape(*taps.shape[:2], *(largest // 2, 2) * axes)
        taps = taps.permute(1, *range(3, 3 + 2 * axes, 2), 0, *range(2, 2 + 2 * axes, 2)).flatten(0, axes)
        bias = None if self.bias is None else self.bias.repeat_interleave(2**axes)
        found: Tensor = self._convolve(feature, taps, bias, padding=2)
        found = found.reshape(found.shape[0], outputs, *(2,) * axes, *found.shape[2:])
        for side in feature.shape[2:]:
            # Even places begin one tap before odd ones. The first place of the shape that is left is this axis's.
            both = [found.select(2, odd).narrow(1 + axes, odd, side) for odd in (0, 1)]
            found = torch.stack(both, dim=2 + axes).flatten(1 + axes, 2 + axes)
        return found


class SearchedGenerator(nn.Module):
    """Labels to an image.

    Parameters
    ----------
    settings
        Its sizes.
    seed
        Fixes weights and architecture; the global random state of torch is left as it was.
    """

    def __init__(self, settings: SearchedSettings, seed: int) -> None:
        super().__init__()
        self.settings = settings
        levels, dimensions = settings.channels, settings.dimensions
        convolution = nn.Conv2d if dimensions == 2 else nn.Conv3d
        norm = nn.InstanceNorm2d if dimensions == 2 else nn.InstanceNorm3d
        last = len(levels) - 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # As in pix2pix neither the finest level nor the coarsest, which may be a single voxel, is normalised.
            self.down = nn.ModuleList(
                nn.Sequential(
                    convolution(inputs, outputs, 4, stride=2, padding=1, bias=level in (0, last)),
                    nn.Identity() if level in (0, last) else norm(outputs, affine=True),
                    nn.LeakyReLU(0.2),
                )
                for level, (inputs, outputs) in enumerate(zip((settings.labels, *levels[:-1]), levels, strict=True))
            )
            # Finest first, as `down`. All but the coarsest see the level that they come from beside what comes up.
            self.up = nn.ModuleList(
                SearchedUp(dimensions, inputs * (1 if level == last else 2), outputs, bias=level == 0)
                for level, (inputs, outputs) in enumerate(zip(levels, (1, *levels[:-1]), strict=True))
            )
            self.norms = nn.ModuleList(norm(outputs, affine=True) for outputs in levels[:-1])
            for block in self.down.modules():
                if isinstance(block, convolution):
                    nn.init.normal_(block.weight, std=0.02)
            self.architecture = nn.Parameter(SPREAD * torch.randn(len(levels), len(KERNELS)))

    def forward(self, mask: Tensor) -> Tensor:
        """Make an image of each mask.

        Parameters
        ----------
        mask
            ``[N, labels, *spatial]``, one-hot; sides are multiples of :attr:`SearchedSettings.stride`.

        Returns
        -------
        Tensor
            ``[N, 1, *spatial]``, normalised intensities, without bounds.
        """
        skips = []
        feature = mask
        for block in self.down:
            feature = block(feature)
            skips.append(feature)
        mixtures = torch.softmax(self.architecture, dim=1)
        for level in reversed(range(len(self.up))):
            if level < len(self.up) - 1:
                feature = torch.cat([skips[level], feature], dim=1)
            feature = self.up[level](F.relu(feature), mixtures[level])
            if level:
                feature = self.norms[level - 1](feature)
                if self.settings.dropout and level >= self._from_level:
                    feature = F.dropout(feature, self.settings.dropout, training=True)
        return feature

    @property
    def _from_level(self) -> int:
        """The finest step up with dropout: three of pix2pix's eight have it, of fewer the coarsest alone."""
        return len(self.up) - max(1, (len(self.up) - 2) // 2)

    def weights(self) -> list[nn.Parameter]:
        """Every parameter but the architecture: what adversarial training changes."""
        return [parameter for parameter in self.parameters() if parameter is not self.architecture]

    def mixtures(self) -> Tensor:
        """``[steps up, 3]``, finest first: the share of each of :data:`KERNELS`; rows sum to one."""
        return torch.softmax(self.architecture.detach(), dim=1)


def discriminator(settings: SearchedSettings, seed: int) -> nn.Module:
    """The discriminator of patches that fits a generator of these settings, with freshly drawn weights.

    Returns
    -------
    torch.nn.Module
        Maps mask and image, ``[N, labels + 1, *spatial]``, to a list whose last entry is a logit for each patch.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = PatchDiscriminator(
            spatial_dims=settings.dimensions,
            channels=settings.discriminator_channels,
            in_channels=settings.labels + 1,
            num_layers_d=settings.discriminator_layers,
            norm="INSTANCE",
        )
        return network
