"""Variance within classes: against a loop over voxels, and its scale."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wardround.client.supervision.variance import intensity_variance


def square(shift: int = 0) -> Tensor:
    """One-hot map of a square, moved by `shift`."""
    inside = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    inside[..., 2 + shift : 5 + shift, 2:5] = 1
    return torch.cat([1 - inside, inside], dim=1)


def test_it_equals_a_loop_over_voxels() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.softmax(torch.randn(2, 3, 2, 2, 3, generator=generator, dtype=torch.float64), 1)
    image = torch.randn(2, 1, 2, 2, 3, generator=generator, dtype=torch.float64)
    counted, inside = torch.rand(2, 2, 2, 2, 3, generator=generator) < 0.7
    total = 0.0
    for n in range(2):
        for c in range(3):
            voxels = [
                (p[n, c, i, j, k].item(), image[n, 0, i, j, k].item())
                for i in range(2)
                for j in range(2)
                for k in range(3)
                if inside[n, i, j, k] and (c > 0 or counted[n, i, j, k])
            ]
            mass = sum(weight for weight, _ in voxels)
            mean = sum(weight * value for weight, value in voxels) / mass
            total += sum(weight * (value - mean) ** 2 for weight, value in voxels) / mass / 2
    assert math.isclose(intensity_variance(p, image, counted, inside).item(), total, rel_tol=1e-10)


def test_the_gradient_is_that_of_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(1, 2, 3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    image = torch.randn(1, 1, 3, 2, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda part: intensity_variance(part, image), (p,))


def test_a_piecewise_constant_image_with_the_right_mask_costs_nothing_and_a_shifted_one_more() -> None:
    image = 3 * square()[:, 1:] - 1
    costs = [intensity_variance(square(shift), image).item() for shift in (0, 1, 2)]
    assert costs[0] < 1e-20
    assert costs[0] < costs[1] < costs[2]


@settings(max_examples=20, deadline=None)
@given(factor=st.floats(0.1, 10), lift=st.floats(-5, 5), seed=st.integers(0, 99))
def test_it_scales_with_intensity_squared_and_not_with_its_level(factor: float, lift: float, seed: int) -> None:
    image = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    one, other = (intensity_variance(square(1), part).item() for part in (image, factor * image + lift))
    assert math.isclose(other, factor**2 * one, rel_tol=1e-6)


def test_an_absent_class_adds_nothing_and_no_nan() -> None:
    p = torch.cat([square(), torch.zeros(1, 1, 8, 8, dtype=torch.float64)], dim=1).requires_grad_()
    image = 3 * square()[:, 1:] - 1
    cost = intensity_variance(p, image)
    cost.backward()
    assert cost.item() < 1e-20
    assert p.grad is not None
    assert p.grad.isfinite().all()


def test_air_is_left_out_of_background_only() -> None:
    """Air twice as large changes nothing where it is not counted."""
    image = torch.full((1, 1, 8, 8), -2.0, dtype=torch.float64)
    image[..., 2:5, 2:5] = 1
    image[..., 5, :] = 0
    found = intensity_variance(square(), image, (image > -2)[:, 0]).item()
    assert found < 1e-20 < intensity_variance(square(), image).item()
