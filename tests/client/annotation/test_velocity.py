"""Velocity fields: maps that fit, and that never fold."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from wardround.client.annotation.registration import register
from wardround.client.annotation.sampling import warp
from wardround.client.annotation.velocity import VelocitySettings, integrate, local_correlation, velocity_field

QUICK = VelocitySettings(iterations=(15, 10, 5))


def smooth(shape, width, seed=0):
    noise = np.random.default_rng(seed).normal(size=shape)
    widths = [0] * (len(shape) - 2) + [width, width]
    return torch.from_numpy(ndimage.gaussian_filter(noise, widths).astype(np.float32))


def pairs(count=8, shape=(40, 32), size=2.5):
    moving = smooth((count, *shape), 2.5)
    field = smooth((count, 2, *shape), 6, seed=1)
    field *= size / field.abs().amax(dim=(1, 2, 3), keepdim=True)
    return moving, warp(moving[:, None], field)[:, 0]


def correlation(one, other):
    one, other = (image.flatten(1) - image.flatten(1).mean(dim=1, keepdim=True) for image in (one, other))
    return (one * other).sum(dim=1) / (one.norm(dim=1) * other.norm(dim=1))


def jacobian(displacement):
    """Determinant of the derivative of x + u(x), by forward differences."""
    down = displacement.diff(dim=2)[..., :-1]
    right = displacement.diff(dim=3)[:, :, :-1]
    return (1 + down[:, 0]) * (1 + right[:, 1]) - down[:, 1] * right[:, 0]


def test_the_map_fits():
    moving, fixed = pairs()
    found = register(moving, fixed, backend="velocity", velocity=QUICK)
    after, before = correlation(warp(moving[:, None], found)[:, 0], fixed), correlation(moving, fixed)
    assert (after > before).all()
    assert after.mean() > 0.97


@pytest.mark.parametrize("seed", range(5))
def test_integrated_velocities_do_not_fold(seed):
    velocity = smooth((4, 2, 48, 48), 5, seed)
    velocity *= 12 / velocity.abs().amax(dim=(1, 2, 3), keepdim=True)
    assert (jacobian(integrate(velocity, 7)) > 0).all()
    # The velocity itself, taken for a displacement, does fold: there was something to show.
    assert (jacobian(velocity) < 0).any()


def test_registration_of_unlike_slices_does_not_fold():
    moving, fixed = smooth((6, 40, 32), 2, seed=3), smooth((6, 40, 32), 2, seed=4)
    found = velocity_field(moving, fixed, (1.0, 1.0), QUICK)
    assert found.abs().max() > 1
    assert (jacobian(found) > 0).all()


def test_going_back_along_the_velocity_undoes_it():
    velocity = smooth((2, 2, 48, 48), 6)
    velocity *= 3 / velocity.abs().amax(dim=(1, 2, 3), keepdim=True)
    forth, back = integrate(velocity, 6), integrate(-velocity, 6)
    there_and_back = forth + warp(back, forth)
    assert there_and_back[..., 8:-8, 8:-8].abs().max() < 0.05
    assert forth.abs().max() > 2


def test_local_correlation_is_that_of_a_window():
    one, other = smooth((1, 9, 11), 1, seed=5), smooth((1, 9, 11), 1, seed=6)
    window = (0, slice(2, 7), slice(3, 8))
    expected = np.corrcoef(one[window].ravel(), other[window].ravel())[0, 1] ** 2
    scale = 100  # far from the floor that keeps flat windows quiet
    found = local_correlation(one * scale, other * scale, 5)
    assert found[0, 4, 5] == pytest.approx(expected, abs=1e-3)
    assert 0 <= found.min() <= found.max() <= 1 + 1e-4


def test_a_pair_does_not_depend_on_its_company():
    moving, fixed = pairs(3)
    together = velocity_field(moving, fixed, (1.0, 1.0), QUICK)
    alone = torch.cat([velocity_field(moving[n : n + 1], fixed[n : n + 1], (1.0, 1.0), QUICK) for n in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=0)


def test_it_works_inside_inference_mode():
    moving, fixed = pairs(1)
    with torch.inference_mode():
        inside = velocity_field(moving.clone(), fixed.clone(), (1.0, 1.0), QUICK)
    assert torch.equal(inside, velocity_field(moving, fixed, (1.0, 1.0), QUICK))


@pytest.mark.parametrize("shape", [(1, 30), (2, 2), (5, 60)])
def test_thin_and_flat_slices_give_finite_fields(shape):
    flat = torch.ones(2, *shape)
    found = velocity_field(flat, smooth((2, *shape), 2), (1.0, 2.0), QUICK)
    assert found.shape == (2, 2, *shape)
    assert torch.isfinite(found).all()
