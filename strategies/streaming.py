"""Combine updates that lie on disk without having them all in memory.

What a strategy computes stays Flower's; how many updates it needs to see at once depends on what it computes:

============================ ======================================= =================================================
strategies                   in memory at once                       why
============================ ======================================= =================================================
fedavg, fedprox              the sum, and one array of one site      a weighted mean is folded in one site at a time
scaffold, fednova            the same, and the result                they make something of that mean
fedavgm, fedadam, fedyogi    the same, and the strategy's own state  they go on from that mean, array by array
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

from wardround.strategies.central_privacy import DPFedAvg, private_mean
from wardround.strategies.combine import combine, conform
from wardround.strategies.contract import ARRAYS, METRICS, NUM_EXAMPLES, Weights, weights_to_record
from wardround.strategies.shaped import Shaped

Need = Literal["one", "one array of all", "all"]

_MEAN = (FedAvg, FedProx)
_FROM_MEAN = (FedAvgM, FedAdam, FedYogi)
_BY_ARRAY = (FedMedian, FedTrimmedAvg)

# What Flower's server optimisers hold: the weights that the round started from, and their moments.
_CURRENT = "current_arrays"
_STATE = frozenset({_CURRENT, "m_t", "v_t", "momentum_vector"})


class Contribution(Protocol):
    """An update that can be read from the disk, as often as needed."""

    @property
    def examples(self) -> float:
        """Its weight in a weighted mean."""

    def arrays(self, names: Iterable[str]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Its arrays of these names, one after the other."""


def needs(strategy: Strategy) -> Need:
    """How many updates a strategy needs in memory at once. Only Flower's own classes are known to need few."""
    if type(strategy) in (*_MEAN, *_FROM_MEAN) or isinstance(strategy, (Shaped, DPFedAvg)):
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
    if isinstance(strategy, DPFedAvg):
        return conform(private_mean(contributions, weights, strategy, round), weights)
    if need == "one":
        with np.errstate(all="ignore"):  # What overflows is found by conform(), and named.
            mean = _weighted_mean(contributions, list(weights))
            if isinstance(strategy, Shaped):
                mean = strategy.shape(mean, weights, sum(getattr(one, "sites", 1) for one in contributions))
        if isinstance(strategy, Shaped):
            return conform(mean, weights)
        return conform(mean, weights) if type(strategy) in _MEAN else _go_on_from(strategy, round, mean, weights)
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


def _go_on_from(strategy: Strategy, round: int, mean: Weights, weights: Weights) -> Weights:
    """What a server optimiser makes of the mean: one array at a time, since it treats every weight by itself.

    The mean of one update is that update, so that the optimiser is given the mean as if a single site had sent it. Its
    state is taken apart and put together again; what is in between is of no use where it raises, which ends the run.
    """
    held = vars(strategy)
    before = {part: held[part] for part in _STATE if held.get(part)}
    after: dict[str, Any] = {}
    combined: Weights = {}
    with _quiet():
        for name, array in weights.items():
            for part in _STATE & held.keys():
                value = before.get(part)
                # Taken out, not copied: a model less in memory for each part.
                if value is None:
                    held[part] = None
                else:
                    held[part] = [value.pop(0)] if isinstance(value, list) else type(value)({name: value.pop(name)})
            combined |= combine(strategy, round, [_reply({name: mean.pop(name)}, 1.0)], {name: array})
            for part in _STATE & held.keys() - {_CURRENT}:
                if isinstance(held[part], list):
                    after.setdefault(part, []).extend(held[part])
                elif held[part] is not None:
                    after.setdefault(part, {}).update(held[part])
    # The weights that it started from come with the next round.
    held[_CURRENT] = None
    held.update(after)
    return combined


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
