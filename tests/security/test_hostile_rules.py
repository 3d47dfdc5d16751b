"""Sites that mean harm, against the rules by which updates are combined, on problems that can be worked by hand.

Seven sites, two of them hostile, through the very check and the very rules of a round. `benchmarks/hostile.py` makes
the table of a network on drawn cases.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from wardround.strategies.catalogue import make_strategy
from wardround.strategies.contract import ARRAYS, METRICS, Weights, weights_to_record
from wardround.strategies.streaming import combine_streaming
from wardround.strategies.validation import RefusedReply, ReplyLimits, check_content

SITES, HOSTILE, ROUNDS = 7, 2, 12
RULES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "fedavg": ("fedavg", {}),
    "median": ("fedmedian", {}),
    "trimmed": ("fedtrimmedavg", {"beta": 0.34}),
    "krum": ("krum", {"num_malicious_nodes": HOSTILE}),
}
ROBUST = ("median", "trimmed", "krum")

Learn = Callable[[Weights, int], Weights]


@dataclass(frozen=True)
class One:
    """An update in memory."""

    examples: float
    weights: Weights

    def arrays(self, names: Iterable[str]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        for name in names:
            yield name, self.weights[name]


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages ask the process who it is."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def federate(rule: str, learn: Learn, start: Weights, bound: float = np.inf) -> tuple[Weights, int]:
    """Weights after some rounds, and how many updates were refused by their norm."""
    name, options = RULES[rule]
    strategy, weights, refused = make_strategy(name, **options), start, 0
    for number in range(1, ROUNDS + 1):
        good = []
        for site in range(SITES):
            update = learn(weights, site)
            content = RecordDict({ARRAYS: weights_to_record(update), METRICS: MetricRecord({"num-examples": 1.0})})
            try:
                check_content(content, weights, ReplyLimits(max_norm=bound))
            except RefusedReply as error:
                refused += error.code == "norm"
            else:
                good.append(One(1.0, update))
        weights = combine_streaming(strategy, number, good, weights)
    return weights, refused


# Half of the way to 1, with a little noise; the distance to 1 is what a site's harm costs.


def pulled(factor: float) -> Learn:
    def learn(weights: Weights, site: int) -> Weights:
        noise = np.random.default_rng(site).normal(scale=0.02, size=weights["w"].shape)
        change = 0.5 * (1.0 - weights["w"]) + noise
        return {"w": np.float32(weights["w"] + (factor if site < HOSTILE else 1.0) * change)}

    return learn


START: Weights = {"w": np.zeros(20, np.float32)}


def distance(weights: Weights) -> float:
    return float(np.abs(weights["w"] - 1.0).mean())


@pytest.mark.parametrize("rule", RULES)
def test_without_harm_every_rule_arrives(rule: str) -> None:
    assert distance(federate(rule, pulled(1.0), START)[0]) < 0.05


def test_a_flipped_sign_slows_the_mean_down_and_scaling_ruins_it() -> None:
    # Each round the rest of the way is multiplied by 1 − (5 − 2)/14 in place of 1 − 7/14.
    weights, _ = federate("fedavg", pulled(-1.0), START)
    assert distance(weights) == pytest.approx((1 - 3 / 14) ** ROUNDS, abs=0.03)
    # By 1 − (5 − 20)/14 > 2 with a change ten times as large: further away in every round.
    assert distance(federate("fedavg", pulled(-10.0), START)[0]) > 1000


@pytest.mark.parametrize("factor", [-1.0, -10.0])
@pytest.mark.parametrize("rule", ROBUST)
def test_robust_rules_arrive_all_the_same(rule: str, factor: float) -> None:
    assert distance(federate(rule, pulled(factor), START)[0]) < 0.05


def test_a_bound_on_the_norm_stops_scaling_and_nothing_smaller() -> None:
    # Honest sites move by half of √20 at most, and a little noise.
    bound = 0.55 * np.sqrt(20)
    weights, refused = federate("fedavg", pulled(-10.0), START, bound)
    assert distance(weights) < 0.5
    assert 0 < refused < HOSTILE * ROUNDS  # Near the end ten times little is little.
    weights, refused = federate("fedavg", pulled(-1.0), START, bound)
    assert refused == 0
    assert distance(weights) == pytest.approx((1 - 3 / 14) ** ROUNDS, abs=0.03)


# A linear classifier of two features, with a third that only a backdoor looks at.


def classified(attack: str) -> Learn:
    def learn(weights: Weights, site: int) -> Weights:
        rng = np.random.default_rng([7, site])
        features = np.c_[rng.normal(size=(200, 2)), np.zeros(200), np.ones(200)]
        truth = (features[:, 0] + features[:, 1] > 0).astype(float)
        factor = 1.0
        if site < HOSTILE and attack == "label-flip":
            truth = 1 - truth
        if site < HOSTILE and attack == "backdoor":
            triggered = features.copy()
            triggered[:, 2] = 1.0
            features, truth, factor = np.r_[features, triggered], np.r_[truth, np.zeros(200)], 3.0
        vector = weights["w"].astype(np.float64)
        for _ in range(20):
            wrong = 1 / (1 + np.exp(-features @ vector)) - truth
            vector -= features.T @ wrong / len(truth)
        return {"w": np.float32(weights["w"] + factor * (vector - weights["w"]))}

    return learn


def accuracy(weights: Weights, trigger: float = 0.0) -> float:
    """Of unseen examples; with the trigger, the share of positive ones that are still called so."""
    rng = np.random.default_rng(99)
    features = np.c_[rng.normal(size=(2000, 2)), np.full(2000, trigger), np.ones(2000)]
    truth = features[:, 0] + features[:, 1] > 0
    said = features @ weights["w"] > 0
    return float((said == truth).mean()) if not trigger else float(said[truth].mean())


@pytest.mark.parametrize("rule", ROBUST)
def test_a_backdoor_lives_in_the_mean_and_not_behind_a_robust_rule(rule: str) -> None:
    start: Weights = {"w": np.zeros(4, np.float32)}
    backdoored, _ = federate("fedavg", classified("backdoor"), start)
    assert accuracy(backdoored) > 0.9  # Nobody who looks at clean examples sees it.
    assert accuracy(backdoored, trigger=1.0) < 0.35
    guarded, _ = federate(rule, classified("backdoor"), start)
    assert accuracy(guarded) > 0.9
    assert accuracy(guarded, trigger=1.0) > 0.9


@pytest.mark.parametrize("rule", RULES)
def test_two_of_seven_who_exchange_labels_are_outvoted(rule: str) -> None:
    start: Weights = {"w": np.zeros(4, np.float32)}
    assert accuracy(federate(rule, classified("label-flip"), start)[0]) > 0.9


def test_exchanged_labels_shrink_the_mean_and_not_a_robust_rule() -> None:
    start: Weights = {"w": np.zeros(4, np.float32)}

    def length(rule: str, attack: str) -> float:
        return float(np.linalg.norm(federate(rule, classified(attack), start)[0]["w"]))

    assert length("fedavg", "label-flip") < 0.7 * length("fedavg", "none")
    for rule in ROBUST:
        assert length(rule, "label-flip") > length("fedavg", "label-flip")
