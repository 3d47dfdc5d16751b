"""Votes are made once: what a new drawing does not touch is taken from the store, to the last bit."""

import numpy as np
import pytest
import torch

from wardround.client.annotation import registration, votes
from wardround.client.annotation.prompts import Annotations, ExtentPrompt, SlicePrompt
from wardround.client.annotation.propagation import PropagationCache, PropagationSettings, propagate
from wardround.client.annotation.registration import DemonsSettings
from wardround.client.annotation.votes import Scene, VoteStore, drawn_plane, registration_votes, shape_vote
from wardround.client.cases.volume import Volume

SHAPE = (18, 24, 18)
EXTENT = ExtentPrompt((4, 2, 4), (13, 21, 13))


def ball(radius=5):
    rows, columns = np.indices((18, 18))
    return ((rows - 9) ** 2 + (columns - 9) ** 2 <= radius**2).astype(np.uint8)


def drawn(*indices, axis=1, radius=5):
    labels = ball(radius) if axis == 1 else np.zeros((24, 18), np.uint8)
    if axis != 1:
        labels[4:20, 5:13] = 1
        labels = labels.T.copy() if axis == 2 else labels
    return tuple(SlicePrompt(axis, index, labels) for index in indices)


def scene(store=None, spacing=(1.0, 1.0, 1.0)):
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    box = tuple(slice(0, side) for side in SHAPE)
    return Scene(image, box, spacing, 2, "demons", DemonsSettings((2,)), torch.device("cpu"), store or VoteStore())


@pytest.fixture
def registered(monkeypatch):
    """Number of pairs of every call of the registration."""
    calls = []
    inner = votes.register

    def counting(moving, fixed, *arguments, **options):
        calls.append(len(moving))
        return inner(moving, fixed, *arguments, **options)

    monkeypatch.setattr(votes, "register", counting)
    return calls


@pytest.fixture
def measured(monkeypatch):
    """How often signed distances were computed."""
    calls = []
    inner = votes._signed_distances

    def counting(*arguments):
        calls.append(1)
        return inner(*arguments)

    monkeypatch.setattr(votes, "_signed_distances", counting)
    return calls


def test_planes_of_one_shape_and_spacing_are_one_batch(registered):
    cube = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)
    label = np.zeros((16, 16), np.uint8)
    label[5:11, 5:11] = 1
    known = Annotations(tuple(SlicePrompt(axis, 8, label) for axis in range(3)))
    propagate(Volume(cube, np.eye(4)), known, 2)
    assert len(registered) == 1
    propagate(Volume(cube, np.diag([1.0, 1.0, 3.0, 1.0])), known, 2)
    # Slices along the thick axis are 1 mm by 3 mm on both planes, those across it 1 mm by 1 mm.
    assert len(registered) == 1 + 2


def test_a_new_slice_touches_its_own_gap_only(registered, measured):
    store = VoteStore()
    known = Annotations(drawn(4, 12, 20), EXTENT)
    plane = drawn_plane(scene(store), known, 1)
    before = [registration_votes(scene(store), [plane])[0].copy(), shape_vote(scene(store), plane).copy()]
    pairs, distances = sum(registered), len(measured)
    assert distances == 3
    plane = drawn_plane(scene(store), known.adding(*drawn(8, radius=3)), 1)
    after = [registration_votes(scene(store), [plane])[0], shape_vote(scene(store), plane)]
    # Slices 5 … 7 and 9 … 11 see the new one; their other neighbour is known already.
    assert sum(registered) - pairs == 6
    assert len(measured) - distances == 1
    elsewhere = np.r_[0:5, 12:24]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old[elsewhere], new[elsewhere])
        assert not np.array_equal(old[8], new[8])


def test_what_no_slice_needs_any_more_is_dropped():
    store = VoteStore()
    known = Annotations(drawn(4, 20), EXTENT)
    for addition in (8, 12, 16):
        known = known.adding(*drawn(addition))
        plane = drawn_plane(scene(store), known, 1)
        registration_votes(scene(store), [plane])
        shape_vote(scene(store), plane)
    fresh = VoteStore()
    registration_votes(scene(fresh), [plane])
    assert store.fields.keys() == fresh.fields.keys()
    assert len(store.depths) == 5


def test_a_slice_drawn_again_needs_no_new_registration(registered):
    image = Volume(scene().image, np.eye(4))
    cache, known = PropagationCache(), Annotations(drawn(4, 12, 20), EXTENT)
    propagate(image, known, 2, cache=cache)
    pairs = sum(registered)
    again = known.adding(*drawn(12, radius=3))
    kept = propagate(image, again, 2, cache=cache)
    assert sum(registered) == pairs
    np.testing.assert_array_equal(kept.probabilities, propagate(image, again, 2).probabilities)


def test_taking_a_slice_back_is_as_if_it_had_never_been(registered):
    image = Volume(scene().image, np.eye(4))
    cache, known = PropagationCache(), Annotations(drawn(4, 20) + drawn(9, axis=0), EXTENT)
    before = propagate(image, known, 2, cache=cache)
    propagate(image, known.adding(*drawn(12), *drawn(9, axis=2)), 2, cache=cache)
    after = propagate(image, known, 2, cache=cache)
    np.testing.assert_array_equal(before.probabilities, after.probabilities)
    np.testing.assert_array_equal(before.confidence, after.confidence)


def test_a_failed_propagation_leaves_nothing_half_done(monkeypatch):
    image = Volume(scene().image, np.eye(4))
    cache, known = PropagationCache(), Annotations(drawn(4, 20), EXTENT)
    propagate(image, known, 2, cache=cache)
    more = known.adding(*drawn(12))
    with monkeypatch.context() as patch:
        patch.setattr(votes, "warp", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            propagate(image, more, 2, cache=cache)
    np.testing.assert_array_equal(
        propagate(image, more, 2, cache=cache).probabilities, propagate(image, more, 2).probabilities
    )


def test_other_settings_empty_the_cache():
    image = Volume(scene().image, np.eye(4))
    cache, known = PropagationCache(), Annotations(drawn(4, 12, 20), EXTENT)
    propagate(image, known, 2, cache=cache)
    other = PropagationSettings(demons=DemonsSettings((2,)))
    found = propagate(image, known, 2, settings=other, cache=cache)
    np.testing.assert_array_equal(found.probabilities, propagate(image, known, 2, settings=other).probabilities)


def test_the_size_of_a_batch_does_not_matter(monkeypatch):
    image = Volume(scene().image, np.eye(4))
    known = Annotations(drawn(4, 12, 20), EXTENT)
    whole = propagate(image, known, 2)
    monkeypatch.setattr(registration, "BATCH_PIXELS", 3 * 18 * 18)
    np.testing.assert_array_equal(whole.probabilities, propagate(image, known, 2).probabilities)


def test_distance_is_counted_in_voxels_of_the_finest_axis():
    plane = drawn_plane(scene(spacing=(1.0, 2.5, 1.0)), Annotations(drawn(4, 12)), 1)
    assert plane.distance[6] == 5
    assert plane.distance[8] == 10
    assert plane.fraction[6] == 0.25


def test_signed_distances_are_physical():
    plane = drawn_plane(scene(spacing=(3.0, 1.0, 1.0)), Annotations(drawn(4)), 1)
    found = votes._signed_distances(plane.drawings[0], plane.spacing)[1]
    # Two pixels beyond the border are 2 mm along k, but 6 mm along i; there the next way is slanting.
    assert found[9, 16] == pytest.approx(-1.5, abs=0.1)
    assert found[16, 9] < -4
