"""Targets: between proxy and frozen prediction by the named law, hard where it was drawn, soft at unsure borders."""

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from wardround.client.annotation.annotator import Truth
from wardround.client.annotation.prompts import UNLABELLED, PointPrompt
from wardround.client.annotation.propagation import ProxyMask
from wardround.client.cases.volume import Volume
from wardround.client.learning.targets import (
    make_target,
    point_seeds,
    proxy_share,
    soften_border,
    spread_labels,
    voxel_weights,
    with_seeds,
)
from wardround.strategies.plan import FusionSchedule

SHAPE = (10, 12, 8)
UNIT = (1.0, 1.0, 1.0)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def soft(seed: int, classes: int = 3) -> np.ndarray:
    values = np.random.default_rng(seed).random((classes, *SHAPE)).astype(np.float32)
    return values / values.sum(0)


def proxy(seed: int = 0) -> ProxyMask:
    """Soft everywhere but on the drawn slice k = 3."""
    probabilities = soft(seed)
    annotated = np.zeros(SHAPE, bool)
    annotated[:, :, 3] = True
    drawn = np.random.default_rng(seed).integers(3, size=SHAPE[:2])
    probabilities[:, :, :, 3] = drawn == np.arange(3)[:, None, None]
    confidence = np.random.default_rng(seed + 1).random(SHAPE).astype(np.float32)
    confidence[annotated] = 1
    return ProxyMask(probabilities, annotated, confidence)


def half(confidence: float) -> ProxyMask:
    """Two labels that meet in the plane between j = 5 and j = 6; nothing drawn."""
    labels = np.zeros(SHAPE, bool)
    labels[:, 6:] = True
    probabilities = np.stack([~labels, labels]).astype(np.float32)
    return ProxyMask(probabilities, np.zeros(SHAPE, bool), np.full(SHAPE, confidence, np.float32))


def share(schedule: FusionSchedule, fusion: float, progress: float, trust: float = 0.0) -> float:
    found = proxy_share(schedule, fusion, progress, trust, np.ones(SHAPE, np.float32))
    assert isinstance(found, float)
    return found


def test_linear_falls_from_one_to_fusion() -> None:
    assert [share("linear", 0.6, x) for x in (0, 0.5, 1)] == pytest.approx([1, 0.8, 0.6])


def test_constant_is_constant_once_there_is_something_to_say() -> None:
    assert [share("constant", 0.7, x) for x in (0, 0.01, 1)] == [1, 0.7, 0.7]


@pytest.mark.parametrize("x", [0.05, 0.3, 0.5, 0.9, 1.0])
def test_both_sigmoids_are_the_papers_at_its_own_fusion(x: float) -> None:
    assert share("sigmoid", sigmoid(2), x) == pytest.approx(sigmoid(4 * (x - 0.5)))
    assert share("inverse-sigmoid", 1 - sigmoid(2), x) == pytest.approx(1 - sigmoid(4 * (x - 0.5)))


@pytest.mark.parametrize("schedule", ["linear", "constant", "sigmoid", "inverse-sigmoid"])
def test_fusion_names_the_share_at_the_end_of_the_stream(schedule: FusionSchedule) -> None:
    assert share(schedule, 0.35, 1.0) == pytest.approx(0.35)


def test_trust_alone_decides_under_trust() -> None:
    assert [share("trust", 0.6, 1, trust) for trust in (0, 0.5, 1)] == pytest.approx([1, 0.8, 0.6])
    assert share("trust", 0.6, 0, 1) == pytest.approx(0.6)


def test_confidence_gives_a_map_that_follows_the_proxy_where_it_is_sure() -> None:
    confidence = np.linspace(0, 1, 5, dtype=np.float32).reshape(5, 1, 1)
    found = proxy_share("confidence", 0.2, 0.5, 0, confidence)
    assert np.allclose(np.ravel(found), [0.6, 0.7, 0.8, 0.9, 1.0])


@given(
    st.sampled_from(get_args(FusionSchedule)),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1, width=32),
)
def test_a_share_is_a_share(schedule: FusionSchedule, fusion: float, x: float, trust: float, sure: float) -> None:
    found = np.asarray(proxy_share(schedule, fusion, x, trust, np.full((1, 1, 1), sure, np.float32)))
    assert (found >= -1e-6).all()
    assert (found <= 1 + 1e-6).all()
    if schedule != "sigmoid":
        assert (found >= fusion - 1e-6).all()


def test_a_target_is_soft_follows_the_frozen_prediction_and_keeps_the_drawing() -> None:
    one = proxy()
    before = soft(7)
    target = make_target(one, before, 0.75, boundary_smoothing=0, spacing=UNIT)
    assert target.dtype == np.float16
    assert np.allclose(target[..., :3], (0.75 * one.probabilities + 0.25 * before)[..., :3], atol=1e-3)
    assert np.array_equal(target[..., 3], one.probabilities[..., 3])
    assert ((target > 0) & (target < 1)).mean() > 0.5
    other = make_target(one, soft(8), 0.75, boundary_smoothing=0, spacing=UNIT)
    assert not np.array_equal(target, other)
    assert np.array_equal(target[..., 3], other[..., 3])


def test_a_share_of_one_is_the_proxy_whatever_was_predicted() -> None:
    one = proxy()
    target = make_target(one, soft(7), 1.0, boundary_smoothing=0, spacing=UNIT)
    assert np.array_equal(target, one.probabilities.astype(np.float16))


def test_a_map_of_shares_mixes_each_voxel_by_its_own() -> None:
    one = proxy()
    before = soft(7)
    weights = np.zeros(SHAPE, np.float32)
    weights[2:] = 1
    target = make_target(one, before, weights, boundary_smoothing=0, spacing=UNIT)
    elsewhere = ~one.annotated
    assert np.allclose(target[:, :2][:, elsewhere[:2]], before[:, :2][:, elsewhere[:2]], atol=1e-3)
    assert np.allclose(target[:, 2:], one.probabilities[:, 2:], atol=1e-3)


@pytest.mark.parametrize("width", [0.0, 1.5])
def test_a_target_sums_to_one_and_changes_none_of_its_inputs(width: float) -> None:
    one = proxy()
    before = soft(7)
    copies = one.probabilities.copy(), before.copy(), one.confidence.copy()
    target = make_target(one, before, 0.9, boundary_smoothing=width, spacing=(1.0, 1.0, 3.0))
    assert np.allclose(target.astype(np.float32).sum(0), 1, atol=2e-3)
    assert np.array_equal(one.probabilities, copies[0])
    assert np.array_equal(before, copies[1])
    assert np.array_equal(one.confidence, copies[2])
    assert np.array_equal(target[..., 3], one.probabilities[..., 3])


def test_an_unsure_border_is_softened_over_the_width_and_not_beyond() -> None:
    one = half(confidence=0.0)
    softened = soften_border(one.probabilities, one, 2.0, UNIT)
    profile = softened[1, 4, :, 4]
    assert np.array_equal(profile[:3], [0, 0, 0])
    assert np.array_equal(profile[9:], [1, 1, 1])
    inside = profile[3:9]
    assert ((inside > 0) & (inside < 1)).all()
    assert (np.diff(inside) > 0).all()
    assert profile[5] + profile[6] == pytest.approx(1, abs=1e-5)
    wide = ndimage.gaussian_filter(one.probabilities[1], 1.0, mode="nearest", truncate=3.0)
    assert np.allclose(inside, wide[4, 3:9, 4], atol=1e-6)


def test_a_sure_border_stays_as_it_is_and_a_half_sure_one_half() -> None:
    sure, unsure, between = half(1.0), half(0.0), half(0.5)
    assert np.array_equal(soften_border(sure.probabilities, sure, 2.0, UNIT), sure.probabilities)
    whole = soften_border(unsure.probabilities, unsure, 2.0, UNIT) - unsure.probabilities
    some = soften_border(between.probabilities, between, 2.0, UNIT) - between.probabilities
    assert np.allclose(some, whole / 2, atol=1e-6)


def test_the_width_is_in_voxels_of_the_finest_axis() -> None:
    """A border across an axis of thrice the spacing: two fine voxels do not reach its second neighbour."""
    one = half(0.0)
    fine = soften_border(one.probabilities, one, 2.0, (1.0, 1.0, 1.0))[1, 4, :, 4]
    coarse = soften_border(one.probabilities, one, 2.0, (1.0, 3.0, 1.0))[1, 4, :, 4]
    assert (fine != one.probabilities[1, 4, :, 4]).sum() == 6
    assert np.flatnonzero(coarse != one.probabilities[1, 4, :, 4]).tolist() == [5, 6]
    blurred = ndimage.gaussian_filter1d(one.probabilities[1, 4, :, 4], 1 / 3, mode="nearest", truncate=3.0)
    assert np.allclose(coarse, blurred, atol=1e-6)
    scaled = soften_border(one.probabilities, one, 2.0, (0.5, 1.5, 0.5))[1, 4, :, 4]
    assert np.allclose(coarse, scaled, atol=1e-6)


@pytest.mark.parametrize(("spacing", "touched"), [((1.0, 1.0, 1.0), range(3, 9)), ((1.0, 3.0, 1.0), (5, 6))])
def test_away_from_the_border_a_target_stays_as_it_is(spacing: tuple[float, float, float], touched: range) -> None:
    one = half(0.0)
    target = soft(3, classes=2)
    changed = (soften_border(target, one, 2.0, spacing) != target).any(axis=(0, 1, 3))
    assert np.flatnonzero(changed).tolist() == list(touched)


def test_a_case_of_one_label_has_no_border() -> None:
    empty = ProxyMask(
        np.stack([np.ones(SHAPE), np.zeros(SHAPE)]).astype(np.float32),
        *(np.zeros(SHAPE, t) for t in (bool, np.float32)),
    )
    assert np.array_equal(soften_border(empty.probabilities, empty, 2.0, UNIT), empty.probabilities)


def test_drawn_voxels_weigh_more_and_unsure_ones_less() -> None:
    one = proxy()
    weight = voxel_weights(one, one.annotated, annotated_weight=4, confidence_weight=0.5, supervision="proxy")
    assert weight.dtype == np.float16
    assert (weight[..., 3] == 5).all()
    away = ~one.annotated
    assert np.allclose(weight[away], 0.5 + 0.5 * one.confidence[away] ** 16, atol=1e-3)
    plain = voxel_weights(one, one.annotated, annotated_weight=4, confidence_weight=0, supervision="proxy")
    assert (plain[away] == 1).all()


def test_with_confidence_a_voxel_as_good_as_a_guess_counts_nothing_and_a_sure_one_in_full() -> None:
    one = half(0.0)
    for confidence, low, high in ((0.5, 0.0, 0.001), (0.8, 0.01, 0.05), (0.95, 0.4, 0.5), (1.0, 1.0, 1.0)):
        sure = ProxyMask(one.probabilities, one.annotated, np.full(SHAPE, confidence, np.float32))
        weight = voxel_weights(sure, one.annotated, annotated_weight=4, confidence_weight=1, supervision="proxy")
        assert ((weight >= low) & (weight <= high)).all()


def test_under_partial_supervision_nothing_but_the_drawing_counts() -> None:
    one = proxy()
    weight = voxel_weights(one, one.annotated, annotated_weight=4, confidence_weight=1, supervision="partial")
    assert set(np.unique(weight)) == {0, 5}
    assert np.array_equal(weight == 5, one.annotated)


@given(st.integers(0, 2**31), st.sampled_from([UNIT, (0.5, 1.0, 3.0)]))
def test_beside_what_was_drawn_lies_the_target_of_the_nearest_drawn_voxel(
    seed: int, spacing: tuple[float, float, float]
) -> None:
    rng = np.random.default_rng(seed)
    target, known = soft(seed).astype(np.float16), rng.random(SHAPE) < 0.02
    known[tuple(rng.integers(SHAPE))] = True
    copy = target.copy()
    found = spread_labels(target, known, spacing)
    assert found.dtype == np.float16
    assert np.array_equal(target, copy)
    assert np.array_equal(found[:, known], target[:, known])
    drawn = np.argwhere(known)
    for voxel in rng.integers(SHAPE, size=(20, 3)):
        distances = np.linalg.norm((drawn - voxel) * spacing, axis=1)
        nearest = drawn[distances <= distances.min() + 1e-9]
        assert any(np.array_equal(found[:, *voxel], target[:, *other]) for other in nearest)


def test_with_nothing_or_everything_known_a_target_stays_as_it_is() -> None:
    target = soft(0).astype(np.float16)
    for known in (np.zeros(SHAPE, bool), np.ones(SHAPE, bool)):
        assert np.array_equal(spread_labels(target, known, UNIT), target)


def test_dense_labels_weigh_by_what_the_budget_asked_for() -> None:
    dense = ProxyMask(soft(0), np.ones(SHAPE, bool), np.ones(SHAPE, np.float32))
    asked = np.zeros(SHAPE, bool)
    asked[2] = True
    weight = voxel_weights(dense, asked, annotated_weight=4, confidence_weight=1, supervision="dense")
    assert np.array_equal(weight == 5, asked)
    assert (weight[~asked] == 1).all()


def test_seven_points_spread_and_any_other_says_what_lies_under_it() -> None:
    labels = np.zeros((16, 18, 14), np.uint8)
    labels[5:11, 5:13, 4:10] = 1
    noise = np.random.default_rng(0).normal(0, 0.2, labels.shape)
    image = Volume((4 * labels + noise).astype(np.float32), np.eye(4))
    seven = Truth(Volume(labels, np.eye(4))).points()
    seeds = point_seeds(image, seven)
    assert np.count_nonzero(seeds == 1) > 20
    assert (labels[seeds == 1] == 1).mean() > 0.9
    assert not labels[seeds == 0].any()
    alone = PointPrompt((8, 6, 5), 1)
    for points in ((*seven, alone), (PointPrompt((0, 0, 0), 0), *seven, alone, *[PointPrompt((1, 1, 1), 0)] * 6)):
        more = point_seeds(image, points)
        assert more[8, 6, 5] == 1
        differs = (more != seeds) & (seeds != 1)
        assert np.count_nonzero(differs) <= 1
    lone = point_seeds(image, seven[:6])
    assert np.count_nonzero(lone != UNLABELLED) == 6
    assert (point_seeds(image, ()) == UNLABELLED).all()


def test_sevens_of_a_person_are_found_beside_corrections_and_half_sets() -> None:
    labels = np.zeros((20, 18, 14), np.uint8)
    labels[2:8, 5:13, 4:10] = 1
    labels[11:17, 4:12, 3:9] = 2
    noise = np.random.default_rng(0).normal(0, 0.2, labels.shape)
    image = Volume((4 * labels + noise).astype(np.float32), np.eye(4))
    points = Truth(Volume(labels, np.eye(4))).points()
    one, two, correction = points[:7], points[7:], PointPrompt((4, 8, 6), 1)
    seeds = point_seeds(image, points)
    corrected = seeds.copy()
    corrected[correction.index] = 1
    assert np.array_equal(point_seeds(image, (*one, correction, *two)), corrected)
    assert np.array_equal(point_seeds(image, (*one[:4], *two, *one[4:])), seeds), "somebody came back to it"
    for begun in range(1, 7):
        some = point_seeds(image, (*one, *two[:begun]))
        where_two = labels == 2
        clicked = {point.index for point in (*one, *two[:begun]) if point.label == 0}
        assert not (some[where_two] == 0).any(), "a structure that is begun is not background"
        assert np.count_nonzero(some == 0) == len(clicked)
        assert some[two[0].index] == 2
        assert np.array_equal(some == 1, seeds == 1), "what is complete is spread"


def test_what_was_drawn_holds_over_what_points_spread_to() -> None:
    one = proxy()
    seeds = np.full(SHAPE, UNLABELLED, np.uint8)
    seeds[:, :5] = 2
    found = with_seeds(one, seeds)
    drawn = one.annotated
    assert np.array_equal(found.probabilities[:, drawn], one.probabilities[:, drawn])
    assert np.array_equal(found.annotated, drawn | (seeds == 2))
    assert (found.probabilities[2][(seeds == 2) & ~drawn] == 1).all()
    assert (found.confidence[found.annotated] == 1).all()
    assert np.array_equal(found.probabilities[:, ~found.annotated], one.probabilities[:, ~found.annotated])
    assert not one.annotated[0, 0, 0], "the proxy itself is not written to"
