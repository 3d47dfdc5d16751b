"""Model-contrastive learning: see a case as the federation does, not as the site did before (MOON).

Li, He and Song 2021, "Model-contrastive federated learning" (arXiv 2103.16257), eq. 3–5. With z what the network sees
in an image, z_glob what the global network of the round does and z_prev what the site's own did at the end of its round
before, the loss gets

.. math::  -\\mu\\,\\log \\frac{e^{s(z, z_{glob})/\\tau}}{e^{s(z, z_{glob})/\\tau} + e^{s(z, z_{prev})/\\tau}}

with s the cosine of two vectors. The authors classify, and take what a projection head says. In a segmentation network
z is the mean of the bottleneck's features over the image, one vector for each of a batch; there is no further head.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, softplus

from wardround.client.learning.terms import Pass, Term, frozen_copy
from wardround.models.catalogue import Features

STAGE = "bottleneck"


def model_contrastive_loss(seen: Tensor, federation: Tensor, before: Tensor, temperature: float) -> Tensor:
    """The mean of the term above over a batch, without μ.

    Parameters
    ----------
    seen, federation, before
        z, z_glob and z_prev, ``[N, C]``.
    temperature
        τ.

    Returns
    -------
    Tensor
        A number from 0 up; log 2 where both are equally alike.
    """
    alike, unlike = cosine_similarity(seen, federation), cosine_similarity(seen, before)
    return softplus((unlike - alike) / temperature).mean()


class Moon(Term):
    """The term of one site; nothing in the site's first round.

    Parameters
    ----------
    network
        That learns; what it is at the end of the round is kept for the next.
    weight
        μ.
    temperature
        τ.
    """

    name = "moon"

    def __init__(self, network: nn.Module, weight: float, temperature: float) -> None:
        super().__init__()
        self._network = network
        self._weight, self._temperature = weight, temperature
        self._federation: nn.Module | None = None
        self._before: nn.Module | None = None

    @property
    def stages(self) -> tuple[str, ...]:
        """The deepest."""
        return (STAGE,)

    def __call__(self, seen: Pass) -> Tensor | float:
        """μ times the loss, where the site has a network of an earlier round."""
        if self._before is None or self._federation is None:
            return 0.0
        assert seen.features is not None
        own = _pooled(seen.features[STAGE])
        others = []
        for network in (self._federation, self._before):
            with torch.no_grad(), Features(network, STAGE) as features:
                with torch.autocast(seen.batch.image.device.type, enabled=seen.mixed):
                    network(seen.batch.image)
                others.append(_pooled(features[STAGE]))
        return self._weight * model_contrastive_loss(own, others[0], others[1], self._temperature)

    def loaded(self, network: nn.Module) -> None:
        """The global network of the round."""
        self._federation = frozen_copy(network)

    def kept(self) -> dict[str, Tensor]:
        """The network as it is."""
        return dict(self._network.state_dict())

    def keep(self, tensors: Mapping[str, Tensor]) -> None:
        """The site's network of its round before; none where it had none, or of another kind."""
        own = self._network.state_dict()
        if own.keys() == tensors.keys() and all(own[name].shape == tensors[name].shape for name in own):
            self._before = frozen_copy(self._network)
            self._before.load_state_dict(dict(tensors))


def _pooled(features: Tensor) -> Tensor:
    return features.float().flatten(2).mean(dim=2)
