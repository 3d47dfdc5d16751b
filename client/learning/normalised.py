"""A site's change as it is for one step, times a number that all sites share: what FedNova needs of a site.

Wang et al. 2020, "Tackling the objective inconsistency problem in heterogeneous federated optimization" (arXiv
2007.07481), eq. 5–8: a site that takes more steps pulls the mean further its way, so that the mean solves another
problem than the sites agreed on. Each site i divides its change by ‖a_i‖₁, which for plain gradient descent is its
number of steps τ_i; the coordinator takes the mean of these and multiplies it by the mean number of steps.

Here a site sends ``x + (y_i − x) · R / τ_i`` beside τ_i / R, with R of the plan, about as large as τ_i, so that no
precision is lost; :mod:`wardround.strategies.nova` does the rest.

A step of another learning rate than the round's counts as a part of one, ``η_k / η``, as the paper has it for rates
that change. For plain gradient descent that is exact. AdamW's steps have about the size of the learning rate each,
whatever the gradients, so that their number says how far a site went by itself there, too: ‖a_i‖₁ = Σ η_k / η is what
the paper's section 4 gives for an optimiser whose steps are weighed alike. Steps that were taken back do not
count, nor do those that mixed precision leaves out.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from wardround.client.learning.terms import Term
from wardround.models.weights import STEPS, Arrays


class Normalised(Term):
    """Counts steps, and divides what was learnt by them.

    Parameters
    ----------
    steps
        R.
    learning_rate
        η, of the round.
    """

    name = "normalised"

    def __init__(self, steps: int, learning_rate: float) -> None:
        super().__init__()
        self._usual = steps * learning_rate
        self._start: dict[str, npt.NDArray[np.generic]] = {}
        self._gone = 0.0

    def received(self, weights: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """x: where the round starts."""
        self._start = {name: np.array(array) for name, array in weights.items()}

    def gradients(self, network: nn.Module, learning_rate: float) -> None:
        """Count a step."""
        self._gone += learning_rate

    def leaving(self, weights: Arrays) -> Arrays:
        """The change over τ_i / R, and that beside it; nothing is divided where no step was taken."""
        steps = self._gone / self._usual if self._usual else 0.0

        def divided(name: str, array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
            if not steps or array.dtype.kind != "f":
                return array
            start = self._start[name].astype(np.float64)
            return np.asarray(start + (array.astype(np.float64) - start) / steps, dtype=array.dtype)

        found = {name: divided(name, array) for name, array in weights.items()}
        return found | {STEPS: np.array([steps], np.float32)}

    def state(self) -> Mapping[str, Any]:
        """How far it has gone."""
        return {"gone": self._gone}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to `state`."""
        self._gone = state["gone"]
