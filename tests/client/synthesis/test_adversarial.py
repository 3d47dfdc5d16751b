"""Generator and discriminator against each other: what each step moves, and what it moves towards."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wardround.client.synthesis.adversarial import Adversarial, Adversaries
from wardround.models.searched import SearchedSettings

NETWORK = SearchedSettings(2, 3, (4, 8), dropout=0.0, discriminator_channels=4, discriminator_layers=1)


def adversaries(l1: float = 100.0, adversarial: Adversarial = "bce") -> Adversaries:
    return Adversaries(NETWORK, 0, torch.device("cpu"), l1, adversarial)


def batch() -> tuple[Tensor, Tensor]:
    """Three images whose structures are brighter and darker than their noise, and their masks."""
    rng = np.random.default_rng(0)
    labels = np.zeros((3, 16, 16), dtype=np.int64)
    labels[:, 3:8, 4:9], labels[:, 9:14, 6:12] = 1, 2
    images = np.array([0.0, 2.0, -2.0])[labels] + rng.normal(0, 0.2, labels.shape)
    return torch.from_numpy(images)[:, None].float(), F.one_hot(torch.from_numpy(labels), 3).movedim(-1, 1).float()


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def moved(network: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}


def test_a_step_moves_both_networks_and_leaves_the_architecture_and_no_gradient_behind() -> None:
    own = adversaries()
    generator, discriminator = weights(own.generator), weights(own.discriminator)
    own.step(*batch(), 1e-3)
    assert moved(own.generator, generator) == set(generator) - {"architecture"}
    assert moved(own.discriminator, discriminator)
    assert all(p.grad is None for network in (own.generator, own.discriminator) for p in network.parameters())


def told_apart(own: Adversaries) -> float:
    """How much more real images are taken for real than made ones."""
    images, masks = batch()
    return (own.verdict(masks, images) - own.verdict(masks, own.generator(masks))).mean().item()


def against(own: Adversaries, still: nn.Module, steps: int) -> None:
    """Steps, of which `still` forgets its own."""
    start = deepcopy(still.state_dict())
    for _ in range(steps):
        own.step(*batch(), 1e-2)
        still.load_state_dict(start)


@pytest.mark.parametrize("adversarial", ["bce", "least_squares", "hinge"])
def test_the_discriminator_learns_to_tell_made_images_from_real_ones_and_the_generator_to_fool_it(
    adversarial: Any,
) -> None:
    own = adversaries(l1=0.0, adversarial=adversarial)
    before = told_apart(own)
    against(own, own.generator, 12)
    between = told_apart(own)
    assert between > before + 0.3
    against(own, own.discriminator, 12)
    assert told_apart(own) < between - 0.3


def test_the_loss_is_cross_entropy_of_the_verdict_and_the_mean_absolute_difference() -> None:
    own, (images, masks) = adversaries(l1=7.0), batch()
    made = own.generator(masks)
    verdict = own.verdict(masks, made)
    wanted = F.binary_cross_entropy_with_logits(verdict, torch.ones_like(verdict)) + 7 * (made - images).abs().mean()
    assert torch.allclose(own.loss(images, masks), wanted, rtol=1e-5)
    assert own.step(images, masks, 0.0)[0] == pytest.approx(wanted.item(), rel=1e-5)


def test_the_discriminator_is_told_which_mask_an_image_is_of() -> None:
    own, (images, masks) = adversaries(), batch()
    assert not torch.allclose(own.verdict(masks, images), own.verdict(masks.flip(2), images))


def test_a_step_that_is_not_finite_is_left_out_and_told_of(caplog: pytest.LogCaptureFixture) -> None:
    own, (images, masks) = adversaries(l1=float("inf")), batch()
    generator = weights(own.generator)
    for _ in range(2):
        own.step(images, masks, 1e-3)
    assert not moved(own.generator, generator)
    assert caplog.text.count("a step of a generator was left out") == 2
