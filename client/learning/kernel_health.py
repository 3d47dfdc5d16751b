"""Whether the attention of a network tells structures apart, by what was drawn on remembered cases."""

import logging
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wardround.client.annotation.prompts import UNLABELLED
from wardround.client.learning.batches import Batch, assemble
from wardround.client.learning.learner import OnlineLearner
from wardround.client.learning.replay import Sample
from wardround.client.supervision.attentive import KernelHealth, kernel_health, released_affinity, windowed_affinity
from wardround.models.attention import watched_attention
from wardround.models.catalogue import architecture
from wardround.strategies.contract import KERNEL_MEAN, KERNEL_RATIO

log = logging.getLogger(__name__)

WINDOWS = 8
"""Windows of remembered cases that a site looks at after a round."""
COLLAPSED = 1.05
"""Ratio below which an affinity says nothing: AttenScribble as released falls to 1.0x."""
LARGEST_RATIO = 1000.0
"""What a larger ratio is told as: a diagnosis without a bound would meet the gate's, and the whole update with it."""


def health_of(
    learner: OnlineLearner,
    samples: Iterable[Sample],
    rng: np.random.Generator,
    between: Callable[[], None] = lambda: None,
) -> KernelHealth:
    """How the kernel of attentive similarity weighs pairs of drawn voxels of one label and of two.

    Only labels that somebody drew are looked at, at the resolution of the network's tokens: a token has the label of
    the strokes in it, where these agree. Each window counts the same, and one without a pair of a kind says nothing of
    it. Windows are looked at one by one, so that memory does not grow with their number.

    Parameters
    ----------
    learner
        With a network that has attention; its kernel and window are those of its regularisation.
    samples
        One window is cut from each, without augmentation.
    rng
        Chooses the windows.
    between
        Called before each window: others may use the device before it returns.

    Returns
    -------
    KernelHealth
        NaN where there was no such pair.
    """
    spec, settings, network = architecture(learner.settings.model), learner.settings, learner.frozen()
    mixed = settings.amp and learner.device.type == "cuda"
    found = []
    for sample in samples:
        between()
        batch = assemble([sample], spec.dimensions, spec.stride, settings.patch, rng, None).to(learner.device)
        with torch.no_grad(), watched_attention(network) as attention:
            with torch.autocast(learner.device.type, enabled=mixed):
                network(batch.image)
            assert attention is not None
            assert attention.seen is not None
            seen = attention.seen
            queries, keys, window = seen.queries.float(), seen.keys.float(), learner.regularisation.window
            if learner.regularisation.kernel == "released":
                affinity = released_affinity(queries, keys, seen.grid, seen.scale, seen.offset, window)
            else:
                affinity = windowed_affinity(queries, keys, seen.grid, window)
            found.append(kernel_health(affinity, drawn_tokens(batch, seen.grid), UNLABELLED))
    mean, same, different = (
        _mean([getattr(health, name) for health in found]) for name in ("mean", "same", "different")
    )
    return KernelHealth(mean, same, different)


def drawn_tokens(batch: Batch, grid: Sequence[int]) -> Tensor:
    """``[N, *grid]``: the label of the drawn voxels of the image in every token, 255 where there is none, or several.

    Parameters
    ----------
    batch
        What was drawn.
    grid
        Sides of the token grid, two or three.
    """
    known = (batch.drawn & batch.inside)[:, None]
    label = batch.target.argmax(dim=1, keepdim=True)
    pool = F.adaptive_max_pool2d if len(grid) == 2 else F.adaptive_max_pool3d
    lowest = -pool(torch.where(known, -label, -UNLABELLED).float(), list(grid))
    highest = pool(torch.where(known, label, -1).float(), list(grid))
    return torch.where(lowest == highest, lowest, UNLABELLED)[:, 0].long()


def tell(health: KernelHealth, round_: int, expected: bool) -> None:
    """Write a line into the site's log, and a warning where the kernel says nothing though it is `expected` to."""
    log.info("attention after round %d: mean %.3g, one label over two %.3g", round_, health.mean, health.ratio)
    if expected and (health.ratio < COLLAPSED or health.mean == 0):
        log.warning(
            "attention says nothing in round %d: it finds voxels of one label hardly more alike than those of two "
            "(ratio %.3g, mean %.3g); try attentive-kernel windowed and more updates, or leave attentive-weight out",
            round_,
            health.ratio,
            health.mean,
        )


def scalars(health: KernelHealth) -> dict[str, float]:
    """What a site says of it to the coordinator, see :data:`~wardround.strategies.contract.TRAIN_METRICS`."""
    said = {KERNEL_MEAN: health.mean, KERNEL_RATIO: min(health.ratio, LARGEST_RATIO)}
    return {name: value for name, value in said.items() if not math.isnan(value)}


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
