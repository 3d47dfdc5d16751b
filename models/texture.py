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


class StyleEncoder(nn.Module):
    """Map a reference image to a style vector through statistics of whole feature maps.

    Of every level the mean, the standard deviation and the Gram matrix of its channels over all voxels go on, and
    nothing else. Levels see neighbourhoods of 3, 5 and 9 voxels (each next one twice as coarse), and do not normalise:
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
        self.summaries = nn.ModuleList(
            nn.Linear(2 * width + width * (width + 1) // 2, settings.style) for width in widths
        )
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
        for level, summary in zip(self.levels, self.summaries, strict=True):
            feature = F.silu(level(feature))
            parts.append(summary(statistics(feature)))
        style: Tensor = self.style(torch.cat(parts, dim=1))
        return style


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
