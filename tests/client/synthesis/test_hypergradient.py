"""The hypergradient: against full unrolled autograd, and everything left as it was found."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from wardround.client.synthesis.hypergradient import (
    Hypergradient,
    HypergradientSettings,
    Source,
    hypergradient,
)

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
        return ask(self, settings=settings)

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


DEFAULT = object()


def ask(
    world: World,
    *,
    training: Any = DEFAULT,
    synthetic: Any = DEFAULT,
    validation: Any = DEFAULT,
    generation: Any = DEFAULT,
    settings: HypergradientSettings = SETTINGS,
    generators: Sequence[Source] = (),
) -> Hypergradient:
    """Hypergradient in `world`, with losses of its own where none is given."""
    s, theta, a = world.weights()
    own = (
        lambda: world.training(s),
        lambda: world.synthetic(s, theta, a),
        lambda: world.validation(s),
        lambda: world.generation(theta, a),
    )
    given = (training, synthetic, validation, generation)
    return hypergradient(
        *(mine if loss is DEFAULT else loss for mine, loss in zip(own, given, strict=True)),
        segmenter=world.networks[0],
        generator=world.networks[1],
        architecture=(world.networks[1].architecture,),
        settings=settings,
        generators=generators,
    )


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


def test_a_shorter_probe_says_the_same() -> None:
    world = World()
    exact = world.unrolled()[1]
    errors = [
        agreement(world.probed(replace(SETTINGS, probe=probe)).total[0], exact)[1] for probe in (1e-1, 1e-2, 1e-3)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-4


def test_both_hops_need_images_that_lead_back() -> None:
    """As published, the code of GenSeg detaches them, and its architecture never moves."""
    with pytest.raises(ValueError, match="detached"):
        World(detached=True).probed()


def test_detached_only_from_the_weights_the_first_hop_is_nothing() -> None:
    """The architecture alone still acts on the images; what came through the generator's weights is gone, and seen."""
    world = World()
    s, theta, a = world.weights()
    fixed = {name: one.detach() for name, one in theta.items()}
    found = ask(world, synthetic=lambda: world.synthetic(s, fixed, a))
    assert found.hop == 0
    assert found.indirect[0].abs().max() == 0
    assert found.direct[0].abs().max() > 0


def test_it_answers_to_the_labels_of_validation() -> None:
    world = World()
    as_it_is = world.probed().total[0]
    world.masks[2] = 1 - world.masks[2]
    swapped = world.probed().total[0]
    assert F.cosine_similarity(as_it_is.flatten(), swapped.flatten(), 0) < 0.9
    assert not torch.allclose(as_it_is, swapped, rtol=0.1)


def test_without_weight_synthetic_pairs_tell_nothing() -> None:
    found = World().probed(replace(SETTINGS, gamma=0.0))
    assert found.hop == 0
    assert found.total[0].abs().max() == 0


def test_without_a_generator_loss_there_is_one_hop() -> None:
    world = World()
    found = ask(world, generation=None)
    assert found.hop == 0
    assert found.indirect[0].abs().max() == 0
    exact = world.unrolled(replace(SETTINGS, generator_rate=0))[1]
    assert agreement(found.total[0], exact)[1] < 0.01


def test_an_architecture_that_the_generator_is_not_trained_with_has_one_hop() -> None:
    """Such as a factor on its style."""
    world = World()
    _, theta, a = world.weights()
    found = ask(world, generation=lambda: world.generation(theta, a.detach()))
    assert found.hop > 0
    assert found.indirect[0].abs().max() == 0
    assert found.direct[0].abs().max() > 0


def test_validation_that_cannot_get_better_asks_for_nothing() -> None:
    world = World()
    s, _, _ = world.weights()
    found = ask(world, validation=lambda: 0 * world.validation(s))
    assert found.total[0].abs().max() == 0


def test_real_pairs_move_the_step_that_is_judged() -> None:
    world = World()
    with_them, without = world.probed(), ask(world, training=None)
    assert with_them.validation != without.validation
    assert not torch.allclose(with_them.total[0], without.total[0], rtol=1e-3)


def test_float32_is_enough() -> None:
    world = World()
    exact = world.unrolled()[1].float()
    for network in world.networks:
        network.float()
    world.masks, world.images = ([one.float() for one in part] for part in (world.masks, world.images))
    cosine, distance = agreement(world.probed().total[0], exact)
    assert cosine > 0.999
    assert distance < 0.01


class Wandering(nn.Module):
    """Whatever a probe could leave behind: running statistics, a dropout, a power iteration, a tensor of counts."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Conv2d(1, 4, 3, padding=1)),
            nn.BatchNorm2d(4),
            nn.Dropout(0.5),
            nn.Conv2d(4, 1, 1),
        )
        self.architecture = nn.Parameter(torch.ones(1))

    def forward(self, image: Tensor) -> Tensor:
        """Same shape."""
        found: Tensor = self.architecture * self.body(image) + image
        return found


def wandering_losses(
    segmenter: nn.Module, generator: nn.Module, judge: nn.Module, draws: tuple[np.random.Generator, torch.Generator]
) -> list[Callable[[], Tensor]]:
    """Four losses on one set of noise, drawn anew from both generators and from torch's own."""

    def noise() -> Tensor:
        found = torch.randn(4, 1, 6, 6, generator=draws[1]) + torch.randn(4, 1, 6, 6)
        return found + torch.from_numpy(draws[0].standard_normal((4, 1, 6, 6))).float()

    return [
        lambda: segmenter(noise()).square().mean(),
        lambda: (segmenter(generator(noise())) - noise()).square().mean(),
        lambda: (segmenter(noise()) - 1).square().mean(),
        lambda: (judge(generator(noise())) - noise()).square().mean(),
    ]


@pytest.mark.parametrize("failing", [None, 0, 1, 2, 3])
def test_everything_is_left_as_it_was_found(failing: int | None) -> None:
    torch.manual_seed(0)
    modules = [Wandering().train() for _ in range(3)]
    modules[2].body[2].eval()
    segmenter, generator, judge = modules
    draws = np.random.default_rng(0), torch.Generator().manual_seed(0)
    losses = wandering_losses(segmenter, generator, judge, draws)
    for one in (*segmenter.parameters(), *generator.parameters()):
        one.grad = torch.full_like(one, 7)
    calls = 0

    def breaks() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == (1 if failing in {0, 2} else 2):
            raise RuntimeError("out of memory")
        return whole()

    if failing is not None:
        whole, losses[failing] = losses[failing], breaks
    before = [(name, one.clone()) for module in modules for name, one in module.state_dict().items()]
    modes = [one.training for module in modules for one in module.modules()]
    randomness = torch.get_rng_state()

    def probed() -> Hypergradient:
        return hypergradient(
            *losses,
            segmenter=segmenter,
            generator=generator,
            architecture=[generator.architecture],
            settings=SETTINGS,
            bystanders=[judge],
            generators=draws,
        )

    if failing is None:
        assert probed().total[0].abs().max() > 0
    else:
        with pytest.raises(RuntimeError, match="out of memory"):
            probed()
    after = [(name, one) for module in modules for name, one in module.state_dict().items()]
    assert [name for name, _ in before] == [name for name, _ in after]
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(before, after, strict=True))
    assert modes == [one.training for module in modules for one in module.modules()]
    assert torch.equal(randomness, torch.get_rng_state())
    for one in (*segmenter.parameters(), *generator.parameters()):
        assert one.grad is not None
        assert (one.grad == 7).all()
    assert all(one.grad is None for one in judge.parameters())


def test_a_loss_that_is_asked_again_draws_the_same() -> None:
    """With noise from every source, it is the hypergradient of losses whose noise is fixed."""
    world = World()
    numbers, grain = np.random.default_rng(0), torch.Generator().manual_seed(1)
    s, theta, a = world.weights()

    def shaken(loss: Callable[[], Tensor], fixed: list[Tensor] | None = None) -> Callable[[], Tensor]:
        def shaking() -> Tensor:
            found = loss()
            drawn = torch.randn(3, dtype=torch.float64), torch.randn(3, generator=grain, dtype=torch.float64)
            by = [*drawn, torch.from_numpy(numbers.standard_normal(3))] if fixed is None else fixed
            return found * torch.cat(by).mean() + (a * by[0] * by[1]).sum() * sum(one.sum() for one in s.values())

        return shaking

    raw = [
        lambda: world.generation(theta, a) * s["0.weight"].detach().sum(),
        lambda: world.synthetic(s, theta, a),
        lambda: world.training(s),
        lambda: world.validation(s),
    ]
    torch.manual_seed(5)
    drawn = [
        [
            torch.randn(3, dtype=torch.float64),
            torch.randn(3, generator=grain, dtype=torch.float64),
            torch.from_numpy(numbers.standard_normal(3)),
        ]
        for _ in raw
    ]
    stood = numbers.bit_generator.state, grain.get_state()
    generation, synthetic, training, validation = (shaken(loss, fixed) for loss, fixed in zip(raw, drawn, strict=True))
    exact = ask(world, training=training, synthetic=synthetic, validation=validation, generation=generation)

    numbers.bit_generator.state = np.random.default_rng(0).bit_generator.state
    grain.manual_seed(1)
    torch.manual_seed(5)
    generation, synthetic, training, validation = (shaken(loss) for loss in raw)
    found = ask(
        world,
        training=training,
        synthetic=synthetic,
        validation=validation,
        generation=generation,
        generators=(numbers, grain),
    )
    assert torch.equal(found.total[0], exact.total[0])
    assert found.indirect[0].abs().max() > 0
    assert numbers.bit_generator.state == stood[0]
    assert torch.equal(grain.get_state(), stood[1])


def test_every_loss_finds_the_buffers_that_were_there() -> None:
    world = World()
    exact = world.probed().total[0]
    counted = world.networks[0]
    counted.register_buffer("asked", torch.ones((), dtype=torch.float64))
    s, theta, a = world.weights()

    def counting() -> Tensor:
        found = world.synthetic(s, theta, a) * counted.asked.clone()
        counted.asked.mul_(2)
        return found

    assert torch.equal(ask(world, synthetic=counting).total[0], exact)


def test_the_second_hop_is_taken_where_the_segmenter_was() -> None:
    """A loss of the generator may look at the segmenter."""
    world = World()
    s, theta, a = world.weights()

    def size() -> Tensor:
        return sum(one.detach().square().sum() for one in s.values()) + torch.zeros(())

    fixed = size()
    looking = ask(world, generation=lambda: size() * world.generation(theta, a))
    told = ask(world, generation=lambda: fixed * world.generation(theta, a))
    assert torch.equal(looking.indirect[0], told.indirect[0])


def test_what_is_frozen_is_no_weight() -> None:
    world = World()
    for one in world.networks[0][0].parameters():
        one.requires_grad_(False)
    s, theta, a = world.weights()
    loss = SETTINGS.gamma * world.synthetic(s, theta, a) + world.training(s)
    alive = [name for name, one in s.items() if one.requires_grad]
    slope = torch.autograd.grad(loss, [s[name] for name in alive], create_graph=True)
    ahead = dict(s) | {name: s[name] - SETTINGS.segmenter_rate * way for name, way in zip(alive, slope, strict=True)}
    exact = torch.autograd.grad(world.validation(ahead), a)[0]
    assert agreement(ask(world, generation=None).total[0], exact)[1] < 0.01


def test_there_must_be_something_to_judge_and_to_judge_by() -> None:
    world = World()
    network, generator = world.networks
    losses = (None, lambda: torch.zeros(()), lambda: torch.zeros(()), None)
    frozen = copy.deepcopy(network).requires_grad_(False)
    for judged, by in (((), network), ((generator.architecture,), frozen)):
        with pytest.raises(ValueError, match="no architecture to judge"):
            hypergradient(*losses, segmenter=by, generator=None, architecture=judged, settings=SETTINGS)


@pytest.mark.parametrize("wrong", [{"probe": 0.0}, {"segmenter_rate": 0.0}, {"generator_rate": -1.0}, {"gamma": -0.1}])
def test_steps_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="below 0"):
        replace(SETTINGS, **wrong)


def test_a_validation_loss_that_is_no_number_judges_nothing() -> None:
    world = World()
    world.images[2] *= float("nan")
    weights = [one.clone() for network in world.networks for one in network.parameters()]
    with pytest.raises(FloatingPointError, match="to probe along is not finite"):
        world.probed()
    after = [one for network in world.networks for one in network.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(weights, after, strict=True))


def test_images_that_are_no_numbers_for_the_architecture_are_no_gradient() -> None:
    world = World()
    s, theta, a = world.weights()
    with pytest.raises(FloatingPointError, match="hypergradient is not finite"):
        ask(world, synthetic=lambda: world.synthetic(s, theta, a) + (a - a).sqrt().sum())


def retrained(world: World, architecture: Tensor, steps: int) -> float:
    """Validation loss after so many steps of both networks from where they are, with another architecture."""
    s, theta, _ = world.weights()
    a = architecture
    for _ in range(steps):
        slope = torch.autograd.grad(world.generation(theta, a), list(theta.values()))
        theta = {
            name: (one - SETTINGS.generator_rate * way).detach().requires_grad_()
            for (name, one), way in zip(theta.items(), slope, strict=True)
        }
        loss = world.training(s) + SETTINGS.gamma * world.synthetic(s, theta, a)
        slope = torch.autograd.grad(loss, list(s.values()))
        s = {
            name: (one - SETTINGS.segmenter_rate * way).detach().requires_grad_()
            for (name, one), way in zip(s.items(), slope, strict=True)
        }
    return world.validation(s).item()


@pytest.mark.parametrize("steps", [1, 3])
def test_a_step_along_it_helps_more_often_than_one_at_random(steps: int) -> None:
    better, helped, trials = 0, 0, 24
    for seed in range(trials):
        world = World(seed)
        _, _, a = world.weights()
        way, chance = world.probed().total[0], torch.randn(1, 3, dtype=torch.float64)
        stays = retrained(world, a.detach(), steps)
        mine, theirs = (retrained(world, (a - 0.05 * by / by.norm()).detach(), steps) for by in (way, chance))
        better += mine < theirs
        helped += mine < stays
    assert better >= 19
    assert helped >= 19


def test_the_architecture_moves_and_validation_gets_better() -> None:
    world = World()
    architecture = world.networks[1].architecture
    start, losses = architecture.detach().clone(), []
    for _ in range(20):
        found = world.probed()
        losses.append(found.validation)
        with torch.no_grad():
            architecture -= 0.1 * found.total[0] / found.total[0].norm()
    assert (architecture - start).abs().max() > 0.1
    assert losses[-1] < losses[0]


def test_the_same_world_gives_the_same_bits() -> None:
    assert torch.equal(World(1).probed().total[0], World(1).probed().total[0])
