"""Measures of synthetic images, each held against a case whose answer is known."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from wardround.client.synthesis.quality import (
    FloatArray,
    LabelArray,
    embedding,
    faithfulness,
    kernel_distance,
    radial_spectrum,
    spectral_gap,
)
from wardround.errors import DataError, GeometryError, UsageError
from wardround.models.catalogue import Features, build


def discs(count: int = 12) -> LabelArray:
    """Discs at different places of a circle, which hardly overlap with one another."""
    grid = np.indices((32, 32)).astype(float)
    made = []
    for angle in np.linspace(0, 2 * np.pi, count, endpoint=False):
        middle = 15.5 + 10 * np.array([np.cos(angle), np.sin(angle)])
        made.append((np.hypot(*(grid - middle[:, None, None])) < 4).astype(np.uint8))
    return np.array(made)


def thresholded(images: FloatArray) -> LabelArray:
    return (images > 0.5).astype(np.uint8)


def test_images_that_show_their_masks_are_faithful_and_shuffled_masks_are_not() -> None:
    labels = discs()
    found = faithfulness(thresholded, labels.astype(np.float32), labels, 2)
    assert found.each.tolist() == [1.0] * 12
    assert found.dice == 1
    assert found.shuffled < 0.3


def test_a_generator_that_ignores_its_masks_is_no_better_than_shuffled_ones() -> None:
    labels = discs()
    images = np.random.default_rng(0).permutation(labels.astype(np.float32))
    found = faithfulness(thresholded, images, labels, 2)
    assert found.dice < 0.35
    assert abs(found.dice - found.shuffled) < 0.15
    same = np.repeat(labels[:1], 12, axis=0).astype(np.float32)
    found = faithfulness(thresholded, same, labels, 2)
    assert found.dice == pytest.approx(found.shuffled)


def test_shuffling_never_leaves_a_mask_in_its_place() -> None:
    """Two images: the only shuffle exchanges them."""
    labels = discs()[[0, 6]]
    assert faithfulness(thresholded, labels.astype(np.float32), labels, 2).shuffled == 0


def test_what_shows_nothing_is_not_counted() -> None:
    labels = discs()
    labels[4] = 0
    found = faithfulness(thresholded, labels.astype(np.float32), labels, 2)
    assert np.isnan(found.each[4])
    assert found.dice == 1


def test_faithfulness_refuses_what_it_cannot_compare() -> None:
    labels = discs()
    with pytest.raises(DataError, match="one by one"):
        faithfulness(thresholded, labels[:1].astype(np.float32), labels[:1], 2)
    with pytest.raises(GeometryError, match="one grid"):
        faithfulness(lambda images: thresholded(images)[:, ::2], labels.astype(np.float32), labels, 2)


@pytest.mark.parametrize("sides", [(48, 40), (24, 32, 20)])
def test_white_noise_has_its_variance_in_every_band(sides: tuple[int, ...]) -> None:
    noise = 3 * np.random.default_rng(0).standard_normal((40, *sides)) + 100
    power = radial_spectrum(noise.astype(np.float32), 6)
    assert power.shape == (6,)
    assert power[1:] == pytest.approx([9.0] * 5, rel=0.1)
    assert 6 < power[0] < 9.5


@pytest.mark.parametrize(("cycles", "band"), [(4, 1), (10, 3), (20, 6)])
def test_a_wave_lies_in_its_band(cycles: int, band: int) -> None:
    wave = np.sin(2 * np.pi * cycles * np.arange(48) / 48 + 0.3)
    image = np.broadcast_to(wave, (1, 48, 48)).astype(np.float32)
    for turned in (image, image.swapaxes(1, 2)):
        power = radial_spectrum(turned, 8) * np.arange(1, 16, 2)
        assert power.argmax() == band
        assert power.max() > 0.8 * power.sum()


def test_edges_that_do_not_meet_are_not_taken_for_detail() -> None:
    ramp = np.broadcast_to(np.arange(48.0), (1, 48, 48)).astype(np.float32)
    power = radial_spectrum(ramp, 8)
    assert power[4:].max() < 1e-4 * power[0]


def test_the_gap_is_in_decibel_per_band_and_signed() -> None:
    real = np.random.default_rng(0).standard_normal((30, 48, 48)).astype(np.float32)
    again = np.random.default_rng(1).standard_normal((30, 48, 48)).astype(np.float32)
    assert np.abs(spectral_gap(again, real)).max() < 1
    assert spectral_gap(real * np.float32(10**0.5), real) == pytest.approx([10.0] * 8, abs=1e-3)
    smooth = spectral_gap(ndimage.gaussian_filter(real, (0, 1, 1)), real)
    assert (np.diff(smooth) < 0).all()
    assert smooth[0] > -2
    assert smooth[-1] < -20
    assert np.isfinite(spectral_gap(np.zeros_like(real), real)).all()


def test_more_bands_than_frequencies_are_refused() -> None:
    with pytest.raises(UsageError, match="no frequency"):
        radial_spectrum(np.zeros((2, 8, 8), dtype=np.float32), 16)


def pixels(images: Tensor) -> Tensor:
    return images.flatten(1)


def by_hand(ours: FloatArray, theirs: FloatArray) -> float:
    """The unbiased estimate, pair by pair."""
    ours, theirs = ours / theirs.std(axis=0), theirs / theirs.std(axis=0)

    def alike(a: FloatArray, b: FloatArray) -> float:
        return float((np.dot(a, b) / len(a) + 1) ** 3)

    within = [alike(a, b) for i, a in enumerate(ours) for j, b in enumerate(ours) if i != j]
    among = [alike(a, b) for i, a in enumerate(theirs) for j, b in enumerate(theirs) if i != j]
    across = [alike(a, b) for a in ours for b in theirs]
    return float(np.mean(within) + np.mean(among) - 2 * np.mean(across))


def test_the_kernel_distance_is_that_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.standard_normal((7, 2, 2)), rng.standard_normal((9, 2, 2)) + 0.5
    found = kernel_distance(pixels, ours, theirs, rng, resamples=50, batch=3)
    assert found.value == pytest.approx(by_hand(ours.reshape(7, -1), theirs.reshape(9, -1)), rel=1e-5)
    assert (found.synthetic, found.real) == (7, 9)


def test_it_is_unbiased_and_grows_with_what_differs() -> None:
    values, covered = [], 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        ours, theirs = rng.standard_normal((2, 20, 3, 3))
        found = kernel_distance(pixels, ours, theirs, rng, resamples=100)
        values.append(found.value)
        covered += found.low <= 0 <= found.high
        assert found.low < found.high
    # The mean of forty estimates is 0 within three standard errors; single ones lie on either side.
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(40)
    assert min(values) < 0 < max(values)
    assert covered >= 32
    rng = np.random.default_rng(0)
    real, shifted = rng.standard_normal((2, 40, 3, 3))
    near, far = (kernel_distance(pixels, shifted + shift, real, rng, resamples=100) for shift in (0.4, 1.0))
    assert 0 < near.value < far.value
    assert far.low > 0


def test_a_feature_does_not_count_for_its_unit_nor_a_constant_one_at_all() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.standard_normal((2, 12, 2, 2))

    def other_unit(images: Tensor) -> Tensor:
        flat = images.flatten(1) * torch.tensor([1.0, 1000.0, 1.0, 1e-3])
        return torch.cat([flat, torch.full((len(flat), 1), 5.0)], dim=1)

    first, second = (
        kernel_distance(embed, ours, theirs, np.random.default_rng(1), resamples=20) for embed in (pixels, other_unit)
    )
    assert first.value == pytest.approx(second.value, rel=1e-4)
    assert (first.low, first.high) == pytest.approx((second.low, second.high), rel=1e-4)


def test_single_images_are_refused() -> None:
    with pytest.raises(DataError, match="one by one"):
        kernel_distance(pixels, np.zeros((1, 2, 2)), np.zeros((5, 2, 2)), np.random.default_rng(0))


@pytest.mark.parametrize("training", [True, False])
def test_features_of_a_network_are_mean_and_deviation_of_a_stage(training: bool) -> None:
    network = build("unet2d-small", labels=2, seed=0).train(training)
    images = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), Features(network, "bottleneck") as features:
        network(images)
    found, stage = embedding(network)(images), features["bottleneck"]
    width = stage.shape[1]
    assert found.shape == (3, 2 * width)
    assert not found.requires_grad
    assert torch.allclose(found[:, :width], stage.mean((2, 3)), atol=1e-6)
    assert torch.allclose(found[:, width:], stage.var((2, 3), correction=0).sqrt(), atol=1e-5)
    assert network.training is training


def test_two_images_a_set_still_have_an_interval() -> None:
    """Half of their draws are of one image only and hold no pair."""
    rng = np.random.default_rng(0)
    found = kernel_distance(pixels, *rng.standard_normal((2, 2, 2, 2)), rng, resamples=50)
    assert np.isfinite([found.value, found.low, found.high]).all()
