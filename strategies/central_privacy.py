"""Central differential privacy: what one site, as a whole, changes in the mean that leaves the coordinator.

Every site's change of the weights is clipped to one Euclidean norm over all its floating-point arrays together, the
clipped changes are added up, each with a weight of at most 1 that no other site has a say in, noise is added to the
sum, and the sum is divided by a number of sites that was fixed before the run. Two federations are neighbours if one
site's updates are left out of every round. The sum then changes by the bound at most, in whatever numbers sites answer
and whatever they weigh; a mean of those who answered, by shares of what they all claim, would not have that property.

The coordinator is trusted: it sees every update before the noise. Integers do not travel through a sum with noise and
stay as they were.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg, Strategy

from wardround.errors import UsageError
from wardround.strategies.contract import Weights
from wardround.strategies.noise import Noise

if TYPE_CHECKING:
    from wardround.strategies.streaming import Contribution


class DPFedAvg(FedAvg):
    """Federated averaging that keeps each site private (McMahan et al. 2018, arXiv 1710.06963, algorithm 1, with the
    fixed divisor ``f_f`` and every site in every round).

    Parameters
    ----------
    noise_multiplier
        z: standard deviation of the noise over `clip_norm`; more than 0.
    clip_norm
        S: largest Euclidean norm of a site's change, over all floating-point arrays together.
    sites
        How many are planned: the sum is divided by it, however many answer; 0 where that is still to be said.
    examples_cap
        A site with that many examples or more has weight 1, one with fewer its part of that; 0 for weight 1 always.
    delta
        At which ε is told.
    common
        As of any of Flower's strategies.
    """

    def __init__(
        self,
        *,
        noise_multiplier: float = 1.0,
        clip_norm: float = 1.0,
        sites: int = 0,
        examples_cap: float = 0.0,
        delta: float = 1e-5,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.noise_multiplier = noise_multiplier
        self.clip_norm = clip_norm
        self.sites = sites
        self.examples_cap = examples_cap
        self.delta = delta
        self._key: bytes | None = None

    def foreseeable(self, key: bytes) -> None:
        """Draw the noise from `key`: for simulations, which are to be repeated and have nobody to protect."""
        self._key = key

    def noise(self, round: int) -> Noise:
        """That of one round."""
        return Noise(None if self._key is None else round.to_bytes(8, "big") + self._key)

    def weight(self, examples: float) -> float:
        """Weight of a site in the sum, 0 … 1; 0 for what is no number of examples."""
        if not self.examples_cap:
            return 1.0
        return min(1.0, examples / self.examples_cap) if examples > 0 else 0.0

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Never: Flower's mean of replies has neither bound nor noise.

        Raises
        ------
        UsageError
            Always; :func:`private_mean` is asked instead.
        """
        raise UsageError("dpfedavg does not average replies as they are", "its bound would not hold", "stream them")

    def epsilon(self, rounds: int) -> float:
        """ε at :attr:`delta` of so many rounds, in each of which every site may take part."""
        return gaussian_epsilon(self.noise_multiplier, rounds, self.delta)


def central_epsilon(strategy: Strategy, rounds: int) -> float | None:
    """ε of so many rounds at the strategy's δ; None for a strategy without noise, and where there is no bound."""
    if not isinstance(strategy, DPFedAvg):
        return None
    epsilon = strategy.epsilon(rounds)
    return epsilon if math.isfinite(epsilon) else None


def check_central(strategy: Strategy, *, plain: bool = True, late: str = "refuse", secure: bool = False) -> None:
    """Refuse what would break the bound on what one site changes.

    Parameters
    ----------
    strategy
        Of the run; others than :class:`DPFedAvg` have no such bound, and nothing is asked of them.
    plain
        Whether sites count by their examples alone.
    late
        What becomes of replies that come after their round.
    secure
        Whether the coordinator sees the sum of the updates only.

    Raises
    ------
    UsageError
        With the reason.
    """
    if not isinstance(strategy, DPFedAvg):
        return
    for wrong, problem, cause, fix in (
        (not plain, "has weights of its own", "a share that follows from other sites is bounded by nothing",
         "leave the weighting out, or set examples_cap"),
        (late != "refuse", "takes no late replies", "a site could be in one sum twice", "set late to refuse"),
        (secure, "cannot clip what it does not see", "under secure aggregation there is one sum and no update",
         "choose one of the two; privacy record goes with secure"),
    ):  # fmt: skip
        if wrong:
            raise UsageError(f"dpfedavg {problem}", cause, fix)


def private_mean(contributions: "Sequence[Contribution]", weights: Weights, strategy: DPFedAvg, round: int) -> Weights:
    """The weights before the round, moved by the noisy mean of the sites' clipped changes.

    Parameters
    ----------
    contributions
        One a site at most, or the bound does not hold; they are read twice, one array at a time.
    weights
        Before the round.
    strategy
        With its bound, its noise and its number of sites.
    round
        Its number.

    Returns
    -------
    Weights
        Of the names of `weights`: float64 for floating-point arrays, integers as they were.

    Raises
    ------
    UsageError
        If nobody said how many sites are planned.
    """
    if strategy.sites < 1:
        raise UsageError("dpfedavg cannot divide the sum", "sites is 0", "say how many sites are planned")
    noise = strategy.noise(round)
    names = [name for name, array in weights.items() if array.dtype.kind == "f"]
    sums = {name: np.zeros(weights[name].shape, np.float64) for name in names}
    for one in contributions:
        # Norms first, and then the arrays again: no update is in memory as a whole.
        with np.errstate(all="ignore"):  # What overflows is not finite, and counts as none.
            square = sum(float(np.square(change).sum()) for _, change in _changes(one, names, weights))
        factor = _factor(math.sqrt(square), strategy.clip_norm) * strategy.weight(one.examples)
        if factor:
            for name, change in _changes(one, names, weights):
                sums[name] += factor * change
    scale = strategy.noise_multiplier * strategy.clip_norm
    moved: Weights = {}
    for name, array in weights.items():
        if name in sums:
            change = (sums.pop(name) + scale * noise.normal(array.shape)) / strategy.sites
            moved[name] = np.asarray(array + change)
        else:
            moved[name] = array
    return moved


def _changes(
    one: "Contribution", names: Sequence[str], weights: Weights
) -> Iterator[tuple[str, npt.NDArray[np.float64]]]:
    for name, array in one.arrays(names):
        yield name, np.subtract(array, weights[name], dtype=np.float64)


def _factor(norm: float, bound: float) -> float:
    """By which a change of this norm is multiplied; one that is not finite counts as none."""
    if not math.isfinite(norm):
        return 0.0
    return bound / norm if norm > bound else 1.0


def gaussian_delta(noise: float, epsilon: float) -> float:
    """δ at which one Gaussian mechanism of sensitivity 1 is (ε, δ)-private, exactly (Balle and Wang 2018, theorem 8).

    Parameters
    ----------
    noise
        Standard deviation, more than 0.
    epsilon
        At least 0.
    """
    half, times = 1 / (2 * noise), epsilon * noise
    below, above = _normal(half - times), _normal(-half - times)
    return below - (math.exp(min(700.0, epsilon + math.log(above))) if above > 0 else 0.0)


def gaussian_epsilon(noise: float, steps: int, delta: float) -> float:
    """ε at `delta` of `steps` Gaussian mechanisms without sampling: together they are one with noise / √steps.

    Found by bisection, from above: the value is never too small. Infinite beyond 10⁶.
    """
    if not steps:
        return 0.0
    whole = noise / math.sqrt(steps)
    low, high = 0.0, 1.0
    while gaussian_delta(whole, high) > delta:
        low, high = high, 2 * high
        if high > 1e6:
            return math.inf
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(whole, middle) > delta else (low, middle)
    return high


def _normal(value: float) -> float:
    return 0.5 * math.erfc(-value / math.sqrt(2))
