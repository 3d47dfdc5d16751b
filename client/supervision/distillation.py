"""Learning from another network: its most probable labels, or its soft ones."""

import torch
import torch.nn.functional as F
from torch import Tensor

from wardround.client.supervision.losses import segmentation_loss


def hard_targets(logits: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy and soft Dice to the teacher's most probable labels.

    Self-training as in Zhai et al. 2023 (PA-Seg, arXiv 2208.05669): the teacher is a frozen copy of the student.

    Parameters
    ----------
    logits, teacher
        Of student and teacher, ``[N, C, *spatial]``. The teacher gets no gradient.
    weight
        ``[N, *spatial]``, at least 0; None counts every voxel once.
    """
    with torch.no_grad():
        labels = teacher.argmax(dim=1)
        target = torch.movedim(F.one_hot(labels, teacher.shape[1]), -1, 1).to(logits)
        counts = torch.ones_like(target[:, 0]) if weight is None else weight
    return segmentation_loss(logits, target, counts)


def soft_targets(logits: Tensor, teacher: Tensor, temperature: float = 4.0, weight: Tensor | None = None) -> Tensor:
    """``T² KL(softmax(teacher / T) ‖ softmax(student / T))``, averaged over voxels.

    Distillation of Hinton et al. 2015 (arXiv 1503.02531). The factor T² keeps the size of the gradient the same for all
    temperatures.

    Parameters
    ----------
    logits, teacher
        Of student and teacher, ``[N, C, *spatial]``. The teacher gets no gradient.
    temperature
        T, above 0.
    weight
        ``[N, *spatial]``, at least 0; None counts every voxel once.
    """
    goal = torch.log_softmax(teacher.detach() / temperature, dim=1)
    own = torch.log_softmax(logits / temperature, dim=1)
    divergence = F.kl_div(own, goal, reduction="none", log_target=True).sum(dim=1)
    if weight is None:
        return temperature**2 * divergence.mean()
    return temperature**2 * (weight * divergence).sum() / weight.sum().clamp_min(torch.finfo(divergence.dtype).tiny)
