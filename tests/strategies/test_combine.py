"""Flower's arithmetic behind our records, against numbers worked by hand."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from flwr.serverapp.strategy import FedTrimmedAvg, Strategy

from wardround.errors import RoundError
from wardround.strategies.catalogue import make_strategy, names
from wardround.strategies.combine import combine, conform
from wardround.strategies.contract import Weights, weights_to_record

Reply = Callable[..., Message]

START: Weights = {"w": np.array([0.0, 10.0], np.float32), "n": np.array(4, np.int64)}


def replies(reply: Reply, values: Sequence[tuple[float, float]], examples: Sequence[float] = ()) -> list[Message]:
    counts = examples or [1.0] * len(values)
    return [
        reply({"w": np.array(value, np.float32), "n": np.array(4 + number, np.int64)}, {"num-examples": count})
        for number, (value, count) in enumerate(zip(values, counts, strict=True))
    ]


def begun(name: str, start: Weights = START, **options: float) -> Strategy:
    """A strategy that has sent the start weights."""
    strategy = make_strategy(name, **options)
    if hasattr(strategy, "current_arrays"):
        arrays: Any = weights_to_record(start) if name == "fedavgm" else dict(start)
        strategy.current_arrays = arrays
    return strategy


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_mean_weighted_by_examples(name: str, reply: Reply) -> None:
    # (1·2 + 3·6) / 4 = 5 ; (1·10 + 3·14) / 4 = 13
    combined = combine(begun(name), 1, replies(reply, [(2, 10), (6, 14)], [1, 3]), START)
    assert combined["w"].tolist() == [5.0, 13.0]


def test_median_counts_every_site_once(reply: Reply) -> None:
    combined = combine(begun("fedmedian"), 1, replies(reply, [(1, 5), (2, 100), (900, 6)], [1, 1, 1000]), START)
    assert combined["w"].tolist() == [2.0, 6.0]


def test_trimmed_mean_drops_one_at_either_end_of_four(reply: Reply) -> None:
    # ⌊0.34 · 4⌋ = 1: the mean of 2 and 4, of 10 and 20
    values = [(4.0, 20.0), (-1000.0, 10.0), (2.0, 7000.0), (5.0, 1.0)]
    combined = combine(begun("fedtrimmedavg"), 1, replies(reply, values), START)
    assert combined["w"].tolist() == [3.0, 15.0]


def test_krum_takes_the_update_nearest_to_its_neighbours(reply: Reply) -> None:
    # Of four sites the sum over the two nearest: (1, 1) has 1 + 2.25, (1, 2) 0.25 + 1, (1, 2.5) 0.25 + 2.25.
    values = [(90.0, 90.0), (1.0, 1.0), (1.0, 2.0), (1.0, 2.5)]
    combined = combine(begun("krum", num_malicious_nodes=0), 1, replies(reply, values), START)
    assert combined["w"].tolist() == [1.0, 2.0]


def test_fedavgm_first_and_second_step(reply: Reply) -> None:
    # Pseudo-gradient of the first round: (0 − 4, 10 − 12) = (−4, −2); step 0.5 · that = (2, 11).
    strategy = begun("fedavgm")
    first = combine(strategy, 1, replies(reply, [(4, 12)]), START)
    assert first["w"].tolist() == [2.0, 11.0]
    # Second: 0.5 · (−4, −2) + (2 − 4, 11 − 12) = (−4, −2) → (4, 12).
    assert combine(strategy, 2, replies(reply, [(4, 12)]), first)["w"].tolist() == [4.0, 12.0]


def test_fedadam_first_step(reply: Reply) -> None:
    # δ = (4, 0); m = 0.1 δ; v = 0.01 δ²; η₁ = η · √(1 − β₂²) / (1 − β₁²); step = η₁ · m / (√v + τ)
    rate = 0.01 * math.sqrt(1 - 0.99**2) / (1 - 0.9**2)
    expected = rate * 0.4 / (0.4 + 0.001)
    combined = combine(begun("fedadam"), 1, replies(reply, [(4, 10)]), START)
    assert combined["w"] == pytest.approx([expected, 10.0], rel=1e-5)
    assert combined["w"].dtype == np.float32


def test_fedyogi_first_step(reply: Reply) -> None:
    # As Adam without the correction of the bias; from v = 0 Yogi's v is the same (1 − β₂) δ².
    combined = combine(begun("fedyogi"), 1, replies(reply, [(4, 10)]), START)
    assert combined["w"] == pytest.approx([0.01 * 0.4 / (0.4 + 0.001), 10.0], rel=1e-5)


def test_the_round_number_reaches_fedadam(reply: Reply) -> None:
    first = combine(begun("fedadam"), 1, replies(reply, [(4, 10)]), START)
    late = combine(begun("fedadam"), 50, replies(reply, [(4, 10)]), START)
    assert late["w"][0] < first["w"][0]


@pytest.mark.parametrize("name", [name for name in names() if name != "dpfedavg"])
def test_dtypes_shapes_and_order_are_those_of_the_network(name: str, reply: Reply) -> None:
    start: Weights = {
        "half": np.ones((2, 2), np.float16),
        "double": np.ones(3),
        "count": np.array(7, np.int64),
        "scalar": np.ones((), np.float32),
    }
    combined = combine(begun(name, start), 1, [reply(start) for _ in range(4)], start)
    assert list(combined) == list(start)
    for key, expected in start.items():
        assert isinstance(combined[key], np.ndarray)
        assert (combined[key].dtype, combined[key].shape) == (expected.dtype, expected.shape)
        assert combined[key] == pytest.approx(expected)


def test_counters_are_averaged_and_rounded(reply: Reply) -> None:
    # Replies hold 4, 5 and 6 with weights 1, 1 and 3: 27 / 5 = 5.4
    combined = combine(begun("fedavg"), 1, replies(reply, [(0, 0)] * 3, [1, 1, 3]), START)
    assert combined["n"] == 5
    assert combined["n"].dtype == np.int64


def test_replies_are_left_whole_by_strategies_that_take_arrays_out(reply: Reply) -> None:
    answers = replies(reply, [(1, 1), (2, 2), (3, 3)])
    combine(begun("fedtrimmedavg"), 1, answers, START)
    assert all(set(answer.content.array_records["arrays"]) == {"w", "n"} for answer in answers)


def test_the_order_of_arrays_and_different_metrics_do_no_harm(reply: Reply) -> None:
    # FedAvgM pairs arrays by position and FedAvg ends where metrics differ.
    answer = reply({"n": np.array(4, np.int64), "w": np.array([4, 12], np.float32)}, {"num-examples": 1.0})
    other = reply({"w": np.array([4, 12], np.float32), "n": np.array(4, np.int64)}, {"num-examples": 1.0, "loss": 2.0})
    assert combine(begun("fedavgm"), 1, [answer, other], START)["w"].tolist() == [2.0, 11.0]


def test_a_strategys_refusal_is_a_round_that_was_not_closed(reply: Reply) -> None:
    class Refuses(FedTrimmedAvg):
        def _check_and_log_replies(self, *args: Any, **keywords: Any) -> Any:
            return [], []

    with pytest.raises(RoundError, match="combined nothing"):
        combine(Refuses(), 1, replies(reply, [(1, 1)]), START)
    with pytest.raises(RoundError, match="Current arrays not set"):
        combine(make_strategy("fedadam"), 1, replies(reply, [(1, 1)]), START)


def test_results_that_are_no_weights() -> None:
    good = {"w": np.zeros(2), "n": np.array(1.0)}
    for bad in (
        {"w": np.zeros(2)},
        {**good, "w": np.zeros((2, 1))},
        {**good, "w": np.array([0, math.nan])},
        {**good, "w": np.array([0, 1e300])},
        {**good, "n": np.array(math.inf)},
    ):
        with pytest.raises(RoundError):
            conform(bad, START)
    assert conform(good, START)["n"].dtype == np.int64
