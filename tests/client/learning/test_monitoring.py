"""Self and cross monitoring: who teaches whom, and when the teachers are replaced."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from wardround.client.learning.inference import normalise
from wardround.client.learning.learner import LearningSettings, OnlineLearner
from wardround.client.learning.metrics import mean_dice
from wardround.client.learning.monitoring import BestSoFar, MonitoringSettings, Monitors, agreement, held_out_loss
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


def test_the_same_image_is_heard_anew_when_the_copies_are() -> None:
    """Without augmentation both updates see the very same batch; only the copies have changed between them."""
    at_once, one_by_one = (Monitors(*pair(), MonitoringSettings(refresh=1)) for _ in range(2))
    sample = ball(0, (24, 24, 1))
    for monitors, calls in ((at_once, 1), (one_by_one, 2)):
        for network in monitors.learners:
            network.settings = replace(network.settings, augmentation=None)
        for _ in range(calls):
            monitors.update(lambda: [sample], 2 // calls, 1e-3, np.random.default_rng(0))
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
    assert other.terms == []
    assert one.terms == []


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


def test_a_first_verdict_that_is_none_holds_nobody_back() -> None:
    verdicts = iter([float("nan"), float("nan"), 3.0, 3.0])
    monitors = Monitors(*pair(), MonitoringSettings(refresh=1), judge=lambda _: next(verdicts))
    run(monitors, 1)
    for network, copy in zip(monitors.learners, monitors.copies, strict=True):
        assert same(network.weights(), state(copy))


def learn(network: OnlineLearner, updates: int) -> None:
    network.update(lambda: [ball(0, drawn=0.2)], updates, 1e-3, np.random.default_rng(0))


def test_the_best_state_comes_back_with_its_optimiser() -> None:
    """Neither the first nor the last one: what follows is what would have followed then."""
    verdicts = iter([2.0, 1.0, 1.5, float("nan")])
    network = learner()
    best = BestSoFar(network, lambda _: next(verdicts))
    learn(network, 2)
    assert best.look()
    weights, moments = network.weights(), network.optimiser_state()
    for _ in range(2):
        learn(network, 1)
        assert not best.look()
    assert best.loss == 1
    assert same(weights, state(best.network))
    best.restore()
    assert same(weights, network.weights())
    assert same(moments, network.optimiser_state())


def test_where_nobody_judges_the_last_state_is_kept() -> None:
    network = learner()
    best = BestSoFar(network)
    learn(network, 1)
    assert best.look()
    learn(network, 1)
    last = network.weights()
    assert not same(last, state(best.network))
    best.restore()
    assert same(last, network.weights())


@pytest.mark.parametrize(("last", "better"), [((9.0, 9.0), 0), ((9.0, 0.1), 1), ((0.5, 9.0), 1), ((0.1, 9.0), 0)])
def test_at_the_end_the_learner_of_the_lesser_loss_is_kept_in_its_best_state(
    last: tuple[float, float], better: int
) -> None:
    first = (0.4, 0.5) if better == 0 else (0.6, 0.45)
    verdicts = iter([*first, *last])
    monitors = Monitors(*pair(), MonitoringSettings(refresh=100), judge=lambda _: next(verdicts))
    before = [network.weights() for network in monitors.learners]
    run(monitors, 1)
    after = [network.weights() for network in monitors.learners]
    chosen = monitors.choose()
    assert chosen is monitors.learners[better]
    for network, old, new, one, other in zip(monitors.learners, before, after, first, last, strict=True):
        assert same(network.weights(), new if other <= one else old)


def test_without_a_judge_the_first_learner_is_kept_as_it_is() -> None:
    monitors = Monitors(*pair(), MonitoringSettings(refresh=2))
    run(monitors, 3)
    last = [network.weights() for network in monitors.learners]
    assert monitors.choose() is monitors.learners[0]
    assert all(same(old, network.weights()) for old, network in zip(last, monitors.learners, strict=True))


def test_held_back_strokes_choose_as_dense_labels_would_and_see_none() -> None:
    """States of one training, good and bad: the least loss on a few voxels is that of the best Dice, or near to it."""
    held = [ball(seed, drawn=0.05) for seed in (7, 8)]
    network, dice, losses = learner(), [], []
    judge = held_out_loss([replace(one, target=np.where(one.weight > 0, one.target, 0.5)) for one in held])
    for rate in (1e-3, 4e-3, 4e-3, 4e-3, 0.3):
        network.update(lambda: [ball(0, drawn=0.2), ball(1, drawn=0.2)], 6, rate, np.random.default_rng(0))
        found = [network.predict(one.image).argmax(axis=0).astype(np.uint8) for one in held]
        true = [one.target.argmax(axis=0).astype(np.uint8) for one in held]
        dice.append(np.mean([mean_dice(mine, other, 2) for mine, other in zip(found, true, strict=True)]))
        losses.append(judge(network))
    assert max(dice) - min(dice) > 0.1
    assert dice[int(np.argmin(losses))] > max(dice) - 0.02


def test_judges_look_at_drawn_voxels_alone() -> None:
    network, sample = learner(), ball(5, drawn=0.1)
    # As with a proxy mask: voxels that nobody drew have a weight, too.
    beside = replace(sample, weight=np.maximum(sample.weight, np.float16(0.3)))
    assert held_out_loss([beside])(network) == held_out_loss([sample])(network)
    assert held_out_loss([replace(beside, drawn=None)])(network) != held_out_loss([sample])(network)
    other_labels = np.where(sample.weight > 0, sample.target, 1 - sample.target)
    assert held_out_loss([sample])(network) == held_out_loss([replace(sample, target=other_labels)])(network)
    assert held_out_loss([sample])(network) != held_out_loss([replace(sample, target=1 - sample.target)])(network)


def test_a_judge_needs_a_case_that_is_held_back() -> None:
    with pytest.raises(UsageError, match="held back"):
        held_out_loss([])


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
    with pytest.raises(UsageError, match="slices"):
        Monitors(learner("unet2d-small"), learner("unet3d-small"))


def test_windows_fit_the_deeper_of_two_networks() -> None:
    """24 voxels a side are three times the stride of one network and no multiple of the other's."""
    monitors = Monitors(learner("unet2d-small"), learner("unet2d"))
    assert np.isfinite(run(monitors, 1, [ball(0, (24, 24, 1))])).all()
