"""Four hospitals, each with another kind of label, and one model by federated averaging."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from wardround.client.cases.dataset import Dataset, split_by_file
from wardround.client.learning.learner import OnlineLearner
from wardround.client.learning.replay import Sample
from wardround.deploy.report.summary import Spread
from wardround.deploy.report.tables import Table
from wardround.strategies.catalogue import make_strategy
from wardround.strategies.streaming import combine_streaming
from weak.arms import Arm, Recipe, Task
from weak.labels import Split, samples
from weak.runs import blocks_of, digest, drawer, evaluate, learner_of
from weak.tables import Runs, against, mean_of

KINDS = {"site_CS": "dense", "site_FG": "slices", "site_HT": "scribbles", "site_DU": "geodesic, contrasted"}
"""What every site draws."""
ROUNDS = 10


@dataclass(frozen=True, eq=False)
class Update:
    """What a site sends."""

    examples: float
    weights: Mapping[str, npt.NDArray[Any]]

    def arrays(self, names: Iterable[str]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """As the strategy reads it."""
        for name in names:
            yield name, self.weights[name]


def run_federated(  # noqa: PLR0917
    arm: str, model: str, recipe: Recipe, dataset: Dataset, split: Split, seed: int, device: str
) -> dict[str, Any]:
    """`arm` is ``federated``, or the name of a site that learns alone with as many updates in as many rounds."""
    torch.set_num_threads(1)
    started, load = time.time(), os.getloadavg()
    sites = {
        name: tuple(case for case in cases if case in split.train)
        for name, cases in split_by_file(dataset, dataset.root / "split.json").sites.items()
        if arm in ("federated", name)
    }
    given, efforts = {}, []
    for name, cases in sites.items():
        given[name], effort = samples(dataset, cases, KINDS[name], recipe.shrink)
        efforts.append(effort)
    labels, where = len(dataset.label_names), torch.device(device)
    learners = {name: learner_of(_arm(KINDS[name], model), model, recipe, labels, seed, where) for name in sites}
    learner = _federate(learners, given, recipe, seed)
    trained = time.time()
    scores, _ = evaluate(learner, dataset, split.test, recipe.shrink)
    return {
        "arm": asdict(_arm("mixed" if len(sites) > 1 else KINDS[arm], model)),
        "recipe": recipe.described(),
        "seed": seed,
        "train": [case for cases in sites.values() for case in cases],
        "test": list(split.test),
        "effort": {key: float(np.mean([effort[key] for effort in efforts])) for key in ("contour", "strict")},
        "scores": scores,
        "log": [],
        "weights": digest(learner),
        "seconds": {"training": trained - started, "testing": time.time() - trained},
        "load": {"before": load, "after": os.getloadavg()},
    }


def _federate(
    learners: Mapping[str, OnlineLearner], given: Mapping[str, list[Sample]], recipe: Recipe, seed: int
) -> OnlineLearner:
    """Rounds of federated averaging, weighted by cases; a site alone goes the same way and averages with nobody."""
    strategy = make_strategy("fedavg")
    orders = {name: np.random.default_rng([seed, 1, number]) for number, name in enumerate(sorted(KINDS))}
    augmentation = {name: np.random.default_rng([seed, 2, number]) for number, name in enumerate(sorted(KINDS))}
    shared = next(iter(learners.values())).weights()
    for number, (updates, rate) in enumerate(blocks_of(replace(recipe, blocks=ROUNDS), recipe.iterations), start=1):
        replies = []
        for name, learner in learners.items():
            learner.load(shared)
            learner.update(drawer(given[name], orders[name], recipe.batch), updates, rate, augmentation[name])
            replies.append(Update(float(len(given[name])), learner.weights()))
        shared = combine_streaming(strategy, number, replies, shared)
    learner = next(iter(learners.values()))
    learner.load(shared)
    return learner


def federated_table(task: Task, runs: Runs) -> Table:
    """The one model beside that of every site alone, all on the same test cases."""
    rows = []
    for name, arm in task.arms.items():
        found = runs.get(name, ())
        rows.append(
            (
                arm.title,
                Spread.of(mean_of(run) for run in found).text(),
                Spread.of(mean_of(run, "hd95") for run in found).text(1),
                "–" if name == "federated" else against(runs, "federated", name).text(1),
                str(len(found[0]["train"])) if found else "–",
                Spread.of(run["effort"]["contour"] for run in found).text(2).partition(" ")[0],
                str(len(found)),
            )
        )
    headers = (
        "model",
        "mean Dice",
        f"HD95, {task.unit}",
        "federated − this, points",
        "cases",
        "effort a case",
        "seeds",
    )
    return Table(headers, tuple(rows))


def _arm(kind: str, model: str) -> Arm:
    return Arm(kind, kind, model)
