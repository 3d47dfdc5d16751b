"""The texture of an image as a short vector: what its voxels look like together, not where anything lies.

Statistics of convolutional features carry texture and no layout (Gatys et al. 2015, arXiv 1505.07376), which is why an
image may lend its texture to another one's anatomy (adaptive instance normalisation; Huang and Belongie 2017, arXiv
1703.06868). Zero-filled borders would tell a convolution where it is; these wrap round.
"""

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from wardround.models.denoiser import DenoiserSettings

# Share of the newest batch in what is usual, in the long run, and the least variance that counts as one.
FOLLOW, LEAST = 0.02, 1e-6


class StyleEncoder(nn.Module):
    """Map a reference image to a style vector through statistics of whole feature maps.

    Of every level the mean, the standard deviation and the Gram matrix of its channels over all voxels go on, and
    nothing else, each against what is :class:`Usual`: images of one kind differ by little of what they have in
    common. Levels see neighbourhoods of 3, 5 and 9 voxels (each next one twice as coarse), and do not normalise:
    contrast and brightness are texture too.

    Parameters
    ----------
    settings
        Those of the denoiser that the style is for, with a `style` above 0.
    """

    def __init__(self, settings: DenoiserSettings) -> None:
        super().__init__()
        if not settings.style:
            raise ValueError("a style of length 0 needs no encoder")
        self.settings = settings
        widths = settings.style_channels
        convolution = Conv[Conv.CONV, settings.dimensions]
        self.levels = nn.ModuleList(
            convolution(before, width, 3, stride=1 if level == 0 else 2, padding=1, padding_mode="circular")
            for level, (before, width) in enumerate(zip((1, *widths), widths, strict=False))
        )
        sizes = [2 * width + width * (width + 1) // 2 for width in widths]
        self.usual = nn.ModuleList(Usual(size) for size in sizes)
        self.summaries = nn.ModuleList(nn.Linear(size, settings.style) for size in sizes)
        self.style = nn.Sequential(nn.SiLU(), nn.Linear(settings.style * len(widths), settings.style))

    @property
    def stride(self) -> int:
        """Shifting an image round by a multiple of this leaves its style as it is."""
        return int(2 ** (len(self.levels) - 1))

    def forward(self, reference: Tensor) -> Tensor:
        """Encode.

        Parameters
        ----------
        reference
            ``[N, 1, *spatial]`` float, normalised as the images that a denoiser learns from.

        Returns
        -------
        Tensor
            ``[N, style]``.

        Raises
        ------
        ValueError
            If the image has other axes than the encoder.
        """
        if reference.dim() != self.settings.dimensions + 2 or reference.shape[1] != 1:
            axes = self.settings.dimensions
            raise ValueError(f"a reference has shape [N, 1] and {axes} sides, not {tuple(reference.shape)}")
        parts, feature = [], reference
        for level, usual, summary in zip(self.levels, self.usual, self.summaries, strict=True):
            feature = F.silu(level(feature))
            parts.append(summary(usual(statistics(feature))))
        style: Tensor = self.style(torch.cat(parts, dim=1))
        return style


class Usual(nn.Module):
    """What statistics are in standard deviations from their usual value.

    In training both are followed, as running means of the values and their squares over all that was seen: the first
    batches count evenly, later ones :data:`FOLLOW` each. They are the same in training and evaluation.

    Parameters
    ----------
    size
        How many statistics.
    """

    mean: Tensor
    square: Tensor
    batches: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("square", torch.ones(size))
        self.register_buffer("batches", torch.zeros(1))

    def forward(self, values: Tensor) -> Tensor:
        """Map ``[N, size]`` to the same shape, float32 at least; a batch counts from the next one on."""
        spread = (self.square - self.mean.square()).clamp_min(0).add(LEAST).sqrt()
        standard: Tensor = (values - self.mean) / spread
        if self.training:
            self._follow(values.detach())
        return standard

    def _follow(self, values: Tensor) -> None:
        mean, square = values.mean(dim=0).to(self.mean.dtype), values.square().mean(dim=0).to(self.mean.dtype)
        if not (mean.isfinite().all() and square.isfinite().all()):
            return
        self.batches += 1
        share = max(FOLLOW, 1 / self.batches.item())
        # New tensors: what was used in a pass stays as it is until its gradient is known.
        self.mean, self.square = torch.lerp(self.mean, mean, share), torch.lerp(self.square, square, share)


def statistics(feature: Tensor) -> Tensor:
    """Mean, standard deviation and Gram matrix of the channels of a feature map.

    Parameters
    ----------
    feature
        ``[N, C, *spatial]``.

    Returns
    -------
    Tensor
        ``[N, 2·C + C·(C + 1)/2]``: means, population standard deviations, and the upper triangle of the mean over
        voxels of the outer product of a voxel's channels, row by row. float32 at least.
    """
    values = feature.flatten(2).to(torch.promote_types(feature.dtype, torch.float32))
    with torch.autocast(feature.device.type, enabled=False):
        mean = values.mean(dim=2)
        gram = values @ values.transpose(1, 2) / values.shape[2]
        spread = (values.var(dim=2, correction=0) + 1e-8).sqrt()  # a flat channel has a gradient too
        rows, columns = torch.triu_indices(values.shape[1], values.shape[1], device=values.device)
        return torch.cat((mean, spread, gram[:, rows, columns]), dim=1)
