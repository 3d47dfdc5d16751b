"""Clicks, scribbles and regions of a request as prompts."""

from typing import Any

import numpy as np
import pytest

from wardround.client.annotation.prompts import UNLABELLED, ExtentPrompt, PointPrompt, ScribblePrompt
from wardround.client.workbench.monai_label import drawn
from wardround.client.workbench.monai_label.replies import Refused
from wardround.client.workbench.monai_label.uploads import SentLabels

LABELS = ("anterior", "posterior")
SHAPE = (6, 5, 4)


def sent(*voxels: tuple[int, int, int, int], **segments: int) -> SentLabels:
    values = np.zeros(SHAPE, np.uint8)
    for i, j, k, value in voxels:
        values[i, j, k] = value
    return SentLabels(values, segments)


def test_clicks_of_every_label_and_of_the_background() -> None:
    params = {"anterior": [[1, 2, 3]], "posterior": [[4, 4, 0], [5.0, 0, 0]], "background": [[0, 0, 0]], "label": "x"}
    params["label"] = "anterior"
    assert set(drawn.clicks(params, LABELS)) == {
        PointPrompt((1, 2, 3), 1),
        PointPrompt((4, 4, 0), 2),
        PointPrompt((5, 0, 0), 2),
        PointPrompt((0, 0, 0), 0),
    }


@pytest.mark.parametrize(("label", "value"), [("posterior", 2), (None, 1)])
def test_a_deepgrow_client_says_foreground(label: str | None, value: int) -> None:
    assert drawn.clicks({"foreground": [[1, 2, 3]], "label": label}, LABELS) == (PointPrompt((1, 2, 3), value),)


@pytest.mark.parametrize(
    "points", [[[1, 2]], [[1, 2, 3, 4]], [[1, 2, 0.5]], ["abc"], [[1, 2, "3"]], [[1, 2, True]], "abc", {"a": 1}, [5]]
)
def test_a_click_is_three_whole_numbers(points: Any) -> None:
    with pytest.raises(Refused) as caught:
        drawn.clicks({"anterior": points}, LABELS)
    assert caught.value.status == 400


def test_too_many_clicks() -> None:
    with pytest.raises(Refused, match="too many"):
        drawn.clicks({"anterior": [[0, 0, 0]] * (drawn.MOST_POINTS + 1)}, LABELS)


def test_scribbles_draw_what_was_selected() -> None:
    info = [
        {"name": "background_scribbles", "id": 7},
        {"name": "foreground_scribbles", "idx": 8},
        {"name": "x", "id": 1},
    ]
    params = {"label_info": info, "selected_label_name": "posterior"}
    one, other = drawn.scribbles(params, sent((1, 1, 2, 7), (2, 2, 3, 8), (0, 0, 0, 1)), LABELS)
    assert isinstance(one, ScribblePrompt)
    assert isinstance(other, ScribblePrompt)
    assert (one.axis, one.index, one.labels[1, 1]) == (2, 2, 0)
    assert (other.axis, other.index, other.labels[2, 2]) == (2, 3, 2)
    assert (one.labels != UNLABELLED).sum() == (other.labels != UNLABELLED).sum() == 1


def test_scribbles_of_a_label_by_its_name() -> None:
    (one,) = drawn.scribbles({}, sent((3, 1, 0, 5), posterior_scribbles=5), LABELS)
    assert isinstance(one, ScribblePrompt)
    assert one.labels[3, 1] == 2


def test_a_map_without_scribbles_draws_nothing() -> None:
    with pytest.raises(Refused, match="scribbles"):
        drawn.scribbles({"label_info": [{"name": "anterior", "id": 1}]}, sent((1, 1, 1, 1)), LABELS)


def test_a_region_is_cut_to_the_image() -> None:
    assert drawn.region({"roi": [-3, 2, 1, 99, 0, 3]}, SHAPE) == ExtentPrompt((0, 1, 0), (2, 4, 3))
    assert drawn.region({"roi": []}, SHAPE) is None
    # 3D Slicer's box has its corners in RAS: on a usual image i and j fall where x and y grow.
    assert drawn.region({"roi": [2, -3, 99, 1, 0, 3]}, SHAPE) == ExtentPrompt((0, 1, 0), (2, 4, 3))
    assert drawn.region({}, SHAPE) is None


@pytest.mark.parametrize("roi", [[1, 2], "abcdef", [3, None, 0, 1, 0, 1], [0, 1, 0, 1, 0, float("inf")], 7])
def test_a_region_must_make_sense(roi: Any) -> None:
    with pytest.raises(Refused):
        drawn.region({"roi": roi}, SHAPE)


def test_a_label_map_gets_our_numbers() -> None:
    info = [{"name": "posterior", "idx": 1}, {"name": "anterior", "idx": 5}, {"name": "foreground_scribbles", "idx": 9}]
    found = drawn.renumbered({"label_info": info}, sent((0, 0, 0, 1), (1, 0, 0, 5), (2, 0, 0, 9)), LABELS)
    assert (found[0, 0, 0], found[1, 0, 0], found[2, 0, 0], found.sum()) == (2, 1, 0, 3)


def test_the_background_of_a_file_of_3d_slicer_is_no_structure() -> None:
    found = drawn.renumbered({}, sent((0, 0, 0, 1), (1, 0, 0, 2), background=1, posterior=2), LABELS)
    assert (found[0, 0, 0], found[1, 0, 0]) == (0, 2)


def test_numbers_without_names_are_ours() -> None:
    found = drawn.renumbered({}, sent((0, 0, 0, 1), (1, 0, 0, 2)), LABELS)
    assert (found[0, 0, 0], found[1, 0, 0]) == (1, 2)


@pytest.mark.parametrize(
    ("info", "voxel"),
    [
        ([{"name": "Muster^Erika", "idx": 1}], (0, 0, 0, 1)),
        ([{"name": "anterior", "idx": 1}], (0, 0, 0, 3)),
        ([], (0, 0, 0, 3)),
        ([{"name": "anterior"}], (0, 0, 0, 1)),
        ([{"name": "anterior", "idx": 10**400}], (0, 0, 0, 1)),
        ([{"name": "anterior", "idx": -1}], (0, 0, 0, 1)),
        (["anterior"], (0, 0, 0, 1)),
    ],
)
def test_a_segment_that_nobody_knows_is_refused(info: list[Any], voxel: tuple[int, int, int, int]) -> None:
    with pytest.raises(Refused) as caught:
        drawn.renumbered({"label_info": info}, sent(voxel), LABELS)
    assert "Erika" not in str(caught.value)


def test_the_names_in_a_file_count_first() -> None:
    """A ``.seg.nrrd`` says itself what its numbers are."""
    info = [{"name": "anterior", "idx": 1}, {"name": "posterior", "idx": 2}]
    found = drawn.renumbered({"label_info": info}, sent((0, 0, 0, 1), posterior=1), LABELS)
    assert found[0, 0, 0] == 2


def test_3d_slicer_counts_over_a_segment_that_it_leaves_out() -> None:
    """Its third segment is the second of two in the file: number 3 is nowhere."""
    info = [{"name": "anterior", "idx": 2}, {"name": "posterior", "idx": 3}]
    found = drawn.renumbered({"label_info": info}, sent((0, 0, 0, 1), (1, 0, 0, 2)), LABELS)
    assert (found[0, 0, 0], found[1, 0, 0]) == (1, 2)
    found = drawn.renumbered({"label_info": info}, sent((0, 0, 0, 2), (1, 0, 0, 3)), LABELS)
    assert (found[0, 0, 0], found[1, 0, 0]) == (1, 2)
    with pytest.raises(Refused, match="two ways") as caught:
        drawn.renumbered({"label_info": info}, sent((0, 0, 0, 2)), LABELS)
    assert caught.value.status == 409


def test_a_map_without_anything_is_all_background() -> None:
    assert not drawn.renumbered({"label_info": [{"name": "anterior", "idx": 7}]}, sent(), LABELS).any()
