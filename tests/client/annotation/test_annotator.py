"""The simulated annotator tells what it is asked and nothing else."""

import hashlib

import numpy as np
import pytest

from wardround.client.annotation.annotator import Annotator, SimulatedAnnotator, Truth
from wardround.client.annotation.prompts import UNLABELLED, ExtentPrompt, PointPrompt, SliceRequest
from wardround.client.cases.volume import Volume
from wardround.errors import DataError, UsageError


def labels_of(dtype=np.uint8):
    labels = np.zeros((6, 7, 8), dtype=dtype)
    labels[1:4, 2:6, 3:5] = 1
    labels[2, 3, 3] = 2
    return labels


@pytest.fixture
def annotator():
    return SimulatedAnnotator({"case": Truth(Volume(labels_of(), np.eye(4)))})


def test_draws_the_slice_that_was_asked_for(annotator):
    for axis, index in [(0, 2), (1, 3), (2, 4)]:
        prompt = annotator.draw("case", SliceRequest(axis, index))
        assert prompt.request == SliceRequest(axis, index)
        assert prompt.labels.dtype == np.uint8
        np.testing.assert_array_equal(prompt.labels, np.take(labels_of(), index, axis))


def test_extent_is_the_box_of_all_structures(annotator):
    assert annotator.extent("case") == ExtentPrompt((1, 2, 3), (3, 5, 4))


def test_no_object_has_no_extent():
    empty = SimulatedAnnotator({"case": Truth(Volume(np.zeros((3, 3, 3), np.uint8), np.eye(4)))})
    assert empty.extent("case") is None
    assert empty.full_effort("case") == (0.0, 0.0)


def test_what_it_gives_is_a_copy():
    source = labels_of()
    annotator = SimulatedAnnotator({"case": Truth(Volume(source, np.eye(4)))})
    drawn = annotator.draw("case", SliceRequest(0, 2))
    drawn.labels[:] = 9
    assert source.max() == 2
    assert drawn.labels.base is None
    assert annotator.draw("case", SliceRequest(0, 2)).labels.max() == 2


def test_truth_shows_no_array_and_takes_no_attribute():
    truth = Truth(Volume(labels_of(), np.eye(4)))
    public = [getattr(truth, name) for name in dir(truth) if not name.startswith("_")]
    assert not any(isinstance(value, np.ndarray | Volume) for value in public)
    with pytest.raises(AttributeError):
        truth.labels = None
    assert repr(truth) == "Truth(shape=(6, 7, 8))"


def test_truths_are_fetched_when_needed():
    asked = []

    def fetch(case_id):
        asked.append(case_id)
        return Truth(Volume(labels_of(), np.eye(4)))

    annotator = SimulatedAnnotator(fetch)
    assert asked == []
    annotator.draw("b", SliceRequest(2, 3))
    assert asked == ["b"]


def test_is_an_annotator(annotator):
    assert isinstance(annotator, Annotator)


def test_full_effort_counts_axial_slices(annotator):
    # Two slices of 3 by 4 pixels: a rim of 10, and on one of them a second structure between two inner pixels.
    contour, strict = annotator.full_effort("case")
    assert contour == 10 + 12
    assert strict > contour


@pytest.mark.parametrize("request_", [SliceRequest(0, 6), SliceRequest(1, -1), SliceRequest(3, 0)])
def test_slice_outside_the_volume_is_refused(annotator, request_):
    with pytest.raises(UsageError):
        annotator.draw("case", request_)


def test_unknown_case_is_refused(annotator):
    with pytest.raises(DataError, match="no labels"):
        annotator.draw("other", SliceRequest(0, 0))


@pytest.mark.parametrize("bad", [np.nan, 0.5, -1.0, 255.0])
def test_only_whole_labels_are_drawn(bad):
    labels = labels_of(np.float64)
    labels[2, 0, 0] = bad
    annotator = SimulatedAnnotator({"case": Truth(Volume(labels, np.eye(4)))})
    with pytest.raises(DataError):
        annotator.draw("case", SliceRequest(0, 2))
    assert annotator.draw("case", SliceRequest(0, 3)).labels.max() == 1


def digest(prompt):
    return hashlib.sha256(prompt.labels.tobytes()).hexdigest()


def structures():
    labels = np.zeros((24, 30, 20), np.uint8)
    labels[5:15, 6:24, 4:16] = 1
    labels[8:12, 10:20, 6:14] = 2
    return Truth(Volume(labels, np.eye(4)))


def test_strokes_are_the_same_in_every_epoch():
    # Whoever draws other strokes each time tells the whole mask in the end.
    requests = [SliceRequest(axis, index) for axis in range(3) for index in (8, 10)]
    annotator = SimulatedAnnotator({"case": structures()}, seed=3)
    epochs = [[digest(annotator.strokes("case", request)) for request in requests] for _ in range(3)]
    told = annotator.told("case")
    assert epochs[0] == epochs[1] == epochs[2]
    for request in reversed(requests):
        annotator.strokes("case", request)
    assert annotator.told("case") == told
    another = SimulatedAnnotator(lambda case: structures(), seed=3)
    assert [digest(another.strokes("case", request)) for request in requests] == epochs[0]


def test_strokes_differ_by_case_slice_and_seed():
    request, same = SliceRequest(2, 10), SliceRequest(2, 9)
    truths = {"one": structures(), "two": structures()}
    first = SimulatedAnnotator(truths, seed=3)
    drawn = {digest(first.strokes("one", request)), digest(first.strokes("two", request))}
    drawn |= {digest(first.strokes("one", same)), digest(SimulatedAnnotator(truths, seed=4).strokes("one", request))}
    assert len(drawn) == 4


def test_strokes_say_what_is_true_and_little_of_it():
    annotator = SimulatedAnnotator({"case": structures()})
    drawn, true = annotator.strokes("case", SliceRequest(2, 10)), annotator.draw("case", SliceRequest(2, 10))
    touched = drawn.labels != UNLABELLED
    assert set(np.unique(drawn.labels[touched])) == {0, 1, 2}
    np.testing.assert_array_equal(drawn.labels[touched], true.labels[touched])
    assert np.count_nonzero(touched) < 0.2 * touched.size


def test_strokes_of_an_expert_are_handed_out_as_they_are():
    expert = np.full((24, 30, 20), UNLABELLED, np.uint8)
    expert[7, 8:12, 5] = 1
    annotator = SimulatedAnnotator({"a": structures(), "b": structures()}, {"a": expert})
    np.testing.assert_array_equal(annotator.strokes("a", SliceRequest(2, 5)).labels, expert[:, :, 5])
    assert annotator.told("a") == 4
    assert (annotator.strokes("a", SliceRequest(2, 6)).labels == UNLABELLED).all()
    assert (annotator.strokes("b", SliceRequest(2, 6)).labels != UNLABELLED).any()
    fetched = SimulatedAnnotator(lambda case: structures(), lambda case: expert if case == "a" else None)
    assert digest(fetched.strokes("a", SliceRequest(2, 5))) == digest(annotator.strokes("a", SliceRequest(2, 5)))
    drawn = annotator.strokes("a", SliceRequest(2, 5))
    drawn.labels[:] = 1
    assert (expert[:, :, 5] == UNLABELLED).any()
    with pytest.raises(UsageError):
        annotator.strokes("a", SliceRequest(2, 20))


def test_seven_voxels_a_structure_and_nothing_else_are_told():
    annotator = SimulatedAnnotator({"case": structures()})
    truth = structures()
    for _ in range(3):
        points = annotator.points("case")
        assert len(points) == 14
        assert annotator.told("case") == len({point.index for point in points}) == 14
    assert all(truth.label_at(point.index) == point for point in points)


def test_every_answer_is_counted_once(annotator):
    assert annotator.told("case") == 0
    annotator.draw("case", SliceRequest(2, 3))
    assert annotator.told("case") == 42
    assert annotator.label_at("case", (2, 3, 3)) == PointPrompt((2, 3, 3), 2)
    assert annotator.told("case") == 42
    annotator.draw("case", SliceRequest(0, 2))
    assert annotator.told("case") == 42 + 56 - 7
    annotator.label_at("case", (0, 0, 0))
    assert annotator.told("case") == 42 + 56 - 7 + 1


@pytest.mark.parametrize("index", [(6, 0, 0), (0, -1, 0)])
def test_a_voxel_outside_the_volume_is_refused(annotator, index):
    with pytest.raises(UsageError):
        annotator.label_at("case", index)


def test_a_case_without_object_gets_no_points():
    empty = SimulatedAnnotator({"case": Truth(Volume(np.zeros((3, 3, 3), np.uint8), np.eye(4)))})
    assert empty.points("case") == ()
    assert empty.told("case") == 0
