"""Raster scans against Dijkstra's algorithm, lengths worked by hand, and the symmetries of a distance."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from wardround.client.annotation.geodesic import CONVENTIONS, exact_geodesic_distance, geodesic_distance
from wardround.errors import UsageError

ENOUGH = 200


def noise(shape, seed=0, smooth=0.0):
    image = np.random.default_rng(seed).standard_normal(shape)
    return ndimage.gaussian_filter(image, smooth).astype(np.float32) if smooth else image.astype(np.float32)


def at(shape, *places):
    seeds = np.zeros(shape, dtype=bool)
    for place in places:
        seeds[place] = True
    return seeds


@pytest.mark.parametrize("convention", CONVENTIONS)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 12)] * 3),
    weight=st.floats(0, 1),
    contrast=st.sampled_from([0.0, 0.01, 1.0, 300.0]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60)
def test_scans_end_where_dijkstra_does(convention, shape, spacing, weight, contrast, seed):  # noqa: PLR0917
    rng = np.random.default_rng(seed)
    image = (contrast * rng.standard_normal(shape)).astype(np.float32)
    seeds = rng.random(shape) < 0.1
    seeds.flat[rng.integers(seeds.size)] = True
    found = geodesic_distance(image, seeds, spacing, convention=convention, weight=weight, sweeps=ENOUGH)
    exact = exact_geodesic_distance(image, seeds, spacing, convention=convention, weight=weight)
    np.testing.assert_allclose(found, exact, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_few_scans_are_never_too_short_and_get_better(convention):
    image, seeds, spacing = noise((18, 20, 16), smooth=0.7), at((18, 20, 16), (3, 4, 5), (15, 2, 9)), (1.0, 0.8, 3.0)
    exact = exact_geodesic_distance(image, seeds, spacing, convention=convention, weight=0.9)
    before = np.full(image.shape, np.inf)
    for sweeps in (1, 2, 4, ENOUGH):
        found = geodesic_distance(image, seeds, spacing, convention=convention, weight=0.9, sweeps=sweeps)
        assert (found >= exact * (1 - 1e-5)).all()
        assert (found <= before).all()
        before = found
    np.testing.assert_allclose(before, exact, rtol=2e-5)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_cost_of_one_step(convention):
    image = np.array([0.0, 2.0], dtype=np.float32).reshape(2, 1, 1)
    for method in (geodesic_distance, exact_geodesic_distance):
        found = method(image, at((2, 1, 1), (0, 0, 0)), (3.0, 1.0, 1.0), convention=convention, weight=0.25)
        expected = {"additive": 0.75 * 3 + 0.25 * 2, "gradient-speed": 3 / (0.75 + 0.25 / (2 + 1e-5))}
        assert found[1, 0, 0] == pytest.approx(expected[convention], rel=1e-6)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_weight_zero_is_the_length_of_the_path_over_26_neighbours(convention):
    # From a corner to (a, b, c) with a ≥ b ≥ c: c steps along the space diagonal, b - c along a face's, the rest
    # straight.
    shape = (12, 12, 12)
    found = geodesic_distance(noise(shape), at(shape, (0, 0, 0)), (2.0, 2.0, 2.0), convention=convention, weight=0)
    c, b, a = np.sort(np.indices(shape), axis=0)
    np.testing.assert_allclose(found, 2 * (c * np.sqrt(3) + (b - c) * np.sqrt(2) + (a - b)), rtol=1e-5)


def test_weight_zero_is_within_the_known_error_of_the_straight_line():
    shape, spacing = (20, 26, 9), (1.0, 1.0, 1.0)
    seeds = at(shape, (4, 4, 4), (17, 20, 2))
    found = geodesic_distance(noise(shape), seeds, spacing, weight=0)
    straight = ndimage.distance_transform_edt(~seeds, sampling=spacing)
    far = straight > 0
    ratio = found[far] / straight[far]
    assert ratio.min() >= 1 - 1e-5
    assert ratio.max() <= 1.13


def test_anisotropic_spacing_is_length():
    shape = (5, 5, 5)
    found = geodesic_distance(np.zeros(shape, np.float32), at(shape, (2, 2, 2)), (1.0, 2.0, 10.0), weight=0)
    assert found[4, 2, 2] == pytest.approx(2)
    assert found[2, 4, 2] == pytest.approx(4)
    assert found[2, 2, 4] == pytest.approx(20)
    assert found[3, 3, 3] == pytest.approx(np.sqrt(1 + 4 + 100))


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_flipping_and_turning_the_image_flips_and_turns_the_distance(convention):
    image, seeds, spacing = noise((9, 10, 11), smooth=1), at((9, 10, 11), (2, 3, 4), (8, 0, 1)), (1.0, 2.0, 3.0)
    options = {"convention": convention, "weight": 0.7, "sweeps": ENOUGH}
    straight = geodesic_distance(image, seeds, spacing, **options)
    for axis in range(3):
        flipped = geodesic_distance(np.flip(image, axis), np.flip(seeds, axis), spacing, **options)
        np.testing.assert_allclose(np.flip(flipped, axis), straight, rtol=2e-5)
    turned = geodesic_distance(image.transpose(2, 0, 1), seeds.transpose(2, 0, 1), (3.0, 1.0, 2.0), **options)
    np.testing.assert_allclose(turned, straight.transpose(2, 0, 1), rtol=2e-5)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_moving_image_and_seed_moves_the_distance(convention):
    image, seeds = np.zeros((24, 24, 12), np.float32), at((24, 24, 12), (6, 7, 5))
    image[4:9, 5:10, 3:8] = 1
    moved = [np.roll(array, (10, 8, 2), (0, 1, 2)) for array in (image, seeds)]
    options = {"convention": convention, "weight": 0.6, "sweeps": ENOUGH}
    here, there = (geodesic_distance(*pair, (1.0, 1.0, 2.0), **options) for pair in ((image, seeds), moved))
    np.testing.assert_allclose(here[2:12, 2:14, 1:10], there[12:22, 10:22, 3:12], rtol=2e-5)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_several_seeds_give_the_nearest(convention):
    image, places = noise((10, 11, 6)), [(1, 1, 1), (9, 9, 4), (0, 10, 5)]
    options = {"convention": convention, "weight": 0.5, "sweeps": ENOUGH}
    together = geodesic_distance(image, at(image.shape, *places), (1.0, 1.0, 1.0), **options)
    apart = [geodesic_distance(image, at(image.shape, place), (1.0, 1.0, 1.0), **options) for place in places]
    np.testing.assert_allclose(together, np.minimum.reduce(apart), rtol=2e-5)


def test_without_seeds_everything_is_infinitely_far():
    image, seeds = noise((4, 5, 6)), np.zeros((4, 5, 6), dtype=bool)
    assert np.isinf(geodesic_distance(image, seeds, (1.0, 1.0, 1.0))).all()
    assert np.isinf(exact_geodesic_distance(image, seeds, (1.0, 1.0, 1.0))).all()


def test_the_arguments_are_left_as_they_were():
    image, seeds = noise((6, 6, 6)), at((6, 6, 6), (1, 2, 3))
    copies = image.copy(), seeds.copy()
    geodesic_distance(image, seeds, (1.0, 1.0, 1.0))
    assert np.array_equal(image, copies[0])
    assert np.array_equal(seeds, copies[1])


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": np.zeros((3, 3, 4), dtype=bool)},
        {"seeds": np.zeros((3, 3, 3), dtype=np.uint8)},
        {"image": np.zeros((3, 3), np.float32), "seeds": np.zeros((3, 3), dtype=bool)},
        {"image": np.full((3, 3, 3), np.nan, np.float32)},
        {"spacing": (1.0, 0.0, 1.0)},
        {"convention": "cheap"},
        {"weight": 1.5},
        {"sweeps": 0},
    ],
)
def test_wrong_arguments_are_refused(change):
    arguments = {"image": np.zeros((3, 3, 3), np.float32), "seeds": np.zeros((3, 3, 3), bool), "spacing": (1.0, 1.0, 1)}
    with pytest.raises(UsageError):
        geodesic_distance(**{**arguments, **change})


def test_works_where_nothing_can_be_kept_and_is_not_compiled_at_import(tmp_path: Path):
    # A file where Numba would make its cache folder: nothing can be written there, not even by root.
    occupied = tmp_path / "occupied"
    occupied.write_text("")
    program = (
        "import sys, numpy as np\n"
        "from wardround.client.annotation.geodesic import geodesic_distance\n"
        "assert 'numba' not in sys.modules and 'torch' not in sys.modules\n"
        "seeds = np.zeros((3, 3, 3), bool); seeds[0, 0, 0] = True\n"
        "print(geodesic_distance(np.zeros((3, 3, 3), np.float32), seeds, (1.0, 1.0, 1.0), weight=0)[2, 0, 0])\n"
    )
    environment = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(occupied / "cache"),
        "NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator",
    }
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "2.0"


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_known_distances_and_new_seeds_lead_to_the_same(convention):
    image, spacing = noise((18, 20, 16), smooth=0.7), (1.0, 0.8, 3.0)
    few, all_ = at(image.shape, (3, 4, 5)), at(image.shape, (3, 4, 5), (15, 2, 9), (10, 17, 3))
    settings = {"convention": convention, "weight": 0.9, "sweeps": ENOUGH}
    known = geodesic_distance(image, few, spacing, **settings)
    kept = known.copy()
    found = geodesic_distance(image, all_, spacing, known=known, **settings)
    assert np.array_equal(found, geodesic_distance(image, all_, spacing, **settings))
    assert np.array_equal(known, kept), "what is known may be asked for again"
    assert np.array_equal(geodesic_distance(image, few, spacing, known=known, **settings), known)
    with pytest.raises(UsageError):
        geodesic_distance(image, few, spacing, known=known[1:], **settings)
