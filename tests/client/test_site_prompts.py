"""A site whose annotator scribbles or clicks: what is asked, what reaches the learner, and that nothing else does."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround.client.annotation.annotator import SimulatedAnnotator, Truth
from wardround.client.annotation.prompts import (
    UNLABELLED,
    ExtentPrompt,
    PointPrompt,
    ScribblePrompt,
    SlicePrompt,
    SliceRequest,
)
from wardround.client.cases.phantoms import draw_phantom
from wardround.client.cases.store import CaseStore
from wardround.client.site import Interaction, Site
from wardround.errors import DataError
from wardround.models.catalogue import build
from wardround.models.weights import load_arrays, weights_of
from wardround.strategies.contract import KERNEL_MEAN, KERNEL_RATIO, MADE, MADE_FAITHFUL, MADE_NEARER, TRAIN_METRICS
from wardround.strategies.plan import RoundPlan

SHAPE = (16, 24, 16)
CASES = {f"case-{n}": draw_phantom(np.random.default_rng(n), shape=SHAPE) for n in range(2)}
START = weights_of(build("unet3d-small", labels=3, seed=0))

KINDS: dict[str, dict[str, Any]] = {
    "scribbles": {"prompts": "scribbles", "supervision": "partial", "crf_weight": 0.1, "regularisation_side": 16},
    "points": {"prompts": "points", "supervision": "partial", "variance_weight": 0.1, "regularisation_ramp": 0.8},
    "scribbles-proxy": {"prompts": "scribbles", "augmentation": "strong"},
    "points-proxy": {"prompts": "points", "crf_weight": 0.1, "regularisation_side": 16},
}


def plan(round_: int = 1, **fields: object) -> RoundPlan:
    settings: dict[str, object] = {
        "run": "test", "round": round_, "rounds": 2, "seed": 3, "model": "unet3d-small", "labels": 3,
        "updates_per_case": 2, "slices_per_case": 4, "validation_cases": 1,
    }  # fmt: skip
    return RoundPlan.model_validate(settings | fields)


class Person:
    """Answers as the simulated annotator does, and remembers every question and answer."""

    def __init__(self, answers: dict[Any, Any] | None = None) -> None:
        self.inner = SimulatedAnnotator({name: Truth(labels) for name, (_, labels) in CASES.items()})
        self.answers: dict[Any, Any] = {}
        self._known = answers

    def _answer(self, question: Any, ask: Callable[[], Any]) -> Any:
        if self._known is not None:
            return self._known[question]
        self.answers[question] = ask()
        return self.answers[question]

    def extent(self, case_id: str) -> ExtentPrompt | None:
        return self._answer(("extent", case_id), lambda: self.inner.extent(case_id))  # type: ignore[no-any-return]

    def draw(self, case_id: str, request: SliceRequest) -> SlicePrompt:
        return self._answer(("draw", case_id, request), lambda: self.inner.draw(case_id, request))  # type: ignore[no-any-return]

    def strokes(self, case_id: str, request: SliceRequest) -> ScribblePrompt:
        return self._answer(("strokes", case_id, request), lambda: self.inner.strokes(case_id, request))  # type: ignore[no-any-return]

    def points(self, case_id: str) -> tuple[PointPrompt, ...]:
        return self._answer(("points", case_id), lambda: self.inner.points(case_id))  # type: ignore[no-any-return]

    def label_at(self, case_id: str, index: tuple[int, int, int]) -> PointPrompt:
        return self._answer(("label", case_id, index), lambda: self.inner.label_at(case_id, index))  # type: ignore[no-any-return]

    def kinds(self) -> set[str]:
        """What was asked for."""
        return {question[0] for question in self.answers}


class Recorder:
    """Keeps every interaction."""

    def __init__(self) -> None:
        self.seen: list[Interaction] = []

    def observe(self, interaction: Interaction) -> dict[str, float]:
        self.seen.append(interaction)
        return {}


def site(folder: Path, person: Person, observer: Recorder | None = None, **settings: object) -> Site:
    folder.mkdir(parents=True, exist_ok=True)
    with CaseStore(folder / "store") as store:
        for name, (image, _) in CASES.items():
            store.add_case(name, image)
    content = {"name": "north", "schedule": [["case-0"], ["case-1"]], "test": [], "author": "a", "store": "store"}
    (folder / "site.json").write_text(json.dumps(content | settings))
    return Site.open(folder, person, observer, device="cpu")


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(np.array_equal(array, other[name]) for name, array in one.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_asks_for_what_the_plan_says_and_learns_from_nothing_else(tmp_path: Path, kind: str) -> None:
    """Asked again, with every label gone that was not an answer, it ends with the same bits."""
    person = Person()
    recorder = Recorder()
    fields = KINDS[kind]
    update = site(tmp_path / "one", person, recorder).train(plan(**fields), START)
    assert not same(update.weights, START)
    assert all(np.isfinite(array).all() for array in update.weights.values())
    assert set(update.metrics) == TRAIN_METRICS - {KERNEL_MEAN, KERNEL_RATIO, MADE, MADE_FAITHFUL, MADE_NEARER}
    asked = {"extent", "strokes"} if fields["prompts"] == "scribbles" else {"points", "label"}
    assert person.kinds() == asked
    drawn = recorder.seen[-1].annotations
    assert not drawn.slices
    if fields["prompts"] == "scribbles":
        assert len({(stroke.axis, stroke.index) for stroke in drawn.scribbles}) == len(drawn.scribbles) == 4
    else:
        assert len(drawn.points) == 7 * 2 + 1
        assert drawn.extent is None
    again = site(tmp_path / "two", Person(person.answers)).train(plan(**fields), START)
    assert same(again.weights, update.weights)


def test_of_a_case_that_is_clicked_on_seven_voxels_a_structure_are_read(tmp_path: Path) -> None:
    person = Person()
    site(tmp_path, person).train(plan(prompts="points", annotation_rounds=1), START)
    assert person.inner.told("case-0") == 7 * 2
    more = Person()
    site(tmp_path / "more", more).train(plan(prompts="points", annotation_rounds=3), START)
    assert 7 * 2 < more.inner.told("case-0") <= 7 * 2 + 2


def test_strokes_are_the_same_in_every_round_and_run(tmp_path: Path) -> None:
    """Strokes drawn anew each time would tell the whole mask in the end."""
    seen: dict[SliceRequest, set[str]] = {}
    for number, fields in enumerate(({}, {"seed": 8}, {"supervision": "partial", "suggestion": "even"})):
        person = Person()
        schedule = [["case-0"], ["case-0"]]
        north = site(tmp_path / str(number), person, schedule=schedule)
        weights = north.train(plan(1, prompts="scribbles", **fields), START).weights
        north.train(plan(2, prompts="scribbles", **fields), weights)
        for question, answer in person.answers.items():
            if question[0] == "strokes":
                digest = hashlib.sha256(answer.labels.tobytes()).hexdigest()
                seen.setdefault(question[2], set()).add(digest)
    assert len(seen) >= 4
    assert all(len(digests) == 1 for digests in seen.values())


def test_what_is_remembered_of_strokes_are_the_strokes(tmp_path: Path) -> None:
    recorder = Recorder()
    fields = {"prompts": "scribbles", "supervision": "partial"}
    site(tmp_path, Person(), recorder).train(plan(**fields), START)
    (file,) = (tmp_path / "memory").glob("*.safetensors")
    held = load_arrays(file)
    touched = np.zeros(SHAPE, dtype=bool)
    for stroke in recorder.seen[-1].annotations.scribbles:
        np.moveaxis(touched, stroke.axis, 0)[stroke.index] |= stroke.labels != UNLABELLED
    assert np.array_equal(held["drawn"], touched)
    assert np.array_equal(held["weight"] > 0, touched)
    assert touched.mean() < 0.05
    assert np.array_equal(held["spacing"], CASES["case-0"][0].spacing)


@pytest.mark.parametrize("kind", ["dense", "slices", "scribbles", "points"])
def test_a_site_may_give_another_kind_of_label_than_the_plan_asks_for(tmp_path: Path, kind: str) -> None:
    person, recorder = Person(), Recorder()
    other = "slices" if kind == "points" else "points"
    site(tmp_path, person, recorder, prompts=kind).train(plan(prompts=other), START)
    told = {"dense": "draw", "slices": "draw", "scribbles": "strokes", "points": "points"}[kind]
    assert told in person.kinds()
    assert ("points" in person.kinds()) == (kind == "points")
    proxy = recorder.seen[-1].proxy
    assert proxy is not None
    assert proxy.annotated.all() == (kind == "dense")


def test_a_site_with_a_kind_of_label_that_nobody_knows_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a site folder"):
        site(tmp_path, Person(), prompts="guesses")
