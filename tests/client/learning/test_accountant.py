"""Opacus's accountants against a computation of our own from the definitions: nothing is shared but the question."""

import math
from dataclasses import dataclass

import numpy as np
import pytest

from wardround.client.learning.accountant import ORDERS, epsilon_of, merged


@dataclass(frozen=True)
class Taken:
    noise_multiplier: float
    sample_rate: float
    steps: int


def divergence(noise: float, rate: float, order: float) -> float:
    """Rényi divergence of one step by the trapezoidal rule, the larger of both directions.

    With a case the sum that is released lies round 1 with probability `rate` and else round 0, without it round 0.
    """
    x = np.linspace(-40 * noise - 2 * order, 40 * noise + order, 400_001)
    absent = -(x**2) / (2 * noise**2) - math.log(noise * math.sqrt(2 * math.pi))
    ratio = np.logaddexp(math.log1p(-rate) if rate < 1 else -math.inf, math.log(rate) + (2 * x - 1) / (2 * noise**2))
    found = []
    for power in (order, 1 - order):
        logs = absent + power * ratio
        peak = logs.max()
        found.append((peak + math.log(np.exp(logs - peak).sum() * (x[1] - x[0]))) / (order - 1))
    return max(found)


def epsilon_from(divergences: dict[float, float], delta: float) -> float:
    """Smallest ε over the orders, by Balle et al. 2020, theorem 21."""
    return min(
        rdp + math.log((order - 1) / order) - (math.log(delta) + math.log(order)) / (order - 1)
        for order, rdp in divergences.items()
    )


def gaussian_delta(noise: float, epsilon: float) -> float:
    """δ of a Gaussian mechanism of sensitivity 1, exactly (Balle and Wang 2018, theorem 8)."""

    def normal(value: float) -> float:
        return 0.5 * math.erfc(-value / math.sqrt(2))

    half, times = 1 / (2 * noise), epsilon * noise
    return normal(half - times) - math.exp(epsilon) * normal(-half - times)


def gaussian_epsilon(noise: float, delta: float) -> float:
    low, high = 0.0, 500.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(noise, middle) > delta else (low, middle)
    return high


@pytest.mark.parametrize("noise", [0.6, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("rate", [0.01, 0.2, 0.7, 1.0])
def test_divergences_are_those_of_the_definition(noise: float, rate: float) -> None:
    from opacus.accountants.analysis.rdp import compute_rdp

    for order in (1.1, 1.5, 2.0, 3.7, 11.0, 63.0, 256.0):
        theirs = float(compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=order))
        assert theirs == pytest.approx(divergence(noise, rate, order), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    "taken",
    [
        [Taken(1.0, 0.1, 100)],
        [Taken(4.0, 0.5, 500)],
        [Taken(10.0, 1.0, 100)],
        [Taken(2.0, 0.2, 40), Taken(3.0, 0.5, 60), Taken(2.0, 0.2, 10)],
    ],
)
def test_epsilon_agrees_to_a_millionth(taken: list[Taken]) -> None:
    orders = {
        order: sum(each.steps * divergence(each.noise_multiplier, each.sample_rate, order) for each in taken)
        for order in ORDERS[::3]
    }
    ours = epsilon_from(orders, 1e-5)
    near = {order: rdp for order, rdp in orders.items() if rdp < 1e6}
    best = min(near, key=lambda order: near[order] - math.log(1e-5 * order) / (order - 1) + math.log1p(-1 / order))
    for order in ORDERS:  # The orders beside the best one are looked at as well.
        if order not in orders and abs(ORDERS.index(order) - ORDERS.index(best)) <= 3:
            orders[order] = sum(
                each.steps * divergence(each.noise_multiplier, each.sample_rate, order) for each in taken
            )
    ours = min(ours, epsilon_from(orders, 1e-5))
    assert epsilon_of(taken, 1e-5) == pytest.approx(ours, abs=1e-6)


@pytest.mark.parametrize(("noise", "steps"), [(10.0, 100), (4.0, 8), (50.0, 10)])
def test_without_sampling_both_methods_stand_above_the_exact_value(noise: float, steps: int) -> None:
    """Many Gaussians are one with less noise, of which ε is known exactly."""
    exact = gaussian_epsilon(noise / math.sqrt(steps), 1e-5)
    taken = [Taken(noise, 1.0, steps)]
    precise, bound = epsilon_of(taken, 1e-5, "prv"), epsilon_of(taken, 1e-5)
    assert exact <= precise <= exact + 0.02
    assert precise < bound <= 1.15 * exact


def test_nothing_taken_costs_nothing_and_more_costs_more() -> None:
    assert epsilon_of([], 1e-5) == 0
    costs = [epsilon_of([Taken(2.0, 0.2, steps)], 1e-5) for steps in (1, 10, 100)]
    assert 0 < costs[0] < costs[1] < costs[2]
    assert epsilon_of([Taken(2.0, 0.2, 10)], 1e-7) > costs[1]


def test_steps_of_one_kind_are_counted_together() -> None:
    taken = [Taken(1.0, 0.5, 3), Taken(2.0, 0.5, 1), Taken(1.0, 0.5, 4)]
    assert merged(taken) == ((1.0, 0.5, 7), (2.0, 0.5, 1))
    assert epsilon_of(taken, 1e-5) == epsilon_of([Taken(2.0, 0.5, 1), Taken(1.0, 0.5, 7)], 1e-5)
