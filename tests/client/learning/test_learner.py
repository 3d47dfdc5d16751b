"""The learner: deterministic, resumable, honest about padding."""

import numpy as np
import pytest
import torch

from wardround.client.learning.augmentation import Augmentation, StrongAugmentation
from wardround.client.learning.batches import _window
from wardround.client.learning.inference import normalise, predict
from wardround.client.learning.learner import LearningSettings, OnlineLearner, resolve_device
from wardround.client.learning.replay import Sample
from wardround.client.supervision.losses import segmentation_loss
from wardround.errors import UsageError
from wardround.models.windows import padded_shape
from wardround.strategies.plan import RoundPlan

CPU = torch.device("cpu")


def ball(seed: int, shape: tuple[int, int, int] = (18, 22, 14)) -> tuple[Sample, np.ndarray]:
    rng = np.random.default_rng(seed)
    centre = np.array(shape) / 2 + rng.uniform(-1, 1, 3)
    distance = np.sqrt(sum((g - c) ** 2 for g, c in zip(np.indices(shape), centre, strict=True)))
    labels = (distance < 5).astype(np.uint8)
    image = normalise(labels * 2.0 + rng.normal(0, 0.5, shape))
    target = np.stack([1 - labels, labels]).astype(np.float16)
    return Sample(f"case {seed}", image, target, np.ones(shape, np.float16)), labels


def learner(seed: int = 0, **settings: object) -> OnlineLearner:
    return OnlineLearner(LearningSettings("unet3d-small", 2, seed, **settings), CPU)  # type: ignore[arg-type]


def train(model: OnlineLearner, updates: int, seed: int = 0) -> float:
    samples = [ball(n)[0] for n in range(3)]
    rng = np.random.default_rng(seed)
    return model.update(lambda: [samples[int(rng.integers(3))] for _ in range(2)], updates, 4e-3, rng)


def test_it_learns_a_ball_it_has_not_seen() -> None:
    model = learner()
    train(model, 40)
    sample, labels = ball(9)
    found = model.predict(sample.image).argmax(0)
    assert 2 * (found & labels).sum() / (found.sum() + labels.sum()) > 0.8


@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 1, 5), (8, 8, 8)])
def test_volumes_within_one_stride_are_predicted_and_learnt(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    target = np.stack([np.zeros(shape), np.ones(shape)]).astype(np.float16)
    sample = Sample("tiny", image, target, np.ones(shape, np.float16))
    model = learner()
    assert np.isfinite(model.update(lambda: [sample], 2, 1e-3, np.random.default_rng(0)))
    found = model.predict(image)
    assert found.shape == (2, *shape)
    np.testing.assert_allclose(found.sum(axis=0), 1, rtol=1e-5)


def test_only_volumes_within_one_stride_are_padded_by_more_than_they_need() -> None:
    assert padded_shape((1, 1, 1), 8) == padded_shape((8, 8, 8), 8) == (16, 16, 16)
    assert padded_shape((9, 1, 8), 8) == (16, 8, 8)
    assert padded_shape((18, 22, 14), 8) == (24, 24, 16)
    assert padded_shape((100, 96, 4), 16) == (112, 96, 16)


def test_the_same_seeds_give_the_same_bits() -> None:
    one, other = learner(), learner()
    assert train(one, 3) == train(other, 3)
    assert all(np.array_equal(a, other.weights()[name]) for name, a in one.weights().items())


def test_a_restored_learner_goes_on_bit_by_bit() -> None:
    whole = learner()
    train(whole, 2)
    restored = learner(seed=5)
    restored.load(whole.weights())
    restored.load_optimiser_state(whole.optimiser_state())
    train(whole, 2, seed=1)
    train(restored, 2, seed=1)
    assert all(np.array_equal(a, restored.weights()[name]) for name, a in whole.weights().items())
    fresh = learner(seed=5)
    fresh.load(whole.weights())
    assert fresh.optimiser_state() == {}


def same_state(one: OnlineLearner, other: OnlineLearner) -> bool:
    pairs = [(one.weights(), other.weights()), (one.optimiser_state(), other.optimiser_state())]
    return all(a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a) for a, b in pairs)


@pytest.mark.parametrize("updates_before", [0, 2])
def test_back_at_a_checkpoint_it_goes_on_as_if_nothing_had_been_learnt_since(updates_before: int) -> None:
    straight, there_and_back = learner(), learner()
    for model in (straight, there_and_back):
        train(model, updates_before)
    checkpoint = there_and_back.checkpoint()
    for detour in (2, 1):
        train(there_and_back, detour, seed=7)
        assert not same_state(straight, there_and_back)
        there_and_back.restore(checkpoint)
        assert same_state(straight, there_and_back)
    assert train(straight, 2, seed=1) == train(there_and_back, 2, seed=1)
    assert same_state(straight, there_and_back)


def test_a_checkpoint_holds_the_scale_of_mixed_precision() -> None:
    def scaled() -> OnlineLearner:
        model = learner()
        model._scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
        return model

    straight, there_and_back = scaled(), scaled()
    for model in (straight, there_and_back):
        train(model, 2)
    checkpoint = there_and_back.checkpoint()
    train(there_and_back, 2, seed=7)
    assert there_and_back._scaler.get_scale() == 16.0
    there_and_back.restore(checkpoint)
    assert there_and_back._scaler.get_scale() == 8.0
    train(straight, 1, seed=1)
    train(there_and_back, 1, seed=1)
    assert there_and_back._scaler.get_scale() == straight._scaler.get_scale() == 16.0
    assert same_state(straight, there_and_back)


def test_a_checkpoint_leaves_the_anchor_of_the_proximal_term_alone() -> None:
    model = learner(proximal_mu=1.0)
    model.load(model.weights())
    checkpoint = model.checkpoint()
    train(model, 2)
    model.restore(checkpoint)
    assert torch.as_tensor(model._proximal()).item() == 0.0
    train(model, 1)
    assert torch.as_tensor(model._proximal()).item() > 0.0


def test_losses_are_those_of_the_whole_volumes_and_change_nothing() -> None:
    model = learner()
    train(model, 4)
    samples = [ball(n, (16, 24, 16))[0] for n in (5, 6)]
    model._network.train()
    before = model.checkpoint()
    found = model.losses(samples)
    assert found == model.losses(samples)
    assert found[0] != found[1]
    model._network.eval()
    with torch.no_grad():
        for sample, loss in zip(samples, found, strict=True):
            logits = model._network(torch.from_numpy(sample.image)[None, None])
            parts = (torch.from_numpy(part.astype(np.float32))[None] for part in (sample.target, sample.weight))
            assert loss == pytest.approx(segmentation_loss(logits, *parts).item(), rel=1e-4)
    assert all(torch.equal(tensor, before.weights[name]) for name, tensor in model._network.state_dict().items())


def test_losses_leave_the_network_training() -> None:
    model = learner()
    model._network.train()
    model.losses([ball(0)[0]])
    assert model._network.training


def test_a_step_on_a_contradiction_harms_the_case_it_contradicts_and_is_taken_back() -> None:
    model = learner()
    train(model, 20)
    shown, labels = ball(0)
    opposite = np.stack([labels, 1 - labels]).astype(np.float16)
    incoming = Sample("contradicts", shown.image, opposite, shown.weight)
    agreeing = Sample("agrees", shown.image, opposite, shown.weight)
    straight = learner(seed=3)
    straight.restore(model.checkpoint())
    rise = model.interference(incoming, [shown, agreeing], np.random.default_rng(0))
    assert rise[0] > 0 > rise[1]
    assert same_state(straight, model)


def test_the_proximal_term_keeps_the_weights_near_the_global_ones() -> None:
    def drift(mu: float) -> float:
        model = learner(proximal_mu=mu)
        start = model.weights()
        model.load(start)
        train(model, 6)
        return float(sum(((a - start[name]) ** 2).sum() for name, a in model.weights().items()))

    assert drift(10.0) < 0.5 * drift(0.0)


def test_padding_is_supervised_as_background() -> None:
    sample, _ = ball(0)
    batch = learner()._assemble([sample], np.random.default_rng(0), None)
    image, target, weight = batch.image, batch.target, batch.weight
    assert tuple(image.shape[2:]) == (24, 24, 16)
    assert (target[0, 0, 18:] == 1).all()
    assert (target[0, 1, 18:] == 0).all()
    assert (weight[0, 18:] == 1).all()


def test_augmentation_keeps_targets_probabilities() -> None:
    sample, _ = ball(0)
    batch = learner()._assemble([sample, sample], np.random.default_rng(0), Augmentation())
    target, weight = batch.target, batch.weight
    assert torch.allclose(target.sum(1), torch.ones_like(target[:, 0]), atol=1e-3)
    assert set(weight.unique().tolist()) <= {0.0, 1.0}
    assert not torch.equal(target[0], target[1])


def test_a_window_of_a_large_volume_finds_the_structure_half_of_the_time() -> None:
    sample, _ = ball(0, (40, 40, 40))
    rng = np.random.default_rng(0)
    windows = [_window(sample, (16, 16, 16), rng) for _ in range(60)]
    assert {sample.image[window].shape for window in windows} == {(16, 16, 16)}
    assert sum(float(sample.target[1][window].sum()) > 100 for window in windows) >= 30
    assert sum(float(sample.target[1][window].sum()) == 0 for window in windows) >= 3


def test_prediction_is_the_same_in_windows_and_in_one_piece_away_from_borders() -> None:
    model = learner()
    train(model, 20)
    sample, labels = ball(3, (40, 24, 24))
    whole = model.predict(sample.image)
    parts = predict(model._network, sample.image, stride=8, device=CPU, window=(24, 24, 24))
    assert whole.shape == parts.shape == (2, 40, 24, 24)
    assert np.allclose(whole.sum(0), 1, atol=1e-5)
    assert (whole.argmax(0) == parts.argmax(0)).mean() > 0.97
    assert labels.any()


def test_normalising_undoes_any_scanner_scale() -> None:
    array = np.random.default_rng(0).normal(5, 2, (4, 5, 6))
    assert np.allclose(normalise(array), normalise(array * 1e6 + 3), atol=1e-5)
    assert (normalise(np.full((2, 2, 2), 7.0)) == 0).all()


def test_an_unknown_device_is_a_users_error() -> None:
    with pytest.raises(UsageError, match="abacus"):
        resolve_device("abacus")


def planned(**fields: object) -> LearningSettings:
    usual: dict[str, object] = {"run": "r", "round": 1, "rounds": 5, "seed": 0, "model": "unet3d-small", "labels": 2}
    return LearningSettings.of(RoundPlan.model_validate(usual | fields))


def test_a_plan_that_says_nothing_of_it_regularises_nothing() -> None:
    assert not planned().regularisation.active
    assert planned().augmentation == Augmentation()


def test_a_plan_says_what_is_asked_of_voxels_that_nobody_drew_and_since_when() -> None:
    found = [planned(round=n, crf_weight=0.1, variance_weight=0.2, regularisation_ramp=0.4) for n in range(6)]
    strengths = [settings.regularisation.strength for settings in found]
    assert strengths == pytest.approx([np.exp(-5)] * 2 + [np.exp(-1.25)] + [1.0] * 3)
    assert (found[0].regularisation.crf, found[0].regularisation.variance) == (0.1, 0.2)
    one = planned(model="unet3d-small-attention", attentive_weight=0.3, attentive_kernel="released")
    assert (one.regularisation.attentive, one.regularisation.kernel) == (0.3, "released")
    assert one.regularisation.strength == 1
    assert planned(regularisation_side=32).regularisation.side == 32
    assert planned(augmentation="strong").augmentation == StrongAugmentation()


def test_attentive_similarity_needs_attention() -> None:
    with pytest.raises(UsageError, match="unet3d-small has no attention"):
        OnlineLearner(planned(attentive_weight=0.1), CPU)
    OnlineLearner(planned(attentive_weight=0.1, model="unet3d-small-attention"), CPU)


@pytest.mark.parametrize(
    "fields",
    [{"crf_weight": 0.5}, {"variance_weight": 0.5}, {"attentive_weight": 0.5}],
    ids=lambda fields: next(iter(fields)),
)
def test_every_weight_of_a_plan_reaches_the_weights_of_the_network(fields: dict[str, object]) -> None:
    weights = []
    for own in ({}, fields):
        model = OnlineLearner(planned(model="unet3d-small-attention", regularisation_side=16, **own), CPU)
        train(model, 1)
        weights.append(model.weights())
    assert any(not np.array_equal(array, weights[1][name]) for name, array in weights[0].items())


def test_voxel_weights_lie_as_sums_over_them_expect() -> None:
    """Sums over a view run in another order: weights that are no whole numbers would end with other last bits."""
    sample, _ = ball(0)
    batch = learner()._assemble([sample, sample], np.random.default_rng(0), Augmentation())
    assert batch.weight.is_contiguous()
