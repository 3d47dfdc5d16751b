"""One arm under one seed: its sites in this process, the round loop over them, everything on disk.

A run can die at any instruction. Started again it goes on after the last round in its journal and ends with the same
weights, bit for bit.
"""

import contextlib
import fcntl
import functools
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from wardround.client import door
from wardround.client.annotation.annotator import SimulatedAnnotator, Truth
from wardround.client.annotation.prompts import Labels3D
from wardround.client.app import app
from wardround.client.cases.dataset import load_dataset, read_scribbles
from wardround.client.cases.nifti import read_labels
from wardround.client.cases.volume import Volume
from wardround.client.site import Interaction, Site
from wardround.deploy.clock import CLOCK, ClockedGrid, SimulatedClock
from wardround.deploy.grid import InProcessGrid
from wardround.deploy.observer import TruthObserver
from wardround.deploy.preparation import ARM, DONE
from wardround.deploy.progress import Progress
from wardround.errors import DataError, Interrupted, RoundError, UsageError
from wardround.files import write_text
from wardround.server.app import initial_weights
from wardround.server.exchange import Pace
from wardround.server.journal import Journal
from wardround.server.rounds import Event, LoopSettings, run_rounds
from wardround.strategies.buffered import FedBuff
from wardround.strategies.catalogue import make_strategy
from wardround.strategies.central_privacy import DPFedAvg
from wardround.strategies.contract import Update, Weights
from wardround.strategies.plan import RoundPlan
from wardround.strategies.weighting import make_weighting

_LOCK_PATIENCE_S = 20.0


@dataclass(frozen=True)
class Arm:
    """What ``arm.json`` says."""

    folder: Path
    arm: str
    seed: int
    model: str
    sites: tuple[str, ...]
    plan: RoundPlan
    strategy: str
    strategy_options: Mapping[str, float]
    weighting: str
    weighting_options: Mapping[str, float]
    slow: Mapping[str, float]
    engine: str
    device: str
    evaluate_every: int
    data: Path
    examples: bool
    strokes: str

    @classmethod
    def read(cls, folder: Path) -> "Arm":
        """Read the folder of a prepared run.

        Raises
        ------
        DataError
            If it is none.
        """
        try:
            content = json.loads((folder / ARM).read_text(encoding="utf-8"))
            return cls(
                folder=folder,
                arm=content["arm"],
                seed=content["seed"],
                model=content["model"],
                sites=tuple(content["sites"]),
                plan=RoundPlan.model_validate(content["plan"]),
                strategy=content["strategy"],
                strategy_options=content["strategy_options"],
                weighting=content.get("weighting", "examples"),
                weighting_options=content.get("weighting_options", {}),
                slow=content.get("slow", {}),
                engine=content["engine"],
                device=content["device"],
                evaluate_every=content.get("evaluate_every", 0),
                data=folder / content["data"],
                examples=content["examples"],
                strokes=content.get("strokes", "expert"),
            )
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{folder} is not a prepared run", f"{ARM} cannot be used ({type(error).__name__})", "start a new run"
            ) from error

    def site_folder(self, site: str) -> Path:
        """Where a site lives."""
        return self.folder / "sites" / site


def run_arm(
    folder: Path, *, listen: Callable[[Progress], None] | None = None, stop: Callable[[], bool] = lambda: False
) -> None:
    """Run, or go on with, one arm until its journal holds every round and the evaluation.

    Parameters
    ----------
    folder
        As prepared.
    listen
        Told about progress.
    stop
        Asked often; True ends the run at the next interaction, to be taken up later.

    Raises
    ------
    Interrupted
        If `stop` said so.
    WardroundError
        What went wrong; where a site failed, its own first error.
    """
    arm = Arm.read(folder)
    if (folder / DONE).exists():
        return
    with _only_one(folder):
        if arm.engine == "ray":
            from wardround.deploy.ray_engine import run_on_ray

            seconds = run_on_ray(arm, stop=stop, listen=listen)
        else:
            seconds = _run_in_process(arm, listen, stop)
        write_text(folder / DONE, json.dumps({"evaluate_seconds": seconds, "peak_memory_mb": peak_memory_mb()}))


def run_loop(
    arm: Arm,
    grid: Grid,
    site_name: Callable[[int], str],
    *,
    listen: Callable[[Progress], None] | None,
    stop: Callable[[], bool],
    pace: Pace | None = None,
) -> None:
    """The round loop of an arm over any Flower grid. Every site must answer, or as many as the strategy waits for."""
    rounds = arm.plan.rounds
    strategy = arm_strategy(arm)
    settings = LoopSettings(
        rounds=rounds,
        quorum=min(strategy.size(len(arm.sites)), len(arm.sites)) if isinstance(strategy, FedBuff) else len(arm.sites),
        deadline_s=arm.plan.deadline_s,
        evaluate_every=arm.evaluate_every,
    )

    def on_event(event: Event) -> None:
        if listen is None or event.kind not in ("round-end", "evaluate"):
            return
        phase = "evaluate" if event.kind == "evaluate" or event.round == rounds else "aggregate"
        listen(Progress(phase, event.round, rounds, event.site, event.round / rounds))

    with Journal(arm.folder / "journal") as journal:
        run_rounds(
            grid,
            strategy,
            lambda number: arm.plan.model_copy(update={"round": number}),
            initial_weights(arm.plan),
            journal,
            settings,
            site_name=site_name,
            on_event=on_event,
            stop=stop,
            pace=pace,
            weighting=make_weighting(arm.weighting, **arm.weighting_options),
        )


def arm_strategy(arm: Arm) -> Strategy:
    """The strategy of an arm. Central noise is that of its seed: a simulation is repeated, and protects nobody."""
    strategy = make_strategy(arm.strategy, **arm.strategy_options)
    if isinstance(strategy, DPFedAvg):
        strategy.sites = strategy.sites or len(arm.sites)
        strategy.foreseeable(f"central {arm.seed}".encode())
    return strategy


def open_site(
    arm: Arm,
    name: str,
    *,
    listen: Callable[[Interaction, Mapping[str, Any]], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Site:
    """Open a simulated site: annotator and observer read the truth, the site never does."""
    labels = truth_source(arm.data)
    # The same strokes under every seed and in every arm: they are data, as an expert's are.
    strokes = stroke_source(arm.data) if arm.strokes == "expert" else None
    annotator = SimulatedAnnotator(lambda case: Truth(labels(case)), strokes)

    def heard(interaction: Interaction, scores: Mapping[str, Any]) -> None:
        if stop():
            # Not one of our errors: those the ClientApp would turn into a reply, and the round would go on.
            raise KeyboardInterrupt
        if listen is not None:
            listen(interaction, scores)

    observer = TruthObserver(
        lambda case: np.asarray(labels(case).array, dtype=np.uint8),
        annotator,
        arm.plan.labels,
        examples=arm.folder.parent.parent / "examples" if arm.examples else None,
        example_rounds=frozenset({1, arm.plan.rounds}),
        last_step=arm.plan.annotation_rounds,
        listen=heard,
    )
    return Site.open(arm.site_folder(name), annotator, observer, arm.device)


def truth_source(data: Path) -> Callable[[str], Volume]:
    """Case → its labels, from the data set in `data`; the last few are kept in memory."""
    cases = load_dataset(data).cases

    @functools.lru_cache(maxsize=8)
    def labels(case_id: str) -> Volume:
        path = cases[case_id].label
        if path is None:
            raise DataError(f"case {case_id} has no label", "a simulated annotator draws from it", "leave the case out")
        return read_labels(path)

    return labels


def stroke_source(data: Path) -> Callable[[str], Labels3D | None]:
    """Case → the strokes that the data set in `data` names for it; None where it names none."""
    dataset = load_dataset(data)

    @functools.lru_cache(maxsize=8)
    def strokes(case_id: str) -> Labels3D | None:
        if dataset.cases[case_id].scribble is None:
            return None
        return np.asarray(read_scribbles(dataset, case_id).array, dtype=np.uint8)

    return strokes


def peak_memory_mb() -> float:
    """The largest resident size that this process has had, in MB (10**6 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _run_in_process(arm: Arm, listen: Callable[[Progress], None] | None, stop: Callable[[], bool]) -> float:
    """Returns the seconds that evaluation took."""
    clock = SimulatedClock(arm.folder / CLOCK, arm.slow) if arm.slow else None
    grid = InProcessGrid(app, arm.sites) if clock is None else ClockedGrid(app, arm.sites, clock)
    sites: list[_Watched] = []
    stream = _Stream(arm)

    def heard(interaction: Interaction, scores: Mapping[str, Any]) -> None:
        if listen is not None:
            done, rounds = stream.after(interaction), arm.plan.rounds
            listen(Progress("train", interaction.round, rounds, interaction.site, done, scores["model_dice"]))

    def failure() -> Exception | None:
        return next((site.failure for site in sites if site.failure is not None), None)

    try:
        for name in arm.sites:
            sites.append(_Watched(open_site(arm, name, listen=heard, stop=stop)))
            door.attach(name, sites[-1])
        run_loop(
            arm,
            grid,
            grid.site_name,
            listen=listen,
            stop=lambda: stop() or failure() is not None,
            pace=clock.pace() if clock is not None else None,
        )
    except (KeyboardInterrupt, Interrupted, RoundError) as error:
        if (first := failure()) is not None:
            raise first from None
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted("the run was stopped", "it was asked to", "resume it") from None
        raise
    finally:
        door.detach_all()
        for site in sites:
            site.close()
    # Under a simulated clock evaluation takes no time.
    return sum(site.evaluate_seconds for site in sites) if clock is None else 0.0


class _Watched:
    """A site whose first error is kept: only its name goes over a wire, but here the reader is the researcher."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.failure: Exception | None = None
        self.evaluate_seconds = 0.0

    def train(self, plan: RoundPlan, weights: Weights) -> Update:
        with self._watching():
            return self._site.train(plan, weights)

    def evaluate(self, plan: RoundPlan, weights: Weights) -> dict[str, float | list[float]]:
        started = time.monotonic()
        with self._watching():
            scores = self._site.evaluate(plan, weights)
        self.evaluate_seconds += time.monotonic() - started
        return scores

    def status(self) -> dict[str, float]:
        return self._site.status()

    def close(self) -> None:
        self._site.close()

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failure = self.failure or error
            raise


class _Stream:
    """Counts how much of all sites' streams lies behind an interaction."""

    def __init__(self, arm: Arm) -> None:
        self._steps = arm.plan.annotation_rounds + 1
        self._cases = [0] * arm.plan.rounds
        for site in arm.sites:
            schedule: list[list[str]] = json.loads((arm.site_folder(site) / "site.json").read_text(encoding="utf-8"))[
                "schedule"
            ]
            self._cases = [sum(pair) for pair in zip(self._cases, map(len, schedule), strict=True)]
        self._round = 0
        self._seen: set[tuple[str, str, int]] = set()

    def after(self, interaction: Interaction) -> float:
        """Share of all interactions of the run that are done, 0 … 1."""
        if interaction.round != self._round:
            self._round, self._seen = interaction.round, set()
        self._seen.add((interaction.site, interaction.case_id, interaction.step))
        done = sum(self._cases[: self._round - 1]) + len(self._seen) / self._steps
        return done / max(1, sum(self._cases))


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: two processes that wrote one journal would mix two runs."""
    with (folder / "lock").open("w") as stream:
        deadline = time.monotonic() + _LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # A worker whose parent was killed needs a moment to notice.
                if time.monotonic() > deadline:
                    raise UsageError(
                        f"{folder} is in use", "another process is running this arm", "wait for it, or stop it"
                    ) from None
                time.sleep(0.1)
        yield
