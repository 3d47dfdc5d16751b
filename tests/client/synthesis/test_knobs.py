"""Knobs: bounded, differentiable down to every strength, and turned by validation alone."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from wardround.client.synthesis.hypergradient import Hypergradient, HypergradientSettings, hypergradient
from wardround.client.synthesis.knobs import AUGMENTATION, SYNTHESIS, Knob, KnobAugmentation, Knobs, augment
from wardround.models.weights import load_weights, weights_of

SIDES = pytest.mark.parametrize("sides", [(20, 14), (10, 12, 8), (16, 16, 4)])
STRONG = {knob.name: torch.tensor(knob.high, dtype=torch.float64) for knob in AUGMENTATION}


def batch(sides: tuple[int, ...], count: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Smooth images, soft targets of three classes, and maps: of ones, of numbers 0, 1, 2."""
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(count, 1, *(max(side // 4, 2) for side in sides), generator=generator, dtype=torch.float64)
    image = F.interpolate(small, sides, mode="bilinear" if len(sides) == 2 else "trilinear")
    target = torch.softmax(2 * torch.randn(count, 3, *sides, generator=generator, dtype=torch.float64), 1)
    levels = torch.randint(0, 3, (count, 1, *sides), generator=generator).double()
    return image, target, torch.cat([torch.ones_like(image), levels], dim=1)


def only(**strengths: float) -> dict[str, Tensor]:
    """These strengths and no other."""
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in strengths.items()}


def test_knobs_start_where_they_should_and_never_leave_their_bounds() -> None:
    given = (*AUGMENTATION, *SYNTHESIS, Knob("lift", -3, -1, -2.5))
    knobs = Knobs(given)
    assert knobs.values() == pytest.approx({knob.name: knob.start for knob in given}, abs=1e-5)
    for far in (-1e4, 1e4):
        nn.init.constant_(knobs.position, far)
        for knob in given:
            assert knobs.values()[knob.name] == pytest.approx(knob.high if far > 0 else knob.low, abs=1e-5)


@pytest.mark.parametrize("start", [0.0, 1.0, -1.0, math.nan])
def test_a_knob_starts_between_its_bounds(start: float) -> None:
    with pytest.raises(ValueError, match="between its bounds"):
        Knob("share", 0, 1, start)


def test_knobs_have_names_of_their_own() -> None:
    for wrong in ((), (AUGMENTATION[0], AUGMENTATION[0])):
        with pytest.raises(ValueError, match="names of their own"):
            Knobs(wrong)


def test_the_average_of_two_sites_lies_between_them() -> None:
    sites, together = (Knobs(), Knobs()), Knobs()
    for site, towards in zip(sites, (-1.0, 3.0), strict=True):
        nn.init.constant_(site.position, towards)
    arrays = [weights_of(site) for site in sites]
    load_weights(together, {name: (arrays[0][name] + arrays[1][name]) / 2 for name in arrays[0]})
    for name, value in together.values().items():
        assert sites[0].values()[name] < value < sites[1].values()[name]


@SIDES
def test_without_strengths_nothing_changes(sides: tuple[int, ...]) -> None:
    given = batch(sides)
    for mine, theirs in zip(augment({}, *given, np.random.default_rng(0)), given, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-9)


@SIDES
def test_targets_stay_probabilities_and_maps_keep_their_values(sides: tuple[int, ...]) -> None:
    for seed in range(5):
        given = batch(sides)
        image, target, maps = augment(STRONG, *given, np.random.default_rng(seed))
        assert [part.shape for part in (image, target, maps)] == [part.shape for part in given]
        assert not torch.allclose(image, given[0], atol=0.1)
        assert torch.allclose(target.sum(1), torch.ones_like(target[:, 0]))
        assert target.min() > -1e-9
        assert set(maps[:, 1].unique().tolist()) <= {0.0, 1.0, 2.0}


def test_what_moves_in_from_outside_is_background_and_counts_nothing() -> None:
    image, target, weight = batch((20, 14))
    target[:, 1], target[:, [0, 2]] = 1, 0
    strengths = only(shift=0.8)
    _, found, counts = augment(strengths, image, target, weight, np.random.default_rng(0))
    gone = counts[:, 0] == 0
    assert gone.float().mean() > 0.2
    # Where nothing but outside was interpolated; at its edge a target is part background.
    inner = -F.max_pool2d(-gone[:, None].double(), 3, 1, 1)[:, 0] > 0
    assert torch.allclose(found[:, 0][inner], torch.ones(int(inner.sum())).double())
    assert torch.allclose(found[:, 1][~gone].max(), torch.ones(()).double())


def test_the_generator_decides_everything() -> None:
    def made(seed: int) -> Tensor:
        return augment(STRONG, *batch((20, 14)), np.random.default_rng(seed))[0]

    assert torch.equal(made(3), made(3))
    assert not torch.allclose(made(3), made(4), atol=0.1)


def test_what_is_drawn_does_not_depend_on_the_strengths() -> None:
    """Otherwise the difference of two losses would be noise, and knobs could not be compared."""
    image, target, weight = batch((20, 14))
    half = augment(only(brightness=0.4), image, target, weight, np.random.default_rng(0))[0] - image
    whole = augment(only(brightness=0.8), image, target, weight, np.random.default_rng(0))[0] - image
    assert torch.allclose(whole, 2 * half)


def test_a_disc_stays_a_disc_at_its_distance_whatever_the_sides() -> None:
    i, j = torch.meshgrid(torch.arange(24.0).double() - 11.5, torch.arange(64.0).double() - 31.5, indexing="ij")
    disc = torch.exp(-(i.square() + (j - 6).square()) / 8)[None, None].repeat(6, 1, 1, 1)
    target = torch.cat([1 - disc, disc], 1)
    turned = augment(only(rotation=45), disc, target, disc, np.random.default_rng(1))[0][:, 0]
    mass = turned.sum((1, 2))
    at = torch.stack([(turned * axis).sum((1, 2)) / mass for axis in (i, j)])
    assert torch.allclose(at.square().sum(0).sqrt(), torch.full((6,), 6.0).double(), atol=0.05)
    assert at[0].abs().max() > 3
    assert at[1].min() > 6 * math.cos(math.radians(45)) - 0.05
    for axis, centre in zip((i, j), at, strict=True):
        wide = (turned * (axis - centre[:, None, None]).square()).sum((1, 2)) / mass
        assert torch.allclose(wide, torch.full((6,), 4.0).double(), atol=0.5)


def test_thick_slices_are_turned_within_themselves() -> None:
    image = torch.arange(4.0).double().expand(2, 1, 16, 16, 4).clone() + 1
    turned = augment(only(rotation=45), image, image, image, np.random.default_rng(0))[0]
    inner = (slice(None), slice(None), slice(6, 10), slice(6, 10))
    assert torch.allclose(turned[inner], image[inner])
    cube = image.repeat_interleave(4, -1)
    turned = augment(only(rotation=45), cube, cube, cube, np.random.default_rng(0))[0]
    assert not torch.allclose(turned[inner], cube[inner], atol=0.5)


@SIDES
@pytest.mark.parametrize("name", [knob.name for knob in AUGMENTATION])
def test_every_strength_has_its_derivative(name: str, sides: tuple[int, ...]) -> None:
    given = batch(sides)

    def what(strength: Tensor) -> Tensor:
        image, target, _ = augment({name: strength}, *given, np.random.default_rng(0))
        return (image.square() * target[:, 1:2]).mean()

    start = torch.tensor(next(knob.start for knob in AUGMENTATION if knob.name == name)).double().requires_grad_()
    slope = torch.autograd.grad(what(start), start)[0].item()
    step = 1e-7 * start.item()
    measured = (what(start.detach() + step) - what(start.detach() - step)).item() / (2 * step)
    assert slope == pytest.approx(measured, rel=1e-3)
    assert slope != 0


def test_a_learner_augments_and_turns_no_knob() -> None:
    knobs = Knobs()
    image, target, weight = (part.float() for part in batch((20, 14)))
    found = KnobAugmentation(knobs)(image, target, weight, np.random.default_rng(0))
    assert not any(part.requires_grad for part in found)
    for mine, theirs in zip(found, augment(knobs(), image, target, weight, np.random.default_rng(0)), strict=True):
        assert torch.equal(mine, theirs.detach())


class World:
    """A segmenter in float64 that trains on augmented pairs with a weight, all of it as the knobs stand."""

    def __init__(self, seed: int = 0, swapped: bool = False) -> None:
        torch.manual_seed(seed)
        self.segmenter = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 3, padding=1)).double()
        self.knobs = Knobs().double()
        self.images, self.targets = [], []
        for _ in range(2):
            mask = F.interpolate((torch.rand(3, 1, 4, 4) < 0.5).double(), (16, 16), mode="bilinear")
            self.images.append(mask + 0.3 * torch.randn(3, 1, 16, 16).double())
            self.targets.append(torch.cat([1 - mask, mask], 1))
        self.made = self.targets[0].flip(1) if swapped else self.targets[0]
        self.draws = np.random.default_rng(seed)

    def synthetic(self, s: dict[str, Tensor], values: dict[str, Tensor], rng: np.random.Generator) -> Tensor:
        image, target, _ = augment(values, self.images[0], self.made, self.made, rng)
        found: Tensor = F.cross_entropy(functional_call(self.segmenter, s, (image,)), target)
        return values["synthetic_weight"] * found

    def validation(self, s: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(self.segmenter, s, (self.images[1],)), self.targets[1])

    def probed(self, rate: float = 0.5) -> Hypergradient:
        """What the knobs are told."""
        s = dict(self.segmenter.named_parameters())
        return hypergradient(
            None,
            lambda: self.synthetic(s, self.knobs(), self.draws),
            lambda: self.validation(s),
            None,
            segmenter=self.segmenter,
            generator=None,
            architecture=(self.knobs.position,),
            settings=HypergradientSettings(rate),
            generators=(self.draws,),
        )


@pytest.mark.parametrize("seed", range(3))
def test_the_same_hypergradient_turns_knobs(seed: int) -> None:
    world, rate = World(seed), 0.5
    s = dict(world.segmenter.named_parameters())
    loss = world.synthetic(s, world.knobs(), np.random.default_rng(seed))
    slope = torch.autograd.grad(loss, list(s.values()), create_graph=True)
    ahead = {name: one - rate * way for (name, one), way in zip(s.items(), slope, strict=True)}
    exact = torch.autograd.grad(world.validation(ahead), world.knobs.position)[0]
    found = world.probed(rate).total[0]
    assert F.cosine_similarity(found, exact, 0) > 0.999
    assert ((found - exact).norm() / exact.norm()).item() < 0.01
    named = dict(zip(world.knobs.values(), found.tolist(), strict=True))
    assert named.pop("style_scale") == 0
    assert all(named.values())


@pytest.mark.parametrize("swapped", [False, True])
def test_pairs_that_help_weigh_more_and_false_ones_less(swapped: bool) -> None:
    world = World(swapped=swapped)
    weights = [one.detach().clone() for one in world.segmenter.parameters()]
    for _ in range(15):
        with torch.no_grad():
            world.knobs.position -= 0.1 * world.probed().total[0].sign()
    weight = world.knobs.values()["synthetic_weight"]
    assert weight < 0.8 if swapped else weight > 1.2
    assert all(torch.equal(one, other) for one, other in zip(weights, world.segmenter.parameters(), strict=True))
