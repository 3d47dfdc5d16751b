"""One hospital behind one small interface.

A site owns a case store, a replay memory and its snapshots. It learns from what its annotator draws and from nothing else:
the annotator is a person, or, in a simulation, an object that alone may see the truth.
"""

import json
import logging
import math
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from wardround.client.annotation.annotator import Annotator
from wardround.client.annotation.effort import contour_effort, strict_effort
from wardround.client.annotation.prompts import Annotations, SliceRequest
from wardround.client.annotation.propagation import ProxyMask
from wardround.client.cases.store import CaseStore
from wardround.client.cases.volume import Volume
from wardround.client.learning.inference import normalise
from wardround.client.learning.learner import LearningSettings, OnlineLearner, resolve_device
from wardround.client.learning.metrics import score
from wardround.client.learning.replay import ReplayMemory, Sample
from wardround.client.learning.session import CaseSession
from wardround.client.learning.state import SiteState, Snapshots
from wardround.errors import DataError
from wardround.files import write_text
from wardround.strategies.contract import Update, Weights
from wardround.strategies.plan import RoundPlan

REFERENCE = "reference"
"""Author of the labels that a site holds back to evaluate on; nothing is ever learnt from them."""

log = logging.getLogger(__name__)


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
        All that was drawn so far.
    proxy
        The proxy mask, None at step 0.
    prediction
        ``[C, I, J, K]``, the model's probabilities after this step's updates.
    residual
        ``[I, J, K]``, disagreement of proxy and prediction, None at step 0.
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


@dataclass
class _Clock:
    """Seconds spent by phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class Site:
    """One hospital: its cases, its model between rounds, and the loop that joins them.

    Parameters
    ----------
    folder
        The site's folder, with ``site.json`` in it.
    annotator
        Who draws; without one the site can evaluate but not train.
    observer
        Sees every interaction, may be None.
    device
        ``auto``, ``cpu`` or ``cuda``.
    """

    def __init__(
        self, folder: Path, annotator: Annotator | None = None, observer: Observer | None = None, device: str = "auto"
    ) -> None:
        self._folder = folder
        try:
            settings = json.loads((folder / "site.json").read_text())
            self.name: str = settings["name"]
            self._schedule: list[list[str]] = settings["schedule"]
            self._tests: list[str] = settings["test"]
            self._author: str = settings["author"]
            store = folder / settings["store"]
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{folder} is not a site folder", f"site.json cannot be used ({type(error).__name__})", "create it again"
            ) from error
        self._device = resolve_device(device)
        self._annotator = annotator
        self._observer = observer
        self._store = CaseStore(store)
        self._snapshots = Snapshots(folder / "state")

    @classmethod
    def open(
        cls, folder: Path, annotator: Annotator | None = None, observer: Observer | None = None, device: str = "auto"
    ) -> "Site":
        """Open the site in `folder` and repair what a crash may have left there."""
        return cls(folder, annotator, observer, device)

    def close(self) -> None:
        """Release the store."""
        self._store.close()

    def add_case(self, case_id: str, volume: Volume) -> None:
        """Take a new case into the store; adding the same one again changes nothing."""
        self._store.add_case(case_id, volume)

    def status(self) -> dict[str, float]:
        """Counts that a coordinator may know: cases held, cases learnt from, last round."""
        latest = self._snapshots.latest()
        return {
            "cases": float(len(self._store.cases())),
            "seen": float(latest.reservoir.seen if latest else 0),
            "round": float(latest.round if latest else 0),
        }

    def interact(self, case_id: str, plan: RoundPlan, learner: OnlineLearner) -> CaseSession:
        """Open one case for drawing: the session predicts, suggests slices, takes answers and yields what to learn.

        Raises
        ------
        DataError
            If the store has no such case.
        """
        seed = np.random.SeedSequence([plan.seed, zlib.crc32(case_id.encode()), plan.round])
        extent = self._annotator.extent(case_id) if plan.extent and self._annotator else None
        return CaseSession(case_id, self._store.image(case_id), learner, plan, np.random.default_rng(seed), extent)

    def train(self, plan: RoundPlan, weights: Weights) -> Update:
        """Learn online from this round's new cases, then rehearse, starting from the global weights.

        The answer is a function of the snapshot before the round, the plan, the weights and what the annotator draws:
        asked again, the site answers the same.

        Raises
        ------
        DataError
            If there is nothing to learn from: no new case and an empty memory.
        """
        clock = _Clock()
        state = self._snapshots.before(plan.round, plan.replay_capacity)
        memory = ReplayMemory(self._folder / "memory", state.reservoir)
        cases = self._schedule[plan.round - 1] if plan.round <= len(self._schedule) else []
        if not cases and not len(memory):
            raise DataError("there is nothing to learn from", "no new case and an empty memory", "add a case")
        rng = np.random.default_rng(np.random.SeedSequence([plan.seed, zlib.crc32(self.name.encode()), plan.round]))
        learner = self._learner(plan)
        learner.load(weights)
        learner.load_optimiser_state(state.optimiser)

        history, losses, effort = list(state.history), [], dict(state.effort)
        updates = 0
        for case_id in cases:
            session, loss, steps = self._learn_case(case_id, plan, learner, memory, rng, clock, history)
            losses.append(loss)
            updates += steps
            paid = session.annotations.adding(*session.dense)
            for name, cost in (("contour", contour_effort(paid)), ("strict", strict_effort(paid))):
                effort[name] = effort.get(name, 0.0) + float(cost)
        rehearsal = _rehearsal_updates(plan, max(1, len(cases)))
        with clock.phase("update"):
            loss = learner.update(lambda: memory.draw(plan.batch_size, rng), rehearsal, _learning_rate(plan), rng)
        losses.append(loss)
        updates += rehearsal

        self._snapshots.save(
            SiteState(plan.round, memory.reservoir, learner.optimiser_state(), tuple(history), effort)
        )
        memory.discard_unnamed(*state.reservoir.kept)
        finite = [loss for loss in losses if not math.isnan(loss)]
        metrics: dict[str, float | list[float]] = {
            "num-examples": float(memory.reservoir.seen),
            "cases": float(len(cases)),
            "updates": float(updates),
            "loss": float(np.mean(finite)) if finite else 0.0,
            "effort-contour": effort.get("contour", 0.0),
            "effort-strict": effort.get("strict", 0.0),
        }
        metrics |= {f"seconds-{name}": clock.seconds.get(name, 0.0) for name in PHASES}
        return Update(learner.weights(), metrics)

    def evaluate(self, plan: RoundPlan, weights: Weights) -> dict[str, float | list[float]]:
        """Score the global weights on the site's held-back cases.

        Per-case scores stay at the site, in ``evaluation.json``; only counts and means are returned.

        Returns
        -------
        dict
            ``num-examples``, ``dice`` (mean over structures and cases) and ``dice-1`` … per structure.
        """
        learner = self._learner(plan)
        learner.load(weights)
        rows = []
        for case_id in self._tests:
            image = self._store.image(case_id)
            reference = self._store.label(case_id, REFERENCE)
            if reference is None:
                raise DataError("a test case has no reference label", "it was imported without one", "import it again")
            labels = learner.predict(normalise(image.array)).argmax(axis=0).astype(np.uint8)
            truth = reference.array.astype(np.uint8)
            scores = {str(n): score(labels, truth, n, image.spacing) for n in range(1, plan.labels)}
            rows.append({"case": case_id} | _columns(scores))
        write_text(self._folder / "evaluation.json", json.dumps({"round": plan.round, "cases": rows}))
        means = {
            f"dice-{n}": _mean([row["dice"][str(n)] for row in rows]) for n in range(1, plan.labels)
        }
        return {"num-examples": float(len(rows)), "dice": _mean(list(means.values())), **means}

    def _learner(self, plan: RoundPlan) -> OnlineLearner:
        optional = {"patch": plan.patch} if plan.patch else {}
        settings = LearningSettings(
            model=plan.model,
            labels=plan.labels,
            seed=plan.seed,
            batch_size=plan.batch_size,
            proximal_mu=plan.proximal_mu,
            amp=plan.amp,
            **optional,
        )
        return OnlineLearner(settings, self._device)

    def _learn_case(
        self,
        case_id: str,
        plan: RoundPlan,
        learner: OnlineLearner,
        memory: ReplayMemory,
        rng: np.random.Generator,
        clock: _Clock,
        history: list[dict[str, Any]],
    ) -> tuple[CaseSession, float, int]:
        """Annotate one case in the plan's rounds, learning after each; remember its last target only."""
        if self._annotator is None:
            raise DataError("the site has no annotator", "it was opened to evaluate only", "open it with an annotator")
        with clock.phase("predict"):
            session = self.interact(case_id, plan, learner)
        if plan.supervision == "dense":
            with clock.phase("annotate"):
                depth = session.image.shape[2]
                session.dense = tuple(self._annotator.draw(case_id, SliceRequest(2, k)) for k in range(depth))
        self._observe(session, plan, 0, history)
        losses, updates = [], 0
        sample: Sample | None = None
        for step in range(plan.annotation_rounds):
            requests = session.suggest(step)
            with clock.phase("annotate"):
                drawn = [self._annotator.draw(case_id, request) for request in requests]
            with clock.phase("propagate"):
                session.answer(*drawn)
            sample = session.sample()
            steps = _interactive_updates(plan, step)
            current: Sample = sample

            def batch(current: Sample = current) -> Sequence[Sample]:
                return [current, *memory.draw(plan.batch_size - 1, rng)]

            with clock.phase("update"):
                losses.append(learner.update(batch, steps, _learning_rate(plan), rng))
            updates += steps
            with clock.phase("predict"):
                session.refresh()
            self._observe(session, plan, step + 1, history)
        assert sample is not None and session.proxy is not None
        memory.offer(sample, rng)
        self._store.save_label(
            case_id,
            session.image.with_array(session.proxy.labels),
            author=self._author,
            round=plan.round,
            effort=float(contour_effort(session.annotations.adding(*session.dense))),
        )
        finite = [loss for loss in losses if not math.isnan(loss)]
        return session, float(np.mean(finite)) if finite else float("nan"), updates

    def _observe(self, session: CaseSession, plan: RoundPlan, step: int, history: list[dict[str, Any]]) -> None:
        if self._observer is None:
            return
        known = session.annotations.adding(*session.dense) if step else Annotations()
        interaction = Interaction(
            self.name,
            session.case_id,
            plan.round,
            step,
            known,
            session.proxy if step else None,
            session.prediction,
            session.residual if step else None,
            session.image,
        )
        record = {"site": self.name, "case": session.case_id, "round": plan.round, "step": step}
        history.append(record | dict(self._observer.observe(interaction)))


PHASES = ("predict", "annotate", "propagate", "update")


def _learning_rate(plan: RoundPlan) -> float:
    """Cosine from the plan's first to its last learning rate over the rounds of the run."""
    progress = (plan.round - 1) / max(1, plan.rounds - 1)
    half = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return plan.learning_rate_end + (plan.learning_rate - plan.learning_rate_end) * half


def _interactive_updates(plan: RoundPlan, step: int) -> int:
    """Updates after annotation round `step`: later rounds, whose proxy is better, get proportionally more."""
    whole = round(plan.updates_per_case * (1 - plan.rehearsal))
    shares = plan.annotation_rounds * (plan.annotation_rounds + 1) / 2
    done = whole * (step * (step + 1) / 2) / shares
    return int(whole * ((step + 1) * (step + 2) / 2) / shares) - int(done)


def _rehearsal_updates(plan: RoundPlan, cases: int) -> int:
    """Updates from memory alone at the end of a round."""
    return (plan.updates_per_case - round(plan.updates_per_case * (1 - plan.rehearsal))) * cases


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else 0.0


def _columns(scores: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    def finite(value: float) -> float | None:
        return None if math.isnan(value) else value

    return {name: {label: finite(getattr(s, name)) for label, s in scores.items()} for name in ("dice", "hd95_mm", "assd_mm")}
