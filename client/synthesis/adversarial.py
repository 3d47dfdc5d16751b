"""Adversarial training of a generator from labels and of the discriminator beside it.

pix2pix (Isola et al. 2017, arXiv 1611.07004): the discriminator tells real from made images, patch by patch, beside
their mask; the generator fools it, and stays close to the real image of its mask::

    L_gen(θ) = L_adversarial(H(M, G(M; θ)), real) + l1 · mean |G(M; θ) − I|

A step whose gradient is not finite is left out, and the log says so: one of them would end a network.
"""

import logging
from typing import Literal

import torch
import torch.nn.functional as F
from monai.losses import PatchAdversarialLoss
from torch import Tensor

from wardround.models.searched import SearchedGenerator, SearchedSettings, discriminator

Adversarial = Literal["bce", "least_squares", "hinge"]
"""MONAI's names of adversarial losses; cross-entropy is pix2pix's."""

# pix2pix's moments of Adam.
BETAS = (0.5, 0.999)

log = logging.getLogger(__name__)


class Adversaries:
    """A generator, its discriminator, and an optimiser for the weights of each.

    Parameters
    ----------
    network
        Sizes of both.
    seed
        Fixes their weights.
    device
        Where they are.
    l1
        Weight of the mean absolute difference to the real image.
    adversarial
        Which adversarial loss.
    """

    def __init__(
        self, network: SearchedSettings, seed: int, device: torch.device, l1: float, adversarial: Adversarial
    ) -> None:
        self.generator = SearchedGenerator(network, seed).to(device)
        self.discriminator = discriminator(network, seed).to(device)
        self.optimisers = {
            "generator": torch.optim.Adam(self.generator.weights(), betas=BETAS),
            "critic": torch.optim.Adam(self.discriminator.parameters(), betas=BETAS),
        }
        self._l1 = l1
        self._adversarial = PatchAdversarialLoss(criterion=adversarial, no_activation_leastsq=True)

    def step(self, images: Tensor, masks: Tensor, rate: float) -> tuple[float, float]:
        """One step of the discriminator, then one of the generator's weights; the architecture stays.

        Parameters
        ----------
        images
            ``[N, 1, *spatial]``, real ones.
        masks
            ``[N, labels, *spatial]``, one-hot.
        rate
            Of Adam, for both.

        Returns
        -------
        tuple of float
            Losses of generator and discriminator before their steps.
        """
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = rate
        made = self.generator(masks)
        real, fake = (self.verdict(masks, one) for one in (images, made.detach()))
        telling = 0.5 * (
            self._adversarial(real, target_is_real=True, for_discriminator=True)
            + self._adversarial(fake, target_is_real=False, for_discriminator=True)
        )
        _step(self.optimisers["critic"], telling)
        fooling = self.distance(made, images, masks)
        _step(self.optimisers["generator"], fooling)
        return fooling.item(), telling.item()

    def loss(self, images: Tensor, masks: Tensor) -> Tensor:
        """L_gen of the generator as it stands, a scalar; shapes as of :meth:`step`."""
        return self.distance(self.generator(masks), images, masks)

    def distance(self, made: Tensor, images: Tensor, masks: Tensor) -> Tensor:
        """L_gen of images that are made already, ``[N, 1, *spatial]``."""
        fooled: Tensor = self._adversarial(self.verdict(masks, made), target_is_real=True, for_discriminator=False)
        return fooled + self._l1 * F.l1_loss(made, images)

    def verdict(self, masks: Tensor, images: Tensor) -> Tensor:
        """A logit for each patch, higher where it is taken for real."""
        verdict: Tensor = self.discriminator(torch.cat([masks, images], dim=1))[-1]
        return verdict


def _step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """A step that leaves gradients of no other network behind, and is none where a gradient is not finite."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    gradients = torch.autograd.grad(loss, parameters)
    if not all(bool(gradient.isfinite().all()) for gradient in gradients):
        log.warning("a step of a generator was left out: a gradient is not finite")
        return
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
