"""Combine updates that lie on disk without having them all in memory.

What a strategy computes stays Flower's; how many updates it needs to see at once depends on what it computes:

============================ ======================================= =================================================
strategies                   in memory at once                       why
============================ ======================================= =================================================
fedavg, fedprox              the sum, and one array of one site      a weighted mean is folded in one site at a time
fedavgm, fedadam, fedyogi    the same; then the strategy's own state they start from the weighted mean
fedmedian, fedtrimmedavg     one array of all sites                  every weight is worked out by itself
krum and any other           **all updates**                         distances between whole updates
============================ ======================================= =================================================

The bits are those that Flower gets from all updates at once.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedMedian, FedProx, FedTrimmedAvg, FedYogi, Strategy

from wardround.strategies.combine import combine, conform
from wardround.strategies.contract import ARRAYS, METRICS, NUM_EXAMPLES, Weights, weights_to_record

Need = Literal["one", "one array of all", "all"]

_MEAN = (FedAvg, FedProx)
_FROM_MEAN = (FedAvgM, FedAdam, FedYogi)
_BY_ARRAY = (FedMedian, FedTrimmedAvg)


class Contribution(Protocol):
    """An update that can be read from the disk, as often as needed."""

    @property
    def examples(self) -> float:
        """Its weight in a weighted mean."""

    def arrays(self, names: Iterable[str]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Its arrays of these names, one after the other."""


def needs(strategy: Strategy) -> Need:
    """How many updates a strategy needs in memory at once. Only Flower's own classes are known to need few."""
    if type(strategy) in (*_MEAN, *_FROM_MEAN):
        return "one"
    return "one array of all" if type(strategy) in _BY_ARRAY else "all"


def combine_streaming(
    strategy: Strategy, round: int, contributions: Sequence[Contribution], weights: Weights
) -> Weights:
    """Combine updates into the next global weights, as :func:`wardround.strategies.combine.combine` does with replies.

    Parameters
    ----------
    strategy
        Was asked to configure this round before.
    round
        Its number over the whole run.
    contributions
        In a fixed order, on which the last bits of the sums depend; one at least.
    weights
        The global weights before the round.

    Returns
    -------
    Weights
        Names, order, shapes and dtypes of `weights`.

    Raises
    ------
    RoundError
        If the strategy cannot combine them, or the result is not finite.
    """
    need = needs(strategy)
    if need == "one":
        with np.errstate(all="ignore"):  # What overflows is found by conform(), and named.
            mean = _weighted_mean(contributions, list(weights))
        if type(strategy) in _MEAN:
            return conform(mean, weights)
        # A mean of one is itself, so that the strategy goes on from this one.
        return combine(strategy, round, [_reply(mean, 1.0)], weights)
    if need == "one array of all":
        combined: Weights = {}
        with _quiet():
            for name, array in weights.items():
                combined |= combine(strategy, round, [_read(one, [name]) for one in contributions], {name: array})
        return combined
    return combine(strategy, round, [_read(one, list(weights)) for one in contributions], weights)


def _weighted_mean(contributions: Sequence[Contribution], names: Sequence[str]) -> Weights:
    """Σ nᵢ/n · wᵢ, in the order of operations of Flower's FedAvg, so that no bit differs."""
    total = sum(one.examples for one in contributions)
    sums: dict[str, Any] = {}
    for one in contributions:
        share = one.examples / total
        for name, array in one.arrays(names):
            if name in sums:
                sums[name] += array * share
            else:
                sums[name] = array * share
    return {name: np.asarray(value) for name, value in sums.items()}


def _read(one: Contribution, names: Sequence[str]) -> Message:
    return _reply(dict(one.arrays(names)), one.examples)


def _reply(arrays: Mapping[str, npt.NDArray[Any]], examples: float) -> Message:
    content = RecordDict({ARRAYS: weights_to_record(arrays), METRICS: MetricRecord({NUM_EXAMPLES: examples})})
    return Message(content, 0, "train")


@contextmanager
def _quiet() -> Iterator[None]:
    """Flower's strategies say how many results they received, here once for every array."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
