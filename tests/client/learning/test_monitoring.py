"""Self and cross monitoring: who teaches whom, and when the teachers are replaced."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from wardround.client.learning.inference import normalise
from wardround.client.learning.learner import LearningSettings, OnlineLearner
from wardround.client.learning.monitoring import MonitoringSettings, Monitors, agreement, held_out_loss
from wardround.client.learning.replay import Sample
from wardround.client.supervision.losses import segmentation_loss
from wardround.errors import UsageError

CPU = torch.device("cpu")


def ball(seed: int, shape: tuple[int, int, int] = (24, 24, 2), drawn: float = 0.0) -> Sample:
    """A bright ball; only a `drawn` part of its voxels has a label."""
    rng = np.random.default_rng(seed)
    centre = np.array(shape) / 2 + rng.uniform(-2, 2, 3)
    labels = (sum((g - c) ** 2 for g, c in zip(np.indices(shape), centre, strict=True)) < 49).astype(np.uint8)
    image = normalise(labels * 2.0 + rng.normal(0, 0.4, shape))
    target = np.stack([1 - labels, labels]).astype(np.float16)
    weight = (rng.random(shape) < drawn).astype(np.float16)
    return Sample(f"case {seed}", image, target, weight, weight > 0, padding=0.0)


def learner(model: str = "unet2d-small", seed: int = 0) -> OnlineLearner:
    return OnlineLearner(LearningSettings(model, 2, seed), CPU)


def pair(seed: int = 0) -> tuple[OnlineLearner, OnlineLearner]:
    return learner("unet2d-small", seed), learner("unet2d-small-attention", seed)


def run(monitors: Monitors, updates: int, samples: list[Sample] | None = None, seed: int = 0) -> tuple[float, float]:
    samples = samples or [ball(n) for n in range(3)]
    return monitors.update(lambda: samples, updates, 1e-3, np.random.default_rng(seed))


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def state(network: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in network.state_dict().items()}


def test_the_copies_are_taken_exactly_when_they_are_due() -> None:
    monitors = Monitors(*pair(), MonitoringSettings(refresh=3))
    first = [state(copy) for copy in monitors.copies]
    changed = []
    for _ in range(7):
        before = [state(copy) for copy in monitors.copies]
        run(monitors, 1, seed=monitors.updates)
        changed.append([not same(a, state(copy)) for a, copy in zip(before, monitors.copies, strict=True)])
    assert changed == [[number in (2, 5)] * 2 for number in range(7)]
    assert not same(first[0], state(monitors.copies[0]))
    # After an update that is due, a copy is the learner of that very update.
    run(monitors, 2, seed=9)
    for network, copy in zip(monitors.learners, monitors.copies, strict=True):
        assert same(network.weights(), state(copy))


def test_one_call_counts_as_many() -> None:
    at_once, one_by_one = (Monitors(*pair(), MonitoringSettings(refresh=2)) for _ in range(2))
    samples, rng = [ball(0)], np.random.default_rng(0)
    at_once.update(lambda: samples, 5, 1e-3, np.random.default_rng(0))
    for _ in range(5):
        one_by_one.update(lambda: samples, 1, 1e-3, rng)
    for one, other in zip(at_once.learners, one_by_one.learners, strict=True):
        assert same(one.weights(), other.weights())


def test_the_loss_is_that_of_the_paper() -> None:
    monitors = Monitors(*pair(), MonitoringSettings(share=0.3, temperature=2.0))
    one, other = monitors.learners
    # What a step reports is the loss before it; this one has neither augmentation nor anything drawn.
    plain = replace(one.settings, augmentation=None)
    one.settings = plain
    sample = ball(0, (24, 24, 1))
    x = torch.from_numpy(sample.image[None, None, :, :, 0].copy())
    student, mine, theirs = (network(x) for network in (one.frozen().train(), *monitors.copies))
    labels = mine.argmax(1)
    hard = torch.movedim(torch.nn.functional.one_hot(labels, 2), -1, 1).float()
    own = segmentation_loss(student, hard, torch.ones_like(hard[:, 0]))
    goal, guess = (torch.log_softmax(logits / 2, dim=1) for logits in (theirs, student))
    cross = 4 * (goal.exp() * (goal - guess)).sum(1).mean()
    expected = 0.7 * own + 0.3 * cross
    found, _ = monitors.update(lambda: [sample], 1, 1e-3, np.random.default_rng(0))
    assert found == pytest.approx(float(expected), rel=1e-5)
    assert other.further is None
    assert one.further is None


def test_another_second_network_teaches_the_first_something_else() -> None:
    losses, weights = [], []
    for seed in (0, 1):
        monitors = Monitors(learner(), learner("unet2d-small-attention", seed))
        losses.append(run(monitors, 1)[0])
        weights.append(monitors.learners[0].weights())
    assert losses[0] != losses[1]
    assert not same(*weights)
    alone = []
    for seed in (0, 1):
        monitors = Monitors(learner(), learner("unet2d-small-attention", seed), MonitoringSettings(share=0.0))
        alone.append(run(monitors, 1)[0])
    assert alone[0] == alone[1]


def test_a_teacher_gets_no_gradient() -> None:
    monitors = Monitors(*pair(), MonitoringSettings(refresh=100))
    before = [state(copy) for copy in monitors.copies]
    run(monitors, 2)
    for old, copy in zip(before, monitors.copies, strict=True):
        assert not copy.training
        assert same(old, state(copy))
        assert all(not weight.requires_grad and weight.grad is None for weight in copy.parameters())


def test_the_same_seeds_give_the_same_bits() -> None:
    one, other = (Monitors(*pair(), MonitoringSettings(refresh=2)) for _ in range(2))
    assert run(one, 3) == run(other, 3)
    for mine, theirs in zip(one.learners, other.learners, strict=True):
        assert same(mine.weights(), theirs.weights())
        assert same(mine.optimiser_state(), theirs.optimiser_state())


def test_a_judge_keeps_the_best_state() -> None:
    verdicts = iter([1.0, 1.0, 2.0, 0.5])  # Both at first, then the first got worse and the second better.
    monitors = Monitors(*pair(), MonitoringSettings(refresh=1), judge=lambda _: next(verdicts))
    before = [state(copy) for copy in monitors.copies]
    run(monitors, 1)
    assert same(before[0], state(monitors.copies[0]))
    assert same(monitors.learners[1].weights(), state(monitors.copies[1]))


def test_a_judge_that_measures_nothing_keeps_the_copies() -> None:
    verdicts = iter([1.0, 1.0, float("nan"), float("nan")])
    monitors = Monitors(*pair(), MonitoringSettings(refresh=1), judge=lambda _: next(verdicts))
    before = [state(copy) for copy in monitors.copies]
    run(monitors, 1)
    assert all(same(old, state(copy)) for old, copy in zip(before, monitors.copies, strict=True))


def test_judges_look_at_drawn_voxels_alone() -> None:
    network, sample = learner(), ball(5, drawn=0.1)
    other_labels = np.where(sample.weight > 0, sample.target, 1 - sample.target)
    assert held_out_loss([sample])(network) == held_out_loss([replace(sample, target=other_labels)])(network)
    assert held_out_loss([sample])(network) != held_out_loss([replace(sample, target=1 - sample.target)])(network)


def test_agreement_is_one_with_oneself() -> None:
    one, other = pair()
    images = [ball(n).image for n in range(2)]
    assert agreement(one, one, images) == 1
    assert 0 <= agreement(one, other, images) < 1


def test_networks_that_cannot_teach_each_other_are_refused() -> None:
    with pytest.raises(UsageError, match="same mistakes"):
        Monitors(learner(seed=0), learner(seed=1))
    with pytest.raises(UsageError, match="labels"):
        Monitors(learner(), OnlineLearner(LearningSettings("unet2d-small-attention", 3, 0), CPU))
