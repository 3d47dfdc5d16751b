"""Learning from another network: its most probable labels, its soft ones, or what it once said."""

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


def certainty(probabilities: Tensor) -> Tensor:
    """How sure a network is of each voxel: ``Σ_c p_c²``, which for two classes is ``p² + (1 − p)²``.

    Parameters
    ----------
    probabilities
        ``[N, C, *spatial]``, sums to one over C.

    Returns
    -------
    Tensor
        ``[N, *spatial]``, from 1/C where all classes are alike to 1 where one is certain.
    """
    return probabilities.square().sum(dim=1)


def certain_distillation(
    logits: Tensor, teacher: Tensor, temperature: float = 1.0, certain: bool = True, weight: Tensor | None = None
) -> Tensor:
    """Cross-entropy to the teacher's softened labels, each voxel as heavy as the teacher is certain of it.

    Multi-scale multi-task distillation (Tian et al. 2022): ``mean_v c_v · CE(softmax(teacher / T), softmax(student /
    T))`` with c of :func:`certainty` of ``softmax(teacher)``, whatever T. Weights of certainty are not normalised, and
    there is no factor T² (compare :func:`soft_targets`), as the authors released it. For T other than 1 their release
    takes the power 1/T of foreground probabilities without renormalising, which favours foreground; this does not.
    Without certainty it is Learning without Forgetting (Li and Hoiem 2016, arXiv 1606.09282).

    Parameters
    ----------
    logits, teacher
        Of student and teacher, ``[N, C, *spatial]``. The teacher gets no gradient.
    temperature
        T, above 0.
    certain
        Whether voxels count by the teacher's certainty.
    weight
        ``[N, *spatial]``, at least 0: the mean over voxels is weighted by it. None counts every voxel once.
    """
    teacher = teacher.detach()
    own = torch.log_softmax(logits / temperature, dim=1)
    entropy = -(torch.softmax(teacher / temperature, dim=1) * own).sum(dim=1)
    if certain:
        entropy = certainty(torch.softmax(teacher, dim=1)) * entropy
    if weight is None:
        return entropy.mean()
    return (weight * entropy).sum() / weight.sum().clamp_min(torch.finfo(entropy.dtype).tiny)


def logit_loss(logits: Tensor, stored: Tensor, known: Tensor) -> Tensor:
    """Mean squared difference to logits that were stored with a sample (DER++, Buzzega et al. 2020, equation 6).

    Dark experience replay, arXiv 2004.07211. The mean is over known voxels and classes.

    Parameters
    ----------
    logits
        ``[N, C, *spatial]``, of the network that learns.
    stored
        Same shape, any float type; of the network when the sample was stored. Gets no gradient. Unknown voxels may
        hold anything.
    known
        ``[N, *spatial]``, bool: where logits were stored.

    Returns
    -------
    Tensor
        Scalar; 0, with a gradient of 0, where nothing is known.
    """
    apart = torch.where(known[:, None], logits - stored.detach().to(logits), 0.0)
    return apart.square().sum() / (known.sum() * logits.shape[1]).clamp_min(1)
