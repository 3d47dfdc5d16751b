"""Seeds spread along the image and stop at its edges; what was drawn stays as it was drawn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from wardround.client.annotation.geodesic import CONVENTIONS
from wardround.client.annotation.prompts import UNLABELLED, Annotations, ExtentPrompt, PointPrompt, scribbles_of
from wardround.client.annotation.propagation import PropagationSettings, propagate
from wardround.client.annotation.seeds import SeedSettings, beyond, expand, normalised, with_background
from wardround.client.cases.phantoms import draw_phantom
from wardround.client.cases.volume import Volume
from wardround.errors import UsageError

ISOTROPIC = (1.0, 1.0, 1.0)


def seeds_at(shape, points):
    seeds = np.full(shape, UNLABELLED, dtype=np.uint8)
    for place, label in points.items():
        seeds[place] = label
    return seeds


def noise(shape, level=0.05, seed=0):
    return (level * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def dice(one, other):
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


def bright_ball(shape=(28, 28, 16), radius=6.0, spacing=(1.0, 1.0, 2.0)):
    centre = [side // 2 for side in shape]
    grid = np.indices(shape)
    away = np.sqrt(sum(((n - c) * step) ** 2 for n, c, step in zip(grid, centre, spacing, strict=True)))
    truth = away <= radius
    return (truth + noise(shape)).astype(np.float32), truth, tuple(centre), spacing


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_thin_wall_holds_where_the_euclidean_distance_leaks(convention):
    # Two rooms of one brightness, parted by a wall of one voxel. The seed of the left room stands at the wall, that of
    # the right one far behind: by length alone the left label takes the near part of the right room.
    shape = (30, 16, 10)
    image = noise(shape)
    image[12] += 1
    seeds = seeds_at(shape, {(10, 8, 5): 1, (27, 8, 5): 0})
    right = np.indices(shape)[0] > 12
    leaked = {}
    for weight in (0.0, 0.5 if convention == "gradient-speed" else SeedSettings().weight):
        settings = SeedSettings(convention=convention, weight=weight, smoothing=0.0)
        labels = expand(image, ISOTROPIC, seeds, 2, settings)[0].argmax(axis=0)
        leaked[weight == 0] = np.mean(labels[right] == 1)
        assert np.mean(labels[~right & (np.indices(shape)[0] < 12)] == 1) > 0.95
    assert leaked[True] > 0.3
    assert leaked[False] < 0.02


def test_the_defaults_hold_a_thin_wall_too():
    shape = (30, 16, 10)
    image = noise(shape)
    image[12] += 1
    labels = expand(image, ISOTROPIC, seeds_at(shape, {(10, 8, 5): 1, (27, 8, 5): 0}), 2)[0].argmax(axis=0)
    assert np.mean(labels[13:] == 1) < 0.02


def test_one_point_in_a_bright_object_gives_its_mask():
    image, truth, centre, spacing = bright_ball()
    found = expand(image, spacing, seeds_at(image.shape, {centre: 1}), 2)[0].argmax(axis=0)
    assert dice(found == 1, truth) > 0.9
    euclidean = expand(image, spacing, seeds_at(image.shape, {centre: 1}), 2, SeedSettings(weight=0))[0].argmax(axis=0)
    assert dice(found == 1, truth) > dice(euclidean == 1, truth) + 0.05


def test_probabilities_confidence_and_hard_seeds():
    image = noise((9, 10, 8), 1.0)
    seeds = seeds_at(image.shape, {(1, 1, 1): 0, (4, 5, 4): 1, (7, 8, 6): 3})
    probabilities, confidence = expand(image, (1.0, 1.0, 3.0), seeds, 4)
    assert probabilities.dtype == confidence.dtype == np.float32
    assert probabilities.shape == (4, 9, 10, 8)
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-5)
    assert probabilities[2].max() == 0
    for place, label in (((1, 1, 1), 0), ((4, 5, 4), 1), ((7, 8, 6), 3)):
        assert probabilities[(label, *place)] == 1
        assert confidence[place] == 1
    assert confidence.min() >= 0
    assert confidence.max() == 1


def test_confidence_falls_with_distance_and_where_labels_are_equally_near():
    image = np.zeros((1, 1, 31), dtype=np.float32)
    seeds = seeds_at(image.shape, {(0, 0, 0): 0, (0, 0, 20): 1})
    confidence = expand(image, ISOTROPIC, seeds, 2, SeedSettings(weight=0))[1][0, 0]
    assert confidence[10] == confidence[:21].min()
    assert confidence[10] <= 0.5
    assert (np.diff(confidence[20:]) < 0).all()


def test_without_any_seed_there_is_background_and_no_confidence():
    probabilities, confidence = expand(noise((4, 5, 6)), ISOTROPIC, seeds_at((4, 5, 6), {}), 3)
    assert (probabilities[0] == 1).all()
    assert (confidence == 0).all()


@settings(max_examples=25)
@given(st.floats(0.01, 1000), st.floats(-500, 500))
def test_scale_and_offset_of_intensities_change_nothing(scale, offset):
    image = noise((8, 9, 7), 1.0)
    seeds = seeds_at(image.shape, {(1, 1, 1): 0, (6, 7, 5): 1})
    plain = expand(image, ISOTROPIC, seeds, 2)[0]
    changed = expand((image * scale + offset).astype(np.float32), ISOTROPIC, seeds, 2)[0]
    np.testing.assert_allclose(changed, plain, atol=0.02)


def test_a_few_bright_voxels_do_not_set_the_scale():
    image = noise((12, 12, 12), 1.0)
    spoilt = image.copy()
    spoilt[0, 0, :3] = 1e6
    np.testing.assert_allclose(normalised(spoilt, ISOTROPIC, 0)[1:], normalised(image, ISOTROPIC, 0)[1:], atol=0.1)
    assert np.isfinite(normalised(np.full((3, 3, 3), 7, np.float32), ISOTROPIC, 0)).all()


def test_unit_of_spacing_changes_nothing():
    image, _, centre, _ = bright_ball()
    seeds = seeds_at(image.shape, {centre: 1})
    fine, coarse = (expand(image, spacing, seeds, 2)[0] for spacing in ((0.5, 0.5, 1.0), (5.0, 5.0, 10.0)))
    np.testing.assert_allclose(fine, coarse, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_flipping_flips_the_vote(axis):
    image = ndimage.gaussian_filter(noise((10, 11, 9), 1.0), 1)
    seeds = seeds_at(image.shape, {(2, 2, 2): 0, (7, 8, 5): 1, (3, 8, 6): 2})
    settings = SeedSettings(sweeps=50)
    straight = expand(image, (1.0, 1.5, 3.0), seeds, 3, settings)[0]
    flipped = expand(np.flip(image, axis), (1.0, 1.5, 3.0), np.flip(seeds, axis), 3, settings)[0]
    np.testing.assert_allclose(np.flip(flipped, axis + 1), straight, atol=1e-4)


def test_moving_object_and_seeds_moves_the_vote():
    image, _, centre, spacing = bright_ball((32, 30, 16))
    background = {(1, 1, 1): 0, (30, 28, 14): 0}
    here = expand(image, spacing, seeds_at(image.shape, {centre: 1, **background}), 2)[0].argmax(axis=0)
    step = (3, -2, 1)
    moved_image, place = np.roll(image, step, (0, 1, 2)), tuple(c + s for c, s in zip(centre, step, strict=True))
    there = expand(moved_image, spacing, seeds_at(image.shape, {place: 1, **background}), 2)[0].argmax(axis=0)
    assert dice(np.roll(here, step, (0, 1, 2)) == 1, there == 1) > 0.97


class TestBackground:
    def test_drawn_background_is_left_as_it_is(self):
        seeds = seeds_at((6, 6, 6), {(3, 3, 3): 1, (2, 2, 2): 0})
        assert np.array_equal(with_background(seeds), seeds)

    def test_the_rim_is_background_but_not_a_face_that_the_structure_touches(self):
        found = with_background(seeds_at((6, 7, 8), {(3, 3, 0): 1}))
        assert found[3, 3, 0] == 1
        assert (found[2:4, 2:5, 0] != 0).all()
        assert (found[:, :, 7] == 0).all()
        assert (found[0, :, 4] == 0).all()
        assert (found[1:5, 1:6, 1:7] == UNLABELLED).all()

    def test_a_single_slice_has_no_inside(self):
        found = with_background(seeds_at((6, 7, 1), {(3, 3, 0): 1}))
        assert (found[1:5, 1:6, 0] != 0).all()
        assert (found[0] == 0).all()

    def test_where_every_face_is_touched_the_edges_are_background(self):
        seeds = seeds_at(
            (5, 5, 5), {(0, 2, 2): 1, (4, 2, 2): 1, (2, 0, 2): 1, (2, 4, 2): 1, (2, 2, 0): 1, (2, 2, 4): 1}
        )
        found = with_background(seeds)
        assert found[0, 0, 2] == 0
        assert found[0, 1, 2] == UNLABELLED
        assert (found[seeds == 1] == 1).all()

    def test_beyond_an_extent_lie_the_outermost_voxels_of_the_crop(self):
        rim = beyond((6, 7, 8), (slice(1, 5), slice(0, 7), slice(2, 8)))
        assert rim[0].all()
        assert rim[5].all()
        assert rim[:, :, 0].all()
        assert not rim[1:5, :, 1:].any()


@pytest.mark.parametrize(
    ("image", "seeds", "labels"),
    [
        (noise((3, 3, 3)), seeds_at((3, 3, 4), {}), 2),
        (noise((3, 3, 3)), seeds_at((3, 3, 3), {(1, 1, 1): 2}), 2),
        (noise((3, 3, 3)), seeds_at((3, 3, 3), {(1, 1, 1): 0}), 1),
        (np.full((3, 3, 3), np.nan, np.float32), seeds_at((3, 3, 3), {(1, 1, 1): 1}), 2),
    ],
)
def test_what_does_not_fit_is_refused(image, seeds, labels):
    with pytest.raises(UsageError):
        expand(image, ISOTROPIC, seeds, labels)


def phantom_points(truth):
    """One click in the deepest voxel of each structure."""
    points = []
    for label in (1, 2):
        depth = ndimage.distance_transform_edt(np.pad(truth == label, 1))[1:-1, 1:-1, 1:-1]
        points.append(PointPrompt(tuple(int(n) for n in np.unravel_index(depth.argmax(), depth.shape)), label))
    return points


def extent_of(mask):
    where = np.nonzero(mask)
    return ExtentPrompt(tuple(int(n.min()) for n in where), tuple(int(n.max()) for n in where))


class TestPropagation:
    """Strokes and points reach the proxy through `propagate`."""

    def test_two_points_and_an_extent_give_a_usable_mask_of_a_phantom(self):
        scores = []
        for seed in range(4):
            image, labels = draw_phantom(np.random.default_rng(seed))
            truth = labels.array
            annotations = Annotations(extent=extent_of(truth > 0)).adding(*phantom_points(truth))
            scores.append(dice(propagate(image, annotations, 3).labels > 0, truth > 0))
        assert np.mean(scores) > 0.6

    def test_strokes_alone_give_a_mask_and_stay_as_drawn(self):
        array, truth, centre, spacing = bright_ball()
        strokes = np.full(truth.shape, UNLABELLED, dtype=np.uint8)
        strokes[centre[0] - 3 : centre[0] + 4, centre[1], centre[2]] = 1
        strokes[2, 4:24, centre[2]] = 0
        strokes[25, 4:24, centre[2]] = 0
        image = Volume(array, np.diag([*spacing, 1.0]))
        proxy = propagate(image, Annotations().adding(*scribbles_of(strokes)), 2, settings=PropagationSettings())
        drawn = strokes != UNLABELLED
        assert np.array_equal(proxy.annotated, drawn)
        assert np.array_equal(proxy.labels[drawn], strokes[drawn])
        assert (proxy.confidence[drawn] == 1).all()
        assert dice(proxy.labels > 0, truth) > 0.8
