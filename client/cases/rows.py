"""The tables of the case store, and what stands in their rows."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import sqlalchemy as sa

from wardround.client.cases import drawing_file as coding
from wardround.client.cases.drawings import Drawing, Source, State
from wardround.client.cases.volume import Volume
from wardround.errors import StorageError, UsageError

Role = Literal["stream", "test"]
Verdict = Literal["approved", "rejected"]

SCHEMA_VERSION = 2
"""1 had cases and labels; 2 has drawings as well."""
BUSY_TIMEOUT_S = 30

metadata = sa.MetaData()


def _file() -> tuple[sa.Column[Any], ...]:
    """The columns that name a file."""
    return sa.Column("file", sa.String, nullable=False, unique=True), sa.Column("sha256", sa.String, nullable=False)


def _whose() -> tuple[sa.Column[Any], ...]:
    """The columns that say whose work on which case a row is."""
    case: sa.Column[Any] = sa.Column("case_id", sa.ForeignKey("cases.id"), primary_key=True)
    return case, sa.Column("author", sa.String, primary_key=True)


cases = sa.Table(
    "cases",
    metadata,
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("id", sa.String, nullable=False, unique=True),
    sa.Column("role", sa.String, nullable=False),
    sa.Column("grid", sa.String, nullable=False),  # JSON: shape and affine, which NIfTI would round to 32 bits
    sa.Column("content", sa.String, nullable=False),  # digest of voxels and grid, whatever the compression
    *_file(),
)

labels = sa.Table(
    "labels",
    metadata,
    *_whose(),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("effort", sa.Float, nullable=False),
    *_file(),
)

drawings = sa.Table(
    "drawings",
    metadata,
    *_whose(),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("source", sa.String, nullable=False),
    sa.Column("effort_contour", sa.Float, nullable=False),
    sa.Column("effort_strict", sa.Float, nullable=False),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("reason", sa.String, nullable=False),
    sa.Column("reviewer", sa.String, nullable=False),  # empty where nobody has judged
    sa.Column("updated", sa.String, nullable=False),  # UTC
    sa.Column("turn", sa.Integer),  # in which order labels were accepted; NULL where none is
    sa.Column("content", sa.LargeBinary, nullable=False),  # as drawings.encode writes it, with its own checksums
)


@dataclass(frozen=True)
class LabelRecord:
    """What is known of a stored label besides its voxels.

    Parameters
    ----------
    case_id, author
        Whose label of which case.
    round
        The federation's round in which it was accepted, 0 or above.
    effort
        What it cost to draw, in contour pixels, 0 or above; 0 for a label that came with the case.
    """

    case_id: str
    author: str
    round: int
    effort: float


@dataclass(frozen=True)
class DrawingRecord:
    """What is known of a drawing besides its prompts; :class:`~wardround.client.cases.drawings.Drawing` has the words.

    Parameters
    ----------
    reviewer
        Who approved or rejected it; empty while nobody has.
    updated
        When it changed last: UTC, as ``2026-03-01T12:00:00.000Z``.
    """

    case_id: str
    author: str
    state: State
    source: Source
    effort_contour: float
    effort_strict: float
    round: int
    model: str
    seconds: float
    reason: str
    reviewer: str
    updated: str


RECORD = tuple(drawings.c[name] for name in DrawingRecord.__dataclass_fields__)


def make_engine(path: Path) -> sa.Engine:
    """Connections to the database `path`: every commit is flushed, and one that ``writes`` holds the write lock."""
    # The driver must not open transactions of its own: it would begin them without the write lock.
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(path)),
        connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": None},
    )

    @sa.event.listens_for(engine, "connect")
    def configure(connection: sa.engine.interfaces.DBAPIConnection, _: object) -> None:
        cursor = connection.cursor()
        for pragma in ("synchronous = FULL", "foreign_keys = ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def mine(table: sa.Table, case_id: str, author: str) -> sa.ColumnElement[bool]:
    """The row of an author's work on a case."""
    return (table.c.case_id == case_id) & (table.c.author == author)


def replace_row(connection: sa.Connection, table: sa.Table, **values: object) -> sa.Row[Any] | None:
    """Put a row in the place of the one of the same case and author; the old one, if there was any."""
    same = mine(table, str(values["case_id"]), str(values["author"]))
    old = connection.execute(sa.select(table).where(same)).one_or_none()
    connection.execute(table.delete().where(same))
    connection.execute(table.insert().values(**values))
    return old


def columns_of(drawing: Drawing) -> dict[str, Any]:
    """The row of a drawing that nobody has judged."""
    plain = {field: getattr(drawing, field) for field in DrawingRecord.__dataclass_fields__ if hasattr(drawing, field)}
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return plain | {"reviewer": "", "updated": now, "turn": None, "content": coding.encode(drawing)}


def drawing_in(connection: sa.Connection, case_id: str, author: str) -> Drawing | None:
    """What an author drew on a case; None where there is nothing.

    Raises
    ------
    StorageError
        If it is damaged.
    """
    content = connection.scalar(sa.select(drawings.c.content).where(mine(drawings, case_id, author)))
    if content is None:
        return None
    drawing = coding.decode(content)
    if (drawing.case_id, drawing.author) != (case_id, author):
        raise StorageError(
            "a stored drawing is another one than its row says", "the store is damaged", "restore it from a backup"
        )
    return drawing


def files_in(connection: sa.Connection) -> set[str]:
    """Names of all files that a row names."""
    return set(connection.scalars(sa.union_all(sa.select(cases.c.file), sa.select(labels.c.file))))


def remove_case(connection: sa.Connection, case_id: str) -> tuple[str, ...]:
    """Remove all rows of a case; the files that they named, empty where there was none."""
    image, theirs = cases.c.id == case_id, labels.c.case_id == case_id
    named = sa.union_all(sa.select(cases.c.file).where(image), sa.select(labels.c.file).where(theirs))
    gone = tuple(connection.scalars(named))
    for table in (drawings, labels):
        connection.execute(table.delete().where(table.c.case_id == case_id))
    connection.execute(cases.delete().where(image))
    return gone


def digest_of(volume: Volume) -> str:
    """SHA-256 of voxels and grid, in hexadecimal, whatever the compression of the file."""
    digest = hashlib.sha256(grid_to_json(volume).encode())
    digest.update(np.ascontiguousarray(volume.array).tobytes())
    return digest.hexdigest()


def grid_to_json(volume: Volume) -> str:
    """Shape and affine of a volume as text; equal grids and only those share it."""
    # Adding 0 turns -0.0 into 0.0: the same grid must give the same text.
    return json.dumps({"shape": volume.shape, "affine": (volume.affine + 0.0).tolist()})


def grid_from_json(text: str) -> Volume:
    """A volume of zeros (uint8) on the grid in `text`."""
    grid = json.loads(text)
    return Volume(np.broadcast_to(np.uint8(0), grid["shape"]), np.array(grid["affine"], dtype=np.float64))


def on_grid(grid: str, volume: Volume) -> Volume:
    """The voxels of `volume` on the grid in `grid`, which NIfTI rounds to 32 bits."""
    return grid_from_json(grid).with_array(volume.array)


def judge(  # noqa: PLR0917
    connection: sa.Connection, case_id: str, author: str, by: str, verdict: Verdict, reason: str, seen: str | None
) -> None:
    """Write a verdict into the row of an accepted drawing, see ``CaseStore.review``."""
    drawing = drawing_in(connection, case_id, author)
    if drawing is None or drawing.state not in ("accepted", *get_args(Verdict)):
        raise UsageError(
            "there is nothing of this author to review on this case",
            "its author has not accepted it, or draws on it again",
            "wait until it is accepted",
        )
    columns = sa.select(drawings.c.turn, drawings.c.updated).where(mine(drawings, case_id, author))
    turn, updated = connection.execute(columns).one()
    if seen is not None and seen != updated:
        raise UsageError(
            "this label has changed since it was looked at",
            "its author accepted it anew, or somebody else reviewed it",
            "look at it again",
        )
    judged = replace(drawing, state=verdict, reason=reason)
    replace_row(connection, drawings, **(columns_of(judged) | {"turn": turn, "reviewer": by}))


def counting(connection: sa.Connection, review: bool) -> Mapping[str, str]:
    """Case id → author of the drawing that counts, see ``CaseStore.counting``."""
    states = ("approved",) if review else ("approved", "accepted")
    query = (
        sa.select(drawings.c.case_id, drawings.c.author)
        .join(cases)
        .where(drawings.c.state.in_(states) & (cases.c.role == "stream"))
        .order_by(cases.c.position, drawings.c.state == "accepted", drawings.c.turn)
    )
    found: dict[str, str] = {}
    for row in connection.execute(query):
        found.setdefault(row.case_id, row.author)
    return found
