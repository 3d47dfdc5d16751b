"""Registration moves what should move, by as much as it should."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from wardround.client.annotation.registration import DemonsSettings, register, warp
from wardround.errors import UsageError


def texture(count, shape, seed=0, width=2.5):
    noise = np.random.default_rng(seed).normal(size=(count, *shape))
    return torch.from_numpy(ndimage.gaussian_filter(noise, (0, width, width)).astype(np.float32))


def bent(images, seed=1, size=2.5):
    """The images under a smooth deformation of up to about `size` pixels, and the deformation."""
    count, height, width = images.shape
    noise = np.random.default_rng(seed).normal(size=(count, 2, height, width))
    field = ndimage.gaussian_filter(noise, (0, 0, 6, 6))
    field *= size / np.abs(field).max(axis=(1, 2, 3), keepdims=True)
    field = torch.from_numpy(field.astype(np.float32))
    return warp(images[:, None], field)[:, 0], field


def correlation(one, other):
    one, other = (image.flatten(1) - image.flatten(1).mean(dim=1, keepdim=True) for image in (one, other))
    return (one * other).sum(dim=1) / (one.norm(dim=1) * other.norm(dim=1))


def test_identical_slices_do_not_move():
    images = texture(3, (30, 24))
    assert register(images, images).abs().max() < 1e-4


def test_registration_improves_correlation_on_nearly_all_pairs():
    moving = texture(20, (48, 36))
    fixed, _ = bent(moving)
    after = correlation(warp(moving[:, None], register(moving, fixed))[:, 0], fixed)
    before = correlation(moving, fixed)
    assert (after > before).float().mean() >= 0.9
    assert after.mean() > 0.98


def test_deformation_is_recovered():
    moving = texture(6, (64, 64))
    fixed, field = bent(moving)
    inner = (..., slice(8, -8), slice(8, -8))
    error = (register(moving, fixed) - field)[inner].square().sum(dim=1).sqrt().mean()
    assert error < 0.3 * field[inner].square().sum(dim=1).sqrt().mean()


@pytest.mark.parametrize("shift", [(4, 0), (0, -4), (3, 3)])
def test_shifted_slice_shifts_its_label(shift):
    size = 48
    rows, columns = np.indices((size, size))
    disc = ((rows - 24) ** 2 + (columns - 24) ** 2 <= 64).astype(np.float32)
    image = ndimage.gaussian_filter(disc, 1.5) + 0.05 * texture(1, (size, size)).numpy()[0]
    moved_image, moved_disc = (np.roll(array, shift, (0, 1)).astype(np.float32) for array in (image, disc))
    displacement = register(torch.from_numpy(moved_image)[None], torch.from_numpy(image)[None])
    pulled = warp(torch.from_numpy(moved_disc)[None, None], displacement)[0, 0].numpy() > 0.5
    before = 2 * (moved_disc * disc).sum() / (moved_disc + disc).sum()
    after = 2 * (pulled * disc).sum() / (pulled + disc).sum()
    assert before < 0.75
    assert after > 0.93


def test_coarse_level_finds_the_whole_displacement():
    # No step on the finest level: what the coarse one found must have been scaled to fine pixels.
    rows, columns = np.indices((64, 64))
    images = [np.exp(-((rows - 32 - shift) ** 2 + (columns - 32) ** 2) / 200).astype(np.float32) for shift in (4, 0)]
    moving, fixed = (torch.from_numpy(image)[None] for image in images)
    found = register(moving, fixed, settings=DemonsSettings(iterations=(40, 0)))
    assert found[0, 0, 24:40, 24:40].mean() == pytest.approx(4, abs=0.5)


def test_warp_pulls_from_where_the_displacement_points():
    image = torch.arange(20.0).reshape(1, 1, 4, 5)
    displacement = torch.zeros(1, 2, 4, 5)
    displacement[:, 0] = 1
    np.testing.assert_allclose(warp(image, displacement)[0, 0, :3], image[0, 0, 1:])
    np.testing.assert_allclose(warp(image, displacement)[0, 0, 3], image[0, 0, 3])
    displacement[:, 0], displacement[:, 1] = 0, 0.5
    np.testing.assert_allclose(warp(image, displacement)[0, 0, :, :4], image[0, 0, :, :4] + 0.5)


def test_a_pair_does_not_depend_on_its_company():
    moving = texture(7, (33, 45))
    fixed, _ = bent(moving)
    together = register(moving, fixed)
    alone = torch.cat([register(moving[n : n + 1], fixed[n : n + 1]) for n in range(7)])
    assert torch.equal(together, alone)


def test_intensity_scale_does_not_matter():
    moving = texture(2, (40, 40))
    fixed, _ = bent(moving)
    torch.testing.assert_close(register(moving * 1e5 + 1e6, fixed), register(moving, fixed), atol=0.02, rtol=0)


def test_coarse_rows_move_fewer_pixels():
    # The same scene on a grid whose rows are twice as far apart: half the displacement in row pixels.
    moving = texture(6, (64, 64), width=4)
    fixed, _ = bent(moving, size=3)
    fine = register(moving, fixed)[:, 0, ::2]
    coarse = register(moving[:, ::2], fixed[:, ::2], (2.0, 1.0))[:, 0]
    assert (2 * coarse - fine).abs().mean() < 0.4 * fine.abs().mean()
    assert coarse.abs().mean() > 0.3 * fine.abs().mean()


def test_as_good_as_the_reference_implementation():
    moving = texture(4, (48, 40), seed=5)
    fixed, _ = bent(moving, seed=6, size=3)
    scores = {
        backend: correlation(warp(moving[:, None], register(moving, fixed, backend=backend))[:, 0], fixed).mean()
        for backend in ("demons", "sitk")
    }
    assert scores["demons"] > scores["sitk"] - 0.01


@pytest.mark.parametrize("shape", [(1, 30), (30, 1), (2, 2), (5, 90)])
def test_thin_and_flat_slices_give_finite_fields(shape):
    flat = torch.ones(2, *shape)
    assert register(flat, flat).shape == (2, 2, *shape)
    assert torch.isfinite(register(flat, texture(2, shape))).all()


def test_no_pairs():
    assert register(torch.zeros(0, 5, 6), torch.zeros(0, 5, 6)).shape == (0, 2, 5, 6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UsageError):
        register(torch.zeros(2, 5, 6), torch.zeros(2, 6, 5))
    with pytest.raises(UsageError, match="elastix"):
        register(torch.zeros(2, 5, 6), torch.zeros(2, 5, 6), backend="elastix")
