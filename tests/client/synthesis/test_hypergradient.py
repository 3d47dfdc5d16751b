"""The hypergradient: against full unrolled autograd, and everything left as it was found."""

from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from wardround.client.synthesis.hypergradient import Hypergradient, HypergradientSettings, hypergradient

Parameters = dict[str, Tensor]
SETTINGS = HypergradientSettings(segmenter_rate=0.3, generator_rate=0.2, gamma=0.7)


class Mixed(nn.Module):
    """A generator of one mixture of three convolutions, between two of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, 3, 3, padding=1)
        self.choices = nn.ModuleList([nn.Conv2d(3, 3, side, padding=side // 2) for side in (1, 3, 5)])
        self.leave = nn.Conv2d(3, 1, 1)
        self.architecture = nn.Parameter(torch.zeros(1, 3))

    def forward(self, mask: Tensor) -> Tensor:
        """Image of a mask, both ``[N, 1, I, J]``."""
        hidden = torch.tanh(self.enter(mask))
        share = torch.softmax(self.architecture[0], 0)
        hidden = sum(one * choice(hidden) for one, choice in zip(share, self.choices, strict=True))
        found: Tensor = self.leave(torch.tanh(hidden))
        return found


def segmenter() -> nn.Sequential:
    """Two convolutions to one logit."""
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 1, 3, padding=1))


@dataclass
class World:
    """Tiny networks in float64, and pairs of three kinds; all losses can be asked of other parameters too."""

    seed: int = 0
    detached: bool = False
    networks: tuple[nn.Module, Mixed] = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        generator = Mixed().double()
        nn.init.normal_(generator.architecture, std=0.5)
        self.networks = (segmenter().double(), generator)
        self.masks = [(torch.rand(2, 1, 6, 6, dtype=torch.float64) < 0.4).double() for _ in range(3)]
        self.images = [torch.randn(2, 1, 6, 6, dtype=torch.float64) + mask for mask in self.masks]

    def weights(self) -> tuple[Parameters, Parameters, Tensor]:
        """Parameters of segmenter and generator by name, and the architecture."""
        network, generator = self.networks
        theta = dict(generator.named_parameters())
        return dict(network.named_parameters()), theta, theta.pop("architecture")

    def training(self, s: Parameters) -> Tensor:
        return self._seen(s, self.images[0], self.masks[0])

    def synthetic(self, s: Parameters, theta: Parameters, a: Tensor) -> Tensor:
        made = functional_call(self.networks[1], {**theta, "architecture": a}, (self.masks[1],))
        return self._seen(s, made.detach() if self.detached else made, self.masks[1])

    def validation(self, s: Parameters) -> Tensor:
        return self._seen(s, self.images[2], self.masks[2])

    def generation(self, theta: Parameters, a: Tensor) -> Tensor:
        made = functional_call(self.networks[1], {**theta, "architecture": a}, (self.masks[0],))
        return F.mse_loss(made, self.images[0])

    def _seen(self, s: Parameters, image: Tensor, mask: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(functional_call(self.networks[0], s, (image,)), mask)

    def probed(self, settings: HypergradientSettings = SETTINGS) -> Hypergradient:
        """What is under test."""
        s, theta, a = self.weights()
        return hypergradient(
            lambda: self.training(s),
            lambda: self.synthetic(s, theta, a),
            lambda: self.validation(s),
            lambda: self.generation(theta, a),
            segmenter=self.networks[0],
            generator=self.networks[1],
            architecture=(self.networks[1].architecture,),
            settings=settings,
        )

    def unrolled(self, settings: HypergradientSettings = SETTINGS) -> tuple[Tensor, Tensor]:
        """Autograd through both steps: the part at fixed weights of the generator, and the whole."""
        s, theta, a = self.weights()
        slope = torch.autograd.grad(self.generation(theta, a), list(theta.values()), create_graph=True)
        stepped = {
            name: one - settings.generator_rate * way for (name, one), way in zip(theta.items(), slope, strict=True)
        }
        fixed = {name: one.detach().requires_grad_() for name, one in stepped.items()}
        found = []
        for there in (fixed, stepped):
            loss = self.training(s) + settings.gamma * self.synthetic(s, there, a)
            slope = torch.autograd.grad(loss, list(s.values()), create_graph=True)
            ahead = {
                name: one - settings.segmenter_rate * way for (name, one), way in zip(s.items(), slope, strict=True)
            }
            found.append(torch.autograd.grad(self.validation(ahead), a, retain_graph=True)[0])
        return found[0], found[1]


def agreement(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Cosine, and distance relative to `other`."""
    one, other = one.flatten(), other.flatten()
    return F.cosine_similarity(one, other, 0).item(), ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_derivative_through_both_steps(seed: int) -> None:
    world = World(seed)
    found, (direct, total) = world.probed(), world.unrolled()
    for mine, exact in ((found.direct[0], direct), (found.indirect[0], total - direct), (found.total[0], total)):
        cosine, distance = agreement(mine, exact)
        assert cosine > 0.999
        assert distance < 0.01
    assert found.hop > 0
