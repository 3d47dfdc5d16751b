"""Annotations keep what was drawn, in the order in which it holds, and refuse what cannot have been drawn."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardround.client.annotation.effort import contour_effort, strict_effort
from wardround.client.annotation.prompts import (
    UNLABELLED,
    Annotations,
    ErasePrompt,
    ExtentPrompt,
    PointPrompt,
    ScribblePrompt,
    SlicePrompt,
    check_prompt,
    plane,
    scribbles_of,
)
from wardround.client.annotation.seeds import seed_map
from wardround.errors import UsageError

SHAPE = (4, 5, 6)


def empty(axis):
    return np.full([side for other, side in enumerate(SHAPE) if other != axis], UNLABELLED, dtype=np.uint8)


def scribble(axis, index, pixels):
    labels = empty(axis)
    for pixel, label in pixels.items():
        labels[pixel] = label
    return ScribblePrompt(axis, index, labels)


def whole(axis, index, label):
    return SlicePrompt(axis, index, np.full_like(empty(axis), label))


def hard_labels(annotations):
    """What the drawings say about every voxel: slices first, then strokes and points over them."""
    labels = np.full(SHAPE, UNLABELLED, dtype=np.uint8)
    for drawn in annotations.slices:
        labels[plane(drawn.axis, drawn.index)] = drawn.labels
    seeds = seed_map(annotations, SHAPE)
    return np.where(seeds != UNLABELLED, seeds, labels)


def painted(prompts):
    """The same, by painting one prompt after the other."""
    labels = np.full(SHAPE, UNLABELLED, dtype=np.uint8)
    for prompt in prompts:
        if isinstance(prompt, PointPrompt):
            labels[prompt.index] = prompt.label
        elif isinstance(prompt, ErasePrompt):
            labels[plane(prompt.axis, prompt.index)][prompt.mask] = UNLABELLED
        else:
            view = labels[plane(prompt.axis, prompt.index)]
            view[...] = np.where(prompt.labels != UNLABELLED, prompt.labels, view)
    return labels


@st.composite
def any_prompt(draw):
    axis = draw(st.integers(0, 2))
    index = draw(st.integers(0, SHAPE[axis] - 1))
    kind = draw(st.sampled_from(["slice", "scribble", "point", "eraser"]))
    if kind == "point":
        return PointPrompt(tuple(draw(st.integers(0, side - 1)) for side in SHAPE), draw(st.integers(0, 2)))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    if kind == "eraser":
        return ErasePrompt(axis, index, rng.random(empty(axis).shape) < draw(st.sampled_from([0.1, 0.5, 1.0])))
    if kind == "slice":
        return SlicePrompt(axis, index, rng.integers(0, 3, empty(axis).shape, dtype=np.uint8))
    return ScribblePrompt(axis, index, rng.choice(np.array([0, 1, 2, *[UNLABELLED] * 6], np.uint8), empty(axis).shape))


@given(st.lists(any_prompt(), max_size=7))
def test_the_later_prompt_holds(prompts):
    assert np.array_equal(hard_labels(Annotations().adding(*prompts)), painted(prompts))
    one_by_one = Annotations()
    for prompt in prompts:
        one_by_one = one_by_one.adding(prompt)
    assert np.array_equal(hard_labels(one_by_one), painted(prompts))


@given(st.lists(any_prompt(), max_size=6), any_prompt().filter(lambda prompt: isinstance(prompt, ErasePrompt)))
def test_what_is_erased_stays_paid(prompts, eraser):
    before = Annotations().adding(*prompts)
    after = before.adding(eraser).adding(eraser)
    assert contour_effort(after) == contour_effort(before)
    assert strict_effort(after) == strict_effort(before)


def test_of_a_slice_that_loses_a_pixel_the_rest_is_a_scribble():
    mask = np.zeros(empty(2).shape, dtype=bool)
    mask[1, 2] = True
    annotations = Annotations().adding(whole(2, 3, 1), whole(2, 4, 1), ErasePrompt(2, 3, mask))
    assert [prompt.index for prompt in annotations.slices] == [4]
    assert [(stroke.index, int(np.count_nonzero(stroke.labels == 1))) for stroke in annotations.scribbles] == [
        (3, mask.size - 1)
    ]
    assert annotations.adding(ErasePrompt(2, 3, ~mask)).scribbles == ()


@pytest.mark.parametrize(
    "prompt", [ErasePrompt(3, 0, empty(2) > 0), ErasePrompt(2, 6, empty(2) > 0), ErasePrompt(1, 0, empty(2) > 0)]
)
def test_an_eraser_that_does_not_fit_is_refused(prompt):
    with pytest.raises(UsageError, match="eraser"):
        check_prompt(prompt, SHAPE, 3)


def test_what_was_drawn_is_kept_and_nothing_is_changed_in_place():
    stroke, point = scribble(2, 1, {(0, 0): 1, (0, 1): 2}), PointPrompt((3, 3, 3), 1)
    before = Annotations().adding(stroke, point)
    after = before.adding(whole(2, 1, 0), whole(0, 3, 2))
    assert (len(after.scribbles), len(after.points), len(after.slices)) == (1, 1, 2)
    assert after.scribbles[0].labels[0, 0] == 0
    assert after.points[0].label == 2
    assert before.scribbles[0] is stroke
    assert stroke.labels[0, 0] == 1
    assert before.slices == ()


def test_a_slice_drawn_again_replaces_its_earlier_version():
    annotations = Annotations().adding(whole(1, 2, 0), whole(1, 3, 0)).adding(whole(1, 2, 1))
    assert [(p.index, int(p.labels.max())) for p in annotations.on_axis(1)] == [(2, 1), (3, 0)]


def test_of_a_slice_given_twice_at_once_the_last_version_holds():
    crossing = whole(0, 1, 2)
    annotations = Annotations().adding(whole(1, 2, 0), crossing, whole(1, 2, 1))
    assert [(p.axis, p.index, int(p.labels.max())) for p in annotations.slices] == [(0, 1, 2), (1, 2, 1)]
    assert hard_labels(annotations)[1, 2, 0] == 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_of_strokes_is_cut_into_scribbles_and_back(axis):
    strokes = np.full(SHAPE, UNLABELLED, dtype=np.uint8)
    strokes[1, 2, 3], strokes[1, 4, 3], strokes[3, 0, 5] = 2, 0, 1
    scribbles = scribbles_of(strokes, axis)
    assert all(prompt.axis == axis and (prompt.labels != UNLABELLED).any() for prompt in scribbles)
    assert np.array_equal(seed_map(Annotations().adding(*scribbles), SHAPE), strokes)


def test_no_stroke_no_scribble():
    assert scribbles_of(np.full(SHAPE, UNLABELLED, dtype=np.uint8)) == ()


def test_what_fits_passes_the_check():
    annotations = Annotations(extent=ExtentPrompt((0, 0, 0), (3, 4, 5))).adding(
        whole(0, 3, 2), scribble(1, 4, {(0, 0): 2}), scribble(2, 0, {}), PointPrompt((3, 4, 5), 2)
    )
    assert annotations.checked(SHAPE, 3) is annotations


@pytest.mark.parametrize(
    "annotations",
    [
        *itertools.chain.from_iterable(
            (
                Annotations((whole(axis, SHAPE[axis], 0),)),
                Annotations((whole(axis, 0, 3),)),
                Annotations(scribbles=(scribble(axis, -1, {}),)),
                Annotations(scribbles=(scribble(axis, 0, {(0, 0): 3}),)),
                Annotations(scribbles=(ScribblePrompt(axis, 0, np.zeros((2, 2), dtype=np.uint8)),)),
            )
            for axis in range(3)
        ),
        Annotations(points=(PointPrompt((0, 5, 0), 1),)),
        Annotations(points=(PointPrompt((-1, 0, 0), 1),)),
        Annotations(points=(PointPrompt((0, 0, 0), 3),)),
        Annotations(points=(PointPrompt((0, 0, 0), UNLABELLED),)),
        Annotations(extent=ExtentPrompt((2, 0, 0), (1, 1, 1))),
        Annotations(extent=ExtentPrompt((0, 0, 0), (3, 4, 6))),
    ],
)
def test_what_cannot_have_been_drawn_here_is_refused(annotations):
    with pytest.raises(UsageError):
        annotations.checked(SHAPE, 3)
