"""How a site scores a model: the whole volume, thresholded, and the label for nothing but the score."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from wardround.client.cases.store import CaseStore
from wardround.client.cases.volume import Volume
from wardround.client.learning import learner
from wardround.client.learning.inference import normalise
from wardround.client.site import REFERENCE, Site
from wardround.models.catalogue import build
from wardround.models.weights import weights_of
from wardround.strategies.plan import RoundPlan

SHAPE = (40, 16, 16)
NEAR, EDGE, FAR = slice(2, 5), slice(5, 6), slice(24, 26)
DISTANCE = FAR.start - EDGE.stop
"""Voxels between the object and the false positive."""


def columns(*parts: slice) -> np.ndarray:
    """Boxes of 4 x 4 voxels across the first axis."""
    labels = np.zeros(SHAPE, np.uint8)
    for part in parts:
        labels[part, 4:8, 4:8] = 1
    return labels


def image() -> np.ndarray:
    """Background 0; what the model takes for an object just so, 1.02; what it just misses, 0.98."""
    return np.where(columns(NEAR, FAR), 1.02, np.where(columns(EDGE), 0.98, 0.0)).astype(np.float32)


class Threshold(nn.Conv3d):
    """A network that reads the brightness of a voxel; it writes down what it is shown."""

    def __init__(self) -> None:
        super().__init__(1, 2, 1)
        self.shown: list[np.ndarray] = []

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self.shown.append(input.numpy().copy())
        return super().forward(input)


def weights(image: np.ndarray) -> dict[str, np.ndarray]:
    """Weights under which p(object) is the logistic function of 4 (brightness - 1): 0.02, 0.48 and 0.52."""
    slope, shift = 4 * image.std(), 4 * (image.mean() - 1)
    return {
        "weight": np.array([0, slope], np.float32).reshape(2, 1, 1, 1, 1),
        "bias": np.array([0, shift], np.float32),
    }


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Threshold:
    threshold = Threshold()
    monkeypatch.setattr(learner, "build", lambda model, labels, seed: threshold)
    return threshold


def site(folder: Path, labels: np.ndarray, seen: np.ndarray | None = None) -> Site:
    folder.mkdir(exist_ok=True)
    with CaseStore(folder / "store") as store:
        store.add_case("held back", Volume(image() if seen is None else seen, np.eye(4)), role="test")
        store.save_label("held back", Volume(labels, np.eye(4)), author=REFERENCE, round=0, effort=0.0)
    settings = {"name": "north", "schedule": [], "test": ["held back"], "author": "tester", "store": "store"}
    (folder / "site.json").write_text(json.dumps(settings))
    return Site.open(folder, device="cpu")


def plan(round_: int = 1) -> RoundPlan:
    return RoundPlan(run="test", round=round_, rounds=2, seed=3, model="unet3d-small", labels=2)


LABELS = {
    # 48 voxels found and 32 far away, of an object of 64: 2 · 48 / (80 + 64).
    "near": (columns(NEAR, EDGE), 2 / 3),
    # The other way round: 32 of 32 found and 48 far away.
    "far": (columns(FAR), 2 * 32 / (80 + 32)),
    "all that is found": (columns(NEAR, FAR), 1.0),
    "what is just missed": (columns(EDGE), 0.0),
}


@pytest.mark.parametrize(("labels", "dice"), LABELS.values(), ids=LABELS.keys())
def test_dice_is_that_of_the_thresholded_whole_volume(
    tmp_path: Path, network: Threshold, labels: np.ndarray, dice: float
) -> None:
    assert DISTANCE > 10
    scores = site(tmp_path, labels).evaluate(plan(), weights(image()))
    assert scores == {"num-examples": 1.0, "dice": pytest.approx(dice), "dice-1": pytest.approx(dice)}
    (row,) = json.loads((tmp_path / "evaluation.json").read_text())["cases"]
    assert row["dice"] == {"1": pytest.approx(dice)}


def test_the_model_is_shown_the_same_whatever_the_label(tmp_path: Path, network: Threshold) -> None:
    for name, (labels, _) in LABELS.items():
        site(tmp_path / name, labels).evaluate(plan(), weights(image()))
    assert len(network.shown) == len(LABELS)
    assert all(np.array_equal(shown[0, 0], normalise(image())) for shown in network.shown)


def test_the_voxels_at_the_threshold_are_as_unsure_as_they_should_be(network: Threshold) -> None:
    model = learner.OnlineLearner(learner.LearningSettings("unet3d-small", 2, 0), torch.device("cpu"))
    model.load(weights(image()))
    found = model.predict(normalise(image()))[1]
    for part, expected in ((NEAR, 0.52), (FAR, 0.52), (EDGE, 0.48)):
        assert found[columns(part) == 1] == pytest.approx(expected, abs=1e-3)


def test_a_volume_of_one_voxel_is_opened_and_scored(tmp_path: Path) -> None:
    one = np.ones((1, 1, 1), np.uint8)
    north = site(tmp_path, one, one.astype(np.float32))
    start = weights_of(build("unet3d-small", labels=2, seed=0))
    session = north.interact("held back", plan(), north._learner(plan(), start))
    assert session.before.shape == (2, 1, 1, 1)
    assert north.evaluate(plan(), start)["dice"] == float(session.before.argmax(axis=0).item())


def test_the_evaluation_of_every_round_is_kept(tmp_path: Path, network: Threshold) -> None:
    north = site(tmp_path, columns(NEAR))
    for number in (0, 2):
        north.evaluate(plan(number), weights(image()))
    kept = {file.name: json.loads(file.read_text()) for file in (tmp_path / "evaluations").iterdir()}
    assert {name: content["round"] for name, content in kept.items()} == {"round-00000.json": 0, "round-00002.json": 2}
    assert json.loads((tmp_path / "evaluation.json").read_text()) == kept["round-00002.json"]
