"""One hospital through its small interface: what it learns from, what it repeats, what it lets out."""

import json
from pathlib import Path

import numpy as np
import pytest

from wardround.client.annotation.annotator import SimulatedAnnotator, Truth
from wardround.client.annotation.prompts import ExtentPrompt, SlicePrompt, SliceRequest
from wardround.client.cases.phantoms import draw_phantom
from wardround.client.cases.store import CaseStore
from wardround.client.cases.volume import Volume
from wardround.client.learning import round as round_module
from wardround.client.learning.round import OnlineRound
from wardround.client.learning.safeguard import Safeguard
from wardround.client.learning.targets import make_target, proxy_share
from wardround.client.site import REFERENCE, Interaction, Site, _seed
from wardround.client.supervision.attentive import KernelHealth
from wardround.errors import DataError
from wardround.models.catalogue import build
from wardround.models.weights import load_arrays, weights_of
from wardround.strategies.contract import KERNEL_MEAN, KERNEL_RATIO, MADE, MADE_FAITHFUL, MADE_NEARER, TRAIN_METRICS
from wardround.strategies.plan import RoundPlan

# Told without a generator; attention is looked at where a plan asks for it.
USUAL = TRAIN_METRICS - {MADE, MADE_NEARER, MADE_FAITHFUL}
CASES = {f"case-{n}": draw_phantom(np.random.default_rng(n), shape=(16, 24, 16)) for n in range(4)}


def plan(round_: int = 1, **fields: object) -> RoundPlan:
    settings: dict[str, object] = {
        "run": "test", "round": round_, "rounds": 2, "seed": 3, "model": "unet3d-small", "labels": 3,
        "updates_per_case": 4, "slices_per_case": 4,
    }  # fmt: skip
    return RoundPlan.model_validate(settings | fields)


def site(
    folder: Path,
    annotator: object = None,
    observer: object = None,
    schedule: list[list[str]] = [["case-0", "case-1"], ["case-2"]],  # noqa: B006
) -> Site:
    """A site with two cases in round 1, one in round 2, and one to test on."""
    folder.mkdir(parents=True, exist_ok=True)
    with CaseStore(folder / "store") as store:
        for number, (name, (image, labels)) in enumerate(CASES.items()):
            store.add_case(name, image, role="test" if number == 3 else "stream")
            if number == 3:
                store.save_label(name, labels, author=REFERENCE, round=0, effort=0.0)
    settings = {
        "name": "north", "schedule": schedule, "test": ["case-3"], "author": "tester", "store": "store",
    }  # fmt: skip
    (folder / "site.json").write_text(json.dumps(settings))
    if annotator is None:
        annotator = SimulatedAnnotator({name: Truth(labels) for name, (_, labels) in CASES.items()})
    return Site.open(folder, annotator, observer, device="cpu")  # type: ignore[arg-type]


START = weights_of(build("unet3d-small", labels=3, seed=0))


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(array, other[name]) for name, array in one.items())


class Recorder:
    """Keeps every interaction."""

    def __init__(self) -> None:
        self.seen: list[Interaction] = []

    def observe(self, interaction: Interaction) -> dict[str, float]:
        self.seen.append(interaction)
        return {"slices": float(len(interaction.annotations.slices))}


class Forgetful:
    """Draws from labels that hold NaN everywhere but on the slices that were asked for in a first run."""

    def __init__(self, asked: set[tuple[str, SliceRequest]], inner: SimulatedAnnotator) -> None:
        self._asked, self._inner = asked, inner

    def extent(self, case_id: str) -> ExtentPrompt | None:
        return self._inner.extent(case_id)

    def draw(self, case_id: str, request: SliceRequest) -> SlicePrompt:
        known = np.full(CASES[case_id][1].shape, np.nan)
        for name, drawn in self._asked:
            if name == case_id:
                where = (slice(None),) * drawn.axis + (drawn.index,)
                known[where] = CASES[case_id][1].array[where]
        labels = np.take(known, request.index, request.axis)
        assert not np.isnan(labels).any(), "a slice was read that nobody asked for"
        return SlicePrompt(request.axis, request.index, labels.astype(np.uint8))


def test_a_round_changes_the_weights_and_answers_with_agreed_scalars_only(tmp_path: Path) -> None:
    update = site(tmp_path).train(plan(), START)
    assert not same(update.weights, START)
    assert set(update.metrics) == USUAL - {KERNEL_MEAN, KERNEL_RATIO}
    assert update.metrics["num-examples"] == 2
    assert update.metrics["updates"] == 8
    assert all(array.dtype == START[name].dtype for name, array in update.weights.items())


def test_a_round_that_is_asked_for_again_gives_the_same_bits(tmp_path: Path) -> None:
    first = site(tmp_path)
    one = first.train(plan(1), START)
    two = first.train(plan(2), one.weights)
    first.close()
    again = site(tmp_path)
    assert same(again.train(plan(2), one.weights).weights, two.weights)
    assert same(again.train(plan(1), START).weights, one.weights)
    assert same(again.train(plan(2), one.weights).weights, two.weights)


DISTILLED: dict[str, object] = {
    "distill_weight": 0.4, "distill_head": True, "contrast_weight": 0.1, "teachers": "both", "stored_logits": 0.5,
    "updates_per_case": 3, "annotation_rounds": 1,
}  # fmt: skip


def test_with_teachers_it_gives_the_same_bits_and_what_is_local_stays(tmp_path: Path) -> None:
    first = site(tmp_path / "one")
    one = first.train(plan(1, **DISTILLED), START)
    two = first.train(plan(2, **DISTILLED), one.weights)
    first.close()
    again = site(tmp_path / "one")
    assert same(again.train(plan(2, **DISTILLED), one.weights).weights, two.weights)
    assert same(again.train(plan(1, **DISTILLED), START).weights, one.weights)
    assert same(again.train(plan(2, **DISTILLED), one.weights).weights, two.weights)
    assert two.weights.keys() == START.keys()
    kept = load_arrays(tmp_path / "one" / "state" / "round-00002" / "local.safetensors")
    assert {name.split(".")[0] for name in kept} == {"distiller/head", "distiller/branch"}
    before = load_arrays(tmp_path / "one" / "state" / "round-00001" / "local.safetensors")
    assert not same(before, kept)
    # Were a site's own head begun anew in every round, the round would not be the same.
    (tmp_path / "one" / "state" / "round-00001" / "local.safetensors").unlink()
    assert not same(again.train(plan(2, **DISTILLED), one.weights).weights, two.weights)


ATTENTIVE: dict[str, object] = {
    "model": "unet3d-small-attention", "attentive_weight": 0.1, "prompts": "scribbles", "supervision": "partial",
}  # fmt: skip


def test_health_of_attention_is_told_where_the_plan_asks_for_it_and_changes_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = weights_of(build("unet3d-small-attention", labels=3, seed=0))
    with caplog.at_level("INFO", logger="wardround"):
        update = site(tmp_path / "one").train(plan(**ATTENTIVE), start)
    assert set(update.metrics) == USUAL
    assert 0 < update.metrics["kernel-mean"] < 1  # type: ignore[operator]
    assert 0.3 < update.metrics["kernel-ratio"] < 3  # type: ignore[operator]
    assert "attention after round 1" in caplog.text
    assert not any(name in caplog.text for name in CASES)
    again = site(tmp_path / "again").train(plan(**ATTENTIVE), start)
    assert (again.metrics["kernel-mean"], again.metrics["kernel-ratio"]) == (
        update.metrics["kernel-mean"], update.metrics["kernel-ratio"],
    )  # fmt: skip
    monkeypatch.setattr(OnlineRound, "note_kernel", lambda *_: None)
    unseen = site(tmp_path / "unseen").train(plan(**ATTENTIVE), start)
    assert same(unseen.weights, update.weights)
    assert set(unseen.metrics) == USUAL - {KERNEL_MEAN, KERNEL_RATIO}


def test_attention_is_expected_to_say_something_after_the_first_round_and_the_ramp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(round_module, "health_of", lambda *_: KernelHealth(0.1, 0.1, 0.1))
    weights = weights_of(build("unet3d-small-attention", labels=3, seed=0))
    warned = []
    for ramp in (0.0, 1.0):
        north = site(tmp_path / str(ramp))
        for number in (1, 2):
            caplog.clear()
            weights = north.train(plan(number, regularisation_ramp=ramp, **ATTENTIVE), weights).weights
            warned.append("attention says nothing" in caplog.text)
    assert warned == [False, True, False, False]


@pytest.mark.parametrize(("supervision", "warned"), [("partial", True), ("dense", False)])
def test_a_contrast_that_finds_nothing_to_compare_is_warned_of_once_a_round(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, supervision: str, warned: bool
) -> None:
    start = weights_of(build("unet3d-small", labels=3, seed=0))
    fields = {"contrast_weight": 0.1, "contrast_scales": ("encoder",), "slices_per_case": 3, "supervision": supervision}
    with caplog.at_level("WARNING", logger="wardround"):
        site(tmp_path).train(plan(**fields), start)
    told = [record.getMessage() for record in caplog.records if "contrast" in record.getMessage()]
    assert len(told) == warned
    assert all("no effect at encoder" in line for line in told)
    assert not any(name in caplog.text for name in CASES)


def test_without_anything_remembered_attention_is_not_looked_at(tmp_path: Path) -> None:
    start = weights_of(build("unet3d-small-attention", labels=3, seed=0))
    update = site(tmp_path).train(plan(replay_capacity=0, **ATTENTIVE), start)
    assert set(update.metrics) == USUAL - {KERNEL_MEAN, KERNEL_RATIO}


OPTIONS: list[dict[str, object]] = [
    {"suggestion": "information", "fusion_schedule": "constant", "replay": "class-balanced"},
    {"suggestion": "even", "fusion_schedule": "sigmoid", "replay": "random-subset", "replay_capacity": 1},
    {"suggestion": "random", "fusion_schedule": "inverse-sigmoid", "extent": False, "allocation": (1, 2, 1)},
    {"suggestion": "residual-sampled", "fusion_schedule": "trust", "model_vote": 2.0, "adaptivity": 1.0},
    {"fusion_schedule": "confidence", "confidence_weight": 1.0, "boundary_smoothing": 1.5},
    {"suggestion": "information", "uncertainty": 2, "replay": "most-interfered", "validation_cases": 1},
    {"supervision": "dense", "confidence_weight": 0.5, "validation_cases": 1, "annotation_rounds": 1},
    {"supervision": "partial", "adaptivity": 2.0, "validation_cases": 1, "proximal_mu": 0.1},
]
EVERYTHING: dict[str, object] = {
    "suggestion": "residual-sampled", "uncertainty": 2, "model_vote": 1.0, "fusion_schedule": "trust", "fusion": 0.5,
    "confidence_weight": 0.5, "boundary_smoothing": 1.0, "adaptivity": 1.0, "replay": "most-interfered",
    "validation_cases": 1, "updates_per_case": 8,
}  # fmt: skip


@pytest.mark.parametrize("fields", OPTIONS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_a_round_is_learnt_under_every_option(tmp_path: Path, fields: dict[str, object]) -> None:
    north = site(tmp_path, schedule=[["case-0", "case-1"]])
    update = north.train(plan(1, rounds=1, **({"updates_per_case": 2} | fields)), START)
    assert not same(update.weights, START)
    assert all(np.isfinite(array).all() for array in update.weights.values())
    assert set(update.metrics) == USUAL - {KERNEL_MEAN, KERNEL_RATIO}
    assert 0 < update.metrics["trust"] < 1  # type: ignore[operator]
    assert [row["accepted"] for row in north.history() if "accepted" in row] == [True, True]


def test_a_round_that_is_asked_for_again_gives_the_same_bits_under_all_options(tmp_path: Path) -> None:
    first = site(tmp_path)
    one = first.train(plan(1, **EVERYTHING), START)
    two = first.train(plan(2, **EVERYTHING), one.weights)
    history = first.history()
    first.close()
    again = site(tmp_path)
    repeated = again.train(plan(2, **EVERYTHING), one.weights)
    assert same(repeated.weights, two.weights)
    assert again.history() == history
    assert repeated.metrics["trust"] == two.metrics["trust"] != one.metrics["trust"]


@pytest.mark.parametrize("fields", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_what_nobody_drew_does_not_exist_for_the_learner(tmp_path: Path, fields: dict[str, object]) -> None:
    recorder = Recorder()
    whole = site(tmp_path / "whole", observer=recorder)
    expected = whole.train(plan(**fields), START)
    asked = {(i.case_id, s.request) for i in recorder.seen for s in i.annotations.slices}
    inner = SimulatedAnnotator({name: Truth(labels) for name, (_, labels) in CASES.items()})
    blind = site(tmp_path / "blind", annotator=Forgetful(asked, inner))
    assert same(blind.train(plan(**fields), START).weights, expected.weights)


def test_the_prediction_before_a_case_stays_as_it_was(tmp_path: Path) -> None:
    north = site(tmp_path)
    learner = north._learner(plan(), START)
    session = north.interact("case-0", plan(), learner)
    before = session.before.copy()
    truth = Truth(CASES["case-0"][1])
    for step in range(2):
        session.answer(*(truth.slice(request) for request in session.suggest(step)))
        sample = session.sample()
        learner.update(lambda sample=sample: [sample], 2, 1e-3, np.random.default_rng(0))  # type: ignore[misc]
        session.refresh()
    assert np.array_equal(session.before, before)
    assert not np.array_equal(session.prediction, before)
    assert len(session.annotations.slices) == 4


def test_the_target_is_a_blend_off_the_drawn_slices_and_the_drawing_on_them(tmp_path: Path) -> None:
    north = site(tmp_path)
    late = plan(2, supervision="proxy", fusion=0.5, confidence_weight=0.0)
    learner = north._learner(late, START)
    session = north.interact("case-0", late, learner)
    truth = Truth(CASES["case-0"][1])
    session.answer(*(truth.slice(request) for request in session.suggest(0)))
    first = session.sample()
    session.before = 1 - session.before
    second = session.sample()
    assert session.proxy is not None
    drawn = session.proxy.annotated
    assert np.array_equal(first.target[:, drawn], session.proxy.probabilities[:, drawn].astype(np.float16))
    assert ((first.target[:, ~drawn] > 0) & (first.target[:, ~drawn] < 1)).any()
    assert not np.array_equal(first.target[:, ~drawn], second.target[:, ~drawn])
    assert set(np.unique(first.weight)) == {1.0, 5.0}


def test_slices_only_leaves_every_other_voxel_out(tmp_path: Path) -> None:
    north = site(tmp_path)
    partial = plan(supervision="partial")
    session = north.interact("case-0", partial, north._learner(partial, START))
    truth = Truth(CASES["case-0"][1])
    session.answer(*(truth.slice(request) for request in session.suggest(0)))
    weight = session.sample().weight
    assert session.proxy is not None
    assert ((weight > 0) == session.proxy.annotated).all()


def test_the_dense_arm_learns_the_whole_label_under_the_same_voxel_weights(tmp_path: Path) -> None:
    recorder = Recorder()
    site(tmp_path, observer=recorder).train(plan(supervision="dense"), START)
    last = [i for i in recorder.seen if i.case_id == "case-1"][-1]
    assert last.proxy is not None
    assert np.array_equal(last.proxy.labels, CASES["case-1"][1].array)


class Watching(Recorder):
    """Looks at the memory's files at every step, too."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self.files: list[dict[str, bytes]] = []

    def observe(self, interaction: Interaction) -> dict[str, float]:
        self.files.append({file.name: file.read_bytes() for file in self._folder.glob("*.safetensors")})
        return super().observe(interaction)


def test_memory_holds_the_last_target_of_every_case_and_never_the_truth(tmp_path: Path) -> None:
    names = ["case-0", "case-1", "case-2"]
    watching = Watching(tmp_path / "memory")
    north = site(tmp_path, observer=watching, schedule=[[], names])
    # In the second of four rounds the frozen prediction has a share in the target.
    settings = plan(2, rounds=4, fusion=0.5, annotation_rounds=3, slices_per_case=6)
    north.train(settings, START)
    state = north._latest()
    assert state is not None
    assert state.reservoir.kept == tuple(names)
    held = [load_arrays(file) for file in (tmp_path / "memory").glob("*.safetensors")]
    assert len(held) == 3
    for position, name in enumerate(names):
        steps = [interaction for interaction in watching.seen if interaction.case_id == name]
        assert [interaction.step for interaction in steps] == [0, 1, 2, 3]
        image, truth = CASES[name]
        targets = []
        for last in steps[1:]:
            assert last.proxy is not None
            share = proxy_share("linear", 0.5, (1 + position / 3) / 4, 0.0, last.proxy.confidence)
            smoothing = {"boundary_smoothing": 0.0, "spacing": image.spacing}
            targets.append(make_target(last.proxy, steps[0].prediction, share, **smoothing))  # type: ignore[arg-type]
        matches = [[np.array_equal(target, sample["target"]) for sample in held] for target in targets]
        assert [sum(row) for row in matches] == [0, 0, 1]
        exact = truth.array == np.arange(3)[:, None, None, None]
        assert not any(np.array_equal(exact, sample["target"]) for sample in held)
    for interaction, files in zip(watching.seen, watching.files, strict=True):
        assert len(files) == names.index(interaction.case_id), "the case at hand entered memory before it was accepted"


def test_memory_is_bounded_and_the_accepted_label_is_the_proxy(tmp_path: Path) -> None:
    recorder = Recorder()
    north = site(tmp_path, observer=recorder, schedule=[["case-0", "case-1", "case-2"]])
    update = north.train(plan(replay_capacity=2, updates_per_case=1), START)
    assert update.metrics["num-examples"] == 3
    assert len(list((tmp_path / "memory").glob("*.safetensors"))) == 2
    accepted = CaseStore(tmp_path / "store").label("case-0", "tester")
    last = [interaction for interaction in recorder.seen if interaction.case_id == "case-0"][-1]
    assert accepted is not None
    assert last.proxy is not None
    assert np.array_equal(accepted.array, last.proxy.labels)
    assert not np.array_equal(accepted.array, CASES["case-0"][1].array)


def test_a_case_that_is_taken_back_keeps_its_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second case is the first that anybody can judge."""
    monkeypatch.setattr(Safeguard, "fall", lambda guard, learner, between: float(len(guard.samples)))
    north = site(tmp_path)
    settings = plan(validation_cases=1, rehearsal=0.0)
    update = north.train(settings, START)
    assert update.metrics["rejected"] == 1
    assert update.metrics["num-examples"] == 1
    assert update.metrics["cases"] == 2
    state = north._latest()
    assert state is not None
    assert state.reservoir.kept == ("case-0",)
    assert [(row["case"], row["accepted"]) for row in state.history if "accepted" in row] == [
        ("case-0", True), ("case-1", False),
    ]  # fmt: skip
    assert CaseStore(tmp_path / "store").label("case-1", "tester") is not None
    alone = site(tmp_path / "alone", schedule=[["case-0"]])
    assert same(alone.train(settings, START).weights, update.weights)


def test_refusals_in_a_row_are_counted_from_round_to_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Safeguard, "fall", lambda guard, learner, between: float(len(guard.samples)))
    settings = {"validation_cases": 1, "updates_per_case": 1, "rounds": 3}
    schedule = [["case-0", "case-1"], ["case-2"], ["case-3"]]
    for number, refused in ((1, 1), (2, 2), (3, 0)):
        resumed = site(tmp_path, schedule=schedule)
        assert resumed.train(plan(number, **settings), START).metrics["rejected"] == (number < 3)
        state = resumed._latest()
        assert state is not None
        assert state.standing.refused == refused
        resumed.close()
    assert state.reservoir.kept == ("case-0", "case-3")


def test_every_case_and_round_has_random_numbers_of_its_own(tmp_path: Path) -> None:
    north = site(tmp_path)
    learner = north._learner(plan(), START)

    def chosen(name: str, **fields: object) -> tuple[SliceRequest, ...]:
        settings = plan(**({"suggestion": "random", "slices_per_case": 12, "extent": False} | fields))
        return north.interact(name, settings, learner).suggest(0)

    first = chosen("case-0")
    assert chosen("case-0") == first
    assert chosen("case-1") != first
    assert chosen("case-0", round_=2) != first
    assert chosen("case-0", seed=4) != first


def test_random_draws_cover_the_cases_evenly() -> None:
    counts = np.zeros(8)
    for number in range(400):
        rng = np.random.default_rng(_seed(plan(), f"case-{number}"))
        counts[int(rng.integers(8))] += 1
    assert ((counts - 50) ** 2 / 50).sum() < 24.3  # 7 degrees of freedom: p = 0.001


class Reticent:
    """An annotator who says where the object lies to nobody."""

    def extent(self, case_id: str) -> ExtentPrompt | None:
        raise AssertionError("the extent was asked for")

    def draw(self, case_id: str, request: SliceRequest) -> SlicePrompt:
        return Truth(CASES[case_id][1]).slice(request)


def test_the_extent_is_asked_for_only_where_the_plan_says_so(tmp_path: Path) -> None:
    north = site(tmp_path, annotator=Reticent(), schedule=[["case-0"]])
    settings = plan(extent=False, updates_per_case=1)
    assert north.interact("case-0", settings, north._learner(settings, START)).extent is None
    assert north.train(settings, START).metrics["cases"] == 1
    with pytest.raises(AssertionError, match="the extent was asked for"):
        north.interact("case-0", plan(), north._learner(plan(), START))


def test_the_first_suggestion_needs_no_labels(tmp_path: Path) -> None:
    site(tmp_path).close()
    nobody = Site.open(tmp_path, None, device="cpu")
    for rule in ("information", "residual", "residual-sampled", "even", "random"):
        settings = plan(suggestion=rule)
        session = nobody.interact("case-0", settings, nobody._learner(settings, START))
        assert session.residual is None
        requests = session.suggest(0)
        assert requests
        assert all(0 <= each.index < session.image.shape[each.axis] for each in requests)


def test_evaluation_scores_held_back_cases_and_keeps_them_apart(tmp_path: Path) -> None:
    scores = site(tmp_path).evaluate(plan(2), START)
    assert set(scores) == {"num-examples", "dice", "dice-1", "dice-2"}
    assert scores["num-examples"] == 1
    rows = json.loads((tmp_path / "evaluation.json").read_text())["cases"]
    assert [row["case"] for row in rows] == ["case-3"]


def test_a_round_without_cases_rehearses_and_one_without_anything_is_refused(tmp_path: Path) -> None:
    north = site(tmp_path)
    with pytest.raises(DataError, match="nothing to learn from"):
        north.train(plan(7, rounds=9), START)
    one = north.train(plan(1, rounds=9), START)
    again = north.train(plan(5, rounds=9), one.weights)
    assert again.metrics["cases"] == 0
    assert again.metrics["num-examples"] == 2
    assert not same(again.weights, one.weights)


def test_history_stays_at_the_site(tmp_path: Path) -> None:
    north = site(tmp_path, observer=Recorder())
    north.train(plan(), START)
    state = north._latest()
    assert state is not None
    assert [(row["case"], row["step"], row["slices"]) for row in state.history] == [
        ("case-0", 0, 0), ("case-0", 1, 2), ("case-0", 2, 4), ("case-1", 0, 0), ("case-1", 1, 2), ("case-1", 2, 4),
    ]  # fmt: skip


def test_a_site_without_an_observer_has_a_history_as_well(tmp_path: Path) -> None:
    north = site(tmp_path)
    north.train(plan(updates_per_case=1), START)
    rows = north.history()
    assert [row["step"] for row in rows] == [0, 1, 2, 0, 1, 2]
    assert [row["trust"] for row in rows[:3]] == [0.0, 0.0, 0.0]
    assert rows[0]["disagreement"] is None
    assert 0 < rows[3]["trust"] < 1
    assert 0 < rows[5]["disagreement"] < 1


def test_what_a_crash_left_is_swept_and_the_store_is_left_to_itself(tmp_path: Path) -> None:
    site(tmp_path).close()
    (tmp_path / "memory").mkdir(exist_ok=True)
    left = [tmp_path / ".tmp-evaluation", tmp_path / "memory" / ".tmp-sample"]
    for path in left:
        path.write_bytes(b"pixels")
    site(tmp_path)
    assert not any(path.exists() for path in left)


def test_without_memory_a_site_learns_all_the_same(tmp_path: Path) -> None:
    update = site(tmp_path).train(plan(replay_capacity=0), START)
    assert update.metrics["updates"] == 8


def test_both_arms_are_asked_for_slices_by_the_same_rule(tmp_path: Path) -> None:
    """Dense labels are the target of their arm; they decide nothing about which voxels weigh more."""
    asked = []
    for supervision in ("proxy", "dense"):
        north = site(tmp_path / supervision)
        one = plan(supervision=supervision, annotation_rounds=3, slices_per_case=6, confidence_weight=0.0)
        session = north.interact("case-0", one, north._learner(one, START))
        truth = Truth(CASES["case-0"][1])
        if supervision == "dense":
            session.dense = tuple(truth.slice(SliceRequest(2, k)) for k in range(*session.depth))
        for step in range(3):
            session.answer(*(truth.slice(request) for request in session.suggest(step)))
        asked.append((session.chosen, session.sample().weight))
    assert asked[0][0] == asked[1][0]
    assert np.array_equal(asked[0][1], asked[1][1])


def test_a_folder_that_is_no_site_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a site folder"):
        Site.open(tmp_path)


def test_a_new_case_can_be_added_and_status_counts_it(tmp_path: Path) -> None:
    north = site(tmp_path)
    image = CASES["case-0"][0]
    north.add_case("case-9", Volume(image.array + 1, image.affine))
    assert north.status() == {"cases": 5.0, "seen": 0.0, "round": 0.0}
