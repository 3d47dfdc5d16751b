"""The attacks of `benchmarks/privacy.py`: right on numbers worked out by hand, and at work on a model that learns."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from wardround.client.learning.learner import LearningSettings, OnlineLearner
from wardround.client.learning.private_steps import PrivateSteps
from wardround.strategies.noise import Noise

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from leakage.attacks import area, exposure, found_at, gained
from leakage.cases import BLOCK, LABELS, SHAPE, canary, phantom

sys.path.pop(0)


def test_the_area_is_the_share_of_pairs_in_order() -> None:
    assert area([3.0, 2.0], [1.0, 0.0]) == 1
    assert area([1.0], [1.0]) == 0.5
    assert area([2.0, 0.0], [1.0]) == 0.5
    assert area([0.0], [1.0, 2.0]) == 0


def test_members_are_found_above_what_the_others_reach() -> None:
    others = list(range(10))
    assert found_at([9.5, 8.5, 7.5, 0.0], others, 0.1) == 0.5  # One of ten may pass: the threshold is 8.
    assert found_at([9.5, 8.5], others, 0.0) == 0.5


def test_exposure_is_all_bits_for_the_lowest_loss_and_none_for_the_highest() -> None:
    others = [1.0, 2.0, 3.0]
    assert exposure(0.5, others) == 2
    assert exposure(1.5, others) == 1
    assert exposure(9.0, others) == 0


def test_what_was_gained_is_what_a_loss_fell() -> None:
    assert gained([2.0, 1.0], [0.5, 1.5]) == [1.5, -0.5]


def test_canaries_cannot_be_guessed_and_are_the_same_for_everybody() -> None:
    one, again, other = canary(1), canary(1), canary(2)
    assert np.array_equal(one.target, again.target)
    labels, others = one.target.argmax(0), other.target.argmax(0)
    assert labels.shape == SHAPE
    assert len(np.unique(labels)) == LABELS
    assert np.all(labels[:BLOCK, :BLOCK, :BLOCK] == labels[0, 0, 0])
    assert 0.2 < (labels == others).mean() < 0.5
    assert phantom(1).target.argmax(0).max() == LABELS - 1


@pytest.mark.long
def test_noise_hides_who_was_learnt_from() -> None:
    """Six canaries that are learnt from, and six that are not: without noise the falls of their losses tell them all
    apart, with noise they say little more than a coin."""
    members, others = ([canary(start + number) for number in range(6)] for start in (0, 100))

    def told_apart(noise: float | None) -> float:
        learner = OnlineLearner(LearningSettings("unet3d-small", LABELS, 0, augmentation=None), torch.device("cpu"))
        learner.load(learner.weights())
        before = learner.losses(members), learner.losses(others)
        rng = np.random.default_rng(0)
        if noise is None:
            learner.update(lambda: [members[int(n)] for n in rng.choice(6, 3, replace=False)], 30, 4e-3, rng)
        else:
            steps = PrivateSteps(noise, 0.5, 0.5, 6, Noise(b"a key"))
            learner.update_privately(lambda numbers: [[members[n]] for n in numbers], 30, 4e-3, steps)
        return area(gained(before[0], learner.losses(members)), gained(before[1], learner.losses(others)))

    assert told_apart(None) == 1
    assert 0.1 <= told_apart(10.0) <= 0.85
