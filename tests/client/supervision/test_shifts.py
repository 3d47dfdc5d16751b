"""Pairs of voxels in a window, met as two views: against a loop over voxels."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.client.supervision import shifts
from wardround.client.supervision.shifts import ends, half_window


@settings(max_examples=30, deadline=None)
@given(
    sides=st.lists(st.integers(1, 4), min_size=2, max_size=3).map(tuple),
    radius=st.floats(0, 5),
    coarse=st.floats(1, 4),
)
def test_every_pair_of_a_window_is_met_once_and_from_both_ends(
    sides: tuple[int, ...], radius: float, coarse: float
) -> None:
    steps = (*(1.0,) * (len(sides) - 1), coarse)
    number = torch.arange(math.prod(sides)).reshape(sides)
    met = [
        pair
        for offset in half_window(radius, steps, sides)
        for pair in zip(*(end.flatten().tolist() for end in ends(number, offset)), strict=True)
    ]
    places = list(itertools.product(*map(range, sides)))
    near = {
        frozenset((i, j))
        for (i, a), (j, b) in itertools.combinations(enumerate(places), 2)
        if all(abs(x - y) * step <= radius + 1e-6 * step for x, y, step in zip(a, b, steps, strict=True))
    }
    assert len(met) == len(near)
    assert {frozenset(pair) for pair in met} == near


def test_the_second_view_is_the_neighbour_at_the_offset_whatever_was_asked_before() -> None:
    """Of another shape with the same offset, or the other way round: nothing of an earlier answer is left."""
    for sides, offset in itertools.product([(4, 5), (5, 4), (4, 5, 3), (4, 5)], [(1, -2), (-1, 2), (0, 1)]):
        at = torch.stack(torch.meshgrid(*map(torch.arange, sides), indexing="ij"))
        step = (*(0,) * (len(sides) - 2), *offset)
        here, there = ends(at, step)
        assert here.numel() == len(sides) * math.prod(side - abs(by) for side, by in zip(sides, step, strict=True))
        assert (there - here == torch.tensor(step).reshape(-1, *(1,) * len(sides))).all()


def test_both_ends_are_views() -> None:
    values = torch.zeros(2, 3, 4)
    for end in ends(values, (1, -1)):
        end.add_(1)
    assert values[:, 1, 1].tolist() == [2, 2]


def test_where_a_view_begins_is_worked_out_once() -> None:
    shifts._slices.cache_clear()
    for batch in range(1, 4):
        for offset in half_window(2, (1, 1), (6, 6)):
            ends(torch.zeros(batch, 6, 6), offset)
    found = shifts._slices.cache_info()
    assert (found.misses, found.hits) == (12, 24)


def test_an_offset_of_other_axes_is_refused() -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="shorter"):
            ends(torch.zeros(5), (1, 1))
