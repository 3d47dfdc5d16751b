"""The database of the SuperLink: its tables are there whole, or there is none.

Flower makes them where the database lies, step by step and not in one transaction. One that was killed on the way meets
half of them at its next start, and at every start after that, and ends.
"""

import logging
import sqlite3
from contextlib import closing
from pathlib import Path

from flwr.supercore.state.alembic.utils import run_migrations
from sqlalchemy import create_engine

log = logging.getLogger(__name__)


def prepare_database(path: Path) -> None:
    """Make the tables of a database that has none, in a file aside that then takes its place.

    A database whose first tables were never finished holds nothing yet, since its SuperLink has never answered: it is
    made anew. Any other is left to Flower.

    Raises
    ------
    OSError, sqlalchemy.exc.SQLAlchemyError
        If the disk is full or not writable.
    """
    if path.exists() and not _never_finished(path):
        return
    aside = path.with_name(f".{path.name}.new")
    for left in (aside, *_beside(aside)):
        left.unlink(missing_ok=True)
    engine = create_engine(f"sqlite:///{aside.resolve()}")
    try:
        run_migrations(engine)
    finally:
        engine.dispose()
    if path.exists():
        log.warning("the tables of %s were never finished; they are made anew", path.name)
    for left in _beside(path):
        left.unlink(missing_ok=True)
    aside.replace(path)


def _never_finished(path: Path) -> bool:
    """Whether there is a database without a word on the version of its tables."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "alembic_version" in tables:
                return not connection.execute("SELECT * FROM alembic_version").fetchall()
            return "node" not in tables or not connection.execute("SELECT * FROM node LIMIT 1").fetchall()
    except sqlite3.Error:
        # Damaged, or locked by somebody: it is for Flower to say so.
        return False


def _beside(path: Path) -> tuple[Path, ...]:
    return tuple(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm", "-journal"))
