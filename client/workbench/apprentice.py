"""The model behind an annotator's bench: what it begins with, learns, remembers and keeps.

Everything here runs while the device is held: in the thread of the bench's worker, or in that of the annotator while
the worker has nothing to do.
"""

import logging
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from wardround.client.annotation.prompts import Annotations, SlicePrompt
from wardround.client.annotation.propagation import LIVE, ProxyMask
from wardround.client.cases.volume import Volume
from wardround.client.learning.inference import intensity_scale, normalise
from wardround.client.learning.latest import LatestModel, weights_digest
from wardround.client.learning.learner import LearningSettings, OnlineLearner
from wardround.client.learning.replay import ReplayMemory, Reservoir
from wardround.client.learning.round import OnlineRound
from wardround.client.learning.session import CaseSession, disagreement
from wardround.client.learning.state import Standing
from wardround.client.workbench.desk import Desk
from wardround.client.workbench.kept import Kept, load_kept, save_kept
from wardround.client.workbench.layers import Bytes3D
from wardround.client.workbench.window import Window, around, window_for
from wardround.errors import StorageError
from wardround.strategies.plan import RoundPlan

log = logging.getLogger(__name__)

# Sides of a training window on a CPU: a person waits for one update at the most.
CPU_PATCH = (64, 64, 64)


class Apprentice:
    """A model that learns from one annotator.

    Parameters
    ----------
    user
        From whom.
    folder
        What it keeps.
    latest
        Where the site keeps the latest global weights.
    fallback
        The plan where the site has seen no round yet.
    torch_device
        Where it computes.
    between
        Called between batches.

    Attributes
    ----------
    work
        The loop of its cases.
    base
        Digest of the global weights that it began with.
    run
        Of the federation; empty where the site saw no round.
    learnt
        Rises whenever the weights change.
    """

    def __init__(  # noqa: PLR0917
        self,
        user: str,
        folder: Path,
        latest: LatestModel,
        fallback: RoundPlan,
        torch_device: torch.device,
        between: Callable[[], None],
    ) -> None:
        self.learnt = 0
        self._user = user
        self._folder = folder
        self._latest = latest
        self._fallback = fallback
        self._torch_device = torch_device
        self._between = between
        self._seen = 0
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.begin()

    @property
    def plan(self) -> RoundPlan:
        """The rules that it works by."""
        return self.work.plan

    @property
    def rehearsal(self) -> int:
        """Updates from memory after a case."""
        return round(self.plan.updates_per_case * self.plan.rehearsal)

    @property
    def is_behind(self) -> bool:
        """Whether there are other global weights than those it began with, which can be read."""
        try:
            return self._latest.digest() != self._global
        except StorageError:
            return False

    def begin(self) -> None:
        """Take the latest global weights, and what was kept of its own."""
        try:
            found = self._latest.read()
        except StorageError:
            log.warning("the latest global weights cannot be read; benches begin with new ones")
            found = None
        plan, weights = (self._fallback, None) if found is None else found
        # The site's rounds count from 1; whoever draws between them learns at the rate of the last one.
        changes: dict[str, object] = {"round": max(1, plan.round), "prompts": plan.asked_for, "privacy": "none"}
        # A person waits for every update, and a bench begins anew with each round's weights: it has no teachers.
        changes |= dict.fromkeys(("distill_weight", "contrast_weight", "stored_logits", "moon_weight"), 0.0)
        # Nothing that is learnt here leaves, nor is it compared with what others learn.
        changes |= {"control_variates": False, "normalised_steps": 0, "personal": "none", "head_share": 0.0}
        if plan.supervision == "dense":
            changes["supervision"] = "proxy"  # What a person draws on a bench is never all of a case.
        if self._torch_device.type == "cpu" and plan.patch is None:
            changes["patch"] = CPU_PATCH
        plan = plan.model_copy(update=changes)
        learner = OnlineLearner(LearningSettings.of(plan), self._torch_device)
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
        seed = np.random.SeedSequence([plan.seed, zlib.crc32(self._user.encode()), plan.round, reservoir.seen])
        rng, check_rng = np.random.default_rng(seed), np.random.default_rng(seed.spawn(1)[0])
        self.work = OnlineRound(
            "bench", plan, learner, memory, rng, check_rng, standing=standing, between=self._between
        )
        self._seen = 0

    def new_updates(self) -> int:
        """Updates since this was asked for last; those that were taken back count no less."""
        done, before = self.work.updates, self._seen
        if done == before:
            return 0
        self._seen = done
        self.learnt += 1
        return max(0, done - before)

    def predict(self, image: Volume) -> Bytes3D:
        """Labels ``[I, J, K]``, uint8, of an image that is worked on as a whole."""
        found = self.work.learner.predict(normalise(image.array))
        return np.asarray(found.argmax(axis=0), dtype=np.uint8)

    def session(self, case_id: str, image: Volume, window: Window, scale: tuple[float, float] | None) -> CaseSession:
        """A case, or what of it lies in `window`, with the model's prediction.

        Parameters
        ----------
        scale
            Of the whole image; None where the window is the image.
        """
        plan = self.plan
        return CaseSession(
            case_id,
            window.crop(image),
            self.work.learner,
            plan,
            np.random.default_rng([plan.seed, zlib.crc32(case_id.encode()), plan.round]),
            progress=min(1.0, max(0, plan.round - 1) / plan.rounds),
            trust=self.work.standing.trust,
            settings=LIVE,
            scale=scale,
            unfinished=True,
        )

    def open(self, desk: Desk, learnt: int) -> None:
        """Begin to learn from the case on the desk, which was predicted when :attr:`learnt` was `learnt`."""
        self.work.memory.forget_removed()
        self.work.open(desk.session)
        if self.learnt != learnt and not desk.session.steps:
            # The case before was still being learnt when this one was opened.
            desk.session.refresh()
            desk.session.before = desk.session.prediction
            desk.take_prediction(desk.session.prediction)

    def learn(self, desk: Desk, frozen: CaseSession, updates: int) -> None:
        """Take `updates` from the case on the desk as it was when it was frozen."""
        if not self.work.holds(desk.session):
            return
        if desk.anew:
            desk.anew = False
            self.work.forget(desk.session)
            self._seen = self.work.updates
        self.work.memory.forget_removed()
        if frozen.steps:
            self.work.catch_up(frozen, updates)
        else:
            frozen.refresh()
        desk.take_prediction(frozen.prediction)

    def look(self, desk: Desk) -> None:
        """Predict one more piece of the large image on the desk."""
        assert desk.surroundings is not None
        # The last piece may have been found for a desk that another one took the place of.
        if desk.surroundings.left:
            desk.surroundings.look(self.work.learner.predict)
        if not desk.surroundings.left:
            desk.take_surroundings()

    def leave(self, desk: Desk) -> None:
        """Take back what was learnt from a case that was put aside."""
        if not self.work.holds(desk.session):
            return
        if desk.trained:
            self.work.leave(desk.session)
        else:
            self._abandon(desk.session)
            self.learnt += 1

    def accept(self, session: CaseSession) -> bool | None:
        """Remember the open case, unless it made the model worse; None where it is not open any more."""
        if not self.work.holds(session):
            return None
        session.unfinished = False
        try:
            kept = self.work.accept(session)
        except BaseException:
            # A full disk, say. Were the case still open, the bench would never learn from another one.
            self._abandon(session)
            raise
        self.learnt += 1
        self.work.history.clear()
        self.keep()
        return kept

    def accept_whole(self, case_id: str, image: Volume, labels: Bytes3D) -> bool | None:
        """Learn from a case whose every voxel ``[I, J, K]`` is labelled."""
        window = around(labels)
        scale = None if window.is_whole else intensity_scale(image.array)
        session = self.session(case_id, image, window, scale)
        local = labels[window.slices]
        self.work.memory.forget_removed()
        self.work.open(session)
        try:
            session.answer(*(SlicePrompt(2, k, np.ascontiguousarray(local[:, :, k])) for k in range(local.shape[2])))
            self.work.catch_up(session, max(1, self.plan.updates_per_case - self.rehearsal))
        except BaseException:
            self._abandon(session)
            raise
        return self.accept(session)

    def rehearse(self) -> None:
        """Update from memory, as after every case."""
        self.work.memory.forget_removed()
        self.work.recall(self.rehearsal)
        self.keep()

    def keep(self) -> None:
        """Write down where it is; not while a case is open, which might still be taken back."""
        work = self.work
        if work.is_open:
            return
        kept = Kept(
            self.plan.model,
            self.plan.labels,
            self.base,
            work.memory.reservoir,
            work.standing,
            work.learner.weights(),
            work.learner.optimiser_state(),
        )
        save_kept(self._folder, kept)
        work.memory.discard_unnamed()

    def contradiction(self, image: Volume) -> float:
        """How far the model contradicts itself on an image that is turned over, or on the middle of a large one."""
        window = window_for(image.shape, Annotations())
        scale = None if window.is_whole else intensity_scale(image.array)
        normalised = normalise(window.crop(image).array, scale)
        plain = self.work.learner.predict(normalised)
        self._between()
        turned = self.work.learner.predict(np.ascontiguousarray(normalised[::-1]))[:, ::-1]
        everywhere = np.ones(normalised.shape, dtype=np.float32)
        return disagreement(ProxyMask(np.ascontiguousarray(turned), everywhere > 0, everywhere), plain)

    def _abandon(self, session: CaseSession) -> None:
        self.work.abandon(session)
        self._seen = self.work.updates
