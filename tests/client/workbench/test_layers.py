"""Layers: cut to what they hold, and the same volume again on the other side."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from wardround.client.annotation.prompts import UNLABELLED
from wardround.client.workbench.layers import LAYERS, checked_name, drawn_bytes, make_layer, share_bytes
from wardround.errors import UsageError


@given(arrays.arrays(np.uint8, st.tuples(*[st.integers(1, 6)] * 3), elements=st.sampled_from([0, 0, 0, 1, 255])))
def test_a_layer_is_the_smallest_box_and_the_same_volume_again(values):
    layer = make_layer("proxy", 7, values)
    assert np.array_equal(layer.whole(), values)
    places = np.argwhere(values)
    expected = [0] * 6
    if len(places):
        expected = np.stack([places.min(axis=0), places.max(axis=0) + 1], axis=1).ravel().tolist()
    assert list(layer.box) == expected


def test_on_the_wire_i_is_fastest():
    values = np.zeros((4, 3, 2), dtype=np.uint8)
    values[1:3, 1, 0] = (5, 6)
    values[1, 2, 1] = 7
    layer = make_layer("prediction", 1, values)
    assert layer.box == (1, 3, 1, 3, 0, 2)
    assert layer.wire() == bytes([5, 6, 0, 0, 0, 0, 7, 0])


def test_what_was_drawn_is_told_from_what_was_not():
    drawn = np.array([0, 1, UNLABELLED], dtype=np.uint8).reshape(3, 1, 1)
    assert drawn_bytes(drawn).ravel().tolist() == [1, 2, 0]
    assert share_bytes(np.array([-0.1, 0, 0.5, 1, 2], dtype=np.float32)).tolist() == [0, 0, 128, 255, 255]


def test_there_are_no_other_layers():
    assert [checked_name(name) for name in LAYERS] == list(LAYERS)
    with pytest.raises(UsageError):
        checked_name("image")
