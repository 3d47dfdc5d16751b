"""What a site keeps of the network for itself: the arrays that a plan's local keys match.

They begin as the plan's seed draws them, learn with the rest in every round, and are put beside whatever comes from the
federation: to learn, to evaluate and to draw. A site keeps them in its snapshot, as ``personal/<array>``.
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from wardround.models.weights import Arrays
from wardround.strategies.contract import Weights
from wardround.strategies.local_keys import staying
from wardround.strategies.plan import RoundPlan

_KEPT = "personal/"


def with_own(
    plan: RoundPlan,
    weights: Weights,
    fresh: Callable[[], Arrays],
    local: Mapping[str, npt.NDArray[np.generic]],
) -> Weights:
    """The arrays of a whole network, and what came beside them.

    Parameters
    ----------
    plan
        Says what stays at the site.
    weights
        That travelled.
    fresh
        Gives a new network of the plan, by name; asked only where something stays at the site.
    local
        What the site kept of an earlier round; what it does not have is taken from `fresh`.
    """
    if not plan.local_keys:
        return weights
    new = fresh()
    own = {name: local.get(f"{_KEPT}{name}", new[name]) for name in sorted(staying(new, plan.local_keys))}
    return {**weights, **own}


def kept_own(plan: RoundPlan, weights: Callable[[], Arrays]) -> Arrays:
    """What the site keeps of the arrays of a network after a round; asked for only where that is anything."""
    if not plan.local_keys:
        return {}
    learnt = weights()
    return {f"{_KEPT}{name}": learnt[name] for name in sorted(staying(learnt, plan.local_keys))}


def without_own(plan: RoundPlan, weights: Arrays) -> Arrays:
    """What may travel of a network's arrays."""
    own = staying(weights, plan.local_keys)
    return {name: array for name, array in weights.items() if name not in own}
