"""Who may use the workbench: accounts in one file of the site's home, with argon2id hashes of their passwords.

The command line writes the file, and the server reads it: a change counts from the next request on. What is wrong with
a name and a password is never said: whether there is such an account takes a whole hash to find out, either way.
"""

import fcntl
import json
import os
import re
import secrets
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, get_args

import argon2
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wardround.client.arrivals import IMPORTED, REFERENCE
from wardround.client.workbench.patience import Patience
from wardround.errors import AuthRefused, StorageError, UsageError
from wardround.files import storage_error, write_text

Role = Literal["annotator", "reviewer", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
"""Each includes those before it."""
NAME = re.compile(r"[a-z][a-z0-9._-]{0,31}")
RESERVED = frozenset({IMPORTED, REFERENCE, "wardround"})
"""Authors of labels that nobody drew here: what came with a case, and what a round of the federation writes."""
SHORTEST = 12
LONGEST = 256
"""Characters of a password."""
_HASHES_AT_ONCE = 2
"""Each takes 64 MiB."""


@dataclass(frozen=True)
class Person:
    """Who asks.

    Parameters
    ----------
    name
        Of the account.
    roles
        That of the account, and those that it includes.
    """

    name: str
    roles: frozenset[str]


class _Account(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    role: Role
    hash: str
    # Changes with the password and with the role: sessions that were begun before end.
    serial: str


class _Accounts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    accounts: dict[Annotated[str, Field(pattern=rf"^{NAME.pattern}$")], _Account] = {}


class Accounts:
    """The accounts in a file.

    Parameters
    ----------
    path
        ``accounts.json`` of a site's home. No file is no account.
    hasher
        By default argon2id as RFC 9106 advises where memory is scarce: 64 MiB, three passes.
    patience
        How many wrong passwords are borne.
    """

    def __init__(
        self, path: Path, *, hasher: argon2.PasswordHasher | None = None, patience: Patience | None = None
    ) -> None:
        self._path = path
        self._hasher = hasher or argon2.PasswordHasher()
        self._patience = patience or Patience()
        self._hashing = threading.Semaphore(_HASHES_AT_ONCE)
        self._lock = threading.Lock()
        self._read: tuple[tuple[int, int, int] | None, _Accounts] = (None, _Accounts())

    def add(self, name: str, password: str, role: Role) -> None:
        """Make an account.

        Raises
        ------
        UsageError
            If there is one of that name, or name or password cannot be used.
        """
        if not NAME.fullmatch(name) or name in RESERVED:
            raise UsageError(
                f"an account cannot be called {name!r}",
                "a name has 1 to 32 lower-case letters, digits and . _ -, begins with a letter, and is not one of "
                + ", ".join(sorted(RESERVED)),
                "choose another name",
            )
        account = _Account(role=role, hash=self._hashed(name, password), serial=secrets.token_hex(16))
        with self._changing() as accounts:
            if name in accounts:
                raise UsageError(f"there is an account {name} already", "", "use `account password` or `account role`")
            accounts[name] = account

    def remove(self, name: str) -> None:
        """Take an account away; its sessions end. What was drawn under its name stays."""
        with self._changing() as accounts:
            _find(accounts, name)
            del accounts[name]

    def set_password(self, name: str, password: str) -> None:
        """Give an account another password; its sessions end."""
        hashed = self._hashed(name, password)
        with self._changing() as accounts:
            account = _find(accounts, name)
            accounts[name] = account.model_copy(update={"hash": hashed, "serial": secrets.token_hex(16)})

    def set_role(self, name: str, role: Role) -> None:
        """Give an account another role; its sessions end."""
        with self._changing() as accounts:
            account = _find(accounts, name)
            accounts[name] = account.model_copy(update={"role": role, "serial": secrets.token_hex(16)})

    def listing(self) -> tuple[tuple[str, Role], ...]:
        """Names and roles, in alphabetical order."""
        return tuple((name, account.role) for name, account in sorted(self._known().items()))

    def find(self, name: str) -> tuple[Person, str] | None:
        """An account as it is now, and its serial; None where there is none."""
        account = self._known().get(name)
        return None if account is None else (_person(name, account), account.serial)

    def verify(self, name: str, password: str, address: str = "") -> tuple[Person, str]:
        """The account that name and password belong to, and its serial.

        Parameters
        ----------
        address
            Where the question comes from.

        Raises
        ------
        AuthRefused
            If they belong to none; :class:`TooManyTries` if too many were wrong before, whatever is given now.
        """
        with self._patience.trying(name, address) as try_:
            nobody, account = self._nobody, self._known().get(name)
            hashed = nobody if account is None else account.hash
            if not self._fits(hashed, password) or account is None:
                raise AuthRefused("name and password do not fit", "", "try again, or ask your administrator")
            try_.succeeded()
            return _person(name, account), account.serial

    @cached_property
    def _nobody(self) -> str:
        """What an unknown name's password is held against; nobody knows the password of this hash."""
        return self._hasher.hash(secrets.token_urlsafe(32))

    def _fits(self, hashed: str, password: str) -> bool:
        with self._hashing:
            try:
                # A text that is too long for a password is not hashed as it is: it would take time.
                return self._hasher.verify(hashed, _normal(password)[: LONGEST + 1])
            except argon2.exceptions.VerificationError:
                return False
            except argon2.exceptions.InvalidHashError:
                return False

    def _hashed(self, name: str, password: str) -> str:
        normal = _normal(password)
        if not SHORTEST <= len(normal) <= LONGEST or normal.casefold() in (name, name * 2) or len(set(normal)) < 4:
            raise UsageError(
                "this password cannot be used",
                f"a password has {SHORTEST} to {LONGEST} characters, of which some differ",
                "choose a longer one: a few words do well",
            )
        with self._hashing:
            return self._hasher.hash(normal)

    def _known(self) -> dict[str, _Account]:
        """What the file says now; read again only when it was replaced."""
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

    @contextmanager
    def _changing(self) -> Iterator[dict[str, _Account]]:
        """The accounts, to be changed in place: nobody else changes them meanwhile."""
        guard = self._path.with_name(f"{self._path.name}.lock")
        try:
            handle = os.open(guard, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise storage_error(error, guard) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            accounts = dict(self._load().accounts)
            yield accounts
            content = _Accounts(accounts=accounts).model_dump()
            write_text(self._path, json.dumps(content, indent=1) + "\n")
        finally:
            os.close(handle)


def _find(accounts: dict[str, _Account], name: str) -> _Account:
    if name not in accounts:
        raise UsageError("there is no such account", "", "`account list` shows those that there are")
    return accounts[name]


def _person(name: str, account: _Account) -> Person:
    return Person(name, frozenset(ROLES[: ROLES.index(account.role) + 1]))


def _normal(password: str) -> str:
    """The same characters, however the keyboard wrote them."""
    return unicodedata.normalize("NFKC", password.encode("utf-8", "replace").decode())
