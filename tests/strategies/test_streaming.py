"""Updates that are folded in one by one give the bits that Flower gets from all of them at once."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import Message
from flwr.serverapp.strategy import FedAvg, Strategy

from wardround.errors import RoundError
from wardround.strategies.catalogue import make_strategy, names, strategy_state
from wardround.strategies.combine import combine
from wardround.strategies.contract import Weights, weights_to_record
from wardround.strategies.streaming import combine_streaming, needs

Reply = Callable[..., Message]

START: Weights = {
    "w": np.linspace(-1, 1, 30, dtype=np.float32).reshape(5, 6),
    "half": np.ones((2, 2), np.float16),
    "double": np.ones(3),
    "count": np.array(7, np.int64),
    "scalar": np.ones((), np.float32),
    "mask": np.array([True, False]),
}


class OnDisk:
    """An update that says how many of its arrays, and of those of others, are alive."""

    def __init__(self, weights: Weights, examples: float) -> None:
        self.weights, self.examples, self.reads = weights, examples, 0

    def arrays(self, names: Iterable[str]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        for name in names:
            self.reads += 1
            yield name, self.weights[name].copy()


def updates(sites: int) -> list[OnDisk]:
    rng = np.random.default_rng(sites)

    def changed(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if array.dtype.kind == "f":
            return (array + rng.normal(size=array.shape)).astype(array.dtype)
        return np.asarray(rng.integers(0, 2, array.shape)).astype(array.dtype)

    return [OnDisk({n: changed(a) for n, a in START.items()}, float(rng.integers(1, 50))) for _ in range(sites)]


def begun(name: str) -> Strategy:
    strategy = make_strategy(name)
    if hasattr(strategy, "current_arrays"):
        arrays: Any = weights_to_record(START) if name == "fedavgm" else dict(START)
        strategy.current_arrays = arrays
    return strategy


@pytest.mark.parametrize("sites", [1, 2, 5])
@pytest.mark.parametrize("name", [name for name in names() if name != "dpfedavg"])
def test_the_bits_are_those_of_all_replies_at_once(name: str, sites: int, reply: Reply) -> None:
    given = updates(sites)
    messages = [reply(one.weights, {"num-examples": one.examples}) for one in given]
    expected = combine(begun(name), 3, messages, START)
    found = combine_streaming(begun(name), 3, given, START)
    assert list(found) == list(expected)
    for key, array in expected.items():
        assert isinstance(found[key], np.ndarray)
        assert (found[key].dtype, found[key].shape) == (array.dtype, array.shape)
        assert found[key].tobytes() == array.tobytes()


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi"])
def test_a_server_optimisers_state_is_the_same_after_several_rounds(name: str, reply: Reply) -> None:
    one, other = make_strategy(name), make_strategy(name)
    weights = START
    for number in range(1, 4):
        for strategy in (one, other):
            arrays: Any = weights_to_record(weights) if name == "fedavgm" else dict(weights)
            strategy.current_arrays = arrays  # type: ignore[attr-defined]
        given = updates(number)
        expected = combine(one, number, [reply(u.weights, {"num-examples": u.examples}) for u in given], weights)
        weights = combine_streaming(other, number, given, weights)
        assert all(weights[key].tobytes() == array.tobytes() for key, array in expected.items())
        states = strategy_state(one), strategy_state(other)
        assert list(states[0]) == list(states[1])
        assert all(states[1][key].tobytes() == array.tobytes() for key, array in states[0].items())
        assert {key: a.dtype for key, a in states[0].items()} == {key: a.dtype for key, a in states[1].items()}


def test_a_mean_by_hand() -> None:
    start: Weights = {"w": np.zeros(2, np.float32)}
    given = [OnDisk({"w": np.array([2, 10], np.float32)}, 1.0), OnDisk({"w": np.array([6, 14], np.float32)}, 3.0)]
    # (1·2 + 3·6) / 4 = 5 ; (1·10 + 3·14) / 4 = 13
    assert combine_streaming(make_strategy("fedavg"), 1, given, start)["w"].tolist() == [5.0, 13.0]


def test_what_a_strategy_needs_is_said() -> None:
    assert {name: needs(make_strategy(name)) for name in names()} == {
        "fedavg": "one",
        "fedprox": "one",
        "fedavgm": "one",
        "fedadam": "one",
        "fedyogi": "one",
        "fedmedian": "one array of all",
        "fedtrimmedavg": "one array of all",
        "krum": "all",
        "dpfedavg": "one",
        "fedbn": "one",
        "fedper": "one",
        "fedrep": "one",
        "scaffold": "one",
        "fednova": "one",
        "moon": "one",
        "ditto": "one",
        "apfl": "one",
        "fedbuff": "all",
    }

    class Own(FedAvg):
        """May look at the replies in any way."""

    assert needs(Own()) == "all"


def test_what_is_not_finite_is_named() -> None:
    start: Weights = {"w": np.zeros(2, np.float32)}
    given = [OnDisk({"w": np.full(2, 3e38, np.float32)}, 1.0)] * 2
    assert np.isfinite(combine_streaming(make_strategy("fedavg"), 1, given, start)["w"]).all()
    given = [OnDisk({"w": np.full(2, np.inf, np.float32)}, 1.0)]
    with pytest.raises(RoundError, match="array w"):
        combine_streaming(make_strategy("fedavg"), 1, given, start)
