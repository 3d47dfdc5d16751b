"""Steps that are private for each case, with numbers worked out by hand and against opacus's sampler of gradients."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wardround.client.learning.inference import normalise
from wardround.client.learning.learner import LearningSettings, OnlineLearner
from wardround.client.learning.private_steps import PrivateSteps, Sums
from wardround.client.learning.replay import Sample
from wardround.client.supervision.losses import segmentation_loss
from wardround.models.catalogue import build
from wardround.strategies.noise import Noise


def steps(noise: float = 1e-12, clip: float = 5.0, rate: float = 0.5, cases: int = 4) -> PrivateSteps:
    return PrivateSteps(noise, clip, rate, cases, Noise(b"a key"))


def weights(*gradients: Sequence[float]) -> list[nn.Parameter]:
    found = [nn.Parameter(torch.zeros(len(values))) for values in gradients]
    for parameter, values in zip(found, gradients, strict=True):
        parameter.grad = torch.tensor(values)
    return found


class TestByHand:
    def test_all_weights_of_a_case_are_clipped_together(self) -> None:
        private, trained = steps(clip=5.0), weights([6.0], [8.0, 0.0])
        sums = private.nothing(trained)
        private.add(sums, trained)
        assert [each.tolist() for each in sums] == [[pytest.approx(3)], [pytest.approx(4), 0]]

    def test_a_case_within_the_bound_counts_as_it_is(self) -> None:
        private, trained = steps(clip=20.0), weights([6.0], [8.0, 0.0])
        sums = private.nothing(trained)
        private.add(sums, trained)
        private.add(sums, trained)
        assert [each.tolist() for each in sums] == [[12], [16, 0]]

    def test_the_sum_is_divided_by_the_cases_that_were_expected_not_by_those_that_came(self) -> None:
        private, trained = steps(clip=20.0, rate=0.5, cases=8), weights([6.0])
        sums = private.nothing(trained)
        private.add(sums, trained)
        private.finish(sums, trained)
        assert trained[0].grad is not None
        assert trained[0].grad.item() == pytest.approx(6 / 4)

    def test_a_sample_of_none_is_a_step_of_noise_alone(self) -> None:
        private, trained = steps(noise=3.0, clip=2.0, rate=0.5, cases=8), weights([0.0] * 20_000)
        private.finish(private.nothing(trained), trained)
        assert trained[0].grad is not None
        assert trained[0].grad.std().item() == pytest.approx(3.0 * 2.0 / 4, rel=0.03)

    def test_noise_is_as_large_whatever_came(self) -> None:
        private, trained = steps(noise=3.0, clip=2.0, rate=1.0, cases=1), weights([1.0] * 20_000)
        sums = private.nothing(trained)
        private.add(sums, trained)
        private.finish(sums, trained)
        assert trained[0].grad is not None
        assert trained[0].grad.std().item() == pytest.approx(6.0, rel=0.03)

    @pytest.mark.parametrize("odd", [math.nan, math.inf])
    def test_what_is_not_finite_counts_as_none(self, odd: float) -> None:
        private, trained = steps(), weights([1.0], [odd])
        sums = private.nothing(trained)
        private.add(sums, trained)
        assert [each.tolist() for each in sums] == [[0], [0]]

    def test_no_gradient_at_all_is_no_error(self) -> None:
        private, trained = steps(), weights([0.0], [0.0])
        trained[1].grad = None
        sums = private.nothing(trained)
        private.add(sums, trained)
        private.finish(sums, trained)
        assert all(each.grad is not None for each in trained)

    def test_every_case_takes_part_by_itself_with_the_same_probability(self) -> None:
        private = steps(rate=0.3, cases=5)
        drawn = [private.sampled() for _ in range(4000)]
        shares = np.bincount(np.concatenate(drawn).astype(int), minlength=5) / 4000
        assert shares == pytest.approx(np.full(5, 0.3), abs=0.03)
        sizes = np.bincount([len(each) for each in drawn], minlength=6) / 4000
        assert sizes[0] == pytest.approx(0.7**5, abs=0.03)  # Of a fixed size none would be empty.


@dataclass(frozen=True, eq=False)
class Watched(PrivateSteps):
    """Keeps the clipped sums before the noise."""

    seen: list[Sums] = field(default_factory=list)

    def sampled(self) -> list[int]:
        return list(range(self.cases))

    def finish(self, sums: Sums, trained: Sequence[Tensor]) -> None:
        self.seen.append([each.clone() for each in sums])
        super().finish(sums, trained)  # type: ignore[arg-type]


def sample(seed: int, shape: tuple[int, int, int] = (16, 16, 16)) -> Sample:
    rng = np.random.default_rng(seed)
    labels = (rng.random(shape) < 0.3).astype(np.uint8)
    image = normalise(labels * 2.0 + rng.normal(0, 0.5, shape))
    return Sample(f"case {seed}", image, np.stack([1 - labels, labels]).astype(np.float16), np.ones(shape, np.float16))


def learnt(records: list[list[Sample]], clip: float = 1e9, **settings: object) -> list[Tensor]:
    """The clipped sum of one step on all of these."""
    model = OnlineLearner(LearningSettings("unet3d-small", 2, 0, augmentation=None, **settings), torch.device("cpu"))  # type: ignore[arg-type]
    model.load(model.weights())
    watched = Watched(1e-12, clip, 1.0, len(records), Noise(b"a key"))
    model.update_privately(lambda numbers: [records[number] for number in numbers], 1, 1e-3, watched)
    return watched.seen[0]


def norm(sums: Sums) -> float:
    return math.sqrt(sum(float(each.square().sum()) for each in sums))


def test_gradients_of_cases_are_those_of_opacus() -> None:
    from opacus import GradSampleModule

    samples = [sample(1), sample(2)]
    network = build("unet3d-small", 2, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = GradSampleModule(network, loss_reduction="sum")
        image = torch.from_numpy(np.stack([each.image for each in samples]))[:, None]
        logits = theirs(image)
        total = logits.new_zeros(())
        for number, each in enumerate(samples):
            target, weight = (torch.from_numpy(part.astype(np.float32))[None] for part in (each.target, each.weight))
            total = total + segmentation_loss(logits[number : number + 1], target, weight)
        total.backward()
    for number, each in enumerate(samples):
        ours = learnt([[each]])
        for found, parameter in zip(ours, network.parameters(), strict=True):
            assert torch.allclose(found.float(), parameter.grad_sample[number], atol=2e-4, rtol=1e-3)  # type: ignore[union-attr]


def test_one_case_more_changes_the_sum_by_the_bound_at_most_whatever_its_shape() -> None:
    records = [[sample(1)], [sample(2, (18, 10, 14))]]
    more = [*records, [sample(3, (24, 16, 8))]]
    without, with_it = learnt(records, clip=0.01), learnt(more, clip=0.01)
    change = [after - before for before, after in zip(without, with_it, strict=True)]
    assert norm(change) == pytest.approx(0.01, rel=1e-9)
    assert norm(learnt(records)) > 1  # The bound was at work.


def test_all_windows_of_a_case_are_one_record() -> None:
    alone, twice = learnt([[sample(1)]]), learnt([[sample(1), sample(1)]])
    assert all(torch.allclose(one, two, rtol=1e-5, atol=1e-7) for one, two in zip(alone, twice, strict=True))
    assert norm(learnt([[sample(1), sample(2), sample(1)]], clip=0.01)) == pytest.approx(0.01, rel=1e-9)


def test_what_is_known_without_any_case_is_not_clipped() -> None:
    """The proximal term: its gradient is 0 at the anchor, and μ (w - anchor) a step later."""
    assert norm(learnt([[sample(1)]], clip=0.01, proximal_mu=1e6)) == pytest.approx(0.01, rel=1e-9)


def test_the_same_key_learns_the_same_bits_and_another_other_ones() -> None:
    def weights_after(key: bytes) -> dict[str, np.ndarray]:
        model = OnlineLearner(LearningSettings("unet3d-small", 2, 0), torch.device("cpu"))
        model.load(model.weights())
        private = PrivateSteps(1.0, 1.0, 0.5, 2, Noise(key))
        samples = [sample(1), sample(2)]
        model.update_privately(lambda numbers: [[samples[number]] for number in numbers], 2, 1e-3, private)
        return model.weights()  # type: ignore[return-value]

    one, again, other = weights_after(b"one"), weights_after(b"one"), weights_after(b"other")
    assert all(np.array_equal(array, again[name]) for name, array in one.items())
    assert not all(np.array_equal(array, other[name]) for name, array in one.items())


@dataclass(frozen=True, eq=False)
class Chosen(PrivateSteps):
    """Samples the cases that it is told, in every step; everything else is as it was."""

    which: tuple[int, ...] = ()

    def sampled(self) -> list[int]:
        super().sampled()
        return list(self.which)


def windows_of(
    monkeypatch: pytest.MonkeyPatch, which: tuple[int, ...], key: bytes, cases: list[Sample], model: str
) -> list[list[Tensor]]:
    """By step and sampled case, what was learnt from."""
    seen: list[Tensor] = []
    assemble = OnlineLearner._assemble

    def watched(self: OnlineLearner, samples: Sequence[Sample], *rest: object) -> object:
        batch = assemble(self, samples, *rest)  # type: ignore[arg-type]
        seen.append(batch.image.clone())
        return batch

    learner = OnlineLearner(LearningSettings(model, 2, 0, patch=(8, 8, 8)), torch.device("cpu"))
    learner.load(learner.weights())
    steps = Chosen(1.0, 1.0, 0.5, len(cases), Noise(key), which)
    with monkeypatch.context() as patched:
        patched.setattr(OnlineLearner, "_assemble", watched)
        learner.update_privately(lambda numbers: [[cases[number]] * 2 for number in numbers], 2, 1e-3, steps)
    by_case = [torch.cat(seen[start : start + 2]) for start in range(0, len(seen), 2)]
    return [by_case[: len(which)], by_case[len(which) :]]


@pytest.mark.parametrize("model", ["unet3d-small", "unet2d-small"])
def test_leaving_a_case_out_or_changing_it_moves_no_other_window(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    cases = [sample(number) for number in range(3)]
    another = [cases[0], sample(9, (8, 8, 1)), cases[2]]  # As small as a window: none is drawn.
    every = windows_of(monkeypatch, (0, 1, 2), b"a key", cases, model)
    without = windows_of(monkeypatch, (0, 2), b"a key", cases, model)
    changed = windows_of(monkeypatch, (0, 1, 2), b"a key", another, model)
    for step in range(2):
        for number, alone in ((0, 0), (2, 1)):
            assert torch.equal(every[step][number], without[step][alone])
            assert torch.equal(every[step][number], changed[step][number])
    assert not torch.equal(every[0][0], every[1][0])
    assert not torch.equal(every[0][0][0], every[0][0][1])
    assert not torch.equal(every[0][0], windows_of(monkeypatch, (0,), b"another", cases, model)[0][0])
