"""The SuperLink's database after a start that was cut off."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from flwr.supercore.state.alembic.utils import run_migrations
from sqlalchemy import Engine, create_engine, event

from wardround.server.database import prepare_database


class Killed(BaseException):
    """Ends the work in between, as a kill does."""


def tables(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def migrate_in_place(path: Path, statements: int) -> None:
    """Flower's own way, killed after so many statements that make a table."""
    engine = create_engine(f"sqlite:///{path}")
    seen = []

    def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.lstrip().upper().startswith("CREATE TABLE"):
            seen.append(statement)
            if len(seen) > statements:
                raise Killed

    # It makes an engine of its own.
    event.listen(Engine, "before_cursor_execute", count)
    try:
        with pytest.raises(Killed):
            run_migrations(engine)
    finally:
        event.remove(Engine, "before_cursor_execute", count)
        engine.dispose()


@pytest.mark.parametrize("statements", [1, 2, 4])
def test_tables_that_were_never_finished_are_made_anew(tmp_path: Path, statements: int) -> None:
    whole = tmp_path / "whole.db"
    prepare_database(whole)
    path = tmp_path / "state.db"
    migrate_in_place(path, statements)
    assert tables(whole) - tables(path)
    prepare_database(path)
    assert tables(path) == tables(whole)
    # Flower finds nothing left to do.
    engine = create_engine(f"sqlite:///{path}")
    run_migrations(engine)
    engine.dispose()
    assert sorted(found.name for found in tmp_path.iterdir()) == ["state.db", "whole.db"]


def test_one_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    prepare_database(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE ours (number INTEGER)")
        connection.commit()
    prepare_database(path)
    assert "ours" in tables(path)
    path.write_bytes(b"no database, and large enough to be one" * 100)
    before = path.read_bytes()
    prepare_database(path)
    assert path.read_bytes() == before


def test_what_a_cut_left_aside_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    (tmp_path / ".state.db.new").write_bytes(b"half of it")
    (tmp_path / "state.db-wal").write_bytes(b"of another one")
    prepare_database(path)
    assert "node" in tables(path)
    assert [found.name for found in tmp_path.iterdir()] == ["state.db"]
