"""SCAFFOLD at the coordinator: the mean of what sites learnt, and of how their gradients differ.

Karimireddy et al. 2020, "SCAFFOLD: stochastic controlled averaging for federated learning" (arXiv 1910.06378),
algorithm 1, lines 16 and 17, with S the sites that answered, of N::

    x ← x + η_g · mean of (y_i − x)
    c ← c + |S| / N · mean of (c_i⁺ − c_i)

c travels among the weights, as ``control.<parameter>``; a site answers with ``c + (c_i⁺ − c_i)`` there. Sites do the
rest: ``wardround.client.learning.control``, which also says what becomes of it where they step by AdamW. Both means are
weighted alike, by what a site counts; the paper counts all alike. N is the most sites that any round of the run has
had: c is to be the mean over all, of which absent ones keep theirs.
"""

from typing import Any

import numpy as np

from wardround.strategies.contract import Weights
from wardround.strategies.shaped import Shaped

CONTROL = "control."
"""As :data:`wardround.models.weights.CONTROL`, which this room does not import."""


class Scaffold(Shaped):
    """See the module.

    Parameters
    ----------
    server_learning_rate
        η_g: 1 takes the mean.
    common
        Of Flower's FedAvg.
    """

    def __init__(self, server_learning_rate: float = 1.0, **common: Any) -> None:
        super().__init__(**common)
        self.server_learning_rate = server_learning_rate
        self._most = 0

    @property
    def most(self) -> int:
        """N: the most sites that any round has had."""
        return self._most

    @most.setter
    def most(self, sites: int) -> None:
        self._most = int(sites)

    def shape(self, mean: Weights, weights: Weights, sites: int) -> Weights:
        """x and c after the round. At a rate of 1, and where all sites answered, that is the mean, bit for bit."""
        self._most = max(self._most, sites)

        def moved(name: str) -> Any:
            rate = sites / self._most if name.startswith(CONTROL) else self.server_learning_rate
            if rate == 1 or weights[name].dtype.kind != "f":
                return mean[name]
            return weights[name] + rate * (mean[name] - weights[name])

        return {name: np.asarray(moved(name)) for name in weights}
