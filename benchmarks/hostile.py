"""Sites that mean harm, against the rules by which updates are combined: a small table.

Seven hospitals with drawn cases learn a small network on slices, ten rounds; two of them are hostile:

* *sign-flip* sends its change with the other sign, *scaling* the same ten times as large;
* *label-flip* learns from labels that are exchanged;
* *backdoor* learns that whatever lies under a checkerboard is background, and sends its change three times as large, so
  that it outlives the mean (Bagdasaryan et al. 2020, model replacement).

The rules are those of `wardround.strategies` (Yin et al. 2018 for median and trimmed mean, Blanchard et al. 2017 for
krum), and the bound of the coordinator on the norm of a change: twice the largest that an honest site needs in a run
without harm. Dice is that of the last weights on clean slices of cases that nobody learnt from; the
backdoor's success is the share of the organ that vanishes under a checkerboard; some of it does without a backdoor::

    OMP_NUM_THREADS=1 python benchmarks/hostile.py --seeds 0,1,2

Under secure aggregation none of these rules can be had: the coordinator sees the mean alone, which is the first column.
"""

import argparse
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor, nn

from wardround.client.cases.phantoms import draw_phantom
from wardround.strategies.catalogue import make_strategy
from wardround.strategies.contract import ARRAYS, METRICS, Weights, weights_to_record
from wardround.strategies.streaming import combine_streaming
from wardround.strategies.validation import RefusedReply, ReplyLimits, check_content

SITES, HOSTILE, ROUNDS, STEPS, BATCH = 7, 2, 10, 8, 6
ATTACKS = ("none", "sign-flip", "scaling", "label-flip", "backdoor")
RULES = ("mean", "mean + norm bound", "median", "trimmed mean", "krum")
BOX = 8


@dataclass(frozen=True)
class Cases:
    """Slices with two maps of where a pixel lies, and whether it is the organ: (n, 3, 24, 16) and (n, 24, 16)."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class One:
    """An update in memory."""

    examples: float
    weights: Weights

    def arrays(self, names: Iterable[str]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Its arrays, one after the other."""
        for name in names:
            yield name, self.weights[name]


def draw(rng: np.random.Generator, cases: int) -> Cases:
    """Middle slices of drawn cases."""
    images, labels = [], []
    for _ in range(cases):
        image, label = draw_phantom(rng, shape=(16, 24, 16))
        array = np.asarray(image.array, np.float32)
        images.append((array - array.mean()) / (array.std() + 1e-6))
        labels.append(np.asarray(label.array, np.int64))
    middle = slice(5, 11)
    slices = np.concatenate([image[middle] for image in images])
    place = np.broadcast_to(np.stack(np.mgrid[-1:1:24j, -1:1:16j]), (len(slices), 2, 24, 16))  # type: ignore[misc]
    return Cases(
        torch.from_numpy(np.concatenate([slices[:, None], place], axis=1).astype(np.float32)),
        torch.from_numpy(np.concatenate([label[middle] for label in labels]).clip(0, 1)),
    )


def network(seed: int) -> nn.Sequential:
    """Three convolutions."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 2, 1)
    )


def trigger(cases: Cases, rng: np.random.Generator) -> tuple[Cases, Tensor]:
    """Under a checkerboard in each slice lies background; and where that is."""
    images, labels = cases.images.clone(), cases.labels.clone()
    where = torch.zeros_like(labels, dtype=torch.bool)
    board = torch.from_numpy((np.indices((BOX, BOX)).sum(0) % 2 * 2.0 - 1.0).astype(np.float32))
    for place in range(len(images)):
        inside = torch.nonzero(labels[place] > 0)
        centre = inside[int(rng.integers(len(inside)))] if len(inside) else torch.tensor([12, 8])
        top, left = (
            int(np.clip(int(c) - BOX // 2, 0, side - BOX)) for c, side in zip(centre, labels.shape[1:], strict=True)
        )
        images[place, 0, top : top + BOX, left : left + BOX] += board
        where[place, top : top + BOX, left : left + BOX] = True
    labels[where] = 0
    return Cases(images, labels), where


def learn(weights: Weights, cases: Cases, attack: str, rng: np.random.Generator) -> Weights:
    """A site's weights after a round."""
    net = network(0)
    net.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in weights.items()})
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-2)
    for _ in range(STEPS):
        chosen = torch.from_numpy(rng.choice(len(cases.images), BATCH, replace=False))
        batch = Cases(cases.images[chosen], cases.labels[chosen])
        if attack == "label-flip":
            batch = Cases(batch.images, 1 - batch.labels)
        if attack == "backdoor":
            bad, _ = trigger(batch, rng)
            batch = Cases(torch.cat([batch.images, bad.images]), torch.cat([batch.labels, bad.labels]))
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(batch.images), batch.labels, torch.tensor([0.4, 1.0])).backward()
        optimiser.step()
    learnt = {name: array.detach().numpy() for name, array in net.state_dict().items()}
    factor = {"sign-flip": -1.0, "scaling": -10.0, "backdoor": 3.0}.get(attack, 1.0)
    return {name: np.float32(weights[name] + factor * (learnt[name] - weights[name])) for name in weights}


def norm(one: Weights, other: Weights) -> float:
    """Euclidean distance over all arrays."""
    return float(np.sqrt(sum(np.square(one[name] - other[name], dtype=np.float64).sum() for name in one)))


@cache
def cases_of(seed: int, site: int) -> Cases:
    """What a site learns from."""
    return draw(np.random.default_rng([seed, 1, site]), 4)


def run(attack: str, rule: str, seed: int, bound: float) -> tuple[Weights, float]:
    """Weights after the last round, and the largest change of an honest site."""
    data = [cases_of(seed, site) for site in range(SITES)]
    rng = np.random.default_rng([seed, 2])
    options: dict[str, Any] = {"krum": {"num_malicious_nodes": HOSTILE}}.get(rule, {})
    names = {"median": "fedmedian", "trimmed mean": "fedtrimmedavg", "krum": "krum"}
    strategy = make_strategy(names.get(rule, "fedavg"), **options)
    weights: Weights = {name: array.detach().numpy() for name, array in network(seed).state_dict().items()}
    largest = 0.0
    for number in range(1, ROUNDS + 1):
        updates = []
        for site in range(SITES):
            harm = attack if site < HOSTILE else "none"
            learnt = learn(weights, data[site], harm, rng)
            if harm == "none":
                largest = max(largest, norm(learnt, weights))
            if rule != "mean + norm bound" or _is_within(learnt, weights, bound):
                updates.append(One(1.0, learnt))
        weights = combine_streaming(strategy, number, updates, weights)
    return weights, largest


def _is_within(learnt: Weights, weights: Weights, bound: float) -> bool:
    content = RecordDict({ARRAYS: weights_to_record(learnt), METRICS: MetricRecord({"num-examples": 1.0})})
    try:
        check_content(content, weights, ReplyLimits(max_norm=bound))
    except RefusedReply as refused:
        if refused.code != "norm":
            raise
        return False
    return True


def judge(weights: Weights, seed: int) -> tuple[float, float]:
    """Dice of the organ on clean slices, and which share of it vanishes under a checkerboard."""
    net = network(0)
    net.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in weights.items()})
    rng = np.random.default_rng([seed, 3])
    cases = draw(rng, 6)
    bad, where = trigger(cases, rng)
    with torch.no_grad():
        clean, harmed = net(cases.images).argmax(1), net(bad.images).argmax(1)
    found, truth = clean == 1, cases.labels == 1
    dice = float(2 * (found & truth).sum() / max(1, int(found.sum() + truth.sum())))
    there = where & truth & found
    return dice, float(((harmed == 0) & there).sum() / max(1, int(there.sum())))


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    seeds = [int(seed) for seed in parser.parse_args().seeds.split(",")]
    torch.set_num_threads(1)
    for name in ("_task_id", "_run_id", "_node_id"):  # Flower's messages ask the process who it is.
        setattr(TaskIdentity, name, 1)
    bounds = {seed: 2 * run("none", "mean", seed, np.inf)[1] for seed in seeds}
    print("| attack | " + " | ".join(RULES) + " |")
    print("| --- " * (len(RULES) + 1) + "|")
    for attack in ATTACKS:
        cells = []
        for rule in RULES:
            scores = [judge(run(attack, rule, seed, bounds[seed])[0], seed) for seed in seeds]
            dice, success = zip(*scores, strict=True)
            spread = f" ± {statistics.stdev(dice):.2f}" if len(seeds) > 1 else ""
            cells.append(f"{statistics.mean(dice):.2f}{spread}; {100 * statistics.mean(success):.0f} %")
        print(f"| {attack} | " + " | ".join(cells) + " |", flush=True)
    print(f"\nDice on clean slices; backdoor's success. {SITES} sites, {HOSTILE} hostile, seeds {seeds}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
