"""FedBuff's step, worked by hand, and against fedavg where both are the same."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from wardround.errors import RoundError
from wardround.strategies.buffered import Buffered, FedBuff, combine_buffered
from wardround.strategies.catalogue import describe, make_strategy
from wardround.strategies.contract import Weights
from wardround.strategies.streaming import combine_streaming


@dataclass(frozen=True)
class InMemory:
    """An update that need not be read."""

    weights: Weights
    examples: float = 1.0

    def arrays(self, names: Iterable[str]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        for name in names:
            yield name, self.weights[name]


def weights(*values: float, count: int = 4) -> Weights:
    return {"w": np.array(values, np.float32), "count": np.array(count), "seen": np.array(count > 4)}


def nothing_else(round: int) -> Weights:
    raise AssertionError(round)


def test_an_update_counts_by_how_far_it_moved_from_what_it_was_given() -> None:
    bases = {1: weights(0, 0, count=0), 3: weights(10, 20)}
    buffer = [
        # Three quarters of +2, 0; asked two rounds ago, so times ½.
        Buffered(InMemory(weights(2, 0, count=4)), 1, 0.75, 0.5),
        # One quarter of −4, +8.
        Buffered(InMemory(weights(6, 28, count=8)), 3, 0.25),
    ]
    found = combine_buffered(buffer, bases[3], bases.__getitem__)
    assert found["w"].tolist() == [10 + 0.75 - 1, 20 + 2]
    assert found["w"].dtype == np.float32
    # 4 + ¾ · ½ · 4 + ¼ · 4 = 6.5, to the even whole number.
    assert (int(found["count"]), found["count"].dtype) == (6, np.dtype(int))
    half = combine_buffered(buffer, bases[3], bases.__getitem__, rate=0.5)
    assert half["w"].tolist() == [10 + 0.375 - 0.5, 20 + 1]


def test_without_anybody_late_it_is_fedavg() -> None:
    rng = np.random.default_rng(0)
    before = {"w": rng.normal(size=(4, 5)).astype(np.float32)}
    updates = [InMemory({"w": rng.normal(size=(4, 5)).astype(np.float32)}, examples) for examples in (1.0, 3.0, 4.0)]
    buffer = [Buffered(one, 7, one.examples / 8) for one in updates]
    ours = combine_buffered(buffer, before, lambda round: before)
    theirs = combine_streaming(make_strategy("fedavg"), 7, updates, before)
    np.testing.assert_allclose(ours["w"], theirs["w"], atol=1e-6)


def test_weights_that_are_not_finite_are_named() -> None:
    with pytest.raises(RoundError, match="w"):
        combine_buffered(
            [Buffered(InMemory(weights(3e38)), 1, 1.0)], weights(3e38), lambda round: weights(-3e38), rate=10.0
        )


def test_half_of_the_sites_close_a_round_unless_a_number_is_given() -> None:
    strategy = make_strategy("fedbuff")
    assert isinstance(strategy, FedBuff)
    assert [strategy.size(sites) for sites in (1, 2, 3, 4, 5)] == [1, 1, 2, 2, 3]
    given = make_strategy("fedbuff", buffer=3)
    assert isinstance(given, FedBuff)
    assert given.size(50) == 3
    assert describe(given)["buffer"] == 3
