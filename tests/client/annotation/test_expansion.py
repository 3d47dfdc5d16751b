"""Seven points become seeds that are right, and stop at edges that a straight line crosses."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from wardround.client.annotation.annotator import SimulatedAnnotator, Truth
from wardround.client.annotation.clicks import seven_clicks
from wardround.client.annotation.expansion import (
    CONTRASTED,
    ExpansionSettings,
    SevenPoints,
    expand_points,
    reach_of,
    seven_points,
)
from wardround.client.annotation.geodesic import CONVENTIONS, exact_geodesic_distance
from wardround.client.annotation.prompts import UNLABELLED, PointPrompt
from wardround.client.annotation.seeds import normalised
from wardround.client.cases.nifti import read_image, read_labels
from wardround.client.cases.volume import Volume
from wardround.errors import UsageError

ISOTROPIC = (1.0, 1.0, 1.0)


def noise(shape, level=0.05, seed=0):
    return (level * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def cuboid(shape=(24, 26, 20), lower=(6, 7, 5), upper=(17, 18, 14), label=1):
    labels = np.zeros(shape, np.uint8)
    labels[tuple(slice(low, high + 1) for low, high in zip(lower, upper, strict=True))] = label
    return labels


def around(inner, lower, upper, label=1):
    """Seven points: `inner`, and six that share its other coordinates."""
    ends = []
    for axis in range(3):
        for value in (lower[axis], upper[axis]):
            place = list(inner)
            place[axis] = value
            ends.append(PointPrompt(tuple(place), 0))
    return PointPrompt(inner, label), *ends


# What the clicks are.


@pytest.mark.parametrize("spacing", [ISOTROPIC, (1.0, 1.0, 5.0)])
def test_clicks_lie_inside_and_just_beyond_the_ends(spacing):
    labels = cuboid()
    labels[10, 19:22, 9] = 1
    seven = seven_points(seven_clicks(labels, spacing), labels.shape)[0]
    beyond = 2 if spacing[2] == 1 else 1
    assert seven.inner.label == labels[seven.inner.index] == 1
    assert [point.label for point in seven.outer] == [0] * 6
    assert seven.box == (slice(4, 20), slice(5, 24), slice(5 - beyond, 15 + beyond))
    within = np.zeros(labels.shape, bool)
    within[seven.within(labels.shape)] = True
    assert not labels[~within].any()


def test_the_inner_click_is_the_deepest_voxel_in_millimetres():
    # 9 voxels of 1 mm along i, 5 of 4 mm along k; of the two balls the one that is deeper in millimetres holds it.
    labels = np.zeros((40, 20, 12), np.uint8)
    labels[2:13, 3:14, 5:6] = 1
    labels[20:29, 4:13, 2:7] = 1
    assert seven_clicks(labels, (1.0, 1.0, 4.0))[0].index[0] == 24


def test_a_structure_at_the_edge_of_the_image_is_clicked_beside():
    labels = cuboid(lower=(0, 7, 5), upper=(23, 18, 14))
    seven = seven_points(seven_clicks(labels, ISOTROPIC), labels.shape)[0]
    assert [point.index[0] for point in seven.outer[:2]] == [0, 23]
    assert all(point.label == labels[point.index] == 0 for point in seven.outer)
    assert seven.within(labels.shape)[0] == slice(0, 24)
    image = labels + noise(labels.shape)
    found = expand_points(image, ISOTROPIC, seven_clicks(labels, ISOTROPIC), CONTRASTED)
    assert (labels[found == 0] == 0).all()
    assert (labels[found == 1] == 1).all()


def test_parts_of_a_structure_may_have_their_own_points():
    labels = cuboid((50, 26, 20)) | cuboid((50, 26, 20), (30, 7, 5), (40, 18, 14))
    labels[45, 8, 6] = 1
    one, two = seven_clicks(labels, ISOTROPIC), seven_clicks(labels, ISOTROPIC, components=2)
    assert (len(one), len(two)) == (7, 14)
    boxes = [seven.box[0] for seven in seven_points(two, labels.shape)]
    assert boxes == [slice(4, 20), slice(28, 48)]
    image = labels + noise(labels.shape)
    found = expand_points(image, ISOTROPIC, two, CONTRASTED)
    assert (found[24, :, :] == 0).all()
    assert np.count_nonzero(found[:20] == 1) > 100
    assert np.count_nonzero(found[28:] == 1) > 100
    assert (expand_points(image, ISOTROPIC, one, CONTRASTED)[24] != 0).any()


def test_only_seven_voxels_of_the_annotation_are_read():
    labels = cuboid() | cuboid(lower=(9, 10, 8), upper=(12, 13, 11), label=2)
    annotator = SimulatedAnnotator({"case": Truth(Volume(labels, np.eye(4)))})
    points = annotator.points("case")
    expand_points(labels + noise(labels.shape), ISOTROPIC, points)
    assert annotator.told("case") == 7 * len(np.unique(labels[labels > 0]))


# What they become.


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_distances_are_those_of_dijkstra(convention):
    image, spacing = noise((16, 18, 12), 1.0), (1.0, 1.0, 2.5)
    inner, *outer = around((8, 9, 6), (3, 3, 2), (13, 14, 10))
    seven = SevenPoints(inner, tuple(outer))
    settings = ExpansionSettings(convention, 0.6, sweeps=100)
    reach = reach_of(image, spacing, seven, settings)
    assert reach.box == (slice(3, 14), slice(3, 15), slice(2, 11))
    crop = normalised(image[reach.box], spacing, settings.smoothing)
    inside, faces = np.zeros((2, *crop.shape), bool)
    inside[5, 6, 4] = True
    faces[[0, -1]] = faces[:, [0, -1]] = faces[:, :, [0, -1]] = True
    for found, start in ((reach.inner, inside), (reach.faces, faces)):
        exact = exact_geodesic_distance(crop, start, spacing, convention=convention, weight=0.6)
        np.testing.assert_allclose(found, exact, rtol=2e-5, atol=1e-6)


def test_weight_zero_is_the_straight_line_within_the_error_of_the_grid():
    image, spacing = noise((20, 22, 14), 1.0), (2.0, 2.0, 2.0)
    inner, *outer = around((10, 11, 7), (2, 2, 2), (17, 19, 12))
    reach = reach_of(image, spacing, SevenPoints(inner, tuple(outer)), ExpansionSettings(weight=0))
    # Lengths are in voxels of the finest axis.
    straight = ndimage.distance_transform_edt(reach.inner > 0)
    ratio = reach.inner[straight > 0] / straight[straight > 0]
    assert ratio.min() > 1 - 1e-5
    assert ratio.max() < 1.13


@pytest.mark.parametrize("settings", [ExpansionSettings(), CONTRASTED, ExpansionSettings("gradient-speed", 0.5)])
def test_a_thin_wall_holds_where_the_straight_line_leaks(settings):
    # Two rooms of one brightness and a wall of one voxel between them, near to the inner point.
    shape = (24, 20, 16)
    image = noise(shape)
    image[13] += 1
    points = around((11, 10, 8), (2, 2, 2), (21, 17, 13))
    beyond = np.indices(shape)[0] > 13

    def leaked(weight):
        chosen = ExpansionSettings(
            settings.convention, weight, smoothing=0, threshold=settings.threshold, rival=settings.rival
        )
        seeds = expand_points(image, ISOTROPIC, points, chosen) == 1
        assert np.count_nonzero(seeds & ~beyond) > 10
        return np.count_nonzero(seeds & beyond)

    # By length the room beyond the wall is as near as this one: the threshold is chosen so that its ball crosses.
    euclidean = ExpansionSettings(weight=0, smoothing=0, threshold=0.5, rival=1.0)
    assert np.count_nonzero((expand_points(image, ISOTROPIC, points, euclidean) == 1) & beyond) > 50
    assert leaked(settings.weight) == 0


def test_the_same_thresholds_leak_without_intensities_and_hold_with_them():
    shape = (24, 20, 16)
    image = noise(shape)
    image[13] += 1
    points = around((11, 10, 8), (2, 2, 2), (21, 17, 13))
    leaks = []
    for weight in (0.0, CONTRASTED.weight):
        settings = ExpansionSettings(weight=weight, smoothing=0, threshold=CONTRASTED.threshold, rival=CONTRASTED.rival)
        leaks.append(np.count_nonzero((expand_points(image, ISOTROPIC, points, settings) == 1)[14:]))
    assert leaks[0] > 20
    assert leaks[1] == 0


def test_a_bright_object_gets_more_right_seeds_than_by_length():
    grid = np.indices((40, 40, 20)) - np.array([18, 20, 9])[:, None, None, None]
    truth = (grid[0] ** 2 / 144 + grid[1] ** 2 / 36 + grid[2] ** 2 / 25 <= 1).astype(np.uint8)
    image = truth + noise(truth.shape, 0.2)
    points = seven_clicks(truth, ISOTROPIC)
    for settings in (ExpansionSettings(), CONTRASTED):
        seeds = expand_points(image, ISOTROPIC, points, settings) == 1
        assert truth[seeds].mean() > 0.9
    euclidean = ExpansionSettings(weight=0, threshold=CONTRASTED.threshold, rival=CONTRASTED.rival)
    by_length = expand_points(image, ISOTROPIC, points, euclidean) == 1
    assert np.count_nonzero(seeds & (truth == 1)) > 1.5 * np.count_nonzero(by_length & (truth == 1))


def test_without_the_faces_it_is_the_rule_of_the_paper():
    image, points = noise((20, 22, 14), 1.0), around((10, 11, 7), (2, 2, 2), (17, 19, 12))
    settings = ExpansionSettings("gradient-speed", 0.5, threshold=0.2, rival=1.0)
    found = expand_points(image, ISOTROPIC, points, settings)
    reach = reach_of(image, ISOTROPIC, seven_points(points, image.shape)[0], settings)
    seeds = reach.inner < 0.2 * reach.inner.max()
    np.testing.assert_array_equal((found[reach.box] == 1)[1:-1, 1:-1, 1:-1], seeds[1:-1, 1:-1, 1:-1])
    outside = np.ones(image.shape, bool)
    outside[3:17, 3:19, 3:12] = False
    assert (found[outside] == 0).all()
    assert set(np.unique(found)) == {0, 1, UNLABELLED}


def test_spacing_decides_how_far_a_label_reaches():
    image, points = np.zeros((31, 31, 31), np.float32), around((15, 15, 15), (2, 2, 2), (28, 28, 28))
    seeds = expand_points(image, (1.0, 1.0, 3.0), points, ExpansionSettings(weight=0, threshold=0.3, rival=1.0)) == 1
    reach = [np.ptp(where) for where in np.nonzero(seeds)]
    assert reach[0] == reach[1]
    assert reach[2] == pytest.approx(reach[0] / 3, abs=2)


def test_intensities_may_be_of_any_scale():
    labels = cuboid()
    image = labels + noise(labels.shape, 0.2)
    points = seven_clicks(labels, ISOTROPIC)
    one, other = (expand_points(scaled, ISOTROPIC, points) for scaled in (image, 700 * image + 50))
    assert np.mean(one != other) < 1e-3


def test_two_structures_claim_no_voxel_of_each_other():
    labels = cuboid(lower=(6, 7, 5), upper=(11, 18, 14)) + cuboid(lower=(12, 7, 5), upper=(17, 18, 14), label=2)
    image = (labels > 0) + noise(labels.shape)
    points = seven_clicks(labels, ISOTROPIC)
    assert {point.label for point in points} == {0, 1, 2}
    found = expand_points(image, ISOTROPIC, points, ExpansionSettings(threshold=0.9, rival=0.9))
    alone = [
        expand_points(image, ISOTROPIC, points[n : n + 7], ExpansionSettings(threshold=0.9, rival=0.9)) for n in (0, 7)
    ]
    both = (alone[0] == 1) & (alone[1] == 2)
    assert np.count_nonzero(both) > 20
    clicked = np.zeros(labels.shape, bool)
    clicked[tuple(np.array([point.index for point in points]).T)] = True
    assert (found[both & ~clicked] == UNLABELLED).all()
    assert (labels[found == 0] == 0).all()
    assert all(found[point.index] == point.label for point in points)


def test_a_single_slice_is_a_volume():
    labels = cuboid((30, 30, 1), (8, 8, 0), (20, 20, 0))
    image = labels + noise(labels.shape)
    found = expand_points(image, ISOTROPIC, seven_clicks(labels, ISOTROPIC), CONTRASTED)
    assert (labels[found == 1] == 1).all()
    assert np.count_nonzero(found == 1) > 50
    assert (labels[found == 0] == 0).all()


def test_flat_image_gives_no_more_than_a_ball():
    points = around((8, 8, 8), (2, 2, 2), (14, 14, 14))
    found = expand_points(
        np.zeros((17, 17, 17), np.float32), ISOTROPIC, points, ExpansionSettings("gradient-speed", 1.0)
    )
    assert found[8, 8, 8] == 1
    assert 1 <= np.count_nonzero(found == 1) < 200


# Which points are refused.


def test_the_order_within_seven_is_free():
    points = around((8, 8, 8), (2, 2, 2), (14, 14, 14))
    turned = (*points[3:], *points[:3])
    assert seven_points(turned, (17, 17, 17))[0].inner == points[0]
    image = noise((17, 17, 17), 1.0)
    np.testing.assert_array_equal(expand_points(image, ISOTROPIC, points), expand_points(image, ISOTROPIC, turned))


@pytest.mark.parametrize(
    "points",
    [
        (),
        around((8, 8, 8), (2, 2, 2), (14, 14, 14))[:6],
        (*around((8, 8, 8), (2, 2, 2), (14, 14, 14)), PointPrompt((1, 1, 1), 0)),
        around((2, 8, 8), (2, 2, 2), (14, 14, 14)),
        around((8, 8, 8), (9, 2, 2), (14, 14, 14)),
        around((8, 8, 8), (2, 2, 2), (14, 14, 7)),
        around((8, 8, 8), (2, 2, 2), (14, 14, 14), label=0),
        around((8, 8, 8), (2, 2, 2), (14, 14, 17)),
        around((8, 8, 8), (-1, 2, 2), (14, 14, 14)),
    ],
)
def test_points_that_enclose_nothing_are_refused(points):
    with pytest.raises(UsageError):
        expand_points(np.zeros((17, 17, 17), np.float32), ISOTROPIC, points)


@pytest.mark.parametrize("shares", [{"threshold": 0.0}, {"threshold": 1.5}, {"rival": -0.1}, {"rival": 2.0}])
def test_shares_out_of_range_are_refused(shares):
    with pytest.raises(UsageError):
        ExpansionSettings(**shares)


# On real images.


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "settings", "precision", "recall"),
    [("lgg_multisite", CONTRASTED, 0.86, 0.55), ("hippocampus", ExpansionSettings(), 0.86, 0.3)],
)
def test_seeds_on_real_images_are_right_and_follow_the_image(name, settings, precision, recall):
    folder = Path(os.environ["WARDROUND_DATA"]) / name
    figures, alike = [], []
    for case in sorted(json.loads((folder / "split.json").read_text())["train"])[:8]:
        image = read_image(folder / "imagesTr" / f"{case}.nii.gz")
        labels = read_labels(folder / "labelsTr" / f"{case}.nii.gz").array.astype(np.uint8)
        points = seven_clicks(labels, image.spacing)
        found = expand_points(image.array, image.spacing, points, settings)
        assert (labels[found == 0] == 0).all()
        for seven in seven_points(points, image.shape):
            seeds, own = found == seven.label, labels == seven.label
            figures.append((own[seeds].mean(), seeds[own].mean()))
            reach = reach_of(image.array, image.spacing, seven, settings)
            straight = ndimage.distance_transform_edt(reach.inner > 0, sampling=image.spacing)
            alike.append(np.corrcoef(reach.inner.ravel(), straight.ravel())[0, 1])
    assert np.mean(figures, axis=0)[0] > precision
    assert np.mean(figures, axis=0)[1] > recall
    assert np.mean(alike) < 0.95
