"""Disk, private files, processes and stores that are well, and such that are not."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wardround.client.cases.drawings import Drawing
from wardround.client.cases.store import CaseStore
from wardround.client.cases.volume import Volume
from wardround.deploy.doctor import machine
from wardround.deploy.doctor.store import store


def test_a_disk_with_room(tmp_path: Path) -> None:
    assert machine.disk(tmp_path, least=1).ok


def test_a_disk_without_room(tmp_path: Path) -> None:
    found = machine.disk(tmp_path, least=2**62)
    assert not found.ok
    assert "are free" in found.problem


def test_a_disk_that_is_not_there(tmp_path: Path) -> None:
    assert "cannot be looked at" in machine.disk(tmp_path / "gone").problem


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_disk_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "cannot be written" in machine.disk(tmp_path).problem


@pytest.mark.parametrize(("mode", "ok"), [(0o600, True), (0o400, True), (0o640, False), (0o604, False)])
def test_private_files(tmp_path: Path, mode: int, ok: bool) -> None:
    path = tmp_path / "key"
    path.write_text("secret")
    path.chmod(mode)
    found = machine.private("key", [path])
    assert found.ok == ok
    assert ok or "chmod 600" in found.fix
    assert not machine.private("key", [path, tmp_path / "gone"]).ok


def test_processes(tmp_path: Path) -> None:
    file = tmp_path / "x.pid"
    assert machine.is_alive(file) is None
    file.write_text("rubbish")
    assert machine.is_alive(file) is False
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        file.write_text(f"{child.pid}\n")
        assert machine.is_alive(file) is True
        child.kill()
        # Dead, but nobody has asked for its exit code yet.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert machine.is_alive(file) is False
    assert machine.is_alive(file) is False


def test_the_clock_is_said() -> None:
    assert machine.clock().ok
    assert machine.clock().note


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store with two cases and a label."""
    image = Volume(np.arange(60, dtype=np.float32).reshape(3, 4, 5), np.eye(4))
    with CaseStore(tmp_path / "store") as cases:
        cases.add_case("a", image)
        cases.add_case("b", image.with_array(image.array + 1))
        cases.save_label("a", image.with_array((image.array > 30).astype(np.uint8)), "ann", 1, 2.0)
    return tmp_path / "store"


def test_a_store_that_is_whole(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found = store(folder)
    assert found.ok
    assert found.note.startswith("3 files")
    after = {path: path.read_bytes() for path in before}
    assert after == before


def test_a_store_beside_its_user(folder: Path) -> None:
    with CaseStore(folder):
        assert store(folder).ok


def test_no_store(tmp_path: Path) -> None:
    assert store(tmp_path).ok


def test_one_flipped_bit(folder: Path) -> None:
    path = next(folder.glob("volumes/label-*"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    found = store(folder)
    assert not found.ok
    assert path.name in found.cause
    assert "content has changed" in found.cause


def test_a_file_that_is_gone(folder: Path) -> None:
    for path in folder.glob("volumes/*"):
        path.unlink()
    found = store(folder)
    assert "3 stored files of 3" in found.problem
    assert "it is gone" in found.cause


def test_drawings_are_looked_at_as_well(folder: Path) -> None:
    with CaseStore(folder) as cases:
        case = cases.cases()[0]
        for author in ("ann", "bob"):
            cases.save_drawing(Drawing(case, author))
    assert store(folder).note.startswith("3 files and 2 drawings, all")
    with sqlite3.connect(folder / "store.sqlite") as raw:
        raw.execute("UPDATE drawings SET content = substr(content, 2) WHERE author = 'bob'")
    found = store(folder)
    assert "1 stored file of 5" in found.problem
    assert found.cause == "drawing 2 (its content has changed)"


def test_a_store_from_before_there_were_drawings(folder: Path) -> None:
    with sqlite3.connect(folder / "store.sqlite") as raw:
        raw.execute("DROP TABLE drawings")
    assert store(folder).note.startswith("3 files, all")


def test_a_database_that_is_damaged(folder: Path) -> None:
    (folder / "store.sqlite").write_bytes(b"x" * 5000)
    assert "cannot be read" in store(folder).problem
