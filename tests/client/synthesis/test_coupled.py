"""The three stages together: what moves, what stays, who drives the architecture, what validation never reaches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wardround.client.synthesis import coupled
from wardround.client.synthesis.coupled import Advance, CoupledSearch, CoupledSettings, loss_on_pairs
from wardround.client.synthesis.hypergradient import Hypergradient, HypergradientSettings, hypergradient
from wardround.client.synthesis.pairs import Pair, stacked
from wardround.errors import DataError, UsageError
from wardround.models.searched import SearchedSettings
from wardround.models.weights import load_arrays, save_arrays

CPU = torch.device("cpu")
SIDE = 16


def pair(case: int, seed: int = 0, axes: int = 2) -> Pair:
    """A bright and a dark box in noise."""
    rng = np.random.default_rng([seed, case])
    labels = np.zeros((SIDE,) * axes, dtype=np.uint8)
    for label in (1, 2):
        low = rng.integers(2 + 6 * (label - 1), 4 + 6 * (label - 1), axes)
        labels[tuple(slice(start, start + 4) for start in low)] = label
    image = np.array([0.0, 2.0, -2.0])[labels] + rng.normal(0, 0.2, labels.shape)
    return Pair(f"case-{seed}-{case}", image.astype(np.float32), labels)


TRAINING = [pair(case) for case in range(6)]
VALIDATION = [pair(case, seed=1) for case in range(3)]


def search(axes: int = 2, dropout: float = 0.0, channels: tuple[int, ...] = (4, 8), **settings: Any) -> CoupledSearch:
    network = SearchedSettings(axes, 3, channels, dropout, discriminator_channels=4, discriminator_layers=1)
    chosen = {"batch": 3, "learning_rate": 2e-3, "joint_rate": 1e-3, "every": 1} | settings
    return CoupledSearch(CoupledSettings(**chosen), network, 0, CPU)


def a_segmenter(axes: int = 2, restless: bool = False) -> nn.Module:
    """Two convolutions; a restless one has statistics of batches and dropout as well."""
    convolution = nn.Conv2d if axes == 2 else nn.Conv3d
    between = [nn.BatchNorm2d(6), nn.Dropout(0.3)] if restless else []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(convolution(1, 6, 3, padding=1), *between, nn.Softplus(), convolution(6, 3, 1))


def advanced(
    own: CoupledSearch, times: int, validation: list[Pair] = VALIDATION, segmenter: nn.Module | None = None
) -> list[Advance]:
    segmenter = a_segmenter(own.network.dimensions) if segmenter is None else segmenter
    rng = np.random.default_rng(5)
    return [own.advance(segmenter, TRAINING, validation, rng) for _ in range(times)]


def same(one: CoupledSearch, other: CoupledSearch, *but: str) -> bool:
    first, second = (
        {name: array for name, array in own.arrays().items() if not name.startswith(but)} for own in (one, other)
    )
    return set(first) == set(second) and all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("axes", [2, 3])
def test_pretraining_brings_images_close_to_the_real_ones(axes: int) -> None:
    own, pairs = search(axes), [pair(case, axes=axes) for case in range(6)]
    truth, masks = np.stack([one.image for one in pairs]), np.stack([one.labels for one in pairs])

    def distance() -> float:
        return float(np.abs(own.sample(masks, np.random.default_rng(0)) - truth).mean())

    before = distance()
    first, second = (own.pretrain(pairs, 20, np.random.default_rng(0)) for _ in range(2))
    assert distance() < 0.85 * before
    assert 100 * distance() < second < first
    assert np.array_equal(own.architecture, search(axes).architecture)
    assert own.seen == {one.case_id for one in pairs}
    assert not own.judged_by


def test_pretraining_asks_the_device_after_every_step_and_knows_of_no_loss_without_one() -> None:
    own, calls = search(), []
    own.pretrain(TRAINING, 3, np.random.default_rng(0), between=lambda: calls.append(1))
    assert len(calls) == 3
    assert np.isnan(own.pretrain(TRAINING, 0, np.random.default_rng(0)))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_segmenter_is_bit_identical_after_an_advance(dropout: float) -> None:
    segmenter = a_segmenter(restless=True).train()
    for parameter in segmenter.parameters():
        parameter.grad = torch.full_like(parameter, 0.25)
    before = {name: tensor.clone() for name, tensor in segmenter.state_dict().items()}
    torch.manual_seed(7)
    state = torch.get_rng_state()
    report = advanced(search(dropout=dropout), 3, segmenter=segmenter)
    assert all(one.feedback and one.hop for one in report)
    assert all(torch.equal(before[name], tensor) for name, tensor in segmenter.state_dict().items())
    assert all(torch.equal(p.grad, torch.full_like(p, 0.25)) for p in segmenter.parameters() if p.grad is not None)
    assert all(parameter.grad is not None and parameter.requires_grad for parameter in segmenter.parameters())
    assert segmenter.training
    assert torch.equal(torch.get_rng_state(), state)


def test_the_architecture_step_moves_nothing_but_the_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    own = search()
    advanced(own, 1)

    def watching(*args: Any, **settings: Any) -> Hypergradient:
        before = own.arrays()
        found = hypergradient(*args, **settings)
        assert all(np.array_equal(before[name], array) for name, array in own.arrays().items())
        kept.append(before)
        return found

    kept: list[dict[str, Any]] = []
    monkeypatch.setattr(coupled, "hypergradient", watching)
    advanced(own, 1)
    changed = {name for name, array in own.arrays().items() if not np.array_equal(array, kept[0][name])}
    assert {name for name in changed if not name.startswith("moments.architecture/")} == {"generator/architecture"}


def test_the_architecture_moves_at_every_so_many_advances() -> None:
    own = search(every=2)
    start = own.architecture
    report = advanced(own, 1)
    assert np.array_equal(own.architecture, start)
    assert report[0].feedback is None
    report = advanced(own, 1)
    assert not np.array_equal(own.architecture, start)
    assert report[0].feedback
    assert own.judged_by == {one.case_id for one in VALIDATION}
    assert own.seen == {one.case_id for one in TRAINING}


def test_a_frozen_search_is_the_control_without_feedback_and_without_further_training() -> None:
    own, untouched = search(frozen=True), search(frozen=True)
    for one in (own, untouched):
        one.pretrain(TRAINING, 2, np.random.default_rng(0))
    report = advanced(own, 2)
    assert same(own, untouched)
    assert all(np.isnan(one.generator) and one.feedback is None for one in report)


@pytest.mark.parametrize("without", [{"every": 0}, {"gamma": 0.0}])
def test_without_feedback_the_generator_learns_on_and_the_architecture_stays(without: dict[str, Any]) -> None:
    own, start = search(**without), search(**without)
    advanced(own, 2)
    assert np.array_equal(own.architecture, start.architecture)
    assert not same(own, start, "cases", "steps", "moments")
    assert not own.judged_by


class Both(nn.Module):
    """Lets closures that read modules in place be asked with other weights, by torch.func."""

    def __init__(self, segmenter: nn.Module, generator: nn.Module) -> None:
        super().__init__()
        self.segmenter, self.generator = segmenter, generator

    def forward(self, loss: Callable[[], Tensor]) -> Tensor:
        return loss()


def unrolled(parts: dict[str, Any], architecture: nn.Parameter) -> Tensor:
    """The same derivative by automatic differentiation through both steps."""
    both = Both(parts["segmenter"], parts["generator"])
    now = dict(both.named_parameters())

    def asked(loss: str, changed: dict[str, Tensor]) -> Tensor:
        value: Tensor = torch.func.functional_call(both, now | changed, (parts[loss],))
        return value

    inner = {n: p for n, p in now.items() if n.startswith("generator.") and p is not architecture}
    outer = {n: p for n, p in now.items() if n.startswith("segmenter.")}
    settings = parts["settings"]
    made = torch.autograd.grad(asked("generator_loss", {}), list(inner.values()), create_graph=True)
    theta = {n: p - settings.generator_rate * g for (n, p), g in zip(inner.items(), made, strict=True)}
    loss = asked("training_loss", {}) + settings.gamma * asked("synthetic_loss", theta)
    moved = torch.autograd.grad(loss, list(outer.values()), create_graph=True)
    ahead = {n: p - settings.segmenter_rate * g for (n, p), g in zip(outer.items(), moved, strict=True)}
    return torch.autograd.grad(asked("validation_loss", ahead), architecture)[0]


@pytest.mark.parametrize(("rate", "axes"), [(0.0, 2), (1e-2, 2), (1e-2, 3)])
def test_the_loop_hands_over_the_three_stages_as_full_unrolling_sees_them(
    rate: float, axes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[Tensor, Tensor]] = []

    def comparing(**parts: Any) -> Hypergradient:
        assert parts["settings"] == HypergradientSettings(0.05, rate, 1.0, 1e-8)
        found = hypergradient(**parts)
        compared.append((found.total[0], unrolled(parts, parts["architecture"][0])))
        return found

    monkeypatch.setattr(coupled, "hypergradient", comparing)
    own = search(axes, joint_rate=rate, segmenter_rate=0.05, probe=1e-8)
    own._generator.double()
    own._adversaries.discriminator.double()
    segmenter = a_segmenter(axes).double()
    training = [pair(case, axes=axes) for case in range(4)]
    for step in range(3):
        own.advance(segmenter, training, [pair(0, 1, axes)], np.random.default_rng(step))
    assert len(compared) == 3
    for found, exact in compared:
        assert F.cosine_similarity(found.flatten(), exact.flatten(), dim=0) > 0.99
        assert (found - exact).norm() < 0.05 * exact.norm()


def test_images_that_are_cut_off_from_their_generator_are_refused() -> None:
    def cut(segmenter: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        return loss_on_pairs(segmenter, images.detach(), target)

    own = search()
    with pytest.raises(ValueError, match="detached"):
        own.advance(a_segmenter(), TRAINING, VALIDATION, np.random.default_rng(0), cut)


def swapped(pairs: list[Pair]) -> list[Pair]:
    return [Pair(one.case_id, one.image, np.array([0, 2, 1], dtype=np.uint8)[one.labels]) for one in pairs]


def noise(pairs: list[Pair]) -> list[Pair]:
    rng = np.random.default_rng(9)
    return [Pair(one.case_id, rng.normal(size=one.image.shape).astype(np.float32), one.labels) for one in pairs]


@pytest.mark.parametrize("other", [swapped, noise])
def test_other_validation_leads_the_architecture_elsewhere(other: Callable[[list[Pair]], list[Pair]]) -> None:
    one, two = search(), search()
    first, second = advanced(one, 3)[0], advanced(two, 3, other(VALIDATION))[0]
    assert first.generator == second.generator
    assert first.validation != second.validation
    assert first.feedback != second.feedback
    assert np.abs(one.architecture - two.architecture).max() > 1e-4


def test_validation_reaches_neither_generator_nor_discriminator_but_by_the_architecture() -> None:
    one, two = (search(architecture_rate=0.0) for _ in range(2))
    advanced(one, 3)
    advanced(two, 3, noise(swapped(VALIDATION)))
    assert same(one, two, "moments.architecture")
    assert not same(one, two)


def coupled_run(
    validation: list[Pair], gamma: float = 1.0, steps: int = 4, **settings: Any
) -> tuple[dict[str, Tensor], CoupledSearch, list[bool]]:
    """A segmenter trained beside a search; whether each of its steps was one on training and synthetic pairs alone."""
    own, segmenter = search(gamma=gamma, **settings), a_segmenter()
    optimiser = torch.optim.AdamW(segmenter.parameters(), 1e-2)
    expected: list[Tensor] = []
    honest: list[bool] = []

    def check(*_: object) -> None:
        own_gradients = [parameter.grad for parameter in segmenter.parameters() if parameter.grad is not None]
        honest.append(all(torch.equal(g, e) for g, e in zip(own_gradients, expected, strict=True)))

    optimiser.register_step_pre_hook(check)
    rng, beside = np.random.default_rng(0), np.random.default_rng(1)
    for _ in range(steps):
        images, labels = stacked([TRAINING[i] for i in rng.choice(len(TRAINING), 3)])
        masks = F.one_hot(labels, 3).movedim(-1, 1).float()
        shapes = np.stack([coupled.deformed(TRAINING[i].labels, beside) for i in beside.choice(len(TRAINING), 3)])
        made = torch.from_numpy(own.sample(shapes, beside))[:, None]
        their_masks = F.one_hot(torch.from_numpy(shapes.astype(np.int64)), 3).movedim(-1, 1).float()
        loss = loss_on_pairs(segmenter, images, masks) + gamma * loss_on_pairs(segmenter, made, their_masks)
        expected[:] = torch.autograd.grad(loss, list(segmenter.parameters()), retain_graph=True)
        optimiser.zero_grad()
        loss.backward()
        own.advance(segmenter, TRAINING, validation, beside)
        optimiser.step()
    return {name: tensor.clone() for name, tensor in segmenter.state_dict().items()}, own, honest


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_validation_never_enters_a_step_of_the_segmenter() -> None:
    one, _, honest = coupled_run(VALIDATION)
    assert honest == [True] * 4
    # Validation acts on the segmenter by the architecture and by nothing else.
    two, _, _ = coupled_run(noise(swapped(VALIDATION)))
    assert not equal(one, two)
    still, other = (coupled_run(given, architecture_rate=0.0)[0] for given in (VALIDATION, noise(swapped(VALIDATION))))
    assert equal(still, other)


def test_without_weight_of_synthetic_images_the_segmenter_is_the_one_without_a_search() -> None:
    found, own, _ = coupled_run(VALIDATION, gamma=0.0)
    assert np.array_equal(own.architecture, search().architecture)
    segmenter = a_segmenter()
    optimiser = torch.optim.AdamW(segmenter.parameters(), 1e-2)
    rng = np.random.default_rng(0)
    for _ in range(4):
        images, labels = stacked([TRAINING[i] for i in rng.choice(len(TRAINING), 3)])
        optimiser.zero_grad()
        loss_on_pairs(segmenter, images, F.one_hot(labels, 3).movedim(-1, 1).float()).backward()
        optimiser.step()
    assert equal(found, segmenter.state_dict())
    assert not equal(found, coupled_run(VALIDATION)[0])


def test_the_masks_that_judge_the_architecture_are_new_whole_and_binary() -> None:
    used: list[Tensor] = []

    def seen(segmenter: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        if images.requires_grad:
            used.append(target.clone())
        return loss_on_pairs(segmenter, images, target)

    own, rng = search(), np.random.default_rng(0)
    for _ in range(2):
        own.advance(a_segmenter(), TRAINING, VALIDATION, rng, seen)
    known = [own._one_hot(stacked([one])[1])[0] for one in TRAINING]
    assert used
    for mask in torch.cat(used):
        assert set(mask.unique().tolist()) == {0.0, 1.0}
        assert (mask.sum(dim=0) == 1).all()
        assert all((mask - other).abs().mean() > 0 for other in known)
        assert all(mask[label].any() for label in range(3))


def test_a_validation_case_that_something_is_learnt_from_is_refused() -> None:
    own, rng = search(), np.random.default_rng(0)
    with pytest.raises(UsageError, match="1 of 4 validation cases are also learnt from"):
        own.advance(a_segmenter(), TRAINING, [*VALIDATION, TRAINING[0]], rng)
    own.pretrain(VALIDATION[:1], 1, rng)
    with pytest.raises(UsageError, match="1 of 3"):
        own.advance(a_segmenter(), TRAINING, VALIDATION, rng)


def test_pairs_that_do_not_fit_are_refused() -> None:
    own, rng = search(), np.random.default_rng(0)
    odd = Pair("odd", np.zeros((18, 16), dtype=np.float32), np.zeros((18, 16), dtype=np.uint8))
    for pairs in ([], [*TRAINING, odd], [odd]):
        with pytest.raises(UsageError, match="multiples of 4"):
            own.pretrain(pairs, 1, rng)
    empty = Pair("empty", np.zeros((16, 16), dtype=np.float32), np.zeros((16, 16), dtype=np.uint8))
    with pytest.raises(DataError, match="none of 1 training pairs"):
        own.advance(a_segmenter(), [empty], VALIDATION, rng)
    assert own.advance(a_segmenter(), [empty, TRAINING[0]], VALIDATION, rng).feedback


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_image_that_is_not_finite_is_refused_before_anything_moves(value: float) -> None:
    own, rng = search(), np.random.default_rng(0)
    spoilt = Pair("spoilt", np.full((SIDE, SIDE), value, dtype=np.float32), TRAINING[0].labels)
    with pytest.raises(DataError, match="not finite"):
        own.pretrain([*TRAINING, spoilt], 1, rng)
    with pytest.raises(DataError, match="not finite"):
        own.advance(a_segmenter(), TRAINING, [*VALIDATION, spoilt], rng)
    assert same(own, search())


def test_a_hypergradient_that_is_not_finite_is_left_out_and_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def spoilt(**_: object) -> Hypergradient:
        raise FloatingPointError("not finite")

    own = search()
    before = own.architecture
    monkeypatch.setattr(coupled, "hypergradient", spoilt)
    (report,) = advanced(own, 1)
    assert report.feedback is None
    assert np.isfinite(report.generator)
    assert np.array_equal(own.architecture, before)
    assert "an architecture step was left out" in caplog.text


def test_sampling_gives_one_image_a_mask_and_follows_its_generator() -> None:
    own = search(dropout=0.5)
    masks = np.stack([one.labels for one in TRAINING])
    made = [own.sample(masks, np.random.default_rng(seed)) for seed in (0, 1, 0)]
    assert made[0].shape == masks.shape
    assert made[0].dtype == np.float32
    assert np.array_equal(made[0], made[2])
    assert not np.array_equal(made[0], made[1])
    assert own.sample(masks[:0], np.random.default_rng(0)).shape == (0, 16, 16)


def test_a_search_is_kept_in_a_file_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    one = search(dropout=0.5, every=2)
    one.pretrain(TRAINING[:2], 2, np.random.default_rng(0))
    advanced(one, 3)
    save_arrays(tmp_path / "search.safetensors", one.arrays())
    other = search(dropout=0.5, every=2)
    other.pretrain(TRAINING, 1, np.random.default_rng(3))
    other.load(load_arrays(tmp_path / "search.safetensors"))
    assert same(one, other)
    assert other.seen == one.seen
    assert other.judged_by == one.judged_by != frozenset()
    assert advanced(one, 3) == advanced(other, 3)
    assert same(one, other)
    fresh = search(dropout=0.5, every=2)
    other.load(fresh.arrays())
    assert same(other, fresh)
    assert not other.seen


def test_the_same_seed_ends_at_the_same_bits_and_an_architecture_can_be_handed_on() -> None:
    one, two = search(dropout=0.5), search(dropout=0.5)
    for own in (one, two):
        own.pretrain(TRAINING, 2, np.random.default_rng(0))
        advanced(own, 2)
    assert same(one, two)
    fresh = search(dropout=0.5)
    assert not np.array_equal(fresh.architecture, one.architecture)
    fresh.architecture = one.architecture
    assert np.array_equal(fresh.architecture, one.architecture)
