"""The simulated annotator tells what it is asked and nothing else."""

import numpy as np
import pytest

from wardround.client.annotation.annotator import Annotator, SimulatedAnnotator, Truth
from wardround.client.annotation.prompts import ExtentPrompt, SliceRequest
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
