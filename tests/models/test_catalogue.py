"""The catalogue's networks: sizes, shapes, norms, features, and weights on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from wardround.errors import PlanError, StorageError, UsageError
from wardround.models.catalogue import Features, architecture, build, feature_modules, names
from wardround.models.weights import load_arrays, load_weights, save_arrays, weights_of


@pytest.mark.parametrize("name", names())
def test_maps_an_image_to_logits_of_every_label_on_the_same_grid(name: str) -> None:
    spec = architecture(name)
    sides = (2 * spec.stride,) * spec.dimensions
    logits = build(name, labels=4, seed=0)(torch.zeros(1, 1, *sides))
    assert tuple(logits.shape) == (1, 4, *sides)


def test_the_small_network_has_about_140_thousand_parameters() -> None:
    count = sum(parameter.numel() for parameter in build("unet3d-small", labels=3, seed=0).parameters())
    assert 120_000 <= count <= 160_000


@pytest.mark.parametrize("name", names())
def test_no_network_normalises_over_the_batch(name: str) -> None:
    network = build(name, labels=2, seed=0)
    assert not [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize("name", ["unet3d-small", "unet3d-small-attention"])
def test_a_case_is_predicted_alike_alone_and_in_a_batch(name: str) -> None:
    network = build(name, labels=2, seed=0).eval()
    images = torch.randn(3, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(network(images)[1], network(images[1:2])[0], atol=1e-5)


def test_the_seed_fixes_the_weights_and_leaves_the_global_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, again, other = (weights_of(build("unet3d-small", 2, seed)) for seed in (7, 7, 8))
    assert torch.equal(torch.rand(1), expected)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("name", ["unet3d-small", "unet3d-small-attention"])
def test_features_of_every_scale_are_reachable_by_name(name: str) -> None:
    network = build(name, labels=2, seed=0)
    levels = {f"{part}.{level}" for part in ("encoder", "decoder") for level in range(3)}
    assert set(feature_modules(network)) == levels | {"bottleneck"}
    with Features(network, "encoder.0", "encoder.1", "bottleneck", "decoder.0") as features:
        network(torch.zeros(1, 1, 16, 16, 16))
    shapes = {name: tuple(features[name].shape[1:]) for name in ("encoder.0", "encoder.1", "bottleneck", "decoder.0")}
    assert shapes == {
        "encoder.0": (8, 8, 8, 8),
        "encoder.1": (16, 4, 4, 4),
        "bottleneck": (64, 2, 2, 2),
        "decoder.0": (2, 16, 16, 16),
    }
    with pytest.raises(UsageError, match="attic"):
        Features(network, "attic")


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unet3d-small"):
        build("vnet", labels=2, seed=0)


def test_weights_survive_the_disk_bit_by_bit(tmp_path: Path) -> None:
    weights = weights_of(build("unet3d-small", labels=2, seed=1))
    save_arrays(tmp_path / "w.safetensors", weights)
    network = build("unet3d-small", labels=2, seed=2)
    load_weights(network, load_arrays(tmp_path / "w.safetensors"))
    assert all(np.array_equal(array, weights[name]) for name, array in weights_of(network).items())


def test_weights_of_another_network_are_refused_and_change_nothing() -> None:
    network = build("unet3d-small", labels=2, seed=2)
    before = weights_of(network)
    with pytest.raises(PlanError):
        load_weights(network, weights_of(build("unet3d-small", labels=3, seed=2)))
    assert all(np.array_equal(array, before[name]) for name, array in weights_of(network).items())


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"\x00" * 40)
    with pytest.raises(StorageError, match=r"w\.safetensors"):
        load_arrays(path)
