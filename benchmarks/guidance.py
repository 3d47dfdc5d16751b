"""Where to draw next: Dice against effort under every rule, with and without the object's extent.

A small model learns online on a part of the training cases. On forty other training cases, of other subjects, every
rule then spends budgets of 3 to 18 slices; each gives a point of the case's curve of proxy Dice against contour
effort; a curve starts at nothing for nothing. A rule's figure is the mean of the curve over an interval of effort
(*area*, in points of Dice), compared case by case with random and with even spacing: mean difference with a 95 %
bootstrap interval over cases, and the Wilcoxon signed-rank test. Validation cases are never read.

*even* and *random* choose all slices of a budget at once, which is their strongest form; the others draw in rounds and
see the proxy of what they drew. *young* is the model after a fifth of its cases.

Run on the folder of a data set that has a ``dataset.json`` and a ``split.json``::

    OMP_NUM_THREADS=1 python benchmarks/guidance.py DATA/hippocampus --out runs/guidance-hippocampus
    OMP_NUM_THREADS=1 python benchmarks/guidance.py DATA/acdc_scribbles --out runs/guidance-acdc

The weights and curves are kept under OUT and used again: name another folder after a change. The tables are printed as
Markdown.
"""

import argparse
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from proxy import SEED, dice
from scipy import stats

from wardround.client.annotation.annotator import SimulatedAnnotator, Truth
from wardround.client.annotation.effort import effort_of
from wardround.client.annotation.guidance import next_slices
from wardround.client.annotation.prompts import Annotations
from wardround.client.annotation.propagation import PropagationCache, ProxyMask, propagate
from wardround.client.cases.dataset import Dataset, load_dataset, split_by_file
from wardround.client.cases.nifti import read_image, read_labels
from wardround.client.cases.store import CaseStore
from wardround.client.cases.volume import Volume
from wardround.client.learning.inference import normalise
from wardround.client.learning.learner import LearningSettings, OnlineLearner
from wardround.client.learning.uncertainty import augmented_predictions, entropy
from wardround.client.site import Site
from wardround.models.catalogue import build
from wardround.models.weights import load_arrays, save_arrays, weights_of
from wardround.strategies.plan import RoundPlan

MODEL = "unet3d-small"
ROUNDS = 5
PASSES = 4
BUDGETS = (3, 5, 8, 11, 14, 18)


@dataclass(frozen=True)
class Rule:
    """One way to spend a budget.

    Parameters
    ----------
    name
        As in :data:`wardround.client.annotation.guidance.RULES`.
    rounds
        Annotation rounds in which a budget is spent; 0 for one slice a round after the first half.
    model
        ``mature``, ``young``, or ``none``: an undecided prediction.
    uncertainty
        Whether the entropy under test-time augmentation guides as well.
    vote
        Weight of the model's vote in the proxy.
    """

    name: str
    rounds: int = 1
    model: str = "mature"
    uncertainty: bool = False
    vote: float = 0.0

    def __str__(self) -> str:
        rounds = "one at a time" if not self.rounds else f"{self.rounds} round{'s' * (self.rounds > 1)}"
        parts = [self.name, rounds]
        parts += [f"{self.model} model"] * (self.name not in ("even", "random") or self.vote > 0)
        parts += ["uncertainty"] * self.uncertainty + [f"model's vote {self.vote:g}"] * (self.vote > 0)
        return ", ".join(parts)


RANDOM, EVEN = Rule("random"), Rule("even")
COMPARED = (
    Rule("information", 2),
    Rule("information", 2, "young"),
    Rule("information", 1, "none"),
    Rule("residual", 2),
    Rule("residual-sampled", 2),
    Rule("even", 2),
    Rule("information", 1),
    Rule("information", 2, uncertainty=True),
    Rule("residual", 2, "young"),
)


@dataclass(eq=False)
class Subject:
    """One measured case: what is known of it, and what the models say."""

    image: Volume
    labels: Volume
    classes: int
    predictions: dict[str, np.ndarray]
    doubt: np.ndarray
    annotator: SimulatedAnnotator = field(init=False)
    caches: dict[bool, PropagationCache] = field(init=False)

    def __post_init__(self) -> None:
        self.annotator = SimulatedAnnotator({"": Truth(self.labels)})
        self.caches = {known: PropagationCache() for known in (True, False)}


def spend(subject: Subject, rule: Rule, budget: int, extent: bool, seed: int) -> tuple[float, float]:
    """Effort and Dice of the proxy after a budget of slices."""
    annotations = Annotations(extent=subject.annotator.extent("") if extent else None)
    rng = np.random.default_rng(np.random.SeedSequence([SEED, seed, budget]))
    rounds = rule.rounds or max(1, budget // 2)
    prediction = subject.predictions[rule.model]
    proxy: ProxyMask | None = None
    for step in range(rounds):
        requests = next_slices(
            annotations,
            subject.image.shape,
            subject.image.spacing,
            rule=rule.name,
            total=budget,
            allocation=None,
            rounds=rounds,
            step=step,
            proxy=proxy,
            prediction=prediction,
            uncertainty=subject.doubt if rule.uncertainty else None,
            rng=rng,
        )
        if not requests and proxy is not None:
            continue
        annotations = annotations.adding(*(subject.annotator.draw("", request) for request in requests))
        proxy = propagate(
            subject.image,
            annotations,
            subject.classes,
            cache=subject.caches[extent],
            prediction=prediction if rule.vote else None,
            model_weight=rule.vote,
        )
    assert proxy is not None
    effort = effort_of(annotations, *subject.annotator.full_effort("")).contour
    return effort, dice(proxy.labels > 0, subject.labels.array > 0)


def curve(subject: Subject, rule: Rule, extent: bool, seed: int, grid: np.ndarray) -> np.ndarray:
    """Dice at the efforts of `grid`, linear between budgets.

    A budget is void where a larger one costs no more: who can pay for both asks for the larger one, and gets its Dice
    even where that is less. The choice must not look at the Dice.
    """
    points = [(0.0, 0.0)]
    for budget in BUDGETS:
        effort, found = spend(subject, rule, budget, extent, seed)
        points = [point for point in points if point[0] < effort or point == (0.0, 0.0)]
        points.append((max(effort, 1e-6), found))
        if effort > grid[-1]:
            break
    efforts, scores = np.array(points).T
    return np.interp(grid, efforts, scores)


def dealt(dataset: Dataset, measured: int, learnt: int) -> tuple[list[str], list[str]]:
    """Training cases to measure on, and others, by other subjects, to learn from."""
    cases = sorted(case for cases in split_by_file(dataset, Path("split.json")).sites.values() for case in cases)
    taken = {dataset.subjects[case] for case in cases[:measured]}
    rest = [case for case in cases if dataset.subjects[case] not in taken]
    return cases[:measured], [rest[n] for n in np.random.default_rng(SEED).permutation(len(rest))[:learnt]]


def learn(dataset: Dataset, cases: list[str], out: Path, updates: int, patch: tuple[int, int, int] | None) -> None:
    """Learn online from `cases` at one site, and keep the weights after the first and the last round."""
    site_folder = out / "site"
    site_folder.mkdir(parents=True, exist_ok=True)
    schedule = [[str(case) for case in part] for part in np.array_split(cases, ROUNDS)]
    settings = {"name": "guidance", "schedule": schedule, "test": [], "author": "simulation", "store": "store"}
    (site_folder / "site.json").write_text(json.dumps(settings))
    truths = {case: Truth(read_labels(dataset.cases[case].label)) for case in cases}
    with CaseStore(site_folder / "store") as store:
        for case in cases:
            store.add_case(case, read_image(dataset.cases[case].image))
    labels = len(dataset.label_names)
    weights = weights_of(build(MODEL, labels, SEED))
    site = Site.open(site_folder, SimulatedAnnotator(truths), None, "cpu")
    for number in range(1, ROUNDS + 1):
        plan = RoundPlan(
            run="guidance",
            round=number,
            rounds=ROUNDS,
            seed=SEED,
            model=MODEL,
            labels=labels,
            suggestion="even",
            # As it was when the published tables were made, whatever the plan's default.
            supervision="proxy",
            updates_per_case=updates,
            patch=patch,
        )
        weights = site.train(plan, weights).weights
        if number in (1, ROUNDS):
            save_arrays(out / f"{'young' if number == 1 else 'mature'}.safetensors", weights)
    site.close()


def subjects_of(dataset: Dataset, cases: list[str], out: Path) -> list[Subject]:
    """Read the measured cases and predict them with both models."""
    labels = len(dataset.label_names)
    learners = {}
    for name in ("young", "mature"):
        learners[name] = OnlineLearner(LearningSettings(MODEL, labels, SEED), torch.device("cpu"))
        learners[name].load(load_arrays(out / f"{name}.safetensors"))
    subjects = []
    for number, case in enumerate(cases):
        image = read_image(dataset.cases[case].image)
        array = normalise(image.array)
        rng = np.random.default_rng(np.random.SeedSequence([SEED, number]))
        passes = augmented_predictions(learners["mature"], array, PASSES, rng)
        undecided = np.full((labels, *image.shape), 1 / labels, dtype=np.float32)
        predictions = {"mature": passes[0], "young": learners["young"].predict(array), "none": undecided}
        subjects.append(Subject(image, read_labels(dataset.cases[case].label), labels, predictions, entropy(passes)))
    return subjects


def difference(curves: np.ndarray, others: np.ndarray) -> str:
    """Mean difference of area in points, its 95 % bootstrap interval over cases, and Wilcoxon's p (two-sided)."""
    gain = 100 * (curves.mean(axis=1) - others.mean(axis=1))
    if not gain.any():
        return "–"
    draws = np.random.default_rng(SEED).choice(gain, (4000, len(gain))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{gain.mean():+.2f} [{low:+.2f}, {high:+.2f}], p = {stats.wilcoxon(gain).pvalue:.0e}"


def reached(mean: np.ndarray, grid: np.ndarray, level: float) -> str:
    """Least effort at which the mean curve is at `level`."""
    above = np.flatnonzero(mean >= level)
    return f"{grid[above[0]]:.3f}" if len(above) else "–"


def main() -> None:
    """Learn, measure every rule with and without the extent, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="where the weights are kept")
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--learn", type=int, default=60, help="cases to learn from, fewer where there are fewer")
    parser.add_argument("--updates", type=int, default=24, help="updates a learnt case")
    parser.add_argument("--patch", type=lambda text: tuple(map(int, text.split(","))), default=None)
    parser.add_argument("--interval", type=float, nargs=2, default=(0.1, 0.35), metavar=("LOW", "HIGH"))
    parser.add_argument("--vote", type=float, default=0.0, help="weight of the model's vote in every proxy")
    parser.add_argument("--rules", default="", help="only rules whose name holds this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dataset = load_dataset(options.data)
    measured, learnt = dealt(dataset, options.cases, options.learn)
    started = time.perf_counter()
    if not (options.out / "mature.safetensors").exists():
        learn(dataset, learnt, options.out, options.updates, options.patch)
    subjects = subjects_of(dataset, measured, options.out)
    low, high = options.interval
    fine = np.round(np.arange(0.02, high + 1e-9, 0.005), 4)
    inside = fine >= low
    print(f"{len(subjects)} training cases of {dataset.name}; the model learnt from {len(learnt)} others; seed {SEED}")
    print(f"area: mean Dice over contour effort {low:g} to {high:g}; model's vote {options.vote:g}; one thread\n")
    for name in ("young", "mature"):
        scores = [dice(s.predictions[name].argmax(axis=0) > 0, s.labels.array > 0) for s in subjects]
        print(f"Dice of the {name} model by itself: {np.mean(scores):.3f}")
    rules = [Rule(r.name, r.rounds, r.model, r.uncertainty, options.vote) for r in (RANDOM, EVEN, *COMPARED)]
    rules = [rule for n, rule in enumerate(rules) if n < 2 or options.rules in str(rule)]
    for extent in (True, False):
        print(f"\n{'With' if extent else 'Without'} the object's extent\n")
        print("| rule | area | against random | against even | Dice at 0.15, 0.25, 0.35 | 0.90 at | 0.93 at |")
        print("|---|---|---|---|---|---|---|")
        curves: list[np.ndarray] = []
        for rule in rules:
            name = f"{rule} {'with' if extent else 'without'} {len(subjects)} {low:g} to {high:g}.npy"
            kept = options.out / name.replace(" ", "-")
            if not kept.exists():
                np.save(kept, [curve(subject, rule, extent, n, fine) for n, subject in enumerate(subjects)])
            whole = np.load(kept)
            curves.append(whole[:, inside])
            mean = whole.mean(axis=0)
            at = " ".join(f"{np.interp(effort, fine, mean):.3f}" for effort in (0.15, 0.25, 0.35))
            print(
                f"| {rule} | {100 * curves[-1].mean():.2f} | {difference(curves[-1], curves[0])} "
                f"| {difference(curves[-1], curves[min(1, len(curves) - 1)])} | {at} "
                f"| {reached(mean, fine, 0.9)} | {reached(mean, fine, 0.93)} |",
                flush=True,
            )
    print(f"\n{time.perf_counter() - started:.0f} s, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
