"""Which image lends its texture while a generator learns: never the one that is to be made.

Were an image its own reference, a generator could learn to read from it what the labels ought to say.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from wardround.client.synthesis.pairs import Pair

# Slices of one case that are nearer than this show nearly the same: neither is a reference for the other.
APART = 2


class References:
    """References for the pairs of one generator.

    A slice is told the texture of another slice of its case, at least :data:`APART` away, or where there is none, of
    another case. A volume is told that of a part of itself which :func:`displaced` has moved about.

    Parameters
    ----------
    pairs
        All that may be learnt from.
    images
        ``[N, 1, *spatial]``: those of `pairs`, in their order.
    """

    def __init__(self, pairs: Sequence[Pair], images: Tensor) -> None:
        self._images = images
        cases: dict[str, list[int]] = {}
        for index, pair in enumerate(pairs):
            cases.setdefault(pair.case_id, []).append(index)
        self._candidates = [] if images.ndim == 5 else [_candidates(pairs, cases, index) for index in range(len(pairs))]

    def draw(self, chosen: Sequence[int], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """References for the pairs with the numbers `chosen`.

        Returns
        -------
        tuple
            Images ``[N, 1, *part]``, and bool ``[N]``: False where a pair has no reference; its image means nothing.
        """
        if self._images.ndim == 5:
            moved = torch.stack([displaced(self._images[index], rng) for index in chosen])
            return moved, torch.ones(len(chosen), dtype=torch.bool)
        found = [self._candidates[index] for index in chosen]
        indices = [int(some[int(rng.integers(len(some)))]) if len(some) else 0 for some in found]
        return self._images[indices], torch.tensor([len(some) > 0 for some in found])


def displaced(image: Tensor, rng: np.random.Generator) -> Tensor:
    """A part of an image in which no voxel is where it was.

    The image is moved round by a quarter to three quarters of one axis and mirrored along some of the others; three
    quarters of every side of that are kept.

    Parameters
    ----------
    image
        ``[1, *spatial]``.
    rng
        Only source of randomness.
    """
    axes = list(range(1, image.ndim))
    moving = axes.pop(int(rng.integers(len(axes))))
    side = image.shape[moving]
    shift = int(rng.integers(side // 4, side - side // 4 + 1))
    mirrored = [axis for axis in axes if rng.random() < 0.5]
    moved = image.roll(shift, dims=moving).flip(mirrored)
    for axis in range(1, image.ndim):
        moved = moved.narrow(axis, 0, -(-3 * image.shape[axis] // 4))
    return moved


def _candidates(pairs: Sequence[Pair], cases: dict[str, list[int]], index: int) -> list[int]:
    own = pairs[index]
    same = [other for other in cases[own.case_id] if abs(pairs[other].position - own.position) >= APART]
    return same or [other for case_id, theirs in cases.items() if case_id != own.case_id for other in theirs]
