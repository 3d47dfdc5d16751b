"""A budget of slices follows shape and spacing, and is spent over the rounds and no further."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardround.client.annotation.allocation import allocate, slices_at


@pytest.mark.parametrize(
    ("size", "spacing", "expected"),
    [
        ((22, 38, 25), (1, 1, 1), (0, 12, 0)),
        ((38, 22, 25), (1, 1, 1), (12, 0, 0)),
        # Millimetres decide, not voxels.
        ((30, 38, 25), (1.5, 1, 1), (12, 0, 0)),
    ],
)
def test_isotropic_budget_goes_across_the_longest_side(size, spacing, expected):
    assert allocate(12, size, spacing) == expected


@pytest.mark.parametrize(
    ("size", "spacing", "shape"),
    [
        ((40, 50, 8), (1, 1, 5), (128, 128, 60)),
        # A header without physical spacing: the shape tells.
        ((20, 20, 8), (1, 1, 1), (128, 128, 20)),
        ((40, 50, 8), (1, 1, 1), None),
    ],
)
def test_thick_slices_take_all(size, spacing, shape):
    assert allocate(12, size, spacing, shape) == (0, 0, 3)


def test_thick_axis_may_be_any():
    assert allocate(2, (40, 8, 50), (1, 6, 1)) == (0, 2, 0)


def test_never_more_than_there_is():
    assert allocate(12, (3, 5, 4), (1, 1, 1)) == (0, 5, 0)
    assert allocate(12, (40, 50, 1), (1, 1, 5)) == (0, 0, 1)
    assert allocate(0, (22, 38, 25), (1, 1, 1)) == (0, 0, 0)


@given(st.integers(0, 60), st.integers(1, 16))
def test_all_slices_are_drawn_and_early_rounds_get_more(total: int, rounds: int) -> None:
    parts = [slices_at(total, rounds, step) for step in range(rounds)]
    assert sum(parts) == total
    assert max(parts) - min(parts) <= 1
    assert parts[0] == max(parts)


@given(st.integers(0, 60), st.integers(1, 16), st.integers(0, 5))
def test_after_the_last_round_nothing_is_left(total: int, rounds: int, late: int) -> None:
    assert slices_at(total, rounds, rounds + late) == 0
