"""A live site: what its rounds learn from, and that runs do not touch each other."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn import draw, person, same_prompt
from living import SHAPE, START, arrive, lasting, make_home, plan, same

from wardround.client.annotation.annotator import Truth
from wardround.client.annotation.effort import contour_effort
from wardround.client.annotation.prompts import UNLABELLED, Annotations, PointPrompt, Prompt, SliceRequest
from wardround.client.arrivals import IMPORTED, REFERENCE, Arrivals
from wardround.client.cases.phantoms import draw_phantom
from wardround.client.cases.store import CaseStore
from wardround.client.device import Device
from wardround.client.home import SiteHome
from wardround.client.intake import AUTHOR, STORE
from wardround.client.learning.latest import LatestModel
from wardround.client.learning.replay import ReplayMemory, Sample
from wardround.client.learning.session import CaseSession
from wardround.client.learning.state import Snapshots
from wardround.client.live import open_live_site
from wardround.client.removal import remove_case
from wardround.client.workbench.studio import Studio
from wardround.errors import DataError, LabelError
from wardround.models.catalogue import build
from wardround.models.weights import load_arrays, weights_of
from wardround.strategies.contract import Update
from wardround.strategies.plan import RoundPlan


def train(home: SiteHome, settings: RoundPlan) -> Update:
    with open_live_site(home) as site:
        return site.train(settings, START)


def quick(round_: int = 1, **fields: object) -> RoundPlan:
    return plan(round_, **({"updates_per_case": 1, "rounds": 3} | fields))


def test_a_round_learns_from_what_arrived_since_the_last_one(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", cases=1)
    assert train(home, quick(1)).metrics["cases"] == 1
    arrive(home, 5, 6, 7)
    # Two a round; the third one waits.
    assert train(home, quick(2)).metrics["cases"] == 2
    third = train(home, quick(3))
    assert third.metrics["cases"] == 1
    assert third.metrics["num-examples"] == 4


def test_a_round_that_is_asked_for_again_does_not_see_what_came_later(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", cases=1)
    first = train(home, quick(1))
    arrive(home, 5)
    again = train(home, quick(1))
    assert same(again.weights, first.weights)
    assert again.metrics["cases"] == 1


def test_a_case_without_a_label_waits_for_it(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", cases=0)
    with CaseStore(home.site / STORE) as store:
        store.add_case("bare", draw_phantom(np.random.default_rng(9), shape=SHAPE)[0])
    with pytest.raises(DataError, match="nothing to learn from"):
        train(home, quick(1))
    arrive(home, 5)
    assert train(home, quick(2)).metrics["cases"] == 1


def mark(home: SiteHome, number: int, author: str = IMPORTED) -> None:
    """Import a phantom with a structure of one voxel that other phantoms do not have, in a corner that nobody draws."""
    image, labels = draw_phantom(np.random.default_rng(number), shape=SHAPE)
    labels.array[0, 0, 0] = 3
    with CaseStore(home.site / STORE) as store:
        store.add_case(f"case-{number}", image, "test" if author == REFERENCE else "stream")
        store.save_label(f"case-{number}", labels, author=author, round=0, effort=0.0)


def test_a_label_with_more_structures_than_the_plan_ends_the_round(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", cases=1)
    mark(home, 7)
    with pytest.raises(LabelError, match="case-7 goes up to 3, and the plan knows 0 to 2") as refused:
        train(home, quick(1))
    assert "--labels 4" in refused.value.fix
    # Nothing was learnt, and nothing is lost: a run for this many structures learns from both cases.
    with open_live_site(home) as site:
        assert site.status()["seen"] == 0
        enough = weights_of(build("unet3d-small", labels=4, seed=0))
        assert site.train(quick(1, run="more", labels=4), enough).metrics["cases"] == 2


def test_a_reference_with_more_structures_than_the_plan_scores_nothing(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", cases=1)
    mark(home, 107, REFERENCE)
    with open_live_site(home) as site, pytest.raises(LabelError, match="reference label of case case-107"):
        site.evaluate(quick(1), START)
    assert not list(home.site.rglob("evaluations/*.json"))


def test_cases_to_be_tested_on_are_never_learnt_from(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", cases=1, tests=2)
    assert train(home, quick(1)).metrics["num-examples"] == 1
    with open_live_site(home) as site:
        assert site.evaluate(quick(1), START)["num-examples"] == 2
    assert (home.site / "runs" / "test" / "evaluations" / "round-00001.json").exists()


def test_each_run_begins_anew_and_goes_on_where_it_was(tmp_path: Path) -> None:
    home, twin = make_home(tmp_path / "home", cases=1), make_home(tmp_path / "twin", cases=1)
    one = train(home, quick(1, run="one"))
    other = train(home, quick(1, run="two"))
    assert other.metrics["num-examples"] == 1
    assert same(one.weights, other.weights)
    arrive(home, 5)
    second = train(home, quick(2, run="one"))
    train(twin, quick(1, run="one"))
    arrive(twin, 5)
    assert same(second.weights, train(twin, quick(2, run="one")).weights)


def test_what_was_kept_for_old_runs_is_removed(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", cases=1)
    for run in ("one", "two", "three"):
        train(home, quick(1, run=run))
    assert sorted(path.name for path in (home.site / "runs").iterdir()) == ["three", "two"]
    with pytest.raises(DataError, match="over at this site"):
        train(home, quick(2, run="one"))


def memory_of(home: SiteHome) -> set[str]:
    """Stems of the files that the run remembers."""
    return {path.stem for path in (home.site / "runs" / "test" / "memory").glob("*.safetensors")}


def test_a_case_that_is_removed_is_rehearsed_by_no_later_round(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", cases=2)
    train(home, quick(1))
    assert len(before := memory_of(home)) == 2
    with CaseStore(home.site / STORE) as store:
        remove_case(home, store, "case-0")
    assert len(after := memory_of(home)) == 1
    assert after < before
    arrive(home, 5)
    second = train(home, quick(2))
    assert second.metrics["num-examples"] == 3, "what was learnt stays learnt"
    assert Snapshots(home.site / "runs" / "test" / "state").latest().reservoir.kept == ("case-1", "case-5")  # type: ignore[union-attr]
    assert same(train(home, quick(2)).weights, second.weights)
    # The same case comes anew: it is learnt as any other, and the round before answers as it did.
    arrive(home, 0)
    assert same(train(home, quick(2)).weights, second.weights)


def test_what_an_earlier_version_removed_from_the_store_alone_is_rehearsed_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recalled: set[str] = set()
    draw_sample = ReplayMemory.draw

    def spied(memory: ReplayMemory, *arguments: Any) -> list[Sample]:
        recalled.update(memory.recalled)
        return draw_sample(memory, *arguments)

    home = make_home(tmp_path / "home", cases=2)
    train(home, quick(1))
    with CaseStore(home.site / STORE) as store:
        store.remove("case-0")
    arrive(home, 5)
    monkeypatch.setattr(ReplayMemory, "draw", spied)
    train(home, quick(2))
    assert recalled == {"case-1"}
    train(home, quick(3))
    assert len(memory_of(home)) == 2


def test_a_case_that_is_removed_while_a_round_learns_is_not_remembered_by_it(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", cases=2)
    removed: list[str] = []

    def between() -> None:
        # Both are learnt by then, and what is left to do is to rehearse.
        if not removed and len(memory_of(home)) == 2:
            removed.append("case-1")
            with CaseStore(home.site / STORE) as store:
                remove_case(home, store, "case-1")

    with open_live_site(home) as site:
        site.train(quick(1, updates_per_case=4), START, between)
    assert removed
    assert Snapshots(home.site / "runs" / "test" / "state").latest().reservoir.kept == ("case-0",)  # type: ignore[union-attr]
    assert len(memory_of(home)) == 1


def test_status_counts_what_the_last_run_learnt(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", cases=2, tests=1)
    with open_live_site(home) as site:
        assert site.status() == {"cases": 3, "seen": 0, "round": 0}
        site.train(quick(1), START)
        assert site.status() == {"cases": 3, "seen": 2, "round": 1}
    with open_live_site(home) as site:
        assert site.status() == {"cases": 3, "seen": 2, "round": 1}


class TestPeople:
    """A round learns from what people drew."""

    def test_asked_twice_it_gives_the_same_bits_and_another_drawing_others(self, tmp_path: Path) -> None:
        home, twin, other = (make_home(tmp_path / name, cases=0, tests=0) for name in ("home", "twin", "other"))
        for place in (home, twin):
            draw(place, 1, 2)
        draw(other, 1)
        draw(other, 2, steps=person(2)[0].steps[:2])
        first = train(home, quick(1, updates_per_case=4))
        assert first.metrics["cases"] == 2
        assert first.metrics["num-examples"] == 2
        assert not same(first.weights, START)
        assert same(train(twin, quick(1, updates_per_case=4)).weights, first.weights)
        assert not same(train(other, quick(1, updates_per_case=4)).weights, first.weights)
        # A person draws on, and a reviewer withdraws a label: the round stays as it was, also in a new process.
        with CaseStore(home.site / STORE) as store:
            store.save_drawing(replace(person(1)[0], state="open", steps=()))
            store.review("case-2", "ann", by="rev", verdict="rejected", reason="inaccurate")
        again = train(home, quick(1, updates_per_case=4))
        assert same(again.weights, first.weights)
        assert lasting(again.metrics) == lasting(first.metrics)

    def test_steps_are_lived_through_in_the_plans_rounds_with_what_was_drawn_and_its_extent(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        home = make_home(tmp_path / "home", cases=0, tests=0)
        draw(home, 1)
        expected = person(1)[0]
        seen: list[tuple[Prompt, ...]] = []
        extents = []
        answer = CaseSession.answer

        def answered(session: CaseSession, *prompts: Prompt) -> None:
            seen.append(prompts)
            extents.append(session.extent)
            answer(session, *prompts)

        monkeypatch.setattr(CaseSession, "answer", answered)
        monkeypatch.setattr(CaseSession, "suggest", lambda *_: pytest.fail("nobody is there to be asked"))
        update = train(home, quick(1))
        assert [len(step) for step in seen] == [2, 1]
        flat = [prompt for step in seen for prompt in step]
        assert all(map(same_prompt, flat, (prompt for step in expected.steps for prompt in step)))
        assert extents == [expected.extent] * 2
        # Three slices were drawn, and these are paid for; the label that the round made of them is kept beside theirs.
        annotations = Annotations(extent=expected.extent).adding(*flat)
        assert update.metrics["effort-contour"] == contour_effort(annotations)
        with CaseStore(home.site / STORE) as store:
            assert {record.author for record in store.labels("case-1")} == {"ann", AUTHOR}

    @pytest.mark.parametrize("fields", [{"source": "whole"}, {"source": "prediction", "steps": ()}])
    def test_a_whole_label_answers_as_an_imported_one_does(self, tmp_path: Path, fields: dict[str, Any]) -> None:
        home, twin = make_home(tmp_path / "home", cases=0, tests=0), make_home(tmp_path / "twin", cases=2, tests=0)
        draw(home, 0, 1, extent=None, **fields)
        ours, theirs = train(home, quick(1)), train(twin, quick(1))
        assert same(ours.weights, theirs.weights)
        assert lasting(ours.metrics) == lasting(theirs.metrics)

    def test_dense_supervision_learns_from_the_accepted_label(self, tmp_path: Path) -> None:
        home, twin = make_home(tmp_path / "home", cases=0, tests=0), make_home(tmp_path / "twin", cases=1, tests=0)
        draw(home, 0)
        dense = quick(1, supervision="dense")
        assert same(train(home, dense).weights, train(twin, dense).weights)

    def test_what_a_person_drew_goes_before_an_imported_label(self, tmp_path: Path) -> None:
        home, twin = make_home(tmp_path / "home", cases=1, tests=0), make_home(tmp_path / "twin", cases=0, tests=0)
        for place in (home, twin):
            draw(place, 0)
        assert same(train(home, quick(1)).weights, train(twin, quick(1)).weights)

    def test_a_draft_waits_until_it_is_accepted(self, tmp_path: Path) -> None:
        home = make_home(tmp_path / "home", cases=1, tests=0)
        draw(home, 5, state="open")
        draw(home, 6, state="skipped", reason="not-visible")
        assert train(home, quick(1)).metrics["cases"] == 1
        draw(home, 5)
        assert train(home, quick(2)).metrics["num-examples"] == 2

    def test_under_review_only_an_approved_label_is_learnt(self, tmp_path: Path) -> None:
        home = make_home(tmp_path / "home", cases=0, tests=0)
        text = home.settings_file.read_text()
        home.settings_file.write_text(text.replace("review = false", "review = true"))
        assert SiteHome(home.path).workbench.review
        draw(home, 5, 6)
        with pytest.raises(DataError, match="nothing to learn from"):
            train(SiteHome(home.path), quick(1))
        with CaseStore(home.site / STORE) as store:
            store.review("case-6", "ann", by="rev", verdict="approved")
        assert train(SiteHome(home.path), quick(2)).metrics["cases"] == 1

    def test_a_case_that_is_withdrawn_while_a_round_begins_waits_for_the_next(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        home = make_home(tmp_path / "home", cases=0, tests=0)
        draw(home, 1, 2)
        take = Arrivals.take

        def withdrawn_meanwhile(arrivals: Arrivals, *arguments: Any) -> list[str]:
            taken = take(arrivals, *arguments)
            monkeypatch.undo()
            with CaseStore(home.site / STORE) as store:
                store.save_drawing(replace(person(1)[0], state="open"))
            return taken

        monkeypatch.setattr(Arrivals, "take", withdrawn_meanwhile)
        assert train(home, quick(1)).metrics["cases"] == 1
        draw(home, 1)
        again = train(home, quick(1))
        assert again.metrics["cases"] == 1
        assert train(home, quick(2)).metrics["num-examples"] == 2

    def test_more_structures_than_the_plan_end_the_round(self, tmp_path: Path) -> None:
        home = make_home(tmp_path / "home", cases=1, tests=0)
        draw(home, 7, steps=((PointPrompt((0, 0, 0), 3),),))
        with pytest.raises(LabelError, match="drawn on case case-7 goes up to 3"):
            train(home, quick(1))

    def test_from_a_stroke_at_the_workbench_to_the_federated_round(self, tmp_path: Path) -> None:
        """A new site: weights come with a round that finds nothing, people draw with them, the next round learns."""
        home = make_home(tmp_path / "home", cases=0, tests=0)
        with pytest.raises(DataError, match="nothing to learn from"):
            train(home, quick(1))
        truth = Truth(draw_phantom(np.random.default_rng(1), shape=SHAPE)[1])
        with CaseStore(home.site / STORE) as store:
            for number in (1, 2, 3):
                store.add_case(f"case-{number}", draw_phantom(np.random.default_rng(number), shape=SHAPE)[0])
            studio = Studio(home, store, Device(), torch_device="cpu", look_ahead=False)
            studio.open("case-1", "ann")
            for axis in (2, 1):
                studio.draw("case-1", "ann", [truth.slice(SliceRequest(axis, SHAPE[axis] // 2))])
            studio.draw("case-1", "ann", [PointPrompt((0, 0, 0), 1)])
            studio.undo("case-1", "ann")
            assert studio.accept("case-1", "ann").state == "accepted"
            studio.open("case-2", "ann")
            studio.draw("case-2", "ann", [PointPrompt((0, 0, 0), 1)])
            studio.save_label("case-3", "bob", draw_phantom(np.random.default_rng(3), shape=SHAPE)[1])
            studio.close_all()
            accepted = store.drawing("case-1", "ann")
            assert accepted is not None
            assert [len(step) for step in accepted.drawn] == [1, 1]
            # The draft of case 2 stays one; what was drawn and what came whole from another viewer count.
            assert store.counting(review=False) == {"case-1": "ann", "case-3": "bob"}
        first = train(home, quick(2))
        assert first.metrics["cases"] == 2
        assert not same(first.weights, START)
        assert same(train(home, quick(2)).weights, first.weights)


class TestLatestModel:
    """The latest global weights are there for people to begin with."""

    def test_they_are_kept_at_each_round_also_where_there_is_nothing_to_learn_from(self, tmp_path: Path) -> None:
        home = make_home(tmp_path / "home", cases=0, tests=0)
        model = LatestModel(home.site / "model")
        assert model.read() is None
        with pytest.raises(DataError, match="nothing to learn from"):
            train(home, quick(1))
        kept = model.read()
        assert kept is not None
        assert kept[0] == quick(1)
        assert same(kept[1], START)

    def test_what_is_evaluated_is_newer_than_what_was_learnt_from(self, tmp_path: Path) -> None:
        home = make_home(tmp_path / "home", cases=1)
        update = train(home, quick(1))
        with open_live_site(home) as site:
            site.evaluate(quick(1), update.weights)
        kept = LatestModel(home.site / "model").read()
        assert kept is not None
        assert same(kept[1], update.weights)
        assert not same(update.weights, START)


def test_strokes_of_a_person_go_into_the_losses_of_the_plan(tmp_path: Path) -> None:
    """Beside the proxy or alone; what is asked of voxels that nobody drew changes what is learnt from them."""
    labels = draw_phantom(np.random.default_rng(5), shape=SHAPE)[1]
    requests = [SliceRequest(2, k) for k in (6, 8, 10)]
    strokes = [Truth(labels).strokes(request, np.random.default_rng(n)) for n, request in enumerate(requests)]
    found = []
    for name, fields in {
        "proxy": {},
        "partial": {"supervision": "partial"},
        "regularised": {"supervision": "partial", "crf_weight": 1.0, "regularisation_side": 16},
    }.items():
        home = make_home(tmp_path / name, cases=0)
        draw(home, 5, steps=tuple((stroke,) for stroke in strokes))
        found.append(train(home, quick(1, updates_per_case=4, **fields)))
        (file,) = (home.site / "runs" / "test" / "memory").glob("*.safetensors")
        held = load_arrays(file)
        assert np.count_nonzero(held["drawn"]) == sum(np.count_nonzero(s.labels != UNLABELLED) for s in strokes)
        assert ((held["weight"] > 0) == held["drawn"]).all() == (name != "proxy")
    assert not same(found[0].weights, found[1].weights)
    assert not same(found[1].weights, found[2].weights)
