"""Whether a case store holds what was put into it: every file has the SHA-256 of its row, every drawing can be read.

It is read beside an agent at work, and never repaired here: what cannot be restored must be seen by a person.
"""

import hashlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from wardround.client.cases.drawing_file import decode
from wardround.deploy.doctor.finding import Finding, bad, good
from wardround.errors import StorageError
from wardround.pages import count

_ROWS = "SELECT file, sha256 FROM cases UNION ALL SELECT file, sha256 FROM labels"
_DRAWINGS = "SELECT rowid, content FROM drawings"
_BLOCK = 2**20
_SHOWN = 3


def store(folder: Path) -> Finding:
    """Look at every byte of a store."""
    database = folder / "store.sqlite"
    if not database.exists():
        return good("store", "no case has been imported yet")
    try:
        rows = _rows(database)
        damaged = list(_damaged(folder / "volumes", rows))
        drawings, unreadable = _drawings(database)
        # A label may have been replaced between looking at the rows and at its file.
        still = {file for file, _ in _rows(database)} if damaged else set()
    except sqlite3.Error as error:
        return bad(
            "store",
            f"the case store {folder} cannot be read",
            f"its database is damaged or locked ({type(error).__name__})",
            "stop what else uses it; if that does not help, restore the folder from a copy",
        )
    if damaged := [*(item for item in damaged if item[0] in still), *unreadable]:
        named = ", ".join(f"{file} ({why})" for file, why in damaged[:_SHOWN])
        more = f" and {len(damaged) - _SHOWN} more" if len(damaged) > _SHOWN else ""
        return bad(
            "store",
            f"{count(len(damaged), 'stored file')} of {len(rows) + drawings} cannot be used",
            named + more,
            "the disk may be failing: look at its log; restore these files from a copy, or import the cases again",
        )
    drawn = f" and {count(drawings, 'drawing')}" if drawings else ""
    return good("store", f"{count(len(rows), 'file')}{drawn}, all as they were written")


def _rows(database: Path) -> list[tuple[str, str]]:
    connection = sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True, timeout=5)
    try:
        return [(str(file), str(digest)) for file, digest in connection.execute(_ROWS)]
    finally:
        connection.close()


def _drawings(database: Path) -> tuple[int, list[tuple[str, str]]]:
    """How many drawings there are, and which of them cannot be read."""
    connection = sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True, timeout=5)
    number, unreadable = 0, []
    try:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'drawings'").fetchone():
            return 0, []  # A store that no version with drawings has opened yet.
        for number, (row, content) in enumerate(connection.execute(_DRAWINGS), 1):  # noqa: B007
            try:
                decode(content)
            except StorageError:
                unreadable.append((f"drawing {row}", "its content has changed"))
    finally:
        connection.close()
    return number, unreadable


def _damaged(folder: Path, rows: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for file, expected in rows:
        digest = hashlib.sha256()
        try:
            with (folder / file).open("rb") as stream:
                while block := stream.read(_BLOCK):
                    digest.update(block)
        except FileNotFoundError:
            yield file, "it is gone"
        except OSError as error:
            yield file, error.strerror or "unreadable"
        else:
            if digest.hexdigest() != expected:
                yield file, "its content has changed"
