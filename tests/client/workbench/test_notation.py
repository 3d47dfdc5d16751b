"""Drawings as JSON: what is written is what is read, and nothing else is."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError

from wardround.client.annotation.prompts import (
    Annotations,
    ErasePrompt,
    ExtentPrompt,
    PointPrompt,
    ScribblePrompt,
    SlicePrompt,
)
from wardround.client.workbench.notation import MOST_PROMPTS, DrawJson, PlaneJson, drawn, plane
from wardround.errors import UsageError

PLANES = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.sampled_from([0, 1, 255])
)


@given(PLANES)
def test_a_plane_comes_back_as_it_went(values: Any) -> None:
    found = PlaneJson.model_validate(plane(values)).values()
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, values)


def test_runs_are_in_c_order_and_as_few_as_can_be() -> None:
    values = np.array([[0, 0, 1], [1, 1, 255]], dtype=np.uint8)
    assert plane(values) == {"shape": [2, 3], "rle": [[0, 2], [1, 3], [255, 1]]}


def test_every_kind_of_drawing_is_read() -> None:
    labels = {"shape": [2, 2], "rle": [[1, 1], [255, 3]]}
    prompts, extent = DrawJson.model_validate(
        {
            "prompts": [
                {"kind": "slice", "axis": 0, "index": 3, "labels": {"shape": [2, 2], "rle": [[0, 3], [2, 1]]}},
                {"kind": "scribble", "axis": 1, "index": 4, "labels": labels},
                {"kind": "point", "index": [1, 2, 3], "label": 2},
                {"kind": "erase", "axis": 2, "index": 5, "mask": {"shape": [2, 2], "rle": [[0, 1], [1, 3]]}},
            ],
            "extent": {"lower": [0, 1, 2], "upper": [3, 4, 5]},
        }
    ).values()
    slice_, scribble, point, erase = prompts
    assert isinstance(slice_, SlicePrompt)
    assert (slice_.axis, slice_.index, slice_.labels.tolist()) == (0, 3, [[0, 0], [0, 2]])
    assert isinstance(scribble, ScribblePrompt)
    assert (scribble.axis, scribble.index, scribble.labels.tolist()) == (1, 4, [[1, 255], [255, 255]])
    assert point == PointPrompt((1, 2, 3), 2)
    assert isinstance(erase, ErasePrompt)
    assert (erase.axis, erase.index, erase.mask.tolist()) == (2, 5, [[False, True], [True, True]])
    assert extent == ExtentPrompt((0, 1, 2), (3, 4, 5))


def test_what_is_drawn_is_written_in_the_form_in_which_it_is_sent() -> None:
    labels = np.array([[1, 255], [0, 2]], dtype=np.uint8)
    known = Annotations(
        slices=(SlicePrompt(2, 1, np.ones((2, 2), dtype=np.uint8)),),
        scribbles=(ScribblePrompt(0, 1, labels, remains=True),),
        points=(PointPrompt((1, 0, 1), 1),),
        erased=(PointPrompt((0, 0, 0), 1),),
    )
    prompts, _ = DrawJson.model_validate({"prompts": drawn(known)}).values()
    slice_, scribble, point = prompts
    assert isinstance(slice_, SlicePrompt)
    assert isinstance(scribble, ScribblePrompt)
    np.testing.assert_array_equal(scribble.labels, labels)
    assert point == PointPrompt((1, 0, 1), 1)


GOOD = {"kind": "slice", "axis": 0, "index": 0, "labels": {"shape": [2, 2], "rle": [[0, 4]]}}


@pytest.mark.parametrize(
    "prompt",
    [
        GOOD | {"axis": 3},
        GOOD | {"axis": -1},
        GOOD | {"index": -1},
        GOOD | {"index": 2**40},
        GOOD | {"kind": "spell"},
        GOOD | {"name": "more"},
        GOOD | {"labels": {"shape": [2, 2], "rle": [[0, 3]]}},
        GOOD | {"labels": {"shape": [2, 2], "rle": [[0, 5]]}},
        GOOD | {"labels": {"shape": [2, 2], "rle": [[256, 4]]}},
        GOOD | {"labels": {"shape": [2, 2], "rle": [[0, -1], [0, 5]]}},
        GOOD | {"labels": {"shape": [2, 2], "rle": [[0, 4], [0, 0]]}},
        GOOD | {"labels": {"shape": [0, 2], "rle": []}},
        # As much as the server's memory: refused before anything is allocated.
        GOOD | {"labels": {"shape": [10**6, 10**6], "rle": [[0, 10**12]]}},
        {"kind": "point", "index": [1, 2], "label": 1},
        {"kind": "point", "index": [1, 2, -3], "label": 1},
        {"kind": "point", "index": [1, 2, 3], "label": 255},
        {"kind": "point", "index": [1, 2, 3.5], "label": 1},
        {"kind": "erase", "axis": 0, "index": 0},
    ],
)
def test_what_nobody_can_have_drawn_is_refused(prompt: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DrawJson.model_validate({"prompts": [prompt]})


def test_a_drawing_has_a_limit() -> None:
    point = {"kind": "point", "index": [1, 2, 3], "label": 1}
    DrawJson.model_validate({"prompts": [point] * MOST_PROMPTS})
    with pytest.raises(ValidationError):
        DrawJson.model_validate({"prompts": [point] * (MOST_PROMPTS + 1)})


def test_a_few_runs_that_stand_for_gigabytes_are_not_unpacked() -> None:
    huge = {"shape": [4096, 4096], "rle": [[0, 4096 * 4096]]}
    for prompt in (
        {"kind": "slice", "axis": 2, "index": 0, "labels": huge},
        {"kind": "erase", "axis": 0, "index": 0, "mask": huge},
    ):
        given = DrawJson.model_validate({"prompts": [prompt] * MOST_PROMPTS})
        with pytest.raises(UsageError, match=f"axis {prompt['axis']}"):
            given.check((16, 24, 16))


def test_a_plane_has_the_two_other_sides_of_its_axis() -> None:
    for axis, shape in enumerate(([24, 12], [16, 12], [16, 24])):
        labels = {"shape": shape, "rle": [[0, shape[0] * shape[1]]]}
        given = DrawJson.model_validate({"prompts": [{"kind": "slice", "axis": axis, "index": 0, "labels": labels}]})
        given.check((16, 24, 12))
        with pytest.raises(UsageError):
            given.check((24, 16, 11))
