"""The ledger: what it keeps, what it finds, and that no crash, full disk or second process can tear it."""

import errno
import hashlib
import io
import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from bundles import Clock
from dying import told_by

from wardround.client.gate import chain
from wardround.client.gate.ledger import NOTHING, Ledger, LedgerDamaged, LedgerEntry
from wardround.errors import StorageError

SHA = "ab" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "ledger.jsonl"


@pytest.fixture
def ledger(path: Path, clock: Clock) -> Ledger:
    return Ledger(path, clock)


def write(ledger: Ledger, **fields: Any) -> LedgerEntry:
    usual: dict[str, Any] = {"direction": "in", "kind": "train", "verdict": "allowed", "code": "admitted"}
    return ledger.append(**(usual | fields))


def fill(ledger: Ledger, lines: int = 5) -> list[LedgerEntry]:
    return [write(ledger, bytes=number, run="demo", round=number, plan=SHA, sha256=SHA) for number in range(lines)]


def sealed(values: dict[str, Any], **style: Any) -> bytes:
    """A line with the hash that its values need, by somebody who knows how."""
    text = json.dumps({name: value for name, value in values.items() if name != "hash"}, **style).encode()
    digest = hashlib.sha256(text).hexdigest()
    return text[:-1] + f',"hash":"{digest}"}}\n'.encode()


def rebuilt(lines: list[bytes], first: int = 1, separators: tuple[str, str] = (",", ":")) -> bytes:
    """Lines chained anew, with numbers from `first` on."""
    previous, built = NOTHING, []
    for number, line in enumerate(lines, first):
        built.append(sealed(json.loads(line) | {"number": number, "previous": previous}, separators=separators))
        previous = json.loads(built[-1])["hash"]
    return b"".join(built)


def forged_head(content: bytes) -> str:
    last = json.loads(content.splitlines()[-1])
    return json.dumps({"number": last["number"], "hash": last["hash"]})


def look(content: bytes, head: str) -> chain.Survey:
    return chain.survey(io.BytesIO(content), len(content), head)


def crash(mode: str, place: Path, *numbers: int) -> Any:
    return told_by(Path(__file__).with_name("ledger_crash.py"), mode, place, *numbers)


class TestWriting:
    def test_a_line_comes_back_as_it_was_written(self, ledger: Ledger, path: Path, clock: Clock) -> None:
        clock.now = 1_234_567_890.25
        entry = write(
            ledger,
            direction="out",
            kind="evaluate",
            verdict="refused",
            code="norm",
            run="demo-1.2",
            round=3,
            plan=SHA,
            bytes=12,
            sha256="cd" * 32,
            cases=6,
            epsilon=0.1,
        )
        assert entry.number == 1
        assert entry.time == "2009-02-13T23:31:30.250000Z"
        assert entry.previous == NOTHING
        (back,) = Ledger(path).entries()
        assert back == entry
        assert back.model_dump(exclude={"number", "time", "previous", "hash"}) == {
            "direction": "out",
            "kind": "evaluate",
            "verdict": "refused",
            "code": "norm",
            "run": "demo-1.2",
            "round": 3,
            "plan": SHA,
            "bytes": 12,
            "sha256": "cd" * 32,
            "cases": 6,
            "epsilon": 0.1,
            "by": None,
        }

    def test_lines_are_bound_to_each_other(self, ledger: Ledger) -> None:
        entries = fill(ledger)
        assert [entry.number for entry in entries] == [1, 2, 3, 4, 5]
        assert [entry.previous for entry in entries] == [NOTHING, *(entry.hash for entry in entries[:-1])]
        assert tuple(ledger.entries()) == tuple(entries)
        found = ledger.verify()
        assert (found.ok, found.count, found.problem, found.line, found.head) == (True, 5, "", None, entries[-1].hash)

    def test_the_hash_is_that_of_the_rest_of_the_line(self, ledger: Ledger, path: Path) -> None:
        (entry,) = fill(ledger, 1)
        line = path.read_bytes()
        assert line.endswith(b'"}\n')
        rest, _, own = line.rpartition(b',"hash":')
        assert json.loads(own.rstrip(b"}\n")) == entry.hash == hashlib.sha256(rest + b"}").hexdigest()

    def test_another_process_goes_on_where_one_ended(self, ledger: Ledger, path: Path) -> None:
        fill(ledger, 2)
        write(Ledger(path))
        write(ledger)
        write(Ledger(path))
        assert Ledger(path).verify().count == 5

    def test_who_decided_stands_in_lines_of_decisions_only(self, ledger: Ledger, path: Path) -> None:
        write(ledger)
        decided = write(ledger, direction="none", kind="app", code="approved", sha256=SHA, by="Ada Lovelace")
        assert [line.by for line in ledger.entries()] == [None, "Ada Lovelace"]
        # Lines from before there was this field are what they were.
        assert [b'"by"' in line for line in path.read_bytes().splitlines()] == [False, True]
        assert ledger.verify(decided.hash).ok
        for fields in ({"direction": "in"}, {"kind": "train"}, {"by": "two\nlines"}, {"by": ""}, {"by": "x" * 101}):
            usual = {"direction": "none", "kind": "app", "code": "approved", "by": "Ada"}
            with pytest.raises(ValueError, match="not of the form"):
                write(ledger, **(usual | fields))
        assert ledger.verify().count == 2

    def test_only_the_owner_may_read_it(self, ledger: Ledger, path: Path) -> None:
        fill(ledger)
        assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}

    @pytest.mark.parametrize(
        "fields",
        [
            {"code": "john-doe"},
            {"code": ""},
            {"direction": "up"},
            {"kind": "patient DOE"},
            {"verdict": "maybe"},
            {"run": "DOE JOHN"},
            {"run": "a/b"},
            {"round": -1},
            {"round": 1.5},
            {"plan": "DOE"},
            {"sha256": SHA.upper()},
            {"bytes": -1},
            {"bytes": 2**63},
            {"cases": True},
            {"epsilon": float("nan")},
            {"epsilon": float("inf")},
            {"epsilon": -0.1},
        ],
    )
    def test_there_is_no_room_for_text(self, ledger: Ledger, path: Path, fields: dict[str, Any]) -> None:
        fill(ledger, 1)
        before = path.read_bytes()
        with pytest.raises(ValueError, match=r"list|form") as refused:
            write(ledger, **fields)
        assert "DOE" not in str(refused.value)
        assert refused.value.__cause__ is None
        assert path.read_bytes() == before
        write(ledger)
        assert ledger.verify().count == 2

    def test_many_threads(self, ledger: Ledger) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: write(ledger, bytes=number), range(40)))
        assert ledger.verify().count == 40
        assert sorted(entry.bytes for entry in ledger.entries()) == list(range(40))


class TestReading:
    def test_a_ledger_that_is_not_there_is_empty_and_stays_so(self, ledger: Ledger, path: Path) -> None:
        assert list(ledger.entries()) == []
        assert ledger.verify().ok
        assert ledger.verify().head == NOTHING
        assert ledger.heal() == 0
        assert not path.parent.exists()

    def test_reading_changes_nothing(self, ledger: Ledger, path: Path) -> None:
        fill(ledger)
        path.write_bytes(path.read_bytes() + b'{"torn')
        before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.parent.iterdir()}
        reader = Ledger(path)
        assert len(list(reader.entries())) == 5
        assert not reader.verify().ok
        assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.parent.iterdir()} == before

    def test_a_reader_sees_what_was_there_when_it_began(self, ledger: Ledger) -> None:
        fill(ledger, 3)
        reading = ledger.entries()
        next(reading)
        fill(ledger, 2)
        assert len(list(reading)) == 2

    def test_readers_beside_a_writer_always_find_it_whole(self, ledger: Ledger, path: Path) -> None:
        fill(ledger, 1)
        done = threading.Event()

        def read() -> list[int]:
            counts = []
            while not done.is_set():
                found = Ledger(path).verify()
                assert found.ok, found
                listed = len(list(Ledger(path).entries()))
                assert listed >= found.count
                counts.append(found.count)
            return counts

        with ThreadPoolExecutor(3) as pool:
            readings = [pool.submit(read) for _ in range(3)]
            try:
                fill(ledger, 40)
            finally:
                done.set()
            for reading in readings:
                counts = reading.result()
                assert counts == sorted(counts)

    def test_what_cannot_be_read_is_an_error_of_ours(self, ledger: Ledger, path: Path) -> None:
        path.mkdir(parents=True)
        with pytest.raises(StorageError):
            ledger.verify()
        with pytest.raises(StorageError):
            write(ledger)


class TestTampering:
    def test_any_changed_byte_is_found(self, ledger: Ledger, path: Path) -> None:
        fill(ledger, 3)
        whole, head = path.read_bytes(), path.with_suffix(".head").read_text()
        assert look(whole, head).problem == ""
        for position in range(len(whole)):
            line = whole[:position].count(b"\n") + 1
            for other in {whole[position] ^ 1, ord(" "), ord("\n"), 0} - {whole[position]}:
                found = look(whole[:position] + bytes([other]) + whole[position + 1 :], head)
                assert found.problem, position
                assert not found.torn, position
                assert found.tail.number == line - 1

    def test_any_removed_or_added_byte_is_found(self, ledger: Ledger, path: Path) -> None:
        fill(ledger, 3)
        whole, head = path.read_bytes(), path.with_suffix(".head").read_text()
        for position in range(len(whole)):
            assert look(whole[:position] + whole[position + 1 :], head).problem
            assert look(whole[:position] + b" " + whole[position:], head).problem

    def test_any_shortening_is_found(self, ledger: Ledger, path: Path) -> None:
        fill(ledger, 3)
        whole, head = path.read_bytes(), path.with_suffix(".head").read_text()
        for length in range(len(whole)):
            found = look(whole[:length], head)
            assert found.problem, length
            assert not found.torn, length

    @pytest.mark.parametrize("position", [0, 100, 700, -2, -1])
    def test_verification_names_the_line_and_nothing_more_is_written(
        self, ledger: Ledger, path: Path, position: int
    ) -> None:
        entries = fill(ledger, 3)
        whole = path.read_bytes()
        changed = bytearray(whole)
        changed[position] ^= 1
        path.write_bytes(changed)
        found = Ledger(path).verify()
        line = whole[: position % len(whole)].count(b"\n") + 1
        assert (found.ok, found.count, found.line) == (False, line - 1, line)
        for cut in (changed, whole[: position % len(whole)]):
            path.write_bytes(cut)
            with pytest.raises(LedgerDamaged):
                write(Ledger(path))
            assert path.read_bytes() == cut
        path.write_bytes(whole)
        assert Ledger(path).verify(entries[1].hash).ok

    @pytest.mark.parametrize(
        "change",
        [
            lambda lines: [lines[1], lines[0], *lines[2:]],
            lambda lines: [lines[0], *lines[2:]],
            lambda lines: lines[1:],
            lambda lines: [lines[0], *lines],
            lambda lines: [*lines, lines[-1]],
            lambda lines: [*lines, b"\n"],
            lambda lines: [b"\n", *lines],
            lambda lines: [*lines[:3], b"[" * 3000 + b"\n", *lines[3:]],
            lambda lines: [*lines[:3], b"x" * 100_000 + b"\n", *lines[3:]],
            lambda lines: [b"\xef\xbb\xbf" + lines[0], *lines[1:]],
            lambda lines: [line.replace(b"\n", b"\r\n") for line in lines],
            lambda lines: [lines[0].replace(b'{"number":1', b'{"number":1,"number":1'), *lines[1:]],
            lambda lines: [lines[0].replace(b'"bytes":0', b'"bytes":0.0'), *lines[1:]],
            lambda lines: [lines[0].replace(b'"bytes":0', b'"bytes":1e400'), *lines[1:]],
            lambda lines: [lines[0].replace(b'"demo"', b'"\\u0064emo"'), *lines[1:]],
            lambda lines: [lines[0].replace(b'{"number"', b'{"extra":1,"number"'), *lines[1:]],
            lambda lines: [],
        ],
    )
    def test_lines_moved_removed_repeated_or_rewritten(
        self, ledger: Ledger, path: Path, change: Callable[[list[bytes]], list[bytes]]
    ) -> None:
        fill(ledger)
        changed = b"".join(change(path.read_bytes().splitlines(keepends=True)))
        assert changed != path.read_bytes()
        path.write_bytes(changed)
        assert not Ledger(path).verify().ok
        with pytest.raises(LedgerDamaged):
            write(Ledger(path))
        assert path.read_bytes() == changed

    def test_reading_stops_at_a_line_that_was_changed(self, ledger: Ledger, path: Path) -> None:
        fill(ledger)
        path.write_bytes(path.read_bytes().replace(b'"round":2', b'"round":9'))
        entries = Ledger(path).entries()
        assert [next(entries).round for _ in range(2)] == [0, 1]
        with pytest.raises(LedgerDamaged, match="line 3"):
            next(entries)

    def test_lines_cut_off_at_the_end(self, ledger: Ledger, path: Path) -> None:
        fill(ledger)
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
        found = Ledger(path).verify()
        assert (found.ok, found.count, found.line) == (False, 3, 4)
        assert "line 5" in found.problem

    @pytest.mark.parametrize("head", [None, b"", b"{}", b"[]", b'{"number": -1, "hash": ""}', b"\xff", b"[" * 1024])
    def test_a_ledger_that_lost_its_head(self, ledger: Ledger, path: Path, head: bytes | None) -> None:
        fill(ledger)
        beside = path.with_suffix(".head")
        beside.unlink() if head is None else beside.write_bytes(head)
        assert not Ledger(path).verify().ok
        with pytest.raises(LedgerDamaged):
            write(Ledger(path))

    def test_a_ledger_that_was_removed_or_emptied(self, ledger: Ledger, path: Path) -> None:
        fill(ledger)
        path.write_bytes(b"")
        assert not Ledger(path).verify().ok
        path.unlink()
        assert not Ledger(path).verify().ok
        with pytest.raises(LedgerDamaged):
            write(Ledger(path))

    def test_a_chain_that_was_built_anew_contradicts_its_head(self, ledger: Ledger, path: Path) -> None:
        fill(ledger)
        lines = path.read_bytes().replace(b'"round":2', b'"round":9').splitlines()
        path.write_bytes(rebuilt(lines))
        assert not Ledger(path).verify().ok

    def test_a_chain_and_a_head_that_were_built_anew_contradict_what_was_noted(
        self, ledger: Ledger, path: Path
    ) -> None:
        noted = fill(ledger)[-2].hash
        assert ledger.verify(noted).ok
        assert ledger.verify(f" {noted.upper()}\n").ok
        forged = rebuilt(path.read_bytes().replace(b'"round":2', b'"round":9').splitlines())
        path.write_bytes(forged)
        path.with_suffix(".head").write_text(forged_head(forged))
        assert Ledger(path).verify().ok, "nothing in the folder shows it"
        found = Ledger(path).verify(noted)
        assert not found.ok
        assert found.count == 5

    def test_a_line_with_a_new_hash_does_not_fit_the_next(self, ledger: Ledger, path: Path) -> None:
        fill(ledger)
        lines = path.read_bytes().splitlines(keepends=True)
        lines[1] = sealed(json.loads(lines[1]) | {"bytes": 999}, separators=(",", ":"))
        path.write_bytes(b"".join(lines))
        found = Ledger(path).verify()
        assert (found.ok, found.count, found.line) == (False, 2, 3)

    def test_a_forged_chain_must_count_from_one_and_be_written_in_the_one_way(self, ledger: Ledger, path: Path) -> None:
        fill(ledger)
        lines = path.read_bytes().splitlines()
        for forged, problem in (
            (rebuilt(lines), ""),
            (rebuilt(lines, first=2), "it does not follow the line before it"),
            (rebuilt(lines, separators=(", ", ": ")), "it was changed"),
        ):
            assert look(forged, forged_head(forged)).problem == problem

    def test_the_head_that_was_noted_must_be_a_line(self, ledger: Ledger) -> None:
        fill(ledger)
        assert not ledger.verify("00").ok
        assert not ledger.verify("").ok


class TestCrashes:
    @pytest.mark.parametrize("part", [1, 2, 50, 200, -1])
    def test_a_torn_last_line_is_dropped_and_said(self, ledger: Ledger, path: Path, part: int) -> None:
        fill(ledger, 3)
        whole, head = path.read_bytes(), path.with_suffix(".head").read_bytes()
        write(ledger, bytes=99)
        torn = path.read_bytes()[len(whole) :][:part]
        path.write_bytes(whole + torn)
        path.with_suffix(".head").write_bytes(head)
        found = Ledger(path).verify()
        assert (found.ok, found.count, found.line) == (False, 3, 4)
        assert "torn" in found.problem
        assert len(list(Ledger(path).entries())) == 3

        again = Ledger(path)
        entry = write(again, bytes=100)
        *_, note, last = again.entries()
        assert (note.direction, note.kind, note.code) == ("none", "ledger", "torn-line-dropped")
        assert (note.bytes, note.sha256) == (len(torn), hashlib.sha256(torn).hexdigest())
        assert last == entry
        assert entry.number == 5
        assert path.read_bytes().startswith(whole)
        assert again.verify().ok

    @pytest.mark.parametrize("torn", [b"\0" * 700, b"\0" * 300 + b'"}\n', b"{" * 4000])
    def test_what_a_power_cut_leaves_of_a_line(self, ledger: Ledger, path: Path, torn: bytes) -> None:
        fill(ledger, 2)
        path.write_bytes(path.read_bytes() + torn)
        assert Ledger(path).heal() == len(torn)
        assert Ledger(path).heal() == 0
        assert Ledger(path).verify().count == 3

    def test_a_line_behind_the_head_is_kept_if_it_is_whole(self, ledger: Ledger, path: Path) -> None:
        fill(ledger, 2)
        head = path.with_suffix(".head").read_bytes()
        write(ledger)
        path.with_suffix(".head").write_bytes(head)
        assert Ledger(path).verify().count == 3
        write(Ledger(path))
        assert Ledger(path).verify().count == 4

    def test_more_than_one_line_of_rubbish_is_no_crash(self, ledger: Ledger, path: Path) -> None:
        fill(ledger, 2)
        whole = path.read_bytes()
        for rubbish in (b"{\n{\n", b"x" * 5000):
            path.write_bytes(whole + rubbish)
            with pytest.raises(LedgerDamaged):
                Ledger(path).heal()
            assert path.read_bytes() == whole + rubbish

    @pytest.mark.parametrize("call", ["pwrite", "fsync"])
    def test_a_full_disk_leaves_it_as_it_was(
        self, ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        fill(ledger, 2)
        whole = path.read_bytes()
        real, failing = getattr(os, call), [True]

        def full(handle: int, *arguments: Any) -> Any:
            if failing and os.path.samestat(os.fstat(handle), path.stat()):
                if call == "pwrite":
                    real(handle, arguments[0][:20], arguments[1])
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(handle, *arguments)

        monkeypatch.setattr(os, call, full)
        with pytest.raises(StorageError, match="full"):
            write(ledger)
        assert path.read_bytes() == whole
        assert ledger.verify().count == 2
        failing.clear()
        write(ledger)
        assert ledger.verify().count == 3

    def test_a_write_in_pieces_is_put_together(
        self, ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda handle, data, offset: real(handle, data[:7], offset))
        fill(ledger, 2)
        monkeypatch.undo()
        assert len(list(Ledger(path).entries())) == 2

    def test_a_line_is_on_the_disk_before_it_is_acknowledged(
        self, ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        flushed: list[int] = []
        real = os.fsync

        def sync(handle: int) -> None:
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                flushed.append(path.stat().st_size)
            real(handle)

        monkeypatch.setattr(os, "fsync", sync)
        for _ in range(3):
            write(ledger)
            assert flushed[-1] == path.stat().st_size
        assert len(flushed) == 3

    @pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.long)])
    def test_a_process_killed_anywhere_leaves_it_whole_or_says_so(self, tmp_path: Path, step: int) -> None:
        """SIGKILL before every line of code that writes two lines, sets the ledger aside and writes another."""
        found = crash("every-line", tmp_path, step)
        assert found["status"] == 0
        assert found["lines"] > 100
        for folder in sorted(path for path in tmp_path.iterdir() if path.is_dir()):
            path = folder / "ledger.jsonl"
            journal = (folder / "journal").read_text().split() if (folder / "journal").exists() else []
            kept = {entry.hash for file in folder.glob("ledger*.jsonl") for entry in Ledger(file).entries()}
            assert {line for line in journal if line != "aside"} <= kept, folder
            ledger = Ledger(path)
            try:
                write(ledger)
            except LedgerDamaged:
                # Only while it was being set aside, and then doing so again is the way on.
                assert len(journal) == 2, folder
                ledger.set_aside()
                write(ledger)
            assert ledger.verify().ok, folder

    def test_killed_again_and_again_it_loses_nothing_that_was_acknowledged(self, path: Path) -> None:
        found = crash("storm", path, 12, 0)
        assert [kill["lost"] for kill in found] == [0] * 12
        assert all(0 <= kill["unasked"] <= 1 for kill in found)

    def test_many_processes_write_one_ledger(self, path: Path) -> None:
        assert crash("writers", path, 4, 15) == [0, 0, 0, 0]
        assert Ledger(path).verify().count == 60
        assert sorted(entry.bytes for entry in Ledger(path).entries()) == list(range(60))


class TestSettingAside:
    def test_a_new_ledger_knows_the_old_one(self, ledger: Ledger, path: Path) -> None:
        fill(ledger)
        content = path.read_bytes()
        old = ledger.set_aside()
        assert old.read_bytes() == content
        assert Ledger(old).verify().count == 5
        (first,) = ledger.entries()
        assert (first.kind, first.code, first.bytes) == ("ledger", "set-aside", len(content))
        assert first.sha256 == hashlib.sha256(content).hexdigest()
        write(ledger)
        assert ledger.verify().count == 2

    def test_it_is_the_way_on_after_damage(self, ledger: Ledger, path: Path) -> None:
        fill(ledger)
        path.write_bytes(path.read_bytes().replace(b"demo", b"DEMO"))
        with pytest.raises(LedgerDamaged):
            write(Ledger(path))
        old = Ledger(path).set_aside()
        assert b"DEMO" in old.read_bytes()
        write(ledger)
        assert ledger.verify().count == 2

    def test_a_writer_that_waits_meanwhile_writes_to_the_new_one(self, ledger: Ledger, path: Path) -> None:
        fill(ledger)
        with ThreadPoolExecutor(4) as pool:
            writing = [pool.submit(write, Ledger(path)) for _ in range(3)]
            aside = pool.submit(ledger.set_aside)
            writing += [pool.submit(write, Ledger(path)) for _ in range(3)]
            for each in writing:
                each.result()
        assert ledger.verify().ok
        assert ledger.verify().count + Ledger(aside.result()).verify().count == 5 + 6 + 1
