"""One hospital behind one small interface.

A site owns a case store, a replay memory and its snapshots. It learns from what its annotator draws and from nothing
else: the annotator is a person, or, in a simulation, an object that alone may see the truth.
"""

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from wardround.client.annotation.annotator import Annotator
from wardround.client.arrivals import REFERENCE, Arrivals
from wardround.client.cases.drawings import Drawing
from wardround.client.cases.store import CaseStore
from wardround.client.cases.volume import Volume
from wardround.client.dreaming import Dreaming
from wardround.client.evaluation import means_of, score_cases
from wardround.client.learning.apart import usual_weights
from wardround.client.learning.interactions import Interaction, Observer
from wardround.client.learning.kernel_health import scalars
from wardround.client.learning.latest import LatestModel
from wardround.client.learning.learner import LearningSettings, OnlineLearner, resolve_device
from wardround.client.learning.lessons import learn_with, live_through
from wardround.client.learning.personal import kept_own, with_own, without_own
from wardround.client.learning.replay import ReplayMemory
from wardround.client.learning.round import OnlineRound
from wardround.client.learning.session import CaseSession
from wardround.client.learning.state import Arrays, SiteState, Snapshots
from wardround.client.private_round import (
    Answered,
    Charging,
    begun_with,
    charging_of,
    is_private,
    keep_answer,
    kept_answer,
    mark_of,
    noise_of,
    steps_of,
    told,
)
from wardround.client.round_cases import RoundCases
from wardround.errors import DataError, NoTrainingCases
from wardround.files import remove_folder, sweep, write_text
from wardround.strategies.codecs.feedback import written
from wardround.strategies.contract import Update, Weights
from wardround.strategies.plan import LabelKind, RoundPlan

__all__ = ["REFERENCE", "Charging", "Interaction", "Observer", "Site"]


class Site:
    """One hospital: its cases, its model between rounds, and the loop that joins them.

    Parameters
    ----------
    folder
        The site's folder, with ``site.json`` in it: ``name``; ``author`` of accepted labels; ``store``, the case
        store's folder; ``prompts``, where its people give another kind of label than plans ask for (``dense``,
        ``slices``, ``scribbles`` or ``points``); in a simulation ``schedule``, a list of case ids for each round, and
        ``test``, ids that are only evaluated on. Without these two the site is a live one: a round takes the labelled
        cases that have arrived, the store knows which are for testing, and what the site remembers is kept apart for
        every run.
    annotator
        Who draws; without one the site can evaluate but not train.
    observer
        Sees every interaction, may be None.
    device
        ``auto``, ``cpu`` or ``cuda``.
    cases_per_round
        How many of the cases that have arrived a live site takes into one round at most.
    round_cases
        Of a live site: which cases its rounds learn from, and what people drew on them. `annotator` answers where
        nobody drew.
    charge
        Pays for the steps of rounds that keep cases private. Without it a simulated site counts them in its folder, and
        a live one takes no part in such rounds.

    Raises
    ------
    DataError
        If the folder is not a site's.
    """

    def __init__(  # noqa: PLR0917
        self,
        folder: Path,
        annotator: Annotator | None = None,
        observer: Observer | None = None,
        device: str = "auto",
        cases_per_round: int = 20,
        round_cases: RoundCases | None = None,
        charge: Charging | None = None,
    ) -> None:
        self._folder = folder
        try:
            settings = json.loads((folder / "site.json").read_text(encoding="utf-8"))
            self.name: str = settings["name"]
            live = "schedule" not in settings
            self._schedule: list[list[str]] | None = None if live else settings["schedule"]
            self._tests: list[str] | None = None if live else settings["test"]
            self._author: str = settings["author"]
            self._labels: LabelKind | None = _kind(settings.get("prompts"))
            store = folder / settings["store"]
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{folder} is not a site folder", f"site.json: {type(error).__name__}", "create the folder again"
            ) from error
        self._device = resolve_device(device)
        self._annotator = annotator
        self._observer = observer
        self._cases_per_round = cases_per_round
        self._charge = charge or charging_of(folder, simulated=not live)
        sweep(folder, deep=False)
        sweep(folder / "memory")
        sweep(folder / "evaluations")
        self._arrivals: Arrivals | None = None
        self._model: LatestModel | None = None
        if live:
            sweep(folder / "runs")
            self._arrivals = Arrivals(folder / "rounds.json")
            self._model = LatestModel(folder / "model")
            self._model.repair()
        self._store = CaseStore(store)
        self._round_cases = (round_cases or RoundCases(self._store)) if live else None
        latest = self._latest()
        # Kept here, because others may ask for it while a round is being stored.
        self._progress = (latest.reservoir.seen, latest.round) if latest else (0, 0)

    @classmethod
    def open(  # noqa: PLR0917
        cls,
        folder: Path,
        annotator: Annotator | None = None,
        observer: Observer | None = None,
        device: str = "auto",
        cases_per_round: int = 20,
        round_cases: RoundCases | None = None,
        charge: Charging | None = None,
    ) -> "Site":
        """Open the site in `folder` and repair what a crash may have left there."""
        return cls(folder, annotator, observer, device, cases_per_round, round_cases, charge)

    def close(self) -> None:
        """Release the store."""
        self._store.close()

    def add_case(self, case_id: str, volume: Volume) -> None:
        """Take a new case into the store; adding the same one again changes nothing."""
        self._store.add_case(case_id, volume)

    def status(self) -> dict[str, float]:
        """Counts that a coordinator may know: cases held, cases learnt from, last round. Safe beside a round."""
        seen, round_ = self._progress
        return {"cases": float(len(self._store.cases())), "seen": float(seen), "round": float(round_)}

    def history(self) -> tuple[dict[str, Any], ...]:
        """What the observer recorded in all rounds so far. It never leaves with an update."""
        latest = self._latest()
        return latest.history if latest else ()

    def interact(
        self,
        case_id: str,
        plan: RoundPlan,
        learner: OnlineLearner,
        progress: float | None = None,
        drawing: Drawing | None = None,
    ) -> CaseSession:
        """Open one case for drawing: the session predicts, suggests slices, takes answers and yields what to learn.

        Parameters
        ----------
        case_id
            Which case.
        plan
            Rules of the round.
        learner
            Predicts and learns.
        progress
            How much of the site's stream lies behind, 0 … 1; by default the share of rounds that are over.
        drawing
            What a person drew on the case, if it is lived through again: its extent holds.

        Raises
        ------
        DataError
            If the store has no such case.
        """
        if drawing is not None:
            extent = drawing.extent
        else:
            # Six of seven points say where a structure ends.
            asked = plan.extent and plan.asked_for != "points"
            extent = self._annotator.extent(case_id) if asked and self._annotator else None
        return CaseSession(
            case_id,
            self._store.image(case_id),
            learner,
            plan,
            np.random.default_rng(_seed(plan, case_id)),
            extent,
            progress=(plan.round - 1) / plan.rounds if progress is None else progress,
        )

    def train(self, plan: RoundPlan, weights: Weights, between: Callable[[], None] = lambda: None) -> Update:
        """Learn online from this round's new cases, then rehearse, starting from the global weights.

        The answer is a function of the snapshot before the round, the plan, the weights and what the annotator draws,
        or of what people had drawn when the round began: asked again, the site answers the same. What a person drew is
        lived through again step by step, in no more steps than the plan has.

        Parameters
        ----------
        between
            Called after every batch and between the phases of a step. Others may use the device meanwhile; what it
            raises ends the round, as if it had not begun.

        Returns
        -------
        Update
            The site's weights. ``num-examples``, its weight in an average, is the number of cases learnt from so far.

        Raises
        ------
        NoTrainingCases
            If there is no new case, and nothing is remembered.
        DataError
            If there is nobody to draw.
        """
        plan = plan.for_labels(self._labels)
        annotator = self._annotator
        if annotator is None:
            raise DataError("the site has no annotator", "it was opened to evaluate only", "open it with an annotator")
        folder = self._kept(plan.run)
        snapshots = Snapshots(folder / "state")
        state = begun_with(snapshots.before(plan.round, plan.replay_capacity), plan)
        if is_private(plan) and (known := kept_answer(folder, plan, weights)) is not None:
            again = written(known.weights, weights, plan, state.local)
            return Update(again.weights, known.metrics, again.record)
        learner = self._learner(plan, weights, state.local)
        cases = self._cases(plan, state.round, folder)
        seed = _seed(plan, self.name)
        dreaming = Dreaming(plan, self._device, weights, state.local, seed)
        memory = self._memory(folder, state, plan)
        if not cases and not len(memory) and not dreaming.remembers:
            raise NoTrainingCases("there is nothing to learn from", "no new case and an empty memory", "add a case")
        if self._round_cases is not None:
            for case_id in cases:  # All of them, before anything is learnt from one.
                self._round_cases.check(case_id, plan)
        learner.load_local(state.local)
        learner.load_optimiser_state(state.optimiser)
        rng, check_rng = np.random.default_rng(seed), np.random.default_rng(seed.spawn(1)[0])
        work = OnlineRound(self.name, plan, learner, memory, rng, check_rng, self._observer, state.standing, between)
        dreaming.begin(work, between)
        for position, case_id in enumerate(cases):
            drawing = None if self._round_cases is None else self._round_cases.drawing(case_id, plan)
            progress = (plan.round - 1 + position / len(cases)) / plan.rounds
            with work.phase("predict"):
                session = self.interact(case_id, plan, learner, progress, drawing)
            if drawing is None:
                learn_with(work, session, annotator)
            else:
                live_through(work, session, drawing)
            self._keep_label(session)
        self._learn_on(work, dreaming, len(cases), seed)
        work.note_kernel(np.random.default_rng(seed.spawn(1)[0]))
        work.note_terms()

        effort = {name: state.effort.get(name, 0.0) + paid for name, paid in work.effort.items()}
        history = (*state.history, *work.history)
        standing, local = work.standing, learner.local() | dreaming.local() | kept_own(plan, learner.weights)
        leaves = without_own(plan, learner.leaving()) | dreaming.weights()
        leaving = written(leaves, weights, plan, state.local)
        local |= leaving.left | mark_of(plan)
        memory.forget(self._gone(memory))  # A case may have been removed meanwhile.
        snapshots.save(
            SiteState(plan.round, memory.reservoir, learner.optimiser_state(), history, effort, standing, local)
        )
        self._progress = (memory.reservoir.seen, plan.round)
        memory.discard_unnamed(*state.reservoir.kept)
        metrics = _metrics(work, len(cases), effort) | dreaming.metrics()
        if is_private(plan):
            metrics = told(metrics)
            keep_answer(folder, plan, weights, Answered(leaves, metrics))
        return Update(leaving.weights, metrics, leaving.record)

    def evaluate(
        self, plan: RoundPlan, weights: Weights, between: Callable[[], None] = lambda: None
    ) -> dict[str, float | list[float]]:
        """Score the global weights, with what the site keeps of the network for itself, on its held-back cases.

        Per-case scores stay at the site, in ``evaluations/round-00003.json`` for round 3 and the latest also in
        ``evaluation.json``; only counts and means are returned.

        Parameters
        ----------
        between
            Called before every case, as in :meth:`train`.

        Returns
        -------
        dict
            ``num-examples``, ``dice`` (mean over structures and cases) and ``dice-1`` … per structure.

        Raises
        ------
        DataError
            If there is no test case, or one has no reference label.
        LabelError
            If a reference holds structures that the plan does not know.
        """
        learner = self._learner(plan, weights, self._own(plan), usual=True)
        tests = self._store.cases("test") if self._tests is None else self._tests
        rows = score_cases(learner, self._store, tests, plan, between)
        text = json.dumps({"round": plan.round, "cases": rows})
        write_text(self._kept(plan.run) / "evaluations" / f"round-{plan.round:05d}.json", text)
        write_text(self._folder / "evaluation.json", text)
        return means_of(rows, plan)

    def _learn_on(self, work: OnlineRound, dreaming: Dreaming, cases: int, seed: np.random.SeedSequence) -> None:
        """What is learnt after the last case of a round: from memory, or all of it where cases are kept private."""
        if not is_private(work.plan):
            dreaming.rehearse(work, max(1, cases), work.between)
            return
        steps = steps_of(work.plan, cases)
        if steps:
            self._charge(work.plan, steps)  # Before the first of them.
            work.learn_privately(steps, noise_of(seed, simulated=self._arrivals is None))

    def _kept(self, run: str) -> Path:
        """Where snapshots and memory of a run lie."""
        return self._folder if self._arrivals is None else self._folder / "runs" / run

    def _latest(self) -> SiteState | None:
        if self._arrivals is None:
            return Snapshots(self._folder / "state").latest()
        run = self._arrivals.latest
        return None if run is None else Snapshots(self._kept(run) / "state").latest()

    def _cases(self, plan: RoundPlan, since: int, folder: Path) -> list[str]:
        """This round's new cases; `since` is the last round before it that was learnt."""
        if self._schedule is not None:
            return self._schedule[plan.round - 1] if plan.round <= len(self._schedule) else []
        assert self._arrivals is not None
        assert self._round_cases is not None
        taken = self._arrivals.take(plan.run, plan.round, since, self._round_cases.waiting(), self._cases_per_round)
        cases = self._round_cases.begin(folder, plan.round, taken)
        self._arrivals.leave(plan.run, plan.round, cases)
        for path in sorted(self._folder.glob("runs/[!.]*")):
            if path.name not in self._arrivals.runs:
                remove_folder(path)
        return cases

    def _memory(self, folder: Path, state: SiteState, plan: RoundPlan) -> ReplayMemory:
        """What the run in `folder` remembers; without cases whose removal an earlier version left there."""
        memory = ReplayMemory(folder / "memory", state.reservoir, plan.replay)
        memory.forget(self._gone(memory))
        return memory

    def _gone(self, memory: ReplayMemory) -> list[str]:
        """Cases that a live site remembers and no longer has."""
        there = frozenset(memory.reservoir.kept if self._schedule is not None else self._store.cases())
        return [name for name in memory.reservoir.kept if name not in there]

    def _own(self, plan: RoundPlan) -> Arrays:
        """What the site kept for itself by the end of a round; nothing where the plan has no such thing."""
        if not plan.keeps_a_model:
            return {}
        return Snapshots(self._kept(plan.run) / "state").before(plan.round + 1, plan.replay_capacity).local

    def _learner(
        self, plan: RoundPlan, weights: Weights, local: Arrays | None = None, *, usual: bool = False
    ) -> OnlineLearner:
        """A learner that begins with global weights, or with those that the site evaluates and draws with."""
        learner = OnlineLearner(LearningSettings.of(plan), self._device)
        whole = with_own(plan, weights, learner.weights, local or {})
        used = usual_weights(plan, whole, local or {})
        learner.load(used if usual else whole)
        if self._model is not None:
            # Also where a round has nothing to learn from: people begin to draw with these.
            self._model.save(plan, used)
        return learner

    def _keep_label(self, session: CaseSession) -> None:
        assert session.proxy is not None
        self._store.save_label(
            session.case_id,
            session.image.with_array(session.proxy.labels),
            author=self._author,
            round=session.plan.round,
            effort=float(session.cost),
        )


def _metrics(work: OnlineRound, cases: int, effort: Mapping[str, float]) -> dict[str, float | list[float]]:
    """The scalars of a round of so many new cases."""
    kernel = {} if work.kernel is None else scalars(work.kernel)
    return {
        "num-examples": float(work.memory.reservoir.seen),
        "cases": float(cases),
        "updates": float(work.updates),
        "loss": work.loss,
        "rejected": float(work.rejected),
        "trust": work.standing.trust,
        **{f"effort-{name}": paid for name, paid in effort.items()},
        **{f"seconds-{name}": spent for name, spent in work.seconds.items()},
        **kernel,
    }


def _kind(name: object) -> LabelKind | None:
    if name is None or name in get_args(LabelKind):
        return name  # type: ignore[return-value]
    raise ValueError("prompts names no kind of label")


def _seed(plan: RoundPlan, name: str) -> np.random.SeedSequence:
    """Of what is drawn at random for a case or a site in one round: another for each name and each round."""
    return np.random.SeedSequence([plan.seed, zlib.crc32(name.encode()), plan.round])
