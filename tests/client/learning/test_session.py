"""One case: what is frozen, what is blended, what the model may say, and what its agreement is worth."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from wardround.client.annotation.annotator import Truth
from wardround.client.annotation.expansion import CONTRASTED, ExpansionSettings
from wardround.client.annotation.prompts import UNLABELLED, PointPrompt, ScribblePrompt, SliceRequest
from wardround.client.annotation.propagation import ProxyMask
from wardround.client.cases.volume import Volume
from wardround.client.learning import session as module
from wardround.client.learning import targets
from wardround.client.learning.augmentation import StrongAugmentation
from wardround.client.learning.session import NEIGHBOURHOOD, CaseSession, disagreement
from wardround.strategies.plan import RoundPlan

SHAPE = (12, 14, 10)
LABELS = np.zeros(SHAPE, np.uint8)
LABELS[3:9, 3:11, 2:8] = 1
TRUTH = Truth(Volume(LABELS, np.eye(4)))
IMAGE = Volume((LABELS * 2 + np.random.default_rng(0).normal(0, 0.3, SHAPE)).astype(np.float32), np.eye(4))


class Model:
    """Predicts whatever its `object_here` says, surer from call to call."""

    def __init__(self, object_here: np.ndarray, sure: float = 0.7) -> None:
        self.object_here, self.sure, self.calls = object_here, sure, 0

    def predict(self, image: np.ndarray) -> np.ndarray:
        self.calls += 1
        probability = np.where(self.object_here, self.sure, 1 - self.sure).astype(np.float32)
        self.sure = min(0.99, self.sure + 0.02)
        return np.stack([1 - probability, probability])


def plan(**fields: object) -> RoundPlan:
    settings: dict[str, object] = {
        "run": "test", "round": 2, "rounds": 4, "seed": 0, "model": "unet3d-small", "labels": 2, "slices_per_case": 6,
        "annotation_rounds": 3, "suggestion": "residual",
    }  # fmt: skip
    return RoundPlan.model_validate(settings | fields)


def session(model: Model | None = None, *, trust: float = 0.0, **fields: object) -> CaseSession:
    rng = np.random.default_rng(4)
    learner: Any = model or Model(LABELS == 1)
    return CaseSession("a", IMAGE, learner, plan(**fields), rng, TRUTH.extent(), progress=0.5, trust=trust)


def draw(case: CaseSession) -> None:
    case.answer(*(TRUTH.slice(request) for request in case.suggest(len(case.steps))))


def test_the_prediction_before_the_case_is_bit_identical_in_all_rounds() -> None:
    case = session(fusion=0.5)
    before, targets = case.before.copy(), []
    for _ in range(3):
        draw(case)
        targets.append(case.sample().target)
        case.refresh()
        assert np.array_equal(case.before, before)
        assert not np.array_equal(case.prediction, before)
    assert case.proxy is not None
    off = ~case.proxy.annotated
    expected = 0.75 * case.proxy.probabilities[:, off] + 0.25 * before[:, off]
    assert np.allclose(targets[-1][:, off], expected, atol=1e-3)


@pytest.mark.parametrize("schedule", ["linear", "constant", "sigmoid", "inverse-sigmoid", "trust", "confidence"])
def test_the_target_follows_the_frozen_prediction(schedule: str) -> None:
    targets = []
    for where in (LABELS == 1, LABELS == 0):
        case = session(Model(where), trust=0.5, fusion=0.5, fusion_schedule=schedule)
        case.answer(TRUTH.slice(SliceRequest(2, 5)))
        targets.append(case.sample().target)
    assert ((targets[0] > 0) & (targets[0] < 1)).any()
    assert not np.array_equal(targets[0], targets[1])
    assert np.array_equal(targets[0][..., 5], targets[1][..., 5])


def test_how_far_the_stream_is_decides_the_share() -> None:
    targets = []
    for progress in (0.25, 0.75):
        case = session(fusion=0.0)
        case.progress = progress
        case.answer(TRUTH.slice(SliceRequest(2, 5)))
        targets.append(case.sample().target.astype(np.float32))
        assert case.proxy is not None
        share = 1 - progress
        expected = share * case.proxy.probabilities[..., 0] + (1 - share) * case.before[..., 0]
        assert np.allclose(targets[-1][..., 0], expected, atol=1e-3)


def test_dense_labels_are_certain_everywhere_and_heavier_where_slices_were_asked_for() -> None:
    case = session(supervision="dense", annotated_weight=4.0, confidence_weight=1.0)
    case.dense = tuple(TRUTH.slice(SliceRequest(2, k)) for k in range(SHAPE[2]))
    draw(case)
    asked = np.zeros(SHAPE, bool)
    for request in case.chosen:
        asked[(slice(None),) * request.axis + (request.index,)] = True
    assert np.array_equal(case.sample().weight, np.where(asked, 5, 1))


def test_the_model_votes_with_its_earlier_prediction_and_with_the_weight_it_has_earned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    votes: list[tuple[Any, float]] = []
    inner: Callable[..., ProxyMask] = module.propagate

    def listening(*given: Any, prediction: Any, model_weight: float, **rest: Any) -> ProxyMask:
        votes.append((prediction, model_weight))
        return inner(*given, prediction=prediction, model_weight=model_weight, **rest)

    monkeypatch.setattr(module, "propagate", listening)
    case = session(trust=0.25, model_vote=2.0)
    for _ in range(2):
        draw(case)
        case.refresh()
    assert [weight for _, weight in votes] == [0.5, 0.5]
    assert all(prediction is case.before for prediction, _ in votes)
    votes.clear()
    draw(session(trust=0.0, model_vote=2.0))
    draw(session(trust=0.5, model_vote=0.0))
    assert votes == [(None, 0.0), (None, 0.0)]


def test_uncertainty_is_asked_for_where_the_plan_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray | None] = []
    inner = module.next_slices

    def listening(*given: Any, uncertainty: Any, **rest: Any) -> tuple[SliceRequest, ...]:
        seen.append(uncertainty)
        return inner(*given, uncertainty=uncertainty, **rest)

    monkeypatch.setattr(module, "next_slices", listening)
    session().suggest(0)
    model = Model(LABELS == 1)
    case = session(model, uncertainty=3)
    case.suggest(0)
    assert seen[0] is None
    assert seen[1] is not None
    assert seen[1].shape == SHAPE
    assert 0 < seen[1].max() <= 1
    assert model.calls == 4


def test_agreement_looks_at_drawn_voxels_only() -> None:
    """The model is right on the drawn slice and wrong everywhere else; what it says there earns and costs nothing."""
    where = LABELS == 0
    where[..., 5] = LABELS[..., 5] == 1
    case = session(Model(where), trust=1.0, model_vote=50.0)
    case.answer(TRUTH.slice(SliceRequest(2, 5)))
    assert case.agreement == 1.0
    case.answer(TRUTH.slice(SliceRequest(2, 4)))
    assert case.agreement < 0.7


def test_a_slice_without_an_object_says_nothing_about_agreement() -> None:
    case = session(Model(np.zeros(SHAPE, bool)))
    case.answer(TRUTH.slice(SliceRequest(2, 0)))
    assert np.isnan(case.agreement)


def test_disagreement_is_that_of_the_first_proxy_and_stays() -> None:
    case = session()
    draw(case)
    first = case.disagreement
    assert first is not None
    case.refresh()
    draw(case)
    assert case.disagreement == first


def test_disagreement_is_the_mean_residual_round_the_object() -> None:
    shape = (20, 20, 20)
    labels = np.zeros(shape, np.uint8)
    labels[10, 10, 10] = 1
    sure = np.stack([1 - labels, labels]).astype(np.float32)
    proxy = ProxyMask(sure, np.zeros(shape, bool), np.ones(shape, np.float32))
    far, near = sure.copy(), sure.copy()
    far[:, 0, 0, 0] = [0, 1]
    near[:, 10, 10, 11] = [0, 1]
    # Voxels within three steps along the axes: an octahedron.
    octahedron = sum(4 * n * n + 2 for n in range(1, NEIGHBOURHOOD + 1)) + 1
    assert disagreement(proxy, sure) == 0
    assert disagreement(proxy, far) == 0
    assert disagreement(proxy, near) == pytest.approx(1 / octahedron)
    nothing = ProxyMask(np.stack([np.ones(shape), np.zeros(shape)]).astype(np.float32), proxy.annotated, sure[0])
    assert disagreement(nothing, sure) == pytest.approx(1 / 20**3)


def test_strokes_and_points_are_answers_too() -> None:
    case = session()
    stroke = np.full(SHAPE[:2], UNLABELLED, np.uint8)
    stroke[5, 4:9] = 1
    stroke[0, :] = 0
    case.answer(ScribblePrompt(2, 5, stroke), PointPrompt((6, 6, 4), 1))
    sample = case.sample()
    drawn = np.zeros(SHAPE, bool)
    drawn[..., 5] = stroke != UNLABELLED
    drawn[6, 6, 4] = True
    assert np.array_equal(sample.weight > 1, drawn)
    assert (sample.target[1][drawn & (LABELS == 1)] == 1).all()
    steps = case.rewind()
    case.repeat(steps[0])
    assert np.array_equal(case.sample().target, sample.target)


def test_rewinding_returns_to_the_first_suggestion() -> None:
    case = session(suggestion="random")
    first = case.suggest(0)
    case.answer(*(TRUTH.slice(request) for request in first))
    second = case.suggest(1)
    steps = case.rewind()
    assert len(steps) == 1
    assert case.chosen == ()
    assert case.suggest(0) == first
    case.rewind()
    case.repeat(steps[0])
    assert case.chosen == first
    assert case.suggest(1) == second


def test_a_model_that_contradicts_this_cases_drawings_has_no_vote_on_it() -> None:
    seen = []
    for where in (LABELS == 1, LABELS == 9):
        case = session(Model(where, sure=0.99), trust=0.9, model_vote=0.4)
        case.answer(TRUTH.slice(SliceRequest(1, 4)), TRUTH.slice(SliceRequest(1, 9)))
        assert case.proxy is not None
        seen.append((case.vote, case.proxy.probabilities.copy(), case.proxy.confidence.copy()))
    alone = session(model_vote=0.0)
    alone.answer(TRUTH.slice(SliceRequest(1, 4)), TRUTH.slice(SliceRequest(1, 9)))
    assert alone.proxy is not None
    assert seen[0][0] == pytest.approx(0.4 * 0.9)
    assert not np.array_equal(seen[0][1], alone.proxy.probabilities)
    assert seen[1][0] == 0
    assert np.array_equal(seen[1][1], alone.proxy.probabilities)
    assert np.array_equal(seen[1][2], alone.proxy.confidence)


def test_resuming_leads_to_where_the_steps_led() -> None:
    drawn, resumed = session(), session()
    for _ in range(2):
        draw(drawn)
    draw(resumed)
    resumed.resume(drawn.steps, drawn.extent)
    assert drawn.proxy is not None
    assert resumed.proxy is not None
    assert np.array_equal(resumed.proxy.probabilities, drawn.proxy.probabilities)
    assert (resumed.steps, resumed.chosen) == (drawn.steps, drawn.chosen)
    assert resumed.rng.bit_generator.state == drawn.rng.bit_generator.state
    assert resumed.disagreement == drawn.disagreement
    resumed.resume((), drawn.extent)
    assert (resumed.proxy, resumed.disagreement, resumed.steps) == (None, None, ())


def test_a_slice_that_was_scribbled_on_is_not_asked_for_again() -> None:
    case = session(prompts="scribbles", suggestion="even", annotation_rounds=3)
    asked: list[SliceRequest] = []
    for step in range(3):
        requests = case.suggest(step)
        strokes = [np.where(TRUTH.slice(request).labels == 1, 1, UNLABELLED).astype(np.uint8) for request in requests]
        case.answer(*(ScribblePrompt(r.axis, r.index, labels) for r, labels in zip(requests, strokes, strict=True)))
        asked += requests
    assert len(set(asked)) == len(asked) == 6


def test_what_points_spread_to_is_learnt_from_as_if_drawn_and_regularised_as_if_not() -> None:
    case = session(prompts="points", supervision="partial", annotated_weight=4.0)
    points = TRUTH.points()
    case.answer(*points)
    sample = case.sample()
    assert sample.drawn is not None
    assert np.count_nonzero(sample.drawn) == len({point.index for point in points}) == 7
    known = sample.weight > 0
    assert np.count_nonzero(known) > 100
    assert set(np.unique(sample.weight[known])) == {np.float16(5)}
    assert set(np.unique(sample.target[:, known])) == {0, 1}
    # What lies outside of the box of the points is background, and so is no part of the structure beyond it.
    assert known[0, 0, 0]
    assert sample.target[0, 0, 0, 0] == 1
    # One more click says what lies under it and moves no box.
    index = case.suggest_point()
    assert index is not None
    assert not sample.drawn[index]
    case.answer(TRUTH.label_at(index))
    more = case.sample()
    assert more.drawn is not None
    assert np.count_nonzero(more.drawn) == 8
    assert np.argmax(more.target[(slice(None), *index)]) == LABELS[index]
    assert np.count_nonzero((more.weight > 0) != known) <= 1


def scribbled(**fields: object) -> CaseSession:
    """One voxel wide: the structure along one line, background along another."""
    case = session(Model(LABELS > 1, 0.99), fusion=0.0, prompts="scribbles", supervision="partial", **fields)
    case.progress = 1.0
    strokes = np.full(SHAPE[:2], UNLABELLED, np.uint8)
    strokes[4:9, 6], strokes[1, 1:12] = 1, 0
    case.answer(ScribblePrompt(2, 5, strokes))
    return case


def pointed(**fields: object) -> CaseSession:
    case = session(Model(LABELS > 1, 0.99), fusion=0.0, prompts="points", supervision="partial", **fields)
    case.progress = 1.0
    case.answer(*TRUTH.points())
    return case


@pytest.mark.parametrize("flat", [False, True], ids=["3d", "2d"])
@pytest.mark.parametrize("draw_on", [scribbled, pointed])
def test_what_was_drawn_keeps_its_label_through_augmentation(draw_on: Callable[[], CaseSession], flat: bool) -> None:
    """The model says background everywhere, the proxy has no share: only what was drawn can speak for a thin stroke.

    Where two labels lie within two voxels of each other, either may be in the majority.
    """
    sample = draw_on().sample()
    known, label = sample.weight > 0, sample.target.argmax(axis=0)
    others = [ndimage.distance_transform_cdt(~(known & (label == other))) > 2 for other in (1, 0)]
    asked = known & np.where(label == 0, *others)
    slices = (..., 5) if flat else (...,)
    image, target, maps = (
        torch.from_numpy(part[slices][None].astype(np.float32))
        for part in (sample.image[None], sample.target, np.stack([asked, label]))
    )
    met = {0: 0, 1: 0}
    for seed in range(20):
        _, found, moved = StrongAugmentation(moved=1.0)(image, target, maps, np.random.default_rng(seed))
        counts, own = moved[0, 0] > 0, moved[0, 1]
        assert torch.equal(found[0].argmax(dim=0)[counts].float(), own[counts])
        met = {label: met[label] + int((own[counts] == label).sum()) for label in met}
    assert min(met.values()) > 20


def test_labels_spread_where_only_strokes_and_points_count() -> None:
    """Elsewhere the target off the drawing is that of proxy and prediction."""
    case = scribbled()
    off = case.sample().weight == 0
    assert case.sample().target[1][off].any()
    for supervision in ("proxy", "dense"):
        case.plan = plan(fusion=0.0, supervision=supervision)
        assert np.allclose(case.sample().target[:, off], case.before[:, off], atol=1e-3)
    sliced = session(Model(LABELS > 1, 0.99), fusion=0.0, supervision="partial")
    sliced.progress = 1.0
    sliced.answer(TRUTH.slice(SliceRequest(2, 5)))
    beside = sliced.sample().target[..., 6]
    assert np.allclose(beside, sliced.before[..., 6], atol=1e-3)


@pytest.mark.parametrize(("fields", "settings"), [({}, ExpansionSettings()), ({"expansion": "contrasted"}, CONTRASTED)])
def test_points_spread_as_far_as_the_plan_says(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, str], settings: ExpansionSettings
) -> None:
    used: list[ExpansionSettings] = []
    inner = targets.expand_points

    def listening(*given: Any) -> Any:
        used.append(given[-1])
        return inner(*given)

    monkeypatch.setattr(targets, "expand_points", listening)
    case = session(prompts="points", supervision="partial", **fields)
    case.answer(*TRUTH.points())
    sample = case.sample()
    assert used == [settings]
    found = np.where(sample.weight > 0, sample.target.argmax(axis=0), UNLABELLED)
    assert np.array_equal(found, inner(IMAGE.array, IMAGE.spacing, TRUTH.points(), settings))


def test_before_anything_is_drawn_no_point_is_asked_for() -> None:
    assert session(prompts="points").suggest_point() is None
