"""What people click and scribble reaches the losses, as the plan of the federation asks for it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround.client.annotation.annotator import Truth
from wardround.client.annotation.expansion import POINTS, expand_points
from wardround.client.annotation.prompts import (
    UNLABELLED,
    ErasePrompt,
    PointPrompt,
    ScribblePrompt,
    SlicePrompt,
    SliceRequest,
)
from wardround.client.cases.phantoms import draw_phantom
from wardround.client.cases.store import CaseStore
from wardround.client.cases.volume import Volume
from wardround.client.device import Device
from wardround.client.home import SETTINGS_TEMPLATE, SiteHome
from wardround.client.intake import make_live_site
from wardround.client.learning.latest import LatestModel
from wardround.client.learning.learner import LearningSettings, OnlineLearner, resolve_device
from wardround.client.learning.replay import ReplayMemory, Sample
from wardround.client.live import open_live_site
from wardround.client.workbench import notation, surroundings, window
from wardround.client.workbench.studio import Studio
from wardround.strategies.plan import RoundPlan

SHAPE = (20, 24, 16)
IMAGE, TRUTH = draw_phantom(np.random.default_rng([0, 0]), SHAPE)
CLICKS = Truth(TRUTH).points()
ANTERIOR, POSTERIOR = CLICKS[:POINTS], CLICKS[POINTS:]
LONG = 120.0


def plan(**changes: Any) -> RoundPlan:
    known: dict[str, Any] = {
        "run": "run-1", "round": 2, "rounds": 4, "seed": 1, "model": "unet3d-small", "labels": 3,
        "updates_per_case": 8, "slices_per_case": 4, "supervision": "partial", "prompts": "points",
        "annotated_weight": 4.0,
    }  # fmt: skip
    return RoundPlan(**known | changes)


class Place:
    """A site with one phantom, whose studio's learners are listened to."""

    def __init__(self, folder: Path) -> None:
        self.home = SiteHome(folder)
        folder.mkdir(exist_ok=True)
        text = SETTINGS_TEMPLATE.format(name="north", coordinator="https://127.0.0.1:1")
        self.home.settings_file.write_text(text, encoding="utf-8")
        make_live_site(self.home, "north")
        self.store = CaseStore(self.home.site / "store")
        self.heard: list[Sample] = []

    def start(self, asked: RoundPlan, image: Volume = IMAGE) -> Studio:
        self.store.add_case("a", image)
        weights = OnlineLearner(LearningSettings.of(asked), resolve_device("cpu")).weights()
        LatestModel(self.home.site / "model").save(asked, weights)
        self.studio = Studio(self.home, self.store, Device(), torch_device="cpu", look_ahead=False)
        self.studio.open("a", "ann")
        return self.studio

    def learnt(self) -> Sample:
        """What the learner was given last."""
        assert self.studio.wait("ann", LONG)
        return self.heard[-1]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    found = Place(tmp_path / "home")
    update = OnlineLearner.update

    def listened(self: OnlineLearner, batch: Any, *given: Any) -> float:
        def hear() -> Any:
            samples = batch()
            found.heard.append(samples[0])
            return samples

        return update(self, hear, *given)

    monkeypatch.setattr(OnlineLearner, "update", listened)
    yield found
    found.studio.close_all()
    found.store.close()


def said(sample: Sample) -> np.ndarray:
    """``[I, J, K]``: the label that the losses ask of a voxel, UNLABELLED where they ask nothing."""
    weight = np.asarray(sample.weight, dtype=np.float32)
    assert set(np.unique(weight)) <= {0.0, 5.0}, "what is drawn counts in full, the rest nothing"
    return np.where(weight > 0, np.asarray(sample.target).argmax(axis=0), UNLABELLED)


def voxels(*points: PointPrompt) -> np.ndarray:
    labels = np.full(SHAPE, UNLABELLED, dtype=np.int64)
    for point in points:
        labels[point.index] = point.label
    return labels


def test_seven_clicks_one_by_one_are_spread_when_they_are_seven(place: Place) -> None:
    studio = place.start(plan())
    for count, point in enumerate(CLICKS, start=1):
        answer = studio.draw("a", "ann", [point])
        assert answer.prompts == "points"
        complete = count // POINTS
        assert len(answer.points.complete) == complete
        assert answer.points.begun == CLICKS[complete * POINTS : count]
        if count in (3, 7, 10, 14):
            found = said(place.learnt())
            if count == 3:
                assert np.array_equal(found, voxels(*CLICKS[:3])), "what is clicked counts, and nothing else"
            if count == 10:
                assert (found == 1).sum() > 20, "the set that is complete is spread"
                assert not (found[TRUTH.array == 2] == 0).any(), "the other is not taught as background"
                assert (found == 2).sum() == len({p.index for p in CLICKS[:count] if p.label == 2})
            if count in (7, 14):
                spread = expand_points(IMAGE.array, IMAGE.spacing, CLICKS[:count])
                if count == 7:
                    known = spread > 0
                    known[tuple(zip(*(point.index for point in ANTERIOR), strict=True))] = True
                    spread = np.where(known, spread, UNLABELLED)
                assert np.array_equal(found, spread), "the second structure may lie anywhere until it has its points"
    assert (found == 2).sum() > 20
    assert (TRUTH.array[found == 1] == 1).mean() > 0.8
    assert studio.accept("a", "ann").state == "accepted"
    drawing = place.store.drawing("a", "ann")
    assert drawing is not None
    assert [prompt for step in drawing.steps for prompt in step] == list(CLICKS)


def test_whoever_comes_back_erases_and_undoes_ends_at_the_same(place: Place) -> None:
    studio = place.start(plan())
    studio.draw("a", "ann", CLICKS)
    expected = said(place.learnt())
    studio.undo("a", "ann")
    for part in (ANTERIOR[:4], POSTERIOR, ANTERIOR[4:5]):
        studio.draw("a", "ann", part)
    wrong = PointPrompt((1, 1, 1), 0)
    studio.draw("a", "ann", [wrong])
    studio.undo("a", "ann")
    studio.draw("a", "ann", [wrong])
    gone = np.zeros(SHAPE[:2], bool)
    gone[1, 1] = True
    studio.draw("a", "ann", [ErasePrompt(2, 1, gone)])
    answer = studio.draw("a", "ann", ANTERIOR[5:6])
    told = notation.answer(answer)["points"]
    assert [one["label"] for one in told["complete"]] == [2]
    assert told["begun"] == {
        "label": 1, "inner": list(ANTERIOR[0].index), "outer": [list(point.index) for point in ANTERIOR[1:6]]
    }  # fmt: skip
    answer = studio.draw("a", "ann", ANTERIOR[6:])
    assert sorted(one.label for one in answer.points.complete) == [1, 2]
    assert not answer.points.begun
    assert np.array_equal(said(place.learnt()), expected)


def test_a_round_of_the_federation_learns_the_same_from_what_was_accepted(place: Place) -> None:
    asked = plan(annotation_rounds=2, round=3)
    studio = place.start(asked)
    for point in (*ANTERIOR, *POSTERIOR[:3]):
        studio.draw("a", "ann", [point])
    on_bench = said(place.learnt())
    studio.accept("a", "ann")
    assert studio.wait("ann", LONG)
    place.heard.clear()
    with open_live_site(place.home) as site:
        weights = OnlineLearner(LearningSettings.of(asked), resolve_device("cpu")).weights()
        site.train(asked, weights)
    assert np.array_equal(said(place.heard[-1]), on_bench)


def test_a_structure_without_points_is_absent_once_its_case_is_accepted(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = plan(annotation_rounds=2, round=3)
    studio = place.start(asked)
    studio.draw("a", "ann", ANTERIOR[:4])
    studio.draw("a", "ann", ANTERIOR[4:])
    assert not (said(place.learnt())[TRUTH.array == 2] == 0).any(), "somebody may still come to it"
    offered: list[Sample] = []
    monkeypatch.setattr(ReplayMemory, "offer", lambda _self, sample, _rng: offered.append(sample))
    studio.accept("a", "ann")
    assert studio.wait("ann", LONG)
    place.heard.clear()
    with open_live_site(place.home) as site:
        site.train(asked, OnlineLearner(LearningSettings.of(asked), resolve_device("cpu")).weights())
    spread = expand_points(IMAGE.array, IMAGE.spacing, ANTERIOR)
    for sample in (*offered, place.heard[-1]):
        assert np.array_equal(said(sample), spread)
    assert len(offered) == 2, "on the bench and in the round"


def test_steps_of_a_round_await_structures_that_come_in_a_later_one(place: Place) -> None:
    asked = plan(annotation_rounds=2, round=3)
    studio = place.start(asked)
    for structure in (ANTERIOR, POSTERIOR):
        studio.draw("a", "ann", structure)
    studio.accept("a", "ann")
    assert studio.wait("ann", LONG)
    place.heard.clear()
    with open_live_site(place.home) as site:
        site.train(asked, OnlineLearner(LearningSettings.of(asked), resolve_device("cpu")).weights())
    first, last = said(place.heard[0]), said(place.heard[-1])
    assert (first == 1).sum() > 20
    assert not (first[TRUTH.array == 2] == 0).any(), "background there would be wrong"
    assert np.array_equal(last, expand_points(IMAGE.array, IMAGE.spacing, CLICKS))


@pytest.mark.parametrize("supervision", ["partial", "proxy", "dense"])
def test_a_bench_learns_as_the_plan_says(place: Place, supervision: str) -> None:
    studio = place.start(plan(supervision=supervision))
    answer = studio.draw("a", "ann", CLICKS)
    assert answer.prompts == ("slices" if supervision == "dense" else "points")
    assert bool(answer.points.complete) == (supervision != "dense")
    weight = np.asarray(place.learnt().weight, dtype=np.float32)
    spread = expand_points(IMAGE.array, IMAGE.spacing, CLICKS) != UNLABELLED
    if supervision == "dense":  # nobody draws all of a case on a bench: it goes on with the proxy
        assert (weight == 5).sum() == len({point.index for point in CLICKS})
    else:
        assert np.array_equal(weight == 5, spread)
    assert (weight[~spread] > 0).any() == (supervision != "partial")


def stroke(index: int, label: int, rows: slice) -> ScribblePrompt:
    labels = np.full(SHAPE[:2], UNLABELLED, dtype=np.uint8)
    labels[rows, 11] = label
    return ScribblePrompt(2, index, labels)


def test_strokes_alone_reach_the_losses(place: Place) -> None:
    studio = place.start(plan(prompts="scribbles"))
    expected = np.full(SHAPE, UNLABELLED)
    for label, rows in ((1, slice(9, 12)), (2, slice(13, 15)), (0, slice(0, 3))):
        answer = studio.draw("a", "ann", [stroke(7, label, rows)])
        expected[rows, 11, 7] = label
        assert np.array_equal(said(place.learnt()), expected)
    assert answer.prompts == "scribbles"
    assert not answer.points.complete
    assert answer.points.begun == ()


def test_a_slice_is_asked_for_until_its_background_is_stroked(place: Place) -> None:
    studio = place.start(plan(prompts="scribbles", suggestion="even"))
    asked = studio.draw("a", "ann", [stroke(2, 1, slice(9, 12))]).suggestion[0]
    answer = studio.draw("a", "ann", [_on(asked, 1)])
    assert answer.suggestion[0] == asked, "its background is still to come"
    answer = studio.draw("a", "ann", [_on(asked, 0)])
    assert answer.suggestion
    assert asked not in answer.suggestion
    studio.draw("a", "ann", [SlicePrompt(2, 2, TRUTH.array[:, :, 2].copy())])


def _on(request: SliceRequest, label: int) -> ScribblePrompt:
    shape = tuple(side for axis, side in enumerate(SHAPE) if axis != request.axis)
    labels = np.full(shape, UNLABELLED, dtype=np.uint8)
    labels[3 if label else 1, 2:5] = label
    return ScribblePrompt(request.axis, request.index, labels)


def test_on_a_large_image_all_seven_lie_in_the_window(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LIVE_VOXELS": 2**13, "SIDE": 24, "MARGIN": 2, "_RIM": 1}.items():
        monkeypatch.setattr(window, name, value)
    monkeypatch.setattr(surroundings, "SIDE", 32)
    array = np.random.default_rng(1).normal(0, 0.1, (70, 60, 40)).astype(np.float32)
    truth = np.zeros(array.shape, np.uint8)
    truth[10:44, 10:50, 10:30] = 1
    clicks = Truth(Volume(truth, np.eye(4))).points()
    studio = place.start(plan(), Volume(array + 3 * truth, np.eye(4)))
    for click in clicks:
        answer = studio.draw("a", "ann", [click])
    assert len(answer.points.complete) == 1
    sample = place.learnt()
    bench = studio.benches.peek("ann")
    assert bench is not None
    assert bench.desk is not None
    seen = said(sample)
    assert (seen == 1).sum() > 200, "spread, though the window began round the first of them"
    assert np.array_equal(truth[bench.desk.window.slices][seen == 1] == 1, np.ones((seen == 1).sum(), bool))
