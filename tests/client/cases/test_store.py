"""The case store: what it keeps, what it refuses, and that no crash, full disk or second process can tear it."""

import errno
import fcntl
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from dying import told_by

from wardround.client.cases.store import CaseStore, LabelRecord
from wardround.client.cases.volume import Volume
from wardround.errors import DataError, GeometryError, StorageError, UsageError

AFFINE = np.diag([-0.9, -1.1, 2.0, 1.0])
AFFINE[:3, 3] = (12.3456789, -7.1, 0.3)
SHAPE = (6, 5, 4)
CRASH = Path(__file__).with_name("store_crash.py")


def image(seed: int = 0) -> Volume:
    return Volume(np.random.default_rng(seed).random(SHAPE, np.float32), AFFINE)


def labels(value: int = 1) -> Volume:
    return Volume(np.full(SHAPE, value, np.uint8), AFFINE)


def volumes(folder: Path) -> list[Path]:
    return sorted((folder / "volumes").iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> Iterator[CaseStore]:
    with CaseStore(folder) as opened:
        yield opened


class TestCases:
    def test_an_image_comes_back_exactly_on_its_own_grid(self, store: CaseStore, folder: Path) -> None:
        original = image()
        store.add_case("a", original)
        store.close()
        with CaseStore(folder) as again:
            back = again.image("a")
        np.testing.assert_array_equal(back.array, original.array)
        np.testing.assert_array_equal(back.affine, original.affine)
        assert back.array.dtype == np.float32

    def test_what_is_read_may_be_changed_without_harm(self, store: CaseStore) -> None:
        store.add_case("a", image())
        store.image("a").array[:] = 0  # type: ignore[index]
        np.testing.assert_array_equal(store.image("a").array, image().array)

    def test_cases_are_listed_in_the_order_in_which_they_came(self, store: CaseStore) -> None:
        for case, role in (("z", "stream"), ("a", "test"), ("m", "stream")):
            store.add_case(case, image(), role)  # type: ignore[arg-type]
        assert store.cases() == ("z", "a", "m")
        assert store.cases("stream") == ("z", "m")
        assert store.cases("test") == ("a",)

    def test_adding_the_same_again_changes_nothing(self, store: CaseStore, folder: Path) -> None:
        store.add_case("a", image())
        before = volumes(folder)
        store.add_case("a", image())
        store.add_case("a", store.image("a"))
        assert volumes(folder) == before
        assert store.cases() == ("a",)

    def test_integers_are_the_same_content_as_their_floats(self, store: CaseStore) -> None:
        numbers = Volume(np.arange(120, dtype=np.int16).reshape(SHAPE), AFFINE)
        store.add_case("a", numbers)
        store.add_case("a", numbers.with_array(numbers.array.astype(np.float32)))
        np.testing.assert_array_equal(store.image("a").array, numbers.array)

    @pytest.mark.parametrize("what", ["voxels", "place", "role"])
    def test_other_content_under_the_same_id_is_refused(self, store: CaseStore, folder: Path, what: str) -> None:
        store.add_case("a", image())
        moved = AFFINE.copy()
        moved[0, 3] += 1
        other = {"voxels": image(1), "place": Volume(image().array, moved), "role": image()}[what]
        with pytest.raises(DataError, match="already"):
            store.add_case("a", other, "test" if what == "role" else "stream")
        np.testing.assert_array_equal(store.image("a").array, image().array)
        assert len(volumes(folder)) == 1

    def test_voxels_that_are_not_finite_are_refused(self, store: CaseStore, folder: Path) -> None:
        array = image().array.copy()
        array[0, 0, 0] = np.nan
        with pytest.raises(DataError, match="NaN"):
            store.add_case("a", Volume(array, AFFINE))
        assert volumes(folder) == []

    def test_a_case_needs_an_id_and_a_role(self, store: CaseStore) -> None:
        with pytest.raises(UsageError):
            store.add_case("", image())
        with pytest.raises(UsageError, match="validation"):
            store.add_case("a", image(), "validation")  # type: ignore[arg-type]

    @pytest.mark.parametrize("case", ["../../etc/passwd", "a/b", "née 1", "x" * 1000, "'; drop table cases; --"])
    def test_an_id_is_never_part_of_a_path_or_a_statement(self, store: CaseStore, folder: Path, case: str) -> None:
        store.add_case(case, image())
        store.save_label(case, labels(), "ann", 0, 0.0)
        assert store.cases() == (case,)
        assert len(volumes(folder)) == 2

    def test_an_unknown_case(self, store: CaseStore) -> None:
        for read in (lambda: store.image("a"), lambda: store.label("a", "ann")):
            with pytest.raises(DataError, match="no case a"):
                read()
        with pytest.raises(DataError, match="no case a"):
            store.save_label("a", labels(), "ann", 0, 0.0)
        assert store.labels("a") == ()


class TestLabels:
    @pytest.fixture(autouse=True)
    def _case(self, store: CaseStore) -> None:
        store.add_case("a", image())

    def test_a_label_comes_back_with_what_is_known_of_it(self, store: CaseStore) -> None:
        store.save_label("a", labels(7), "ann", 3, 0.25)
        back = store.label("a", "ann")
        assert back is not None
        assert back.array.dtype == np.uint8
        assert (back.array == 7).all()
        np.testing.assert_array_equal(back.affine, AFFINE)
        assert store.labels("a") == (LabelRecord("a", "ann", 3, 0.25),)

    def test_there_is_none_before_it_is_saved(self, store: CaseStore) -> None:
        assert store.label("a", "ann") is None
        assert store.labels("a") == ()

    def test_a_later_label_of_an_author_replaces_the_earlier_and_leaves_no_file(
        self, store: CaseStore, folder: Path
    ) -> None:
        for value in (1, 2, 3):
            store.save_label("a", labels(value), "ann", value, 0.0)
        assert (store.label("a", "ann").array == 3).all()  # type: ignore[union-attr]
        assert len(store.labels("a")) == 1
        assert len(volumes(folder)) == 2

    def test_authors_do_not_touch_each_other(self, store: CaseStore) -> None:
        store.save_label("a", labels(1), "ann", 1, 0.1)
        store.save_label("a", labels(2), "bob", 2, 0.2)
        store.save_label("a", labels(3), "bob", 3, 0.3)
        assert (store.label("a", "ann").array == 1).all()  # type: ignore[union-attr]
        assert [record.author for record in store.labels("a")] == ["ann", "bob"]

    def test_a_label_on_another_grid_is_refused(self, store: CaseStore, folder: Path) -> None:
        with pytest.raises(GeometryError, match="label of case a"):
            store.save_label("a", Volume(np.zeros((6, 5, 5), np.uint8), AFFINE), "ann", 0, 0.0)
        with pytest.raises(GeometryError):
            store.save_label("a", Volume(labels().array, np.eye(4)), "ann", 0, 0.0)
        assert len(volumes(folder)) == 1

    @pytest.mark.parametrize("array", [np.full(SHAPE, 255), np.full(SHAPE, -1), np.full(SHAPE, 0.5)])
    def test_values_that_are_no_labels_are_refused(self, store: CaseStore, array: np.ndarray) -> None:
        with pytest.raises(DataError, match="integers"):
            store.save_label("a", Volume(array, AFFINE), "ann", 0, 0.0)

    @pytest.mark.parametrize(
        ("author", "turn", "effort"), [("", 0, 0.0), ("ann", -1, 0.0), ("ann", 0, -0.1), ("ann", 0, float("nan"))]
    )
    def test_an_author_has_a_name_and_numbers_are_not_negative(
        self, store: CaseStore, author: str, turn: int, effort: float
    ) -> None:
        with pytest.raises(UsageError):
            store.save_label("a", labels(), author, turn, effort)

    def test_a_label_replaced_by_another_process_while_it_is_read_is_read_anew(
        self, store: CaseStore, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.save_label("a", labels(1), "ann", 1, 0.0)
        verified = store._files.verified

        def replaced_meanwhile(file: str, sha256: str) -> bytes | None:
            monkeypatch.undo()
            with CaseStore(folder) as other:
                other.save_label("a", labels(2), "ann", 2, 0.0)
            return verified(file, sha256)

        monkeypatch.setattr(store._files, "verified", replaced_meanwhile)
        assert (store.label("a", "ann").array == 2).all()  # type: ignore[union-attr]


class TestDamage:
    @pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
    @pytest.mark.parametrize("kind", ["image", "label"])
    def test_a_damaged_file_is_never_returned(self, store: CaseStore, folder: Path, damage: str, kind: str) -> None:
        store.add_case("a", image())
        store.save_label("a", labels(), "ann", 0, 0.0)
        (path,) = (p for p in volumes(folder) if p.name.startswith(kind))
        content = bytearray(path.read_bytes())
        if damage == "remove":
            path.unlink()
        else:
            content[len(content) // 2] ^= 1
            path.write_bytes(content if damage == "flip" else content[:-1])
        with pytest.raises(StorageError, match=path.name):
            store.image("a") if kind == "image" else store.label("a", "ann")

    def test_a_database_that_is_none(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "store.sqlite").write_bytes(b"this is no database" * 100)
        with pytest.raises(StorageError, match="not a database"):
            CaseStore(folder)

    def test_a_store_of_a_newer_version_is_left_alone(self, folder: Path) -> None:
        CaseStore(folder).close()
        engine = sa.create_engine(f"sqlite:///{folder / 'store.sqlite'}")
        with engine.begin() as connection:
            connection.exec_driver_sql("PRAGMA user_version = 99")
        engine.dispose()
        (folder / "volumes" / "image-of-the-future.nii.gz").write_bytes(b"x")
        with pytest.raises(StorageError, match="newer version"):
            CaseStore(folder)
        assert len(volumes(folder)) == 1

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError):
            CaseStore(tmp_path / "file" / "store")

    def test_a_closed_store_says_so(self, store: CaseStore) -> None:
        store.close()
        store.close()
        with pytest.raises(UsageError, match="closed"):
            store.cases()
        with pytest.raises(UsageError, match="closed"):
            store.add_case("a", image())

    def test_others_may_not_look_into_the_folder(self, store: CaseStore, folder: Path) -> None:
        assert folder.stat().st_mode & 0o077 == 0


class TestFullDisk:
    def test_no_room_for_the_file(self, store: CaseStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store.add_case("a", image())
        store.save_label("a", labels(1), "ann", 1, 0.0)
        before = volumes(folder)

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(StorageError, match="full"):
                store.add_case("b", image(1))
            with pytest.raises(StorageError, match="full"):
                store.save_label("a", labels(2), "ann", 2, 0.0)
        assert volumes(folder) == before
        assert store.cases() == ("a",)
        assert store.labels("a")[0].round == 1
        store.add_case("b", image(1))

    def test_no_room_for_the_row(self, store: CaseStore, folder: Path) -> None:
        store.add_case("a", image())
        store.save_label("a", labels(1), "ann", 1, 0.0)
        before = volumes(folder)
        with store._database.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 1")  # SQLite raises this to the pages it has
        long = "x" * 100_000
        with pytest.raises(StorageError, match="full"):
            store.add_case(long, image(1))
        with pytest.raises(StorageError, match="full"):
            store.save_label("a", labels(2), long, 2, 0.0)
        assert volumes(folder) == before
        assert store.cases() == ("a",)
        assert [record.author for record in store.labels("a")] == ["ann"]

    def test_a_disk_that_is_really_full(self, tmp_path: Path) -> None:
        disk = tmp_path / "disk"
        disk.mkdir()
        mount = shutil.which("mount")
        command = [mount or "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
        if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small disk needs root")
        try:
            filler = disk / "filler"
            filler.write_bytes(bytes(300_000))
            noise = np.random.default_rng(0).random((32, 32, 32), np.float32)
            with CaseStore(disk / "store") as store:

                def fill() -> None:
                    for number in range(100):
                        store.add_case(f"case-{number}", Volume(noise + number, AFFINE))

                with pytest.raises(StorageError, match="full"):
                    fill()
                added = len(store.cases())
                assert added >= 1
                assert store.cases() == tuple(f"case-{n}" for n in range(added))
                assert len(volumes(disk / "store")) == added
                filler.unlink()
                store.add_case(f"case-{added}", Volume(noise + added, AFFINE))
            with CaseStore(disk / "store") as store:
                assert len(store.cases()) == added + 1
                for number, case in enumerate(store.cases()):
                    np.testing.assert_array_equal(store.image(case).array, noise + number)
        finally:
            subprocess.run(["umount", str(disk)], check=True)


class TestSharing:
    def test_remains_of_a_crash_are_removed_only_by_whoever_is_alone(self, folder: Path) -> None:
        first = CaseStore(folder)
        first.add_case("a", image())
        remains = [folder / "volumes" / name for name in ("label-0.nii.gz", "image-0.nii.gz", ".tmp-half")]
        for path in remains:
            path.write_bytes(b"perhaps the other process is about to name this")
        with CaseStore(folder):
            assert all(path.exists() for path in remains)
        first.close()
        with CaseStore(folder) as store:
            assert not any(path.exists() for path in remains)
            np.testing.assert_array_equal(store.image("a").array, image().array)

    def test_what_others_put_there_is_left_alone(self, folder: Path) -> None:
        CaseStore(folder).close()
        (folder / "volumes" / "notes.txt").write_text("mine")
        (folder / "volumes" / "subfolder").mkdir()
        CaseStore(folder).close()
        assert [path.name for path in volumes(folder)] == ["notes.txt", "subfolder"]

    def test_two_handles_see_each_others_changes(self, folder: Path) -> None:
        with CaseStore(folder) as one, CaseStore(folder) as two:
            one.add_case("a", image())
            two.save_label("a", labels(4), "bob", 1, 0.1)
            assert (one.label("a", "bob").array == 4).all()  # type: ignore[union-attr]

    def test_a_case_that_another_process_adds_meanwhile_is_one_case(
        self, store: CaseStore, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        is_stored = store._is_stored

        def added_meanwhile(*arguments: Any) -> bool:
            monkeypatch.undo()
            answer = is_stored(*arguments)
            with CaseStore(folder) as other:
                other.add_case("a", image())
            return answer

        monkeypatch.setattr(store, "_is_stored", added_meanwhile)
        store.add_case("a", image())
        assert store.cases() == ("a",)
        assert len(volumes(folder)) == 1

    def test_if_the_process_that_makes_the_store_dies_the_next_one_makes_it(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder.mkdir()
        maker = os.open(folder / "store.lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(maker, fcntl.LOCK_EX)
        waits = threading.Event()
        flock = fcntl.flock

        def announced(handle: int, operation: int) -> None:
            if operation == fcntl.LOCK_SH:
                waits.set()
            flock(handle, operation)

        monkeypatch.setattr(fcntl, "flock", announced)
        opened: list[tuple[str, ...]] = []

        def use() -> None:
            with CaseStore(folder) as store:
                store.add_case("a", image())
                opened.append(store.cases())

        thread = threading.Thread(target=use)
        thread.start()
        assert waits.wait(60)
        os.close(maker)
        thread.join(60)
        assert opened == [("a",)]

    def test_threads_share_a_store(self, store: CaseStore) -> None:
        def use(author: str) -> None:
            for value in range(5):
                store.add_case("a", image())
                store.save_label("a", labels(value), author, value, 0.0)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(use, [f"author-{n}" for n in range(4)]))
        assert [record.round for record in store.labels("a")] == [4] * 4


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: SIGKILL loses nothing there either, and hundreds of flushes are free."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path) as folder:
        yield Path(folder)


class TestCrash:
    """Against processes that are really killed; see ``store_crash.py``."""

    @staticmethod
    def start(folder: Path) -> Path:
        with CaseStore(folder) as store:
            store.add_case("old", Volume(np.full(SHAPE, 1, np.float32), np.diag([-1.0, -1.0, 2.0, 1.0])))
            store.save_label("old", Volume(np.full(SHAPE, 1, np.uint8), np.diag([-1.0, -1.0, 2.0, 1.0])), "ann", 1, 0.1)
        return folder

    @pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.long)])
    def test_a_kill_at_any_line_leaves_the_old_state_or_the_new(self, memory: Path, step: int) -> None:
        outcome = told_by(CRASH, "change", self.start(memory / "start"), memory, step)
        assert outcome["status"] == 0
        assert outcome["lines"] > 150
        states = set()
        for copy in outcome["copies"]:
            folder = memory / copy
            journal = folder.with_suffix(".journal")
            done = set(journal.read_text().split()) if journal.exists() else set()
            with CaseStore(folder) as store:
                added = store.cases() == ("old", "new")
                assert added or store.cases() == ("old",)
                (old,) = store.labels("old")
                assert (store.label("old", "ann").array == old.round).all()  # type: ignore[union-attr]
                assert (store.image("old").array == 1).all()
                labelled = added and store.label("new", "first") is not None
                if added:
                    assert (store.image("new").array == 2).all()
                if labelled:
                    assert (store.label("new", "first").array == 3).all()  # type: ignore[union-attr]
                # Acknowledged is durable; nothing later than the first unacknowledged change can have happened.
                assert added or "added" not in done
                assert labelled or "labelled" not in done
                assert old.round == 2 or "replaced" not in done
                assert not labelled or "added" in done
                assert old.round == 1 or "labelled" in done
                assert len(volumes(folder)) == 2 + added + labelled
                states.add((added, labelled, old.round))
        assert states == {(False, False, 1), (True, False, 1), (True, True, 1), (True, True, 2)}

    @pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.long)])
    def test_a_kill_while_a_store_is_being_made_leaves_one_that_opens(self, memory: Path, step: int) -> None:
        (memory / "start").mkdir()
        outcome = told_by(CRASH, "make", memory / "start", memory, step)
        assert outcome["status"] == 0
        assert outcome["lines"] > 50
        for copy in outcome["copies"]:
            with CaseStore(memory / copy) as store:
                assert store.cases() == ()
                store.add_case("after", image())
                np.testing.assert_array_equal(store.image("after").array, image().array)

    def test_a_kill_at_any_moment_loses_nothing_that_was_acknowledged(self, tmp_path: Path) -> None:
        found = told_by(CRASH, "storm", self.start(tmp_path / "store"), 25, 0)
        assert len(found) == 25
        for state in found:
            # The change during which it died may have been done already, but none after it.
            assert state["round"] - state["acknowledged"] in (0, 1)
            assert state["value"] == state["round"] % 250
            assert state["files"] == 2

    def test_parallel_arms_share_a_store_from_its_making_on(self, tmp_path: Path) -> None:
        folder = tmp_path / "store"
        assert told_by(CRASH, "parallel", folder, 3, 4, 6) == [0, 0, 0]
        with CaseStore(folder) as store:
            assert sorted(store.cases()) == [f"case-{n}" for n in range(4)]
            for case in store.cases():
                assert [(r.author, r.round) for r in store.labels(case)] == [(f"arm-{n}", 6) for n in range(3)]
            assert len(volumes(folder)) == 4 + 4 * 3
