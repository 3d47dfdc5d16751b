"""Spatial self-attention that can be put behind any encoder level, and a look at its queries and keys.

A pre-norm transformer block with one head, as in SegFormer (Xie et al. 2021, arXiv 2105.15203) and AttenScribble (Yang
et al. 2023, arXiv 2312.06614): attention, then an MLP with a depthwise convolution that tells tokens where they are.
Its output replaces the feature, and so reaches the deeper levels and the skip connection alike.

A bundle (:mod:`wardround.models.bundle`) carries a copy of this file. It imports nothing of ours for that reason.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# All tokens attend to all up to this many; more are dealt to windows.
WHOLE_LIMIT = 4096


@dataclass(eq=False)
class Attended:
    """What a network attended to in its last pass.

    Parameters
    ----------
    queries, keys
        ``[N, n, d]``, with their gradient.
    grid
        Sides of the token grid; their product is n.
    scale, offset
        ``[1]``: what the released similarity kernel learns, see
        :func:`wardround.client.supervision.attentive.released_affinity`.
    """

    queries: Tensor
    keys: Tensor
    grid: tuple[int, ...]
    scale: Tensor
    offset: Tensor


class SpatialAttention(nn.Module):
    """Self-attention over the voxels of a feature map.

    Parameters
    ----------
    channels
        Of the feature map, and of queries, keys and values.
    dimensions
        2 or 3 spatial axes.
    window
        Sides of the windows that voxels attend within where there are more than :data:`WHOLE_LIMIT` of them.
    expansion
        Channels within the MLP over `channels`.
    """

    def __init__(self, channels: int, dimensions: int, window: int = 8, expansion: int = 4) -> None:
        super().__init__()
        self._window = window
        self.norm = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels, bias=False)
        self.project = nn.Linear(channels, channels)
        self.mlp_norm = nn.LayerNorm(channels)
        hidden = expansion * channels
        convolution = nn.Conv2d if dimensions == 2 else nn.Conv3d
        self.widen = nn.Linear(channels, hidden)
        self.depthwise = convolution(hidden, hidden, 3, padding=1, groups=hidden)
        self.narrow = nn.Linear(hidden, channels)
        self.last_norm = nn.LayerNorm(channels)
        # One entry each, not none: arrays without axes do not survive every way that weights travel.
        self.similarity_scale = nn.Parameter(torch.ones(1))
        self.similarity_offset = nn.Parameter(torch.zeros(1))
        self.seen: Attended | None = None
        self.watched = False

    def forward(self, feature: Tensor) -> Tensor:
        """Map ``[N, C, *grid]`` to the same shape."""
        grid = tuple(feature.shape[2:])
        tokens = feature.flatten(2).transpose(1, 2)
        normed = self.norm(tokens)
        queries, keys, values = self.query(normed), self.key(normed), self.value(normed)
        if self.watched:
            self.seen = Attended(queries, keys, grid, self.similarity_scale, self.similarity_offset)
        tokens = tokens + self.project(self._attend(queries, keys, values, grid))
        inner: Tensor = F.gelu(self.depthwise(_on_grid(self.widen(self.mlp_norm(tokens)), grid)))
        tokens = self.last_norm(tokens + self.narrow(inner.flatten(2).transpose(1, 2)))
        return _on_grid(tokens, grid).contiguous()

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, grid: tuple[int, ...]) -> Tensor:
        """``softmax(q kᵀ / √d) v`` over all tokens, or over those of each window."""
        if math.prod(grid) <= WHOLE_LIMIT:
            return _attention(queries, keys, values)
        real = self._windows(torch.ones_like(queries[..., :1]), grid)[..., 0] > 0
        mask = torch.zeros(real.shape, dtype=queries.dtype, device=queries.device).masked_fill(~real, -torch.inf)
        # Windows at the far edge are filled up; what fills them is attended to by nobody.
        queries_, keys_, values_ = (self._windows(part, grid) for part in (queries, keys, values))
        found = _attention(queries_, keys_, values_, mask[:, None, None, :])
        return self._joined(found, queries.shape[0], grid)

    def _counts(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(-(-side // self._window) for side in grid)

    def _windows(self, tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
        """``[N, n, d]`` as ``[N · windows, window ** axes, d]``, filled up with zeros."""
        axes, side, (images, _, channels) = len(grid), self._window, tokens.shape
        counts = self._counts(grid)
        padding = [0, 0]
        for count, own in zip(reversed(counts), reversed(grid), strict=True):
            padding += [0, count * side - own]
        volume = F.pad(tokens.reshape(images, *grid, channels), padding)
        volume = volume.reshape(images, *(length for count in counts for length in (count, side)), channels)
        order = [0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1]
        return volume.permute(order).reshape(-1, side**axes, channels)

    def _joined(self, windows: Tensor, images: int, grid: tuple[int, ...]) -> Tensor:
        """Undo :meth:`_windows`."""
        axes, side, channels = len(grid), self._window, windows.shape[2]
        counts = self._counts(grid)
        volume = windows.reshape(images, *counts, *(side,) * axes, channels)
        order = [0, *(place for axis in range(axes) for place in (1 + axis, 1 + axes + axis)), 2 * axes + 1]
        volume = volume.permute(order).reshape(images, *(count * side for count in counts), channels)
        for axis, own in enumerate(grid):
            volume = volume.narrow(1 + axis, 0, own)
        return volume.reshape(images, -1, channels)


def _on_grid(tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
    """``[N, n, d]`` as ``[N, d, *grid]``."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)


def _attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Of ``[N, n, d]``. An axis of one head is put in: without it torch takes a path that holds all n × n weights."""
    found = F.scaled_dot_product_attention(queries[:, None], keys[:, None], values[:, None], attn_mask=mask)
    return found[:, 0]


def attend_after(network: nn.Module, level: int, dimensions: int, channels: int) -> nn.Module:
    """Put :class:`SpatialAttention` behind an encoder level, 0 the finest, of a U-Net of MONAI, and return the network.

    Its output is what the deeper levels and the skip connection of that level see.
    """
    block: Any = network.model
    for _ in range(level):
        block = block[1].submodule
    block[0] = nn.Sequential(block[0], SpatialAttention(channels, dimensions))
    return network


@contextmanager
def watched_attention(network: nn.Module | None) -> Iterator[SpatialAttention | None]:
    """Let the network's attention keep what it sees while the block lasts; None for a network without attention,
    and for none.

    Examples
    --------
    >>> from wardround.models.catalogue import build
    >>> network = build("unet2d-small-attention", labels=4, seed=0)
    >>> with watched_attention(network) as attention:
    ...     logits = network(torch.zeros(1, 1, 64, 64))
    ...     attention.seen.grid
    (16, 16)
    """
    modules = () if network is None else network.modules()
    block = next((module for module in modules if isinstance(module, SpatialAttention)), None)
    if block is None:
        yield None
        return
    block.watched = True
    try:
        yield block
    finally:
        block.watched, block.seen = False, None
