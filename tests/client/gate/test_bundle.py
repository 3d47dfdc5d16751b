"""Bundles, honest ones and those that were made to do harm."""

import io
import stat
import struct
import tracemalloc
import zipfile
from collections.abc import Callable

import pytest
from bundles import PROJECT, pack, sha256
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.client.gate import bundle as bundles
from wardround.client.gate.bundle import MAX_BUNDLE, MAX_FILE, MAX_FILES, read_bundle
from wardround.errors import GateRefused

CANARY = "DOE_JOHN"


def code_of(data: bytes) -> str:
    with pytest.raises(GateRefused) as refused:
        read_bundle(data)
    assert CANARY not in str(refused.value)
    return refused.value.code


def adding(name: str, data: bytes = b"x", **fields: int) -> bytes:
    """A bundle to which something was added behind its list."""

    def change(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo(name)
        for field, value in fields.items():
            setattr(info, field, value)
        archive.writestr(info, data)

    return pack(change=change)


class TestHonest:
    def test_what_flower_builds_is_read(self, flowers_bundle: bytes) -> None:
        bundle = read_bundle(flowers_bundle)
        assert bundle.sha256 == sha256(flowers_bundle)
        assert list(bundle.files) == ["pyproject.toml"]
        assert bundle.name == "wardround/rounds 1.0.0"
        assert bundle.flags == frozenset()

    @pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    def test_text_beside_it_is_no_code(self, compression: int) -> None:
        files = {"pyproject.toml": PROJECT, "README.md": b"#", "LICENSE": b"", "settings/a.json": b"{}"}
        bundle = read_bundle(pack(files, compression=compression))
        assert bundle.files == files
        assert bundle.flags == frozenset()

    @pytest.mark.parametrize(
        ("name", "flags"),
        [
            ("app.py", {"code"}),
            ("client/app.py", {"code"}),
            ("sitecustomize.py", {"code"}),
            ("inject.pth", {"code"}),
            ("fast.so", {"code"}),
            ("run", {"code"}),
            ("LICENSE.py", {"code"}),
            (".hidden/a.md", {"code"}),
            (".gitignore", {"code"}),
            ("wardround/__init__.py", {"code", "shadows"}),
            ("wardround/client/app.py", {"code", "shadows"}),
            ("Wardround/x.md", {"shadows"}),
            ("wardround.py", {"code", "shadows"}),
            ("wardround.abi3.so", {"code", "shadows"}),
        ],
    )
    def test_what_could_be_run_is_flagged(self, name: str, flags: set[str]) -> None:
        assert read_bundle(pack({"pyproject.toml": PROJECT, name: b"import os"})).flags == flags

    @pytest.mark.parametrize(
        "change",
        [
            lambda text: text.replace(b"wardround.client.app", b"os.path"),
            lambda text: text.replace(b"clientapp", b"another"),
            lambda text: text.replace(b"serverapp", b'more = "x:y"\nserverapp'),
            lambda text: b"",
            lambda text: b"tool = 3",
        ],
    )
    def test_other_apps_are_flagged(self, change: Callable[[bytes], bytes]) -> None:
        assert read_bundle(pack({"pyproject.toml": change(PROJECT)})).flags == {"foreign-app"}

    def test_its_name_is_shown_without_what_a_terminal_obeys(self) -> None:
        project = PROJECT.replace(b'"rounds"', b'"rou\\u001b[2Jnds\\u202e"')
        assert read_bundle(pack({"pyproject.toml": project})).name == "wardround/rou?[2Jnds? 1.0.0"


class TestHostile:
    @pytest.mark.parametrize(
        "name",
        [
            "../evil.md",
            "a/../../evil.md",
            "/etc/cron.d/evil.md",
            "..",
            "a/..",
            "./a.md",
            "a//b.md",
            "a/",
            "",
            " a.md",
            "a\\..\\b.md",
            "C:evil.md",
            "a\x1b[2J.md",
            "a\n.md",
            "pati\u00e9nt.md",
            "a" * 201,
        ],
    )
    def test_a_name_that_leads_elsewhere_or_is_odd(self, name: str) -> None:
        assert code_of(adding(name)) == "bundle-names"

    def test_a_name_behind_a_zero_byte(self) -> None:
        data = adding("a_md_b.md").replace(b"a_md_b.md", b"a.md\x00b.md")
        assert code_of(data) in ("bundle-names", "bundle-unreadable")

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    @pytest.mark.parametrize("name", ["pyproject.toml", "PyProject.toml", ".info/CONTENT"])
    def test_a_name_that_stands_twice(self, name: str) -> None:
        assert code_of(adding(name)) == "bundle-names"

    def test_a_name_for_a_file_and_a_folder(self) -> None:
        assert code_of(pack({"pyproject.toml": PROJECT, "a": b"", "a/b.md": b""})) == "bundle-names"

    @pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
    def test_a_link_or_a_device(self, kind: int) -> None:
        assert code_of(adding("a.md", b"/etc/passwd", external_attr=(kind | 0o777) << 16)) == "bundle-links"

    def test_a_small_file_that_unpacks_to_much(self) -> None:
        assert code_of(pack({"pyproject.toml": PROJECT, "a.md": bytes(MAX_FILE)})) == "bundle-too-large"

    def test_a_large_file(self) -> None:
        noise = b"".join(sha256(str(n).encode()).encode() for n in range(MAX_FILE // 64 + 1))
        assert code_of(pack({"pyproject.toml": PROJECT, "a.md": noise})) == "bundle-too-large"

    def test_many_files_that_are_large_together(self) -> None:
        noise = b"".join(sha256(str(n).encode()).encode() for n in range(MAX_FILE // 64))
        files = {"pyproject.toml": PROJECT} | {f"{n}.md": noise for n in range(17)}
        assert code_of(pack(files)) == "bundle-too-large"

    def test_many_files(self) -> None:
        assert code_of(pack({f"{n}.md": b"" for n in range(MAX_FILES)})) == "bundle-too-large"

    def test_a_table_of_contents_without_end_is_not_read(self) -> None:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for n in range(20_000):
                archive.writestr(f"{n}.md", b"")
        data = stream.getvalue()
        tracemalloc.start()
        try:
            assert code_of(data) == "bundle-too-large"
            assert tracemalloc.get_traced_memory()[1] < 2**20
        finally:
            tracemalloc.stop()

    def test_more_bytes_than_flower_allows(self) -> None:
        assert code_of(bytes(MAX_BUNDLE + 1)) == "bundle-too-large"

    @pytest.mark.parametrize("declared", [10 * 10**9 % 2**32, 2**32 - 1, 2**20 + 1])
    def test_a_size_that_is_only_declared_allocates_nothing(self, declared: int) -> None:
        data = bytearray(pack())
        entry = data.index(b"PK\x01\x02")
        data[entry + 24 : entry + 28] = struct.pack("<I", declared)
        tracemalloc.start()
        try:
            assert code_of(bytes(data)) in ("bundle-too-large", "bundle-unreadable")
            assert tracemalloc.get_traced_memory()[1] < 2**20
        finally:
            tracemalloc.stop()

    def test_ten_gigabytes_declared_in_the_extension_for_large_files(self) -> None:
        data = bytearray(pack())
        entry = data.index(b"PK\x01\x02")
        name, extra = struct.unpack("<HH", data[entry + 28 : entry + 32])
        assert extra == 0
        field = struct.pack("<HHQ", 1, 8, 10 * 10**9)
        data[entry + 24 : entry + 28] = b"\xff\xff\xff\xff"
        data[entry + 30 : entry + 32] = struct.pack("<H", len(field))
        data[entry + 46 + name : entry + 46 + name] = field
        table = int.from_bytes(data[-10:-6], "little") + len(field)
        data[-10:-6] = struct.pack("<I", table)
        assert code_of(bytes(data)) == "bundle-too-large"

    def test_a_size_declared_too_small_is_found(self) -> None:
        data = bytearray(pack(compression=zipfile.ZIP_STORED))
        entry = data.index(b"PK\x01\x02")
        data[entry + 24 : entry + 28] = struct.pack("<I", 10)
        assert code_of(bytes(data)) in ("bundle-unreadable", "bundle-manifest")

    def test_a_wrong_checksum(self) -> None:
        data = bytearray(pack(compression=zipfile.ZIP_STORED))
        data[data.index(b"rounds")] ^= 1
        assert code_of(bytes(data)) == "bundle-unreadable"

    def test_an_encrypted_file(self) -> None:
        data = bytearray(pack())
        data[data.index(b"PK\x01\x02") + 8] |= 1
        assert code_of(bytes(data)) == "bundle-unreadable"

    @pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_an_unusual_compression(self, compression: int) -> None:
        assert code_of(pack(compression=compression)) == "bundle-unreadable"

    @pytest.mark.parametrize("where", ["before", "behind", "comment"])
    def test_something_beside_the_archive(self, where: str) -> None:
        if where == "comment":
            data = pack(change=lambda archive: setattr(archive, "comment", b"hello"))
        else:
            data = b"#!/bin/sh\n" + pack() if where == "before" else pack() + b"hello"
        assert code_of(data) == "bundle-unreadable"

    @pytest.mark.parametrize(
        "manifest",
        [
            b"",
            b"pyproject.toml",
            b"pyproject.toml,00,0",
            f"pyproject.toml,{sha256(PROJECT)},{len(PROJECT)}".encode(),
            f"pyproject.toml,{sha256(PROJECT)},{len(PROJECT) * 8}\n".encode() * 2,
            f"pyproject.toml,{sha256(PROJECT)},{len(PROJECT) * 8}\n/etc/passwd,{sha256(b'')},0".encode(),
            b"\xff\xfe",
        ],
    )
    def test_a_list_that_is_not_true(self, manifest: bytes) -> None:
        assert code_of(pack(manifest=manifest)) == "bundle-manifest"

    def test_a_file_that_is_not_on_the_list(self) -> None:
        """Flower checks the files that are on the list and installs all of them."""
        assert code_of(adding("extra.md")) == "bundle-manifest"

    def test_no_list_or_no_project(self) -> None:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("pyproject.toml", PROJECT)
        assert code_of(stream.getvalue()) == "bundle-manifest"
        assert code_of(pack({"a.md": b""})) == "bundle-manifest"

    @pytest.mark.parametrize("project", [b"\xff", b"[", b"a = " + b"[" * 5000, f'a = "{CANARY}'.encode()])
    def test_a_project_that_cannot_be_read(self, project: bytes) -> None:
        assert code_of(pack({"pyproject.toml": project})) == "bundle-unreadable"

    @pytest.mark.parametrize("data", [b"", b"PK", b"\x80\x04K\x01.", bytes(22), b"PK\x05\x06" + bytes(18)])
    def test_no_archive(self, data: bytes) -> None:
        assert code_of(data) in ("bundle-unreadable", "bundle-too-large")

    @settings(max_examples=300)
    @given(st.integers(0, len(pack()) - 1), st.integers(1, 255))
    def test_one_changed_byte_never_breaks_the_reader(self, position: int, change: int) -> None:
        data = bytearray(pack())
        data[position] ^= change
        try:
            found = read_bundle(bytes(data))
        except GateRefused:
            return
        assert found.files["pyproject.toml"] == PROJECT

    @settings(max_examples=100)
    @given(st.integers(0, len(pack()) - 1))
    def test_a_part_of_a_bundle_never_breaks_the_reader(self, length: int) -> None:
        with pytest.raises(GateRefused):
            read_bundle(pack()[:length])

    def test_nothing_is_written(
        self, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path_factory.mktemp("empty")
        monkeypatch.chdir(folder)
        read_bundle(pack())
        assert list(folder.iterdir()) == []
        assert not hasattr(bundles, "extractall")
