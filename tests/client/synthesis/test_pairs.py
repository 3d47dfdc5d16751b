"""Samples to pairs on a generator's grid, and back."""

import numpy as np
import pytest

from wardround.client.learning.batches import assemble
from wardround.client.learning.replay import Sample
from wardround.client.synthesis.pairs import (
    SYNTHETIC,
    grid_of,
    is_synthetic,
    pairs_of,
    resized,
    resized_labels,
    stacked,
    synthetic_sample,
)


def a_sample(shape=(35, 50, 20), seed=0, weight=None):
    rng = np.random.default_rng(seed)
    i, j, k = np.indices(shape)
    labels = np.zeros(shape, dtype=np.uint8)
    inside = (k >= 4) & (k < 16) & (abs(i - 17) < 7)
    labels[inside & (abs(j - 18) < 6)] = 1
    labels[inside & (abs(j - 30) < 6)] = 2
    image = (labels + 0.05 * rng.normal(size=shape)).astype(np.float32)
    target = np.stack([labels == label for label in range(3)]).astype(np.float16)
    weight = np.ones(shape, dtype=np.float16) if weight is None else weight
    return Sample("case", image, target, weight), labels


@pytest.mark.parametrize(
    ("shape", "dimensions", "side", "expected"),
    [
        ((35, 50, 35), 2, 48, (32, 48)),
        ((35, 50, 35), 3, 32, (24, 32, 24)),
        ((240, 240, 155), 2, 32, (32, 32)),
        ((240, 240, 155), 3, 32, (32, 32, 24)),
        ((21, 21, 3), 3, 32, (24, 24, 16)),
    ],
)
def test_grid_keeps_proportions_and_does_not_enlarge(shape, dimensions, side, expected):
    assert grid_of(shape, dimensions, side, stride=8) == expected


def test_slices_with_a_structure_become_pairs_in_order():
    sample, labels = a_sample()
    pairs = pairs_of(sample, (35, 50))
    assert [pair.position for pair in pairs] == list(range(4, 16))
    for pair in pairs:
        np.testing.assert_array_equal(pair.image, sample.image[..., pair.position])
        np.testing.assert_array_equal(pair.labels, labels[..., pair.position])
        assert (pair.case_id, pair.image.dtype, pair.labels.dtype) == ("case", np.float32, np.uint8)
    assert len(pairs_of(sample, (35, 50), smallest=0)) == 20


def test_volume_becomes_one_pair_on_the_grid():
    sample, labels = a_sample()
    (pair,) = pairs_of(sample, (24, 32, 16))
    assert pair.image.shape == pair.labels.shape == (24, 32, 16)
    # Image and labels are stretched alike: the image, which is its labels and noise, still shows them.
    for label in range(3):
        assert pair.image[pair.labels == label].mean() == pytest.approx(label, abs=0.15)
        assert (pair.labels == label).mean() == pytest.approx((labels == label).mean(), rel=0.2)


def test_what_is_not_known_makes_no_pair():
    weight = np.zeros((35, 50, 20), dtype=np.float16)
    weight[..., [6, 10]] = 1
    weight[:5, :, 12] = 1
    sample, _ = a_sample(weight=weight)
    assert [pair.position for pair in pairs_of(sample, (32, 48))] == [6, 10]
    assert pairs_of(sample, (24, 32, 16)) == []


def test_resizing_is_linear_smooths_and_returns_what_has_the_shape():
    ramp = np.broadcast_to(np.arange(8, dtype=np.float32)[:, None], (8, 4))
    finer = resized(ramp, (16, 4))
    np.testing.assert_allclose(finer[1:-1, 0], 0.25 + 0.5 * np.arange(14), atol=1e-5)
    board = (np.indices((32, 32, 32)).sum(axis=0) % 2).astype(np.float32)
    np.testing.assert_allclose(resized(board, (8, 8, 8)), 0.5, atol=0.02)  # plain interpolation would alias
    np.testing.assert_array_equal(resized(board, board.shape), board)


def test_labels_stay_labels():
    labels = np.zeros((20, 20), dtype=np.uint8)
    labels[:, 10:] = 5
    coarser = resized_labels(labels, (9, 7))
    assert set(np.unique(coarser)) == {0, 5}
    np.testing.assert_array_equal(resized_labels(resized_labels(labels, (40, 60)), (20, 20)), labels)
    copied = resized_labels(labels, (20, 20))
    copied[:] = 1
    assert labels.max() == 5


def test_synthetic_sample_counts_gamma_and_fits_the_learner():
    sample, _ = a_sample()
    pair = pairs_of(sample, (32, 48))[3]
    made = synthetic_sample(
        "7", pair.image, pair.labels, classes=3, shape=(35, 50, 1), spacing=(1.0, 1.0, 2.0), weight=0.25
    )
    assert made.case_id == SYNTHETIC + "7"
    assert is_synthetic(made)
    assert not is_synthetic(sample)
    assert made.image.shape == (35, 50, 1)
    assert (made.target.sum(axis=0) == 1).all()
    assert made.drawn is not None
    assert made.drawn.all()
    batch = assemble([made, made], 2, 8, None, np.random.default_rng(0), None)
    assert batch.factors is not None
    assert batch.factors.tolist() == [0.25, 0.25]
    assert set(batch.weight.unique().tolist()) == {1.0}
    true = sample.target[..., pair.position].argmax(axis=0)
    assert (made.target[..., 0].argmax(axis=0) == true).mean() > 0.97


def test_stack_of_slices_becomes_a_volume():
    sample, labels = a_sample()
    pairs = pairs_of(sample, (32, 48))
    image, drawn = (np.stack([getattr(pair, part) for pair in pairs], axis=-1) for part in ("image", "labels"))
    made = synthetic_sample("1", image, drawn, classes=3, shape=(35, 50, 12), spacing=(1, 1, 1), weight=1.0)
    assert (made.target.argmax(axis=0) == labels[..., 4:16]).mean() > 0.97


def test_stacked_pairs_are_a_batch():
    pairs = pairs_of(a_sample()[0], (32, 48))
    images, labels = stacked(pairs)
    assert images.shape == (12, 1, 32, 48)
    assert labels.shape == (12, 32, 48)
    np.testing.assert_array_equal(labels[5].numpy(), pairs[5].labels)
