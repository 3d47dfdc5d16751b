"""The file in which accounts are kept: read again where it was replaced, and changed by one at a time."""

import fcntl
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wardround.errors import StorageError
from wardround.files import storage_error, write_text

Role = Literal["annotator", "reviewer", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
"""Each includes those before it."""
NAME = re.compile(r"[a-z][a-z0-9._-]{0,31}")


class Account(BaseModel):
    """What is kept of an account."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    role: Role
    hash: str
    # Changes with the password and with the role: sessions that were begun before end.
    serial: str
    disabled: bool = False
    # Until when a one-time password is good, in seconds since 1970; 0 for a password of the person's own.
    one_time_until: int = 0
    # Digest of who somebody is at the sign-in service; empty for an account with a password.
    subject: str = ""


NOBODY = Account(role="annotator", hash="", serial="")
"""Stands for an account that there is not; no password fits."""


class _Accounts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    accounts: dict[Annotated[str, Field(pattern=rf"^{NAME.pattern}$")], Account] = {}


class Roster:
    """Accounts by name, in a file.

    Parameters
    ----------
    path
        ``accounts.json`` of a site's home. No file is no account.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._read: tuple[tuple[int, int, int] | None, _Accounts] = (None, _Accounts())

    def known(self) -> dict[str, Account]:
        """What the file says now."""
        with self._lock:
            try:
                found = self._path.stat()
                stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
            except FileNotFoundError:
                self._read = (None, _Accounts())
            except OSError as error:
                raise storage_error(error, self._path) from error
            else:
                if stamp != self._read[0]:
                    self._read = (stamp, self._load())
            return dict(self._read[1].accounts)

    @contextmanager
    def changing(self) -> Iterator[dict[str, Account]]:
        """The accounts, to be changed in place: nobody else changes them meanwhile."""
        guard = self._path.with_name(f"{self._path.name}.lock")
        try:
            handle = os.open(guard, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise storage_error(error, guard) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            before = self._load().accounts
            accounts = dict(before)
            yield accounts
            if accounts != before:
                content = {"format": 1} | _Accounts(accounts=accounts).model_dump(exclude_defaults=True)
                write_text(self._path, json.dumps(content, indent=1) + "\n")
        finally:
            os.close(handle)

    def _load(self) -> _Accounts:
        try:
            return _Accounts.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return _Accounts()
        except (OSError, ValidationError) as error:
            raise StorageError(
                f"cannot read {self._path}",
                f"the file is damaged ({type(error).__name__})",
                "take it from a copy, or remove it and add the accounts again",
            ) from error
