"""The case store's rows on disk: who may read, write and repair them."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import cast

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError, SQLAlchemyError

from wardround import files
from wardround.client.cases import rows
from wardround.errors import StorageError, UsageError


class Database:
    """The SQLite database of a case store, and the lock that says whether anybody else has it open.

    Parameters
    ----------
    folder
        Of the store; must be there.

    Raises
    ------
    StorageError
        If the folder is not writable.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self._lock: int | None = os.open(folder / "store.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise files.storage_error(error, folder) from error
        self.engine = rows.make_engine(folder / "store.sqlite")
        self._writer = self.engine.execution_options(writes=True)

    def open(self, repair: Callable[[], None]) -> None:
        """Take the shared lock; `repair` first if nobody else has the store open, and make the tables where absent.

        Raises
        ------
        StorageError
            If what lies there is damaged or of a newer version.
        """
        lock = cast(int, self._lock)
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fcntl.flock(lock, fcntl.LOCK_SH)
            else:
                self._create_tables()
                repair()
                # Not one step, so a third process may come between: it would find nothing left to repair.
                fcntl.flock(lock, fcntl.LOCK_SH)
            if self._version():
                # A process of an earlier version may have the store open: a further table does not concern it.
                self._create_tables()
                return
            # Whoever held the lock died before it had made the tables: take its place.
            fcntl.flock(lock, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of it; any use afterwards raises UsageError."""
        self.engine.dispose()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def check_open(self) -> None:
        """Refuse to be used after :meth:`close`."""
        if self._lock is None:
            raise UsageError("the case store is closed", "it was used after close()", "open it again")

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that sees one state."""
        self.check_open()
        with self._translated(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that holds SQLite's write lock from its start, so that what it reads stays true."""
        self.check_open()
        with self._translated(), self._writer.begin() as connection:
            yield connection

    def _version(self) -> int:
        with self.reading() as connection:
            version = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
        if version > rows.SCHEMA_VERSION:
            raise StorageError(
                f"cannot open the case store {self._folder}",
                "it was written by a newer version of Wardround",
                "update Wardround",
            )
        return version

    def _create_tables(self) -> None:
        """Make the tables that are missing: all of them, or those that came after the version of this store."""
        if self._version() == rows.SCHEMA_VERSION:
            return
        with self._translated(), closing(self.engine.raw_connection()) as raw:
            raw.cursor().execute("PRAGMA journal_mode = WAL")  # kept in the file; not possible within a transaction
        with self.writing() as connection:
            rows.metadata.create_all(connection)
            connection.exec_driver_sql(f"PRAGMA user_version = {rows.SCHEMA_VERSION}")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            cause = str(error.orig) if isinstance(error, DatabaseError) else type(error).__name__
            if "full" in cause:
                fix = "free some space and run the same command again"
            elif "locked" in cause:
                fix = "wait until the other process is done, or stop it"
            else:
                fix = "check the disk, or restore the store from a backup"
            raise StorageError(f"cannot use the case store {self._folder}", cause, fix) from error
