"""Variance minimisation: a structure is of one brightness."""

import torch
from torch import Tensor


def intensity_variance(
    probability: Tensor, image: Tensor, counted: Tensor | None = None, inside: Tensor | None = None
) -> Tensor:
    """Soft variance of intensity within every class, summed over classes and averaged over the batch.

    ``μ_c = Σ p_c I / Σ p_c`` and ``V_c = Σ p_c (I − μ_c)² / Σ p_c`` (Zhai et al. 2023, PA-Seg, arXiv 2208.05669, after
    the Mumford-Shah loss of Kim and Ye 2020, doi 10.1109/TIP.2019.2941265). The gradient through μ_c is
    0: the mean is where the variance is least.

    Parameters
    ----------
    probability
        ``[N, C, *spatial]``, 0 … 1; class 0 is background.
    image
        ``[N, 1, *spatial]``, normalised.
    counted
        ``[N, *spatial]``, bool: which voxels count for background; air, which is of one value and large, would hide the
        rest. None for all.
    inside
        ``[N, *spatial]``, bool: which voxels count at all. None for all.

    Returns
    -------
    Tensor
        Scalar in squared units of the image, at least 0. A class of no mass adds nothing.
    """
    p = probability.flatten(2)
    if inside is not None:
        p = p * inside.flatten(1)[:, None]
    if counted is not None:
        p = torch.cat([p[:, :1] * counted.flatten(1)[:, None], p[:, 1:]], dim=1)
    values = image.flatten(2)
    mass = p.sum(dim=2).clamp_min(torch.finfo(p.dtype).eps)
    mean = (p * values).sum(dim=2) / mass
    spread = (p * (values - mean[..., None]).square()).sum(dim=2) / mass
    return spread.sum(dim=1).mean()
