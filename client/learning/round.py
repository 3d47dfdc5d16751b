"""One round of online learning at a site: its new cases one by one, then rehearsal from memory."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from wardround.client.annotation.effort import strict_effort
from wardround.client.annotation.prompts import Annotations, SlicePrompt, SliceRequest
from wardround.client.annotation.propagation import ProxyMask
from wardround.client.cases.volume import Volume
from wardround.client.learning.learner import OnlineLearner
from wardround.client.learning.replay import ReplayMemory, Sample
from wardround.client.learning.schedule import interactive_updates, learning_rate, rehearsal_updates
from wardround.client.learning.session import CaseSession
from wardround.strategies.plan import RoundPlan

PHASES = ("predict", "annotate", "propagate", "update")


@dataclass(frozen=True, eq=False)
class Interaction:
    """One step of the loop on one case, for an observer at the site.

    Parameters
    ----------
    site, case_id, round
        Where and when.
    step
        0 before anything was drawn; then the number of annotation rounds done.
    annotations
        All that the annotator is charged for so far.
    proxy
        The proxy mask, None at step 0.
    prediction
        ``[C, I, J, K]``, float32, the model's probabilities after this step's updates.
    residual
        ``[I, J, K]``, 0 … 1, disagreement of proxy and prediction, None at step 0.
    image
        The case.
    """

    site: str
    case_id: str
    round: int
    step: int
    annotations: Annotations
    proxy: ProxyMask | None
    prediction: npt.NDArray[np.float32]
    residual: npt.NDArray[np.float32] | None
    image: Volume


class Observer(Protocol):
    """Sees every interaction; what it returns is kept in the site's own history and never leaves with an update."""

    def observe(self, interaction: Interaction) -> Mapping[str, Any]:
        """Score or record one step."""


Draw = Callable[[SliceRequest], SlicePrompt]


@dataclass(eq=False)
class OnlineRound:
    """The working set of one round.

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
    observer
        Sees every step, may be None.
    """

    site: str
    plan: RoundPlan
    learner: OnlineLearner
    memory: ReplayMemory
    rng: np.random.Generator
    observer: Observer | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    effort: dict[str, float] = field(default_factory=lambda: {"contour": 0.0, "strict": 0.0})
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    updates: int = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge the time of a block to one of :data:`PHASES`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    @property
    def loss(self) -> float:
        """Mean loss over the blocks of updates; 0 where there was none."""
        known = [loss for loss in self.losses if not math.isnan(loss)]
        return float(np.mean(known)) if known else 0.0

    def learn(self, session: CaseSession, draw: Draw) -> None:
        """Annotate one case in the plan's rounds and learn after each; memory gets its last target only."""
        if self.plan.supervision == "dense":
            with self.phase("annotate"):
                session.dense = tuple(draw(SliceRequest(2, k)) for k in range(*session.depth))
        self._observe(session, 0)
        for step in range(self.plan.annotation_rounds):
            requests = session.suggest(step)
            with self.phase("annotate"):
                drawn = [draw(request) for request in requests]
            with self.phase("propagate"):
                session.answer(*drawn)
            sample = session.sample()
            self._update(lambda sample=sample: [sample, *self._recalled(1)], interactive_updates(self.plan, step))  # type: ignore[misc]
            with self.phase("predict"):
                session.refresh()
            self._observe(session, step + 1)
        self.memory.offer(session.sample(), self.rng)
        self.effort["contour"] += session.cost
        self.effort["strict"] += strict_effort(session.paid)

    def rehearse(self, cases: int) -> None:
        """Update from memory alone, as much as `cases` new cases allow."""
        self._update(lambda: self._recalled(0), rehearsal_updates(self.plan, cases))

    def _recalled(self, others: int) -> Sequence[Sample]:
        return self.memory.draw(self.plan.batch_size - others, self.rng)

    def _update(self, batch: Callable[[], Sequence[Sample]], updates: int) -> None:
        with self.phase("update"):
            self.losses.append(self.learner.update(batch, updates, learning_rate(self.plan), self.rng))
        self.updates += updates

    def _observe(self, session: CaseSession, step: int) -> None:
        if self.observer is None:
            return
        interaction = Interaction(
            site=self.site,
            case_id=session.case_id,
            round=self.plan.round,
            step=step,
            annotations=session.paid if step else Annotations(),
            proxy=session.proxy if step else None,
            prediction=session.prediction,
            residual=session.residual if step else None,
            image=session.image,
        )
        record = {"site": self.site, "case": session.case_id, "round": self.plan.round, "step": step}
        self.history.append(record | dict(self.observer.observe(interaction)))
