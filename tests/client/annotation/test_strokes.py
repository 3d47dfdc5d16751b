"""Simulated strokes lie where they say, are of a sensible length, and follow from the generator alone."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from wardround.client.annotation.prompts import UNLABELLED
from wardround.client.annotation.strokes import StrokeSettings, strokes
from wardround.client.cases.nifti import read_labels


def draw(labels, seed=0, **options):
    return strokes(labels, np.random.default_rng(seed), StrokeSettings(**options))


def disc(radius, shape=(64, 64), centre=(32, 32), label=1):
    grid = np.indices(shape) - np.array(centre)[:, None, None]
    return (label * (np.square(grid).sum(axis=0) <= radius**2)).astype(np.uint8)


SLICES = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24)), elements=st.integers(0, 3), fill=st.just(0)
)


@given(SLICES, st.integers(0, 5), st.booleans())
@settings(max_examples=150, deadline=None)
def test_every_label_gets_a_stroke_that_lies_on_it(labels, seed, thick):
    if thick:
        labels = np.kron(labels, np.ones((5, 5), np.uint8))
    drawn = draw(labels, seed)
    touched = drawn != UNLABELLED
    np.testing.assert_array_equal(drawn[touched], labels[touched])
    assert set(np.unique(drawn[touched])) == set(np.unique(labels))


@given(SLICES, st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_a_stroke_is_one_piece(labels, seed):
    drawn = draw(np.kron(labels, np.ones((5, 5), np.uint8)), seed)
    for label in np.unique(drawn[drawn != UNLABELLED]):
        assert ndimage.label(drawn == label, np.ones((3, 3)))[1] == 1


@pytest.mark.parametrize("radius", [5, 8, 16])
def test_a_round_structure_gets_a_chord(radius):
    lengths = [np.count_nonzero(draw(disc(radius), seed) == 1) for seed in range(20)]
    widest = 2 * (radius - 2) + 1
    assert min(lengths) >= 0.5 * 0.7 * widest
    assert max(lengths) <= widest


def test_a_chord_goes_in_many_directions():
    directions = set()
    for seed in range(20):
        where = np.argwhere(draw(disc(16), seed) == 1)
        along = where[-1] - where[0]
        directions.add(round(np.degrees(np.arctan2(along[0], along[1])) % 180 / 30))
    assert len(directions) >= 4


def test_a_thin_structure_gets_its_line():
    labels = np.zeros((40, 60), np.uint8)
    labels[20, 5:50] = 1
    for seed in range(5):
        assert 0.6 * 45 - 1 <= np.count_nonzero(draw(labels, seed) == 1) <= 45


def test_erosion_leaves_a_structure_its_length():
    # Five pixels wide in the middle and three at both ends: eroded by two pixels only the middle would be left.
    labels = np.zeros((40, 60), np.uint8)
    labels[19:22, 5:50] = 1
    labels[18:23, 24:30] = 1
    assert np.count_nonzero(draw(labels, shortest=1.0) == 1) > 35


def test_a_ring_gets_a_long_curve_that_stays_on_it():
    ring = disc(20) - disc(12)
    drawn = draw(ring, shortest=1.0)
    assert np.count_nonzero(drawn == 1) > 30
    assert (ring[drawn == 1] == 1).all()


def test_of_several_parts_the_largest_gets_the_stroke():
    labels = disc(4, centre=(12, 12)) | disc(9, centre=(40, 40)) | disc(5, centre=(12, 50))
    for seed in range(5):
        rows, columns = np.nonzero(draw(labels, seed) == 1)
        assert np.hypot(rows - 40, columns - 40).max() <= 9


def test_the_largest_part_is_so_before_erosion():
    # The strip is larger, the disc deeper: eroded, the disc would be larger.
    labels = np.zeros((64, 64), np.uint8)
    labels[4:8, 2:62] = 1
    labels |= disc(7, centre=(40, 40))
    assert (np.nonzero(draw(labels) == 1)[0] < 8).all()


def test_background_goes_round_the_structures_at_a_distance():
    labels = disc(12)
    away = ndimage.distance_transform_edt(labels == 0)
    for seed in range(20):
        background = draw(labels, seed) == 0
        assert 2 <= away[background].min() <= away[background].max() <= 3 + 3 + 1
        assert np.count_nonzero(background) > 0.6 * 2 * np.pi * 12 * 0.8


@pytest.mark.parametrize("away", [0, 1])
def test_background_that_goes_close_by_touches_no_structure(away):
    labels = disc(12)
    for seed in range(5):
        background = draw(labels, seed, away=away, spread=0) == 0
        assert background.any()
        assert not (background & (labels > 0)).any()


def test_an_empty_slice_gets_background_alone():
    drawn = draw(np.zeros((30, 40), np.uint8))
    assert set(np.unique(drawn)) == {0, UNLABELLED}
    assert 15 < np.count_nonzero(drawn == 0) <= 40


def test_a_single_pixel_is_drawn():
    labels = np.zeros((20, 20), np.uint8)
    labels[7, 9] = 2
    drawn = draw(labels)
    assert np.argwhere(drawn == 2).tolist() == [[7, 9]]
    assert (drawn == 0).any()


def test_a_slice_without_background_gets_none():
    assert set(np.unique(draw(np.full((12, 12), 1, np.uint8)))) == {1, UNLABELLED}


def test_little_background_is_drawn_where_no_curve_fits():
    labels = np.ones((12, 12), np.uint8)
    labels[:, 0] = 0
    drawn = draw(labels)
    assert (labels[drawn == 0] == 0).all()
    assert (drawn == 0).any()


def test_the_generator_alone_decides():
    labels = disc(12) | disc(5, label=2)
    hashes = [hashlib.sha256(draw(labels, seed).tobytes()).hexdigest() for seed in (1, 1, 2)]
    assert hashes[0] == hashes[1] != hashes[2]
    rng = np.random.default_rng(1)
    assert (strokes(labels, rng) != strokes(labels, rng)).any()


def test_labels_stay_as_they_are():
    labels = disc(12)
    before = labels.copy()
    draw(labels)
    np.testing.assert_array_equal(labels, before)


@pytest.mark.data
def test_two_to_five_percent_of_real_slices_are_drawn():
    folder = Path(os.environ["WARDROUND_DATA"]) / "hippocampus"
    shares = []
    for case in sorted(json.loads((folder / "split.json").read_text())["train"])[:6]:
        labels = read_labels(folder / "labelsTr" / f"{case}.nii.gz").array.astype(np.uint8)
        for axis in range(3):
            for index in np.flatnonzero((labels > 0).any(axis=tuple(other for other in range(3) if other != axis))):
                shares.append(np.mean(draw(np.take(labels, index, axis), int(index)) != UNLABELLED))
    assert 0.02 < np.mean(shares) < 0.05
