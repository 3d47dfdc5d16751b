"""What strategies ask of a site's learning, on a network of one weight, by hand; steps are plain gradient descent."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wardround.client.learning import apart
from wardround.client.learning.apart import Apfl, Ditto, usual_weights
from wardround.client.learning.batches import Batch
from wardround.client.learning.control import Control
from wardround.client.learning.moon import Moon, model_contrastive_loss
from wardround.client.learning.normalised import Normalised
from wardround.client.learning.schedule import head_steps
from wardround.client.learning.terms import Pass, Term
from wardround.errors import PlanError
from wardround.models.catalogue import Features, build
from wardround.models.weights import STEPS, weights_of
from wardround.strategies.plan import RoundPlan

RATE = 0.5


class One(nn.Module):
    """y = w · x."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([weight]))

    def forward(self, x: Tensor) -> Tensor:
        return self.w * x


def arrays(**values: float) -> dict[str, Any]:
    return {name.replace("__", "."): np.array([value], np.float32) for name, value in values.items()}


def descend(term: Term, network: One, gradients: list[float]) -> None:
    """Steps of plain gradient descent with gradients as given, corrected by the term."""
    for gradient in gradients:
        network.w.grad = torch.tensor([gradient])
        term.gradients(network, RATE)
        with torch.no_grad():
            network.w -= RATE * network.w.grad


def test_scaffold_at_a_site_by_hand() -> None:
    network = One(3.0)
    control = Control(network, ["w"])
    control.received(arrays(w=3.0, control__w=0.25))
    control.keep({"w": torch.tensor([1.25])})
    descend(control, network, [2.0, 4.0])
    # Each step takes g − c_i + c = g − 1: 3 − 0.5 · (1 + 3) = 1.
    assert network.w.item() == 1.0
    # Option II: c_i − c + (x − y) / (K · η) = 1.25 − 0.25 + (3 − 1) / (2 · 0.5) = 3, the mean of the gradients.
    assert control.kept()["w"].item() == 1.25 - 0.25 + (3.0 - 1.0) / (2 * RATE) == 3.0
    # c + (c_i⁺ − c_i) = 0.25 + 1.75, beside weights as they are.
    left = control.leaving(arrays(w=1.0))
    assert {name: array.item() for name, array in left.items()} == {"w": 1.0, "control.w": 2.0}


def test_a_site_that_takes_no_step_keeps_its_control_variate() -> None:
    network = One(3.0)
    control = Control(network, ["w"])
    control.received(arrays(control__w=0.25))
    control.keep({"w": torch.tensor([1.25])})
    assert control.kept()["w"].item() == 1.25
    assert control.leaving({})["control.w"].item() == 0.25
    # A step that mixed precision leaves out is none, and its gradient stays as it is.
    network.w.grad = torch.tensor([math.inf])
    control.gradients(network, RATE)
    assert network.w.grad.item() == math.inf
    assert control.kept()["w"].item() == 1.25


def test_control_variates_go_back_with_the_learner() -> None:
    network = One(0.0)
    control = Control(network, ["w"])
    descend(control, network, [1.0])
    state = control.state()
    for _ in range(2):
        descend(control, network, [7.0, 9.0])
        assert control.kept()["w"].item() != 1.0
        control.restore(state)
        assert control.kept()["w"].item() == 1.0


class Two(nn.Module):
    """Weights v and w."""

    def __init__(self) -> None:
        super().__init__()
        self.v, self.w = nn.Parameter(torch.tensor([0.0])), nn.Parameter(torch.tensor([0.0]))


@pytest.mark.parametrize("size", [1.0, 1e4, 1e30])
def test_a_correction_is_bounded_by_the_gradient(size: float) -> None:
    network = Two()
    control = Control(network, ["v", "w"])
    control.received(arrays(control__v=30.0 * size, control__w=40.0 * size))
    control.keep({"v": torch.tensor([0.0]), "w": torch.tensor([0.0])})
    network.v.grad, network.w.grad = torch.tensor([0.0]), torch.tensor([-2.0])
    control.gradients(network, RATE)
    # c − c_i is cut to four times 2 and keeps its direction: (0.6, 0.8) · 8.
    assert network.v.grad.item() == pytest.approx(4.8)
    assert network.w.grad.item() == pytest.approx(6.4 - 2)
    assert {name: tensor.item() for name, tensor in control.kept().items()} == {"v": 0.0, "w": -2.0}


def test_a_correction_beyond_what_floats_hold_is_bounded_as_well() -> None:
    network = One(0.0)
    control = Control(network, ["w"])
    control.received(arrays(control__w=3e38))
    control.keep({"w": torch.tensor([-3e38])})
    network.w.grad = torch.tensor([1.0])
    control.gradients(network, RATE)
    assert network.w.grad.item() == pytest.approx(5.0)


def test_a_gradient_of_zero_stays_as_it_is() -> None:
    network = One(0.0)
    control = Control(network, ["w"])
    for federation in (0.0, 5.0):
        control.received(arrays(control__w=federation))
        network.w.grad = torch.tensor([0.0])
        control.gradients(network, RATE)
        assert network.w.grad.item() == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_control_variates_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(PlanError, match="control variates cannot be used"):
        Control(One(0.0), ["w"]).received(arrays(control__w=value))


@pytest.mark.parametrize("given", [{}, {"control.w": np.zeros((2,), np.float32)}])
def test_control_variates_that_do_not_fit_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="control variates"):
        Control(One(0.0), ["w"]).received(given)


def test_fednova_at_a_site_by_hand() -> None:
    # R = 4 steps of 0.5 each; two whole steps and one of half the rate are 2.5.
    term = Normalised(4, RATE)
    network = One(1.0)
    term.received(arrays(w=1.0))
    for rate in (RATE, RATE, RATE / 2):
        term.gradients(network, rate)
    left = term.leaving(arrays(w=6.0))
    # 1 + (6 − 1) · 4 / 2.5
    assert left["w"].item() == pytest.approx(9.0)
    assert left[STEPS].item() == pytest.approx(2.5 / 4)
    state = term.state()
    term.gradients(network, RATE)
    term.restore(state)
    assert term.leaving(arrays(w=6.0))[STEPS].item() == pytest.approx(2.5 / 4)


def test_without_a_step_nothing_is_divided() -> None:
    term = Normalised(4, RATE)
    term.received(arrays(w=1.0))
    assert term.leaving(arrays(w=1.0))["w"].item() == 1.0


def test_moon_by_hand() -> None:
    seen, federation, before = (torch.tensor([row]) for row in ([1.0, 0.0], [0.6, 0.8], [0.0, 2.0]))
    # Cosines 0.6 and 0; τ = 0.5: −log(e^1.2 / (e^1.2 + 1)).
    expected = -math.log(math.exp(1.2) / (math.exp(1.2) + 1))
    assert model_contrastive_loss(seen, federation, before, 0.5).item() == pytest.approx(expected, rel=1e-6)
    assert model_contrastive_loss(seen, before, before, 0.5).item() == pytest.approx(math.log(2))


def batch(image: Tensor) -> Batch:
    """As little of a batch as the terms look at."""
    found = object.__new__(Batch)
    for name, value in {"image": image, "target": image, "weight": image, "factors": None}.items():
        object.__setattr__(found, name, value)
    return found


def test_moon_is_silent_until_a_site_has_a_past() -> None:
    network = build("unet2d-small", 2, 0)
    term = Moon(network, 2.0, 0.5)
    image = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    term.loaded(network)
    term.keep({})

    def said() -> Tensor | float:
        with Features(network, *term.stages) as features:
            logits = network(image)
        return term(Pass(network, logits, batch(image), features, False, np.random.default_rng(0)))

    assert said() == 0.0
    # A past that is the global network: both are alike, and log 2 is the most that can be said; times μ.
    term.keep(term.kept())
    assert torch.as_tensor(said()).item() == pytest.approx(2 * math.log(2), rel=1e-5)
    past = {name: tensor + 0.1 for name, tensor in network.state_dict().items()}
    term.keep(past)
    value = torch.as_tensor(said())
    assert value.item() < 2 * math.log(2)
    gradients = torch.autograd.grad(value, list(network.parameters()), allow_unused=True)
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)


@pytest.fixture
def squares(monkeypatch: pytest.MonkeyPatch) -> None:
    """F(w) = (w · x)² / 2, whose gradient is w at x = 1."""
    monkeypatch.setattr(apart, "segmentation_loss", lambda logits, *rest: 0.5 * logits.square().sum())


def once(term: Term, network: nn.Module) -> None:
    """One step of plain gradient descent of all that the term holds."""
    parameters = [each for each in term.own.parameters() if each.requires_grad]
    value = term(Pass(network, torch.zeros(1), batch(torch.ones(1)), None, False, np.random.default_rng(0)))
    gradients = torch.autograd.grad(torch.as_tensor(value), parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.sub_(RATE * gradient)


@pytest.mark.usefixtures("squares")
def test_ditto_by_hand() -> None:
    network = One(2.0)
    term = Ditto(network, weight=0.5, dice=1.0)
    term.loaded(network)
    own = term.own["network"]
    assert isinstance(own, One)
    assert own.w.item() == 2.0
    term.keep({"network.w": torch.tensor([6.0])})
    # v − η · (∇F(v) + λ · (v − w)) = 6 − 0.5 · (6 + 0.5 · (6 − 2)) = 2; the anchor stays where the round began.
    with torch.no_grad():
        network.w += 10
    once(term, network)
    assert own.w.item() == 2.0
    assert network.w.grad is None
    assert term.kept()["network.w"].item() == 2.0


@pytest.mark.usefixtures("squares")
@pytest.mark.parametrize("adaptive", [False, True])
def test_apfl_by_hand(adaptive: bool) -> None:
    network = One(2.0)
    term = Apfl(network, share=0.25, adaptive=adaptive, dice=1.0)
    term.loaded(network)
    term.keep({"network.w": torch.tensor([1.5])})
    once(term, network)
    kept = {name: tensor.item() for name, tensor in term.kept().items()}
    # v̄ = 0.25 · 1.5 + 0.75 · 2 = 1.875, which is ∇F(v̄) as well: v − η · α · ∇F and α − η · (v − w) · ∇F.
    assert kept["network.w"] == 1.5 - 0.5 * 0.25 * 1.875
    assert kept["mixture.alpha"] == (0.25 + 0.5 * 0.5 * 1.875 if adaptive else 0.25)
    assert network.w.grad is None


@pytest.mark.usefixtures("squares")
def test_apfls_share_stays_between_0_and_1() -> None:
    network = One(2.0)
    term = Apfl(network, share=0.25, adaptive=True, dice=1.0)
    term.loaded(network)
    term.keep({"network.w": torch.tensor([4.0])})
    once(term, network)  # α would be 0.25 − 0.5 · 2 · 2.5
    assert term.kept()["mixture.alpha"].item() == 0.0
    before = term.kept()["network.w"].item()
    once(term, network)
    assert term.kept()["network.w"].item() == before, "of a mixture without v nothing is learnt for v"


def plan(**fields: object) -> RoundPlan:
    usual = {"run": "r", "round": 1, "rounds": 2, "seed": 0, "model": "m", "labels": 2}
    return RoundPlan.model_validate({**usual, **fields})


def test_what_a_site_evaluates_with() -> None:
    given = arrays(w=2.0, control__w=9.0)
    ditto, apfl = plan(personal="ditto"), plan(personal="apfl", personal_share=0.5)
    assert usual_weights(plan(), given, arrays()) is given
    # Before its first round a site has nothing of its own.
    for asked in (ditto, apfl):
        assert usual_weights(asked, given, {}) == given
    assert usual_weights(ditto, given, {"ditto/network.w": arrays(w=4.0)["w"]}) == arrays(w=4.0, control__w=9.0)
    local = {"apfl/network.w": arrays(w=4.0)["w"], "apfl/mixture.alpha": np.array(0.25, np.float32)}
    assert usual_weights(apfl, given, local) == arrays(w=2.5, control__w=9.0)


@pytest.mark.parametrize(
    ("updates", "share", "first"), [(0, 0.5, 0), (1, 0.5, 0), (2, 0.5, 1), (5, 0.5, 3), (4, 0.9, 3), (4, 0.01, 1)]
)
def test_both_parts_learn_where_there_are_two_updates(updates: int, share: float, first: int) -> None:
    assert head_steps(updates, share) == first


def test_the_network_of_the_catalogue_can_be_kept_apart() -> None:
    network = build("unet2d-small", 2, 0)
    term = Apfl(network, 0.5, True, 1.0)
    term.loaded(network)
    assert {name.removeprefix("network.") for name in term.kept()} == {*weights_of(network), "mixture.alpha"}
