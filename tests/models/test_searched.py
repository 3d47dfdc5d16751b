"""The searched generator: what its mixture computes, what it depends on, and that it fits its discriminator."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wardround.errors import UsageError
from wardround.models.searched import KERNELS, SearchedGenerator, SearchedSettings, SearchedUp, discriminator
from wardround.models.weights import load_weights, weights_of

SIDES = {2: (16, 24), 3: (8, 16, 8)}


def settings(dimensions: int = 2, dropout: float = 0.0) -> SearchedSettings:
    channels = (8, 12, 16) if dimensions == 2 else (4, 8)
    return SearchedSettings(dimensions, 3, channels, dropout, discriminator_channels=4, discriminator_layers=1)


def masks(dimensions: int = 2, seed: int = 0, count: int = 2) -> Tensor:
    labels = torch.from_numpy(np.random.default_rng(seed).integers(0, 3, (count, *SIDES[dimensions])))
    return F.one_hot(labels, 3).movedim(-1, 1).float()


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_step_up_is_the_sum_of_three_transposed_convolutions_weighted_by_the_mixture(dimensions: int) -> None:
    torch.manual_seed(0)
    step = SearchedUp(dimensions, 5, 4, bias=True).double()
    feature = torch.randn(2, 5, *(3, 4, 2)[:dimensions], dtype=torch.float64)
    mixture = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    torch.nn.init.normal_(step.bias)
    layer = torch.nn.ConvTranspose2d if dimensions == 2 else torch.nn.ConvTranspose3d
    expected = torch.zeros(2, 4, *(2 * side for side in feature.shape[2:]), dtype=torch.float64)
    for share, own, side, padding in zip(mixture, step.kernels, (4, 6, 8), (1, 2, 3), strict=True):
        single = layer(5, 4, side, stride=2, padding=padding).double()
        single.weight.data, single.bias.data = own.data, step.bias.data
        expected += share * single(feature)
    assert torch.allclose(step(feature, mixture), expected, atol=1e-12)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_single_precision_gives_the_gradients_of_double_precision_on_a_small_grid(dimensions: int) -> None:
    # Sizes for which the transposed convolution of torch 2.13 gives gradients of whatever lies in memory.
    torch.manual_seed(0)
    step = SearchedUp(dimensions, 32, 16, bias=False)
    feature, mixture = torch.randn(2, 32, *(4,) * dimensions), torch.full((3,), 1 / 3)
    direction = torch.randn(2, 16, *(8,) * dimensions)
    found = [torch.autograd.grad((step(feature, mixture) * direction).sum(), list(step.parameters())) for _ in range(3)]
    loss = (step.double()(feature.double(), mixture.double()) * direction).sum()
    exact = torch.autograd.grad(loss, list(step.parameters()))
    for gradients in found:
        for gradient, wanted in zip(gradients, exact, strict=True):
            assert (gradient - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_mask_becomes_one_image_of_its_size_and_the_discriminator_judges_its_patches(
    dimensions: int, dropout: float
) -> None:
    chosen = settings(dimensions, dropout)
    image = SearchedGenerator(chosen, seed=0)(masks(dimensions))
    assert image.shape == (2, 1, *SIDES[dimensions])
    verdict = discriminator(chosen, seed=0)(torch.cat([masks(dimensions), image], dim=1))[-1]
    assert verdict.shape[:2] == (2, 1)
    assert min(verdict.shape[2:]) > 1


def test_the_coarsest_level_may_be_a_single_voxel() -> None:
    chosen = settings()
    assert SearchedGenerator(chosen, seed=0)(masks()[..., :8, :8]).shape == (2, 1, 8, 8)
    assert chosen.stride == 8


def test_every_image_is_made_alone() -> None:
    network, both = SearchedGenerator(settings(), seed=0), masks()
    alone = torch.cat([network(one[None]) for one in both])
    assert torch.allclose(network(both), alone, atol=1e-6)


def test_architecture_and_weights_are_all_there_is_and_both_get_a_gradient() -> None:
    network = SearchedGenerator(settings(), seed=0)
    weights = network.weights()
    assert len(weights) + 1 == len(list(network.parameters()))
    assert all(one is not network.architecture for one in weights)
    loss = (network(masks()) - torch.linspace(-1, 1, 24)).square().mean()
    gradients = torch.autograd.grad(loss, [network.architecture, *weights])
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_a_fresh_architecture_mixes_evenly_and_decides_which_kernel_counts() -> None:
    network = SearchedGenerator(settings(), seed=0)
    assert network.mixtures().shape == (3, len(KERNELS))
    assert 0 < (network.mixtures() - 1 / 3).abs().max() < 2e-3
    with torch.no_grad():
        network.architecture.copy_(torch.tensor([[50.0, 0, 0]] * 3))
        before = network(masks())
        for step in network.up:
            step.kernels[2].fill_(7.0)
        assert torch.equal(network(masks()), before)
        network.architecture.zero_()
        assert not torch.allclose(network(masks()), before)


def test_a_seed_fixes_everything_and_leaves_the_global_state_of_torch_alone() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one, other, third = (SearchedGenerator(settings(), seed) for seed in (1, 1, 2))
    critic, same = (discriminator(settings(), 1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(np.array_equal(weights_of(other)[name], array) for name, array in weights_of(one).items())
    assert all(np.array_equal(weights_of(same)[name], array) for name, array in weights_of(critic).items())
    assert not torch.equal(one.architecture, third.architecture)
    load_weights(third, weights_of(one))
    assert torch.equal(third(masks()), one(masks()))


def test_dropout_makes_images_differ_and_follows_the_random_state() -> None:
    network = SearchedGenerator(settings(dropout=0.5), seed=0).eval()
    with torch.no_grad(), torch.random.fork_rng():
        made = []
        for seed in (0, 1, 0):
            torch.manual_seed(seed)
            made.append(network(masks()))
    assert torch.equal(made[0], made[2])
    assert not torch.equal(made[0], made[1])


@pytest.mark.parametrize(("levels", "noisy"), [(2, 1), (3, 1), (5, 1), (8, 3)])
def test_dropout_is_where_pix2pix_has_it(levels: int, noisy: int) -> None:
    network = SearchedGenerator(SearchedSettings(2, 2, (2,) * levels), seed=0)
    assert len(network.up) - network._from_level == noisy


@pytest.mark.parametrize(
    "wrong", [{"dimensions": 4}, {"labels": 1}, {"channels": (8,)}, {"dropout": 1.0}, {"dropout": -0.1}]
)
def test_settings_that_make_no_generator_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="no generator"):
        SearchedSettings(**{"dimensions": 2, "labels": 3} | wrong)  # type: ignore[arg-type]
