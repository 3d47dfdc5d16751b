"""Teachers: frozen, taken when a case is opened, and heard only where there is something to forget."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from wardround.client.learning.batches import Batch
from wardround.client.learning.inference import normalise
from wardround.client.learning.learner import LearningSettings, OnlineLearner
from wardround.client.learning.replay import Sample
from wardround.client.learning.teachers import SCALES, Distillation, Distiller
from wardround.client.learning.terms import Pass
from wardround.client.supervision.contrastive import ContrastSettings, contrastive_loss
from wardround.client.supervision.distillation import certain_distillation
from wardround.models.catalogue import Features, feature_modules
from wardround.strategies.plan import RoundPlan

CPU = torch.device("cpu")
SHAPE = (16, 16, 16)
EVERYTHING = Distillation(weight=0.4, head=True, contrast=0.1)


def ball(seed: int, scale: int = 1) -> Sample:
    rng, shape = np.random.default_rng(seed), tuple(scale * side for side in SHAPE)
    centre = np.array(shape) / 2 + rng.uniform(-1, 1, 3)
    distance = np.sqrt(sum((g - c) ** 2 for g, c in zip(np.indices(shape), centre, strict=True)))
    labels = (distance < 6 * scale).astype(np.uint8)
    image = normalise(labels * 2.0 + rng.normal(0, 0.5, shape))
    target = np.stack([1 - labels, labels]).astype(np.float16)
    return Sample(f"case {seed}", image, target, np.ones(shape, np.float16))


def learner(distillation: Distillation = EVERYTHING, seed: int = 0, model: str = "unet3d-small") -> OnlineLearner:
    return OnlineLearner(LearningSettings(model, 2, seed, augmentation=None, distillation=distillation), CPU)


def train(model: OnlineLearner, updates: int, case: int = 0) -> float:
    return model.update(lambda: [ball(case)], updates, 4e-3, np.random.default_rng(case))


def distiller(model: OnlineLearner) -> Distiller:
    found = model.terms[0]
    assert isinstance(found, Distiller)
    return found


def seen(model: OnlineLearner, case: int = 1, scale: int = 1) -> Pass:
    """A pass of the network as it is."""
    batch = model._assemble([ball(case, scale)], np.random.default_rng(0), None)
    with Features(model._network) as features:
        logits = model._network(batch.image)
    return Pass(model._network, logits, batch, features, False, np.random.default_rng(0))


def said(model: OnlineLearner, now: Pass) -> float:
    """What the term adds to the loss."""
    found = distiller(model)(now)
    assert isinstance(found, torch.Tensor)
    return found.item()


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def kept_still(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def test_without_anything_asked_for_there_are_no_terms() -> None:
    assert learner(Distillation()).terms == []
    assert learner(Distillation(contrast=0.1, scales=())).terms == []


def test_the_first_case_is_learnt_as_if_there_were_no_distillation() -> None:
    plain, taught = learner(Distillation()), learner()
    for model in (plain, taught):
        model.open_case(learnt=False)
    assert train(plain, 3) == train(taught, 3)
    assert same(plain.frozen().state_dict(), taught.frozen().state_dict())
    for model in (plain, taught):
        model.open_case(learnt=True)
    assert train(plain, 1, 1) != train(taught, 1, 1)


def test_a_teacher_is_the_network_before_the_case_and_stays_it() -> None:
    model = learner()
    train(model, 2)
    before = kept_still(model._network)
    model.open_case(learnt=True)
    (teacher,) = distiller(model).teachers
    assert teacher.network is not model._network
    train(model, 3, 1)
    assert same(before, teacher.network.state_dict())
    assert not same(before, model._network.state_dict())
    for module in (teacher.network, teacher.branch):
        assert module is not None
        assert not any(part.training for part in module.modules())
        assert not any(parameter.requires_grad or parameter.grad is not None for parameter in module.parameters())
    shared = {parameter.data_ptr() for parameter in [*model._network.parameters(), *distiller(model).own.parameters()]}
    assert not shared & {p.data_ptr() for m in (teacher.network, teacher.branch) for p in m.parameters()}  # type: ignore[union-attr]
    model.open_case(learnt=True)
    assert same(model._network.state_dict(), distiller(model).teachers[0].network.state_dict())


def test_with_a_teacher_it_says_what_the_formulas_say() -> None:
    settings = Distillation(0.4, 2.0, True, True, 0.1, 0.5, edges=("decoder",), anchors=20, contrasts=50)
    model = learner(settings)
    train(model, 3)
    model.open_case(learnt=True)
    train(model, 3, 1)
    (teacher,), own = distiller(model).teachers, distiller(model).own
    # So large that a voxel of 1/8 lies wholly in the ball.
    found = distiller(model)(now := seen(model, scale=2))
    assert now.features is not None
    with torch.no_grad(), Features(teacher.network) as old:
        logits = teacher.network(now.batch.image)
    expected = 0.4 * certain_distillation(own["head"](now.features.entered("decoder.0")), logits, 2.0, True)
    assert teacher.branch is not None
    pairs = {
        "encoder": (now.features["encoder.0"], old["encoder.0"]),
        "bottleneck": (now.features["bottleneck"], old["bottleneck"]),
        "branch": (own["branch"](now.features.entered("bottleneck")), teacher.branch(old.entered("bottleneck"))),
        "decoder": (now.features["decoder.1"], old["decoder.1"]),
    }
    rng = np.random.default_rng(0)
    for scale, (new_, old_) in pairs.items():
        how = ContrastSettings(0.5, scale == "decoder", 20, 50)
        apart = contrastive_loss(new_, old_, now.batch.target, logits.softmax(1), now.batch.weight, how, rng)
        assert apart > 0, f"nothing is compared at {scale}"
        expected = expected + 0.1 * apart
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)  # type: ignore[union-attr]


def test_certainty_and_temperature_reach_the_loss() -> None:
    losses = set()
    for settings in (Distillation(0.4), Distillation(0.4, certainty=False), Distillation(0.4, 2.0)):
        model = learner(settings)
        train(model, 3)
        model.open_case(learnt=True)
        losses.add(said(model, seen(model)))
    assert len(losses) == 3


@pytest.mark.parametrize("head", [True, False])
def test_what_the_teacher_says_reaches_trunk_and_head(head: bool) -> None:
    model = learner(Distillation(weight=0.4, head=head))
    train(model, 3)
    model.open_case(learnt=True)
    train(model, 3, 1)
    model._optimiser.zero_grad()
    (term := distiller(model)(seen(model))).backward()  # type: ignore[union-attr]
    assert term.item() > 0  # type: ignore[union-attr]
    stages = feature_modules(model._network)
    reached = {name: _moved(stages[name]) for name in ("encoder.0", "bottleneck", "decoder.1", "decoder.0")}
    # A second head is answered instead of the first, which is left to what is drawn.
    assert reached == {"encoder.0": True, "bottleneck": True, "decoder.1": True, "decoder.0": not head}
    assert not head or _moved(distiller(model).own["head"])


def _moved(module: nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.parameters())


def test_the_contrast_of_a_scale_reaches_what_makes_its_features_and_nothing_behind() -> None:
    model = learner(Distillation(contrast=0.1, scales=("encoder",)))
    train(model, 2)
    model.open_case(learnt=True)
    train(model, 2, 1)
    model._optimiser.zero_grad()
    distiller(model)(seen(model)).backward()  # type: ignore[union-attr]
    stages = feature_modules(model._network)
    assert [_moved(stages[name]) for name in ("encoder.0", "encoder.1", "decoder.0")] == [True, False, False]
    assert not distiller(model).own


def test_own_modules_are_trained_at_the_same_rate_and_never_leave() -> None:
    model = learner()
    names = set(learner(Distillation()).weights())
    model.open_case(learnt=True)
    head = kept_still(distiller(model).own["head"])
    assert same(head, feature_modules(model._network)["decoder.0"].state_dict())
    train(model, 2, 1)
    assert not same(head, distiller(model).own["head"].state_dict())
    assert {group["lr"] for group in model._optimiser.param_groups} == {4e-3}
    assert set(model.weights()) == names
    assert {name.split("/")[0] for name in model.local()} == {"distiller"}
    assert {name.split("/")[1].split(".")[0] for name in model.local()} == {"head", "branch"}


def test_own_modules_begin_as_the_network_is_when_the_first_teacher_comes() -> None:
    model = learner()
    train(model, 2)
    assert model.local() == {}
    model.open_case(learnt=True)
    assert same(distiller(model).own["branch"].state_dict(), feature_modules(model._network)["bottleneck"].state_dict())
    train(model, 2, 1)
    trained = kept_still(distiller(model).own)
    model.open_case(learnt=True)
    assert same(trained, distiller(model).own.state_dict())


@pytest.mark.parametrize("head", [True, False])
def test_it_goes_on_bit_by_bit_from_what_a_site_keeps(head: bool) -> None:
    settings = replace(EVERYTHING, head=head)
    whole, restored = learner(settings), learner(settings, seed=5)
    whole.open_case(learnt=True)
    train(whole, 2)
    restored.load(whole.weights())
    restored.load_local(whole.local())
    restored.load_optimiser_state(whole.optimiser_state())
    for model in (whole, restored):
        model.open_case(learnt=True)
    assert train(whole, 2, 1) == train(restored, 2, 1)
    for one, other in ((whole.weights(), restored.weights()), (whole.local(), restored.local())):
        assert one.keys() == other.keys()
        assert all(np.array_equal(array, other[name]) for name, array in one.items())
    # A plan that asks for less finds what is left of it, and no more.
    less = learner(Distillation(weight=0.4))
    less.load(whole.weights())
    less.load_local(whole.local())
    less.load_optimiser_state(whole.optimiser_state())
    assert not any("/" in name.rsplit("/", 1)[0] for name in less.optimiser_state())


@pytest.mark.parametrize("federation", [False, True])
@pytest.mark.parametrize(("before", "new"), [("head", "branch"), ("branch", "head")])
def test_a_module_that_the_earlier_plan_did_not_ask_for_begins_as_the_network_is(
    before: str, new: str, federation: bool
) -> None:
    less = learner(replace(EVERYTHING, head=before == "head", contrast=0.1 * (before == "branch")))
    less.open_case(learnt=True)
    train(less, 2)
    kept = less.local()
    assert {name.split("/")[1].split(".")[0] for name in kept} == {before}
    more = learner(replace(EVERYTHING, case=not federation, federation=federation), seed=5)
    more.load(less.weights())
    more.load_local(kept)
    more.load_optimiser_state(less.optimiser_state())
    more.open_case(learnt=True)
    own, stage = distiller(more).own, {"head": "decoder.0", "branch": "bottleneck"}
    trained, stages = distiller(less).own[before].state_dict(), feature_modules(less._network)
    assert same(trained, own[before].state_dict())
    assert same(stages[stage[new]].state_dict(), own[new].state_dict())
    assert not same(trained, stages[stage[before]].state_dict())
    train(more, 1, 1)
    assert {name.split("/")[1].split(".")[0] for name in more.local()} == {"head", "branch"}


def test_what_was_kept_and_never_begun_again_is_not_taken_for_begun() -> None:
    """A site that has a head of an earlier round, and no teacher in this one, keeps the head and no branch."""
    less = learner(replace(EVERYTHING, contrast=0.0))
    less.open_case(learnt=True)
    more = learner()
    more.load(less.weights())
    more.load_local(less.local())
    assert more.local().keys() == less.local().keys()


def test_a_contrast_without_effect_is_remarked_on() -> None:
    model = learner(Distillation(contrast=0.1))
    model.open_case(learnt=False)
    train(model, 1)
    assert distiller(model).remarks() == (), "nobody was to be heard"
    model.open_case(learnt=True)
    now = seen(model, scale=2)
    slices = torch.zeros_like(now.batch.weight)
    slices[:, :, :, 15] = 1
    distiller(model)(replace(now, batch=_with(now.batch, weight=slices)))
    (remark,) = distiller(model).remarks()
    assert "no effect at encoder, bottleneck, branch, decoder" in remark
    # At 16 voxels a side no voxel of 1/8 lies in the ball, but many of 1/2 do.
    distiller(model)(seen(model))
    (remark,) = distiller(model).remarks()
    assert "no effect at bottleneck, branch:" in remark
    distiller(model)(now)
    assert distiller(model).remarks() == (), "once in a round is enough"
    distiller(model)(replace(now, batch=_with(now.batch, weight=slices)))
    assert distiller(model).remarks() == ()
    model.load(model.weights())
    model.open_case(learnt=True)
    distiller(model)(replace(now, batch=_with(now.batch, weight=slices)))
    assert len(distiller(model).remarks()) == 1, "the next round begins anew"


def test_back_at_a_checkpoint_it_has_the_teacher_and_the_heads_of_then() -> None:
    straight, there_and_back = learner(), learner()
    for model in (straight, there_and_back):
        model.open_case(learnt=True)
        train(model, 1)
    checkpoint = there_and_back.checkpoint()
    there_and_back.open_case(learnt=True)
    train(there_and_back, 2, 7)
    there_and_back.restore(checkpoint)
    assert train(straight, 2, 1) == train(there_and_back, 2, 1)
    assert all(np.array_equal(array, there_and_back.local()[name]) for name, array in straight.local().items())


def test_the_federation_teaches_with_the_weights_that_were_loaded() -> None:
    settings = replace(EVERYTHING, case=False, federation=True)
    model, weights = learner(settings), learner(seed=4).weights()
    assert distiller(model).teachers == ()
    model.load(weights)
    (teacher,) = distiller(model).teachers
    model.open_case(learnt=True)
    assert distiller(model).teachers == (teacher,)
    train(model, 2)
    assert all(np.array_equal(weights[name], tensor.numpy()) for name, tensor in teacher.network.state_dict().items())
    # Its branch is the site's, as it was kept.
    other = learner(settings)
    other.load(weights)
    other.load_local(model.local())
    branch = distiller(other).teachers[0].branch
    assert branch is not None
    assert same(distiller(model).own["branch"].state_dict(), branch.state_dict())
    assert not any(parameter.requires_grad for parameter in branch.parameters())


def test_two_teachers_have_half_of_the_weight_each() -> None:
    found = {}
    weights = learner(seed=4).weights()
    for case, federation in ((True, False), (False, True), (True, True)):
        model = learner(Distillation(weight=0.4, case=case, federation=federation))
        model.load(weights)
        train_from = learner(Distillation(), seed=2)
        model._network.load_state_dict(train_from._network.state_dict())
        model.open_case(learnt=True)
        assert len(distiller(model).teachers) == case + federation
        found[case, federation] = said(model, seen(model))
    assert found[True, False] != found[False, True]
    assert found[True, True] == pytest.approx((found[True, False] + found[False, True]) / 2, rel=1e-6)


def test_the_plan_says_who_teaches() -> None:
    def settings(round_: int, **fields: object) -> Distillation:
        plan = {"run": "r", "round": round_, "rounds": 3, "seed": 0, "model": "unet3d-small", "labels": 2}
        return Distillation.of(RoundPlan.model_validate(plan | fields))

    assert not settings(2).active
    assert LearningSettings.of(
        RoundPlan(run="r", round=1, rounds=1, seed=0, model="unet3d-small", labels=2, stored_logits=0.5)
    ).stored_logits == 0.5  # fmt: skip
    asked = {"distill_weight": 0.4, "distill_temperature": 2.0, "distill_certainty": False, "distill_head": True}
    contrast = {"contrast_weight": 0.1, "contrast_temperature": 0.5, "contrast_scales": ("encoder",)}
    expected = Distillation(0.4, 2.0, False, True, 0.1, 0.5, ("encoder",), ("encoder",), case=True, federation=False)
    assert settings(2, **asked, **contrast, contrast_edges=("encoder",)) == expected
    who = {
        (teachers, round_): (found.case, found.federation)
        for teachers in ("case", "federation", "both")
        for round_ in (1, 2)
        for found in [settings(round_, distill_weight=1.0, teachers=teachers)]
    }
    assert who == {
        ("case", 1): (True, False), ("case", 2): (True, False),
        ("federation", 1): (False, False), ("federation", 2): (False, True),
        ("both", 1): (True, False), ("both", 2): (True, True),
    }  # fmt: skip


def test_what_lies_outside_of_the_image_is_not_asked_for() -> None:
    model = learner(replace(EVERYTHING, scales=("encoder",)))
    train(model, 2)
    model.open_case(learnt=True)
    train(model, 2, 1)
    now = seen(model)
    before = said(model, now)
    inside = torch.zeros_like(now.batch.inside)
    outside = replace(now, batch=_with(now.batch, inside=inside))
    assert before > 0
    assert said(model, outside) == 0


def _with(batch: Batch, **fields: torch.Tensor) -> Batch:
    return replace(batch, **fields)  # type: ignore[arg-type]


def test_slices_are_taught_as_well_as_volumes_and_attention_is_no_hindrance() -> None:
    model = learner(EVERYTHING, model="unet2d-small-attention")
    assert distiller(model).settings.scales == SCALES
    train(model, 1)
    model.open_case(learnt=True)
    assert np.isfinite(train(model, 1, 1))


def test_a_batch_of_background_is_contrasted_with_nothing() -> None:
    model = learner(Distillation(contrast=0.1))
    train(model, 1)
    model.open_case(learnt=True)
    now = seen(model)
    target = torch.zeros_like(now.batch.target)
    target[:, 0] = 1
    term = distiller(model)(replace(now, batch=_with(now.batch, target=target)))
    assert term.item() == 0  # type: ignore[union-attr]
    term.backward()  # type: ignore[union-attr]
    assert not any(bool(p.grad.isnan().any()) for p in model._network.parameters() if p.grad is not None)


def test_in_mixed_precision_it_learns_from_the_same_teachers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU is not at hand: half precision of a CPU goes the same way."""
    monkeypatch.setattr(OnlineLearner, "_mixed", True)
    model = learner()
    model.open_case(learnt=True)
    with torch.autocast("cpu"):
        now = replace(seen(model), mixed=True)
    assert now.features is not None
    assert now.features["bottleneck"].dtype == torch.bfloat16
    whole = said(model, seen(model))
    assert said(model, replace(now, logits=now.logits.float())) == pytest.approx(whole, rel=0.02)
    assert np.isfinite(train(model, 2, 1))
    assert all(np.isfinite(array).all() for array in [*model.weights().values(), *model.local().values()])
