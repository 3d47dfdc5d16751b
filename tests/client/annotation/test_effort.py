"""Effort against closed forms, and the properties that make it a cost."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from wardround.client.annotation.clicks import seven_clicks
from wardround.client.annotation.effort import (
    CLICK_COST,
    VIEWED_SLICE_COST,
    Effort,
    boundary_pixels,
    contour_effort,
    effort_of,
    full_effort,
    strict_effort,
    strict_full_effort,
)
from wardround.client.annotation.prompts import (
    UNLABELLED,
    Annotations,
    ExtentPrompt,
    PointPrompt,
    ScribblePrompt,
    SlicePrompt,
)
from wardround.client.annotation.strokes import strokes as simulated

LABELS = arrays.arrays(np.uint8, (7, 9), elements=st.integers(0, 3))


def cube(side, shape=(20, 20, 20), start=4):
    labels = np.zeros(shape, dtype=np.uint8)
    labels[start : start + side, start : start + side, start : start + side] = 1
    return labels


def ball(radius, shape=(61, 61, 61)):
    grid = np.indices(shape) - 30
    return (np.square(grid).sum(axis=0) <= radius**2).astype(np.uint8)


def cut(labels, axis, index):
    return SlicePrompt(axis, index, np.take(labels, index, axis).copy())


@pytest.mark.parametrize("side", [1, 2, 3, 7])
def test_square_costs_its_rim(side):
    labels = cube(side)[:, :, 5] if side > 1 else cube(1)[:, :, 4]
    assert boundary_pixels(labels) == (4 * side - 4 if side > 1 else 1)


def test_cube_costs_its_rim_once_per_slice():
    assert full_effort(cube(7)) == 7 * (4 * 7 - 4)


def test_sphere_costs_its_circles():
    # A digital circle of radius r has about 4·√2·r thick inner boundary pixels; over the slices of a sphere of radius R
    # that sums to 2·√2·π·R².
    radius = 24
    assert full_effort(ball(radius)) == pytest.approx(2 * math.sqrt(2) * math.pi * radius**2, rel=0.05)


def test_image_edge_is_no_boundary():
    assert boundary_pixels(np.ones((5, 6), dtype=np.uint8)) == 0
    half = np.zeros((5, 6), dtype=np.uint8)
    half[:, :2] = 1
    assert boundary_pixels(half) == 5


def test_border_between_structures_is_drawn_from_both_sides():
    labels = np.zeros((6, 6), dtype=np.uint8)
    labels[:, :3], labels[:, 3:] = 1, 2
    assert boundary_pixels(labels) == 12


@given(LABELS)
def test_boundary_equals_a_loop_over_pixels(labels):
    expected = 0
    for row, column in np.argwhere(labels > 0):
        around = [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
        inside = [at for at in around if 0 <= at[0] < labels.shape[0] and 0 <= at[1] < labels.shape[1]]
        expected += any(labels[at] != labels[row, column] for at in inside)
    assert boundary_pixels(labels) == expected


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 19)), max_size=8))
def test_adding_a_slice_never_lowers_effort(requests):
    labels = cube(9)
    annotations = Annotations()
    before = (0, 0.0)
    for axis, index in requests:
        annotations = annotations.adding(cut(labels, axis, index))
        after = (contour_effort(annotations), strict_effort(annotations))
        assert after[0] >= before[0]
        assert after[1] >= before[1]
        before = after


PROMPTS = st.one_of(
    # One object, so that a slice drawn again is the same again.
    st.builds(lambda axis, index: cut(cube(9), axis, index), st.integers(0, 2), st.integers(0, 19)),
    st.builds(
        ScribblePrompt,
        st.integers(0, 2),
        st.integers(0, 19),
        arrays.arrays(np.uint8, (20, 20), elements=st.sampled_from([0, 1, UNLABELLED]), fill=st.just(UNLABELLED)),
    ),
    st.builds(PointPrompt, st.tuples(*[st.integers(0, 19)] * 3), st.integers(0, 1)),
)


@given(st.lists(PROMPTS, max_size=8))
def test_adding_anything_but_a_smaller_redrawing_never_lowers_effort(prompts):
    annotations, before = Annotations(), (0, 0.0)
    for prompt in prompts:
        annotations = annotations.adding(prompt)
        after = (contour_effort(annotations), strict_effort(annotations))
        assert after[0] >= before[0]
        assert after[1] >= before[1]
        before = after


def strokes(index, *pixels, axis=2, label=1):
    labels = np.full((20, 20), UNLABELLED, dtype=np.uint8)
    labels[tuple(zip(*pixels, strict=True))] = label
    return ScribblePrompt(axis, index, labels)


def test_a_scribble_costs_its_pixels_and_one_look():
    once = Annotations().adding(strokes(3, (1, 1), (1, 2), (1, 3)))
    assert contour_effort(once) == 3
    assert strict_effort(once) == 3 + VIEWED_SLICE_COST
    again = once.adding(strokes(3, (1, 3), (5, 5), label=0))
    assert contour_effort(again) == 5
    assert strict_effort(again) == 5 + VIEWED_SLICE_COST
    elsewhere = again.adding(strokes(3, (5, 5), axis=0))
    assert strict_effort(elsewhere) == 6 + 2 * VIEWED_SLICE_COST


def test_a_slice_that_is_scribbled_on_and_drawn_is_looked_at_once():
    both = Annotations().adding(strokes(6, (5, 5), (5, 6)), cut(cube(7), 2, 6))
    assert contour_effort(both) == 24 + 2
    assert strict_effort(both) == 24 + 2 + VIEWED_SLICE_COST


def test_a_point_costs_a_click_in_the_strict_count_alone():
    clicked = Annotations().adding(PointPrompt((1, 2, 3), 1), PointPrompt((4, 5, 6), 0))
    assert contour_effort(clicked) == 0
    assert strict_effort(clicked) == 2 * CLICK_COST
    assert strict_effort(clicked, click_cost=7) == 14


def test_seven_points_cost_seven_clicks_a_structure_and_no_contour():
    labels = cube(7)
    labels[6:8, 6:8, 6:8] = 2
    clicks = seven_clicks(labels, (1.0, 1.0, 1.0))
    clicked = Annotations().adding(*clicks)
    assert len(clicks) == 2 * 7
    assert contour_effort(clicked) == 0
    assert strict_effort(clicked) == 2 * 7 * CLICK_COST
    effort = effort_of(clicked, full_effort(labels), strict_full_effort(labels))
    assert effort.contour == 0
    assert 0 < effort.strict < 0.15
    # Six of them say what the extent says, and cost the same; asking for both is paid twice.
    extent = Annotations(extent=ExtentPrompt((4, 4, 4), (10, 10, 10)))
    assert strict_effort(clicked) == pytest.approx(2 * (strict_effort(extent) + CLICK_COST))


def test_simulated_strokes_cost_their_pixels():
    labels = cube(9)
    drawn = simulated(labels[:, :, 8], np.random.default_rng(0))
    stroke = Annotations().adding(ScribblePrompt(2, 8, drawn))
    assert contour_effort(stroke) == np.count_nonzero(drawn != UNLABELLED)
    assert strict_effort(stroke) == contour_effort(stroke) + VIEWED_SLICE_COST


def test_every_plane_is_paid():
    labels = cube(7)
    annotations = Annotations((cut(labels, 0, 6), cut(labels, 1, 6), cut(labels, 2, 6)))
    assert contour_effort(annotations) == 3 * 24


def test_slice_drawn_again_is_paid_once_as_it_was_drawn_last():
    once = Annotations().adding(cut(cube(7), 2, 6))
    assert contour_effort(once.adding(cut(cube(7), 2, 6))) == contour_effort(once) == 24
    smaller, larger = (once.adding(cut(cube(side), 2, 6)) for side in (5, 9))
    assert [contour_effort(again) for again in (smaller, larger)] == [16, 32]
    assert [strict_effort(again) for again in (smaller, larger)] == [16 + VIEWED_SLICE_COST, 32 + VIEWED_SLICE_COST]


def test_all_axial_slices_are_the_full_effort():
    labels = ball(12)
    annotations = Annotations(tuple(cut(labels, 2, k) for k in range(labels.shape[2])))
    assert effort_of(annotations, full_effort(labels), strict_full_effort(labels)).contour == 1.0


def test_strict_count_charges_looking_and_clicking():
    labels = cube(7)
    empty = cut(labels, 2, 0)
    seen = Annotations((cut(labels, 2, 6), empty))
    assert contour_effort(seen) == 24
    assert strict_effort(seen) == 24 + 2 * VIEWED_SLICE_COST
    extent = ExtentPrompt((4, 4, 4), (10, 10, 10))
    assert strict_effort(Annotations((empty,), extent)) == VIEWED_SLICE_COST + 6 * CLICK_COST
    assert strict_effort(seen, viewed_slice_cost=3, click_cost=100) == 30
    assert strict_full_effort(labels) == 7 * 24 + 7 * VIEWED_SLICE_COST


def test_case_without_object_has_a_finite_effort():
    nothing = np.zeros((4, 4), dtype=np.uint8)
    looked = Annotations((SlicePrompt(2, 0, nothing),))
    assert effort_of(looked, 0, 0) == Effort(contour=0.0, strict=1.0)
    assert effort_of(Annotations(), 0, 0) == Effort(contour=0.0, strict=0.0)
