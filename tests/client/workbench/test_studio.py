"""The studio: drawings are answered at once, the model learns behind, and everything is there after a restart."""

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from wardround.client.annotation.annotator import Truth
from wardround.client.annotation.prompts import (
    UNLABELLED,
    ErasePrompt,
    ExtentPrompt,
    PointPrompt,
    Prompt,
    ScribblePrompt,
    SlicePrompt,
    SliceRequest,
)
from wardround.client.cases.phantoms import draw_phantom
from wardround.client.cases.store import CaseStore
from wardround.client.cases.volume import Volume
from wardround.client.device import Device
from wardround.client.home import SETTINGS_TEMPLATE, SiteHome
from wardround.client.learning.latest import LatestModel, weights_digest
from wardround.client.learning.learner import LearningSettings, OnlineLearner, resolve_device
from wardround.client.learning.replay import ReplayMemory
from wardround.client.learning.round import OnlineRound
from wardround.client.learning.session import CaseSession
from wardround.client.workbench import bench
from wardround.client.workbench.benches import Benches
from wardround.client.workbench.studio import Studio
from wardround.errors import DataError, GeometryError, LabelError, StorageError, UsageError
from wardround.strategies.plan import RoundPlan

SHAPE = (20, 24, 16)
CASES = ("a", "b", "c")
LONG = 120.0


def phantom(number: int) -> tuple[Volume, Volume]:
    image, labels = draw_phantom(np.random.default_rng([0, number]), SHAPE)
    return image, labels


TRUTHS = {case: Truth(phantom(number)[1]) for number, case in enumerate(CASES)}
PLAN = RoundPlan(
    run="run-1", round=2, rounds=4, seed=1, model="unet3d-small", labels=3, updates_per_case=12, slices_per_case=4
)


class Place:
    """A site with three phantoms, a held-back case, and a studio that can be started again."""

    def __init__(self, folder: Path) -> None:
        self.home = SiteHome(folder)
        text = SETTINGS_TEMPLATE.format(name="north", coordinator="https://127.0.0.1:1")
        folder.mkdir(exist_ok=True)
        (folder / "site.toml").write_text(text, encoding="utf-8")
        self.store = CaseStore(self.home.site / "store")
        for number, case in enumerate(CASES):
            self.store.add_case(case, phantom(number)[0])
        self.store.add_case("held", phantom(9)[0], "test")
        self.global_weights(PLAN)
        self.device = Device()
        self.studio = self.start()

    def global_weights(self, plan: RoundPlan) -> str:
        learner = OnlineLearner(LearningSettings(plan.model, plan.labels, plan.seed), resolve_device("cpu"))
        LatestModel(self.home.site / "model").save(plan, learner.weights())
        return weights_digest(learner.weights())

    def start(self) -> Studio:
        return Studio(self.home, self.store, self.device, torch_device="cpu", look_ahead=False)

    def restart(self) -> None:
        self.studio.close_all()
        self.studio = self.start()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path / "home")
    yield place
    place.studio.close_all()
    place.store.close()


def _own(studio: Studio) -> bench.Bench:
    with studio.benches.of("ann") as own:
        return own


def cut(case: str, index: int, axis: int = 2) -> SlicePrompt:
    return TRUTHS[case].slice(SliceRequest(axis, index))


def stroke(index: int, label: int = 1) -> ScribblePrompt:
    labels = np.full(SHAPE[:2], UNLABELLED, dtype=np.uint8)
    labels[9:12, 11] = label
    return ScribblePrompt(2, index, labels)


def test_a_drawing_is_answered_and_learnt_behind(place: Place) -> None:
    studio = place.studio
    opened = studio.open("a", "ann")
    assert (opened.step, opened.can_undo, opened.effort_contour) == (0, False, 0.0)
    assert set(opened.versions) == {"prediction", "drawn"}
    answer = studio.draw("a", "ann", [cut("a", 8)])
    assert answer.step == 1
    assert answer.can_undo
    assert 0 < answer.effort_share < 1
    layer = studio.layer("a", "ann", "proxy")
    assert layer is not None
    assert np.array_equal(layer.whole()[:, :, 8], cut("a", 8).labels)
    assert layer.version == answer.versions["proxy"]
    assert studio.layer("a", "ann", "proxy", layer.version) is None
    assert set(answer.latency_ms) == {"wait", "propagate", "encode", "persist", "suggest", "total"}
    assert studio.wait("ann", LONG)
    progress = studio.progress("ann")
    assert progress.updates_done > 0
    assert (progress.updates_left, progress.learning, progress.run, progress.round) == (0, False, "run-1", 2)
    after = studio.layer("a", "ann", "prediction", answer.versions["prediction"])
    assert after is not None, "the new prediction has a new version"


def test_a_case_is_accepted_remembered_and_the_next_one_named(place: Place) -> None:
    studio = place.studio
    studio.open("a", "ann")
    studio.draw("a", "ann", [cut("a", 6), cut("a", 10)])
    outcome = studio.accept("a", "ann")
    assert (outcome.state, outcome.next) == ("accepted", "b")
    stored = place.store.label("a", "ann")
    assert stored is not None
    assert np.array_equal(stored.array[:, :, 6], cut("a", 6).labels)
    assert place.store.counting(review=False) == {"a": "ann"}
    assert studio.wait("ann", LONG)
    assert studio.kept("a", "ann") is True
    assert len(list((place.home.site / "benches" / "ann" / "memory").glob("*.safetensors"))) == 1
    view = studio.case("a", "ann")
    assert (view.state, view.mine, view.authors) == ("accepted", "accepted", ("ann",))
    with pytest.raises(UsageError, match="not open"):
        studio.draw("a", "ann", [cut("a", 5)])


def test_a_draft_is_there_after_a_restart(place: Place) -> None:
    place.studio.open("a", "ann")
    extent = TRUTHS["a"].extent()
    place.studio.draw("a", "ann", [cut("a", 6)], extent)
    place.studio.draw("a", "ann", [cut("a", 10)])
    place.studio.draw("a", "ann", [cut("a", 3)])
    before = place.studio.undo("a", "ann")
    shown = place.studio.layer("a", "ann", "proxy")
    place.restart()
    answer = place.studio.open("a", "ann")
    assert (answer.step, answer.can_undo, answer.can_redo) == (2, True, True)
    assert answer.annotations.extent == extent
    assert answer.effort_contour == before.effort_contour
    again = place.studio.layer("a", "ann", "proxy")
    assert shown is not None
    assert again is not None
    assert again.version > shown.version, "a page that outlived the restart must fetch it again"
    assert np.mean(again.whole() != shown.whole()) < 0.01
    assert place.studio.redo("a", "ann").step == 3


def test_undo_leads_to_where_one_was(place: Place) -> None:
    studio = place.studio
    studio.open("a", "ann")
    first = studio.draw("a", "ann", [cut("a", 8)])
    shown = studio.layer("a", "ann", "proxy")
    studio.draw("a", "ann", [cut("a", 4)])
    back = studio.undo("a", "ann")
    again = studio.layer("a", "ann", "proxy")
    assert shown is not None
    assert again is not None
    assert np.array_equal(again.whole(), shown.whole())
    assert (back.effort_contour, back.step) == (first.effort_contour, 1)
    studio.undo("a", "ann")
    empty = studio.layer("a", "ann", "proxy", again.version)
    assert empty is not None
    assert not empty.whole().any()
    with pytest.raises(UsageError, match="nothing to undo"):
        studio.undo("a", "ann")
    assert studio.redo("a", "ann").can_redo
    studio.draw("a", "ann", [cut("a", 5)])
    with pytest.raises(UsageError, match="nothing to redo"):
        studio.redo("a", "ann")


def test_what_is_undone_is_not_in_the_model(place: Place) -> None:
    studio = place.studio
    studio.open("a", "ann")
    assert studio.wait("ann", LONG)
    learner = _own(studio).apprentice.work.learner
    before = weights_digest(learner.weights())
    studio.draw("a", "ann", [cut("a", 8)])
    assert studio.wait("ann", LONG)
    assert weights_digest(learner.weights()) != before
    studio.undo("a", "ann")
    assert studio.wait("ann", LONG)
    assert weights_digest(learner.weights()) == before


def test_a_drawing_right_after_an_undo_does_not_bring_it_back(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    studio, forgotten = place.studio, []
    forget = OnlineRound.forget
    monkeypatch.setattr(OnlineRound, "forget", lambda work, case: (forgotten.append(case.case_id), forget(work, case)))
    studio.open("a", "ann")
    studio.draw("a", "ann", [cut("a", 8)])
    assert studio.wait("ann", LONG)
    with place.device.interactive():  # The updates after the undo have not begun when the next drawing comes.
        studio.undo("a", "ann")
        studio.draw("a", "ann", [cut("a", 4)])
    assert studio.wait("ann", LONG)
    assert forgotten == ["a"]


def test_a_case_that_is_closed_or_skipped_leaves_no_trace_in_the_model(place: Place) -> None:
    studio = place.studio
    studio.open("a", "ann")
    assert studio.wait("ann", LONG)
    learner = _own(studio).apprentice.work.learner
    before = weights_digest(learner.weights())
    studio.draw("a", "ann", [cut("a", 8)])
    assert studio.wait("ann", LONG)
    studio.close("a", "ann")
    assert studio.case("a", "ann").mine == "open"
    studio.open("b", "ann")
    studio.draw("b", "ann", [cut("b", 8)])
    assert studio.skip("b", "ann", "unsure").state == "skipped"
    assert studio.wait("ann", LONG)
    assert weights_digest(learner.weights()) == before
    assert place.store.counting(review=False) == {}


def test_two_people_on_one_case_do_not_touch_each_other(place: Place) -> None:
    studio = place.studio
    for user in ("ann", "bob"):
        studio.open("a", user)
    studio.draw("a", "ann", [cut("a", 8)])
    assert studio.layer("a", "bob", "proxy") is None
    studio.draw("a", "bob", [stroke(8)])
    answers = [studio.accept("a", user) for user in ("ann", "bob")]
    assert [answer.state for answer in answers] == ["accepted", "accepted"]
    ann, bob = (place.store.label("a", user) for user in ("ann", "bob"))
    assert ann is not None
    assert bob is not None
    assert not np.array_equal(ann.array, bob.array)
    assert place.store.counting(review=False) == {"a": "ann"}


def test_many_threads_at_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two people draw, undo and look from several threads each; nothing is lost and nobody is stuck."""
    studio, failures = place.studio, list[object]()
    at_work: set[int] = set()
    answer = CaseSession.answer

    def watched(session: CaseSession, *drawn: Prompt) -> None:
        if id(session) in at_work:
            failures.append("two hands on one case at once")
        at_work.add(id(session))
        answer(session, *drawn)
        at_work.discard(id(session))

    monkeypatch.setattr(CaseSession, "answer", watched)
    for user in ("ann", "bob"):
        studio.open("a", user)

    def hands(user: str, index: int) -> None:
        try:
            for _ in range(3):
                studio.draw("a", user, [cut("a", index)])
                studio.layer("a", user, "residual")
                studio.cases(user)
                studio.progress(user)
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=hands, args=(u, i)) for u in ("ann", "bob") for i in (5, 7, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert failures == []
    for user in ("ann", "bob"):
        drawing = place.store.drawing("a", user)
        assert drawing is not None
        assert len(drawing.steps) == 9
        assert studio.wait(user, LONG)


def test_an_eraser_takes_strokes_away_and_they_stay_paid(place: Place) -> None:
    studio = place.studio
    studio.open("a", "ann")
    drawn = studio.draw("a", "ann", [stroke(8)])
    mask = np.zeros(SHAPE[:2], dtype=bool)
    mask[9:12, 11] = True
    erased = studio.draw("a", "ann", [ErasePrompt(2, 8, mask)])
    assert erased.effort_contour == drawn.effort_contour == 3
    layer = studio.layer("a", "ann", "drawn")
    assert layer is not None
    assert not layer.whole().any()
    with pytest.raises(UsageError, match="nothing to accept"):
        studio.accept("a", "ann")
    assert studio.accept("a", "ann", "prediction").state == "accepted"
    assert studio.wait("ann", LONG)
    assert studio.kept("a", "ann") is None, "nobody learns from what is erased"


def test_a_newer_drawing_replaces_updates_that_have_not_begun(place: Place) -> None:
    studio = place.studio
    studio.open("a", "ann")
    assert studio.wait("ann", LONG)
    with place.device.interactive():  # Nothing can be learnt meanwhile.
        left = [studio.draw("a", "ann", [cut("a", index)]).progress.updates_left for index in (5, 8, 11)]
        waiting = studio.progress("ann").updates_left
    assert left[0] == 0
    assert waiting == 4, "of the last drawing only"
    assert studio.wait("ann", LONG)
    assert studio.progress("ann").updates_done == waiting


def test_a_whole_label_of_another_viewer_counts(place: Place) -> None:
    studio = place.studio
    labels = phantom(1)[1]
    assert studio.save_label("b", "ann", labels).state == "accepted"
    drawing = place.store.drawing("b", "ann")
    assert drawing is not None
    assert (drawing.source, drawing.steps) == ("whole", ())
    assert studio.wait("ann", LONG)
    assert studio.kept("b", "ann") is True
    with pytest.raises(LabelError):
        studio.save_label("b", "ann", labels.with_array(np.full(SHAPE, 7, dtype=np.uint8)))


def test_what_could_not_be_stored_is_not_on_the_desk_either(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    studio = place.studio
    studio.open("a", "ann")
    first = studio.draw("a", "ann", [stroke(6)])
    studio.draw("a", "ann", [stroke(7)])
    undone = studio.undo("a", "ann")

    def full(*_: object) -> None:
        raise StorageError("cannot write", "the disk is full", "make room")

    with monkeypatch.context() as patch:
        patch.setattr(place.store, "save_drawing", full)
        for act in (lambda: studio.draw("a", "ann", [stroke(8)]), lambda: studio.redo("a", "ann")):
            with pytest.raises(StorageError):
                act()
    again = studio.redo("a", "ann")
    assert (undone.step, again.step) == (1, 2), "what was taken back before is still there to be drawn again"
    last = studio.draw("a", "ann", [stroke(8)])
    assert last.step == 3
    assert last.effort_contour == 3 * first.effort_contour, "a stroke that is tried again is charged once"


def test_what_failed_on_the_way_is_not_drawn_twice(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    studio = place.studio
    studio.open("a", "ann")
    first = studio.draw("a", "ann", [stroke(6)])
    propagate, failures = CaseSession._propagate, list[Exception]()

    def failing(session: CaseSession) -> None:
        if failures:
            raise failures.pop()
        propagate(session)

    monkeypatch.setattr(CaseSession, "_propagate", failing)
    for again in (1, 2):  # The second time the memory is short for what leads back, too.
        failures.extend(MemoryError() for _ in range(again))
        with pytest.raises(MemoryError):
            studio.draw("a", "ann", [stroke(8)])
    assert not failures
    with pytest.raises(UsageError, match="not open"):
        studio.draw("a", "ann", [stroke(8)])
    assert studio.open("a", "ann").step == 1
    last = studio.draw("a", "ann", [stroke(8)])
    assert (last.step, last.effort_contour) == (2, 2 * first.effort_contour)


def test_the_prediction_can_be_accepted_as_it_is(place: Place) -> None:
    studio = place.studio
    studio.open("a", "ann")
    with pytest.raises(UsageError, match="nothing to accept"):
        studio.accept("a", "ann")
    predicted = studio.layer("a", "ann", "prediction")
    assert predicted is not None
    with pytest.raises(UsageError, match="another one by now"):
        studio.accept("a", "ann", "prediction", shown=predicted.version - 1)
    assert place.store.label("a", "ann") is None
    assert studio.accept("a", "ann", "prediction", shown=predicted.version).state == "accepted"
    label = place.store.label("a", "ann")
    assert label is not None
    assert np.array_equal(label.array, predicted.whole())


def test_a_bench_moves_to_the_next_global_weights_between_two_cases(place: Place) -> None:
    studio = place.studio
    studio.open("a", "ann")
    studio.draw("a", "ann", [cut("a", 8)])
    digest = place.global_weights(PLAN.model_copy(update={"round": 3, "seed": 5}))
    assert studio.progress("ann").round == 2, "not while a case is open"
    studio.draw("a", "ann", [cut("a", 4)])
    studio.accept("a", "ann")
    assert studio.wait("ann", LONG)
    assert studio.open("b", "ann").progress.round == 3
    assert studio.progress("ann").model == digest[:12]
    assert len(_own(studio).apprentice.work.memory) == 1, "what was remembered is not forgotten"
    next((place.home.site / "model").iterdir()).write_bytes(b"damaged")
    studio.close("b", "ann")
    assert studio.open("c", "ann").progress.model == digest[:12], "nobody moves to what cannot be read"


def test_a_bench_goes_on_after_a_restart_with_what_it_had_learnt(place: Place) -> None:
    studio = place.studio
    studio.open("a", "ann")
    studio.draw("a", "ann", [cut("a", 8)])
    studio.accept("a", "ann")
    assert studio.wait("ann", LONG)
    before = weights_digest(_own(studio).apprentice.work.learner.weights())
    place.restart()
    work = _own(place.studio).apprentice.work
    assert weights_digest(work.learner.weights()) == before
    assert len(work.memory) == 1
    for file in (place.home.site / "benches" / "ann").glob("kept-*/kept.json"):
        file.write_text("{")
    place.restart()
    assert len(_own(place.studio).apprentice.work.memory) == 0, "something damaged is left out"


def test_a_rehearsal_reports_its_progress_and_can_be_stopped(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    studio = place.studio
    monkeypatch.setattr(bench, "TRAINING_UPDATES", 6)
    assert studio.training("ann") is None
    first = studio.train("ann")
    assert studio.wait("ann", LONG)
    view = studio.training("ann")
    assert view is not None
    assert (view.id, view.status) == (first, "DONE")
    assert "nothing is remembered" in view.lines[-1]
    studio.save_label("b", "ann", phantom(1)[1])
    with place.device.interactive():
        studio.train("ann")
        with pytest.raises(UsageError, match="already"):
            studio.train("ann")
        studio.stop_training("ann")
    stopped = studio.training("ann")
    assert stopped is not None
    assert stopped.status == "STOPPED"
    assert studio.wait("ann", LONG)
    studio.train("ann")
    assert studio.wait("ann", LONG)
    done = studio.training("ann")
    assert done is not None
    assert done.status == "DONE"
    assert done.started is not None
    assert any("6 of 6" in line for line in done.lines)


def test_a_case_that_could_not_be_remembered_does_not_end_the_learning(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    studio = place.studio
    monkeypatch.setattr(ReplayMemory, "offer", full)
    studio.open("a", "ann")
    studio.draw("a", "ann", [cut("a", 8)])
    assert studio.accept("a", "ann").state == "accepted"
    assert studio.wait("ann", LONG)
    monkeypatch.undo()
    studio.open("b", "ann")
    assert studio.wait("ann", LONG)
    before = studio.progress("ann").updates_done
    studio.draw("b", "ann", [cut("b", 8)])
    assert studio.wait("ann", LONG)
    assert studio.progress("ann").updates_done > before
    studio.accept("b", "ann")
    assert studio.wait("ann", LONG)
    assert studio.kept("b", "ann") is not None


def test_inference_without_a_session(place: Place) -> None:
    studio = place.studio
    predicted = studio.infer("a", "ann")
    assert predicted.labels.shape == SHAPE
    found = studio.infer(phantom(0)[0], "ann", [cut("a", 8), PointPrompt((0, 0, 0), 0)]).labels
    assert np.array_equal(
        found[:, :, 8], np.where(np.indices(SHAPE[:2]).sum(0) == 0, found[:, :, 8], cut("a", 8).labels)
    )
    assert studio.case("a", "ann").state == "new"


def test_what_cannot_be_is_refused(place: Place) -> None:
    studio = place.studio
    for ask in (studio.open, studio.case, studio.label, studio.infer):
        with pytest.raises(DataError) as caught:
            ask("nowhere", "ann")
        assert str(place.home.path) not in str(caught.value), "no path in what a viewer is told"
    with pytest.raises(UsageError):
        studio.open("a", "../ann")
    studio.open("a", "ann")
    for wrong in (
        SlicePrompt(2, 99, np.zeros(SHAPE[:2], np.uint8)),
        SlicePrompt(5, 1, np.zeros(SHAPE[:2], np.uint8)),
        SlicePrompt(2, 1, np.full(SHAPE[:2], 9, np.uint8)),
        PointPrompt((0, 0, 99), 1),
        ErasePrompt(2, 1, np.zeros((2, 2), dtype=bool)),
    ):
        with pytest.raises(UsageError):
            studio.draw("a", "ann", [cut("a", 8), wrong])
    with pytest.raises(UsageError):
        studio.draw("a", "ann", [], ExtentPrompt((0, 0, 0), (99, 1, 1)))
    with pytest.raises(UsageError):
        studio.layer("a", "ann", "names")
    assert studio.draw("a", "ann", []).step == 0
    assert studio.case("a", "ann").mine == "new", "to say nothing is no draft"
    assert studio.draw("a", "ann", [cut("a", 8)]).step == 1, "nothing of a refused drawing stays"


def test_the_next_case_is_the_one_on_which_the_model_contradicts_itself(place: Place) -> None:
    studio = place.studio
    _own(studio).scores.update({"a": 0.1, "b": 0.1, "c": 0.4})
    assert studio.next_case("ann") == "c"
    assert studio.next_case("ann", "first") == "a"
    assert studio.next_case("ann", "random") in CASES
    for case in CASES:
        studio.open(case, "ann")
        studio.skip(case, "ann", "later")
    assert studio.next_case("ann") is None
    assert studio.next_case("bob") == "a"


def test_benches_look_ahead_when_they_have_nothing_to_do(tmp_path: Path) -> None:
    place = Place(tmp_path / "home")
    place.studio.close_all()
    studio = Studio(place.home, place.store, place.device, torch_device="cpu")
    own = _own(studio)
    own.wake()
    waiting = threading.Event()
    for _ in itertools.repeat(None, int(LONG / 0.05)):
        if set(own.scores) == set(CASES):
            break
        waiting.wait(0.05)
    studio.close_all()
    place.store.close()
    assert set(own.scores) == set(CASES), "and not those that are held back"
    assert all(0 <= score <= 1 for score in own.scores.values())


def test_a_held_back_case_is_not_learnt_from(place: Place) -> None:
    studio = place.studio
    studio.open("held", "ann")
    studio.draw("held", "ann", [SlicePrompt(2, 8, np.ones(SHAPE[:2], np.uint8))])
    studio.accept("held", "ann")
    assert studio.wait("ann", LONG)
    assert studio.progress("ann").updates_done == 0
    assert len(_own(studio).apprentice.work.memory) == 0


def test_a_bench_moves_to_other_weights_while_nothing_learns(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rehearsal that somebody asks for just then begins after the move, and not on a model that is being replaced."""
    studio = place.studio
    studio.save_label("b", "ann", phantom(1)[1])
    assert studio.wait("ann", LONG)
    place.global_weights(PLAN.model_copy(update={"round": 3, "seed": 5}))
    own, decided, done, before = _own(studio), threading.Event(), list[str](), list[list[str]]()
    worker = own._worker
    recall, interactive, wait = OnlineRound.recall, place.device.interactive, worker._state.wait
    monkeypatch.setattr(bench, "TRAINING_UPDATES", 4)

    def recalling(work: OnlineRound, updates: int) -> None:
        done.append("recalled")
        decided.set()
        recall(work, updates)

    def waiting(timeout: float | None = None) -> bool:
        if threading.current_thread() is worker._thread and worker._tasks:
            decided.set()  # The worker knows of a task, and goes to sleep.
        return wait(timeout)

    @contextmanager
    def asked_meanwhile() -> Iterator[None]:
        monkeypatch.setattr(place.device, "interactive", interactive)
        own.train()
        assert decided.wait(LONG)
        before.append(list(done))
        with interactive():
            yield

    monkeypatch.setattr(OnlineRound, "recall", recalling)
    monkeypatch.setattr(worker._state, "wait", waiting)
    monkeypatch.setattr(place.device, "interactive", asked_meanwhile)
    studio.open("a", "ann")
    assert before == [[]], "nothing has begun"
    assert studio.progress("ann").round == 3
    assert studio.wait("ann", LONG)
    view = studio.training("ann")
    assert view is not None
    assert view.status == "DONE"
    assert done


def test_a_wrong_label_of_another_viewer_closes_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    studio = place.studio
    studio.open("a", "ann")
    studio.draw("a", "ann", [cut("a", 8)])
    label = phantom(0)[1]
    with pytest.raises(GeometryError):
        studio.save_label("a", "ann", Volume(label.array[1:], label.affine))
    assert studio.draw("a", "ann", [cut("a", 4)]).step == 2, "the case is still open"

    def full(*_: object) -> None:
        raise StorageError("cannot write", "the disk is full", "make room")

    with monkeypatch.context() as patch:
        patch.setattr(place.store, "save_drawing", full)
        with pytest.raises(StorageError):
            studio.save_label("a", "ann", label)
    assert studio.undo("a", "ann").step == 1


def test_a_draft_with_more_structures_than_the_model_knows_is_kept(place: Place) -> None:
    studio = place.studio
    studio.open("a", "ann")
    studio.draw("a", "ann", [stroke(8, 1)])
    studio.draw("a", "ann", [stroke(6, 2)])
    studio.open("b", "ann")
    place.global_weights(PLAN.model_copy(update={"round": 3, "labels": 2}))
    studio.close("b", "ann")
    with pytest.raises(LabelError, match="goes up to 2"):
        studio.open("a", "ann")
    drawing = place.store.drawing("a", "ann")
    assert drawing is not None
    assert len(drawing.steps) == 2
    assert studio.open("b", "ann").step == 0, "other cases go on"
    place.global_weights(PLAN.model_copy(update={"round": 4}))
    assert studio.wait("ann", LONG)
    assert studio.open("a", "ann").step == 2


def test_a_step_that_the_model_no_longer_knows_stays_undone(place: Place) -> None:
    studio = place.studio
    studio.open("a", "ann")
    studio.draw("a", "ann", [stroke(8, 1)])
    studio.draw("a", "ann", [stroke(6, 2)])
    studio.undo("a", "ann")
    studio.close("a", "ann")
    place.global_weights(PLAN.model_copy(update={"round": 3, "labels": 2}))
    assert studio.open("a", "ann").progress.round == 3
    for _ in range(2):
        with pytest.raises(UsageError, match="label 2"):
            studio.redo("a", "ann")
    drawing = place.store.drawing("a", "ann")
    assert drawing is not None
    assert len(drawing.undone) == 1
    assert studio.draw("a", "ann", [stroke(9, 1)]).step == 2


def test_whoever_comes_back_to_a_freed_bench_goes_on(place: Place) -> None:
    studio = place.studio
    studio.benches = Benches(studio._build, most=1)
    studio.open("a", "ann")
    studio.draw("a", "ann", [cut("a", 6)])
    studio.accept("a", "ann")
    assert studio.wait("ann", LONG)
    learnt = weights_digest(_own(studio).apprentice.work.learner.weights())
    studio.open("b", "ann")
    studio.draw("b", "ann", [cut("b", 8)])
    assert studio.wait("ann", LONG)
    with studio.benches.of("bob"):
        studio.open("c", "bob")
        assert studio.wait("bob", LONG)
        studio.progress("ann")
        with studio.benches.of("cat"):
            pass
    assert studio.benches.peek("ann") is None
    answer = studio.draw("b", "ann", [cut("b", 4)])
    assert (answer.case_id, answer.step) == ("b", 2)
    layer = studio.layer("b", "ann", "proxy")
    assert layer is not None
    assert np.array_equal(layer.whole()[:, :, 8], cut("b", 8).labels)
    studio.close("b", "ann")
    assert studio.wait("ann", LONG)
    assert weights_digest(_own(studio).apprentice.work.learner.weights()) == learnt
    with pytest.raises(UsageError, match="not open"):
        studio.draw("b", "ann", [cut("b", 5)])


def test_a_freed_bench_is_gone_on_with_whatever_else_is_asked_but_not_after_the_end(place: Place) -> None:
    studio = place.studio
    studio.benches = Benches(studio._build, most=1)

    def freed() -> None:
        studio.open("b", "ann")
        assert studio.wait("ann", LONG)
        with studio.benches.of("bob"):
            studio.progress("ann")
        with studio.benches.of("bob"), studio.benches.of("cat"):
            pass
        assert studio.benches.peek("ann") is None

    freed()
    with pytest.raises(UsageError, match="not open"):
        studio.draw("a", "ann", [stroke(8)])
    assert studio.draw("b", "ann", [stroke(8)]).step == 1
    freed()
    studio.close("b", "ann")
    with pytest.raises(UsageError, match="not open"):
        studio.draw("b", "ann", [stroke(9)])


def test_a_whole_label_that_came_meanwhile_is_learnt_once_the_desk_is_empty(place: Place) -> None:
    studio = place.studio
    studio.open("held", "ann")
    studio.draw("held", "ann", [SlicePrompt(2, 8, np.ones(SHAPE[:2], np.uint8))])
    studio.save_label("b", "ann", phantom(1)[1])
    assert studio.wait("ann", LONG)
    own = _own(studio)
    assert not own.is_idle, "it would be lost"
    studio.accept("held", "ann")
    assert studio.wait("ann", LONG)
    assert own.is_idle
    assert studio.kept("b", "ann") is not None


def test_another_image_under_the_same_id_is_another_case(place: Place) -> None:
    """What is drawn on one that was removed is no label of the one that came in its place."""
    studio = place.studio
    studio.open("a", "ann")
    studio.draw("a", "ann", [stroke(8)])
    place.store.remove("a")
    other = phantom(7)[0]
    place.store.add_case("a", other)
    for ask in (lambda: studio.accept("a", "ann"), lambda: studio.draw("a", "ann", [stroke(9)])):
        with pytest.raises(UsageError):
            ask()
    assert place.store.drawings("a") == ()
    assert np.array_equal(studio.image("a").array, other.array)
    assert studio.open("a", "ann").step == 0


def test_a_case_that_is_removed_while_somebody_draws_is_gone_for_them(place: Place) -> None:
    studio = place.studio
    studio.open("a", "ann")
    studio.draw("a", "ann", [stroke(8)])
    place.store.remove("a")
    for ask in (
        lambda: studio.draw("a", "ann", [stroke(9)]),
        lambda: studio.accept("a", "ann"),
        lambda: studio.case("a", "ann"),
        lambda: studio.image("a"),
    ):
        with pytest.raises((DataError, UsageError)) as caught:
            ask()
        assert str(place.home.path) not in str(caught.value)
    assert studio.wait("ann", LONG)
    assert studio.open("b", "ann").step == 0
    assert [view.id for view in studio.cases("ann")] == ["b", "c", "held"]


def test_what_a_plan_asks_of_voxels_that_nobody_drew_is_asked_at_the_bench_too(place: Place) -> None:
    """Strokes go straight into these losses, beside the proxy."""
    place.global_weights(PLAN.model_copy(update={"crf_weight": 0.5, "regularisation_side": 16, "round": 3}))
    place.restart()
    studio = place.studio
    studio.open("a", "ann")
    assert studio.wait("ann", LONG)
    work = _own(studio).apprentice.work
    assert work.learner.regularisation.active
    assert work.learner.regularisation.crf == 0.5
    before = weights_digest(work.learner.weights())
    studio.draw("a", "ann", [stroke(8), stroke(9, 0)])
    assert studio.wait("ann", LONG)
    assert weights_digest(work.learner.weights()) != before
    studio.accept("a", "ann")
    assert studio.wait("ann", LONG)
    assert _own(studio).apprentice.work.memory.sample("a").drawn.sum() == 6
