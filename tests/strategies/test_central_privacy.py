"""Central privacy with numbers worked out by hand; each defect that was found in Flower's wrappers has a test here."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from wardround.errors import UsageError
from wardround.strategies.catalogue import describe, make_strategy
from wardround.strategies.central_privacy import DPFedAvg, check_central, gaussian_delta, gaussian_epsilon
from wardround.strategies.contract import Weights
from wardround.strategies.streaming import combine_streaming

START: Weights = {
    "weight": np.zeros(2, np.float32),
    "scale": np.float32(0).reshape(()),
    "steps": np.array(7, np.int64),
    "table": np.arange(3, dtype=np.int64),
    "half": np.zeros(1, np.float16),
}


@dataclass(frozen=True)
class Sent:
    change: dict[str, Any]
    examples: float = 1.0

    def arrays(self, names: Iterable[str]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        for name in names:
            yield name, np.asarray(START[name] + np.asarray(self.change.get(name, 0), START[name].dtype))


def strategy(**options: float) -> DPFedAvg:
    """With too little noise to see."""
    found = make_strategy("dpfedavg", **{"noise_multiplier": 1e-9, "clip_norm": 5.0, "sites": 2, **options})
    assert isinstance(found, DPFedAvg)
    found.foreseeable(b"a key")
    return found


def mean(*sent: Sent, **options: float) -> Weights:
    return combine_streaming(strategy(**options), 1, sent, START)


def test_changes_are_clipped_over_all_arrays_together_and_averaged() -> None:
    found = mean(Sent({"weight": [6.0, 0.0], "scale": 8.0}), Sent({"weight": [0.0, 1.0]}))
    assert found["weight"] == pytest.approx([1.5, 0.5], abs=1e-6)  # (6, 0, 8) is twice the bound.
    assert found["scale"] == pytest.approx(2.0, abs=1e-6)
    assert {name: (array.shape, array.dtype) for name, array in found.items()} == {
        name: (array.shape, array.dtype) for name, array in START.items()
    }


def test_an_update_of_zeros_is_one() -> None:
    found = mean(Sent({}), Sent({"weight": [2.0, 0.0]}))
    assert found["weight"] == pytest.approx([1.0, 0.0], abs=1e-6)


def test_integers_stay_as_they_were_and_count_in_no_norm() -> None:
    found = mean(Sent({"weight": [3.0, 4.0], "steps": 1000, "table": [9, 9, 9]}), Sent({}))
    assert found["weight"] == pytest.approx([1.5, 2.0], abs=1e-6)  # Within the bound: not cut for the counter's sake.
    assert found["steps"] == 7
    assert found["table"].tolist() == [0, 1, 2]


def test_a_float_without_axes_does_not_escape_the_bound() -> None:
    assert mean(Sent({"scale": 1000.0}))["scale"] == pytest.approx(2.5, abs=1e-6)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_counts_as_none(odd: float) -> None:
    found = mean(Sent({"weight": [odd, 1.0]}), Sent({"weight": [2.0, 0.0]}))
    assert found["weight"] == pytest.approx([1.0, 0.0], abs=1e-6)


def test_numbers_whose_squares_overflow_count_as_none_and_huge_ones_are_cut() -> None:
    assert mean(Sent({"weight": [1e30, 0.0]}))["weight"] == pytest.approx([2.5, 0.0], abs=1e-6)


def test_fewer_replies_than_planned_leave_the_divisor_and_the_noise() -> None:
    assert mean(Sent({"weight": [2.0, 0.0]}), sites=4)["weight"] == pytest.approx([0.5, 0.0], abs=1e-6)
    spread = [np.std([noisy(replies, round) for round in range(400)]) for replies in ([Sent({})], [Sent({}), Sent({})])]
    assert spread == pytest.approx([3.0 * 5.0 / 4] * 2, rel=0.1)


def noisy(replies: list[Sent], round: int) -> float:
    found = combine_streaming(strategy(noise_multiplier=3.0, sites=4), round, replies, START)
    return float(found["weight"][0])


def test_one_site_moves_the_mean_by_its_bound_however_many_examples_it_claims() -> None:
    """A mean by shares of what all claim would be moved by nearly the whole bound, twice what was planned for."""
    others = [Sent({"weight": [0.0, -5.0]}), Sent({"weight": [0.0, 5.0]})]
    for examples in (1.0, 1e6):
        huge = Sent({"weight": [1e6, 0.0]}, examples)
        for options in ({}, {"examples_cap": 10.0}):
            change = mean(huge, *others, sites=3, **options)["weight"] - mean(*others, sites=3, **options)["weight"]
            assert np.linalg.norm(change) <= 5.0 / 3 + 1e-6


def test_weights_are_of_a_site_alone() -> None:
    capped = {"examples_cap": 10.0}
    assert mean(Sent({"weight": [2.0, 0.0]}, 5.0), **capped)["weight"] == pytest.approx([0.5, 0.0], abs=1e-6)
    assert mean(Sent({"weight": [2.0, 0.0]}, 50.0), **capped)["weight"] == pytest.approx([1.0, 0.0], abs=1e-6)
    assert mean(Sent({"weight": [2.0, 0.0]}, 5.0))["weight"] == pytest.approx([1.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("examples", [-1.0, math.nan, 0.0])
def test_odd_numbers_of_examples_weigh_nothing(examples: float) -> None:
    assert strategy(examples_cap=10.0).weight(examples) == 0


def test_two_sites_may_have_as_much_noise_as_they_like() -> None:
    assert np.isfinite(mean(Sent({}), Sent({}), noise_multiplier=100.0)["weight"]).all()


def test_noise_is_other_noise_in_every_round_and_nobodys_without_a_key() -> None:
    one, other = noisy([Sent({})], 1), noisy([Sent({})], 2)
    assert one != other
    assert one == noisy([Sent({})], 1)
    secret = make_strategy("dpfedavg", sites=2)
    found = {float(combine_streaming(secret, 1, [Sent({})], START)["weight"][0]) for _ in range(2)}
    assert len(found) == 2


def test_flowers_own_mean_is_never_taken_in_its_place() -> None:
    with pytest.raises(UsageError):
        strategy().aggregate_train(1, [])


def test_a_sum_that_nobody_said_the_sites_of_is_not_divided() -> None:
    with pytest.raises(UsageError):
        mean(Sent({}), sites=0)


@pytest.mark.parametrize("change", [{"plain": False}, {"late": "use"}, {"secure": True}])
def test_what_breaks_the_bound_is_refused(change: dict[str, Any]) -> None:
    check_central(strategy())
    check_central(make_strategy("fedavg"), **change)
    with pytest.raises(UsageError):
        check_central(strategy(), **change)


def test_a_run_is_resumed_with_the_same_bound_and_the_key_is_told_to_nobody() -> None:
    told = describe(strategy())
    assert (told["class"], told["clip_norm"], told["sites"]) == ("DPFedAvg", 5.0, 2)
    assert "a key" not in str(told)


class TestAccountant:
    def test_it_is_the_definition(self) -> None:
        """δ(ε) of a Gaussian: what lies above e^ε times the other density, by the trapezoidal rule."""
        x = np.linspace(-60, 60, 2_000_001)
        for noise, epsilon in ((1.0, 1.0), (0.7, 3.0), (5.0, 0.2)):
            near, far = (
                np.exp(-((x - place) ** 2) / (2 * noise**2)) / (noise * math.sqrt(2 * math.pi)) for place in (1.0, 0.0)
            )
            above = np.maximum(0, near - math.exp(epsilon) * far).sum() * (x[1] - x[0])
            assert gaussian_delta(noise, epsilon) == pytest.approx(above, abs=1e-9)

    @pytest.mark.parametrize(("noise", "rounds"), [(1.0, 1), (2.0, 10), (0.3, 5), (50.0, 3)])
    def test_epsilon_is_where_delta_is_met(self, noise: float, rounds: int) -> None:
        epsilon = gaussian_epsilon(noise, rounds, 1e-5)
        assert gaussian_delta(noise / math.sqrt(rounds), epsilon) == pytest.approx(1e-5, rel=1e-6)
        assert gaussian_delta(noise / math.sqrt(rounds), epsilon) <= 1e-5

    def test_more_rounds_cost_more_and_none_nothing(self) -> None:
        private = strategy(noise_multiplier=2.0)
        assert private.epsilon(0) == 0
        assert 0 < private.epsilon(1) < private.epsilon(10) < private.epsilon(1000) < math.inf
        assert gaussian_epsilon(1e-4, 1000, 1e-5) == math.inf
