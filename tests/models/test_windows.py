"""Volumes through networks of two axes: slice by slice, whatever their sides."""

import numpy as np
import pytest
import torch
from torch import nn

from wardround.client.learning.inference import predict
from wardround.client.learning.learner import LearningSettings, OnlineLearner
from wardround.client.learning.replay import Sample
from wardround.models.catalogue import architecture, build
from wardround.models.windows import padded_shape

CPU = torch.device("cpu")
STRIDE = architecture("unet2d-small").stride


def image_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def slice_by_slice(network: nn.Module, image: np.ndarray) -> np.ndarray:
    """Each slice padded evenly on its own, predicted on its own, and cut back."""
    sides = padded_shape(image.shape[:2], STRIDE)
    before = [(side - own) // 2 for side, own in zip(sides, image.shape[:2], strict=True)]
    padding = [(low, side - own - low) for low, side, own in zip(before, sides, image.shape[:2], strict=True)]
    found = []
    with torch.inference_mode():
        for k in range(image.shape[2]):
            logits = network.eval()(torch.from_numpy(np.pad(image[..., k], padding))[None, None])
            cut = logits[0, :, before[0] : before[0] + image.shape[0], before[1] : before[1] + image.shape[1]]
            found.append(torch.softmax(cut, 0).numpy())
    return np.stack(found, axis=-1)


@pytest.mark.parametrize("name", ["unet2d-small", "unet2d-small-attention"])
@pytest.mark.parametrize("shape", [(16, 24, 11), (21, 18, 3), (24, 16, 1), (5, 6, 4), (3, 30, 2)])
def test_a_network_of_two_axes_sees_a_volume_slice_by_slice(name: str, shape: tuple[int, int, int]) -> None:
    network, image = build(name, 3, seed=0), image_of(*shape)
    found = predict(network, image, stride=STRIDE, device=CPU, dimensions=2)
    assert found.shape == (3, *shape)
    np.testing.assert_allclose(found.sum(axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose(found, slice_by_slice(network, image), atol=2e-5)


def test_slices_larger_than_a_window_are_put_together_without_a_seam() -> None:
    network, image = build("unet2d-small", 2, seed=0), image_of(150, 40, 2)
    found = predict(network, image, stride=STRIDE, device=CPU, dimensions=2)
    assert found.shape == (2, 150, 40, 2)
    parts = predict(network, image, stride=STRIDE, device=CPU, window=(64, 40), dimensions=2)
    assert np.isfinite(parts).all()
    assert parts.shape == found.shape


def test_slices_keep_their_order_and_their_place() -> None:
    """A network that says where the image is bright says it voxel by voxel."""

    class Bright(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.cat([-9 * image, 9 * image], dim=1)

    image = image_of(7, 9, 13)
    found = predict(Bright(), image, stride=STRIDE, device=CPU, dimensions=2)
    assert np.array_equal(found.argmax(0), image > 0)


def disc(shape: tuple[int, int, int], seed: int = 0) -> tuple[Sample, np.ndarray]:
    rows, columns, _ = np.indices(shape)
    labels = ((rows - shape[0] / 2) ** 2 + (columns - shape[1] / 2) ** 2 < min(shape[:2]) ** 2 / 12).astype(np.uint8)
    image = (2 * labels + np.random.default_rng(seed).normal(0, 0.4, shape)).astype(np.float32)
    target = np.stack([1 - labels, labels]).astype(np.float16)
    return Sample("disc", image, target, np.ones(shape, np.float16), spacing=(1.5, 1.4, 10.0)), labels


def test_a_learner_of_slices_learns_what_it_then_predicts_in_volumes() -> None:
    learner = OnlineLearner(LearningSettings("unet2d-small", 2, 0), CPU)
    samples = [disc((22, 26, 5), seed)[0] for seed in range(2)]
    learner.update(lambda: samples, 30, 4e-3, np.random.default_rng(0))
    unseen, labels = disc((30, 20, 4), 9)
    found = learner.predict(unseen.image).argmax(0)
    assert 2 * (found & labels).sum() / (found.sum() + labels.sum()) > 0.8


@pytest.mark.parametrize("shape", [(20, 18, 1), (5, 6, 3), (1, 1, 1)])
def test_one_slice_and_sides_below_the_stride_are_learnt_and_predicted(shape: tuple[int, int, int]) -> None:
    sample, _ = disc(shape)
    learner = OnlineLearner(LearningSettings("unet2d-small", 2, 0), CPU)
    assert np.isfinite(learner.update(lambda: [sample], 2, 1e-3, np.random.default_rng(0)))
    assert learner.predict(sample.image).shape == (2, *shape)


def test_a_batch_of_slices_has_their_spacing_and_knows_padding_from_image() -> None:
    learner = OnlineLearner(LearningSettings("unet2d-small", 2, 0), CPU)
    one, other = disc((20, 18, 4))[0], disc((9, 30, 2))[0]
    batch = learner._assemble([one, other], np.random.default_rng(0), None)
    assert batch.image.shape == (2, 1, 24, 32)
    assert batch.spacings == ((1.5, 1.4), (1.5, 1.4))
    for number, sample in enumerate((one, other)):
        rows, columns, slices = sample.image.shape
        inside = torch.zeros(24, 32, dtype=torch.bool)
        inside[:rows, :columns] = True
        assert torch.equal(batch.inside[number], inside)
        assert torch.equal(batch.drawn[number], ~inside)
        cut = batch.image[number, 0, :rows, :columns].numpy()
        assert any(np.array_equal(cut, sample.image[..., k]) for k in range(slices))
        assert (batch.image[number, 0][~inside] == 0).all()


def test_air_is_what_is_darkest_in_the_whole_volume() -> None:
    sample, _ = disc((16, 16, 3))
    sample.image[:4] = sample.image.min() - 1
    learner = OnlineLearner(LearningSettings("unet2d-small", 2, 0), CPU)
    batch = learner._assemble([sample], np.random.default_rng(0), learner.settings.augmentation)
    assert batch.air.any()
    assert not (batch.air & ~batch.inside).any()
    plain = learner._assemble([sample], np.random.default_rng(0), None)
    assert plain.air[0, :4].all()
    assert not plain.air[0, 4:].any()
