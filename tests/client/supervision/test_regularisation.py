"""What is asked of undrawn voxels: each part as it is alone, and nothing where all is off."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wardround.client.learning.learner import LearningSettings, OnlineLearner
from wardround.client.learning.replay import Sample
from wardround.client.supervision.attentive import attentive_similarity, released_affinity, windowed_affinity
from wardround.client.supervision.crf import gated_crf, multi_view_crf
from wardround.client.supervision.regularisation import Regularisation, ramp
from wardround.client.supervision.variance import intensity_variance
from wardround.models.attention import Attended, watched_attention
from wardround.models.catalogue import build


def example(*sides: int, count: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, 3, *sides, generator=generator, dtype=torch.float64)
    image = 0.3 * torch.randn(count, 1, *sides, generator=generator, dtype=torch.float64)
    return logits, image, torch.rand(count, *sides, generator=generator) < 0.3


def near(found: Tensor, expected: float) -> None:
    assert math.isclose(found.item(), expected, rel_tol=1e-9)


def test_a_2d_network_gets_the_crf_of_its_slices_and_a_3d_one_that_of_three_views() -> None:
    logits, image, drawn = example(6, 5)
    expected = gated_crf(torch.softmax(logits, 1), image, ~drawn, spacing=(1, 2)).item()
    near(Regularisation(crf=0.5)(logits, image, drawn, [(1, 2)] * 3), 0.5 * expected)
    logits, image, drawn = example(4, 5, 3)
    expected = multi_view_crf(logits, image, ~drawn, spacing=(1, 1, 2)).item()
    near(Regularisation(crf=0.5)(logits, image, drawn, [(1, 1, 2)] * 3), 0.5 * expected)


def test_images_of_different_spacing_are_measured_each_by_its_own() -> None:
    logits, image, drawn = example(6, 5)
    found = Regularisation(crf=1)(logits, image, drawn, [(1, 1), (1, 3), (1, 1)])
    p = torch.softmax(logits, 1)
    same = gated_crf(p[[0, 2]], image[[0, 2]], ~drawn[[0, 2]], spacing=(1, 1)).item()
    other = gated_crf(p[1:2], image[1:2], ~drawn[1:2], spacing=(1, 3)).item()
    near(found, (2 * same + other) / 3)


@pytest.mark.parametrize("sides", [(12, 9), (12, 9, 8)])
def test_larger_images_are_compared_on_a_coarser_grid(sides: tuple[int, ...]) -> None:
    logits, image, drawn = example(*sides)
    grid = tuple(min(side, 8) for side in sides)
    spacing = (1.0,) * len(sides)
    wider = tuple(side / new for side, new in zip(sides, grid, strict=True))
    mode = "bilinear" if len(sides) == 2 else "trilinear"
    less, dim = (F.interpolate(part, size=list(grid), mode=mode) for part in (logits, image))
    mask = F.interpolate((~drawn)[:, None].double(), size=list(grid), mode="nearest-exact")[:, 0]
    if len(sides) == 2:
        expected = gated_crf(torch.softmax(less, 1), dim, mask, spacing=wider).item()
    else:
        expected = multi_view_crf(less, dim, mask, spacing=wider).item()
    near(Regularisation(crf=1, side=8)(logits, image, drawn, [spacing] * 3), expected)
    assert not math.isclose(Regularisation(crf=1)(logits, image, drawn, [spacing] * 3).item(), expected, rel_tol=1e-3)


def test_variance_leaves_out_air_and_what_lies_outside() -> None:
    logits, image, drawn = example(6, 5)
    p = torch.softmax(logits, 1)
    darkest = image.amin(dim=(1, 2, 3), keepdim=True)
    found = Regularisation(variance=2)(logits, image, drawn, [(1, 1)] * 3)
    near(found, 2 * intensity_variance(p, image, (image > darkest)[:, 0]).item())
    inside, air = torch.ones_like(drawn), image[:, 0] < -0.2
    inside[:, 4:] = False
    found = Regularisation(variance=2)(logits, image, drawn, [(1, 1)] * 3, inside=inside, air=air)
    near(found, 2 * intensity_variance(p[:, :, :4], image[:, :, :4], ~air[:, :4]).item())


def test_the_crf_knows_what_lies_outside() -> None:
    logits, image, drawn = example(6, 5)
    inside = torch.ones_like(drawn)
    inside[:, 4:] = False
    found = Regularisation(crf=1)(logits, image, drawn | ~inside, [(1, 1)] * 3, inside=inside)
    near(found, gated_crf(torch.softmax(logits, 1)[:, :, :4], image[:, :, :4], ~drawn[:, :4]).item())


def test_attentive_similarity_is_that_of_the_kernel_asked_for_and_absent_without_attention() -> None:
    logits, image, drawn = example(8, 8)
    generator = torch.Generator().manual_seed(1)
    queries, keys = (torch.randn(3, 16, 4, generator=generator) for _ in range(2))
    seen = Attended(queries, keys, (4, 4), torch.ones(1), torch.zeros(1))
    p = torch.softmax(logits, 1).float()
    both = {
        "windowed": windowed_affinity(queries, keys, (4, 4)),
        "released": released_affinity(queries, keys, (4, 4), seen.scale, seen.offset),
    }
    for kernel, affinity in both.items():
        asked = Regularisation(attentive=0.5, kernel=kernel)  # type: ignore[arg-type]
        found = asked(logits.float(), image.float(), drawn, [(1, 1)] * 3, seen)
        assert math.isclose(found.item(), 0.5 * attentive_similarity(p, affinity).item(), rel_tol=1e-5)
    assert Regularisation(attentive=0.5)(logits, image, drawn, [(1, 1)] * 3).item() == 0


@pytest.mark.parametrize("kernel", ["windowed", "released"])
def test_the_gradient_of_attentive_similarity_reaches_queries_through_the_kernel_and_logits_beside_it(
    kernel: str,
) -> None:
    """Each way alone: what queries do to the logits would hide an affinity that is cut off."""
    network = build("unet2d-small-attention", 3, seed=0)
    image = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    asked = Regularisation(attentive=1, kernel=kernel)  # type: ignore[arg-type]
    with watched_attention(network) as attention:
        assert attention is not None
        logits, seen = network(image), attention.seen
        assert seen is not None
        projections = [attention.query.weight, attention.key.weight]
    drawn = torch.zeros(1, 32, 32, dtype=torch.bool)
    through_the_kernel = asked(logits.detach(), image, drawn, [(1, 1)], seen)
    for gradient in torch.autograd.grad(through_the_kernel, projections):
        assert gradient.abs().max() > 0
    alone = replace(seen, queries=seen.queries.detach(), keys=seen.keys.detach())
    (gradient,) = torch.autograd.grad(asked(logits, image, drawn, [(1, 1)], alone), logits)
    assert gradient.abs().max() > 0


def test_strength_scales_everything_and_zero_switches_off() -> None:
    logits, image, drawn = example(6, 5)
    asked = Regularisation(crf=1, variance=0.1)
    whole = asked(logits, image, drawn, [(1, 1)] * 3).item()
    near(asked.at(0.25)(logits, image, drawn, [(1, 1)] * 3), 0.25 * whole)
    assert asked.active
    assert not asked.at(0).active
    assert not Regularisation().active
    assert asked.at(0)(logits, image, drawn, [(1, 1)] * 3).item() == 0


def test_the_ramp_rises_to_one_and_stays() -> None:
    assert ramp(0, 0.5) == pytest.approx(math.exp(-5))
    assert ramp(0.25, 0.5) == pytest.approx(math.exp(-1.25))
    assert [ramp(progress, 0.5) for progress in (0.5, 0.7, 1)] == [1, 1, 1]
    assert ramp(0, 0) == 1
    steps = [ramp(n / 100, 0.9) for n in range(100)]
    assert steps == sorted(steps)


def sample() -> Sample:
    rng = np.random.default_rng(0)
    labels = np.zeros((16, 24, 6), int)
    labels[4:12, 6:16, 1:5] = 1
    image = (labels + rng.normal(0, 0.3, labels.shape)).astype(np.float32)
    drawn = rng.random(labels.shape) < 0.1
    target = np.stack([1 - labels, labels]).astype(np.float16)
    return Sample("one", image, target, drawn.astype(np.float16), drawn, (1.0, 1.0, 3.0))


def learnt(model: str, regularisation: Regularisation, steps: int = 1) -> dict[str, np.ndarray]:
    settings = LearningSettings(model, 2, 0, regularisation=regularisation)
    learner = OnlineLearner(settings, torch.device("cpu"))
    learner.update(lambda: [sample(), sample()], steps, 1e-3, np.random.default_rng(0))
    return learner.weights()


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(array, other[name]) for name, array in one.items())


@pytest.mark.parametrize(
    ("model", "asked"),
    [
        ("unet3d-small", Regularisation(crf=0.3)),
        ("unet3d-small", Regularisation(variance=0.3)),
        ("unet2d-small", Regularisation(crf=0.3)),
        ("unet2d-small-attention", Regularisation(attentive=0.3)),
        ("unet3d-small-attention", Regularisation(attentive=0.3, kernel="released")),
    ],
)
def test_a_weight_changes_what_is_learnt_within_one_step_and_zero_changes_no_bit(
    model: str, asked: Regularisation
) -> None:
    off = learnt(model, Regularisation())
    assert same(off, learnt(model, replace(asked, strength=0)))
    assert not same(off, learnt(model, asked))


def test_dense_labels_change_nothing_where_nobody_drew() -> None:
    """Labels under weight 0 are replaced by nonsense: what is learnt stays, bit by bit."""
    asked = Regularisation(crf=0.1, variance=0.1)
    settings = LearningSettings("unet3d-small", 2, 0, regularisation=asked)
    honest = sample()
    target = honest.target.copy()
    target[:, honest.weight == 0] = target[::-1][:, honest.weight == 0]
    found = []
    for one in (honest, replace(honest, target=target)):
        learner = OnlineLearner(settings, torch.device("cpu"))
        learner.settings = replace(settings, augmentation=None)
        learner.update(lambda one=one: [one], 2, 1e-3, np.random.default_rng(0))  # type: ignore[misc]
        found.append(learner.weights())
    assert same(*found)
