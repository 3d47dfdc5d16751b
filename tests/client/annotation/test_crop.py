"""The crop holds the object that drawings show, and no more than it must."""

import numpy as np

from wardround.client.annotation.crop import boxes, within
from wardround.client.annotation.prompts import UNLABELLED, Annotations, ExtentPrompt, SlicePrompt

SHAPE = (20, 30, 40)


def slice_of(axis, index, rows=slice(8, 12), columns=slice(10, 14)):
    labels = np.zeros([side for other, side in enumerate(SHAPE) if other != axis], np.uint8)
    labels[rows, columns] = 1
    return SlicePrompt(axis, index, labels)


def bounds(box):
    return [(side.start, side.stop) for side in box]


def test_the_extent_is_the_inner_box_and_the_margin_stays_inside():
    box, inner = boxes(SHAPE, Annotations(extent=ExtentPrompt((2, 10, 30), (5, 20, 39))), None, 4)
    assert bounds(inner) == [(2, 6), (10, 21), (30, 40)]
    assert bounds(box) == [(0, 10), (6, 25), (26, 40)]
    assert np.zeros(SHAPE)[box][within(inner, box)].shape == (4, 11, 10)


def test_drawn_slices_bound_the_object_in_their_plane_only():
    _, inner = boxes(SHAPE, Annotations((slice_of(0, 5),)), None, 0)
    assert bounds(inner) == [(0, 20), (4, 16), (6, 18)]
    _, crossed = boxes(SHAPE, Annotations((slice_of(0, 5), slice_of(1, 9))), None, 0)
    assert crossed[0].stop < 20


def test_no_structure_means_no_box():
    empty = SlicePrompt(0, 3, np.zeros(SHAPE[1:], np.uint8))
    assert boxes(SHAPE, Annotations((empty,)), None, 4)[1] is None
    background = np.full(SHAPE, UNLABELLED, np.uint8)
    background[3, 3, 3] = 0
    assert boxes(SHAPE, Annotations(), background, 4)[1] is None


def test_strokes_widen_the_box():
    strokes = np.full(SHAPE, UNLABELLED, np.uint8)
    strokes[10, 28, 2] = 1
    _, alone = boxes(SHAPE, Annotations(), strokes, 4)
    assert bounds(alone) == [(0, 20), (0, 30), (0, 40)]
    _, both = boxes(SHAPE, Annotations((slice_of(0, 5),)), strokes, 0)
    assert bounds(both) == [(0, 20), (4, 30), (0, 18)]
