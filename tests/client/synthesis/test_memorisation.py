"""Copies are found, however disguised; honest images, also smooth or noisy ones, are not taken for copies."""

import numpy as np
import pytest
from scipy import ndimage

from wardround.client.synthesis.memorisation import (
    FEWEST,
    FloatArray,
    MemorisationReport,
    MemorisationSettings,
    memorised,
)
from wardround.errors import DataError, GeometryError

SIDE, COUNT = 32, 12


def people(seed: int, sides: tuple[int, ...] = (SIDE, SIDE), count: int = COUNT) -> FloatArray:
    """Images of one kind: a bright organ that is similar in all, with a texture of each person's own."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        middle = np.array(sides) / 2 + rng.normal(0, 1, len(sides))
        away = (np.indices(sides).reshape(len(sides), -1).T - middle) / (np.array(sides) * rng.uniform(0.25, 0.3))
        organ = (np.square(away).sum(axis=1) < 1).reshape(sides).astype(float)
        texture = ndimage.gaussian_filter(rng.standard_normal(sides), 1.5)
        made.append(
            ndimage.gaussian_filter(organ, 0.7) + 0.6 * texture / texture.std() + 0.1 * rng.standard_normal(sides)
        )
    return np.array(made, dtype=np.float32)


TRAINING, UNSEEN = people(0), people(1)


def judged(synthetic: FloatArray) -> MemorisationReport:
    return memorised(synthetic.astype(np.float32), TRAINING, UNSEEN)


def noisy(images: FloatArray, sigma: float, seed: int = 5) -> FloatArray:
    return np.asarray(images + sigma * np.random.default_rng(seed).standard_normal(images.shape), dtype=np.float32)


def bent(images: FloatArray) -> FloatArray:
    rng = np.random.default_rng(6)
    field = ndimage.gaussian_filter(rng.standard_normal((2, SIDE, SIDE)), (0, 6, 6))
    places = np.indices((SIDE, SIDE)) + 1.2 * field / field.std()
    return np.array([ndimage.map_coordinates(image, places, order=1, mode="nearest") for image in images])


COPIES = {
    "exact": TRAINING,
    "noise": noisy(TRAINING, 0.3),
    "brighter": 3 * TRAINING + 2,
    "shifted": np.array([ndimage.shift(image, (3, -2), order=1, mode="nearest") for image in TRAINING]),
    "smooth": ndimage.gaussian_filter(TRAINING, (0, 0.8, 0.8)),
    "bent": bent(TRAINING),
}
HONEST = {
    "others": people(2),
    "others, smooth": ndimage.gaussian_filter(people(2), (0, 1, 1)),
    "others, noisy": noisy(people(2), 0.3),
    "nothing": np.zeros_like(TRAINING),
    "noise": noisy(np.zeros_like(TRAINING), 1.0),
}


@pytest.mark.parametrize("disguise", COPIES)
def test_a_generator_that_copies_fails(disguise: str) -> None:
    report = judged(COPIES[disguise])
    assert not report.passed
    assert report.copies > COUNT * 0.7
    assert report.neighbours.tolist() == list(range(COUNT))
    assert report.nearer > 0.95
    assert report.chance < 1e-4


@pytest.mark.parametrize("kind", HONEST)
def test_an_honest_generator_passes(kind: str) -> None:
    report = judged(HONEST[kind])
    assert report.passed
    assert report.copies == 0
    assert report.nearer < 0.8


def test_one_copy_among_honest_images_is_enough() -> None:
    mixed = people(2)
    mixed[3] = noisy(TRAINING[7:8], 0.1)[0]
    report = judged(mixed)
    assert (report.copies, report.passed, report.neighbours[3]) == (1, False, 7)


def test_images_that_are_all_somewhat_too_near_fail_without_a_single_copy() -> None:
    blend = 0.4 * TRAINING + 0.6 * people(2)
    settings = MemorisationSettings(copied=0.0)
    report = memorised(blend, TRAINING, UNSEEN, settings)
    assert report.copies == 0
    assert report.nearer > 0.8
    assert not report.passed


def test_less_noise_than_a_scanner_makes_is_not_nearness() -> None:
    """Without smoothing a generator whose images are clean would seem nearer to everybody."""
    scans = noisy(TRAINING, 0.5), noisy(UNSEEN, 0.5, seed=6)
    raw = memorised(people(2), *scans, MemorisationSettings(smoothing=0.0))
    report = memorised(people(2), *scans)
    assert raw.nearer > 0.9
    assert report.nearer < 0.8
    assert report.passed


def test_distances_are_those_of_correlation() -> None:
    report = judged(TRAINING)
    assert report.nearest_synthetic.shape == (COUNT,)
    assert report.nearest_held_out.shape == (COUNT,)
    assert np.abs(report.nearest_synthetic).max() < 1e-3
    assert report.nearest_held_out.min() > 0.1
    assert report.nearest_held_out.max() < 1.5
    # What has no contrast has nothing in common with anybody.
    assert np.allclose(judged(HONEST["nothing"]).nearest_synthetic, 1)


def test_air_does_not_hide_a_copy() -> None:
    """Pieces without contrast are alike in everybody; they neither count for a copy nor against it."""
    training, unseen = TRAINING.copy(), UNSEEN.copy()
    training[:, :, 14:] = unseen[:, :, 14:] = 0
    report = memorised(training[:4], training, unseen)
    assert report.copies == 4
    assert report.nearest_synthetic.max() < 0.05


def test_nearer_counts_pairs() -> None:
    report = judged(people(2))
    pairs = report.nearest_synthetic[:, None] - report.nearest_held_out
    assert report.nearer == pytest.approx(float((pairs < 0).mean() + (pairs == 0).mean() / 2))


def test_volumes_are_compared_as_well() -> None:
    sides = (16, 16, 16)
    training, unseen, others = (people(seed, sides, 6) for seed in (0, 1, 2))
    settings = MemorisationSettings(candidates=2, piece=5, reach=1)
    shifted = np.array([ndimage.shift(image, (2, 0, -1), order=1, mode="nearest") for image in training[:3]])
    assert not memorised(shifted, training, unseen, settings).passed
    assert memorised(others[:3], training, unseen, settings).passed


def test_the_same_images_give_the_same_report() -> None:
    first, second = judged(people(2)), judged(people(2))
    assert np.array_equal(first.nearest_synthetic, second.nearest_synthetic)
    assert (first.nearer, first.chance) == (second.nearer, second.chance)


@pytest.mark.parametrize("counts", [(0, 4, 4), (4, 0, 4), (4, 4, FEWEST - 1)])
def test_too_few_images_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(DataError, match="copies cannot be told"):
        memorised(*(TRAINING[:count] for count in counts))


def test_other_grids_are_refused() -> None:
    with pytest.raises(GeometryError, match="one grid"):
        memorised(TRAINING[:, :30], TRAINING, UNSEEN)
