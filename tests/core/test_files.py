"""Atomic files: at any failure the old state stands and nothing half-written is left under a real name."""

import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest

from wardround import files
from wardround.errors import DataError, StorageError


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_file_is_written_into_folders_that_do_not_exist_yet(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a" / "b.txt", "naïve")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "naïve".encode()
    assert names(tmp_path) == {"a", "a/b.txt"}


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "f"
    files.write_bytes(path, b"long old content")
    files.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "f"
    files.write_bytes(path, b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync", full) if failing == "fsync" else (Path, "replace", full)))
        with pytest.raises(StorageError, match="disk is full") as caught:
            files.write_bytes(path, b"new")
    assert "free some space" in caught.value.fix
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == {"f"}


def test_the_content_is_flushed_before_the_name_changes_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def logged_fsync(handle: int) -> None:
        steps.append("flush folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "flush file")
        fsync(handle)

    def logged_replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(Path, "replace", logged_replace)
    files.write_bytes(tmp_path / "f", b"x")
    assert steps == ["flush file", "rename", "flush folder"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_folder_that_is_not_writable_is_named_as_such(code: int) -> None:
    error = files.storage_error(OSError(code, "x"), Path("/somewhere"))
    assert "/somewhere" in error.problem
    assert "not writable" in error.cause


def test_any_other_error_keeps_the_systems_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError) as caught:
        files.write_bytes(tmp_path / "file" / "below", b"x")
    assert os.strerror(caught.value.__cause__.errno) in caught.value.cause  # type: ignore[union-attr]


def test_a_new_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "parent" / "folder"
    with files.new_folder(path) as building:
        (building / "sub").mkdir()
        (building / "sub" / "f").write_text("x")
        assert not path.exists()
        assert building.parent == path.parent
    assert (path / "sub" / "f").read_text() == "x"
    assert names(path.parent) == {"folder", "folder/sub", "folder/sub/f"}


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_an_error_while_building_a_folder_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def build() -> None:
        with files.new_folder(tmp_path / "folder") as building:
            (building / "f").write_text("x")
            raise error

    with pytest.raises(type(error)):
        build()
    assert names(tmp_path) == set()


def test_a_full_disk_while_building_a_folder_leaves_nothing(tmp_path: Path) -> None:
    def build() -> None:
        with files.new_folder(tmp_path / "folder") as building:
            (building / "f").write_text("x")
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(StorageError, match="disk is full"):
        build()
    assert names(tmp_path) == set()


def test_a_folder_that_holds_something_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("old")

    def build() -> None:
        with files.new_folder(tmp_path / "folder") as building:
            (building / "mine").write_text("new")

    with pytest.raises(StorageError):
        build()
    assert names(tmp_path) == {"folder", "folder/mine"}
    assert (tmp_path / "folder" / "mine").read_text() == "old"


def test_sweep_removes_what_a_crash_left_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / ".tmp-file").write_text("half")
    (tmp_path / ".tmp-folder").mkdir()
    (tmp_path / ".tmp-folder" / ".tmp-inner").write_text("half")
    (tmp_path / "deep" / "kept.tmp-").write_text("whole")
    files.sweep(tmp_path)
    assert names(tmp_path) == {"deep", "deep/kept.tmp-"}


def test_a_lock_that_is_only_looked_at_is_waited_for(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as ours, (tmp_path / "lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        with pytest.raises(BlockingIOError):
            files.lock_alone(ours.fileno(), 0.0)
        threading.Timer(0.1, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        files.lock_alone(ours.fileno(), 60.0)
        with pytest.raises(BlockingIOError):
            fcntl.flock(looking, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_settings_are_read_or_it_is_said_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    with pytest.raises(DataError, match=r"is not the home of a site → it has no site.toml → make one with `make it`"):
        files.read_settings(path, "a site", "make it")
    path.write_text("a = 1\n[b]\nc = 'd'\n")
    assert files.read_settings(path, "a site", "make it") == {"a": 1, "b": {"c": "d"}}
    for content in (b"a = ", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="cannot read"):
            files.read_settings(path, "a site", "make it")
