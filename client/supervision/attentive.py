"""Attentive similarity: voxels that the network's own attention finds alike should be labelled alike.

Yang et al. 2023 (AttenScribble, arXiv 2312.06614) turn queries and keys of a self-attention block into an affinity of
tokens and use it as a conditional random field uses the image. Their released form squashes the affinity with a free
bias: because the penalty is never negative, an affinity of nothing for everybody is its minimum, and training goes
there. Normalised within the window the affinities of a token sum to one and cannot vanish.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from wardround.client.supervision.shifts import Offset, ends, half_window, squared_length


@dataclass(frozen=True)
class WindowSettings:
    """The neighbourhood of a token.

    Parameters
    ----------
    radius
        Half-width of the window in tokens.
    position
        Standard deviation of the Gaussian G over distance, in tokens.
    """

    radius: float = 5.0
    position: float = 6.0


@dataclass(frozen=True, eq=False)
class Affinity:
    """How alike every token finds each neighbour of its window.

    Parameters
    ----------
    offsets
        The whole window without its middle: ``(o_1, …, o_H, −o_1, …, −o_H)``.
    values
        ``[N, 2H, *grid]``, at least 0: what the token finds of its neighbour at that offset; 0 where there is none. The
        Gaussian G is part of it.
    """

    offsets: tuple[Offset, ...]
    values: Tensor


def windowed_affinity(
    queries: Tensor, keys: Tensor, grid: Sequence[int], settings: WindowSettings = WindowSettings()
) -> Affinity:
    """Affinities that sum to one over the window of every token.

    ``K_ij = softmax_j(½ (z_ij + z_ji) / √d + log G_ij)`` with ``z_ij = q_i · k_j``: what goes into the softmax is
    symmetric, its normalisation is each token's own. Only pairs within the window are ever computed.

    Parameters
    ----------
    queries, keys
        ``[N, n, d]``, n the product of `grid`.
    grid
        Sides of the token grid, two or three.
    settings
        The window.
    """
    steps = (1.0,) * len(grid)
    half = half_window(settings.radius, steps, grid)
    whole = _both_ways(half)
    if not half:
        return Affinity((), queries.new_zeros((len(queries), 0, *grid)))
    q, k = (part.transpose(1, 2).reshape(part.shape[0], part.shape[2], *grid) for part in (queries, keys))
    scores: Tensor = _PairScores.apply(q, k, half)  # type: ignore[no-untyped-call]
    log_near = torch.full((len(whole), *grid), -torch.inf, dtype=scores.dtype, device=scores.device)
    for number, offset in enumerate(whole):
        ends(log_near[number], offset)[0].fill_(-0.5 * squared_length(offset, steps) / settings.position**2)
    return Affinity(whole, torch.softmax(0.5 / queries.shape[-1] ** 0.5 * scores + log_near, dim=1))


def released_affinity(  # noqa: PLR0917
    queries: Tensor,
    keys: Tensor,
    grid: Sequence[int],
    scale: Tensor,
    offset: Tensor,
    settings: WindowSettings = WindowSettings(),
) -> Affinity:
    """The affinity as the authors released it: ``G_ij · sigmoid(α S_ij + β)``, ``S = A + Aᵀ``, ``A = softmax(QKᵀ)``.

    For comparison: it holds all pairs of tokens in memory, and training drives it to 0, see the module's text.

    Parameters
    ----------
    queries, keys, grid, settings
        As of :func:`windowed_affinity`.
    scale, offset
        α and β, scalars that are learnt.
    """
    attention = torch.softmax(queries @ keys.transpose(1, 2), dim=2)
    steps = (1.0,) * len(grid)
    half = half_window(settings.radius, steps, grid)
    whole = _both_ways(half)
    numbers = torch.arange(queries.shape[1], device=queries.device).reshape(tuple(grid))
    neighbours = torch.stack([_placed(ends(numbers, step)[1], step, grid, -1).flatten() for step in whole], dim=1)
    near = [math.exp(-0.5 * squared_length(step, steps) / settings.position**2) for step in whole]
    weight = (neighbours >= 0) * torch.tensor(near, device=queries.device, dtype=queries.dtype)
    index = neighbours.clamp_min(0).expand(len(queries), -1, -1)
    both = attention.gather(2, index) + attention.transpose(1, 2).gather(2, index)
    values = weight * torch.sigmoid(scale * both + offset)
    return Affinity(whole, values.transpose(1, 2).reshape(len(queries), len(whole), *grid))


def attentive_similarity(probability: Tensor, affinity: Affinity) -> Tensor:
    """The penalty ``mean_i Σ_j K_ij (1 − p_i · p_j)``; gradients reach both p and K.

    Parameters
    ----------
    probability
        ``[N, C, *spatial]``; it is resampled to the token grid linearly.
    affinity
        Of the same batch.

    Returns
    -------
    Tensor
        Scalar, at least 0.
    """
    grid = affinity.values.shape[2:]
    if probability.shape[2:] != grid:
        mode = "bilinear" if len(grid) == 2 else "trilinear"
        probability = F.interpolate(probability, size=tuple(grid), mode=mode, align_corners=False)
    total: Tensor = _Disagreement.apply(probability, affinity.values, affinity.offsets)  # type: ignore[no-untyped-call]
    return total / (probability.shape[0] * grid.numel())


@dataclass(frozen=True)
class KernelHealth:
    """Whether an affinity says anything.

    Parameters
    ----------
    mean
        Mean affinity over all pairs.
    same, different
        Mean affinity of pairs of one label and of two, at distances at which there are both; NaN where there are none.
    """

    mean: float
    same: float
    different: float

    @property
    def ratio(self) -> float:
        """`same` over `different`: 1 says nothing, more is better."""
        return self.same / self.different if self.different else float("nan")


@torch.no_grad()
def kernel_health(affinity: Affinity, labels: Tensor, ignore: int = 255) -> KernelHealth:
    """Compare affinities of pairs that are known to be of one label with those that are not.

    Pairs are compared at equal distance: those of one label lie nearer together, and a kernel that knows only what is
    near would seem to tell labels apart.

    Parameters
    ----------
    affinity
        Of a batch.
    labels
        ``[N, *grid]``, integers on the token grid, `ignore` where nothing is known. Use drawn labels; true ones only to
        report.
    """
    total, pairs = 0.0, 0
    found: dict[int, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
    for number, offset in enumerate(affinity.offsets):
        (mine, other), (values, _) = ends(labels, offset), ends(affinity.values[:, number], offset)
        total, pairs = total + float(values.sum()), pairs + values.numel()
        known = (mine != ignore) & (other != ignore)
        alike, unlike = found[sum(by * by for by in offset)]
        alike.append(values[known & (mine == other)])
        unlike.append(values[known & (mine != other)])
    mean = total / pairs if pairs else math.nan
    same, different, weights = 0.0, 0.0, 0
    for kinds in found.values():
        one, two = (torch.cat(parts) for parts in kinds)
        if weight := min(one.numel(), two.numel()):
            same += weight * float(one.mean())
            different += weight * float(two.mean())
            weights += weight
    return KernelHealth(mean, *((same / weights, different / weights) if weights else (math.nan, math.nan)))


def _both_ways(half: tuple[Offset, ...]) -> tuple[Offset, ...]:
    return (*half, *(tuple(-by for by in offset) for offset in half))


def _placed(values: Tensor, offset: Offset, grid: Sequence[int], empty: float) -> Tensor:
    """`values` of the tokens that have a neighbour at `offset`, on the whole grid; `empty` for the others."""
    whole = torch.full((*values.shape[: -len(grid)], *grid), empty, dtype=values.dtype, device=values.device)
    ends(whole, offset)[0].copy_(values)
    return whole


class _PairScores(torch.autograd.Function):
    """``q_i · k_j + q_j · k_i`` of all pairs in a window, laid down at both of their ends.

    Gradients are added up in place, offset by offset: autograd would hold a tensor of zeros for each view.
    """

    @staticmethod
    def forward(context: Any, queries: Tensor, keys: Tensor, half: tuple[Offset, ...]) -> Tensor:
        """From two of ``[N, d, *grid]`` to ``[N, 2H, *grid]``; 0 where there is no neighbour."""
        context.save_for_backward(queries, keys)
        context.half = half
        scores = queries.new_zeros((queries.shape[0], 2 * len(half), *queries.shape[2:]))
        for number, offset in enumerate(half):
            (q, q_), (k, k_) = ends(queries, offset), ends(keys, offset)
            score = (q * k_).sum(dim=1) + (q_ * k).sum(dim=1)
            ends(scores[:, number], offset)[0].copy_(score)
            ends(scores[:, len(half) + number], offset)[1].copy_(score)
        return scores

    @staticmethod
    @once_differentiable
    def backward(context: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of queries and keys."""
        queries, keys = context.saved_tensors
        of_queries, of_keys = torch.zeros_like(queries), torch.zeros_like(keys)
        for number, offset in enumerate(context.half):
            (q, q_), (k, k_) = ends(queries, offset), ends(keys, offset)
            (dq, dq_), (dk, dk_) = ends(of_queries, offset), ends(of_keys, offset)
            forth, back = ends(upstream[:, number], offset)[0], ends(upstream[:, len(context.half) + number], offset)[1]
            share = (forth + back)[:, None]
            dq.addcmul_(share, k_)
            dq_.addcmul_(share, k)
            dk.addcmul_(share, q_)
            dk_.addcmul_(share, q)
        return of_queries, of_keys, None


class _Disagreement(torch.autograd.Function):
    """``Σ K_ij (1 − p_i · p_j)`` over all tokens and offsets."""

    @staticmethod
    def forward(context: Any, probability: Tensor, values: Tensor, offsets: tuple[Offset, ...]) -> Tensor:
        """The sum, a scalar."""
        context.save_for_backward(probability, values)
        context.offsets = offsets
        total = probability.new_zeros(())
        for number, offset in enumerate(offsets):
            p, q = ends(probability, offset)
            total += (ends(values[:, number], offset)[0] * (1 - (p * q).sum(dim=1))).sum()
        return total

    @staticmethod
    @once_differentiable
    def backward(context: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of probabilities and affinities."""
        probability, values = context.saved_tensors
        of_probability, of_values = torch.zeros_like(probability), torch.zeros_like(values)
        for number, offset in enumerate(context.offsets):
            (p, q), (dp, dq) = ends(probability, offset), ends(of_probability, offset)
            affinity = ends(values[:, number], offset)[0][:, None]
            ends(of_values[:, number], offset)[0].copy_(1 - (p * q).sum(dim=1))
            dp.addcmul_(affinity, q, value=-1)
            dq.addcmul_(affinity, p, value=-1)
        return upstream * of_probability, upstream * of_values, None
