"""Spatial self-attention: what it computes, what it leaves behind, and how its weights travel."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from wardround.client.learning.inference import predict
from wardround.client.learning.learner import LearningSettings, OnlineLearner
from wardround.client.learning.replay import Sample
from wardround.client.supervision.regularisation import Regularisation
from wardround.models import attention as module
from wardround.models.attention import SpatialAttention, attend_after, watched_attention
from wardround.models.catalogue import architecture, build
from wardround.models.weights import load_weights, weights_of

NAMES = ("unet2d-small-attention", "unet3d-small-attention")
LARGE = ("unet2d-attention", "unet3d-attention")


def block(dimensions: int, window: int = 8, channels: int = 6) -> SpatialAttention:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SpatialAttention(channels, dimensions, window).double()


def feature(*grid: int, channels: int = 6) -> Tensor:
    return torch.randn(2, channels, *grid, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def softmax_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return torch.softmax(queries @ keys.transpose(1, 2) / queries.shape[2] ** 0.5, dim=2) @ values


def attended(own: SpatialAttention, values: Tensor, grid: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the attention path makes of a feature, and its queries, keys and values."""
    tokens = own.norm(values.flatten(2).transpose(1, 2))
    q, k, v = own.query(tokens), own.key(tokens), own.value(tokens)
    return own._attend(q, k, v, grid), q, k, v


@pytest.mark.parametrize("grid", [(4, 5), (3, 4, 2)])
def test_the_feature_path_is_plain_softmax_attention(grid: tuple[int, ...]) -> None:
    found, queries, keys, values = attended(block(len(grid)), feature(*grid), grid)
    assert torch.allclose(found, softmax_attention(queries, keys, values), atol=1e-12)


@pytest.mark.parametrize(("grid", "window"), [((5, 7), 4), ((4, 4), 4), ((5, 3, 4), 2), ((1, 9), 4)])
def test_in_windows_a_voxel_attends_to_the_voxels_of_its_window_and_to_nothing_that_fills_it_up(
    grid: tuple[int, ...], window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WHOLE_LIMIT", 0)
    found, queries, keys, values = attended(block(len(grid), window), feature(*grid), grid)
    number = torch.arange(int(np.prod(grid))).reshape(grid)
    for start in itertools.product(*(range(0, side, window) for side in grid)):
        own = number[tuple(slice(low, low + window) for low in start)].flatten()
        expected = softmax_attention(queries[:, own], keys[:, own], values[:, own])
        assert torch.allclose(found[:, own], expected, atol=1e-12)


@pytest.mark.parametrize("grid", [(6, 8), (4, 3, 5)])
def test_one_window_over_everything_is_whole_attention(grid: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    own, values = block(len(grid)), feature(*grid).requires_grad_()
    whole = own(values)
    monkeypatch.setattr(module, "WHOLE_LIMIT", 0)
    windows = own(values)
    assert torch.allclose(whole, windows, atol=1e-12)
    gradients = [torch.autograd.grad(out.square().sum(), values)[0] for out in (whole, windows)]
    assert torch.allclose(*gradients, atol=1e-10)


def test_it_keeps_shape_and_reaches_every_weight_that_the_feature_path_has() -> None:
    own = block(2)
    own(feature(4, 6)).square().sum().backward()
    without = {name for name, parameter in own.named_parameters() if parameter.grad is None}
    assert without == {"similarity_scale", "similarity_offset"}
    assert own(feature(4, 6)).shape == (2, 6, 4, 6)


@pytest.mark.parametrize("name", [*NAMES, *LARGE])
def test_while_watched_the_block_shows_queries_and_keys_of_the_pass(name: str) -> None:
    spec, network = architecture(name), build(name, 3, seed=0)
    image = torch.zeros(2, 1, *(2 * spec.stride,) * spec.dimensions)
    with watched_attention(network) as seen_by:
        assert seen_by is not None
        network(image)
        seen = seen_by.seen
        assert seen is not None
        side = 2 * spec.stride // 4
        assert seen.grid == (side,) * spec.dimensions
        assert seen.queries.shape == seen.keys.shape == (2, side**spec.dimensions, spec.channels[1])
        assert seen.queries.requires_grad
    assert seen_by.seen is None
    network(image)
    assert seen_by.seen is None


def test_watching_leaves_nothing_behind_after_an_error() -> None:
    network, watched = build(NAMES[0], 3, seed=0), []

    def fail() -> None:
        with watched_attention(network) as seen_by:
            watched.append(seen_by)
            network(torch.zeros(1, 1, 16, 16))
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        fail()
    assert watched[0].seen is None
    assert not watched[0].watched


def test_a_network_without_attention_shows_none() -> None:
    with watched_attention(build("unet2d-small", 3, seed=0)) as seen_by:
        assert seen_by is None
    with watched_attention(None) as seen_by:
        assert seen_by is None


@pytest.mark.parametrize("name", [*NAMES, *LARGE])
def test_what_the_block_gives_is_what_deeper_levels_and_the_skip_connection_get(name: str) -> None:
    spec, network = architecture(name), build(name, 2, seed=0)
    level = network.model[1].submodule
    given: list[Tensor] = []
    level[0][1].register_forward_hook(lambda _m, _i, output: given.append(output))
    level[1].register_forward_pre_hook(lambda _m, inputs: given.append(inputs[0]))
    network(torch.randn(1, 1, *(2 * spec.stride,) * spec.dimensions))
    assert given[0] is given[1]


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_fixes_attention_too_and_its_names_are_those_that_travel(name: str) -> None:
    first, again, other = (weights_of(build(name, 3, seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(first[key], again[key]) for key in first)
    added = set(first) - set(weights_of(build(name.removesuffix("-attention"), 3, 1)))
    assert {key.rsplit("0.1.", 1)[1] for key in added if "0.1." in key} == {
        "norm.weight", "norm.bias", "query.weight", "key.weight", "value.weight", "project.weight", "project.bias",
        "mlp_norm.weight", "mlp_norm.bias", "widen.weight", "widen.bias", "depthwise.weight", "depthwise.bias",
        "narrow.weight", "narrow.bias", "last_norm.weight", "last_norm.bias", "similarity_scale", "similarity_offset",
    }  # fmt: skip
    assert not np.array_equal(first["model.1.submodule.0.1.query.weight"], other["model.1.submodule.0.1.query.weight"])
    # An array without axes would come back with one from some of the ways that weights take.
    assert all(array.ndim > 0 for array in first.values())
    network = build(name, 3, seed=7)
    load_weights(network, first)
    assert all(np.array_equal(array, first[key]) for key, array in weights_of(network).items())


@pytest.mark.parametrize("name", [*NAMES, *LARGE])
def test_without_attention_the_network_is_its_plain_twin(name: str) -> None:
    """The twins differ by the block alone: the other weights of one seed are the same."""
    plain = weights_of(build(name.removesuffix("-attention"), 3, 1))
    with_block = weights_of(build(name, 3, 1))
    moved = {key.replace("submodule.0.0.", "submodule.0."): array for key, array in with_block.items()}
    assert all(np.array_equal(array, moved[key]) for key, array in plain.items())


def test_the_large_network_has_the_tokens_of_the_paper() -> None:
    """64² of 64 channels for an image of 256², as in AttenScribble, and all of them in one piece."""
    network = build(LARGE[0], 4, seed=0)
    with torch.no_grad(), watched_attention(network) as seen_by:
        assert seen_by is not None
        assert network(torch.zeros(1, 1, 256, 256)).shape == (1, 4, 256, 256)
        assert seen_by.seen is not None
        assert seen_by.seen.grid == (64, 64)
        assert seen_by.seen.queries.shape == (1, module.WHOLE_LIMIT, 64)


@pytest.mark.parametrize("name", LARGE)
def test_large_networks_learn_from_attentive_similarity(name: str) -> None:
    image = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)
    nothing_drawn = np.zeros(image.shape, np.float16)
    one = Sample("one", image, np.stack([nothing_drawn + 1, nothing_drawn]), nothing_drawn, nothing_drawn > 0)
    found = []
    for weight in (0.0, 1.0):
        settings = LearningSettings(name, 2, 0, regularisation=Regularisation(attentive=weight))
        learner = OnlineLearner(settings, torch.device("cpu"))
        learner.update(lambda: [one], 1, 1e-3, np.random.default_rng(0))
        found.append(learner.weights())
    for part in ("query", "key"):
        place = f"model.1.submodule.0.1.{part}.weight"
        assert not np.array_equal(found[0][place], found[1][place])


class Largest(TorchDispatchMode):
    """The most entries of any tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        tensors = made if isinstance(made, tuple | list) else [made]
        self.numel = max([self.numel, *(part.numel() for part in tensors if isinstance(part, Tensor))])
        return made


@pytest.mark.parametrize("grid", [(64, 64), (20, 20, 20)])
def test_no_pass_holds_the_attention_of_all_tokens_to_all(grid: tuple[int, ...]) -> None:
    """4096 of them are held in one piece and 8000 in windows; the MLP is wider than either."""
    own = SpatialAttention(8, len(grid))
    values = torch.randn(1, 8, *grid, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with Largest() as largest:
        own(values).square().sum().backward()
    padded = int(np.prod([-(-side // 8) * 8 for side in grid]))
    assert largest.numel <= max(4 * 8 * padded, 512 * padded * (len(grid) == 3))
    assert largest.numel < int(np.prod(grid)) ** 2 / 4


def test_it_can_stand_behind_any_level() -> None:
    for level in range(3):
        network = attend_after(build("unet3d-small", 2, 0), level, 3, (8, 16, 32)[level])
        with watched_attention(network) as seen_by:
            assert seen_by is not None
            assert network(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 2, 16, 16, 16)
            assert seen_by.seen is not None
            assert seen_by.seen.grid == (8 // 2**level,) * 3


@pytest.mark.parametrize("name", NAMES)
def test_a_learner_learns_predicts_and_weighs_interference_with_it(name: str) -> None:
    rng = np.random.default_rng(0)
    labels = np.zeros((16, 20, 6), int)
    labels[5:11, 6:14, 2:5] = 1
    image = (labels + rng.normal(0, 0.2, labels.shape)).astype(np.float32)
    one = Sample("one", image, np.stack([1 - labels, labels]).astype(np.float16), np.ones(labels.shape, np.float16))
    learner = OnlineLearner(LearningSettings(name, 2, 0, augmentation=None), torch.device("cpu"))
    first = learner.update(lambda: [one], 1, 4e-3, rng)
    learner.update(lambda: [one], 8, 4e-3, rng)
    assert learner.update(lambda: [one], 1, 4e-3, rng) < first
    assert learner.predict(image).shape == (2, 16, 20, 6)
    assert len(learner.interference(one, [one], rng)) == 1
    resumed = OnlineLearner(LearningSettings(name, 2, 0, augmentation=None), torch.device("cpu"))
    resumed.load(learner.weights())
    resumed.load_optimiser_state(learner.optimiser_state())
    again = [model.update(lambda: [one], 1, 4e-3, np.random.default_rng(1)) for model in (learner, resumed)]
    assert again[0] == again[1]
    assert all(np.array_equal(array, resumed.weights()[key]) for key, array in learner.weights().items())


def test_a_volume_is_predicted_alike_whatever_was_watched_before() -> None:
    network, image = build(NAMES[1], 2, seed=0), np.random.default_rng(0).normal(size=(16, 16, 8)).astype(np.float32)
    before = predict(network, image, stride=8, device=torch.device("cpu"))
    with watched_attention(network):
        watched = predict(network, image, stride=8, device=torch.device("cpu"))
    assert np.array_equal(before, watched)
