"""FedNova at the coordinator: the mean of changes for one step, times the mean number of steps.

Wang et al. 2020, "Tackling the objective inconsistency problem in heterogeneous federated optimization" (arXiv
2007.07481), eq. 5–8: ``x ← x − τ_eff · Σ p_i · η · d_i`` with ``d_i = (x − y_i) / (η · τ_i)`` and the mean number of
steps ``τ_eff = Σ p_i · τ_i``.

Sites send ``x + (y_i − x) · R / τ_i`` and, beside it, ``s_i = τ_i / R`` as ``control.steps``
(``wardround.client.learning.normalised``, which also says what a step is under AdamW); R is the plan's
``normalised_steps``. With both means weighted alike, ``x + s̄ · (mean − x)`` is that. No update is looked at by itself,
so that it works on a secret sum.
"""

from typing import Any

import numpy as np

from wardround.strategies.contract import Weights
from wardround.strategies.shaped import Shaped

STEPS = "control.steps"
"""As :data:`wardround.models.weights.STEPS`, which this room does not import."""


class FedNova(Shaped):
    """See the module.

    Parameters
    ----------
    most_steps
        Largest s̄ that is believed, in units of R: what a site says of its steps stretches the change of all.
    common
        Of Flower's FedAvg.
    """

    def __init__(self, most_steps: float = 10.0, **common: Any) -> None:
        super().__init__(**common)
        self.most_steps = most_steps

    def shape(self, mean: Weights, weights: Weights, sites: int) -> Weights:
        """x after the round, and s̄."""
        # What is not believed is not sent on either: sites would start from it, and seem to change it beyond all norms.
        believed = np.clip(mean[STEPS], 0.0, self.most_steps) if STEPS in mean else np.ones(())
        steps = float(believed.item())

        def moved(name: str) -> Any:
            if name == STEPS:
                return believed
            if weights[name].dtype.kind != "f":
                return mean[name]
            start = weights[name].astype(np.float64)
            return start + steps * (mean[name] - start)

        return {name: np.asarray(moved(name)) for name in weights}
