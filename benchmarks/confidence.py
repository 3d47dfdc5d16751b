"""How far a proxy's confidence can be believed, and what a vote of the model does to a proxy.

A small model learns online on a part of the training cases, as in ``guidance.py``. On forty other training cases, of
other subjects, slices are drawn as at a site (default rule, two rounds, with the object's extent, no vote). From the
same slices a proxy is then made without the model's vote and one with it. The vote weighs what it would at a site: the
plan's weight times the trust that the model has earned, here its mean agreement with the drawings of all cases; where
it contradicts the drawings of a case it has none. Validation cases are never read.

* **Calibration**: over the undrawn voxels inside the extent, of all budgets, the share of labels that are right, how
  far the mean confidence exceeds it (95 % bootstrap interval over cases; negative: cautious), and the expected
  calibration error in 15 bins of equal width (Guo et al. 2017, "On calibration of modern neural networks", eq. 3). For
  comparison the error of the merged probability itself. *Near the object*: within three voxels of the proxy's object.
* **Dice**: mean over structures and cases, the gain case by case with its 95 % bootstrap interval over cases.
* **Refit** (``--fit``): the coefficients of the confidence by logistic regression on every second case, and the
  calibration errors of these and of the shipped ones on the cases between.

Run on the folder of a data set that has a ``dataset.json`` and a ``split.json``::

    OMP_NUM_THREADS=1 python benchmarks/confidence.py DATA/hippocampus --out runs/confidence --fit

The model is kept under OUT and used again: name another folder after a change. Tables are printed as Markdown.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
from guidance import MODEL, dealt, learn
from proxy import SEED
from scipy import ndimage, optimize, special

from wardround.client.annotation import propagation
from wardround.client.annotation.annotator import SimulatedAnnotator, Truth
from wardround.client.annotation.crop import boxes, within
from wardround.client.annotation.effort import effort_of
from wardround.client.annotation.propagation import PropagationSettings
from wardround.client.cases.dataset import Dataset, load_dataset
from wardround.client.cases.nifti import read_image, read_labels
from wardround.client.cases.volume import Volume
from wardround.client.learning.learner import LearningSettings, OnlineLearner
from wardround.client.learning.metrics import mean_dice
from wardround.client.learning.session import CaseSession
from wardround.deploy.stream.summary import Interval, resample
from wardround.models.weights import load_arrays
from wardround.strategies.plan import RoundPlan

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]
Call = tuple[FloatArray, ...]
"""Probability, doubt and distance on the crop."""

BUDGETS = (4, 6, 8)
BINS = 15
NEAR = 3
DISTANCES = {"1 voxel": (0, 1), "2": (1, 2), "3 and 4": (2, 4), "5 and more": (4, np.inf)}
"""From the nearest drawn slice along the axis that it cuts: more than the first, up to the second."""
VOTE: float = RoundPlan.model_fields["model_vote"].default
SHIPPED = (propagation.OFFSET, propagation.EVIDENCE, propagation.REMOTENESS, propagation.DISSENT)


@dataclass(frozen=True, eq=False)
class Proxy:
    """One proxy of one case: its N undrawn voxels inside the extent, and what it is worth.

    Parameters
    ----------
    features
        ``[4, N]``: what the four coefficients of the confidence multiply.
    probability, confidence
        ``[N]``: of the most probable label, before and after calibration.
    distance
        ``[N]``: to the nearest drawn slice, in voxels of the finest axis.
    right, near
        ``[N]``, bool: whether that label is the true one; whether the proxy's object is near.
    dice, model
        Mean Dice of the structures in the proxy and in the model's prediction.
    effort
        Contour effort, a share of contouring every slice.
    vote
        Weight of the model's vote in it.
    """

    features: Floats
    probability: Floats
    confidence: Floats
    distance: Floats
    right: Mask
    near: Mask
    dice: float
    model: float
    effort: float
    vote: float


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """What propagation makes a confidence of, each time that it does."""
    calls: list[Call] = []
    original = propagation.calibrated_confidence

    def recording(*given: FloatArray) -> FloatArray:
        calls.append(given)
        return original(*given)

    with mock.patch.object(propagation, "calibrated_confidence", recording):
        yield calls


def measured(
    learner: OnlineLearner, dataset: Dataset, cases: Sequence[str], budget: int, vote: float
) -> tuple[list[Proxy], list[Proxy]]:
    """Proxies of all cases for a budget of slices: without the model's vote, and with it on the same slices."""
    labels = len(dataset.label_names)
    plan = RoundPlan(
        run="confidence",
        round=1,
        rounds=1,
        seed=SEED,
        model=MODEL,
        labels=labels,
        slices_per_case=budget,
        model_vote=vote,
    )
    drawn = []
    for number, case in enumerate(cases):
        truth = read_labels(dataset.cases[case].label)
        annotator = SimulatedAnnotator({"": Truth(truth)})
        rng = np.random.default_rng(np.random.SeedSequence([SEED, number, budget]))
        # Without trust a model has no vote.
        session = CaseSession("", read_image(dataset.cases[case].image), learner, plan, rng, annotator.extent(""))
        with recorded() as calls:
            for step in range(plan.annotation_rounds):
                session.answer(*(annotator.draw("", request) for request in session.suggest(step)))
        effort = effort_of(session.annotations, *annotator.full_effort("")).contour
        drawn.append((session, truth, effort, proxy_of(session, truth, effort, calls[-1])))
    trust = float(np.nanmean([session.agreement for session, *_ in drawn]))
    voted = []
    for session, truth, effort, _ in drawn:
        session.trust = trust
        with recorded() as calls:
            for step in session.rewind():
                session.repeat(step)
        voted.append(proxy_of(session, truth, effort, calls[-1]))
    return [plain for *_, plain in drawn], voted


def proxy_of(session: CaseSession, truth: Volume, effort: float, call: Call) -> Proxy:
    """Compare the proxy of a session, whose confidence was made in `call`, with the true labels."""
    proxy = session.proxy
    assert proxy is not None
    box, inner = boxes(truth.shape, session.annotations, None, PropagationSettings().margin)
    assert inner is not None
    undrawn = ~proxy.annotated[inner]
    probability, doubt, distance = (field[within(inner, box)][undrawn].astype(float) for field in call)
    # Clipped as the confidence clips it.
    odds = special.logit(np.clip(probability, 1e-3, 1 - 1e-4))
    features = np.stack([np.ones_like(odds), odds, -np.log1p(distance), -doubt])
    confidence = proxy.confidence[inner][undrawn].astype(float)
    np.testing.assert_allclose(confident(features, SHIPPED), confidence, atol=1e-4)
    return Proxy(
        features=features,
        probability=probability,
        confidence=confidence,
        distance=distance,
        right=(proxy.labels == truth.array)[inner][undrawn],
        near=ndimage.binary_dilation(proxy.labels > 0, iterations=NEAR)[inner][undrawn],
        dice=mean_dice(proxy.labels, truth.array, session.plan.labels),
        model=mean_dice(session.before.argmax(axis=0).astype(np.uint8), truth.array, session.plan.labels),
        effort=effort,
        vote=session.vote,
    )


def confident(features: Floats, coefficients: Sequence[float]) -> Floats:
    """Confidence ``[N]`` of `features` ``[4, N]``."""
    return np.asarray(special.expit(np.asarray(coefficients) @ features))


def binned(confidence: Floats, right: Mask) -> Floats:
    """``[3, BINS]``: in each bin of the confidence how many voxels, how many of them right, the sum of confidences."""
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return np.stack([np.bincount(place, weights, BINS) for weights in (np.ones_like(confidence), right, confidence)])


def calibration_error(sums: Floats) -> float:
    """Expected calibration error of ``[3, BINS]``, 0 … 1."""
    return float(np.abs(sums[2] - sums[1]).sum() / sums[0].sum())


def calibration_row(proxies: Mapping[int, Sequence[Proxy]], chosen: Callable[[Proxy], Mask]) -> str:
    """Cells of one table row: the chosen voxels of the proxies, by budget and case."""
    cases = list(zip(*proxies.values(), strict=True))

    def sums(of: Callable[[Proxy], Floats]) -> Floats:
        return np.stack([sum(binned(of(p)[chosen(p)], p.right[chosen(p)]) for p in case) for case in cases])

    table = sums(lambda proxy: proxy.confidence)
    voxels, right, confidence = table.sum(axis=(0, 2))
    draws = resample(table.sum(axis=2))
    excess = Interval.around((confidence - right) / voxels, (draws[:, 2] - draws[:, 1]) / draws[:, 0], len(cases))
    before = calibration_error(sums(lambda proxy: proxy.probability).sum(axis=0))
    after = calibration_error(table.sum(axis=0))
    return f"{voxels:,.0f} | {right / voxels:.3f} | {signed(excess)} | {before:.3f} | {after:.3f}"


def print_calibration(proxies: Mapping[int, Sequence[Proxy]]) -> None:
    """Print how well confidence is calibrated: over all voxels, by budget, near the object, by distance."""
    print("| voxels | number | right | confidence − right | error of the probability | error of the confidence |")
    print("|---|---|---|---|---|---|")
    print(f"| all | {calibration_row(proxies, _everywhere)} |")
    for budget, found in proxies.items():
        print(f"| {budget} slices | {calibration_row({budget: found}, _everywhere)} |")
    print(f"| near the object | {calibration_row(proxies, lambda proxy: proxy.near)} |")
    for name, (low, high) in DISTANCES.items():
        inside = partial(_between, low=low, high=high)
        print(f"| {name} from a drawn slice | {calibration_row(proxies, inside)} |")


def _everywhere(proxy: Proxy) -> Mask:
    return np.ones_like(proxy.right)


def _between(proxy: Proxy, low: float, high: float) -> Mask:
    return np.asarray((proxy.distance > low) & (proxy.distance <= high))


def print_dice(plain: Mapping[int, Sequence[Proxy]], voted: Mapping[int, Sequence[Proxy]]) -> None:
    """Print what the vote does to the proxies of each budget."""
    print("| slices | effort | mean weight of the vote | without | with | gain |")
    print("|---|---|---|---|---|---|")
    for budget in plain:
        without, with_ = ([proxy.dice for proxy in found[budget]] for found in (plain, voted))
        gain = Interval.of([ours - theirs for ours, theirs in zip(with_, without, strict=True)])
        effort, vote = (np.mean([getattr(proxy, name) for proxy in voted[budget]]) for name in ("effort", "vote"))
        means = f"{np.mean(without):.3f} | {np.mean(with_):.3f}"
        print(f"| {budget} | {effort:.3f} | {vote:.3f} | {means} | {signed(gain)} |")


def fitted(proxies: Sequence[Proxy]) -> Floats:
    """The four coefficients of the confidence under which the labels of all voxels are most likely."""
    features = np.concatenate([proxy.features for proxy in proxies], axis=1)
    right = np.concatenate([proxy.right for proxy in proxies])

    def loss(coefficients: Floats) -> tuple[float, Floats]:
        logits = coefficients @ features
        mean = float((np.logaddexp(0, logits) - right * logits).mean())
        return mean, np.asarray(features @ (special.expit(logits) - right) / len(right))

    return np.asarray(optimize.minimize(loss, SHIPPED, jac=True, method="BFGS").x)


def print_fit(plain: Mapping[int, Sequence[Proxy]], voted: Mapping[int, Sequence[Proxy]]) -> None:
    """Fit to every second case, and print the calibration errors on the cases between."""
    seen, unseen = (
        tuple([p for found in proxies.values() for p in found[start::2]] for proxies in (plain, voted))
        for start in (0, 1)
    )
    compared = {
        "shipped": np.array(SHIPPED),
        "fitted without the vote": fitted(seen[0]),
        "fitted with the vote": fitted(seen[1]),
        "fitted to both": fitted(seen[0] + seen[1]),
    }
    print("| coefficients | offset | evidence | remoteness | dissent | without | near the object | with | near |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, coefficients in compared.items():
        errors = [
            calibration_error(sum(binned(confident(p.features[:, c], coefficients), p.right[c]) for p, c in part))
            for proxies in unseen
            for part in ([(p, _everywhere(p)) for p in proxies], [(p, p.near) for p in proxies])
        ]
        print(f"| {name} | {' | '.join(f'{x:.2f}' for x in coefficients)} | {' | '.join(f'{x:.3f}' for x in errors)} |")


def signed(found: Interval) -> str:
    """`+0.012 [+0.003, +0.020]`."""
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def main() -> None:
    """Learn, measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="where the model is kept")
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--learn", type=int, default=60, help="cases to learn from, fewer where there are fewer")
    parser.add_argument("--updates", type=int, default=24, help="updates a learnt case")
    parser.add_argument("--patch", type=lambda text: tuple(map(int, text.split(","))), default=None)
    parser.add_argument("--vote", type=float, default=VOTE, help="weight of the model's vote in the plan")
    parser.add_argument("--fit", action="store_true", help="refit the coefficients of the confidence")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    dataset = load_dataset(options.data)
    cases, learnt = dealt(dataset, options.cases, options.learn)
    if not (options.out / "mature.safetensors").exists():
        learn(dataset, learnt, options.out, options.updates, options.patch)
    learner = OnlineLearner(LearningSettings(MODEL, len(dataset.label_names), SEED), torch.device("cpu"))
    learner.load(load_arrays(options.out / "mature.safetensors"))
    plain, voted = {}, {}
    for budget in BUDGETS:
        plain[budget], voted[budget] = measured(learner, dataset, cases, budget, options.vote)
    print(f"{len(cases)} training cases of {dataset.name}; the model learnt from {len(learnt)} others; seed {SEED}")
    print(
        f"mean Dice of structures of the model by itself: {np.mean([proxy.model for proxy in plain[BUDGETS[0]]]):.3f}"
    )
    for title, proxies in (("Without", plain), ("With", voted)):
        print(f"\n{title} the model's vote\n")
        print_calibration(proxies)
    print("\nMean Dice of structures without and with the model's vote\n")
    print_dice(plain, voted)
    if options.fit:
        print("\nCalibration errors on the half of the cases that the fits did not see\n")
        print_fit(plain, voted)
    print(f"\n{time.perf_counter() - started:.0f} s, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
