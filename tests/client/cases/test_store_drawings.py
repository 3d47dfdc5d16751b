"""Drawings in the case store: with their label or not at all, reviewed, counted, and from schema 1 without a loss."""

import errno
import fcntl
import hashlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from drawn import same_drawing
from dying import told_by

from wardround.client.annotation.prompts import (
    UNLABELLED,
    ErasePrompt,
    ExtentPrompt,
    PointPrompt,
    ScribblePrompt,
    SlicePrompt,
)
from wardround.client.cases import nifti, rows
from wardround.client.cases.drawing_file import encode
from wardround.client.cases.drawings import Drawing
from wardround.client.cases.store import CaseStore, LabelRecord
from wardround.client.cases.volume import Volume
from wardround.errors import DataError, GeometryError, StorageError, UsageError

AFFINE = np.diag([-0.9, -1.1, 2.0, 1.0])
SHAPE = (6, 5, 4)
CRASH = Path(__file__).with_name("store_crash.py")


def image(seed: int = 0) -> Volume:
    return Volume(np.random.default_rng(seed).random(SHAPE, np.float32), AFFINE)


def labels(value: int = 1) -> Volume:
    return Volume(np.full(SHAPE, value, np.uint8), AFFINE)


def volumes(folder: Path) -> list[Path]:
    return sorted((folder / "volumes").iterdir())


def drawing(author: str = "ann", case: str = "a", **fields: Any) -> Drawing:
    stroke = np.full(SHAPE[:2], UNLABELLED, np.uint8)
    stroke[2:4, 1] = 1
    steps = (
        (SlicePrompt(0, 3, np.ones(SHAPE[1:], np.uint8)),),
        (ScribblePrompt(2, 1, stroke), PointPrompt((0, 1, 2), 0)),
    )
    return replace(Drawing(case, author, steps, ExtentPrompt((0, 0, 0), (3, 3, 3)), effort_contour=7.0), **fields)


def accept(store: CaseStore, author: str = "ann", case: str = "a", value: int = 1, **fields: Any) -> None:
    store.save_drawing(drawing(author, case, state="accepted", **fields), labels(value))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> Iterator[CaseStore]:
    with CaseStore(folder) as opened:
        opened.add_case("a", image())
        yield opened


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: hundreds of flushes are free there."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path) as place:
        yield Path(place)


def states(store: CaseStore) -> dict[str, str]:
    return {record.author: record.state for record in store.drawings("a")}


class TestSaving:
    def test_a_draft_comes_back_whole_after_a_restart(self, store: CaseStore, folder: Path) -> None:
        draft = drawing(undone=((PointPrompt((1, 1, 1), 2),),), round=4, model="beef", seconds=12.5, effort_strict=9.0)
        store.save_drawing(draft)
        store.close()
        with CaseStore(folder) as again:
            found = again.drawing("a", "ann")
            assert found is not None
            assert same_drawing(found, draft)
            assert again.drawing("a", "bob") is None
            (record,) = again.drawings()
        assert (record.case_id, record.author, record.state, record.source) == ("a", "ann", "open", "proxy")
        assert (record.effort_contour, record.effort_strict, record.round) == (7.0, 9.0, 4)
        assert (record.model, record.seconds, record.reason, record.reviewer) == ("beef", 12.5, "", "")
        assert record.updated.endswith("Z")
        assert len(volumes(folder)) == 1

    def test_an_accepted_drawing_and_its_label_are_stored_under_its_author(self, store: CaseStore) -> None:
        accept(store, value=3, round=2)
        assert states(store) == {"ann": "accepted"}
        assert (store.label("a", "ann").array == 3).all()  # type: ignore[union-attr]
        assert store.labels("a") == (LabelRecord("a", "ann", 2, 7.0),)

    def test_the_bytes_of_a_label_are_a_file_on_the_grid_of_the_image(self, store: CaseStore) -> None:
        accept(store, value=3)
        data = store.label_bytes("a", "ann")
        assert data is not None
        back = nifti.decode_labels(data, Path("label.nii.gz"))
        assert (back.array == 3).all()
        np.testing.assert_allclose(back.affine, AFFINE, atol=1e-5)
        assert store.label_bytes("a", "bob") is None
        with pytest.raises(DataError, match="no case b"):
            store.label_bytes("b", "ann")

    def test_accepting_again_replaces_both_and_leaves_no_file(self, store: CaseStore, folder: Path) -> None:
        for value in (1, 2, 3):
            accept(store, value=value, round=value)
        assert (store.label("a", "ann").array == 3).all()  # type: ignore[union-attr]
        assert store.drawing("a", "ann").round == 3  # type: ignore[union-attr]
        assert len(volumes(folder)) == 2

    def test_a_label_stays_while_its_author_draws_on(self, store: CaseStore) -> None:
        accept(store, value=2)
        store.save_drawing(drawing())
        assert states(store) == {"ann": "open"}
        assert (store.label("a", "ann").array == 2).all()  # type: ignore[union-attr]

    def test_authors_do_not_touch_each_other(self, store: CaseStore) -> None:
        accept(store, "ann", value=1)
        accept(store, "bob", value=2)
        store.save_drawing(drawing("eve", state="skipped", reason="image-quality"))
        store.save_drawing(drawing("ann"))
        assert states(store) == {"ann": "open", "bob": "accepted", "eve": "skipped"}
        assert [(store.label("a", name).array[0, 0, 0]) for name in ("ann", "bob")] == [1, 2]  # type: ignore[union-attr]

    def test_many_threads_save_at_once(self, store: CaseStore, folder: Path) -> None:
        def use(author: str) -> None:
            for value in range(4):
                store.save_drawing(drawing(author, round=value))
                accept(store, author, value=value, round=value)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(use, [f"author-{n}" for n in range(4)]))
        assert [record.round for record in store.drawings("a")] == [3] * 4
        assert len(volumes(folder)) == 5

    @pytest.mark.parametrize("state", ["open", "skipped", "approved", "rejected"])
    def test_only_an_accepted_drawing_has_a_label(self, store: CaseStore, folder: Path, state: Any) -> None:
        with pytest.raises(UsageError):
            store.save_drawing(drawing(state=state), labels())
        assert store.drawings() == ()
        assert len(volumes(folder)) == 1

    @pytest.mark.parametrize("state", ["accepted", "approved", "rejected"])
    def test_an_accepted_drawing_needs_a_label_and_a_verdict_a_reviewer(self, store: CaseStore, state: Any) -> None:
        with pytest.raises(UsageError):
            store.save_drawing(drawing(state=state))

    def test_a_proxy_of_nothing_is_no_label_but_a_prediction_may_be_accepted(self, store: CaseStore) -> None:
        with pytest.raises(UsageError, match="nothing to accept"):
            accept(store, steps=((), ()))
        with pytest.raises(UsageError, match="erased"):
            accept(store, steps=((PointPrompt((0, 0, 3), 1),), (ErasePrompt(2, 3, np.ones(SHAPE[:2], bool)),)))
        accept(store, steps=(), source="prediction")
        accept(store, steps=(), source="whole")

    def test_what_does_not_lie_on_the_case_is_refused(self, store: CaseStore, folder: Path) -> None:
        with pytest.raises(UsageError, match="does not lie"):
            store.save_drawing(drawing(steps=((PointPrompt((6, 0, 0), 1),),)))
        with pytest.raises(GeometryError):
            store.save_drawing(drawing(state="accepted"), Volume(labels().array, np.eye(4)))
        with pytest.raises(DataError, match="no case b"):
            store.save_drawing(drawing(case="b"))
        with pytest.raises(DataError, match="no case b"):
            store.drawing("b", "ann")
        assert store.drawings() == ()
        assert len(volumes(folder)) == 1

    def test_no_room_leaves_the_earlier_drawing_and_label(
        self, store: CaseStore, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        accept(store, value=1, round=1)
        before = volumes(folder)

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(StorageError, match="full"):
                accept(store, value=2, round=2)
        with store._database.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 1")
        noise = np.random.default_rng(0).integers(0, 2, (1000, *SHAPE[:2]), np.uint8)
        long = tuple((SlicePrompt(2, 0, cut),) for cut in noise)
        with pytest.raises(StorageError, match="full"):
            accept(store, value=2, round=2, steps=long)
        assert volumes(folder) == before
        assert store.drawing("a", "ann").round == 1  # type: ignore[union-attr]
        assert (store.label("a", "ann").array == 1).all()  # type: ignore[union-attr]

    @pytest.mark.parametrize("content", [b"", encode(drawing())[:-3], encode(drawing("bob")), b"x" * 99])
    def test_a_damaged_drawing_is_never_returned(self, store: CaseStore, folder: Path, content: bytes) -> None:
        store.save_drawing(drawing())
        with sqlite3.connect(folder / "store.sqlite") as raw:
            raw.execute("UPDATE drawings SET content = ?", (content,))
        with pytest.raises(StorageError):
            store.drawing("a", "ann")


class TestReview:
    def test_a_reviewers_word_changes_the_state_and_nothing_else(self, store: CaseStore) -> None:
        accept(store, value=2, seconds=8.0)
        store.review("a", "ann", by="rev", verdict="approved")
        (record,) = store.drawings("a")
        assert (record.state, record.reviewer, record.reason) == ("approved", "rev", "")
        found = store.drawing("a", "ann")
        assert found is not None
        assert same_drawing(found, drawing(state="approved", seconds=8.0))
        assert (store.label("a", "ann").array == 2).all()  # type: ignore[union-attr]

    def test_a_verdict_may_be_changed(self, store: CaseStore) -> None:
        accept(store)
        store.review("a", "ann", by="rev", verdict="approved")
        store.review("a", "ann", by="eve", verdict="rejected", reason="incomplete")
        (record,) = store.drawings("a")
        assert (record.state, record.reviewer, record.reason) == ("rejected", "eve", "incomplete")
        found = store.drawing("a", "ann")
        assert found is not None
        assert (found.state, found.reason) == ("rejected", "incomplete")

    def test_a_verdict_ends_when_its_author_draws_on(self, store: CaseStore) -> None:
        accept(store)
        store.review("a", "ann", by="rev", verdict="approved")
        store.save_drawing(drawing())
        (record,) = store.drawings("a")
        assert (record.state, record.reviewer) == ("open", "")

    @pytest.mark.parametrize("state", [None, "open", "skipped"])
    def test_there_must_be_something_to_review(self, store: CaseStore, state: Any) -> None:
        if state:
            store.save_drawing(drawing(state=state))
        with pytest.raises(UsageError, match="nothing of this author to review"):
            store.review("a", "ann", by="rev", verdict="approved")

    def test_a_verdict_is_on_what_was_looked_at(self, store: CaseStore, monkeypatch: pytest.MonkeyPatch) -> None:
        accept(store)
        (looked_at,) = store.drawings("a")
        later = datetime.now(UTC) + timedelta(seconds=1)
        monkeypatch.setattr(rows, "datetime", SimpleNamespace(now=lambda _: later))
        accept(store, value=2)
        with pytest.raises(UsageError, match="changed since"):
            store.review("a", "ann", by="rev", verdict="approved", seen=looked_at.updated)
        assert states(store) == {"ann": "accepted"}
        (looked_at,) = store.drawings("a")
        store.review("a", "ann", by="rev", verdict="approved", seen=looked_at.updated)
        assert states(store) == {"ann": "approved"}

    @pytest.mark.parametrize("wrong", [{"by": ""}, {"verdict": "open"}, {"reason": "he moved"}])
    def test_a_review_that_is_none(self, store: CaseStore, wrong: dict[str, Any]) -> None:
        accept(store)
        with pytest.raises(UsageError):
            store.review("a", "ann", **({"by": "rev", "verdict": "rejected"} | wrong))
        assert states(store) == {"ann": "accepted"}


class TestCounting:
    @pytest.fixture(autouse=True)
    def _cases(self, store: CaseStore) -> None:
        store.add_case("b", image(1))
        store.add_case("t", image(2), "test")

    def test_an_accepted_drawing_counts_at_once_without_review_and_not_with_it(self, store: CaseStore) -> None:
        assert store.counting(review=False) == {}
        accept(store, "ann", "b")
        accept(store, "bob", "a")
        assert list(store.counting(review=False).items()) == [("a", "bob"), ("b", "ann")]
        assert store.counting(review=True) == {}
        store.review("b", "ann", by="rev", verdict="approved")
        assert store.counting(review=True) == {"b": "ann"}

    @pytest.mark.parametrize("state", ["open", "skipped"])
    def test_a_draft_or_a_skipped_case_does_not_count_nor_does_one_that_is_reopened(
        self, store: CaseStore, state: Any
    ) -> None:
        store.save_drawing(drawing(state=state))
        assert store.counting(review=False) == {}
        accept(store)
        store.save_drawing(drawing(state=state))
        assert store.counting(review=False) == {}

    def test_a_rejected_drawing_does_not_count_and_another_authors_does(self, store: CaseStore) -> None:
        accept(store, "bob")
        accept(store, "ann")
        assert store.counting(review=False) == {"a": "bob"}
        store.review("a", "bob", by="rev", verdict="rejected", reason="inaccurate")
        assert store.counting(review=False) == {"a": "ann"}
        store.review("a", "ann", by="rev", verdict="rejected")
        assert store.counting(review=False) == {}

    def test_an_approved_drawing_goes_before_one_accepted_earlier(self, store: CaseStore) -> None:
        accept(store, "bob")
        accept(store, "ann")
        store.review("a", "ann", by="rev", verdict="approved")
        assert store.counting(review=False) == store.counting(review=True) == {"a": "ann"}
        store.review("a", "bob", by="rev", verdict="approved")
        assert store.counting(review=True) == {"a": "bob"}

    def test_who_accepts_again_comes_after_the_others(self, store: CaseStore) -> None:
        accept(store, "ann")
        accept(store, "bob")
        accept(store, "ann")
        assert store.counting(review=False) == {"a": "bob"}

    def test_nothing_is_learnt_from_a_case_to_be_tested_on(self, store: CaseStore) -> None:
        accept(store, case="t")
        assert store.counting(review=False) == {}


# The tables as version 1 made them, to the letter.
SCHEMA_1 = """
CREATE TABLE cases (
	position INTEGER NOT NULL,
	id VARCHAR NOT NULL,
	role VARCHAR NOT NULL,
	grid VARCHAR NOT NULL,
	content VARCHAR NOT NULL,
	file VARCHAR NOT NULL,
	sha256 VARCHAR NOT NULL,
	PRIMARY KEY (position),
	UNIQUE (id),
	UNIQUE (file)
);
CREATE TABLE labels (
	case_id VARCHAR NOT NULL,
	author VARCHAR NOT NULL,
	round INTEGER NOT NULL,
	effort FLOAT NOT NULL,
	file VARCHAR NOT NULL,
	sha256 VARCHAR NOT NULL,
	PRIMARY KEY (case_id, author),
	FOREIGN KEY(case_id) REFERENCES cases (id),
	UNIQUE (file)
);
PRAGMA user_version = 1;
"""


def store_of_version_1(folder: Path) -> None:
    """A store with two cases and two labels, as version 1 left it on disk."""
    (folder / "volumes").mkdir(parents=True)
    (folder / "store.lock").touch()
    raw = sqlite3.connect(folder / "store.sqlite")
    raw.execute("PRAGMA journal_mode = WAL")
    raw.executescript(SCHEMA_1)

    def write(name: str, volume: Volume) -> tuple[str, str]:
        data = nifti.encode(volume)
        (folder / "volumes" / name).write_bytes(data)
        return name, hashlib.sha256(data).hexdigest()

    for number, (case, role) in enumerate((("old", "stream"), ("held", "test"))):
        volume = image(number)
        grid = rows.grid_to_json(volume)
        row = (number + 1, case, role, grid, rows.digest_of(volume), *write(f"image-{number}.nii.gz", volume))
        raw.execute("INSERT INTO cases VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        label = write(f"label-{number}.nii.gz", labels(number + 1))
        raw.execute("INSERT INTO labels VALUES (?, ?, ?, ?, ?, ?)", (case, "imported", 0, 0.0, *label))
    raw.commit()
    raw.close()


class TestMigration:
    @staticmethod
    def check(store: CaseStore) -> None:
        assert store.cases() == ("old", "held")
        assert store.cases("test") == ("held",)
        for number, case in enumerate(("old", "held")):
            np.testing.assert_array_equal(store.image(case).array, image(number).array)
            np.testing.assert_array_equal(store.image(case).affine, AFFINE)
            assert (store.label(case, "imported").array == number + 1).all()  # type: ignore[union-attr]
            assert LabelRecord(case, "imported", 0, 0.0) in store.labels(case)
        store.add_case("old", image(0))  # known by its content

    def test_the_tables_of_version_1_are_as_they_were(self, tmp_path: Path) -> None:
        """What version 2 makes of cases and labels is what version 1 made: the migration need not touch them."""
        CaseStore(tmp_path / "new").close()

        def layout(path: Path) -> list[Any]:
            with sqlite3.connect(path) as raw:
                tables = [raw.execute(f"PRAGMA table_info({name})").fetchall() for name in ("cases", "labels")]
                return [*tables, raw.execute("PRAGMA foreign_key_list(labels)").fetchall()]

        store_of_version_1(tmp_path / "old")
        assert layout(tmp_path / "old" / "store.sqlite") == layout(tmp_path / "new" / "store.sqlite")

    def test_a_store_of_version_1_opens_loses_nothing_and_takes_drawings(self, folder: Path) -> None:
        store_of_version_1(folder)
        with CaseStore(folder) as store:
            self.check(store)
            assert store.drawings() == ()
            accept(store, case="old", value=5)
            assert store.counting(review=False) == {"old": "ann"}
        with CaseStore(folder) as store:
            self.check_with_a_drawing(store)

    @staticmethod
    def check_with_a_drawing(store: CaseStore) -> None:
        assert (store.label("old", "imported").array == 1).all()  # type: ignore[union-attr]
        assert (store.label("old", "ann").array == 5).all()  # type: ignore[union-attr]
        assert store.drawing("old", "ann") is not None

    def test_it_is_migrated_beside_a_process_that_has_it_open(self, folder: Path) -> None:
        """An older version may run on beside: it is not waited for, and what it may be about to name stays."""
        store_of_version_1(folder)
        other = os.open(folder / "store.lock", os.O_RDWR)
        try:
            fcntl.flock(other, fcntl.LOCK_SH)
            (half := folder / "volumes" / "label-half.nii.gz").write_bytes(b"about to be named")
            with CaseStore(folder) as store:
                self.check(store)
                accept(store, case="old", value=5)
            assert half.exists()
        finally:
            os.close(other)

    def test_two_that_open_it_at_once_migrate_it_once(self, folder: Path) -> None:
        for attempt in range(5):
            place = folder / str(attempt)
            store_of_version_1(place)

            def use(author: str, place: Path = place) -> None:
                with CaseStore(place) as store:
                    accept(store, author, "old")

            with ThreadPoolExecutor(3) as pool:
                list(pool.map(use, ["ann", "bob", "eve"]))
            with CaseStore(place) as store:
                self.check(store)
                assert [record.author for record in store.drawings("old")] == ["ann", "bob", "eve"]

    @pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.long)])
    def test_a_kill_while_it_is_migrated_loses_nothing(self, memory: Path, step: int) -> None:
        store_of_version_1(memory / "start")
        outcome = told_by(CRASH, "make", memory / "start", memory, step)
        assert outcome["status"] == 0
        versions = set()
        for copy in outcome["copies"]:
            with sqlite3.connect(memory / copy / "store.sqlite") as raw:
                versions.update(raw.execute("PRAGMA user_version").fetchone())
            with CaseStore(memory / copy) as store:
                self.check(store)
                accept(store, case="old")
        assert versions == {1, 2}


class TestCrash:
    """Against processes that are really killed; see ``store_crash.py``."""

    @pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.long)])
    def test_a_kill_at_any_line_leaves_drawing_and_label_of_one_moment(self, memory: Path, step: int) -> None:
        with CaseStore(memory / "start") as store:
            store.add_case("old", Volume(np.ones(SHAPE, np.float32), np.diag([-1.0, -1.0, 2.0, 1.0])))
        outcome = told_by(CRASH, "draw", memory / "start", memory, step)
        assert outcome["status"] == 0
        assert outcome["lines"] > 150
        # After each of these changes: the drawing's state and round, and the value of the label.
        moments = [None, ("open", 1, None), ("accepted", 2, 2), ("open", 3, 2), ("accepted", 4, 4), ("approved", 4, 4)]
        seen = set()
        for copy in outcome["copies"]:
            folder = memory / copy
            journal = folder.with_suffix(".journal")
            done = journal.read_text().split() if journal.exists() else []
            with CaseStore(folder) as store:
                found = store.drawing("old", "ann")
                records = store.drawings("old")
                label = store.label("old", "ann")
                value = None if label is None else int(np.unique(label.array).item())
                moment = None if found is None else (found.state, found.round, value)
                assert [(r.state, r.round) for r in records] == ([] if found is None else [(found.state, found.round)])
                assert (value is not None) == bool(store.labels("old"))
                number = moments.index(moment)
                # Acknowledged is durable; at most the change that was under way has happened besides.
                assert len(done) <= number <= len(done) + 1
                assert len(volumes(folder)) == 1 + (value is not None)
                seen.add(number)
        assert seen == set(range(len(moments)))

    @pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.long)])
    def test_a_kill_while_a_case_is_removed_leaves_all_of_it_or_nothing(self, memory: Path, step: int) -> None:
        with CaseStore(memory / "start") as store:
            for case in ("old", "other"):
                store.add_case(case, image())
                store.save_label(case, labels(3), "imported", 0, 0.0)
                accept(store, case=case)
        outcome = told_by(CRASH, "remove", memory / "start", memory, step)
        assert outcome["status"] == 0
        seen = set()
        for copy in outcome["copies"]:
            journal = (memory / copy).with_suffix(".journal")
            done = journal.read_text().split() if journal.exists() else []
            with CaseStore(memory / copy) as store:
                there = "old" in store.cases()
                seen.add(there)
                assert not (there and "removed" in done)
                left = ["old", "other"] if there else ["other"]
                assert store.cases() == tuple(left)
                for case in left:
                    assert store.drawing(case, "ann") is not None
                    assert len(store.labels(case)) == 2
                    assert store.label(case, "imported") is not None
                assert len(volumes(memory / copy)) == 3 * len(left), "no file is left over"
        assert seen == {True, False}


class TestRemoving:
    def test_nothing_of_a_case_is_left_and_its_id_is_free(self, store: CaseStore, folder: Path) -> None:
        store.save_label("a", labels(3), "imported", 0, 0.0)
        accept(store)
        assert store.remove("a")
        assert not store.remove("a")
        with pytest.raises(DataError):
            store.image("a")
        assert all(record.case_id != "a" for record in store.drawings())
        assert "a" not in store.counting(review=False)
        assert not store.labelled("imported")
        before = len(volumes(folder))
        store.add_case("a", image(7))
        assert store.drawings("a") == ()
        assert len(volumes(folder)) == before + 1

    def test_what_is_settled_is_of_one_moment(self, store: CaseStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its author accepts it anew between the rows and the file: then both are the new ones."""
        assert store.settled("a", "ann") is None
        accept(store, value=1, round=1)
        verified = store._files.verified

        def accepted_meanwhile(file: str, sha256: str) -> bytes | None:
            monkeypatch.setattr(store._files, "verified", verified)
            accept(store, value=2, round=2)
            return verified(file, sha256)

        monkeypatch.setattr(store._files, "verified", accepted_meanwhile)
        found = store.settled("a", "ann")
        assert found is not None
        drawn, label = found
        assert drawn.round == 2
        assert label == store.label_bytes("a", "ann")
        store.save_drawing(drawing())
        assert store.settled("a", "ann") is None, "its author draws on"
