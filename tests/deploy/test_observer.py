"""The observer scores against the truth, and what it keeps can be looked at."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround.client.annotation.annotator import SimulatedAnnotator, Truth
from wardround.client.annotation.prompts import Annotations, SliceRequest
from wardround.client.annotation.propagation import ProxyMask
from wardround.client.cases.volume import Volume
from wardround.client.site import Interaction
from wardround.deploy.observer import TruthObserver
from wardround.deploy.report.examples import load_examples

TRUTH = np.zeros((6, 8, 5), dtype=np.uint8)
TRUTH[1:4, 2:6, 1:4] = 1
TRUTH[4, 2:6, 1:4] = 2


def one_hot(labels: np.ndarray) -> np.ndarray:
    return np.stack([labels == n for n in range(3)]).astype(np.float32)


def observer(**options: Any) -> tuple[TruthObserver, SimulatedAnnotator]:
    annotator = SimulatedAnnotator({"case": Truth(Volume(TRUTH, np.eye(4)))})
    return TruthObserver(lambda case: TRUTH, annotator, 3, **options), annotator


def interaction(step: int, annotations: Annotations, prediction: np.ndarray) -> Interaction:
    proxy = ProxyMask(one_hot(TRUTH), TRUTH > 9, np.ones(TRUTH.shape, dtype=np.float32))
    image = Volume(np.zeros(TRUTH.shape, dtype=np.float32), np.diag([1.0, 2.0, 3.0, 1.0]))
    residual = np.zeros(TRUTH.shape, dtype=np.float32)
    known = step > 0
    shown = (proxy, one_hot(prediction), residual) if known else (None, one_hot(prediction), None)
    return Interaction("north", "case", 1, step, annotations, *shown, image)


def test_before_anything_is_drawn_only_the_model_is_scored() -> None:
    watching, _ = observer()
    scores = watching.observe(interaction(0, Annotations(), np.zeros_like(TRUTH)))
    nothing = {"slices": 0, "scribbles": 0, "points": 0}
    assert scores == {"effort": 0.0, "strict_effort": 0.0, "proxy_dice": None, "model_dice": 0.0} | nothing


def test_drawing_every_axial_slice_is_the_full_effort() -> None:
    watching, annotator = observer()
    drawn = Annotations().adding(*(annotator.draw("case", SliceRequest(2, k)) for k in range(5)))
    half = np.where(TRUTH == 2, 0, TRUTH)
    scores = watching.observe(interaction(1, drawn, half))
    assert scores["effort"] == 1.0
    assert scores["proxy_dice"] == 1.0
    assert scores["model_dice"] == pytest.approx(0.5)


def test_one_example_for_each_site_and_chosen_round(tmp_path: Path) -> None:
    watching, annotator = observer(examples=tmp_path / "examples", example_rounds=frozenset({1}), last_step=2)
    drawn = Annotations().adding(annotator.draw("case", SliceRequest(0, 3)))
    for step in (0, 1):
        watching.observe(interaction(step, drawn, TRUTH))
        assert load_examples(tmp_path) == []
    watching.observe(interaction(2, drawn, TRUTH))
    (example,) = load_examples(tmp_path)
    # Rows along j, columns along i, from an axial slice that holds the object.
    assert example.truth is not None
    assert np.array_equal(example.truth, TRUTH[:, :, 1].T)
    assert example.image.shape == (8, 6)
    assert example.spacing == (2.0, 1.0)
    assert example.drawn == ("i = 3",)


def test_whoever_listens_may_stop_the_run() -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    watching, _ = observer(listen=stop)
    with pytest.raises(KeyboardInterrupt):
        watching.observe(interaction(0, Annotations(), TRUTH))
