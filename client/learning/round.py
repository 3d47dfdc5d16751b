"""One round of online learning at a site: its new cases one by one, then rehearsal from memory."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from wardround.client.annotation.effort import strict_effort
from wardround.client.annotation.prompts import Annotations, Prompt
from wardround.client.learning.interactions import Interaction, Observer
from wardround.client.learning.kernel_health import WINDOWS, health_of, tell
from wardround.client.learning.learner import Checkpoint, OnlineLearner
from wardround.client.learning.private_steps import PrivateSteps
from wardround.client.learning.replay import ReplayMemory, Sample
from wardround.client.learning.safeguard import PATIENCE, Safeguard
from wardround.client.learning.schedule import interactive_updates, learning_rate, rehearsal_updates
from wardround.client.learning.session import CaseSession
from wardround.client.learning.state import Standing
from wardround.client.learning.stored_logits import centred_logits
from wardround.client.supervision.attentive import KernelHealth
from wardround.errors import UsageError
from wardround.strategies.noise import Noise
from wardround.strategies.plan import RoundPlan

log = logging.getLogger(__name__)

PHASES = ("predict", "annotate", "propagate", "update")


@dataclass(frozen=True, eq=False)
class _Accepted:
    """The last accepted state, to which a case that is open can be taken back."""

    session: CaseSession
    learner: Checkpoint
    rng: Any
    check_rng: Any
    losses: int
    updates: int
    history: int
    safeguard: Safeguard


class Dreams(Protocol):
    """Samples that nobody drew, which a site makes by itself."""

    def share(self, memory: ReplayMemory) -> float:
        """Share of recalled samples that are made ones, 0 … 1."""

    def draw(self, count: int, rng: np.random.Generator) -> Sequence[Sample]:
        """So many of them, drawn by `rng`."""

    def opened(self, case_id: str, memory: ReplayMemory) -> None:
        """A case is opened; `memory` withholds it from then on if nothing may be learnt from it."""


@dataclass(eq=False)
class OnlineRound:
    """The working set of one round: one case after the other is opened, annotated in steps and accepted.

    :mod:`wardround.client.learning.lessons` does all of it with an annotator who can be called; a viewer calls
    :meth:`open`, :meth:`step`, :meth:`undo` and :meth:`accept` or :meth:`abandon` as the person in front of it goes on.
    Nothing that the case at hand leads to enters memory before it is accepted.

    Parameters
    ----------
    site
        Name of the site, for the records.
    plan
        Rules of the round.
    learner
        Holds the global weights at the start and the site's own at the end.
    memory
        What is rehearsed.
    rng
        Source of replay, windows and augmentation.
    check_rng
        Chooses the remembered cases that judge a new one: a generator of its own, so that training goes the same way
        with and without the check.
    observer
        Sees every step, may be None.
    standing
        How far the model has agreed with the annotator before the round.
    between
        Called between batches and between the phases of a step: others may use the device before it returns, and what
        it raises ends the round. The time that it takes is charged to no phase.
    dreams
        What is rehearsed beside or in place of memory; None for nothing.
    """

    site: str
    plan: RoundPlan
    learner: OnlineLearner
    memory: ReplayMemory
    rng: np.random.Generator
    check_rng: np.random.Generator
    observer: Observer | None = None
    standing: Standing = field(default_factory=Standing)
    between: Callable[[], None] = lambda: None
    dreams: Dreams | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    effort: dict[str, float] = field(default_factory=lambda: {"contour": 0.0, "strict": 0.0})
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    updates: int = 0
    rejected: int = 0
    kernel: KernelHealth | None = None
    _accepted: _Accepted | None = field(init=False, default=None)
    _aside: float = field(init=False, default=0.0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge the time of a block to one of :data:`PHASES`."""
        self._step_aside()
        start, aside = time.perf_counter(), self._aside
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start - (self._aside - aside)

    @property
    def loss(self) -> float:
        """Mean loss over the blocks of updates; 0 where there was none."""
        known = [loss for loss in self.losses if not math.isnan(loss)]
        return float(np.mean(known)) if known else 0.0

    def open(self, session: CaseSession) -> None:
        """Begin with a case; the state before it is what :meth:`undo` and a rejection come back to.

        Raises
        ------
        UsageError
            If another case is open.
        """
        if self._accepted is not None:
            raise UsageError("another case is open", "a round learns from one case at a time", "accept or abandon it")
        session.trust = 0.0 if self._private else self.standing.trust
        check_rng = self.check_rng.bit_generator.state
        with self.phase("predict"):
            safeguard = Safeguard.before_case(
                session.case_id,
                self.learner,
                self.memory,
                count=self.plan.validation_cases,
                labels=self.plan.labels,
                rng=self.check_rng,
                between=self._step_aside,
            )
        self._accepted = _Accepted(
            session,
            self.learner.checkpoint(),
            self.rng.bit_generator.state,
            check_rng,
            len(self.losses),
            self.updates,
            len(self.history),
            safeguard,
        )
        if self.dreams is not None:
            self.dreams.opened(session.case_id, self.memory)
        self._begin()
        self._observe(session)

    def step(self, session: CaseSession, drawn: Sequence[Prompt]) -> None:
        """Take what was drawn in one annotation round: propagate, update, predict again.

        Raises
        ------
        UsageError
            If the case is not open.
        """
        self._opened(session)
        with self.phase("propagate"):
            session.answer(*drawn)
        self._learn_last_step(session)
        self._observe(session)

    def updates_after(self, session: CaseSession) -> int:
        """How many updates follow the last answer of `session`."""
        assert session.disagreement is not None
        # A person may draw more often than the plan has rounds: each further step gets as much as the last.
        if self._private:
            return 0
        number = min(len(session.steps), self.plan.annotation_rounds) - 1
        return interactive_updates(self.plan, number, self.standing.ratio(session.disagreement))

    def catch_up(self, session: CaseSession, updates: int) -> None:
        """Take `updates` from a case as it stands, and predict it again.

        For a person who draws on meanwhile: `session` may be a copy of the open one that nobody changes. What
        :attr:`between` raises ends it after an update; what was learnt by then stays.
        """
        self._learn_last_step(session, updates)

    def forget(self, session: CaseSession) -> None:
        """Take all updates from the open case back; the case itself stays as it is, and open.

        Raises
        ------
        UsageError
            If the case is not open.
        """
        self._take_back(self._opened(session))
        self._begin()

    def undo(self, session: CaseSession) -> None:
        """Drop the last step of the open case, as if it had never been drawn.

        The learner goes back to the last accepted state and learns the remaining steps again: weights, moments of the
        optimiser, random numbers and proxy are bit-equal to those of a case without that step. The time that it took
        stays on the clock; what was drawn in it is not charged.

        Raises
        ------
        UsageError
            If the case is not open, or nothing was drawn on it.
        """
        accepted = self._opened(session)
        if not session.steps:
            raise UsageError("there is nothing to undo", "nothing was drawn on this case yet", "draw a slice first")
        self._take_back(accepted)
        self._begin()
        for step in session.rewind()[:-1]:
            with self.phase("propagate"):
                session.repeat(step)
            self._learn_last_step(session)
        self.history.pop()

    def accept(self, session: CaseSession) -> bool:
        """Close the open case: it enters memory, unless its updates made the model worse on remembered cases.

        Then they are taken back and the case enters neither memory nor the site's trust. After
        :data:`~wardround.client.learning.safeguard.PATIENCE` such cases in a row the next one is accepted without being
        judged. What was drawn is the annotator's work either way: it is charged, and the site keeps it as the case's
        label.

        Returns
        -------
        bool
            False where the updates were taken back.

        Raises
        ------
        UsageError
            If the case is not open, or nothing was drawn on it.
        """
        accepted = self._opened(session)
        if session.disagreement is None:
            raise UsageError("there is nothing to accept", "nothing was drawn on this case yet", "draw a slice first")
        with self.phase("predict"):
            patient = self.standing.refused < PATIENCE
            kept = not patient or accepted.safeguard.fall(self.learner, self._step_aside) <= self.plan.rollback_drop
        if kept:
            self._remember(session)
            if not self._private:
                self.standing = self.standing.accepting(session.agreement, session.disagreement)
        else:
            self.learner.restore(accepted.learner)
            self.standing = self.standing.refusing()
            self.rejected += 1
        self.effort["contour"] += session.cost
        self.effort["strict"] += strict_effort(session.paid)
        self.history[-1]["accepted"] = kept
        self._accepted = None
        return kept

    def leave(self, session: CaseSession) -> None:
        """Close the open case; what was learnt from it stays, and it enters neither memory nor standing.

        Raises
        ------
        UsageError
            If the case is not open.
        """
        self._opened(session)
        self._accepted = None

    def abandon(self, session: CaseSession) -> None:
        """Close the open case as if it had never been opened; nothing is learnt from it and nothing charged.

        Raises
        ------
        UsageError
            If the case is not open.
        """
        accepted = self._opened(session)
        self._take_back(accepted)
        self.check_rng.bit_generator.state = accepted.check_rng
        del self.history[accepted.history :]
        session.rewind()
        self._accepted = None

    def rehearse(self, cases: int) -> None:
        """Update from memory alone, as much as `cases` new cases allow; not at all where nothing is remembered."""
        self.recall(rehearsal_updates(self.plan, cases))

    def recall(self, updates: int) -> None:
        """Take `updates` from memory alone, or from dreams; none where nothing is remembered."""
        if not self.memory.recalled and not self._dreaming:
            return
        self._update(lambda: self._recalled(0), updates, learning_rate(self.plan))

    def learn_privately(self, updates: int, noise: Noise) -> None:
        """Take `updates` from all that is remembered, so that what is learnt is private for each case.

        This is all that a round learns where the plan says ``privacy record``: while cases are drawn, nothing is. A
        case could otherwise not be sampled: the one at hand would be in every step. Every case that is remembered by
        now, new or old, takes part in each step with the same probability, by itself.

        A case then reaches the weights through its own gradient alone. Trust in the model, which other cases earned, is
        0 throughout; no case is judged by others; the number of steps follows from the number of cases.

        Parameters
        ----------
        updates
            As were charged.
        noise
            Chooses the cases and their windows, and is added to the sums.
        """
        plan, names = self.plan, self.memory.recalled
        steps = PrivateSteps(plan.noise_multiplier, plan.clip_norm, plan.sample_rate, len(names), noise)

        def records(sampled: Sequence[int]) -> Sequence[Sequence[Sample]]:
            return [[self.memory.sample(names[number])] * plan.batch_size for number in sampled]

        def done() -> None:
            self.updates += 1
            self._step_aside()

        with self.phase("update"):
            self.learner.update_privately(records, updates, learning_rate(plan), steps, done)

    def note_kernel(self, rng: np.random.Generator) -> None:
        """See in :attr:`kernel`, and tell in the log, whether attention says anything by the weights as they are.

        Only where the plan asks for attentive similarity, and something is remembered. It changes nothing that is
        learnt: `rng`, which chooses the windows, is to be none that training draws from.
        """
        if not self.plan.attentive_weight or not len(self.memory):
            return
        with self.phase("predict"):
            samples = (self.memory.draw(1, rng)[0] for _ in range(WINDOWS))
            self.kernel = health_of(self.learner, samples, rng, self._step_aside)
        # One round has hardly taught the network anything.
        expected = self.plan.round > 1 and self.learner.regularisation.strength >= 1
        tell(self.kernel, self.plan.round, expected)

    def note_terms(self) -> None:
        """Warn in the log of terms of the loss that were asked for and had no effect in this round."""
        for term in self.learner.terms:
            for remark in term.remarks():
                log.warning("round %d at site %s: %s", self.plan.round, self.site, remark)

    @property
    def _private(self) -> bool:
        return self.plan.privacy == "record"

    @property
    def is_open(self) -> bool:
        """Whether any case is open."""
        return self._accepted is not None

    def holds(self, session: CaseSession) -> bool:
        """Whether this is the open case."""
        return self._accepted is not None and self._accepted.session is session

    def _opened(self, session: CaseSession) -> _Accepted:
        if self._accepted is None or self._accepted.session is not session:
            raise UsageError("the case is not open", "it was accepted, or never opened in this round", "open it first")
        return self._accepted

    def _begin(self) -> None:
        """Let the learner know that it begins with a case, as it is now."""
        self.learner.open_case(self.memory.reservoir.seen > 0)

    def _remember(self, session: CaseSession) -> None:
        sample = session.sample()
        if self.plan.stored_logits:
            with self.phase("predict"):
                sample = replace(sample, logits=centred_logits(self.learner.predict(session.normalised)))
        self.memory.offer(sample, self.rng)
        self.learner.accept_case(sample, self.rng)

    def _take_back(self, accepted: _Accepted) -> None:
        self.learner.restore(accepted.learner)
        self.rng.bit_generator.state = accepted.rng
        self.updates = accepted.updates
        del self.losses[accepted.losses :]

    def _learn_last_step(self, session: CaseSession, updates: int | None = None) -> None:
        """Update from the case as it stands and from memory, then predict it again."""
        assert session.disagreement is not None
        ratio = self.standing.ratio(session.disagreement)
        sample = session.sample()
        usual = self.updates_after(session) if updates is None else updates
        self._update(
            lambda: [sample, *self._recalled(1, sample)],
            0 if session.case_id in self.memory.withheld else usual,
            learning_rate(self.plan, ratio),
        )
        with self.phase("predict"):
            session.refresh()

    @property
    def _dreaming(self) -> float:
        return 0.0 if self.dreams is None else self.dreams.share(self.memory)

    def _recalled(self, others: int, incoming: Sample | None = None) -> Sequence[Sample]:
        wanted, made, share = self.plan.batch_size - others, [], self._dreaming
        if self.dreams is not None and share:
            # Chances are drawn only where there are any: without dreams everything goes as it did.
            number = int(self.rng.binomial(wanted, share)) if self.memory.recalled else wanted
            made = list(self.dreams.draw(number, self.rng))
        return [*made, *self.memory.draw(wanted - len(made), self.rng, self.learner, incoming)]

    def _update(self, batch: Callable[[], Sequence[Sample]], updates: int, rate: float) -> None:
        def done() -> None:
            self.updates += 1
            self._step_aside()

        with self.phase("update"):
            self.losses.append(self.learner.update(batch, updates, rate, self.rng, done))

    def _step_aside(self) -> None:
        start = time.perf_counter()
        try:
            self.between()
        finally:
            self._aside += time.perf_counter() - start

    def _observe(self, session: CaseSession) -> None:
        step = len(session.steps)
        record = {
            "site": self.site,
            "case": session.case_id,
            "round": self.plan.round,
            "step": step,
            "trust": session.trust,
            "disagreement": session.disagreement,
        }
        if self.observer is not None:
            interaction = Interaction(
                site=self.site,
                case_id=session.case_id,
                round=self.plan.round,
                step=step,
                annotations=session.paid if step else Annotations(),
                proxy=session.proxy,
                prediction=session.prediction,
                residual=session.residual,
                image=session.image,
            )
            record |= dict(self.observer.observe(interaction))
        self.history.append(record)
