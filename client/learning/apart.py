"""Networks that a site trains for itself beside the federation's, and then evaluates and draws with.

``ditto``
    Li, Hu, Beirami and Smith 2021, "Ditto: fair and robust federated learning through personalization" (arXiv
    2012.04221), algorithm 1: a network v of the site's own learns from the same batches, held near the global weights
    of the round: ``F(v) + λ/2 · ‖v − w_global‖²``.
``apfl``
    Deng, Kamani and Mahdavi 2020, "Adaptive personalized federated learning" (arXiv 2003.13461), algorithm 1: what is
    used is the mixture ``v̄ = α · v + (1 − α) · w``; v learns by the gradient of F at v̄, and so does α, if it is learnt
    (eq. 10): ``∂F/∂α = ⟨v − w, ∇F(v̄)⟩``. w is what the site sends; for evaluation, the global weights.

The network that travels learns as if there were no other, to the last bit; both papers have it so. v and α are moved by
the optimiser of the site, AdamW: with plain gradient descent in its place each step is the papers'. F is what was drawn
(:func:`~wardround.client.supervision.losses.segmentation_loss`) without further terms of the loss. v begins as the
global network of the site's first round, and is kept in its snapshot.
"""

from collections.abc import Mapping
from copy import deepcopy

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call

from wardround.client.learning.terms import Pass, Term
from wardround.client.supervision.losses import segmentation_loss
from wardround.strategies.contract import Weights
from wardround.strategies.plan import RoundPlan

NETWORK = "network"
_ALPHA = "mixture.alpha"


class Ditto(Term):
    """A network of the site's own, held near the global one.

    Parameters
    ----------
    network
        Of the federation.
    weight
        λ.
    dice
        Of the soft Dice term in the loss.
    """

    name = "ditto"
    apart = True

    def __init__(self, network: nn.Module, weight: float, dice: float) -> None:
        super().__init__()
        self._weight, self._dice = weight, dice
        self.own[NETWORK] = deepcopy(network)
        self._anchor: list[Tensor] = []

    def __call__(self, seen: Pass) -> Tensor:
        """F(v) and the pull towards the global weights."""
        network = self.own[NETWORK].train()
        with torch.autocast(seen.batch.image.device.type, enabled=seen.mixed):
            logits = network(seen.batch.image)
        loss = _loss(logits, seen, self._dice)
        pairs = zip(network.parameters(), self._anchor, strict=True)
        distance = torch.stack([(own - anchor).square().sum() for own, anchor in pairs]).sum()
        return loss + 0.5 * self._weight * distance

    def loaded(self, network: nn.Module) -> None:
        """The global network: an anchor, and where a site without a past begins."""
        self._anchor = [parameter.detach().clone() for parameter in network.parameters()]
        self.own[NETWORK].load_state_dict(network.state_dict())


class Mixture(nn.Module):
    """α, 0 … 1."""

    def __init__(self, share: float, adaptive: bool, device: torch.device) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(share, device=device), requires_grad=adaptive)


class Apfl(Term):
    """A mixture of the federation's network and one of the site's own.

    Parameters
    ----------
    network
        Of the federation.
    share
        α at first.
    adaptive
        Whether α is learnt.
    dice
        Of the soft Dice term in the loss.
    """

    name = "apfl"
    apart = True

    def __init__(self, network: nn.Module, share: float, adaptive: bool, dice: float) -> None:
        super().__init__()
        self._dice = dice
        self.own[NETWORK] = deepcopy(network)
        self.own["mixture"] = Mixture(share, adaptive, next(network.parameters()).device)

    def __call__(self, seen: Pass) -> Tensor:
        """F(v̄), whose gradient is that of v and α alone."""
        network, mixture = self.own[NETWORK].train(), self.own["mixture"]
        assert isinstance(mixture, Mixture)
        alpha = mixture.alpha
        with torch.no_grad():
            alpha.clamp_(0, 1)
        shared = {name: tensor.detach() for name, tensor in seen.network.named_parameters()}
        mixed = {name: alpha * own + (1 - alpha) * shared[name] for name, own in network.named_parameters()}
        with torch.autocast(seen.batch.image.device.type, enabled=seen.mixed):
            logits = functional_call(network, mixed, (seen.batch.image,))
        return _loss(logits, seen, self._dice)

    def loaded(self, network: nn.Module) -> None:
        """The global network, where a site without a past begins."""
        self.own[NETWORK].load_state_dict(network.state_dict())

    def kept(self) -> dict[str, Tensor]:
        """v, and α between 0 and 1."""
        found = super().kept()
        return found | {_ALPHA: found[_ALPHA].clamp(0, 1)}


def usual_weights(plan: RoundPlan, weights: Weights, local: Mapping[str, npt.NDArray[np.generic]]) -> Weights:
    """What a site evaluates and draws with.

    Parameters
    ----------
    plan
        Says what it trains for itself.
    weights
        Of the federation; arrays of a whole network, and what came beside them.
    local
        What the site kept; nothing of its own before its first round, and then these are the global weights.
    """
    if plan.personal == "none":
        return weights
    own = {name: local[f"{plan.personal}/{NETWORK}.{name}"] for name in weights if _is_kept(plan, name, local)}
    if plan.personal == "ditto":
        return {**weights, **own}
    alpha = float(local.get(f"apfl/{_ALPHA}", np.float32(plan.personal_share)))
    mixed = {
        name: np.asarray(alpha * array.astype(np.float64) + (1 - alpha) * weights[name], dtype=array.dtype)
        for name, array in own.items()
        if array.dtype.kind == "f"
    }
    return {**weights, **own, **mixed}


def _is_kept(plan: RoundPlan, name: str, local: Mapping[str, npt.NDArray[np.generic]]) -> bool:
    return f"{plan.personal}/{NETWORK}.{name}" in local


def _loss(logits: Tensor, seen: Pass, dice: float) -> Tensor:
    batch = seen.batch
    return segmentation_loss(logits.float(), batch.target, batch.weight, dice, batch.factors, batch.told)
