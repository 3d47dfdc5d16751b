"""A large image is worked on in a window, and nobody who draws notices but by the time that they save."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround.client.annotation.prompts import UNLABELLED, ExtentPrompt, PointPrompt, ScribblePrompt, SlicePrompt
from wardround.client.cases.phantoms import draw_phantom
from wardround.client.cases.store import CaseStore
from wardround.client.cases.volume import Volume
from wardround.client.device import Device
from wardround.client.home import SETTINGS_TEMPLATE, SiteHome
from wardround.client.learning.inference import normalise
from wardround.client.learning.latest import LatestModel
from wardround.client.learning.learner import LearningSettings, OnlineLearner, resolve_device
from wardround.client.workbench import bench as bench_module
from wardround.client.workbench import desk as desk_module
from wardround.client.workbench import studio as studio_module
from wardround.client.workbench import surroundings, window
from wardround.client.workbench.apprentice import Apprentice
from wardround.client.workbench.studio import Studio
from wardround.errors import UsageError
from wardround.strategies.plan import RoundPlan

SHAPE, AT = (70, 60, 50), (8, 30, 20)
OBJECT = (20, 24, 16)
PLAN = RoundPlan(run="run-1", round=2, rounds=4, seed=1, model="unet3d-small", labels=3, updates_per_case=6)
LONG = 120.0


def case() -> tuple[Volume, np.ndarray]:
    small, labels = draw_phantom(np.random.default_rng(0), OBJECT)
    image = np.random.default_rng(1).normal(0, 0.1, SHAPE).astype(np.float32)
    truth = np.zeros(SHAPE, np.uint8)
    where = tuple(slice(at, at + side) for at, side in zip(AT, OBJECT, strict=True))
    image[where], truth[where] = small.array, labels.array
    return Volume(image, small.affine), truth


IMAGE, TRUTH = case()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CaseStore]:
    for name, value in {"LIVE_VOXELS": 2**14, "SIDE": 32, "MARGIN": 6, "_RIM": 2}.items():
        monkeypatch.setattr(window, name, value)
    monkeypatch.setattr(surroundings, "SIDE", 48)
    with CaseStore(tmp_path / "site" / "store") as opened:
        opened.add_case("a", IMAGE)
        yield opened


@pytest.fixture
def studio(store: CaseStore, tmp_path: Path) -> Iterator[Studio]:
    home = SiteHome(tmp_path)
    home.settings_file.write_text(
        SETTINGS_TEMPLATE.format(name="north", coordinator="https://127.0.0.1:1"), encoding="utf-8"
    )
    learner = OnlineLearner(LearningSettings.of(PLAN), resolve_device("cpu"))
    LatestModel(home.site / "model").save(PLAN, learner.weights())
    found = Studio(home, store, Device(), torch_device="cpu", look_ahead=False)
    yield found
    found.close_all()


def cut(k: int) -> SlicePrompt:
    return SlicePrompt(2, k, TRUTH[:, :, k].copy())


def whole(studio: Studio, name: str) -> np.ndarray:
    layer = studio.layer("a", "ann", name)
    assert layer is not None
    assert layer.shape == SHAPE
    return layer.whole()


def desk(studio: Studio) -> object:
    bench = studio.benches.peek("ann")
    assert bench is not None
    assert bench.desk is not None
    return bench.desk


def test_it_is_drawn_on_as_any_other(studio: Studio, store: CaseStore) -> None:
    studio.open("a", "ann")
    first = desk(studio)
    answer = studio.draw("a", "ann", [cut(28)])
    moved = desk(studio)
    assert moved is not first, "the window was in the middle"
    assert "move" in answer.latency_ms
    for one in (first, moved):
        normalised = normalise(IMAGE.array)[one.window.slices]  # type: ignore[attr-defined]
        assert np.array_equal(one.session.normalised, normalised), "scaled as the whole image"  # type: ignore[attr-defined]
    proxy = whole(studio, "proxy")
    inside = TRUTH[:, :, 28] > 0
    assert np.array_equal(proxy[:, :, 28][inside], TRUTH[:, :, 28][inside])
    assert proxy[:, :, 28].sum() == TRUTH[:, :, 28].sum()
    drawn = whole(studio, "drawn")
    assert (drawn[:, :, 28][inside] == TRUTH[:, :, 28][inside] + 1).all()
    for request in answer.suggestion:
        assert AT[request.axis] - 8 <= request.index < AT[request.axis] + OBJECT[request.axis] + 8
    studio.draw("a", "ann", [cut(24), PointPrompt((69, 59, 49), 0)])
    assert desk(studio) is moved, "background far away is no reason to move"
    assert studio.undo("a", "ann").step == 1
    assert studio.redo("a", "ann").step == 2
    shown = whole(studio, "proxy")
    assert studio.accept("a", "ann").state == "accepted"
    label = store.label("a", "ann")
    assert label is not None
    assert np.array_equal(label.array, shown)
    assert np.allclose(label.affine, IMAGE.affine)
    drawing = store.drawing("a", "ann")
    assert drawing is not None
    assert drawing.steps[1][1] == PointPrompt((69, 59, 49), 0), "kept as it was drawn"
    assert studio.wait("ann", LONG)
    assert studio.kept("a", "ann") is True


def test_the_window_goes_where_somebody_draws_and_keeps_what_was_drawn(studio: Studio, store: CaseStore) -> None:
    studio.open("a", "ann")
    studio.draw("a", "ann", [cut(28)])
    before = whole(studio, "proxy")
    labels = np.full(SHAPE[:2], UNLABELLED, np.uint8)
    labels[60:64, 4:8] = 2
    answer = studio.draw("a", "ann", [ScribblePrompt(2, 45, labels)])
    assert (answer.step, "move" in answer.latency_ms) == (2, True)
    proxy = whole(studio, "proxy")
    assert (proxy[60:64, 4:8, 45] == 2).all()
    assert np.array_equal(proxy[:, :, 28], before[:, :, 28])
    studio.close("a", "ann")
    assert studio.open("a", "ann").step == 2
    again = whole(studio, "proxy")
    assert (again[60:64, 4:8, 45] == 2).all()
    with pytest.raises(UsageError):
        studio.draw("a", "ann", [PointPrompt((70, 0, 0), 1)])
    drawing = store.drawing("a", "ann")
    assert drawing is not None
    assert len(drawing.steps) == 2


def test_the_rest_of_the_image_is_predicted_behind(studio: Studio) -> None:
    opened = studio.open("a", "ann")
    assert studio.wait("ann", LONG)
    layer = studio.layer("a", "ann", "prediction", opened.versions["prediction"])
    assert layer is not None, "a newer one, of the whole image"
    labels = layer.whole()
    inferred = studio.infer("a", "ann").labels
    box = window.window_for(SHAPE, studio.open("a", "ann").annotations).slices
    outside = np.ones(SHAPE, bool)
    outside[box] = False
    assert np.array_equal(labels[outside], inferred[outside])
    assert labels[outside].any()
    assert studio.accept("a", "ann", "prediction", shown=layer.version).state == "accepted"


def test_a_prediction_that_is_not_complete_is_not_accepted(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Apprentice, "look", lambda *_: None)
    studio.open("a", "ann")
    with pytest.raises(UsageError, match="not complete"):
        studio.accept("a", "ann", "prediction")
    studio.close("a", "ann")
    assert studio.wait("ann", LONG), "nobody looks at what is no longer on the desk"


def test_a_whole_label_of_a_large_image_is_learnt_where_it_is(studio: Studio) -> None:
    studio.save_label("a", "ann", IMAGE.with_array(TRUTH))
    assert studio.wait("ann", LONG)
    assert studio.kept("a", "ann") is True


def test_a_window_that_moves_when_the_last_piece_is_found_shows_the_whole_image(
    studio: Studio, store: CaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The piece was being looked at for the desk before, and is found while the new one is being made."""
    monkeypatch.setattr(Apprentice, "learn", lambda *_: None)  # After which it would be shown anew in any case.

    class Desk(desk_module.Desk):
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, **more)
            assert self.surroundings is not None
            while self.surroundings.left:
                self.surroundings.look(self.session.learner.predict)

    with monkeypatch.context() as patch:
        patch.setattr(Apprentice, "look", lambda *_: None)
        studio.open("a", "ann")
        patch.setattr(bench_module, "Desk", Desk)
        studio.draw("a", "ann", [cut(28)])
        with pytest.raises(UsageError, match="not complete"):
            studio.accept("a", "ann", "prediction")
    assert studio.wait("ann", LONG)
    shown = whole(studio, "prediction")
    outside = np.ones(SHAPE, bool)
    outside[desk(studio).window.slices] = False  # type: ignore[attr-defined]
    assert shown[outside].any()
    assert studio.accept("a", "ann", "prediction").state == "accepted"
    label = store.label("a", "ann")
    assert label is not None
    assert label.array[outside].any()


def test_it_is_answered_without_a_session_where_it_is_drawn_on(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = list[tuple[int, ...]]()
    propagate = studio_module.propagate

    def seen(image: Volume, *given: Any, **more: Any) -> Any:
        shapes.append(image.shape)
        return propagate(image, *given, **more)

    monkeypatch.setattr(studio_module, "propagate", seen)
    found = studio.infer("a", "ann", [cut(28), cut(30), PointPrompt((69, 59, 49), 0)]).labels
    assert found.shape == SHAPE
    for k in (28, 30):
        assert np.array_equal(found[:, :, k], TRUTH[:, :, k])
    assert shapes[0] != SHAPE
    extent = ExtentPrompt(AT, (AT[0] + 10, AT[1] + 23, AT[2] + 15))
    within = studio.infer("a", "ann", [cut(28)], extent).labels
    beyond = np.delete(within[AT[0] + 11 :], 28, axis=2)
    assert not beyond.any()
    assert within[: AT[0] + 11, :, 29].any()
    with pytest.raises(UsageError):
        studio.infer("a", "ann", [cut(28)], ExtentPrompt((0, 0, 0), SHAPE))


def test_whoever_draws_goes_first_between_two_pieces_of_a_prediction(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = list[bool]()
    look = surroundings.Surroundings.look
    device = studio._device

    def looking(self: surroundings.Surroundings, predict: Any) -> None:
        looked.append(free.acquire(blocking=False))
        look(self, predict)

    free = threading.Semaphore(0)
    interactive = device.interactive

    @contextmanager
    def held() -> Iterator[None]:
        with interactive():
            free.release()
            yield

    monkeypatch.setattr(device, "interactive", held)
    monkeypatch.setattr(surroundings.Surroundings, "look", looking)
    studio.infer("a", "ann")
    assert len(looked) > 1
    assert all(looked), "each has the device for itself"
