"""Deformed masks: another mask of the same structures, decided by the generator, in millimetres."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from wardround.client.learning.metrics import mean_dice
from wardround.client.synthesis.masks import DeformationSettings, LabelArray, deformed
from wardround.errors import DataError, UsageError

STILL = DeformationSettings(rotation=0, scale=0, shear=0, shift=0, elastic=0)
SIDES = pytest.mark.parametrize("sides", [(32, 40), (20, 24, 18)])


def organ(sides: tuple[int, ...]) -> LabelArray:
    """An ellipsoid in two parts, 2 and 5, off the middle."""
    places = np.indices(sides).reshape(len(sides), -1).T
    away = (places - np.array(sides) * 0.45) / (np.array(sides) * 0.3)
    inside = (np.square(away).sum(axis=1) < 1).reshape(sides)
    labels = np.where(inside, 2, 0).astype(np.uint8)
    labels[: int(sides[0] * 0.4)][inside[: int(sides[0] * 0.4)]] = 5
    return labels


@SIDES
def test_masks_differ_but_hold_the_same_structures_and_are_still_alike(sides: tuple[int, ...]) -> None:
    labels, rng = organ(sides), np.random.default_rng(0)
    changed = []
    for _ in range(20):
        found = deformed(labels, rng)
        assert found.shape == labels.shape
        assert found.dtype == np.uint8
        assert np.unique(found).tolist() == [0, 2, 5]
        changed.append(float((found != labels).mean()))
        assert 0.4 < mean_dice(found, labels, 6) < 1
    assert min(changed) > 0
    assert np.mean(changed) > 0.01


@SIDES
def test_the_generator_alone_decides(sides: tuple[int, ...]) -> None:
    labels = organ(sides)
    before = labels.copy()
    first, second, other = (deformed(labels, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert np.array_equal(labels, before)


def test_even_settings_that_change_nothing_give_another_mask() -> None:
    labels = organ((32, 40))
    found = deformed(labels, np.random.default_rng(0), STILL)
    assert not np.array_equal(found, labels)
    assert mean_dice(found, labels, 6) > 0.8


def test_a_structure_of_one_voxel_is_never_lost() -> None:
    labels = np.zeros((24, 24), dtype=np.uint8)
    labels[8:16, 8:16], labels[2, 20] = 1, 3
    rng = np.random.default_rng(0)
    for _ in range(60):
        found = deformed(labels, rng, DeformationSettings(shift=0.3))
        assert np.unique(found).tolist() == [0, 1, 3]
        assert not np.array_equal(found, labels)


def test_every_structure_keeps_its_share() -> None:
    labels, wild = organ((32, 40)), DeformationSettings(shift=1.0, scale=0.5, kept=0.9)
    rng = np.random.default_rng(0)
    for _ in range(30):
        found = deformed(labels, rng, wild)
        for label in (2, 5):
            # The last resort, one voxel aside, keeps this much too.
            assert (found == label).sum() >= 0.85 * (labels == label).sum()


def test_an_organ_that_the_image_cuts_off_still_reaches_the_border() -> None:
    labels = np.zeros((32, 32), dtype=np.uint8)
    labels[20:, 8:24] = 1
    inwards = replace(STILL, shift=0.2)
    rng = np.random.default_rng(0)
    assert all(deformed(labels, rng, inwards)[-1].any() for _ in range(20))


def test_deformation_is_in_millimetres() -> None:
    """With slices 8 mm apart the same bend moves far fewer voxels across slices than within them."""
    ball = (np.square(np.indices((48, 48)) - 23.5).sum(axis=0) < 15**2).astype(np.uint8)
    shifts = replace(STILL, shift=0.1)
    moved = []
    for seed in range(40):
        found = deformed(ball, np.random.default_rng(seed), shifts, spacing=(8.0, 1.0))
        moved.append(np.argwhere(found).mean(axis=0) - 23.5)
    along, across = np.abs(moved).mean(axis=0)
    assert across > 4 * along
    assert along > 0


def test_no_elastic_part_leaves_straight_lines_straight() -> None:
    labels = np.zeros((40, 40), dtype=np.uint8)
    labels[10:30, 12:28] = 1
    rng = np.random.default_rng(3)
    straight = deformed(labels, rng, replace(STILL, scale=0.2))
    rows, columns = np.flatnonzero(straight.any(axis=1)), np.flatnonzero(straight.any(axis=0))
    assert straight[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    bent = deformed(labels, rng, replace(STILL, elastic=0.1))
    rows, columns = np.flatnonzero(bent.any(axis=1)), np.flatnonzero(bent.any(axis=0))
    assert not bent[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


def test_a_smooth_bend_leaves_the_structure_in_one_piece() -> None:
    labels = np.zeros((40, 40), dtype=np.uint8)
    labels[10:30, 12:28] = 1
    rng = np.random.default_rng(0)
    assert all(ndimage.label(deformed(labels, rng, replace(STILL, elastic=0.08)))[1] == 1 for _ in range(20))


@pytest.mark.parametrize("value", [0, 1])
def test_a_mask_of_one_value_is_refused(value: int) -> None:
    with pytest.raises(DataError, match="one value"):
        deformed(np.full((8, 8), value, dtype=np.uint8), np.random.default_rng(0))


def test_a_mask_that_cannot_move_is_refused() -> None:
    labels = np.zeros((4, 1), dtype=np.uint8)
    labels[0], labels[3] = 1, 2
    with pytest.raises(DataError, match="without losing"):
        deformed(labels, np.random.default_rng(0), replace(STILL, attempts=0))


@pytest.mark.parametrize("spacing", [(1.0,), (1.0, 0.0), (1.0, 1.0, 1.0)])
def test_a_spacing_that_does_not_fit_is_refused(spacing: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="spacing"):
        deformed(organ((16, 16)), np.random.default_rng(0), spacing=spacing)
