"""Clicks of a person, sorted: sets of seven, also where somebody stopped, took back, corrected or came back."""

import itertools

import numpy as np
import pytest

from wardround.client.annotation.clicks import seven_clicks
from wardround.client.annotation.expansion import POINTS, seven_points
from wardround.client.annotation.point_sets import point_sets
from wardround.client.annotation.prompts import PointPrompt

SHAPE = (24, 20, 16)


def truth(*boxes: tuple[slice, slice, slice]) -> tuple[PointPrompt, ...]:
    labels = np.zeros(SHAPE, dtype=np.uint8)
    for label, box in enumerate(boxes, start=1):
        labels[box] = label
    return seven_clicks(labels, (1.0, 1.0, 1.0))


BOTH = truth((slice(3, 9), slice(4, 10), slice(3, 9)), (slice(13, 20), slice(9, 16), slice(6, 13)))
A, B = BOTH[:7], BOTH[7:]
INSIDE_A, INSIDE_B, NOTHING = PointPrompt((5, 6, 6), 1), PointPrompt((15, 11, 9), 2), PointPrompt((0, 0, 0), 0)


def test_what_a_program_gives_is_sorted_as_before():
    rng = np.random.default_rng(3)
    for _ in range(40):
        labels = np.zeros(SHAPE, dtype=np.uint8)
        for label in (1, 2, 3):  # beside, within and over one another
            low = rng.integers(0, [s - 6 for s in SHAPE])
            i, j, k = (slice(int(at), int(at + rng.integers(2, 7))) for at in low)
            labels[i, j, k] = label
        points = seven_clicks(labels, (1.0, 1.0, 2.0))
        there = np.argwhere(labels > 0)
        i, j, k = map(int, there[rng.integers(len(there))])
        alone = PointPrompt((i, j, k), int(labels[i, j, k]))
        found = point_sets((*points, alone), SHAPE)
        assert found.complete == seven_points(points, SHAPE)
        assert not found.begun, "the loop's own question begins no structure"


@pytest.mark.parametrize("count", range(1, POINTS))
def test_an_incomplete_set_is_begun_and_loses_nothing(count):
    found = point_sets(A[:count], SHAPE)
    assert (found.complete, found.begun) == ((), A[:count])
    found = point_sets((*A, *B[:count]), SHAPE)
    assert ([one.label for one in found.complete], found.begun) == ([1], B[:count])


@pytest.mark.parametrize("count", range(1, POINTS))
def test_whoever_comes_back_to_a_structure_completes_it(count):
    left = point_sets((*A[:count], *B), SHAPE)
    assert [set((one.inner, *one.outer)) for one in left.complete] == [set(B)]
    assert left.begun == A[:count]
    back = point_sets((*A[:count], *B, *A[count:]), SHAPE)
    assert {frozenset((one.inner, *one.outer)) for one in back.complete} == {frozenset(A), frozenset(B)}
    assert not back.begun
    assert set(back.points) == set(BOTH)


@pytest.mark.parametrize("gone", range(1, POINTS))
def test_a_point_that_was_erased_is_set_again_at_the_end(gone):
    rest = (*A[:gone], *A[gone + 1 :], *B)
    broken = point_sets(rest, SHAPE)
    assert [one.label for one in broken.complete] == [2]
    assert broken.begun[0] == A[0]
    mended = point_sets((*rest, A[gone]), SHAPE)
    assert [one.label for one in mended.complete] == [2, 1]
    assert not mended.begun


def test_of_many_points_that_enclose_nothing_seven_are_told():
    far = tuple(PointPrompt((22, n, 2), 0) for n in range(12))
    assert point_sets((*A[:3], *far), SHAPE).begun == (*A[:3], *far[:4]), "a page tries every way to name their ends"


def test_ends_may_come_before_the_point_inside():
    found = point_sets((*A[1:], A[0], *B[1:], B[0]), SHAPE)
    assert [frozenset((one.inner, *one.outer)) for one in found.complete] == [frozenset(A), frozenset(B)]


def test_single_clicks_correct_and_begin_nothing():
    for one, other, last in itertools.product((INSIDE_A, NOTHING), (INSIDE_B, NOTHING), (INSIDE_A, INSIDE_B)):
        found = point_sets((NOTHING, *A, one, *B, other, last), SHAPE)
        assert [seven.label for seven in found.complete] == [1, 2]
        assert not found.begun
    outside = PointPrompt((22, 2, 2), 1)
    assert point_sets((*A, *B, outside), SHAPE).begun == (outside,), "there is more of it than its box holds"


def test_points_of_two_structures_are_not_one_set():
    mixed = (*A[:6], B[0])
    assert seven_points(mixed, SHAPE)[0].inner == A[0], "they would enclose it"
    found = point_sets((*mixed, *B[1:]), SHAPE)
    assert [frozenset((one.inner, *one.outer)) for one in found.complete] == [frozenset(B)]
    assert found.begun == A[:6]
    assert point_sets((), SHAPE).complete == ()


def test_an_end_in_the_next_structure_begins_nothing():
    beside = truth((slice(4, 10), slice(4, 9), slice(4, 9)), (slice(4, 10), slice(9, 15), slice(4, 9)))
    assert any(point.label == 2 for point in beside[1:7]), "an outer point of the one lies in the other"
    for count in range(8, 14):
        found = point_sets(beside[:count], SHAPE)
        assert [(one.inner, *one.outer) for one in found.complete] == [beside[:7]]
        assert found.begun == beside[7:count]
    assert point_sets(beside, SHAPE).complete == seven_points(beside, SHAPE)
