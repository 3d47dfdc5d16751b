"""Elastic weight consolidation: weights that mattered for the cases before stay near where they were.

Online EWC (Schwarz et al. 2018, arXiv 1805.06370, section 3.2; EWC itself is Kirkpatrick et al. 2017, arXiv
1612.00796): one running Fisher information and one anchor for all cases so far, so that its size does not grow with the
stream. It keeps no case and no image. Here it is a method to compare with, for streams of cases.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wardround.client.learning.batches import Batch
from wardround.client.learning.terms import Pass, Term


class Consolidation(Term):
    """``λ/2 Σ_i F_i (θ_i − θ*_i)²`` with θ* as of the last accepted case, and ``F ← γ F + F_case`` after each.

    Parameters
    ----------
    strength
        λ. The Fisher information of a case is divided by its mean over all weights, so that all cases count alike,
        as the authors do, and λ is that of :class:`~wardround.client.learning.learner.LearningSettings.proximal_mu`
        for a weight that matters as much as the mean.
    decay
        γ, 0 … 1: how much of what mattered before stays.
    draws
        Windows of a case, and labels drawn for each, by which its Fisher information is estimated.
    """

    name = "consolidation"

    def __init__(self, strength: float, decay: float = 0.95, draws: int = 8) -> None:
        super().__init__()
        self.strength, self.decay, self.draws = strength, decay, draws
        self._fisher: dict[str, Tensor] = {}
        self._anchor: dict[str, Tensor] = {}

    def __call__(self, seen: Pass) -> Tensor | float:
        """The penalty; 0 before the first case was accepted."""
        if not self._fisher:
            return 0.0
        parts = [
            (self._fisher[name] * (parameter - self._anchor[name]).square()).sum()
            for name, parameter in seen.network.named_parameters()
        ]
        return 0.5 * self.strength * torch.stack(parts).sum()

    def accepted(self, network: nn.Module, batches: Callable[[], Batch], rng: np.random.Generator) -> None:
        """Take in what mattered for a case, and move the anchor to the weights as they are."""
        fresh = fisher_information(network, batches, self.draws, rng)
        voxels = sum(tensor.numel() for tensor in fresh.values())
        mean = torch.stack([tensor.sum() for tensor in fresh.values()]).sum() / voxels
        scale = mean.clamp_min(torch.finfo(mean.dtype).tiny)
        self._fisher = {
            name: self.decay * self._fisher.get(name, torch.zeros_like(tensor)) + tensor / scale
            for name, tensor in fresh.items()
        }
        self._anchor = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}

    def state(self) -> Mapping[str, Any]:
        """Fisher information and anchor; they are replaced, never written to."""
        return {**super().state(), "fisher": self._fisher, "anchor": self._anchor}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to `state`."""
        super().restore(state)
        self._fisher, self._anchor = dict(state["fisher"]), dict(state["anchor"])

    def kept(self) -> dict[str, Tensor]:
        """Fisher information and anchor by the names of the weights."""
        parts = {"fisher": self._fisher, "anchor": self._anchor}
        return {f"{part}/{name}": tensor for part, named in parts.items() for name, tensor in named.items()}

    def keep(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`kept` returned."""
        parts: dict[str, dict[str, Tensor]] = {"fisher": {}, "anchor": {}}
        for full, tensor in tensors.items():
            part, name = full.split("/", 1)
            parts[part][name] = tensor
        self._fisher, self._anchor = parts["fisher"], parts["anchor"]


def fisher_information(
    network: nn.Module, batches: Callable[[], Batch], draws: int, rng: np.random.Generator
) -> dict[str, Tensor]:
    """The diagonal of the Fisher information, by the names of the weights, estimated on `draws` batches.

    Labels are drawn from what the network itself answers: with labels that are given it would be the empirical Fisher
    information, which is another thing. The squared gradient of the mean over a window's voxels has, voxels being drawn
    apart, the expectation of the mean squared gradient of a voxel over their number.

    Parameters
    ----------
    network
        Maps images to logits.
    batches
        Gives a batch of one window each time.
    draws
        At least 1.
    rng
        Draws labels.

    Returns
    -------
    dict
        A tensor of the shape of each parameter, at least 0, without gradient.
    """
    parameters = dict(network.named_parameters())
    found = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    for _ in range(draws):
        batch = batches()
        logits = network(batch.image).float()
        with torch.no_grad():
            reached = torch.softmax(logits, dim=1).cumsum(dim=1)
            level = torch.rand(logits[:, :1].shape, generator=generator).to(logits)
            labels = (reached[:, :-1] < level).sum(dim=1)
        inside = batch.inside.to(logits)
        missed = (F.cross_entropy(logits, labels, reduction="none") * inside).sum() / inside.sum().clamp_min(1)
        gradients = torch.autograd.grad(missed, list(parameters.values()), materialize_grads=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            found[name] += gradient.square() / draws
    return found
