"""Elastic weight consolidation: what mattered before is held, and nothing is before the first case."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from wardround.client.learning.batches import Batch
from wardround.client.learning.consolidation import Consolidation, fisher_information
from wardround.client.learning.learner import LearningSettings, OnlineLearner
from wardround.client.learning.replay import Sample
from wardround.client.learning.terms import Pass

CPU = torch.device("cpu")
SHAPE = (16, 16, 8)


def sample(seed: int) -> Sample:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=SHAPE).astype(np.float32)
    target = np.stack([image < 0, image >= 0]).astype(np.float16)
    return Sample(f"case {seed}", image, target, np.ones(SHAPE, np.float16))


def learner(strength: float, decay: float = 0.9) -> OnlineLearner:
    model = OnlineLearner(LearningSettings("unet3d-small", 2, 0, augmentation=None), CPU)
    model.attach(Consolidation(strength, decay, draws=2))
    return model


def term(model: OnlineLearner) -> Consolidation:
    found = model.terms[0]
    assert isinstance(found, Consolidation)
    return found


def train(model: OnlineLearner, case: int, updates: int = 2) -> float:
    return model.update(lambda: [sample(case)], updates, 4e-3, np.random.default_rng(case))


def one_batch(image: torch.Tensor) -> Callable[[], Batch]:
    inside = torch.ones_like(image[:, 0]).bool()
    target = torch.cat([torch.ones_like(image), torch.zeros_like(image)], dim=1)
    return lambda: Batch(image, target, inside.float(), inside, inside, ~inside, ((1.0, 1.0),))


def test_fisher_information_is_that_of_the_answers_and_not_of_the_labels() -> None:
    """One weight: p = σ(w x) for a single voxel, whose Fisher information is x² p (1 − p)."""
    network = nn.Conv2d(1, 2, 1, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([0.0, 0.7]).reshape(2, 1, 1, 1))
    found = fisher_information(network, one_batch(torch.full((1, 1, 1, 1), 2.0)), 4000, np.random.default_rng(0))
    p = 1 / (1 + np.exp(-1.4))
    # 4,000 labels of a coin with p = 0.80; with the label that is given (background) it would be 4 p² = 2.58.
    assert found["weight"][1].item() == pytest.approx(4 * p * (1 - p), rel=0.08)
    assert not found["weight"].requires_grad


def test_before_the_first_case_it_asks_for_nothing_and_then_for_nothing_at_the_anchor() -> None:
    plain, held = learner(0.0), learner(10.0)
    assert train(plain, 0) == train(held, 0)
    for model in (plain, held):
        model.accept_case(sample(0), np.random.default_rng(0))
    assert train(plain, 1, updates=1) == train(held, 1, updates=1)
    assert train(plain, 1, updates=1) < train(held, 1, updates=1)


def test_the_penalty_is_the_formula_and_the_case_counts_one() -> None:
    model = learner(3.0)
    train(model, 0)
    model.accept_case(sample(0), np.random.default_rng(0))
    anchor = model.weights()
    fisher = {name.removeprefix("fisher/"): array for name, array in term(model).kept().items() if "fisher/" in name}
    assert set(fisher) == {name for name, _ in model._network.named_parameters()}
    everything = torch.cat([array.flatten() for array in fisher.values()])
    assert everything.mean().item() == pytest.approx(1, rel=1e-4)
    assert everything.min() >= 0
    assert everything.max() > 5
    train(model, 1)
    expected = sum(
        float((array.numpy() * np.square(model.weights()[name] - anchor[name])).sum()) for name, array in fisher.items()
    )
    batch = model._assemble([sample(1)], np.random.default_rng(0), None)
    seen = Pass(model._network, torch.zeros(()), batch, None, False, np.random.default_rng(0))
    assert float(term(model)(seen)) == pytest.approx(1.5 * expected, rel=1e-4)


def test_what_mattered_fades_and_the_anchor_follows() -> None:
    model = learner(1.0, decay=0.25)
    for case in (0, 1):
        train(model, case)
        model.accept_case(sample(case), np.random.default_rng(case))
    kept = term(model).kept()
    everything = torch.cat([tensor.flatten() for name, tensor in kept.items() if name.startswith("fisher/")])
    assert everything.mean().item() == pytest.approx(1.25, rel=1e-4)
    assert all(
        np.array_equal(tensor.numpy(), model.weights()[name.removeprefix("anchor/")])
        for name, tensor in kept.items()
        if name.startswith("anchor/")
    )


def test_it_holds_what_mattered_nearer_to_where_it_was() -> None:
    moved = {}
    for strength in (0.0, 1.0):
        model = learner(strength)
        train(model, 0, 6)
        model.accept_case(sample(0), np.random.default_rng(0))
        anchor = model.weights()
        fisher = {name.removeprefix("fisher/"): array.numpy() for name, array in term(model).kept().items()}
        train(model, 1, 6)
        after = model.weights()
        moved[strength] = sum(float((fisher[name] * np.square(after[name] - anchor[name])).sum()) for name in after)
    assert moved[1.0] < 0.5 * moved[0.0]


def test_it_comes_back_by_checkpoint_and_by_file() -> None:
    one, other = learner(2.0), learner(2.0)
    train(one, 0)
    one.accept_case(sample(0), np.random.default_rng(0))
    train(one, 1)
    checkpoint = one.checkpoint()
    other.load(one.weights())
    other.load_local(one.local())
    other.load_optimiser_state(one.optimiser_state())
    after = train(one, 2)
    assert train(other, 2) == after
    one.accept_case(sample(2), np.random.default_rng(0))
    one.restore(checkpoint)
    assert train(one, 2) == after
