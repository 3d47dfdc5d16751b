"""Health of attention: by drawn voxels alone, in two axes and three, and said aloud where attention says nothing."""

import logging
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import MetricRecord

from wardround.client.gate.policy import Policy
from wardround.client.gate.update import check_metrics
from wardround.client.learning import kernel_health as module
from wardround.client.learning.batches import assemble
from wardround.client.learning.inference import normalise
from wardround.client.learning.kernel_health import drawn_tokens, health_of, scalars, tell
from wardround.client.learning.learner import LearningSettings, OnlineLearner
from wardround.client.learning.replay import Sample
from wardround.client.supervision.attentive import KernelHealth, kernel_health, windowed_affinity
from wardround.client.supervision.regularisation import Regularisation
from wardround.models.attention import watched_attention

CPU = torch.device("cpu")
SHAPE = (16, 24, 16)
NETWORKS = pytest.mark.parametrize(
    ("model", "slices"), [("unet2d-small-attention", 1), ("unet3d-small-attention", SHAPE[2])]
)


def sample(slices: int, seed: int = 0) -> Sample:
    """Two halves, a stroke in each; the target elsewhere and all weights are of no use."""
    shape, rng = (*SHAPE[:2], slices), np.random.default_rng(seed)
    right = np.broadcast_to(np.arange(shape[1])[:, None] >= 12, shape)
    target = np.stack([~right, right]).astype(np.float16)
    drawn = np.zeros(shape, bool)
    drawn[2:14, 4, 0] = drawn[2:14, 18, 0] = True
    weight = np.ones(shape, np.float16)
    return Sample(f"case {seed}", normalise(2.0 * right + rng.normal(0, 0.3, shape)), target, weight, drawn)


def learner(model: str, **regularisation: Any) -> OnlineLearner:
    asked = Regularisation(attentive=0.1, **regularisation)
    return OnlineLearner(LearningSettings(model, 2, 0, regularisation=asked), CPU)


def health(model: OnlineLearner, *samples: Sample, seed: int = 0) -> tuple[float, ...]:
    found = health_of(model, samples, np.random.default_rng(seed))
    return found.mean, found.same, found.different, found.ratio


@NETWORKS
def test_it_is_that_of_the_drawn_voxels_and_of_the_kernel_that_is_trained(model: str, slices: int) -> None:
    one, network = sample(slices), learner(model)
    batch = assemble([one], network._spec.dimensions, network._spec.stride, None, np.random.default_rng(0), None)
    held = network.frozen()
    with torch.no_grad(), watched_attention(held) as attention:
        held(batch.image)
        assert attention is not None
        assert attention.seen is not None
        seen = attention.seen
    tokens = drawn_tokens(batch, seen.grid)
    assert set(tokens.unique().tolist()) == {0, 1, 255}
    expected = kernel_health(windowed_affinity(seen.queries, seen.keys, seen.grid), tokens)
    found = health(network, one)
    assert found == pytest.approx((expected.mean, expected.same, expected.different, expected.ratio))
    assert found[1] > 0
    assert found[2] > 0
    assert health(learner(model, kernel="released"), one) != pytest.approx(found, rel=0.01)


@NETWORKS
def test_what_nobody_drew_does_not_count(model: str, slices: int) -> None:
    one, network = sample(slices), learner(model)
    assert one.drawn is not None
    target = np.where(one.drawn, one.target, 1 - one.target)
    other = replace(one, target=target, weight=np.where(one.drawn, one.weight, 3 * one.weight))
    assert health(network, other) == health(network, one)
    target = one.target.copy()
    target[:, :8] = target[::-1, :8]
    assert health(network, replace(one, target=target)) != health(network, one)


@NETWORKS
def test_without_drawn_voxels_of_two_labels_there_is_no_ratio(model: str, slices: int) -> None:
    one, network = sample(slices), learner(model)
    assert one.drawn is not None
    left, none = one.drawn.copy(), np.zeros_like(one.drawn)
    left[:, 12:] = False
    mean, same, different, ratio = health(network, replace(one, drawn=left))
    assert 0 < mean < 1
    # Those of one label are compared with those of two, or with nothing.
    assert all(map(math.isnan, (same, different, ratio)))
    assert all(map(math.isnan, health(network, replace(one, drawn=none))[1:]))
    assert all(map(math.isnan, health(network, replace(one, drawn=None))[1:]))
    assert all(map(math.isnan, health(network)))
    # It takes nothing from what others say.
    assert health(network, one, replace(one, drawn=none))[1:] == health(network, one)[1:]


def test_what_fills_an_image_up_was_drawn_by_nobody() -> None:
    one = sample(1)
    small = replace(one, image=one.image[:13], target=one.target[:, :13], weight=one.weight[:13])
    assert one.drawn is not None
    small = replace(small, drawn=one.drawn[:13] & False)
    batch = assemble([small], 2, 8, None, np.random.default_rng(0), None)
    assert batch.image.shape[2] > 13
    assert batch.drawn.any()
    assert (drawn_tokens(batch, (4, 6)) == 255).all()


def test_a_token_that_holds_strokes_of_two_labels_has_none() -> None:
    one = sample(1)
    drawn = np.zeros((*SHAPE[:2], 1), bool)
    drawn[0, :] = drawn[5, 2] = True
    batch = assemble([replace(one, drawn=drawn)], 2, 8, None, np.random.default_rng(0), None)
    tokens = drawn_tokens(batch, (2, 3))[0]
    assert tokens.tolist() == [[0, 255, 1], [255, 255, 255]]


@NETWORKS
def test_looking_changes_nothing(model: str, slices: int) -> None:
    network = learner(model)
    before = network.weights()
    called: list[None] = []
    health_of(network, [sample(slices)] * 3, np.random.default_rng(0), lambda: called.append(None))
    assert len(called) == 3
    assert all(np.array_equal(array, before[name]) for name, array in network.weights().items())


@pytest.mark.parametrize(
    ("ratio", "expected", "warned"),
    [(1.01, True, True), (0.7, True, True), (1.01, False, False), (1.2, True, False), (math.nan, True, False)],
)
def test_a_collapse_is_warned_of_where_attention_is_expected_to_say_something(
    caplog: pytest.LogCaptureFixture, ratio: float, expected: bool, warned: bool
) -> None:
    with caplog.at_level(logging.INFO, logger=module.__name__):
        tell(KernelHealth(0.004, ratio * 0.004, 0.004), 7, expected)
    levels = [record.levelname for record in caplog.records]
    assert levels == (["INFO", "WARNING"] if warned else ["INFO"])
    assert all("round 7" in record.getMessage() for record in caplog.records)


def test_attention_that_weighs_nothing_at_all_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    tell(KernelHealth(0.0, 0.0, 0.0), 7, True)
    assert [record.levelname for record in caplog.records][-1] == "WARNING", "its ratio is no number"


def test_what_a_site_says_passes_its_gate() -> None:
    largest = MetricRecord(scalars(KernelHealth(0.1, 0.2, 1e-40)) | scalars(KernelHealth(1e-9, 1.0, 1e-320)))
    assert largest == {"kernel-mean": 1e-9, "kernel-ratio": 1000.0}
    check_metrics(largest, Policy().max_metric)
    assert scalars(KernelHealth(0.1, 0.3, 0.2)) == pytest.approx({"kernel-mean": 0.1, "kernel-ratio": 1.5})
    assert scalars(KernelHealth(0.1, 0.3, math.nan)) == {"kernel-mean": 0.1}
    assert scalars(KernelHealth(math.nan, math.nan, math.nan)) == {}
