"""Contrast of features with those that a network had before: voxels of a structure stay together, old and new.

Multi-scale multi-task distillation (Tian et al. 2022) brings the uncertainty-aware contrastive distillation of Yang et
al. 2022 (arXiv 2203.14098) to binary volumes, and this brings it to several structures. Pairs of all voxels would not
fit into memory: here anchors and what they are compared with are drawn, evenly over what they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from wardround.client.supervision.distillation import certainty
from wardround.client.supervision.shifts import ends
from wardround.errors import UsageError

# Label of a voxel that is in no set.
UNKNOWN = -1

# A voxel of the feature grid is wholly inside from this share on; less than 1 for rounding.
WHOLE = 1 - 1e-4

# Pairs that are held at once; of more, the backward pass computes the similarities anew.
PAIRS = 2**20

# Stands for the similarity of pairs that do not count; finite, so that a sum over none has a gradient of 0.
NOTHING = -1e30


@dataclass(frozen=True)
class ContrastSettings:
    """What is compared, and how sharply.

    Parameters
    ----------
    temperature
        T by which cosines are divided, above 0.
    edges
        Whether only voxels at the boundary of a label are in the sets, on both sides of it.
    anchors, contrasts
        Most anchors, and most features that each is compared with, at least 1. Where there are fewer all are taken.
    """

    temperature: float = 1.0
    edges: bool = False
    anchors: int = 512
    contrasts: int = 2048


def contrastive_loss(  # noqa: PLR0917
    features: Tensor,
    old_features: Tensor,
    target: Tensor,
    old_probabilities: Tensor,
    weight: Tensor,
    settings: ContrastSettings,
    rng: np.random.Generator,
) -> Tensor:
    """The mean over anchors of ``−1/|P| Σ_{p in P} c_p [s_ap − log(e^{s_ap} + Σ_{n in N} e^{s_an})]``.

    ``s`` is the cosine of two features over T. Anchors are new features of structures, never of background, and the
    gradient flows through them alone. Positives of an anchor are new features of its structure, itself excluded, with
    ``c_p = 1``, and old features of voxels that have its label and that the old network took for it, with ``c_p`` its
    certainty there. All other features, new and old, are negatives. Anchors without a positive do not count.

    A voxel of the feature grid is of a structure only where all labels that linear resampling reads there are, and
    of the background else, as the authors released it; it is known only where all weights read are above 0. Sets reach
    over the whole batch. Where a limit is met, features are drawn in equal numbers of each kind (a label, new, old, or
    old and taken for another), as far as there are any; the sums then run over what was drawn.

    Parameters
    ----------
    features, old_features
        ``[N, D, *grid]`` with one to three spatial axes, of the network that learns and of the one before it.
    target
        Labels as probabilities, ``[N, C, *spatial]``; the most probable one counts. Channel 0 is background.
    old_probabilities
        Of the old network, ``[N, C, *spatial]``, sums to one over C; resampled linearly.
    weight
        ``[N, *spatial]``, at least 0: voxels of 0 are unknown and in no set.
    settings
        What is compared.
    rng
        Draws where there is more than the limits allow, else untouched.

    Returns
    -------
    Tensor
        Scalar, at least 0; 0, with a gradient of 0, where no anchor has a positive.

    Raises
    ------
    UsageError
        If the shapes do not fit together.
    """
    if (
        features.shape != old_features.shape
        or target.shape != old_probabilities.shape
        or weight.shape != target[:, 0].shape
        or (len(features), features.ndim) != (len(target), target.ndim)
    ):
        raise UsageError(
            f"features of shapes {tuple(features.shape)} and {tuple(old_features.shape)} do not fit labels of shape "
            f"{tuple(target.shape)}",
            "new and old features must lie on one grid, and labels, probabilities and weights on one",
            "take features of the same stage, and probabilities of the same batch",
        )
    with torch.no_grad():
        grid = features.shape[2:]
        label = labels_on_grid(target, weight, grid)
        if settings.edges:
            label[~_at_boundary(label)] = UNKNOWN
        belief = _resampled(_single(old_probabilities), grid)
        label, agrees = label.flatten(), (belief.argmax(dim=1) == label).flatten()
        sure = certainty(belief).flatten()
        kinds = range(target.shape[1])
        of_label = [label == kind for kind in kinds]
        anchors = torch.cat(_drawn(of_label[1:], settings.anchors, rng))
        old = [found & same for same in (agrees, ~agrees) for found in of_label]
        drawn = _drawn([*of_label, *old], settings.contrasts, rng)
        fresh, former = torch.cat(drawn[: len(kinds)]), torch.cat(drawn[len(kinds) :])
        # What an old feature stands for is its label only where the old network said so too.
        stands_for = torch.cat([label[fresh], torch.where(agrees[former], label[former], UNKNOWN)])
        voxel = torch.cat([fresh, torch.full_like(former, UNKNOWN)])
    if not len(anchors):
        return features.flatten()[:0].sum()
    with torch.autocast(features.device.type, enabled=False):
        with torch.no_grad():
            others = torch.cat([_unit(features, fresh), _unit(old_features, former)]) / settings.temperature
            trust = torch.cat([torch.ones_like(sure[fresh]), sure[former]]).to(others)
        mine = _unit(features, anchors)
        rows = max(1, PAIRS // max(1, len(others)))
        total, count = mine.new_zeros(()), 0
        for start in range(0, len(anchors), rows):
            of_anchor, number = mine[start : start + rows], anchors[start : start + rows]
            positive = (label[number][:, None] == stands_for) & (number[:, None] != voxel)
            negative = label[number][:, None] != stands_for
            parts = (of_anchor, others, positive, negative, trust)
            if len(mine) <= rows:
                total = total + _sum_over_anchors(*parts)
            else:
                total = total + checkpoint(_sum_over_anchors, *parts, use_reentrant=False, preserve_rng_state=False)
            count += int(positive.any(dim=1).sum())
    return total / max(count, 1)


@torch.no_grad()
def labels_on_grid(target: Tensor, weight: Tensor, grid: Sequence[int]) -> Tensor:
    """Which structure the voxels of a coarser grid lie wholly inside.

    Parameters
    ----------
    target, weight
        As of :func:`contrastive_loss`.
    grid
        Sides of the coarser grid.

    Returns
    -------
    Tensor
        ``[N, *grid]``, int64: the number of a structure, 0 for background and for what is only partly inside one,
        :data:`UNKNOWN` where a weight that was read is 0.
    """
    one_hot = torch.movedim(F.one_hot(target.argmax(dim=1), target.shape[1]), -1, 1).float()
    share, label = _resampled(one_hot, grid).max(dim=1)
    label[share < WHOLE] = 0
    known = _resampled((weight > 0).float()[:, None], grid)[:, 0]
    label[known < WHOLE] = UNKNOWN
    return label


def _at_boundary(label: Tensor) -> Tensor:
    """Which known voxels of ``[N, *grid]`` have a known neighbour across a face with another label."""
    found = torch.zeros_like(label, dtype=torch.bool)
    for axis in range(label.ndim - 1):
        offset = tuple(int(place == axis) for place in range(label.ndim - 1))
        here, there = ends(label, offset)
        differ = (here != there) & (here != UNKNOWN) & (there != UNKNOWN)
        for end in ends(found, offset):
            end.logical_or_(differ)
    return found


def _resampled(field: Tensor, grid: Sequence[int]) -> Tensor:
    """`field` ``[N, C, *spatial]`` on `grid`, linearly."""
    if field.shape[2:] == tuple(grid):
        return field
    mode = ("linear", "bilinear", "trilinear")[len(grid) - 1]
    return F.interpolate(field, size=tuple(grid), mode=mode, align_corners=False)


def _drawn(groups: Sequence[Tensor], limit: int, rng: np.random.Generator) -> list[Tensor]:
    """Numbers of members of each group, given as masks ``[V]``: at most `limit` together, as evenly as they allow."""
    members = [torch.nonzero(group)[:, 0] for group in groups]
    drawn, left = list(members), limit
    for rank, place in enumerate(sorted(range(len(members)), key=lambda place: len(members[place]))):
        count, share = len(members[place]), left // (len(members) - rank)
        if count > share:
            chosen = np.sort(rng.choice(count, share, replace=False, shuffle=False))
            drawn[place] = members[place][torch.from_numpy(chosen).to(members[place].device)]
        left -= len(drawn[place])
    return drawn


def _unit(features: Tensor, numbers: Tensor) -> Tensor:
    """Features ``[N, D, *grid]`` of the voxels with these numbers, of length one: ``[n, D]``."""
    voxels = features[0, 0].numel()
    return F.normalize(_single(features.flatten(2)[numbers // voxels, :, numbers % voxels]), dim=1)


def _single(values: Tensor) -> Tensor:
    """In single precision, where it was half."""
    return values.float() if values.dtype in {torch.float16, torch.bfloat16} else values


def _sum_over_anchors(anchors: Tensor, others: Tensor, positive: Tensor, negative: Tensor, trust: Tensor) -> Tensor:
    """The losses of anchors ``[A, D]`` against ``[M, D]``, over T already, added up; the masks are ``[A, M]``."""
    similarity = anchors @ others.T
    against = torch.logsumexp(similarity.masked_fill(~negative, NOTHING), dim=1, keepdim=True)
    lost = (F.softplus(against - similarity) * (positive * trust)).sum(dim=1)
    return (lost / positive.sum(dim=1).clamp_min(1)).sum()
