"""Contrast of new and old features against loops over twenty voxels, and what happens at its limits."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wardround.client.supervision import contrastive
from wardround.client.supervision.contrastive import UNKNOWN, ContrastSettings, contrastive_loss, labels_on_grid
from wardround.errors import UsageError

Example = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]

PLAIN = ContrastSettings()


def example(seed: int = 0) -> Example:
    """Features of both networks, labels of three classes, the old network's view of them, and weights with a hole."""
    generator = torch.Generator().manual_seed(seed)
    new, old = (torch.randn(2, 6, 2, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(3, (2, 2, 5), generator=generator)
    belief = torch.randn((2, 3, 2, 5), generator=generator, dtype=torch.float64) + 2 * one_hot(labels, 3)
    weight = torch.ones(2, 2, 5, dtype=torch.float64)
    weight.flatten()[[3, 11]] = 0
    return new.requires_grad_(), old.requires_grad_(), one_hot(labels, 3), torch.softmax(belief, 1), weight


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return torch.movedim(F.one_hot(labels, classes), -1, 1).double()


def loss_of(parts: Example, settings: ContrastSettings = PLAIN, seed: int = 0) -> Tensor:
    return contrastive_loss(*parts, settings, np.random.default_rng(seed))


def by_loops(parts: Example, temperature: float, edges: bool) -> Tensor:
    """The definition word by word; voxels are (case, row, column)."""
    new, old, target, belief, weight = parts
    count, _, rows, columns = new.shape
    label = {v: int(target[v[0], :, v[1], v[2]].argmax()) for v in np.ndindex(count, rows, columns) if weight[v] > 0}
    if edges:
        steps = ((0, 1), (0, -1), (1, 0), (-1, 0))
        label = {
            (n, i, j): own
            for (n, i, j), own in label.items()
            if any(label.get((n, i + a, j + b), own) != own for a, b in steps)
        }

    def feature(of: Tensor, v: tuple[int, int, int]) -> Tensor:
        vector = of[v[0], :, v[1], v[2]]
        return vector / vector.square().sum().sqrt()

    losses = []
    for anchor, structure in label.items():
        if structure == 0:
            continue
        positives, against = [], []
        for v, own in label.items():
            s = (feature(new, anchor) * feature(new, v).detach()).sum() / temperature
            if own == structure and v != anchor:
                positives.append((s, 1.0))
            elif own != structure:
                against.append(s)
            s = (feature(new, anchor) * feature(old, v).detach()).sum() / temperature
            p = belief[v[0], :, v[1], v[2]].tolist()
            if own == structure and p.index(max(p)) == structure:
                positives.append((s, sum(q * q for q in p)))
            else:
                against.append(s)
        if positives:
            others = sum((torch.exp(s) for s in against), torch.zeros((), dtype=torch.float64))
            terms = [c * (s - torch.log(torch.exp(s) + others)) for s, c in positives]
            losses.append(-sum(terms, torch.zeros((), dtype=torch.float64)) / len(positives))
    return sum(losses, torch.zeros((), dtype=torch.float64)) / len(losses)


@pytest.mark.parametrize("edges", [False, True])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss_and_gradient_equal_loops_over_twenty_voxels(seed: int, temperature: float, edges: bool) -> None:
    parts = example(seed)
    if edges:
        # Larger patches, so that some voxels are inside.
        patches = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 1, 1, 1]])
        parts = (*parts[:2], one_hot(torch.stack([patches, patches.flip(1)]), 3), *parts[3:])
    ours = loss_of(parts, ContrastSettings(temperature=temperature, edges=edges))
    expected = by_loops(parts, temperature, edges)
    assert expected.item() > 0
    assert math.isclose(ours.item(), expected.item(), rel_tol=1e-7)
    found, wanted = (torch.autograd.grad(value, parts[0])[0] for value in (ours, expected))
    assert torch.allclose(found, wanted, atol=1e-9)


def test_anchors_with_one_positive_count_and_those_without_do_not() -> None:
    new, old, _, _, weight = example()
    labels = torch.tensor([[[0, 0, 2, 2, 0], [3, 0, 0, 0, 0]], [[0, 1, 1, 1, 0], [0, 1, 1, 0, 0]]])
    target = one_hot(labels, 4)
    missed = one_hot(labels * (labels == 1), 4)
    for seen in (target, missed):
        belief = 0.8 * seen + 0.05
        ours, expected = (
            loss_of((new, old, target, belief, torch.ones_like(weight))),
            by_loops((new, old, target, belief, torch.ones_like(weight)), 1.0, False),
        )
        assert math.isclose(ours.item(), expected.item(), rel_tol=1e-7)


def test_the_gradient_flows_through_anchors_alone() -> None:
    new, old, target, belief, weight = example()
    loss_of((new, old, target, belief, weight)).backward()
    assert new.grad is not None
    assert old.grad is None
    anchors = (target.argmax(1) > 0) & (weight > 0)
    moved = (new.grad != 0).any(dim=1)
    assert torch.equal(moved, anchors)


def test_of_a_coarser_grid_only_what_is_wholly_inside_is_a_structure() -> None:
    labels = torch.tensor([[1, 1, 1, 2], [1, 1, 1, 2], [2, 2, 0, 0], [2, 2, 0, 1]])[None]
    weight = torch.ones(1, 4, 4)
    assert labels_on_grid(one_hot(labels, 3), weight, (2, 2)).tolist() == [[[1, 0], [2, 0]]]
    weight[0, 3, 0] = 0
    assert labels_on_grid(one_hot(labels, 3), weight, (2, 2)).tolist() == [[[1, 0], [UNKNOWN, 0]]]
    soft = 0.6 * one_hot(labels, 3) + 0.4 / 3
    assert labels_on_grid(soft, weight, (2, 2)).tolist() == [[[1, 0], [UNKNOWN, 0]]]


def test_labels_and_probabilities_are_brought_to_the_grid_of_the_features() -> None:
    generator = torch.Generator().manual_seed(5)
    new, old = (torch.randn(1, 6, 2, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    coarse = torch.tensor([0, 1, 1, 2, 0, 2, 1, 1]).reshape(1, 2, 2, 2)
    labels = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    belief = torch.softmax(torch.randn(1, 3, 4, 4, 4, generator=generator).double() + 2 * one_hot(labels, 3), 1)
    fine = loss_of((new, old, one_hot(labels, 3), belief, torch.ones(1, 4, 4, 4)))
    means = belief.reshape(1, 3, 2, 2, 2, 2, 2, 2).mean((3, 5, 7))
    assert math.isclose(
        fine.item(), loss_of((new, old, one_hot(coarse, 3), means, torch.ones(1, 2, 2, 2))).item(), rel_tol=1e-9
    )


@pytest.mark.parametrize("why", ["background", "unknown", "alone"])
def test_without_positives_the_loss_is_zero_with_a_gradient_of_zero(why: str) -> None:
    new, old, target, belief, weight = example()
    labels = torch.zeros_like(target.argmax(1))
    if why == "unknown":
        labels, weight = target.argmax(1), torch.zeros_like(weight)
    if why == "alone":
        labels[0, 0, 0] = 1
        belief = one_hot(torch.zeros_like(labels), 3)
    loss = loss_of((new, old, one_hot(labels, 3), belief, weight))
    loss.backward()
    assert loss.item() == 0
    assert new.grad is not None
    assert (new.grad == 0).all()


def test_without_negatives_there_is_nothing_to_contrast() -> None:
    new, old, target, _, weight = example()
    everywhere = one_hot(torch.ones_like(target.argmax(1)), 3)
    loss = loss_of((new, old, everywhere, everywhere, weight))
    loss.backward()
    assert loss.item() == 0
    assert new.grad is not None
    assert (new.grad == 0).all()


def test_features_of_no_length_give_no_nan() -> None:
    new, *rest = example()
    silent = torch.zeros_like(new).requires_grad_()
    loss_of((silent, *rest)).backward()  # type: ignore[arg-type]
    assert silent.grad is not None
    assert torch.isfinite(silent.grad).all()


def test_certainty_of_the_old_network_weighs_old_positives_only() -> None:
    new, old, target, _, weight = example()
    sure = target
    unsure = 0.4 * target + 0.2
    losses = [loss_of((new, old, target, belief, weight)).item() for belief in (sure, unsure)]
    # 0.6² + 2 · 0.2² = 0.44 of old positives, all of new ones.
    assert 0.44 * losses[0] < losses[1] < losses[0]


def test_limits_that_are_not_met_change_nothing_and_draw_nothing() -> None:
    parts, rng = example(), np.random.default_rng(3)
    untouched = rng.bit_generator.state
    exact = contrastive_loss(*parts, ContrastSettings(anchors=20, contrasts=40), rng)
    assert rng.bit_generator.state == untouched
    assert exact.item() == loss_of(parts).item()


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    parts, few = example(), ContrastSettings(anchors=5, contrasts=12)
    assert loss_of(parts, few, 1).item() == loss_of(parts, few, 1).item()
    assert len({loss_of(parts, few, seed).item() for seed in range(6)}) > 1


@pytest.mark.parametrize(("limit", "negatives"), [(100, 80), (48, 28), (16, 8), (4000, 1980)])
def test_what_is_compared_is_drawn_evenly_over_its_kinds(limit: int, negatives: int) -> None:
    """Ten of a thousand voxels are a structure. Where all alike are equal and all others opposite, the loss counts."""
    labels = torch.zeros(1, 1000, dtype=torch.long)
    labels[0, :10] = 1
    axis = torch.zeros(1, 4, 1000, dtype=torch.float64)
    axis[0, 0] = torch.where(labels[0] == 1, 1.0, -1.0)
    target = one_hot(labels, 2)
    loss = loss_of((axis, axis, target, target, torch.ones(1, 1000)), ContrastSettings(contrasts=limit))
    assert math.isclose((math.exp(loss.item()) - 1) * math.exp(2), negatives, rel_tol=1e-6)


def test_anchors_are_drawn_evenly_over_structures() -> None:
    labels = torch.zeros(1, 300, dtype=torch.long)
    labels[0, :200], labels[0, 200:212] = 1, 2
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 4, 300, generator=generator, dtype=torch.float64).requires_grad_()
    target = one_hot(labels, 3)
    loss_of((features, features.detach(), target, target, torch.ones(1, 300)), ContrastSettings(anchors=20)).backward()
    assert features.grad is not None
    moved = (features.grad[0] != 0).any(dim=0)
    assert [int(moved[labels[0] == kind].sum()) for kind in range(3)] == [0, 10, 10]


@pytest.mark.parametrize("pairs", [1, 100])
def test_in_chunks_it_is_the_same(monkeypatch: pytest.MonkeyPatch, pairs: int) -> None:
    parts = example()
    whole = loss_of(parts)
    gradient = torch.autograd.grad(whole, parts[0])[0]
    monkeypatch.setattr(contrastive, "PAIRS", pairs)
    chunked = loss_of(parts)
    assert math.isclose(chunked.item(), whole.item(), rel_tol=1e-12)
    assert torch.allclose(torch.autograd.grad(chunked, parts[0])[0], gradient, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(half: torch.dtype) -> None:
    new, old, target, belief, weight = example()
    rough = new.detach().to(half).requires_grad_()
    parts = (rough, old.detach().to(half), target.to(half), belief.float(), weight)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(parts, ContrastSettings(0.05))
    loss.backward()
    assert loss.item() == loss_of(parts, ContrastSettings(0.05)).item()
    assert math.isclose(loss.item(), loss_of((new, *example()[1:]), ContrastSettings(0.05)).item(), rel_tol=2e-2)
    assert rough.grad is not None
    assert torch.isfinite(rough.grad).all()


def test_learning_brings_a_structure_together_and_away_from_the_rest() -> None:
    new, old, target, belief, weight = example()
    structure = (target.argmax(1) == 1) & (weight > 0)
    others = (target.argmax(1) != 1) & (weight > 0)

    def gap() -> float:
        unit = F.normalize(torch.movedim(new.detach(), 1, -1), dim=-1)
        mine = unit[structure]
        return float((mine @ mine.T).mean() - (mine @ unit[others].T).mean())

    before = gap()
    optimiser = torch.optim.SGD([new], lr=1.0)
    for _ in range(30):
        optimiser.zero_grad()
        loss_of((new, old, target, belief, weight), ContrastSettings(0.5)).backward()
        optimiser.step()
    assert gap() > before + 0.3


@pytest.mark.parametrize("place", range(5))
def test_shapes_that_do_not_fit_are_refused(place: int) -> None:
    parts = list(example())
    parts[place] = parts[place][..., :-1]
    with pytest.raises(UsageError, match="do not fit"):
        loss_of(tuple(parts))  # type: ignore[arg-type]
