"""Further terms of a learner's loss: what they see of a pass through the network, and what they hold themselves."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from wardround.client.learning.batches import Batch
from wardround.models.catalogue import Features
from wardround.models.weights import Arrays


@dataclass(frozen=True, eq=False)
class Pass:
    """One pass of a batch through the network that learns.

    Parameters
    ----------
    network
        As it is before the step.
    logits
        ``[N, C, *spatial]``, float32.
    batch
        What went in, and what is known of it.
    features
        Of the stages that any term asked for; None where none did.
    mixed
        Whether the pass was made in mixed precision.
    rng
        Whatever a term draws comes from it.
    """

    network: nn.Module
    logits: Tensor
    batch: Batch
    features: Features | None
    mixed: bool
    rng: np.random.Generator


class Term:
    """A term of the loss. This one says nothing, and holds nothing; others override what they need.

    Attributes
    ----------
    name
        Under which the learner's files know what it holds; no two terms of a learner share one.
    own
        Modules that are trained along with the network and never federated.
    apart
        Whether these are networks of their own that learn beside the one of the federation: what such a term says is no
        part of the loss that is told, and its gradients are clipped by themselves, so that the network learns as if
        there were no such term.
    """

    name = "nothing"
    apart = False

    def __init__(self) -> None:
        self.own = nn.ModuleDict()

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages of the network, by :func:`~wardround.models.catalogue.feature_modules`, whose features it wants."""
        return ()

    def __call__(self, seen: Pass) -> Tensor | float:
        """What is added to the loss of one step."""
        return 0.0

    def received(self, weights: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Weights came, with all that travels beside them; `network` is about to take them over."""

    def loaded(self, network: nn.Module) -> None:
        """`network` has just taken over global weights."""

    def opened(self, network: nn.Module, learnt: bool) -> None:
        """A case is opened; `learnt` tells whether the site has learnt from any before."""

    def accepted(self, network: nn.Module, batches: Callable[[], Batch], rng: np.random.Generator) -> None:
        """A case is accepted; each call of `batches` cuts a window out of it, as it is."""

    def gradients(self, network: nn.Module, learning_rate: float) -> None:
        """The gradients of a step are there, not clipped yet, and may be corrected; `learning_rate` is the step's.

        Not called for a step that is not taken, as where mixed precision finds a gradient that is not finite.
        """

    def leaving(self, weights: Arrays) -> Arrays:
        """What leaves of a network's arrays after a round, and what travels beside them."""
        return weights

    def remarks(self) -> tuple[str, ...]:
        """What people at the site should know of the round so far; it holds no text of a patient."""
        return ()

    def state(self) -> Mapping[str, Any]:
        """Everything of it that an update or a case changes, to come back to by :meth:`restore`. Never written to."""
        return {"own": {name: tensor.detach().clone() for name, tensor in self.own.state_dict().items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to `state`, which can be restored again."""
        self.own.load_state_dict(state["own"])

    def kept(self) -> dict[str, Tensor]:
        """What a site keeps of it from one round to the next."""
        return dict(self.own.state_dict())

    def keep(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`kept` returned in an earlier round, whose plan may have asked for other modules."""
        known = self.own.state_dict()
        self.own.load_state_dict({name: tensors.get(name, tensor) for name, tensor in known.items()})


def frozen_copy(module: nn.Module) -> nn.Module:
    """A copy of `module` as it is now, in evaluation mode, that learns no more."""
    copy: nn.Module = deepcopy(module)
    copy.zero_grad(set_to_none=True)
    return copy.eval().requires_grad_(False)
