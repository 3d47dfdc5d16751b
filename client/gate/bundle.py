"""Read an app bundle without trusting it: a zip that somebody else made.

A bundle of Wardround is an order form: it names which installed apps run and brings no code. What a bundle brings is
put in front of what is installed, so that one with a package ``wardround`` would replace the code that touches images.
Nothing is unpacked to the disk here, and no byte is decompressed beyond what was declared and allowed.
"""

import hashlib
import io
import re
import stat
import tomllib
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from wardround.errors import GateRefused

Flag = Literal["code", "foreign-app", "shadows"]

MANIFEST = ".info/CONTENT"
PROJECT = "pyproject.toml"
APPS = {"serverapp": "wardround.server.app:app", "clientapp": "wardround.client.app:app"}
"""What the bundle of a federation names."""

MAX_BUNDLE = 10 * 2**20
MAX_FILES = 256
MAX_FILE = 2**20
MAX_TOTAL = 16 * 2**20
MAX_RATIO = 200
_RATIO_FROM = 4096

_NAME = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.+ -]*(/[A-Za-z0-9_.][A-Za-z0-9_.+ -]*)*")
_LONGEST_NAME = 200
_INERT = (".toml", ".md", ".yaml", ".yml", ".json", ".jsonl")
_END = b"PK\x05\x06"
_END_SIZE = 22
_ZIP64 = b"PK\x06\x07"


@dataclass(frozen=True)
class Bundle:
    """What a bundle holds.

    Parameters
    ----------
    sha256
        Of the bundle as it came, in hexadecimal.
    files
        Content by name, without the bundle's own list.
    name
        ``publisher/app version``, as far as the bundle says it.
    flags
        ``code``: it brings something that could be run; ``foreign-app``: it does not run Wardround's apps;
        ``shadows``: it brings a package that would replace Wardround.
    """

    sha256: str
    files: Mapping[str, bytes]
    name: str
    flags: frozenset[Flag]


def read_bundle(data: bytes) -> Bundle:
    """Read a bundle.

    Parameters
    ----------
    data
        The zip as it came.

    Raises
    ------
    GateRefused
        If it is not a plain archive of a few small files with plain names and a true list of them. The message
        repeats nothing that the bundle holds.
    """
    if len(data) > MAX_BUNDLE:
        raise _refused("bundle-too-large", f"{len(data)} bytes, {MAX_BUNDLE} allowed")
    _check_end(data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            if min((info.header_offset for info in infos), default=0) != 0:
                raise _refused("bundle-unreadable", "something stands before the archive")
            _check_members(infos, len(data))
            files = {info.filename: _content(archive, info) for info in infos}
    # What zipfile and zlib let through on a file that was made to break them.
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise _refused("bundle-unreadable", type(error).__name__) from None
    _check_manifest(files)
    del files[MANIFEST]
    project = _project(files)
    return Bundle(hashlib.sha256(data).hexdigest(), MappingProxyType(files), _title(project), _flags(files, project))


def _refused(code: str, cause: str) -> GateRefused:
    return GateRefused("the bundle is refused", cause, "ask the coordinator for the bundle again", code=code)


def _check_end(data: bytes) -> None:
    """The end of the archive: no comment, no extension for large files, a short table of contents.

    The table is read into memory before anything can be asked about it, so its size is looked at first.
    """
    if data[-_END_SIZE:][:4] != _END or data[-_END_SIZE - 20 :][:4] == _ZIP64:
        raise _refused("bundle-unreadable", "it does not end as a plain zip does")
    table = int.from_bytes(data[-10:-6], "little")
    if table > MAX_FILES * (46 + _LONGEST_NAME + 64):
        raise _refused("bundle-too-large", "its table of contents is too long")


def _check_members(infos: list[zipfile.ZipInfo], size: int) -> None:
    if not 0 < len(infos) <= MAX_FILES:
        raise _refused("bundle-too-large", f"{len(infos)} files, {MAX_FILES} allowed")
    seen = set()
    for info in infos:
        plain = _NAME.fullmatch(info.filename) and len(info.filename) <= _LONGEST_NAME
        # As the archive spells it: zipfile itself cuts names at a zero byte and turns backslashes.
        if not plain or info.filename != info.orig_filename or {".", ".."} & set(info.filename.split("/")):
            raise _refused("bundle-names", "a file has an odd name")
        # Some file systems take these for one.
        if info.filename.casefold() in seen:
            raise _refused("bundle-names", "a name stands twice")
        seen.add(info.filename.casefold())
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise _refused("bundle-links", "it holds something that is not a plain file")
        if info.flag_bits & 0x1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _refused("bundle-unreadable", "a file is encrypted or packed in an unusual way")
        if info.file_size > max(_RATIO_FROM, MAX_RATIO * info.compress_size) or info.file_size > MAX_FILE:
            raise _refused("bundle-too-large", "a file is too large, or unpacks to too much")
        if info.header_offset + info.compress_size > size:
            raise _refused("bundle-unreadable", "it is not whole")
    nested = {name for name in seen for other in seen if other.startswith(name + "/")}
    if nested:
        raise _refused("bundle-names", "a name stands for a file and a folder")
    if sum(info.file_size for info in infos) > MAX_TOTAL:
        raise _refused("bundle-too-large", "it unpacks to too much")


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as stream:
        content = stream.read(info.file_size + 1)
    if len(content) != info.file_size:
        raise _refused("bundle-unreadable", "a file is not as large as declared")
    return content


def _check_manifest(files: Mapping[str, bytes]) -> None:
    """The bundle's own list must hold every file once, with its SHA-256, and nothing else."""
    if MANIFEST not in files or PROJECT not in files:
        raise _refused("bundle-manifest", f"it has no {MANIFEST} or no {PROJECT}")
    listed = []
    for line in files[MANIFEST].decode("utf-8", "replace").splitlines():
        name, _, rest = line.partition(",")
        digest, _, bits = rest.partition(",")
        content = files.get(name)
        if content is None or hashlib.sha256(content).hexdigest() != digest or bits != str(len(content) * 8):
            raise _refused("bundle-manifest", "a file is not the one on its list")
        listed.append(name)
    if sorted(listed) != sorted(files.keys() - {MANIFEST}):
        raise _refused("bundle-manifest", "its list of files is not complete, or names one twice")


def _project(files: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        return tomllib.loads(files[PROJECT].decode("utf-8"))
    except (ValueError, RecursionError):
        raise _refused("bundle-unreadable", f"its {PROJECT} cannot be read") from None


def _table(values: object, *path: str) -> Mapping[str, Any]:
    """A table below `values`; an empty one where something on the way is not a table."""
    for name in path:
        values = values.get(name) if isinstance(values, dict) else None
    return values if isinstance(values, dict) else {}


def _title(project: Mapping[str, Any]) -> str:
    parts = (_table(project, "tool", "flwr", "app").get("publisher"), _table(project, "project").get("name"))
    shown = "/".join(part for part in parts if isinstance(part, str))
    version = _table(project, "project").get("version")
    title = f"{shown} {version}" if isinstance(version, str) else shown
    return "".join(character if character.isprintable() else "?" for character in title)[:120]


def _flags(files: Mapping[str, bytes], project: Mapping[str, Any]) -> frozenset[Flag]:
    flags: set[Flag] = set()
    for name in files:
        parts = name.split("/")
        # Hidden files and whatever is not text that nobody runs: sitecustomize.py, a .pth, a .so.
        if parts[-1] != "LICENSE" and (not name.endswith(_INERT) or any(part.startswith(".") for part in parts)):
            flags.add("code")
        top, _, ending = parts[0].casefold().partition(".")
        if top == "wardround" and not (len(parts) == 1 and ending and f".{ending}".endswith(_INERT)):
            flags.add("shadows")
    if dict(_table(project, "tool", "flwr", "app", "components")) != APPS:
        flags.add("foreign-app")
    return frozenset(flags)
