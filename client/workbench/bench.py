"""One annotator's bench: a model of their own, what it remembers, and the case on the desk.

A bench begins with the latest global weights and learns online while its annotator draws. It is a preview and never
leaves the site: what leaves is learnt anew, in a round of the federation, from what was drawn.

The annotator's thread answers a drawing with the new proxy. What the model learns from it runs behind, in a
:class:`~wardround.client.workbench.worker.Worker`; a newer drawing takes the place of updates that have not begun.
"""

import logging
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from wardround.client.annotation.prompts import SlicePrompt
from wardround.client.annotation.propagation import LIVE, ProxyMask
from wardround.client.cases.drawings import Drawing
from wardround.client.cases.volume import Volume
from wardround.client.device import Device
from wardround.client.learning.inference import normalise
from wardround.client.learning.latest import LatestModel, weights_digest
from wardround.client.learning.learner import LearningSettings, OnlineLearner
from wardround.client.learning.replay import ReplayMemory, Reservoir
from wardround.client.learning.round import OnlineRound
from wardround.client.learning.session import CaseSession, disagreement
from wardround.client.learning.state import Standing
from wardround.client.workbench.desk import Desk
from wardround.client.workbench.kept import Kept, load_kept, save_kept
from wardround.client.workbench.layers import Bytes3D
from wardround.client.workbench.training import Training
from wardround.client.workbench.worker import Replaced, Task, Worker
from wardround.errors import StorageError, UsageError, WardroundError
from wardround.strategies.plan import RoundPlan

log = logging.getLogger(__name__)

# Sides of a training window on a CPU: a person waits for one update at the most.
CPU_PATCH = (64, 64, 64)
# Updates of a rehearsal that somebody asked for, and how many of them are made at a stretch.
TRAINING_UPDATES, STRETCH = 48, 4
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
    ) -> None:
        self.user = user
        self.hands = threading.RLock()
        self.desk: Desk | None = None
        self.training: Training | None = None
        self.updates_done = 0
        self.scores: dict[str, float] = {}
        self.looked_at: set[str] = set()
        self.candidate: Callable[[], tuple[str, Callable[[], Volume]] | None] = lambda: None
        self._folder = folder
        self._latest = latest
        self._fallback = fallback
        self._device = device
        self._torch_device = torch_device
        self._versions = versions
        self._news = threading.Condition()
        self._changes = 0
        self._seen = 0
        self._learnt = 0
        self._later: list[Callable[[], None]] = []
        self._worker = Worker(device, self.note, self._scout)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._begin()

    @property
    def plan(self) -> RoundPlan:
        """The rules that it works by."""
        return self._work.plan

    @property
    def changes(self) -> int:
        """Rises with everything that the annotator may want to see."""
        return self._changes

    @property
    def updates_left(self) -> int:
        """Updates that are asked for and not done."""
        return sum(task.updates for task in self._worker.tasks if not task.cancelled)

    @property
    def learning(self) -> bool:
        """Whether anything that was asked for runs or waits."""
        return bool(self._worker.tasks)

    def note(self) -> None:
        """Something has changed."""
        with self._news:
            self._changes += 1
            self._news.notify_all()

    def wait_for_change(self, seen: int, timeout_s: float) -> int:
        """Wait until :attr:`changes` is above `seen`."""
        with self._news:
            self._news.wait_for(lambda: self._changes > seen, timeout_s)
            return self._changes

    def wait(self, timeout_s: float) -> bool:
        """Wait until nothing is left to learn."""
        return self._worker.wait(timeout_s)

    def wake(self) -> None:
        """There may be a case to look at."""
        self._worker.wake()

    def rebase(self) -> None:
        """Begin with newer global weights, if there are any, nothing is on the desk, and little is left to learn."""
        if self.desk is not None or self._global_digest() == self._global:
            return
        self._worker.cancel("rehearse")
        if not self._worker.wait(SETTLE_S):
            return  # At the next case, then.
        with self._device.interactive():
            self._begin()
        self._worker.put(Task("rehearse", self._rehearse, self._rehearsal))
        self.note()

    def predict(self, image: Volume) -> Bytes3D:
        """Labels ``[I, J, K]``, uint8, of an image."""
        normalised = normalise(image.array)
        with self._device.interactive():
            found = self._work.learner.predict(normalised)
        return np.asarray(found.argmax(axis=0), dtype=np.uint8)

    def session(self, case_id: str, image: Volume) -> CaseSession:
        """A case with the model's prediction of it; the device must be held."""
        plan = self.plan
        return CaseSession(
            case_id,
            image,
            self._work.learner,
            plan,
            np.random.default_rng([plan.seed, zlib.crc32(case_id.encode()), plan.round]),
            progress=min(1.0, max(0, plan.round - 1) / plan.rounds),
            trust=self._work.standing.trust,
            settings=LIVE,
        )

    def lay(self, case_id: str, image: Volume, drawing: Drawing | None, *, learns: bool) -> Desk:
        """Lay a case on the empty desk and go on with what was drawn of it."""
        with self._device.interactive():
            session = self.session(case_id, image)
            learnt = self._learnt
        desk = Desk(session, self.user, self._versions, model=self.base, learns=learns)
        if drawing is not None:
            with self._device.beside():
                desk.resume(drawing)
        self.desk = desk
        if learns:
            self._worker.put(Task("begin", lambda: self._open(desk, learnt)))
            if session.steps:
                self.learn(desk, anew=True)
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
            updates = self._work.updates_after(frozen)
            if anew and steps > 1:
                updates = max(updates, self.plan.updates_per_case - self._rehearsal)
        desk.anew = desk.anew or anew
        self._worker.put(Task("learn", lambda: self._learn(desk, frozen, updates), updates))

    def leave(self) -> None:
        """Take the case off the desk; what was learnt from it is taken back."""
        desk, self.desk = self.desk, None
        if desk is None:
            return
        self._worker.cancel("learn", "begin")
        self._worker.put(Task("leave", lambda: self._leave(desk)))
        self._do_later()

    def accept(self, judged: Callable[[bool], None]) -> None:
        """Take the case off the desk; it is learnt from and remembered, unless it made the model worse."""
        desk, self.desk = self.desk, None
        assert desk is not None
        if not desk.learns:
            return
        self._worker.put(Task("accept", lambda: self._accept(desk.session, judged)))
        self._worker.put(Task("rehearse", self._rehearse, self._rehearsal))
        self._do_later()

    def accept_whole(self, case_id: str, image: Volume, labels: Bytes3D, judged: Callable[[bool], None]) -> None:
        """Learn from a case whose every voxel is labelled, once the desk is empty."""

        def ask() -> None:
            self._worker.put(Task("accept", lambda: self._whole(case_id, image, labels, judged)))
            self._worker.put(Task("rehearse", self._rehearse, self._rehearsal))

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

    def close(self) -> None:
        """End; what was drawn lies in the store."""
        self.stop_training()
        self._worker.stop(STOP_S)

    def _do_later(self) -> None:
        later, self._later = self._later, []
        for ask in later:
            ask()

    @property
    def _rehearsal(self) -> int:
        return round(self.plan.updates_per_case * self.plan.rehearsal)

    def _global_digest(self) -> str:
        try:
            return self._latest.digest()
        except StorageError:
            return self._global  # Nobody moves to what cannot be read.

    def _begin(self) -> None:
        """Take the latest global weights, and what the bench kept of its own."""
        try:
            found = self._latest.read()
        except StorageError:
            log.warning("the latest global weights cannot be read; benches begin with new ones")
            found = None
        plan, weights = (self._fallback, None) if found is None else found
        # The site's rounds count from 1; whoever draws between them learns at the rate of the last one.
        changes: dict[str, object] = {"round": max(1, plan.round), "supervision": "proxy"}
        if self._torch_device.type == "cpu" and plan.patch is None:
            changes["patch"] = CPU_PATCH
        plan = plan.model_copy(update=changes)
        settings = LearningSettings(
            plan.model, plan.labels, plan.seed, plan.batch_size, proximal_mu=plan.proximal_mu, patch=plan.patch,
            amp=plan.amp,
        )  # fmt: skip
        learner = OnlineLearner(settings, self._torch_device)
        if weights is not None:
            learner.load(weights)
        self.base = weights_digest(learner.weights())
        self._global = "" if found is None else self.base
        self.run = "" if found is None else plan.run
        reservoir, standing = Reservoir(plan.replay_capacity), Standing()
        kept = load_kept(self._folder)
        if kept is not None and (kept.model, kept.labels) == (plan.model, plan.labels):
            reservoir = kept.reservoir
            if kept.base == self.base:
                standing = kept.standing
                learner.load(kept.weights)
                learner.load_optimiser_state(kept.optimiser)
        memory = ReplayMemory(self._folder / "memory", reservoir, plan.replay)
        memory.discard_unnamed()
        seed = np.random.SeedSequence([plan.seed, zlib.crc32(self.user.encode()), plan.round, reservoir.seen])
        rng, check_rng = np.random.default_rng(seed), np.random.default_rng(seed.spawn(1)[0])
        self._work = OnlineRound(
            "bench", plan, learner, memory, rng, check_rng, standing=standing, between=self._between
        )
        self._seen = 0
        self.scores.clear()
        self.looked_at.clear()

    def _between(self) -> None:
        done = self._work.updates
        if done != self._seen:
            new = max(0, done - self._seen)
            self._seen = done
            self.updates_done += new
            self._learnt += 1
            tasks = self._worker.tasks
            if tasks:
                tasks[0].updates = max(0, tasks[0].updates - new)
            self.note()
        self._worker.between()

    def _open(self, desk: Desk, learnt: int) -> None:
        self._work.open(desk.session)
        if self._learnt != learnt and not desk.session.steps:
            # The case before was still being learnt when this one was opened.
            desk.session.refresh()
            desk.session.before = desk.session.prediction
            desk.take_prediction(desk.session.prediction)

    def _learn(self, desk: Desk, frozen: CaseSession, updates: int) -> None:
        if not self._work.holds(desk.session):
            return
        if desk.anew:
            desk.anew = False
            self._work.forget(desk.session)
            self._seen = self._work.updates
        if frozen.steps:
            self._work.catch_up(frozen, updates)
        else:
            frozen.refresh()
        desk.take_prediction(frozen.prediction)

    def _leave(self, desk: Desk) -> None:
        if not self._work.holds(desk.session):
            return
        if desk.trained:
            self._work.leave(desk.session)
        else:
            self._work.abandon(desk.session)
            self._seen = self._work.updates
            self._learnt += 1

    def _accept(self, session: CaseSession, judged: Callable[[bool], None]) -> None:
        if not self._work.holds(session):
            return
        try:
            kept = self._work.accept(session)
        except BaseException:
            # A full disk, say. Were the case still open, the bench would never learn from another one.
            self._work.abandon(session)
            self._seen = self._work.updates
            raise
        self._learnt += 1
        self._work.history.clear()
        self._keep()
        judged(kept)

    def _whole(self, case_id: str, image: Volume, labels: Bytes3D, judged: Callable[[bool], None]) -> None:
        session = self.session(case_id, image)
        self._work.open(session)
        try:
            drawn = [SlicePrompt(2, k, np.ascontiguousarray(labels[:, :, k])) for k in range(labels.shape[2])]
            session.answer(*drawn)
            self._work.catch_up(session, max(1, self.plan.updates_per_case - self._rehearsal))
        except BaseException:
            self._work.abandon(session)
            raise
        self._accept(session, judged)

    def _rehearse(self) -> None:
        self._work.recall(self._rehearsal)
        self._keep()

    def _train_on(self, training: Training) -> None:
        try:
            self._train(training)
        except Replaced:
            raise
        except Exception as error:
            training.end("ERROR", type(error).__name__)
            raise

    def _train(self, training: Training) -> None:
        remembered = len(self._work.memory)
        if not remembered:
            training.end("DONE", "nothing is remembered yet: accept a case first")
            return
        training.begin(remembered)
        desk = self.desk
        if desk is not None and self._work.holds(desk.session):
            desk.trained = True
        stretch = min(STRETCH, training.left)
        self._work.recall(stretch)
        training.advance(stretch, self._work.losses[-1])
        self.note()
        if training.left and training.running:
            self._worker.put(Task("train", lambda: self._train_on(training), training.left))
            return
        self._keep()
        training.end("DONE", "done")

    def _keep(self) -> None:
        """Write down where the bench is; not while a case is open, which might still be taken back."""
        desk, learner = self.desk, self._work.learner
        if desk is not None and self._work.holds(desk.session):
            return
        kept = Kept(
            self.plan.model,
            self.plan.labels,
            self.base,
            self._work.memory.reservoir,
            self._work.standing,
            learner.weights(),
            learner.optimiser_state(),
        )
        save_kept(self._folder, kept)
        self._work.memory.discard_unnamed()

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
        """How far the model contradicts itself on a case that is turned over."""
        self.looked_at.add(case_id)  # Should it fail, it is not tried again.
        try:
            normalised = normalise(read().array)
            plain = self._work.learner.predict(normalised)
            self._worker.between()
            turned = self._work.learner.predict(np.ascontiguousarray(normalised[::-1]))[:, ::-1]
        except Replaced:
            self.looked_at.discard(case_id)
            raise
        everywhere = np.ones(normalised.shape, dtype=np.float32)
        mask = ProxyMask(np.ascontiguousarray(turned), everywhere > 0, everywhere)
        self.scores[case_id] = disagreement(mask, plain)
