"""Answers that are stored with a case: the right numbers, moved with the image, and compared where they are known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import softmax

from wardround.client.learning.augmentation import Augmentation, StrongAugmentation
from wardround.client.learning.batches import assemble
from wardround.client.learning.learner import LearningSettings, OnlineLearner
from wardround.client.learning.replay import ReplayMemory, Reservoir, Sample
from wardround.client.learning.stored_logits import centred_logits

CPU = torch.device("cpu")
SHAPE = (12, 9, 10)


def sample(name: str = "case", shape: tuple[int, int, int] = SHAPE, stored: bool = True) -> Sample:
    rng = np.random.default_rng(len(name))
    image = rng.normal(size=shape).astype(np.float32)
    target = np.stack([image < 0, image >= 0, image > 9]).astype(np.float16)
    logits = rng.normal(size=(3, *shape)).astype(np.float16) if stored else None
    return Sample(name, image, target, np.ones(shape, np.float16), logits=logits)


def learner(weight: float = 0.5, seed: int = 0) -> OnlineLearner:
    return OnlineLearner(LearningSettings("unet3d-small", 3, seed, augmentation=None, stored_logits=weight), CPU)


def test_centred_logits_give_the_probabilities_back() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (3, *SHAPE)).astype(np.float32)
    probabilities = softmax(logits, axis=0).astype(np.float32)
    found = centred_logits(probabilities)
    assert found.dtype == np.float16
    np.testing.assert_allclose(softmax(found.astype(np.float64), axis=0), probabilities, atol=5e-3)
    np.testing.assert_allclose(found.astype(np.float64), logits - logits.mean(axis=0), atol=1e-2)
    certain = centred_logits(np.stack([np.ones(SHAPE), np.zeros(SHAPE)]).astype(np.float32))
    assert np.isfinite(certain).all()


def test_they_are_kept_with_the_case_and_older_files_have_none(tmp_path: Path) -> None:
    one = sample()
    memory = ReplayMemory(tmp_path, Reservoir(2))
    memory.offer(one, np.random.default_rng(0))
    found = ReplayMemory(tmp_path, memory.reservoir).sample("case")
    assert found.logits is not None
    assert one.logits is not None
    assert np.array_equal(found.logits, one.logits)
    assert found.logits.dtype == np.float16
    old = sample(stored=False)
    assert "logits" not in old.arrays()
    assert Sample.of("case", old.arrays()).logits is None


@pytest.mark.parametrize("dimensions", [2, 3])
def test_in_a_batch_they_lie_where_they_lay_in_the_image(dimensions: int) -> None:
    one, other = sample(), sample("other", stored=False)
    batch = assemble([one, other], dimensions, 8, None, np.random.default_rng(0), None)
    assert batch.logits is not None
    assert batch.known is not None
    assert batch.logits.shape == batch.target.shape
    assert torch.equal(batch.known[0], batch.inside[0])
    assert not batch.known[1].any()
    if dimensions == 3:
        assert one.logits is not None
        box = tuple(slice(side) for side in SHAPE)
        np.testing.assert_array_equal(batch.logits[(0, slice(None), *box)].numpy(), one.logits.astype(np.float32))
    assert not batch.logits[1].any()


@pytest.mark.parametrize("augmentation", [Augmentation(), StrongAugmentation(moved=1.0)])
def test_they_move_as_what_was_drawn_does_and_move_nothing_else(
    augmentation: Augmentation | StrongAugmentation,
) -> None:
    plain = sample(shape=(16, 16, 16), stored=False)
    # Logits that say where a voxel counts: whatever is done to the weights is done to them.
    weight = (np.random.default_rng(3).random((16, 16, 16)) > 0.5).astype(np.float16)
    plain = replace(plain, weight=weight)
    stored = replace(plain, logits=np.stack([weight, 2 * weight, -weight]).astype(np.float16))
    one, other = (assemble([s], 3, 8, None, np.random.default_rng(5), augmentation) for s in (plain, stored))
    for name in ("image", "target", "weight", "drawn", "inside", "air"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.logits is None
    assert other.logits is not None
    assert other.known is not None
    for channel, factor in enumerate((1, 2, -1)):
        assert torch.equal(other.logits[:, channel], factor * other.weight)
    assert torch.equal(other.known, other.inside)
    assert not bool(other.known.all())


def test_the_loss_gains_the_mean_squared_difference_over_what_is_known() -> None:
    stored, incoming = sample("stored"), sample(stored=False)
    plain, taught = learner(0.0), learner(0.5)
    assert plain.terms == []
    samples = [incoming, stored]
    batch = taught._assemble(samples, np.random.default_rng(0), None)
    with torch.no_grad():
        logits = taught._network(batch.image)
    assert stored.logits is not None
    box = tuple(slice(side) for side in SHAPE)
    own = logits[(1, slice(None), *box)].numpy()
    expected = 0.5 * np.square(own - own.mean(axis=0) - stored.logits.astype(np.float32)).mean()
    losses = [m.update(lambda: samples, 1, 1e-3, np.random.default_rng(0)) for m in (plain, taught)]
    assert losses[1] - losses[0] == pytest.approx(expected, rel=1e-4)


def test_without_stored_answers_nothing_is_added() -> None:
    plain, taught = learner(0.0), learner(0.5)
    losses = [m.update(lambda: [sample(stored=False)], 2, 1e-3, np.random.default_rng(0)) for m in (plain, taught)]
    assert losses[0] == losses[1]


def test_what_was_stored_of_the_network_as_it_is_asks_for_nothing() -> None:
    model, one = learner(), sample(shape=(16, 16, 8), stored=False)
    stored = replace(one, logits=centred_logits(model.predict(one.image)))
    plain = learner(0.0)
    losses = [m.update(lambda: [stored], 1, 1e-3, np.random.default_rng(0)) for m in (plain, model)]
    assert losses[1] - losses[0] == pytest.approx(0, abs=1e-5)
