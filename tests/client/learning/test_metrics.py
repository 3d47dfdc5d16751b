"""Metrics by hand: thresholded, in millimetres, and empty counts nothing."""

import math

import numpy as np

from wardround.client.learning.metrics import dice, mean_dice, score


def box(low: int, high: int) -> np.ndarray:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[low:high, 5:10, 5:10] = 1
    return labels


def test_dice_of_two_overlapping_boxes() -> None:
    assert math.isclose(dice(box(2, 6), box(4, 10), 1), 2 * 2 / (4 + 6))


def test_an_empty_prediction_and_a_false_alarm_count_zero_and_nothing_at_all_counts_as_unknown() -> None:
    empty = np.zeros((20, 20, 20), np.uint8)
    assert dice(empty, box(2, 6), 1) == 0.0
    assert dice(box(2, 6), empty, 1) == 0.0
    assert math.isnan(dice(empty, empty, 1))


def test_the_mean_skips_only_what_is_absent_on_both_sides() -> None:
    truth, ours = box(2, 6), box(2, 6)
    assert mean_dice(ours, truth, 3) == 1.0
    truth[15, 15, 15] = 2
    assert mean_dice(ours, truth, 3) == 0.5


def test_distances_are_in_millimetres_of_the_grid() -> None:
    result = score(box(2, 8), box(5, 11), 1, (2.0, 1.0, 1.0))
    assert result.hd95_mm == 6.0
    assert 0 < result.assd_mm < 6.0
    assert score(box(2, 8), box(5, 11), 1, (1.0, 1.0, 1.0)).hd95_mm == 3.0


def test_a_perfect_mask_that_touches_the_border_is_at_distance_zero() -> None:
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[0:4, 0:4, 0:4] = 1
    assert score(labels, labels, 1, (1.0, 1.0, 1.0)).assd_mm == 0.0


def test_distances_to_nothing_are_unknown() -> None:
    result = score(np.zeros((20, 20, 20), np.uint8), box(2, 6), 1, (1.0, 1.0, 1.0))
    assert result.dice == 0.0
    assert math.isnan(result.hd95_mm)
    assert math.isnan(result.assd_mm)
