"""Placement: the best slices by dynamic programming are the best by trying all."""

from itertools import combinations, pairwise

import numpy as np
import pytest

from wardround.client.annotation.placement import Knots, knots, place


def tapered(length: int = 24, change_at: int = 16) -> np.ndarray:
    """A tube along j, thin first, thick from `change_at` on: ``[I, J, K]``."""
    i, j, k = np.indices((16, length, 16))
    radius = np.where(j < change_at, 3, 6)
    inside = (i - 7.5) ** 2 + (k - 7.5) ** 2 < radius**2
    inside &= (j >= 2) & (j < length - 2)
    return inside.astype(np.float32)


def total(plane: Knots, chosen: tuple[int, ...], drawn: set[int], price: float) -> float:
    """Error and price of a choice, added up as the definition has it."""
    where = [0, *(int(np.flatnonzero(plane.indices == n)[0]) + 1 for n in sorted({*chosen, *drawn}))]
    where.append(len(plane.indices) + 1)
    wrong = sum(plane.errors[a, b] for a, b in pairwise(where))
    return float(wrong) + price * plane.cost(chosen)


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("drawn", [set(), {5}, {3, 12}])
@pytest.mark.parametrize("price", [0.0, 0.5])
def test_no_other_choice_is_better(closed: bool, drawn: set[int], price: float) -> None:
    estimate = tapered(14, 9) * np.random.default_rng(1).uniform(0.6, 1, (16, 14, 16)).astype(np.float32)
    plane = knots(estimate, 1, 0, 13, closed=closed, drawn=drawn)
    chosen, error = place(plane, 3, drawn, price=price)
    free = [n for n in range(14) if n not in drawn]
    best = min(total(plane, choice, drawn, price) for choice in combinations(free, 3))
    assert total(plane, tuple(chosen), drawn, price) == pytest.approx(best, rel=1e-6)
    assert error == pytest.approx(best - price * plane.cost(chosen), rel=1e-6)
    assert not set(chosen) & drawn


def test_slices_go_where_the_shape_changes() -> None:
    plane = knots(tapered(), 1, 2, 21, closed=False)
    chosen, _ = place(plane, 2, {4, 20}, price=0)
    assert chosen == [15, 16]


def test_of_two_equally_telling_slices_the_cheap_one_is_chosen() -> None:
    indices = np.array([5, 9])
    errors = np.zeros((4, 4))
    errors[0, 3], errors[0, 1] = 100, 0
    errors[0, 2] = errors[1, 3] = errors[2, 3] = 20
    errors[0, 2], errors[2, 3] = 20, 0
    for costs, cheap in (((40, 10), 9), ((10, 40), 5)):
        plane = Knots(indices, np.array(costs, dtype=np.float64), errors)
        assert place(plane, 1)[0] == [cheap]


def test_slices_spread_over_a_ball() -> None:
    # Neighbours tell the same.
    i, j, k = np.indices((30, 30, 30))
    ball = ((i - 14.5) ** 2 + (j - 14.5) ** 2 + (k - 14.5) ** 2 < 13**2).astype(np.float32)
    chosen, _ = place(knots(ball, 1, 2, 27, closed=True), 4)
    assert min(np.diff(chosen)) >= 4
    assert chosen[0] < 8
    assert chosen[-1] > 21


def test_only_slices_that_are_allowed() -> None:
    plane = knots(tapered(), 1, 2, 21, closed=True, drawn={10})
    assert set(place(plane, 3, {10}, among=[4, 7, 19, 20])[0]) <= {4, 7, 19, 20}
    assert place(plane, 3, {10}, among=[])[0] == []


def test_never_more_than_there_is() -> None:
    plane = knots(tapered(), 1, 4, 9, closed=True, drawn={5, 6})
    assert place(plane, 40, {5, 6})[0] == [4, 7, 8, 9]


def test_without_an_extent_the_ends_of_the_object_are_closed_by_empty_slices() -> None:
    estimate = tapered()
    chosen, _ = place(knots(estimate, 1, 0, 23, closed=False), 6)
    assert {1, 22} & set(chosen)
    assert all(2 <= n <= 21 for n in place(knots(estimate, 1, 2, 21, closed=True), 6)[0])


def test_costs_are_boundary_pixels_and_a_look() -> None:
    square = np.zeros((12, 4, 12), dtype=np.float32)
    square[3:8, 1, 3:8] = 1
    plane = knots(square, 1, 0, 3, closed=True)
    assert plane.costs.tolist() == [10, 26, 10, 10]
    assert plane.cost([1, 3]) == 36


def test_large_volumes_are_looked_at_in_strides() -> None:
    large = np.kron(tapered(30, 20), np.ones((8, 4, 8), dtype=np.float32))
    plane = knots(large, 1, 0, 119, closed=True, drawn={7})
    assert len(plane.indices) < 50
    assert 7 in plane.indices
    assert place(plane, 5, {7})[0]


def test_an_open_end_continues_the_outermost_slice_and_a_closed_one_shrinks_it() -> None:
    tube = np.zeros((14, 10, 14), dtype=np.float32)
    tube[4:10, :, 4:10] = 1
    still, shrinking = (knots(tube, 1, 0, 9, closed=closed).errors for closed in (False, True))
    assert still[0, 6] == still[6, 11] == 0
    assert min(shrinking[0, 6], shrinking[6, 11]) > 20
