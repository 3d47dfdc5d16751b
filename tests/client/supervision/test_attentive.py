"""Affinities of both kinds against all pairs of tokens, and which of the two collapses."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from wardround.client.supervision.attentive import (
    Affinity,
    WindowSettings,
    attentive_similarity,
    kernel_health,
    released_affinity,
    windowed_affinity,
)

NEAR = WindowSettings(radius=2, position=1.5)
GRIDS = [(3, 4), (5, 1), (2, 3, 3)]


def tokens(grid: tuple[int, ...], seed: int = 0, count: int = 2, width: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, math.prod(grid), width)
    queries, keys = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return queries.requires_grad_(), keys.requires_grad_()


def probabilities(grid: tuple[int, ...], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(torch.randn(2, 3, *grid, generator=generator, dtype=torch.float64), 1).requires_grad_()


def gaussian(grid: tuple[int, ...]) -> Tensor:
    """G of all pairs, ``[n, n]``: 0 outside of the window and on the diagonal."""
    places = list(itertools.product(*map(range, grid)))
    near = torch.zeros(len(places), len(places), dtype=torch.float64)
    for (i, a), (j, b) in itertools.product(enumerate(places), repeat=2):
        away = [y - x for x, y in zip(a, b, strict=True)]
        if i != j and all(abs(by) <= NEAR.radius for by in away):
            near[i, j] = math.exp(-0.5 * sum(by**2 for by in away) / NEAR.position**2)
    return near


def all_pairs_windowed(queries: Tensor, keys: Tensor, grid: tuple[int, ...]) -> Tensor:
    scores = queries @ keys.transpose(1, 2)
    logits = 0.5 * (scores + scores.transpose(1, 2)) / queries.shape[2] ** 0.5 + gaussian(grid).log()
    return torch.softmax(logits, dim=2)


def all_pairs_released(queries: Tensor, keys: Tensor, grid: tuple[int, ...], scale: Tensor, offset: Tensor) -> Tensor:
    attention = torch.softmax(queries @ keys.transpose(1, 2), dim=2)
    similar = attention + attention.transpose(1, 2)
    assert (similar - similar.transpose(1, 2)).abs().max() < 1e-6
    return gaussian(grid) * torch.sigmoid(scale * similar + offset)


def all_pairs_loss(p: Tensor, kernel: Tensor) -> Tensor:
    flat = p.flatten(2)
    return (kernel * (1 - flat.transpose(1, 2) @ flat)).sum() / (kernel.shape[0] * kernel.shape[1])


def dense(affinity: Affinity) -> Tensor:
    """``[N, n, n]`` of the pairs of an affinity."""
    grid = tuple(affinity.values.shape[2:])
    number = torch.arange(math.prod(grid)).reshape(grid)
    found = torch.zeros(len(affinity.values), number.numel(), number.numel(), dtype=affinity.values.dtype)
    for at, offset in enumerate(affinity.offsets):
        for place in itertools.product(*map(range, grid)):
            other = tuple(a + by for a, by in zip(place, offset, strict=True))
            if all(0 <= b < side for b, side in zip(other, grid, strict=True)):
                found[:, number[place], number[other]] = affinity.values[:, at, *place].detach()
            else:
                assert (affinity.values[:, at, *place] == 0).all()
    return found


Kernel = Callable[[Tensor, Tensor, tuple[int, ...]], Affinity]


@pytest.mark.parametrize("grid", GRIDS)
def test_the_windowed_kernel_and_its_loss_equal_all_pairs(grid: tuple[int, ...]) -> None:
    (queries, keys), p = tokens(grid), probabilities(grid)
    affinity = windowed_affinity(queries, keys, grid, NEAR)
    expected = all_pairs_windowed(queries, keys, grid)
    assert torch.allclose(dense(affinity), expected.detach(), atol=1e-12)
    found, brute = attentive_similarity(p, affinity), all_pairs_loss(p, expected)
    assert math.isclose(found.item(), brute.item(), rel_tol=1e-10)
    given_ = (queries, keys, p)
    for mine, other in zip(torch.autograd.grad(found, given_), torch.autograd.grad(brute, given_), strict=True):
        assert torch.allclose(mine, other, atol=1e-12)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_released_kernel_and_its_loss_equal_all_pairs(grid: tuple[int, ...]) -> None:
    (queries, keys), p = tokens(grid), probabilities(grid)
    scale, offset = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (1.3, -0.4))
    affinity = released_affinity(queries, keys, grid, scale, offset, NEAR)
    expected = all_pairs_released(queries, keys, grid, scale, offset)
    assert torch.allclose(dense(affinity), expected.detach(), atol=1e-12)
    found, brute = attentive_similarity(p, affinity), all_pairs_loss(p, expected)
    assert math.isclose(found.item(), brute.item(), rel_tol=1e-10)
    given_ = (queries, keys, scale, offset, p)
    for mine, other in zip(torch.autograd.grad(found, given_), torch.autograd.grad(brute, given_), strict=True):
        assert torch.allclose(mine, other, atol=1e-12)


def test_the_released_kernel_is_symmetric() -> None:
    grid = (4, 5)
    found = dense(released_affinity(*tokens(grid), grid, torch.ones(1), torch.zeros(1), NEAR))
    assert (found - found.transpose(1, 2)).abs().max() < 1e-6


def test_what_goes_into_the_windowed_softmax_is_symmetric() -> None:
    """Row sums aside: K_ij / K_ji is a ratio of two rows' normalisers, the same for all products round a triangle."""
    grid = (3, 3)
    kernel = dense(windowed_affinity(*tokens(grid), grid, WindowSettings(radius=2)))[0]
    for i, j, k in itertools.combinations(range(9), 3):
        round_one = kernel[i, j] * kernel[j, k] * kernel[k, i]
        assert math.isclose(round_one, kernel[j, i] * kernel[k, j] * kernel[i, k], rel_tol=1e-9)


@settings(max_examples=20, deadline=None)
@given(grid=st.lists(st.integers(1, 4), min_size=2, max_size=3).map(tuple), seed=st.integers(0, 99))
def test_the_windowed_affinities_of_a_token_sum_to_one(grid: tuple[int, ...], seed: int) -> None:
    queries, keys = tokens(grid, seed)
    rows = windowed_affinity(queries, keys, grid, NEAR).values.sum(dim=1)
    assert torch.allclose(rows, torch.ones_like(rows) if math.prod(grid) > 1 else torch.zeros_like(rows))


def test_a_single_token_has_nobody_to_agree_with() -> None:
    (queries, keys), p = tokens((1, 1)), probabilities((1, 1))
    assert attentive_similarity(p, windowed_affinity(queries, keys, (1, 1))).item() == 0


def test_probabilities_come_down_to_the_tokens() -> None:
    grid = (3, 4)
    affinity, p = windowed_affinity(*tokens(grid), grid, NEAR), probabilities(grid)
    large = p.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert math.isclose(
        attentive_similarity(large, affinity).item(), attentive_similarity(p, affinity).item(), rel_tol=1e-9
    )


@pytest.mark.parametrize("radius", [2.0, 5.0])
def test_the_windowed_kernel_never_holds_all_pairs(radius: float) -> None:
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    grid = (16, 16)
    (queries, keys), p = tokens(grid), probabilities(grid)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        affinity = windowed_affinity(queries, keys, grid, WindowSettings(radius=radius))
        attentive_similarity(p, affinity).backward()
    assert max(kept) == affinity.values.numel() < 2 * 256 * 256


class Toy(nn.Module):
    """Sixteen by sixteen tokens of two kinds with noise, and a kernel that is learnt under its own loss."""

    def __init__(self, windowed: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.zeros(1, 16, 16, dtype=torch.long)
        self.labels[:, 4:12, 4:12] = 1
        kinds = torch.randn(2, 8, generator=generator)
        self.tokens = kinds[self.labels.flatten(1)] + 0.5 * torch.randn(1, 256, 8, generator=generator)
        self.p = 0.1 + 0.8 * torch.stack([1 - self.labels, self.labels], dim=1)
        self.query, self.key = (nn.Parameter(0.3 * torch.randn(8, 8, generator=generator)) for _ in range(2))
        self.scale, self.offset = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))
        self.windowed = windowed

    def affinity(self) -> Affinity:
        queries, keys = self.tokens @ self.query, self.tokens @ self.key
        if self.windowed:
            return windowed_affinity(queries, keys, (16, 16))
        return released_affinity(queries, keys, (16, 16), self.scale, self.offset)

    def learn(self, steps: int) -> None:
        optimiser = torch.optim.SGD(self.parameters(), lr=1.0, momentum=0.9)
        for _ in range(steps):
            optimiser.zero_grad()
            attentive_similarity(self.p, self.affinity()).backward()
            optimiser.step()


def test_under_its_own_loss_the_released_kernel_collapses() -> None:
    toy = Toy(windowed=False)
    before = kernel_health(toy.affinity(), toy.labels)
    toy.learn(60)
    after = kernel_health(toy.affinity(), toy.labels)
    assert before.mean > 0.2
    assert after.mean < 0.01 * before.mean
    assert after.ratio < 1.5 * before.ratio


def test_under_the_same_loss_the_windowed_kernel_learns_who_is_alike() -> None:
    toy = Toy(windowed=True)
    before = kernel_health(toy.affinity(), toy.labels)
    toy.learn(60)
    after = kernel_health(toy.affinity(), toy.labels)
    assert after.mean == pytest.approx(before.mean, rel=1e-4)
    assert after.ratio > 1.5 * before.ratio


def test_health_is_that_of_a_loop_over_pairs_of_known_labels() -> None:
    grid = (3, 4)
    affinity = windowed_affinity(*tokens(grid), grid, NEAR)
    labels = torch.randint(0, 2, (2, *grid), generator=torch.Generator().manual_seed(1))
    labels[0, 0] = 255
    kernel, window, flat = dense(affinity), gaussian(grid) > 0, labels.flatten(1)
    every, pairs = [], defaultdict(lambda: ([], []))
    for n, i, j in itertools.product(range(2), range(12), range(12)):
        if not window[i, j]:
            continue
        every.append(kernel[n, i, j].item())
        if 255 not in (flat[n, i].item(), flat[n, j].item()):
            distance = (j // 4 - i // 4) ** 2 + (j % 4 - i % 4) ** 2
            pairs[distance][int(flat[n, i] != flat[n, j])].append(kernel[n, i, j].item())
    both = [(alike, unlike) for alike, unlike in pairs.values() if alike and unlike]
    weights = [min(map(len, found)) for found in both]
    assert any(len(alike) != len(unlike) for alike, unlike in both)
    means = [np.average([np.mean(found[kind]) for found in both], weights=weights) for kind in (0, 1)]
    health = kernel_health(affinity, labels)
    assert [health.mean, health.same, health.different] == pytest.approx([np.mean(every), *means])
    assert health.ratio == pytest.approx(means[0] / means[1])


def test_health_does_not_take_nearness_for_likeness() -> None:
    grid = (16, 16)
    silent = torch.zeros(1, 256, 4)
    labels = torch.full((1, *grid), 255)
    labels[0, 6, 4:12], labels[0, 10, 4:12] = 0, 1
    assert kernel_health(windowed_affinity(silent, silent, grid), labels).ratio == pytest.approx(1, abs=0.01)


def test_health_without_pairs_of_two_labels_has_no_ratio() -> None:
    affinity = windowed_affinity(*tokens((3, 4)), (3, 4))
    assert math.isnan(kernel_health(affinity, torch.zeros(2, 3, 4, dtype=torch.long)).ratio)
    assert math.isnan(kernel_health(affinity, torch.full((2, 3, 4), 255)).same)
