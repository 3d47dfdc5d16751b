"""Dense labels beside strokes that somebody drew: the loop learns the same, bit for bit, whatever they say."""

from pathlib import Path

import numpy as np
import pytest
import torch

from wardround.client.annotation.annotator import SimulatedAnnotator, Truth
from wardround.client.annotation.prompts import UNLABELLED
from wardround.client.cases.volume import Volume
from wardround.client.learning.learner import LearningSettings, OnlineLearner
from wardround.client.learning.lessons import learn_with
from wardround.client.learning.replay import ReplayMemory, Reservoir
from wardround.client.learning.round import OnlineRound
from wardround.client.learning.session import CaseSession
from wardround.strategies.plan import RoundPlan

SHAPE = (16, 20, 8)
CASES = ("one", "two")
Weights = dict[str, np.ndarray]


def volumes(case: str) -> tuple[Volume, Volume, np.ndarray]:
    """Image and labels of a ball, and strokes on every slice of it."""
    rng = np.random.default_rng(list(case.encode()))
    centre = np.array(SHAPE) / 2 + rng.uniform(-1, 1, 3)
    labels = (sum((g - c) ** 2 for g, c in zip(np.indices(SHAPE), centre, strict=True)) < 16).astype(np.uint8)
    image = (labels * 2.0 + rng.normal(0, 0.5, SHAPE)).astype(np.float32)
    strokes = np.where(rng.random(SHAPE) < 0.1, labels, UNLABELLED).astype(np.uint8)
    return Volume(image, np.eye(4)), Volume(labels, np.eye(4)), strokes


def learnt(folder: Path, supervision: str, *, blind: bool = False, other_strokes: bool = False) -> Weights:
    """Weights after both cases; `blind` has zeros for dense labels."""
    plan = RoundPlan.model_validate({
        "run": "test", "round": 1, "rounds": 2, "seed": 3, "model": "unet3d-small", "labels": 2, "prompts": "scribbles",
        "supervision": supervision, "updates_per_case": 4, "slices_per_case": 4, "annotation_rounds": 2,
        "crf_weight": 0.1, "variance_weight": 0.1, "extent": False,
    })  # fmt: skip
    given = {case: volumes(case) for case in CASES}
    strokes = {case: np.roll(drawn, other_strokes, axis=0) for case, (_, _, drawn) in given.items()}
    truths = {
        case: Truth(labels.with_array(np.zeros_like(labels.array)) if blind else labels)
        for case, (_, labels, _) in given.items()
    }
    annotator = SimulatedAnnotator(truths, strokes)
    learner = OnlineLearner(LearningSettings.of(plan), torch.device("cpu"))
    memory = ReplayMemory(folder, Reservoir(8), plan.replay)
    rngs = np.random.default_rng(1), np.random.default_rng(2)
    round_ = OnlineRound("north", plan, learner, memory, *rngs)
    for case, (image, _, _) in given.items():
        learn_with(
            round_, CaseSession(case, image, learner, plan, np.random.default_rng(5), None, progress=0.5), annotator
        )
    round_.rehearse(len(CASES))
    return learner.weights()


def same(one: Weights, other: Weights) -> bool:
    return all(np.array_equal(array, other[name]) for name, array in one.items())


@pytest.mark.parametrize("supervision", ["partial", "proxy"])
def test_with_zeros_for_dense_labels_strokes_teach_the_same(tmp_path: Path, supervision: str) -> None:
    honest = learnt(tmp_path / "honest", supervision)
    assert same(honest, learnt(tmp_path / "blind", supervision, blind=True))
    assert not same(honest, learnt(tmp_path / "strokes", supervision, other_strokes=True))


def test_a_method_that_is_given_dense_labels_is_found_out(tmp_path: Path) -> None:
    assert not same(learnt(tmp_path / "honest", "dense"), learnt(tmp_path / "blind", "dense", blind=True))
