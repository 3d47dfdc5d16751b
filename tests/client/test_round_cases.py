"""What a round learns from is written down before it begins, and stays as it was."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn import same_drawing

from wardround.client.annotation.prompts import SlicePrompt
from wardround.client.arrivals import IMPORTED
from wardround.client.cases.drawings import Drawing
from wardround.client.cases.store import CaseStore
from wardround.client.cases.volume import Volume
from wardround.client.round_cases import RoundCases
from wardround.errors import DataError, LabelError, StorageError
from wardround.strategies.plan import RoundPlan

SHAPE = (6, 5, 4)
AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])


def plan(**fields: object) -> RoundPlan:
    settings = {"run": "one", "round": 1, "rounds": 9, "seed": 0, "model": "unet3d-small", "labels": 3}
    return RoundPlan.model_validate(settings | fields)


def labels(value: int) -> Volume:
    return Volume(np.full(SHAPE, value, np.uint8), AFFINE)


def drawing(author: str, case: str, value: int, **fields: Any) -> Drawing:
    steps = ((SlicePrompt(0, 3, np.full(SHAPE[1:], value, np.uint8)),),)
    return Drawing(case, author, **({"steps": steps, "state": "accepted"} | fields))


def accept(store: CaseStore, case: str, value: int = 1, author: str = "ann", **fields: Any) -> None:
    store.save_drawing(drawing(author, case, value, **fields), labels(value))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CaseStore]:
    with CaseStore(tmp_path / "store") as opened:
        for number, case in enumerate("abc"):
            opened.add_case(case, Volume(np.full(SHAPE, number, np.float32), AFFINE))
        opened.add_case("t", Volume(np.full(SHAPE, 9, np.float32), AFFINE), "test")
        opened.save_label("b", labels(2), author=IMPORTED, round=0, effort=0.0)
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_cases_wait_in_the_order_in_which_they_came_once_they_count(store: CaseStore) -> None:
    cases, reviewed = RoundCases(store), RoundCases(store, review=True)
    assert cases.waiting() == ["b"]
    accept(store, "c")
    accept(store, "a")
    accept(store, "t")
    assert cases.waiting() == ["a", "b", "c"]
    assert reviewed.waiting() == ["b"]
    store.review("c", "ann", by="rev", verdict="approved")
    assert reviewed.waiting() == ["b", "c"]


def test_a_round_that_is_begun_again_is_as_it_was_whatever_people_did_since(store: CaseStore, folder: Path) -> None:
    accept(store, "a", 1)
    accept(store, "c", 1, steps=(), source="whole")
    first = RoundCases(store)
    assert first.begin(folder, 1, ["a", "b", "c"]) == ["a", "b", "c"]
    accept(store, "a", 2)
    accept(store, "b", 1)
    store.save_drawing(Drawing("c", "ann"))
    for cases in (first, RoundCases(store)):
        assert cases.begin(folder, 1, ["a", "b", "c"]) == ["a", "b", "c"]
        found = cases.drawing("a", plan())
        assert found is not None
        assert same_drawing(found, drawing("ann", "a", 1))
        assert cases.drawing("b", plan()) is None
        assert cases.drawing("c", plan()) is None
        assert [int(cases.label(case).array[0, 0, 0]) for case in "abc"] == [1, 2, 1]
    # The next round sees what is there now: the imported label of b gave way to what was drawn.
    assert first.begin(folder, 2, ["a", "b"]) == ["a", "b"]
    assert first.drawing("b", plan()) is not None
    assert [int(first.label(case).array[0, 0, 0]) for case in "ab"] == [2, 1]


def test_what_was_withdrawn_before_the_round_began_is_left_out(store: CaseStore, folder: Path) -> None:
    accept(store, "a")
    cases = RoundCases(store)
    store.save_drawing(Drawing("a", "ann"))
    assert cases.begin(folder, 1, ["a", "b"]) == ["b"]
    accept(store, "a")
    # Asked with the cases that it was given, or with those that it was left with.
    assert cases.begin(folder, 1, ["a", "b"]) == ["b"]
    assert cases.begin(folder, 1, ["b"]) == ["b"]


def test_what_is_withdrawn_while_it_is_copied_is_left_out(
    store: CaseStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept(store, "a")
    accept(store, "b")
    counting = store.counting

    def withdrawn_meanwhile(review: bool) -> Any:
        found = counting(review)
        store.save_drawing(Drawing("a", "ann"))
        store.save_drawing(Drawing("b", "ann"))
        return found

    monkeypatch.setattr(store, "counting", withdrawn_meanwhile)
    cases = RoundCases(store)
    assert cases.begin(folder, 1, ["a", "b"]) == ["b"]
    assert (cases.label("b").array == 2).all()  # the imported one


def test_a_round_whose_cases_went_to_another_one_meanwhile_begins_anew(store: CaseStore, folder: Path) -> None:
    accept(store, "a", 1)
    cases = RoundCases(store)
    assert cases.begin(folder, 1, ["a"]) == ["a"]
    accept(store, "a", 2)
    assert cases.begin(folder, 1, ["a", "b"]) == ["a", "b"]
    assert (cases.label("a").array == 2).all()


def test_the_approved_drawing_is_learnt_and_the_one_accepted_first_otherwise(store: CaseStore, folder: Path) -> None:
    accept(store, "a", 1, "ann")
    accept(store, "a", 2, "bob")
    cases = RoundCases(store)
    cases.begin(folder, 1, ["a"])
    assert (cases.label("a").array == 1).all()
    store.review("a", "bob", by="rev", verdict="approved")
    cases.begin(folder, 2, ["a"])
    assert (cases.label("a").array == 2).all()


@pytest.mark.parametrize(
    ("fields", "supervision", "replayed"),
    [
        ({}, "proxy", True),
        ({}, "partial", True),
        ({}, "dense", False),
        ({"source": "whole"}, "proxy", False),
        ({"source": "prediction"}, "proxy", True),
        ({"source": "prediction", "steps": ()}, "proxy", False),
        ({"source": "prediction", "steps": ((), ())}, "proxy", False),
    ],
)
def test_what_is_lived_through_again_and_where_the_label_answers(
    store: CaseStore, folder: Path, fields: dict[str, Any], supervision: str, replayed: bool
) -> None:
    accept(store, "a", **fields)
    cases = RoundCases(store)
    cases.begin(folder, 1, ["a"])
    assert (cases.drawing("a", plan(supervision=supervision)) is not None) == replayed
    assert (cases.label("a").array == 1).all()


def test_more_structures_than_the_plan_knows_are_found_before_anything_is_learnt(
    store: CaseStore, folder: Path
) -> None:
    accept(store, "a", 3)
    accept(store, "c", 3, source="whole", steps=())
    cases = RoundCases(store)
    cases.begin(folder, 1, ["a", "b", "c"])
    with pytest.raises(LabelError, match="drawn on case a goes up to 3"):
        cases.check("a", plan())
    with pytest.raises(LabelError, match="accepted label of case c goes up to 3"):
        cases.check("c", plan())
    with pytest.raises(LabelError, match="imported label of case b goes up to 2"):
        cases.check("b", plan(labels=2))
    for case in "abc":
        cases.check(case, plan(labels=4))


def test_a_label_that_is_not_there(store: CaseStore, folder: Path) -> None:
    cases = RoundCases(store)
    cases.begin(folder, 1, ["b"])
    with pytest.raises(DataError, match="no imported label"):
        cases.label("a")


def test_copies_of_two_rounds_are_kept(store: CaseStore, folder: Path) -> None:
    accept(store, "a")
    cases = RoundCases(store)
    for number in range(1, 5):
        cases.begin(folder, number, ["a"])
    assert sorted(path.name for path in (folder / "drawn").iterdir()) == ["round-00003", "round-00004"]


@pytest.mark.parametrize("damage", ["cases", "format", "gone", "label", "drawing"])
def test_a_damaged_copy_is_never_learnt_from(store: CaseStore, folder: Path, damage: str) -> None:
    accept(store, "a")
    RoundCases(store).begin(folder, 1, ["a"])
    place = folder / "drawn" / "round-00001"
    match damage:
        case "cases":
            (place / "cases.json").write_text("{")
        case "format":
            (place / "cases.json").write_text(json.dumps({"format": 2, "asked": ["a"], "cases": {"a": "0000"}}))
        case "gone":
            (place / "0000.npz").unlink()
        case "label":
            (place / "0000.nii.gz").write_bytes(b"x")
        case "drawing":
            (place / "0000.npz").write_bytes((place / "0000.npz").read_bytes()[:-4])
    cases = RoundCases(store)

    def learn() -> None:
        cases.begin(folder, 1, ["a"])
        cases.drawing("a", plan())
        cases.label("a")

    with pytest.raises((StorageError, DataError)):
        learn()


def test_a_full_disk_leaves_no_half_copy(store: CaseStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accept(store, "a")

    def full(path: Path, _: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(StorageError, match="full"):
            RoundCases(store).begin(folder, 1, ["a"])
    assert list((folder / "drawn").iterdir()) == []
    assert RoundCases(store).begin(folder, 1, ["a"]) == ["a"]


def test_a_drawing_that_is_accepted_anew_while_it_is_copied_is_copied_with_its_own_label(
    store: CaseStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept(store, "a", 1)
    verified, values = store._files.verified, [2]

    def accepted_meanwhile(file: str, sha256: str) -> bytes | None:
        if values:
            accept(store, "a", values.pop())
        return verified(file, sha256)

    # Between the rows and the file of the label that they name.
    monkeypatch.setattr(store._files, "verified", accepted_meanwhile)
    cases = RoundCases(store)
    assert cases.begin(folder, 1, ["a"]) == ["a"]
    assert not values
    found = cases.drawing("a", plan())
    assert found is not None
    step = found.steps[0][0]
    assert isinstance(step, SlicePrompt)
    assert (step.labels == 2).all()
    assert (cases.label("a").array == 2).all()


def test_a_drawing_that_is_accepted_anew_is_approved_anew_before_it_is_learnt_from(
    store: CaseStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for case in ("a", "b", "c"):
        accept(store, case, 1)
        store.review(case, "ann", by="rev", verdict="approved")
    counting = store.counting

    def accepted_meanwhile(review: bool) -> Any:
        found = counting(review)
        accept(store, "a", 2)
        accept(store, "b", 1)
        return found

    monkeypatch.setattr(store, "counting", accepted_meanwhile)
    cases = RoundCases(store, review=True)
    assert cases.begin(folder, 1, ["a", "b", "c"]) == ["b", "c"]
    assert (cases.label("b").array == 2).all(), "the imported one"
    assert (cases.label("c").array == 1).all()


def test_a_round_that_is_begun_again_does_without_a_case_that_was_removed(store: CaseStore, folder: Path) -> None:
    accept(store, "a", 1)
    accept(store, "c", 1)
    assert RoundCases(store).begin(folder, 1, ["a", "b", "c"]) == ["a", "b", "c"]
    accept(store, "c", 2)
    store.remove("a")
    cases = RoundCases(store)
    assert cases.begin(folder, 1, ["a", "b", "c"]) == ["b", "c"]
    assert cases.begin(folder, 1, ["b", "c"]) == ["b", "c"]
    assert (cases.label("c").array == 1).all(), "the others are as they were"
