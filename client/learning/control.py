"""Control variates of a site: its gradients are corrected by how they differ from those of the federation (SCAFFOLD).

Karimireddy et al. 2020, "SCAFFOLD: stochastic controlled averaging for federated learning" (arXiv 1910.06378),
algorithm 1. A site whose cases are unlike the others' drifts away from them while it learns. It knows its mean gradient
of its last round, c_i, and is sent that of the federation, c; every step takes ``g − c_i + c`` in place of its gradient
g, and the new c_i of a round is the mean of its gradients g.

With plain gradient descent of a constant rate η over K steps from x to y this is the paper's option II,
``c_i⁺ = c_i − c + (x − y) / (K · η)``, to the letter: ``x − y = η · Σ (g − c_i + c)``. Our sites step by AdamW, which
divides by the gradients' size, so that x − y tells the gradients no longer. Their mean still does: corrections stay in
the units of gradients, and enter AdamW's moments as gradients do. What stays of the paper's theory is the direction,
not its rates.

Gradients are taken as they come, before they are clipped. Weight decay and proximal terms act as usual.

A correction is bounded by the gradient that it corrects (:data:`MOST`): c comes from outside, and one that is huge, out
of malice or by a fault, would otherwise leave nothing of what the site's own cases say. Within the bound every number
is the paper's.

c_i counts what was told as received, as the paper does. A site learns nothing of what became of its answer: where that
was refused, came late or was held back by the site's own gate, c_i has moved on and c has not. From then on c lacks
that difference times the site's share, and the corrections of all sites do not cancel any more; each site's own still
points from its gradients towards c. Asked for the same round again, the site begins with the c_i of before it, and
nothing is amiss.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from wardround.client.learning.terms import Term
from wardround.errors import PlanError
from wardround.models.weights import CONTROL, Arrays

MOST = 4.0
"""Largest norm of a correction over that of the gradient it corrects, each over all parameters that are corrected.

At the optimum of the federation c is 0, and c_i is all of the site's own gradient: their norms are equal. A batch's
gradient may be smaller than its round's mean, hence some room.
"""


class Control(Term):
    """Corrects gradients, and finds the site's next control variate.

    Parameters
    ----------
    network
        That learns.
    names
        Of its parameters that travel.
    """

    name = "control"

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        parameters = dict(network.named_parameters())
        self._site = {name: torch.zeros_like(parameters[name]) for name in names}
        self._federation = {name: torch.zeros_like(parameters[name]) for name in names}
        self._sum = {name: torch.zeros_like(parameters[name]) for name in names}
        self._steps = 0

    def received(self, weights: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take over the federation's control variate.

        Raises
        ------
        PlanError
            If it did not come, does not fit the network, or is not finite.
        """
        for name, tensor in self._federation.items():
            array = weights.get(f"{CONTROL}{name}")
            if array is None or array.shape != tuple(tensor.shape):
                raise PlanError(
                    "the plan has control variates, and those that came do not fit",
                    "one is missing" if array is None else "one has another shape",
                    "both ends must run the same version of Wardround",
                )
            if not np.isfinite(array).all():
                raise PlanError(
                    "the federation's control variates cannot be used",
                    "one holds NaN or infinity",
                    "start the run again from an earlier round",
                )
            tensor.copy_(torch.from_numpy(np.array(array)))

    def gradients(self, network: nn.Module, learning_rate: float) -> None:
        """Note the gradients, and correct them. A step that mixed precision leaves out is not noted."""
        found = [(name, each.grad) for name, each in network.named_parameters() if name in self._sum]
        there = [(name, gradient) for name, gradient in found if gradient is not None]
        if not there or not torch.stack([gradient.norm() for _, gradient in there]).isfinite().all():
            return
        self._steps += 1
        # Of finite numbers, a difference may still be beyond what floats hold; it is bounded right here.
        corrections = [(self._federation[name] - self._site[name]).nan_to_num() for name, _ in there]
        allowed = MOST * _norm([gradient for _, gradient in there])
        within = (allowed / _norm(corrections).clamp_min(torch.finfo(torch.float64).tiny)).clamp_max(1.0).float()
        for (name, gradient), correction in zip(there, corrections, strict=True):
            self._sum[name] += gradient
            gradient.add_(correction * within)

    def leaving(self, weights: Arrays) -> Arrays:
        """Beside the weights: c + (c_i⁺ − c_i), of which the mean over all sites is the federation's next."""
        told = {name: self._federation[name] + (new - self._site[name]) for name, new in self.kept().items()}
        return weights | {f"{CONTROL}{name}": tensor.cpu().numpy().copy() for name, tensor in told.items()}

    def state(self) -> Mapping[str, Any]:
        """The gradients noted in this round."""
        return {"sum": {name: tensor.clone() for name, tensor in self._sum.items()}, "steps": self._steps}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to `state`."""
        self._sum = {name: tensor.clone() for name, tensor in state["sum"].items()}
        self._steps = state["steps"]

    def kept(self) -> dict[str, Tensor]:
        """c_i⁺: the mean of the round's gradients; the former one where there was no step."""
        if not self._steps:
            return dict(self._site)
        return {name: tensor / self._steps for name, tensor in self._sum.items()}

    def keep(self, tensors: Mapping[str, Tensor]) -> None:
        """c_i, of the site's last round; nothing where it had none."""
        self._site = {name: tensors.get(name, tensor) for name, tensor in self._site.items()}


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    """Of all together, in double precision, which the squares of no float exceed."""
    norms = [torch.linalg.vector_norm(each, dtype=torch.float64) for each in tensors]
    whole: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return whole
