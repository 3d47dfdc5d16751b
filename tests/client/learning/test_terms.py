"""Further terms of the loss: what they see, what they hold, and that holding nothing changes nothing."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wardround.client.learning.learner import LearningSettings, OnlineLearner
from wardround.client.learning.normalised import Normalised
from wardround.client.learning.replay import Sample
from wardround.client.learning.terms import Pass, Term, frozen_copy
from wardround.models.catalogue import build
from wardround.models.weights import STEPS

CPU = torch.device("cpu")
SHAPE = (16, 16, 8)


def sample() -> Sample:
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    target = np.stack([image < 0, image >= 0]).astype(np.float16)
    return Sample("case", image, target, np.ones(SHAPE, np.float16))


def learner() -> OnlineLearner:
    return OnlineLearner(LearningSettings("unet3d-small", 2, 0, augmentation=None), CPU)


def train(model: OnlineLearner, updates: int = 1) -> float:
    return model.update(lambda: [sample()], updates, 1e-3, np.random.default_rng(0))


class Probe(Term):
    """Asks for stages, holds a weight of its own, and adds a constant."""

    name = "probe"

    def __init__(self) -> None:
        super().__init__()
        self.own["scale"] = nn.Linear(1, 1, bias=False)
        self.seen: list[Pass] = []

    @property
    def stages(self) -> tuple[str, ...]:
        return ("encoder.0", "decoder.0")

    def __call__(self, seen: Pass) -> Tensor:
        self.seen.append(seen)
        found: Tensor = self.own["scale"].weight.square().sum()
        return found + seen.rng.random()


def test_a_term_sees_features_and_what_went_into_a_stage() -> None:
    model, probe = learner(), Probe()
    model.attach(probe)
    first = build("unet3d-small", 2, 0)
    train(model)
    (seen,) = probe.seen
    assert seen.features is not None
    assert seen.logits.shape == seen.features["decoder.0"].shape == (1, 2, *SHAPE)
    assert seen.features.entered("decoder.0").shape == (1, 16, 8, 8, 4)
    assert torch.equal(seen.features.entered("encoder.0"), seen.batch.image)
    with torch.no_grad():
        assert torch.equal(seen.logits.detach(), first(seen.batch.image))


class Overflow(Probe):
    """Its own gradient is not finite in the first step; those of the network are."""

    def __call__(self, seen: Pass) -> Tensor:
        return super().__call__(seen) * (math.inf if len(self.seen) == 1 else 1.0)


def test_a_step_that_mixed_precision_leaves_out_is_no_step_for_terms() -> None:
    model = learner()
    steps = Normalised(1, 1e-3)
    model.attach(steps)
    model.attach(Overflow())
    model._scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    steps.received(model.weights())
    before = model.weights()
    train(model)
    assert all(np.array_equal(array, before[name]) for name, array in model.weights().items())
    assert model.leaving()[STEPS].item() == 0.0
    train(model, 2)
    assert model.leaving()[STEPS].item() == pytest.approx(2.0)


def test_a_term_adds_to_the_loss_and_draws_from_the_generator_of_the_update() -> None:
    plain, probed, probe = learner(), learner(), Probe()
    probed.attach(probe)
    weight = probe.own["scale"].weight.item()
    gain = weight**2 + np.random.default_rng(0).random()
    assert train(probed) - train(plain) == pytest.approx(gain, rel=1e-5)
    assert probe.own["scale"].weight.item() != weight
    found = probed.optimiser_state()
    assert "probe/scale.weight/exp_avg" in found
    assert {name for name in found if not name.startswith("probe/")} == set(plain.optimiser_state())


def test_what_says_nothing_changes_no_bit() -> None:
    plain, silent, gone = learner(), learner(), learner()
    silent.attach(Term())
    gone.attach(term := Term())
    gone.detach(term)
    losses = [train(model, 3) for model in (plain, silent, gone)]
    assert losses[0] == losses[1] == losses[2]
    for other in (silent, gone):
        assert all(np.array_equal(array, other.weights()[name]) for name, array in plain.weights().items())
        assert other.local() == {}


def test_what_holds_weights_cannot_be_detached_behind_the_optimisers_back() -> None:
    model, probe = learner(), Probe()
    model.attach(probe)
    with pytest.raises(AssertionError):
        model.detach(probe)


def test_a_checkpoint_and_a_sites_files_hold_the_weights_of_terms() -> None:
    one, other, probes = learner(), learner(), [Probe(), Probe()]
    for model, probe in zip((one, other), probes, strict=True):
        model.attach(probe)
    train(one, 2)
    checkpoint, weight = one.checkpoint(), probes[0].own["scale"].weight.item()
    other.load(one.weights())
    other.load_local(one.local())
    other.load_optimiser_state(one.optimiser_state())
    assert probes[1].own["scale"].weight.item() == weight
    after = train(one, 2)
    assert train(other, 2) == after
    for _ in range(2):
        one.restore(checkpoint)
        assert probes[0].own["scale"].weight.item() == weight
        assert train(one, 2) == after


def test_a_frozen_copy_learns_no_more_and_remembers_no_gradient() -> None:
    module = nn.Linear(2, 2)
    module(torch.ones(1, 2)).sum().backward()
    copy = frozen_copy(module)
    assert not copy.training
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in copy.parameters())
    assert module.weight.grad is not None
    with torch.no_grad():
        module.weight.zero_()
    assert not torch.equal(copy.weight, module.weight)  # type: ignore[arg-type]
