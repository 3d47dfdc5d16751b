"""Voxel-weighted losses against soft targets.

One weight map serves every kind of partial supervision: zero where nothing is known, one where a proxy speaks, more
where the annotator drew. A partial loss is the same function with zero weight off the drawn voxels.
"""

import torch
from torch import Tensor

# Keeps the Dice term finite where a structure is absent, in weighted voxels.
DICE_SMOOTHING = 1.0


def weighted_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy to a soft target, averaged by voxel weight.

    Parameters
    ----------
    logits
        ``[N, C, I, J, K]`` (or ``[N, C, I, J]``), any real range.
    target
        Same shape, probabilities that sum to one over C.
    weight
        ``[N, I, J, K]``, non-negative; zero leaves a voxel out.

    Returns
    -------
    Tensor
        Scalar ``sum(w * ce) / sum(w)``; zero, with a gradient of zero, where every weight is zero.
    """
    entropy = -(target * torch.log_softmax(logits, dim=1)).sum(dim=1)
    return (weight * entropy).sum() / weight.sum().clamp_min(torch.finfo(entropy.dtype).tiny)


def weighted_soft_dice(
    logits: Tensor, target: Tensor, weight: Tensor, factors: Tensor | None = None, told: Tensor | None = None
) -> Tensor:
    """One minus the voxel-weighted soft Dice, averaged over structures (background left out) and batch.

    Shapes and ranges as in :func:`weighted_cross_entropy`. Per structure:
    ``1 - (2 sum(w p t) + s) / (sum(w p) + sum(w t) + s)`` with ``s`` = :data:`DICE_SMOOTHING`
    (Milletari et al. 2016, V-Net, equation 1, with weights and first powers in the denominator). A weight that all
    voxels of a sample share cancels out: `factors`, ``[N]``, at least 0, say how much samples count in the average.

    `told`, ``[N, C - 1]``, bool, says of which structures anything is known in a sample; the average over its
    structures leaves out the others, and that over the batch samples without any. Counted as missing, a structure that
    may lie in voxels that nobody labelled would be unlearnt wherever cases have different structures drawn.
    """
    probability = torch.softmax(logits, dim=1)[:, 1:]
    truth = target[:, 1:]
    voxels = weight.unsqueeze(1)
    axes = tuple(range(2, logits.ndim))
    overlap = (voxels * probability * truth).sum(axes)
    total = (voxels * (probability + truth)).sum(axes)
    missing = 1 - (2 * overlap + DICE_SMOOTHING) / (total + DICE_SMOOTHING)
    tiny = torch.finfo(missing.dtype).tiny
    if told is not None:
        counts = told.to(missing.dtype)
        means = (counts * missing).sum(dim=1) / counts.sum(dim=1).clamp_min(1)
        any_told = told.any(dim=1).to(missing.dtype)
        factors = any_told if factors is None else factors * any_told
        return (factors * means).sum() / factors.sum().clamp_min(tiny)
    if factors is None:
        return missing.mean()
    return (factors * missing.mean(dim=1)).sum() / factors.sum().clamp_min(tiny)


def segmentation_loss(  # noqa: PLR0917
    logits: Tensor,
    target: Tensor,
    weight: Tensor,
    dice: float = 1.0,
    factors: Tensor | None = None,
    told: Tensor | None = None,
) -> Tensor:
    """Sum of :func:`weighted_cross_entropy` and `dice` times :func:`weighted_soft_dice`.

    `factors`, ``[N]``, at least 0, say how much each sample counts in both; None for all the same. `told` is that of
    soft Dice; None where something is known of every structure.
    """
    counts = weight if factors is None else weight * factors.reshape(-1, *(1,) * (weight.ndim - 1))
    entropy = weighted_cross_entropy(logits, target, counts)
    return entropy + dice * weighted_soft_dice(logits, target, weight, factors, told) if dice else entropy
