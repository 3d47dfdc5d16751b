"""A generator of images: what it learns, what its images follow, and that it can be put away and taken up again."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from wardround.client.synthesis.diffusion import DiffusionSettings, ImageGenerator
from wardround.client.synthesis.pairs import Pair
from wardround.errors import PlanError, UsageError
from wardround.models.denoiser import Denoiser, DenoiserSettings
from wardround.models.weights import load_arrays, save_arrays

CPU = torch.device("cpu")
SMALL = DenoiserSettings(2, 3, channels=(8, 16), style=8, style_channels=(8, 8))
FEW = DiffusionSettings(sampling_steps=5, batch=8, learning_rate=5e-3, warmup=10, ema=0.9)

BACKGROUNDS = (-0.5, 0.5)


def disks(rng, count, side=16):
    """Labels ``[N, side, side]``: two disks each, somewhere."""
    labels = np.zeros((count, side, side), dtype=np.uint8)
    i, j = np.indices((side, side))
    for own in labels:
        for label in (1, 2):
            centre = rng.uniform(3, side - 3, 2)
            own[(i - centre[0]) ** 2 + (j - centre[1]) ** 2 < 10] = label
    return labels


def some_pairs(cases=4, slices=6, backgrounds=(0.0,), seed=0):
    """Slices whose structures have the intensities 1.5 and -1.5; how bright the rest is, differs between cases."""
    rng = np.random.default_rng(seed)
    pairs = []
    for case in range(cases):
        signal = np.array([backgrounds[case % len(backgrounds)], 1.5, -1.5])
        for position, labels in enumerate(disks(rng, slices)):
            image = (signal[labels] + 0.1 * rng.normal(size=labels.shape)).astype(np.float32)
            pairs.append(Pair(f"case {case}", image, labels, 3 * position))
    return pairs


def generator(settings=FEW, shape=SMALL, seed=0):
    return ImageGenerator(settings, shape, seed, CPU)


def told_apart(images, labels):
    """Share of structures' voxels whose label the nearest intensity gives back."""
    found = np.abs(images[..., None] - np.array([0, 1.5, -1.5])).argmin(axis=-1)
    return (found == labels)[labels > 0].mean()


@pytest.fixture(scope="module")
def trained():
    made = generator()
    losses = [made.learn(some_pairs(backgrounds=BACKGROUNDS), 70, np.random.default_rng(0)) for _ in range(3)]
    return made, losses


def test_learning_lowers_the_loss(trained):
    _, losses = trained
    assert losses[2] < 0.7 * losses[0]


def test_images_show_labels_that_were_never_learnt_from(trained):
    made, _ = trained
    labels = disks(np.random.default_rng(9), 16)
    images = made.sample(labels, None, np.random.default_rng(1))
    assert images.shape == labels.shape
    assert images.dtype == np.float32
    assert told_apart(images, labels) > 0.8
    assert told_apart(images, np.roll(labels, 1, axis=0)) < 0.4


def test_images_take_the_texture_of_their_reference_and_not_its_anatomy(trained):
    made, _ = trained
    labels = disks(np.random.default_rng(9), 16)
    levels = []
    for level in BACKGROUNDS:
        references = np.stack([pair.image for pair in some_pairs(4, 4, (level,), seed=5)])
        styles = made.style_of(references)
        assert styles.shape == (16, SMALL.style)
        images = made.sample(labels, styles, np.random.default_rng(1))
        levels.append(images[labels == 0].mean())
        assert told_apart(images, labels) > 0.8
        rest = labels == 0
        assert abs(np.corrcoef(images[rest], references[rest])[0, 1]) < 0.15
    assert levels[1] - levels[0] > 0.5 * (BACKGROUNDS[1] - BACKGROUNDS[0])


def test_guidance_by_the_mask_sharpens_what_it_says(trained):
    made, _ = trained
    labels = disks(np.random.default_rng(9), 16)
    contrast = []
    for guidance in (0.0, 1.0, 2.0):
        made.settings = replace(FEW, guidance_mask=guidance)
        images = made.sample(labels, None, np.random.default_rng(1))
        contrast.append(images[labels == 1].mean() - images[labels == 2].mean())
    made.settings = FEW
    assert abs(contrast[0]) < 0.5 < contrast[1] < contrast[2]


def test_same_generators_end_bit_equal_and_torchs_own_is_not_touched():
    before = torch.random.get_rng_state()
    found = []
    for _ in range(2):
        made = generator()
        made.learn(some_pairs(), 4, np.random.default_rng(3))
        found.append((made.arrays(), made.sample(disks(np.random.default_rng(0), 2), None, np.random.default_rng(4))))
    assert torch.equal(before, torch.random.get_rng_state())
    (first, images), (second, same) = found
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    np.testing.assert_array_equal(images, same)
    assert not np.array_equal(images, made.sample(disks(np.random.default_rng(0), 2), None, np.random.default_rng(5)))


def test_goes_on_from_a_file_bit_for_bit(tmp_path):
    one, rng = generator(), np.random.default_rng(3)
    one.learn(some_pairs(cases=2), 4, rng)
    save_arrays(tmp_path / "generator.safetensors", one.arrays())
    other = generator(seed=1)
    other.load(load_arrays(tmp_path / "generator.safetensors"))
    assert other.seen == one.seen == {"case 0", "case 1"}
    assert other.updates == 4
    labels = disks(np.random.default_rng(0), 2)
    np.testing.assert_array_equal(*(made.sample(labels, None, np.random.default_rng(4)) for made in (one, other)))
    for made in (one, other):
        made.learn(some_pairs(), 3, np.random.default_rng(7))
    first, second = one.arrays(), other.arrays()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    np.testing.assert_array_equal(*(made.sample(labels, None, np.random.default_rng(5)) for made in (one, other)))
    assert other.seen == {f"case {number}" for number in range(4)}


def test_state_of_another_shape_is_refused_and_changes_nothing():
    made, other = generator(), generator(shape=replace(SMALL, labels=2))
    before = made.arrays()
    for arrays in (other.arrays(), {}):
        with pytest.raises(PlanError):
            made.load(arrays)
    after = made.arrays()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_images_are_made_by_the_moving_average():
    made = generator()
    made.learn(some_pairs(), 5, np.random.default_rng(0))
    arrays = made.arrays()
    weights, average = (arrays[f"{kind}/denoiser.head.bias"] for kind in ("weights", "average"))
    assert not np.array_equal(weights, average)
    labels = disks(np.random.default_rng(0), 2)
    before = made.sample(labels, None, np.random.default_rng(0))
    made.load(arrays | {name: 0 * array for name, array in arrays.items() if name.startswith("weights/")})
    np.testing.assert_array_equal(before, made.sample(labels, None, np.random.default_rng(0)))


class Heard(Exception):
    """The denoiser has been told something, and that is all a test wants to know."""


def told_in_training(made, monkeypatch):
    """What the denoiser is told in the first update: noisy images, steps of noise, masks, styles."""
    told = []

    def listen(_self, *arguments):
        told.extend(arguments)
        raise Heard

    with monkeypatch.context() as patch:
        patch.setattr(Denoiser, "forward", listen)
        with pytest.raises(Heard):
            made.learn(some_pairs(), 1, np.random.default_rng(0))
    return told


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_sampling_begins_with_noise_alone_as_training_ends(monkeypatch, prediction):
    made = generator(replace(FEW, prediction=prediction, timesteps=100, batch=100))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", lambda shape, generator: torch.zeros(shape))
        noisy, timestep = told_in_training(made, patch)[:2]
    assert timestep.sort().values.tolist() == list(range(100))  # every step of noise as often as any other
    size = noisy.abs().amax(dim=(1, 2, 3))
    assert size[timestep == 99].item() == 0
    assert (size[timestep < 99] > 0).all()
    monkeypatch.setattr(made, "settings", replace(made.settings, batch=2))
    made.learn(some_pairs(), 1, np.random.default_rng(0))
    told = []
    forward = Denoiser.forward
    monkeypatch.setattr(Denoiser, "forward", lambda self, *all_: told.append(all_) or forward(self, *all_))
    made.sample(disks(np.random.default_rng(0), 64), None, np.random.default_rng(0))
    noisy, timestep = told[0][:2]
    assert timestep.unique().tolist() == [99]
    assert noisy.mean().item() == pytest.approx(0, abs=0.03)
    assert noisy.std().item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(
    ("by_mask", "by_style", "passes"), [(1.0, 1.0, 1), (1.5, 1.0, 2), (1.0, 1.5, 3), (1.5, 1.5, 2), (2.0, 3.0, 3)]
)
def test_guidance_adds_up_what_labels_and_reference_add(monkeypatch, by_mask, by_style, passes):
    made = generator(replace(FEW, guidance_mask=by_mask, guidance_style=by_style, sampling_steps=1, timesteps=10))
    made.learn(some_pairs(), 1, np.random.default_rng(0))
    calls = []

    def answer(_self, noisy, _timestep, mask, style):
        calls.append(None)
        own = {(False, False): 0.1, (False, True): 0.3, (True, True): 0.7}[bool(mask.any()), style is not None]
        return torch.full_like(noisy, own)

    monkeypatch.setattr(Denoiser, "forward", answer)
    images = made.sample(disks(np.random.default_rng(0), 2), torch.zeros(2, SMALL.style), np.random.default_rng(0))
    # One step from noise alone: a velocity v is the image −v.
    np.testing.assert_allclose(images, -(0.1 + by_style * 0.2 + by_mask * 0.4), rtol=1e-4)
    assert len(calls) == passes


def test_labels_and_reference_are_withheld_as_often_as_asked(monkeypatch):
    made = generator(replace(FEW, mask_drop=0.25, style_drop=0.4, batch=2000))
    mask, style = told_in_training(made, monkeypatch)[2:]
    none, null = (mask == 0).flatten(1).all(dim=1), (style == made._parts.denoiser.null_style).all(dim=1)
    assert none.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert null.float().mean().item() == pytest.approx(0.4, abs=0.04)
    assert (none & null).float().mean().item() == pytest.approx(0.1, abs=0.03)
    assert (mask.sum(dim=1).flatten(1).amin(dim=1)[~none] == 1).all()


def test_slices_of_one_volume_can_begin_with_one_noise():
    made = generator()
    made.learn(some_pairs(), 2, np.random.default_rng(0))
    labels = np.repeat(disks(np.random.default_rng(0), 1), 3, axis=0)
    apart = made.sample(labels, None, np.random.default_rng(0))
    together = made.sample(labels, None, np.random.default_rng(0), one_noise=True)
    assert np.abs(apart[0] - apart[1]).mean() > 0.1
    np.testing.assert_allclose(together[0], together[1], atol=1e-4)


def test_large_batches_are_made_in_parts(monkeypatch):
    made = generator()
    made.learn(some_pairs(), 2, np.random.default_rng(0))
    labels = disks(np.random.default_rng(0), 5)
    styles = made.style_of(np.stack([pair.image for pair in some_pairs()[:5]]))
    whole = made.sample(labels, styles, np.random.default_rng(0))
    monkeypatch.setattr("wardround.client.synthesis.diffusion.AT_ONCE", 2)
    np.testing.assert_allclose(made.sample(labels, styles, np.random.default_rng(0)), whole, atol=1e-3)
    assert made.sample(labels[:0], None, np.random.default_rng(0)).shape == (0, 16, 16)


def test_volumes_are_learnt_and_made():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (3, 8, 8, 16)).astype(np.uint8)
    images = rng.normal(size=labels.shape).astype(np.float32)
    pairs = [Pair(f"{number}", *both) for number, both in enumerate(zip(images, labels, strict=True))]
    made = generator(replace(FEW, batch=2), DenoiserSettings(3, 2, channels=(8, 8), style=8))
    stops = []
    assert np.isfinite(made.learn(pairs, 2, rng, lambda: stops.append(None)))
    assert len(stops) == 2
    assert made.sample(labels, made.style_of(images), rng).shape == labels.shape


@pytest.mark.parametrize(
    "change", [{"prediction": "epsilon", "schedule": "squaredcos_cap_v2"}, {"prediction": "epsilon"}]
)
def test_other_predictions_stay_finite(change):
    made = generator(replace(FEW, batch=64, **change))
    assert np.isfinite(made.learn(some_pairs(), 2, np.random.default_rng(0)))
    images = made.sample(disks(np.random.default_rng(0), 2), None, np.random.default_rng(0))
    assert np.abs(images).max() <= max(np.abs(pair.image).max() for pair in some_pairs()) + 1e-5


def test_without_texture_there_is_no_style():
    made = generator(shape=replace(SMALL, style=0))
    made.learn(some_pairs(), 2, np.random.default_rng(0))
    labels = disks(np.random.default_rng(0), 2)
    assert made.style_of(labels.astype(np.float32)) is None
    assert made.sample(labels, None, np.random.default_rng(0)).shape == labels.shape


def test_an_image_that_is_not_finite_ends_no_generator(caplog):
    made, pairs = generator(replace(FEW, batch=2)), some_pairs(cases=2, slices=2)
    spoilt = [replace(pairs[0], image=np.full_like(pairs[0].image, np.nan)), *pairs[1:]]
    made.learn(spoilt, 12, np.random.default_rng(0))
    assert "not finite" in caplog.text
    assert all(
        np.isfinite(array).all() for name, array in made.arrays().items() if name.startswith(("weig", "opti", "av"))
    )


def test_nothing_to_learn_from_teaches_nothing():
    made = generator()
    assert np.isnan(made.learn([], 5, np.random.default_rng(0)))
    assert np.isnan(made.learn(some_pairs(), 0, np.random.default_rng(0)))
    assert made.updates == 0
    assert made.seen == frozenset()
    with pytest.raises(UsageError, match="learnt nothing"):
        made.sample(disks(np.random.default_rng(0), 1), None, np.random.default_rng(0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"sampling_steps": 30},
        {"sampling_steps": 0},
        {"mask_drop": 0.0},
        {"style_drop": 0.0, "guidance_style": 2.0},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(UsageError):
        DiffusionSettings(**wrong)
