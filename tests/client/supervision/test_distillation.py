"""Learning from another network: who gets gradients, and how large they are."""

import math

import pytest
import torch
from torch import Tensor, nn

from wardround.client.supervision.distillation import (
    certain_distillation,
    certainty,
    hard_targets,
    logit_loss,
    soft_targets,
)
from wardround.client.supervision.losses import segmentation_loss


def logits(seed: int, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(2, 3, 2, 3, generator=generator, dtype=torch.float64)).requires_grad_()


def test_soft_targets_equal_a_loop_over_voxels() -> None:
    student, teacher = logits(0), logits(1)
    weight = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    divergence = []
    for n in range(2):
        for i in range(2):
            for j in range(3):
                own, goal = (torch.softmax(part[n, :, i, j] / 4, 0).tolist() for part in (student, teacher))
                divergence.append(sum(g * math.log(g / o) for g, o in zip(goal, own, strict=True)))
    assert math.isclose(soft_targets(student, teacher).item(), 16 * sum(divergence) / 12, rel_tol=1e-9)
    weighted = sum(w * d for w, d in zip(weight.flatten().tolist(), divergence, strict=True)) / weight.sum().item()
    assert math.isclose(soft_targets(student, teacher, weight=weight).item(), 16 * weighted, rel_tol=1e-9)


@pytest.mark.parametrize("loss", [hard_targets, soft_targets, certain_distillation])
def test_the_teacher_gets_no_gradient_and_the_student_does(loss: object) -> None:
    student, teacher = logits(0), logits(1)
    loss(student, teacher).backward()  # type: ignore[operator]
    assert teacher.grad is None
    assert student.grad is not None
    assert (student.grad != 0).any()


def test_gradients_are_of_one_size_at_all_temperatures() -> None:
    """Where logits are small against T, the gradient tends to (student − teacher) / C, whatever T."""
    student, teacher = logits(0, 0.05), logits(1, 0.05)
    sizes = [
        torch.autograd.grad(soft_targets(student, teacher, temperature), student)[0].norm().item()
        for temperature in (1.0, 4.0, 16.0)
    ]
    assert max(sizes) < 1.05 * min(sizes)


def test_a_student_that_says_the_same_has_nothing_to_learn() -> None:
    student = logits(0)
    loss = soft_targets(student, student.detach().clone())
    loss.backward()
    assert abs(loss.item()) < 1e-12
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


def test_hard_targets_are_the_teachers_most_probable_labels() -> None:
    student, teacher = logits(0), logits(1)
    target = nn.functional.one_hot(teacher.argmax(1), 3).movedim(-1, 1).to(student)
    weight = torch.ones(2, 2, 3, dtype=torch.float64)
    assert hard_targets(student, teacher).item() == segmentation_loss(student, target, weight).item()
    weight[0] = 0
    assert hard_targets(student, teacher, weight).item() == segmentation_loss(student, target, weight).item()


def test_without_the_other_network_the_first_learns_something_else() -> None:
    """L_1 = (1 − w) self + w cross: the second network changes the loss and the gradient of the first."""
    image = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, other = nn.Conv2d(1, 3, 3, padding=1), nn.Sequential(nn.Conv2d(1, 5, 1), nn.Conv2d(5, 3, 3, padding=1))

    def gradient(w: float) -> Tensor:
        seen = first(image)
        loss = (1 - w) * hard_targets(seen, first(image)) + w * soft_targets(seen, other(image))
        return torch.autograd.grad(loss, first.weight)[0]

    assert not torch.allclose(gradient(0.5), gradient(0.0) / 2)
    assert all(parameter.grad is None for parameter in other.parameters())


def test_certainty_is_one_half_at_a_half_and_one_at_nought_and_one() -> None:
    foreground = torch.tensor([0.0, 0.5, 0.8, 1.0])
    sure = certainty(torch.stack([1 - foreground, foreground])[None])
    assert torch.allclose(sure, torch.tensor([[1.0, 0.5, 0.68, 1.0]]))
    assert math.isclose(certainty(torch.full((1, 4, 1), 0.25)).item(), 0.25)


@pytest.mark.parametrize("certain", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_certain_distillation_equals_a_loop_over_voxels(temperature: float, certain: bool) -> None:
    student, teacher = logits(0), logits(1)
    weight = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    losses = []
    for n in range(2):
        for i in range(2):
            for j in range(3):
                said = [math.exp(z) for z in teacher[n, :, i, j].tolist()]
                sure = sum((s / sum(said)) ** 2 for s in said) if certain else 1.0
                goal = [s ** (1 / temperature) for s in said]
                own = [math.exp(z / temperature) for z in student[n, :, i, j].tolist()]
                losses.append(
                    -sure * sum(g / sum(goal) * math.log(o / sum(own)) for g, o in zip(goal, own, strict=True))
                )
    loss = certain_distillation(student, teacher, temperature, certain)
    assert math.isclose(loss.item(), sum(losses) / 12, rel_tol=1e-9)
    weighted = sum(w * value for w, value in zip(weight.flatten().tolist(), losses, strict=True)) / weight.sum().item()
    loss = certain_distillation(student, teacher, temperature, certain, weight)
    assert math.isclose(loss.item(), weighted, rel_tol=1e-9)


def test_voxels_that_the_teacher_is_unsure_of_pull_less() -> None:
    student = torch.zeros(1, 2, 2, dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[[0.5, 4.0], [-0.5, -4.0]]], dtype=torch.float64)
    pulls = [
        torch.autograd.grad(certain_distillation(student, teacher, certain=certain), student)[0][0, 0]
        for certain in (True, False)
    ]
    sure = certainty(torch.softmax(teacher, 1))[0]
    assert sure[0] < 0.65
    assert sure[1] > 0.99
    assert torch.allclose(pulls[0], sure * pulls[1])


def test_without_certainty_it_pulls_as_soft_targets_do_but_for_the_square_of_the_temperature() -> None:
    student, teacher = logits(0), logits(1)
    plain = torch.autograd.grad(certain_distillation(student, teacher, 2.0, certain=False), student)[0]
    scaled = torch.autograd.grad(soft_targets(student, teacher, 2.0), student)[0]
    assert torch.allclose(4 * plain, scaled)


def test_distillation_leaves_out_voxels_of_no_weight() -> None:
    student, teacher = logits(0), logits(1)
    weight = torch.ones(2, 2, 3, dtype=torch.float64)
    weight[0] = 0
    certain_distillation(student, teacher, weight=weight).backward()
    assert student.grad is not None
    assert (student.grad[0] == 0).all()
    assert (student.grad[1] != 0).all()
    assert certain_distillation(student, teacher, weight=torch.zeros_like(weight)).item() == 0


def test_a_second_head_that_is_distilled_teaches_the_trunk_and_not_the_first() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trunk, head, second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)
    image = torch.randn(1, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        teacher = 2 * head(trunk(image))
    certain_distillation(second(trunk(image)), teacher).backward()
    assert trunk.weight.grad is not None
    assert trunk.weight.grad.abs().max() > 0
    assert head.weight.grad is None


def test_logit_loss_is_the_mean_squared_difference_over_known_voxels() -> None:
    student, stored = logits(0), logits(1)
    known = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(2)) < 0.5
    squares = [
        (student[n, c, i, j].item() - stored[n, c, i, j].item()) ** 2
        for n, i, j in known.nonzero().tolist()
        for c in range(3)
    ]
    assert 0 < len(squares) < 36
    loss = logit_loss(student, stored, known)
    assert math.isclose(loss.item(), sum(squares) / len(squares), rel_tol=1e-9)
    loss.backward()
    assert stored.grad is None
    assert student.grad is not None
    assert torch.equal((student.grad != 0).all(dim=1), known)


def test_what_unknown_voxels_hold_does_not_matter_and_halves_are_widened() -> None:
    student, stored = logits(0), logits(1).detach().half()
    known = torch.zeros(2, 2, 3, dtype=torch.bool)
    known[1, 0] = True
    clean = logit_loss(student, stored, known)
    assert clean.dtype == torch.float64
    stored[0, 0], stored[1, :, 1] = torch.nan, torch.inf
    soiled = logit_loss(student, stored, known)
    assert soiled.item() == clean.item()
    soiled.backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_no_stored_logits_give_no_loss_and_no_gradient() -> None:
    student = logits(0)
    loss = logit_loss(student, logits(1), torch.zeros(2, 2, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert (student.grad == 0).all()
