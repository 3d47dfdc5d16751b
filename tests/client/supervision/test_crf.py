"""The gated CRF against a loop over all pairs, and what it must never do."""

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wardround.client.supervision.crf import CrfSettings, gated_crf, multi_view_crf
from wardround.errors import UsageError


def example(*sides: int, classes: int = 3, count: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities, image and receivers, float64."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, *sides, generator=generator, dtype=torch.float64)
    # Intensities a few kernel widths apart, so that the kernel is neither 0 nor 1.
    image = 0.2 * torch.randn(count, 1, *sides, generator=generator, dtype=torch.float64)
    receivers = torch.rand(count, *sides, generator=generator) < 0.6
    return torch.softmax(logits, 1), image, receivers


def all_pairs(  # noqa: PLR0917
    p: Tensor,
    image: Tensor,
    receivers: Tensor,
    spacing: Sequence[float],
    chosen: CrfSettings | None = None,
    flat: int | None = None,
    inside: Tensor | None = None,
) -> Tensor:
    """The energy as it is written down: for each receiver, over every other voxel within the window."""
    chosen, sides = chosen or CrfSettings(), p.shape[2:]
    total = p.new_zeros(())
    for n, i, j in itertools.product(range(len(p)), *[list(itertools.product(*map(range, sides)))] * 2):
        away = [(b - a) * step / min(spacing) for a, b, step in zip(i, j, spacing, strict=True)]
        near = all(abs(by) <= chosen.radius + 1e-6 for by in away) and (flat is None or i[flat] == j[flat])
        if i == j or not near or (inside is not None and not (inside[n][i] and inside[n][j])):
            continue
        alike = (image[n, 0][i] - image[n, 0][j]).item() / chosen.intensity
        kernel = math.exp(-0.5 * (sum(by**2 for by in away) / chosen.position**2 + alike**2))
        total = total + float(receivers[n][i]) * kernel * (1 - (p[n, :, *i] * p[n, :, *j]).sum())
    counted = receivers if inside is None else receivers & inside
    return total / max(counted.sum().item(), 1)


def agree(found: Tensor, expected: Tensor, p: Tensor) -> None:
    """The same value and the same gradient."""
    assert math.isclose(found.item(), expected.item(), rel_tol=1e-10)
    (mine,), (brute,) = (torch.autograd.grad(energy, p) for energy in (found, expected))
    assert torch.allclose(mine, brute, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("sides", "spacing", "radius"),
    [
        ((4, 5), (1.0, 1.0), 2.0),
        ((4, 5), (0.7, 1.9), 3.0),
        ((3, 4, 2), (1.0, 1.0, 1.0), 1.0),
        ((3, 2, 3), (1.5, 1.5, 4.0), 5.0),
        ((2, 3, 2), (1.5, 1.5, 10.0), 5.0),
    ],
)
def test_it_equals_a_loop_over_all_pairs(sides: tuple[int, ...], spacing: tuple[float, ...], radius: float) -> None:
    p, image, receivers = example(*sides)
    p.requires_grad_()
    chosen = CrfSettings(radius=radius, position=2.0)
    agree(
        gated_crf(p, image, receivers, spacing=spacing, settings=chosen),
        all_pairs(p, image, receivers, spacing, chosen),
        p,
    )


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_each_view_on_six_cubed_equals_a_loop_over_all_pairs(axis: int) -> None:
    p, image, receivers = example(6, 6, 6, count=1)
    p.requires_grad_()
    agree(
        gated_crf(p, image, receivers, settings=CrfSettings(radius=2), flat=axis),
        all_pairs(p, image, receivers, (1, 1, 1), CrfSettings(radius=2), axis),
        p,
    )


def test_what_was_filled_up_round_the_image_is_nobodys_neighbour() -> None:
    p, image, receivers = example(4, 5)
    p.requires_grad_()
    inside = torch.ones(2, 4, 5, dtype=torch.bool)
    inside[:, 3] = False
    agree(gated_crf(p, image, receivers, inside=inside), all_pairs(p, image, receivers, (1, 1), inside=inside), p)
    alone = gated_crf(p[:, :, :3], image[:, :, :3], receivers[:, :3])
    assert math.isclose(gated_crf(p, image, receivers, inside=inside).item(), alone.item(), rel_tol=1e-10)


def test_without_receivers_named_all_voxels_receive_and_with_none_the_energy_is_zero() -> None:
    p, image, receivers = example(4, 5)
    p.requires_grad_()
    assert gated_crf(p, image).item() == gated_crf(p, image, torch.ones_like(receivers)).item()
    nothing = gated_crf(p, image, torch.zeros_like(receivers))
    nothing.backward()
    assert nothing.item() == 0
    assert p.grad is not None
    assert (p.grad == 0).all()


@settings(max_examples=25, deadline=None)
@given(
    sides=st.lists(st.integers(1, 5), min_size=2, max_size=3),
    label=st.integers(0, 2),
    radius=st.floats(0, 6),
    seed=st.integers(0, 99),
)
def test_a_constant_one_hot_map_costs_exactly_nothing(sides: list[int], label: int, radius: float, seed: int) -> None:
    """Nor does a constant image at its border: nothing beyond the edge is a neighbour."""
    p, image, receivers = example(*sides, seed=seed)
    p = torch.zeros_like(p)
    p[:, label] = 1
    chosen = CrfSettings(radius=radius)
    assert gated_crf(p, image, receivers, settings=chosen).item() == 0
    assert gated_crf(p, torch.ones_like(image), settings=chosen).item() == 0


@settings(max_examples=25, deadline=None)
@given(sides=st.lists(st.integers(1, 5), min_size=2, max_size=3), seed=st.integers(0, 99))
def test_it_is_never_negative(sides: list[int], seed: int) -> None:
    assert gated_crf(*example(*sides, seed=seed)).item() >= 0


def test_the_mask_is_on_who_receives_scribbles_everywhere_cost_nothing() -> None:
    p, image, _ = example(6, 6)
    scribbled = torch.ones(2, 6, 6, dtype=torch.bool)
    assert gated_crf(p, image, ~scribbled).item() == 0
    constant = torch.full_like(p, 1 / 3)
    assert gated_crf(constant, image, ~scribbled).item() == 0
    assert gated_crf(constant, image, scribbled).item() > 0


def test_voxels_that_nobody_drew_carry_the_energy() -> None:
    """One disagreement: it costs where its ends are undrawn, and nothing where only drawn voxels see it."""
    p = torch.zeros(1, 2, 1, 9, dtype=torch.float64)
    p[:, 0], p[:, 0, 0, 0], p[:, 1, 0, 0] = 1, 0, 1
    p[:, 1, 0, 1:] = 0
    image = torch.zeros(1, 1, 1, 9, dtype=torch.float64)
    near, far = torch.zeros(2, 1, 1, 9, dtype=torch.bool)
    near[..., 1], far[..., 8] = True, True
    assert gated_crf(p, image, near, settings=CrfSettings(radius=2)).item() > 0.9
    assert gated_crf(p, image, far, settings=CrfSettings(radius=2)).item() == 0


def test_an_edge_of_the_image_gates_the_pull() -> None:
    p, image, _ = example(4, 6)
    step = torch.zeros_like(image)
    step[..., 3:] = 1.0
    label = (step > 0.5).to(p)
    along = torch.cat([1 - label, label], dim=1)
    across = torch.roll(along, 1, dims=3)
    assert gated_crf(along, step).item() < 1e-9
    assert gated_crf(across, step).item() > 0.1


def test_views_averaged_do_not_know_the_order_of_the_axes_of_a_cube() -> None:
    p, image, receivers = example(5, 5, 5)
    logits = p.log()
    one = multi_view_crf(logits, image, receivers)
    for order in itertools.permutations(range(3)):
        axes = [2 + axis for axis in order]
        turned = multi_view_crf(
            logits.permute(0, 1, *axes), image.permute(0, 1, *axes), receivers.permute(0, *(a - 1 for a in axes))
        )
        assert math.isclose(one.item(), turned.item(), rel_tol=1e-10)


def test_the_three_views_of_an_anisotropic_volume_differ_and_are_averaged() -> None:
    p, image, receivers = example(4, 6, 3)
    spacing = (1.0, 1.0, 2.5)
    views = [gated_crf(p, image, receivers, spacing=spacing, flat=axis).item() for axis in range(3)]
    assert len({round(view, 6) for view in views}) == 3
    together = multi_view_crf(p.log(), image, receivers, spacing=spacing)
    assert math.isclose(together.item(), sum(views) / 3, rel_tol=1e-10)


def test_resampled_views_are_those_of_the_coarser_volume_at_its_wider_spacing() -> None:
    generator = torch.Generator().manual_seed(1)
    small = torch.randn(1, 2, 4, 4, 3, generator=generator, dtype=torch.float64)
    image = 0.2 * torch.randn(1, 1, 4, 4, 3, generator=generator, dtype=torch.float64)
    mask = torch.rand(1, 4, 4, 3, generator=generator) < 0.5

    def doubled(part: Tensor) -> Tensor:
        return part.repeat_interleave(2, -2).repeat_interleave(2, -3)

    found = multi_view_crf(doubled(small), doubled(image), doubled(mask), spacing=(1.0, 1.0, 2.0), grid=(4, 4, 3))
    expected = multi_view_crf(small, image, mask, spacing=(2.0, 2.0, 2.0))
    assert math.isclose(found.item(), expected.item(), rel_tol=1e-9)


@pytest.mark.parametrize("radius", [1.0, 5.0])
def test_what_is_kept_for_the_gradient_does_not_grow_with_the_window(radius: float) -> None:
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    p, image, receivers = example(16, 16)
    p.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        gated_crf(p, image, receivers, settings=CrfSettings(radius=radius)).backward()
    assert sum(kept) == p.numel()


def test_the_energy_itself_is_met_in_views_never_in_a_window_unfolded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor that is made on the way is no larger than the probabilities."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            made = func(*args, **(kwargs or {}))
            self.numel = max([self.numel, *(t.numel() for t in [made] if isinstance(t, Tensor))])
            return made

    p, image, receivers = example(16, 16)
    p.requires_grad_()
    with Largest() as largest:
        gated_crf(p, image, receivers).backward()
    assert largest.numel == p.numel()


def test_shapes_that_do_not_fit_are_a_users_error() -> None:
    p, image, receivers = example(4, 5)
    with pytest.raises(UsageError, match="does not fit"):
        gated_crf(p, image[:, :, :3], receivers)
    with pytest.raises(UsageError, match="does not fit"):
        gated_crf(p, image, receivers[:, :3])
