"""One annotator's bench: a model of their own, what it remembers, and the case on the desk.

A bench begins with the latest global weights and learns online while its annotator draws. It is a preview and never
leaves the site: what leaves is learnt anew, in a round of the federation, from what was drawn.

The annotator's thread answers a drawing with the new proxy. What the model learns from it
(:class:`~wardround.client.workbench.apprentice.Apprentice`) runs behind, in a
:class:`~wardround.client.workbench.worker.Worker`; a newer drawing takes the place of updates that have not begun.
"""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from wardround.client.annotation.prompts import Annotations, ExtentPrompt, Prompt
from wardround.client.cases.drawings import Drawing
from wardround.client.cases.volume import Volume
from wardround.client.device import Device
from wardround.client.learning.inference import intensity_scale
from wardround.client.learning.latest import LatestModel
from wardround.client.workbench.apprentice import Apprentice
from wardround.client.workbench.desk import Desk
from wardround.client.workbench.layers import Bytes3D
from wardround.client.workbench.news import News
from wardround.client.workbench.surroundings import Surroundings
from wardround.client.workbench.training import Training
from wardround.client.workbench.window import window_for
from wardround.client.workbench.worker import Replaced, Task, Worker
from wardround.errors import UsageError, WardroundError
from wardround.strategies.plan import RoundPlan

# Updates of a rehearsal that somebody asked for, and how many of them are made at a stretch.
TRAINING_UPDATES, STRETCH = 48, 4
# Pieces of a large image that are predicted at a stretch.
PIECES = 2
STOP_S = 30.0
# How long a person waits, once a round of the federation, for what was learnt before to be judged.
SETTLE_S = 5.0


class Bench:
    """The bench of one annotator.

    What :attr:`hands` guards is done by the annotator, one thing at a time; the rest may be called from any thread.

    Parameters
    ----------
    user
        Whose it is.
    folder
        What it keeps.
    latest
        Where the site keeps the latest global weights.
    fallback
        The plan where the site has seen no round yet.
    device
        Who may compute.
    torch_device
        Where.
    versions
        Numbers of layers.
    news
        Told of everything that the annotator may want to see.
    """

    def __init__(  # noqa: PLR0917
        self,
        user: str,
        folder: Path,
        latest: LatestModel,
        fallback: RoundPlan,
        device: Device,
        torch_device: torch.device,
        versions: Iterator[int],
        news: News,
    ) -> None:
        self.user = user
        self.hands = threading.RLock()
        self.desk: Desk | None = None
        self.training: Training | None = None
        self.content = ""
        self.updates_done = 0
        self.scores: dict[str, float] = {}
        self.looked_at: set[str] = set()
        self.candidate: Callable[[], tuple[str, Callable[[], Volume]] | None] = lambda: None
        self.note = news.note
        self._device = device
        self._versions = versions
        self._later: list[Callable[[], None]] = []
        self._worker = Worker(device, self.note, self._scout)
        self.apprentice = Apprentice(user, folder, latest, fallback, torch_device, self._between)

    @property
    def plan(self) -> RoundPlan:
        """The rules that it works by."""
        return self.apprentice.plan

    @property
    def updates_left(self) -> int:
        """Updates that are asked for and not done."""
        return sum(task.updates for task in self._worker.tasks if not task.cancelled)

    @property
    def learning(self) -> bool:
        """Whether anything to learn runs or waits."""
        return any(task.kind != "look" for task in self._worker.tasks)

    @property
    def is_idle(self) -> bool:
        """Whether nothing would be lost if it ended now."""
        return not self._worker.tasks and not self._later and (self.training is None or not self.training.running)

    def wait(self, timeout_s: float) -> bool:
        """Wait until nothing is left to do."""
        return self._worker.wait(timeout_s)

    def wake(self) -> None:
        """There may be a case to look at."""
        self._worker.wake()

    def rebase(self) -> None:
        """Begin with newer global weights, if there are any, nothing is on the desk, and little is left to learn."""
        if self.desk is not None or not self.apprentice.is_behind:
            return
        self._worker.cancel("rehearse")
        with self._worker.alone(SETTLE_S) as free:
            if not free:
                return  # At the next case, then.
            with self._device.interactive():
                self.apprentice.begin()
            self.scores.clear()
            self.looked_at.clear()
        self._rehearse_behind()
        self.note()

    def predict(self, image: Volume) -> Bytes3D:
        """Labels ``[I, J, K]``, uint8, of an image; between the pieces of a large one others compute."""
        near = window_for(image.shape, Annotations())
        if near.is_whole:
            with self._device.interactive():
                return self.apprentice.predict(image)
        found = Surroundings(image, intensity_scale(image.array), near)
        while found.left:
            with self._device.interactive():
                found.look(self.apprentice.work.learner.predict)
        return found.labels

    def lay(self, case_id: str, image: Volume, drawing: Drawing | None, *, learns: bool) -> Desk:
        """Lay a case on the empty desk and go on with what was drawn of it."""
        return self._lay(case_id, image, drawing, None, None, learns=learns)

    def reach(self, desk: Desk, image: Volume, prompts: tuple[Prompt, ...], extent: ExtentPrompt | None) -> Desk:
        """The desk, or where a drawing would lie outside of its window, another one that has moved there.

        Raises
        ------
        UsageError
            If a prompt or the extent does not fit the case.
        """
        after = desk.after(prompts, extent)
        if desk.window.answers(after):
            return desk
        drawing = desk.drawing("open")
        self._take_off(desk)
        return self._lay(desk.case_id, image, drawing, desk.surroundings, after, learns=desk.learns)

    def _lay(
        self,
        case_id: str,
        image: Volume,
        drawing: Drawing | None,
        surroundings: Surroundings | None,
        drawn: Annotations | None,
        *,
        learns: bool,
    ) -> Desk:
        if drawn is None:
            drawn = Annotations() if drawing is None else drawing.annotations
        window = window_for(image.shape, drawn)
        scale = None
        if not window.is_whole:
            scale = intensity_scale(image.array) if surroundings is None else surroundings.scale
            surroundings = surroundings or Surroundings(image, scale, window)
        with self._device.interactive():
            session = self.apprentice.session(case_id, image, window, scale)
            learnt = self.apprentice.learnt
        base = self.apprentice.base
        desk = Desk(session, window, self.user, self._versions, model=base, learns=learns, surroundings=surroundings)
        if drawing is not None:
            with self._device.beside():
                desk.resume(drawing)
        self.desk = desk
        if learns:
            self._worker.put(Task("begin", lambda: self.apprentice.open(desk, learnt)))
            if session.steps:
                self.learn(desk, anew=True)
        if not desk.predicted:
            self._worker.put(Task("look", lambda: self._look(desk)))
        return desk

    def learn(self, desk: Desk, *, anew: bool = False) -> None:
        """Learn from the case as it stands, in place of updates that have not begun.

        Parameters
        ----------
        anew
            From all steps, after everything that was learnt from the case is taken back.
        """
        self._worker.cancel("learn", "rehearse")
        if not desk.learns:
            return
        frozen = desk.frozen()
        updates = 0
        if frozen.steps:
            steps = min(len(frozen.steps), self.plan.annotation_rounds)
            updates = self.apprentice.work.updates_after(frozen)
            if anew and steps > 1:
                updates = max(updates, self.plan.updates_per_case - self.apprentice.rehearsal)
        desk.anew = desk.anew or anew
        self._worker.put(Task("learn", lambda: self.apprentice.learn(desk, frozen, updates), updates))

    def leave(self) -> None:
        """Take the case off the desk; what was learnt from it is taken back."""
        if self.desk is not None:
            self._take_off(self.desk)
            self._do_later()

    def accept(self, judged: Callable[[bool], None]) -> None:
        """Take the case off the desk; it is learnt from and remembered, unless it made the model worse."""
        desk, self.desk = self.desk, None
        assert desk is not None
        if desk.learns:
            self._accept_behind(lambda: self.apprentice.accept(desk.session), judged)
        self._do_later()

    def accept_whole(self, case_id: str, image: Volume, labels: Bytes3D, judged: Callable[[bool], None]) -> None:
        """Learn from a case whose every voxel is labelled, once the desk is empty."""

        def ask() -> None:
            self._accept_behind(lambda: self.apprentice.accept_whole(case_id, image, labels), judged)

        if self.desk is None:
            ask()
        else:
            self._later.append(ask)

    def train(self) -> Training:
        """Rehearse from memory.

        Raises
        ------
        UsageError
            If it does already.
        """
        if self.training is not None and self.training.running:
            raise UsageError("the model is rehearsing already", "it was asked to a moment ago", "wait, or stop it")
        self.training = training = Training(TRAINING_UPDATES)
        self._worker.put(Task("train", lambda: self._train_on(training), TRAINING_UPDATES))
        self.note()
        return training

    def stop_training(self) -> None:
        """End a rehearsal that somebody asked for."""
        if self.training is not None and self.training.running:
            self.training.stop()
            self._worker.cancel("train")
            self.note()

    def close(self, wait_s: float = STOP_S) -> None:
        """End, and wait so long for the batch that runs; what was drawn lies in the store."""
        self.stop_training()
        self._worker.stop(wait_s)

    def _take_off(self, desk: Desk) -> None:
        self.desk = None
        self._worker.cancel("learn", "begin", "look")
        self._worker.put(Task("leave", lambda: self.apprentice.leave(desk)))

    def _accept_behind(self, accept: Callable[[], bool | None], judged: Callable[[bool], None]) -> None:
        def run() -> None:
            kept = accept()
            if kept is not None:
                judged(kept)

        self._worker.cancel("look")
        self._worker.put(Task("accept", run))
        self._rehearse_behind()

    def _rehearse_behind(self) -> None:
        self._worker.put(Task("rehearse", self.apprentice.rehearse, self.apprentice.rehearsal))

    def _do_later(self) -> None:
        later, self._later = self._later, []
        for ask in later:
            ask()

    def _between(self) -> None:
        new = self.apprentice.new_updates()
        if new:
            self.updates_done += new
            tasks = self._worker.tasks
            if tasks:
                tasks[0].updates = max(0, tasks[0].updates - new)
            self.note()
        self._worker.between()

    def _look(self, desk: Desk) -> None:
        for _ in range(PIECES):
            if desk.predicted or self.desk is not desk:
                return
            self._worker.between()
            self.apprentice.look(desk)
        if not desk.predicted:
            self._worker.put(Task("look", lambda: self._look(desk)))

    def _train_on(self, training: Training) -> None:
        try:
            self._train(training)
        except Replaced:
            raise
        except Exception as error:
            training.end("ERROR", type(error).__name__)
            raise

    def _train(self, training: Training) -> None:
        work = self.apprentice.work
        remembered = len(work.memory)
        if not remembered:
            training.end("DONE", "nothing is remembered yet: accept a case first")
            return
        training.begin(remembered)
        desk = self.desk
        if desk is not None and work.holds(desk.session):
            desk.trained = True
        stretch = min(STRETCH, training.left)
        work.recall(stretch)
        training.advance(stretch, work.losses[-1])
        self.note()
        if training.left and training.running:
            self._worker.put(Task("train", lambda: self._train_on(training), training.left))
            return
        self.apprentice.keep()
        training.end("DONE", "done")

    def _scout(self) -> Task | None:
        try:
            found = self.candidate()
        except WardroundError:
            return None
        if found is None:
            return None
        case_id, image = found
        return Task("scout", lambda: self._score(case_id, image))

    def _score(self, case_id: str, read: Callable[[], Volume]) -> None:
        self.looked_at.add(case_id)  # Should it fail, it is not tried again.
        try:
            self.scores[case_id] = self.apprentice.contradiction(read())
        except Replaced:
            self.looked_at.discard(case_id)
            raise
