"""Learning from another network: who gets gradients, and how large they are."""

import math

import pytest
import torch
from torch import Tensor, nn

from wardround.client.supervision.distillation import hard_targets, soft_targets
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


@pytest.mark.parametrize("loss", [hard_targets, soft_targets])
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
