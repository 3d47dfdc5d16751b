"""FedBuff (Nguyen et al. 2022, "Federated learning with buffered asynchronous aggregation", algorithm 1).

Nobody waits for the slowest: a round closes as soon as K updates are there, whichever round each of them was asked for.
An update counts by how far it moved from the weights that its site was given, and less the older these are:

    w ← w + η · Σᵢ aᵢ · s(τᵢ) · (wᵢ − gᵢ)        s(τ) = (1 + τ)⁻ᵃ

where gᵢ are the weights that site i began with, τᵢ the rounds that have closed since, and aᵢ its share of the buffer,
which sums to 1 over the buffer and is 1 / K in the paper (weighting ``equal``). The staleness is not divided out again:
a buffer of old updates makes a small step. With everybody in the buffer, none late and η = 1 this is fedavg.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.serverapp.strategy import FedAvg

from wardround.strategies.combine import conform
from wardround.strategies.contract import Weights
from wardround.strategies.streaming import Contribution


class FedBuff(FedAvg):
    """The settings of buffered asynchronous rounds; :mod:`wardround.server.buffered` makes them.

    Parameters
    ----------
    buffer
        K: so many updates close a round; 0 for half of the sites that are there, rounded up.
    concurrency
        So many sites work at a time; 0 for all that are there.
    server_learning_rate
        η.
    staleness_exponent
        *a* of the weight (1 + τ)⁻ᵃ; the paper has 0.5.
    max_staleness
        τ up to which an update is waited for; behind it, its site is asked anew.
    common
        As of any of Flower's strategies.
    """

    def __init__(
        self,
        *,
        buffer: int = 0,
        concurrency: int = 0,
        server_learning_rate: float = 1.0,
        staleness_exponent: float = 0.5,
        max_staleness: int = 50,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.buffer = buffer
        self.concurrency = concurrency
        self.server_learning_rate = server_learning_rate
        self.staleness_exponent = staleness_exponent
        self.max_staleness = max_staleness

    def size(self, sites: int) -> int:
        """How many updates close a round in which so many sites are there."""
        return self.buffer or max(1, (sites + 1) // 2)


@dataclass(frozen=True)
class Buffered:
    """An update in the buffer.

    Parameters
    ----------
    update
        Can be read from the disk.
    round
        For which it was asked.
    share
        a of the formula.
    staleness
        s(τ), 0 … 1.
    """

    update: Contribution
    round: int
    share: float
    staleness: float = 1.0


def combine_buffered(
    buffer: Sequence[Buffered], weights: Weights, given: Callable[[int], Weights], rate: float = 1.0
) -> Weights:
    """Move the weights by what is in the buffer.

    In memory are two models besides, in double precision that of the sum.

    Parameters
    ----------
    buffer
        In a fixed order, on which the last bits of the sums depend; one update at least.
    weights
        The global weights before.
    given
        Round → the weights that sites were given in it.
    rate
        η.

    Returns
    -------
    Weights
        Names, order, shapes and dtypes of `weights`.

    Raises
    ------
    RoundError
        If the result is not finite.
    """
    step = {name: np.zeros(array.shape) for name, array in weights.items()}
    with np.errstate(all="ignore"):  # What overflows is found by conform(), and named.
        for round in sorted({one.round for one in buffer}):
            start = given(round)
            for one in buffer:
                if one.round != round:
                    continue
                factor = rate * one.share * one.staleness
                for name, array in one.update.arrays(list(weights)):
                    step[name] += factor * np.subtract(array, start[name], dtype=np.float64)
            del start
        return conform({name: array + step.pop(name) for name, array in weights.items()}, weights)
