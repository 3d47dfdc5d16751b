"""Weighted losses against loops over voxels."""

import math

import numpy as np
import pytest
import torch

from wardround.client.supervision.losses import (
    DICE_SMOOTHING,
    segmentation_loss,
    weighted_cross_entropy,
    weighted_soft_dice,
)


def example(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 2, 3, 2, generator=generator, dtype=torch.float64)
    target = torch.rand(2, 3, 2, 3, 2, generator=generator, dtype=torch.float64)
    weight = torch.rand(2, 2, 3, 2, generator=generator, dtype=torch.float64)
    weight[0, 0] = 0
    return logits, target / target.sum(1, keepdim=True), weight


def test_cross_entropy_equals_a_loop_over_voxels() -> None:
    logits, target, weight = example()
    paid = total = 0.0
    for n, i, j, k in np.ndindex(2, 2, 3, 2):
        scores = logits[n, :, i, j, k].tolist()
        norm = math.log(sum(math.exp(s) for s in scores))
        own = -sum(t * (s - norm) for t, s in zip(target[n, :, i, j, k].tolist(), scores, strict=True))
        paid += float(weight[n, i, j, k]) * own
        total += float(weight[n, i, j, k])
    assert math.isclose(weighted_cross_entropy(logits, target, weight).item(), paid / total, rel_tol=1e-10)


def test_soft_dice_equals_a_loop_over_voxels() -> None:
    logits, target, weight = example()
    probability = torch.softmax(logits, 1)
    terms = []
    for n in range(2):
        for label in (1, 2):
            overlap = mass = 0.0
            for i, j, k in np.ndindex(2, 3, 2):
                w = float(weight[n, i, j, k])
                p, t = float(probability[n, label, i, j, k]), float(target[n, label, i, j, k])
                overlap += w * p * t
                mass += w * (p + t)
            terms.append(1 - (2 * overlap + DICE_SMOOTHING) / (mass + DICE_SMOOTHING))
    assert math.isclose(weighted_soft_dice(logits, target, weight).item(), sum(terms) / len(terms), rel_tol=1e-10)


def test_structures_of_which_nothing_is_known_are_left_out_and_samples_count_by_their_factors() -> None:
    logits, target, weight = example()
    probability = torch.softmax(logits, 1)[:, 1:]
    axes = (2, 3, 4)
    overlap = (weight.unsqueeze(1) * probability * target[:, 1:]).sum(axes)
    total = (weight.unsqueeze(1) * (probability + target[:, 1:])).sum(axes)
    missing = (1 - (2 * overlap + DICE_SMOOTHING) / (total + DICE_SMOOTHING)).tolist()
    factors = torch.tensor([1.0, 0.25], dtype=torch.float64)

    def dice(told: list[list[bool]], factors: torch.Tensor | None = None) -> float:
        return weighted_soft_dice(logits, target, weight, factors, torch.tensor(told)).item()

    both = [sum(row) / 2 for row in missing]
    assert dice([[True, False], [True, True]]) == pytest.approx((missing[0][0] + both[1]) / 2)
    assert dice([[True, False], [True, True]], factors) == pytest.approx((missing[0][0] + both[1] / 4) / 1.25)
    assert dice([[False, False], [True, True]], factors) == pytest.approx(both[1])
    assert dice([[True, True], [True, True]], factors) == pytest.approx((both[0] + both[1] / 4) / 1.25)
    assert dice([[False, False], [False, False]]) == 0


def test_nothing_unlearns_a_structure_of_which_nothing_is_known() -> None:
    logits, target, weight = example()
    logits.requires_grad_()
    told = torch.tensor([[True, False], [True, True]])
    weighted_soft_dice(logits, target, weight, told=told).backward()
    assert logits.grad is not None
    probability = torch.softmax(logits.detach(), 1)[0]
    pull = (logits.grad[0] / probability)[:, 1:]
    # Nothing pulls the second structure down but what pulls the first one up.
    assert torch.allclose(pull[2], pull[0])
    assert not torch.allclose(pull[2], pull[1])


def test_voxels_of_weight_zero_get_no_gradient_and_their_target_does_not_matter() -> None:
    logits, target, weight = example()
    logits.requires_grad_()
    segmentation_loss(logits, target, weight).backward()
    assert logits.grad is not None
    assert (logits.grad[0, :, 0] == 0).all()
    assert (logits.grad[0, :, 1] != 0).any()
    garbled = target.clone()
    garbled[0, :, 0] = 7.0
    assert torch.equal(segmentation_loss(logits, garbled, weight), segmentation_loss(logits, target, weight))


def test_no_weight_at_all_gives_zero_cross_entropy_not_nan() -> None:
    logits, target, weight = example()
    assert weighted_cross_entropy(logits, target, torch.zeros_like(weight)).item() == 0.0


def test_a_soft_target_is_learnt_as_it_is() -> None:
    logits = torch.zeros(1, 2, 1, 1, 1, requires_grad=True)
    target = torch.tensor([0.3, 0.7]).reshape(1, 2, 1, 1, 1)
    optimiser = torch.optim.SGD([logits], lr=1.0)
    for _ in range(200):
        optimiser.zero_grad()
        weighted_cross_entropy(logits, target, torch.ones(1, 1, 1, 1)).backward()
        optimiser.step()
    assert math.isclose(torch.softmax(logits, 1)[0, 1].item(), 0.7, abs_tol=1e-3)


def test_only_the_ratio_of_weights_matters_to_cross_entropy() -> None:
    """Confidence lowers the weights of a whole case; its gradient must not fade with them."""
    logits, target, weight = example()
    whole = weighted_cross_entropy(logits, target, weight)
    assert math.isclose(weighted_cross_entropy(logits, target, 0.1 * weight).item(), whole.item(), rel_tol=1e-10)


def test_soft_dice_does_not_fade_with_the_weights_where_there_is_a_structure() -> None:
    logits, target, _ = example()
    logits, target = logits.repeat(1, 1, 8, 8, 8), target.repeat(1, 1, 8, 8, 8)
    weight = torch.ones(2, 16, 24, 16, dtype=torch.float64)
    full, faint = (weighted_soft_dice(logits, target, scale * weight).item() for scale in (1.0, 0.1))
    assert math.isclose(full, faint, rel_tol=0.01)


def test_a_voxel_pulls_in_proportion_to_its_confidence() -> None:
    logits = torch.zeros(1, 2, 1, 1, 2, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64).reshape(1, 2, 1, 1, 2)
    weight = torch.tensor([0.25, 1.0], dtype=torch.float64).reshape(1, 1, 1, 2)
    segmentation_loss(logits, target, weight).backward()
    assert logits.grad is not None
    unsure, sure = logits.grad[0, 1, 0, 0].tolist()
    assert math.isclose(unsure / sure, 0.25, rel_tol=1e-9)
    assert sure < 0


def test_partial_losses_do_not_change_when_the_ignored_area_doubles() -> None:
    logits, target, weight = example()
    logits.requires_grad_()
    ignored = torch.randn(2, 3, 2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    nothing = torch.zeros(2, 2, 3, 4, dtype=torch.float64)
    for loss in (weighted_cross_entropy, weighted_soft_dice, segmentation_loss):
        found = [
            loss(
                torch.cat([logits, *[ignored] * times], dim=4),
                torch.cat([target, *[ignored.softmax(1)] * times], dim=4),
                torch.cat([weight, *[nothing] * times], dim=3),
            )
            for times in (0, 1, 2)
        ]
        gradients = [torch.autograd.grad(value, logits)[0] for value in found]
        assert all(math.isclose(value.item(), found[0].item(), rel_tol=1e-12) for value in found)
        assert all(torch.allclose(gradient, gradients[0], rtol=1e-10) for gradient in gradients)


def test_a_sample_counts_as_much_as_its_factor_says_in_both_terms() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    target = torch.softmax(torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64), dim=1)
    weight = torch.rand(2, 4, 4, generator=generator, dtype=torch.float64)

    def loss(*factors: float) -> float:
        return segmentation_loss(logits, target, weight, 1.0, torch.tensor(factors, dtype=torch.float64)).item()

    alone = [segmentation_loss(logits[n : n + 1], target[n : n + 1], weight[n : n + 1]).item() for n in (0, 1)]
    assert loss(1, 0) == pytest.approx(alone[0])
    assert loss(0, 3) == pytest.approx(alone[1])
    assert loss(1, 1) == pytest.approx(segmentation_loss(logits, target, weight).item())
    dice = [weighted_soft_dice(logits[n : n + 1], target[n : n + 1], weight[n : n + 1]).item() for n in (0, 1)]
    mixed = weighted_soft_dice(logits, target, weight, torch.tensor([1.0, 0.25], dtype=torch.float64)).item()
    assert mixed == pytest.approx((dice[0] + 0.25 * dice[1]) / 1.25)
    assert loss(0, 0) == pytest.approx(0)
