"""What steps under differential privacy come to: ε at a δ, by opacus's accountants.

Every step is a Poisson-sampled Gaussian mechanism. ``rdp`` composes Rényi divergences (Mironov et al. 2019, arXiv
1908.10530, section 3.3) and turns them into ε (Balle et al. 2020, arXiv 1905.09982, theorem 21); it is an upper bound
whatever the steps are. ``prv`` composes the distribution of the privacy loss (Gopi et al. 2021, arXiv 2106.02848); it
is tighter, takes longer, and what is given here is the upper end of its error.
"""

import warnings
from collections.abc import Iterable, Sequence
from typing import Protocol

from opacus.accountants import PRVAccountant, RDPAccountant

from wardround.client.gate.budget import Method

# Rényi orders: between 1 and 11 in tenths, whole ones up to 64, then ever farther apart, for little noise and for much.
ORDERS = (*(1 + tenth / 10 for tenth in range(1, 100)), *range(11, 65), 72, 80, 96, 128, 192, 256, 512, 1024)


class Steps(Protocol):
    """What an accountant has to know of steps that are all of one kind."""

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise over the bound on a case's gradient."""

    @property
    def sample_rate(self) -> float:
        """Probability with which each case takes part in a step."""

    @property
    def steps(self) -> int:
        """How many."""


def epsilon_of(taken: Sequence[Steps], delta: float, method: Method = "rdp") -> float:
    """ε at `delta` of all of these steps together, in any order.

    Parameters
    ----------
    taken
        A case counts as having been there in all of them.
    delta
        More than 0, less than 1.
    method
        ``rdp`` or ``prv``.
    """
    history = merged(taken)
    if not history:
        return 0.0
    with warnings.catch_warnings():
        # The best order may be the last of the list: the bound holds, and is a little loose.
        warnings.simplefilter("ignore")
        if method == "prv":
            precise = PRVAccountant()
            precise.history = list(history)
            return max(0.0, float(precise.get_epsilon(delta)))
        accountant = RDPAccountant()
        accountant.history = list(history)
        return max(0.0, float(accountant.get_epsilon(delta, alphas=list(ORDERS))))


def merged(taken: Iterable[Steps]) -> tuple[tuple[float, float, int], ...]:
    """(noise multiplier, sample rate, steps) with each pair once: an accountant's time goes by pairs, not by steps."""
    counts: dict[tuple[float, float], int] = {}
    for each in taken:
        pair = (each.noise_multiplier, each.sample_rate)
        counts[pair] = counts.get(pair, 0) + each.steps
    return tuple((noise, rate, steps) for (noise, rate), steps in counts.items())
