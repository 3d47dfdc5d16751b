"""The model behind a bench: what of the site's plan it takes on."""

from pathlib import Path

import numpy as np
import torch

from wardround.client.learning.latest import LatestModel
from wardround.client.learning.learner import LearningSettings, OnlineLearner
from wardround.client.workbench.apprentice import Apprentice
from wardround.models.weights import OPERATORS
from wardround.strategies.plan import RoundPlan

CPU = torch.device("cpu")


def test_nobody_waits_for_teachers_on_a_bench(tmp_path: Path) -> None:
    asked = RoundPlan(
        run="r", round=3, rounds=4, seed=0, model="unet3d-small", labels=2, updates_per_case=5,
        distill_weight=0.4, distill_head=True, contrast_weight=0.1, teachers="both", stored_logits=0.5,
    )  # fmt: skip
    learner = OnlineLearner(LearningSettings.of(asked), CPU)
    assert len(learner.terms) == 2
    latest = LatestModel(tmp_path / "model")
    latest.save(asked, learner.weights())
    apprentice = Apprentice("anna", tmp_path / "bench", latest, asked, CPU, lambda: None)
    assert apprentice.work.learner.terms == []
    plan = apprentice.plan
    assert (plan.distill_weight, plan.contrast_weight, plan.stored_logits) == (0, 0, 0)
    assert plan.updates_per_case == 5


def test_a_bench_is_not_behind_for_what_travels_beside_the_network(tmp_path: Path) -> None:
    asked = RoundPlan(
        run="r", round=1, rounds=4, seed=0, model="unet3d-small", labels=2, synthesis="genseg", share_knobs=True
    )
    given = OnlineLearner(LearningSettings.of(asked), CPU).weights()
    latest = LatestModel(tmp_path / "model")
    latest.save(asked, given | {OPERATORS: np.zeros((3, 3), np.float32)})
    apprentice = Apprentice("anna", tmp_path / "bench", latest, asked, CPU, lambda: None)
    assert not apprentice.is_behind
    assert all(np.array_equal(array, given[name]) for name, array in apprentice.work.learner.weights().items())
    latest.save(asked.model_copy(update={"round": 2}), {name: array + 1 for name, array in given.items()})
    assert apprentice.is_behind
