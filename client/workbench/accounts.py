"""Who may use the workbench: accounts in one file of the site's home, with argon2id hashes of their passwords.

The command line and the workbench write the file, and the server reads it: a change counts from the next request on.
What is wrong with a name and a password is never said: whether there is such an account takes a whole hash to find out,
either way. An account of the hospital's sign-in service (:mod:`.provider`) has no password here: it is bound to who it
is there.
"""

import secrets
import threading
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import argon2

from wardround.client.arrivals import IMPORTED, REFERENCE
from wardround.client.workbench.patience import Patience
from wardround.client.workbench.roster import NAME, NOBODY, ROLES, Account, Role, Roster
from wardround.errors import AuthRefused, UsageError

RESERVED = frozenset({IMPORTED, REFERENCE, "wardround"})
"""Authors of labels that nobody drew here: what came with a case, and what a round of the federation writes."""
SHORTEST = 12
LONGEST = 256
"""Characters of a password."""
ONE_TIME_S = 48 * 3600
"""How long a one-time password is good for."""
_SYLLABLES = "abcdefghjkmnpqrstuvwxyz23456789"
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
    must_change
        Whether a one-time password was used, which is good for choosing another and for nothing else.
    """

    name: str
    roles: frozenset[str]
    must_change: bool = False


@dataclass(frozen=True)
class AccountView:
    """An account, as an administrator sees it.

    Parameters
    ----------
    name, role
        Of the account.
    disabled
        Whether it may not sign in.
    one_time
        Whether its password is one that somebody else made.
    source
        ``local``, or ``oidc`` where the hospital's sign-in service knows the person.
    """

    name: str
    role: Role
    disabled: bool
    one_time: bool
    source: Literal["local", "oidc"]


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
    clock
        Seconds since 1970.
    """

    def __init__(
        self,
        path: Path,
        *,
        hasher: argon2.PasswordHasher | None = None,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._roster = Roster(path)
        self._clock = clock
        self._hasher = hasher or argon2.PasswordHasher()
        self._patience = patience or Patience()
        self._hashing = threading.Semaphore(_HASHES_AT_ONCE)

    def add(self, name: str, password: str, role: Role) -> None:
        """Make an account.

        Raises
        ------
        UsageError
            If there is one of that name, or name or password cannot be used.
        """
        _check_name(name)
        self._put_new(name, Account(role=role, hash=self._hashed(name, password), serial=new_serial()))

    def invite(self, name: str, role: Role) -> str:
        """Make an account with a one-time password, which is returned and kept nowhere; raises as :meth:`add`."""
        _check_name(name)
        password = _one_time()
        until = int(self._clock()) + ONE_TIME_S
        account = Account(role=role, hash=self._hashed(name, password), serial=new_serial(), one_time_until=until)
        self._put_new(name, account)
        return password

    def _put_new(self, name: str, account: Account) -> None:
        with self._roster.changing() as accounts:
            if name in accounts:
                raise UsageError(f"there is an account {name} already", "", "choose another name, or change that one")
            accounts[name] = account

    def remove(self, name: str) -> None:
        """Take an account away; its sessions end. What was drawn under its name stays."""
        with self._roster.changing() as accounts:
            _find(accounts, name)
            del accounts[name]

    def set_password(self, name: str, password: str) -> None:
        """Give an account another password; its sessions end.

        Raises
        ------
        UsageError
            If there is no such account, it has no password here, or the password cannot be used.
        """
        self._set_password(name, self._hashed(name, password), 0)

    def reset(self, name: str) -> str:
        """Give an account a one-time password, which is returned; raises as :meth:`set_password`."""
        password = _one_time()
        self._set_password(name, self._hashed(name, password), int(self._clock()) + ONE_TIME_S)
        return password

    def change_password(self, name: str, old: str, new: str, address: str = "", *, serial: str = "") -> None:
        """Let a person choose another password; all of their sessions end.

        Parameters
        ----------
        serial
            Of sessions from now on, by :func:`new_serial`.

        Raises
        ------
        AuthRefused
            If the old one is wrong; a wrong one counts as it does where people sign in. Also if an administrator has
            changed the account meanwhile: what they did holds.
        UsageError
            As :meth:`set_password`, or if both are the same.
        """
        if self._roster.known().get(name, NOBODY).subject:
            raise _elsewhere()
        _, since = self.verify(name, old, address)
        if _normal(old) == _normal(new):
            raise UsageError("the new password is the old one", "", "choose another")
        self._set_password(name, self._hashed(name, new), 0, serial=serial, since=since)

    def _set_password(self, name: str, hashed: str, until: int, *, serial: str = "", since: str = "") -> None:
        with self._roster.changing() as accounts:
            account = _find(accounts, name)
            if account.subject:
                raise _elsewhere()
            if since and account.serial != since:
                raise AuthRefused("the account was changed meanwhile", "", "sign in again")
            given = {"hash": hashed, "serial": serial or new_serial(), "one_time_until": until}
            accounts[name] = account.model_copy(update=given)

    def set_role(self, name: str, role: Role) -> None:
        """Give an account another role; its sessions end."""
        with self._roster.changing() as accounts:
            account = _find(accounts, name)
            if account.subject:
                raise _elsewhere()
            accounts[name] = account.model_copy(update={"role": role, "serial": new_serial()})

    def set_disabled(self, name: str, disabled: bool) -> None:
        """Let an account sign in no longer, or again; its sessions end. What it drew stays."""
        with self._roster.changing() as accounts:
            account = _find(accounts, name)
            accounts[name] = account.model_copy(update={"disabled": disabled, "serial": new_serial()})

    def from_provider(self, name: str, subject: str, role: Role) -> tuple[Person, str]:
        """The account of somebody whom the sign-in service vouches for, and its serial; made at the first time.

        Parameters
        ----------
        subject
            Digest of who it is there. An account belongs to that person from now on, and keeps its first name: whoever
            is called otherwise there one day is no other person here, and a disabled account stays shut.
        role
            That the service's groups give at this time.

        Raises
        ------
        UsageError
            If the name cannot be used, or is somebody else's here.
        AuthRefused
            If the account is disabled.
        """
        with self._roster.changing() as accounts:
            name = next((one for one, known in accounts.items() if known.subject == subject), name)
            _check_name(name)
            account = accounts.get(name) or Account(role=role, hash="", serial=new_serial(), subject=subject)
            if not secrets.compare_digest(account.subject, subject):
                raise UsageError("the name belongs to another account", "", "ask your administrator")
            if account.disabled:
                raise AuthRefused("the account is disabled", "", "ask your administrator")
            if account.role != role:
                account = account.model_copy(update={"role": role, "serial": new_serial()})
            accounts[name] = account
        return _person(name, account), account.serial

    def views(self) -> tuple[AccountView, ...]:
        """All accounts, in alphabetical order."""
        return tuple(_view(name, account) for name, account in sorted(self._roster.known().items()))

    def view(self, name: str) -> AccountView | None:
        """One account; None where there is none."""
        account = self._roster.known().get(name)
        return None if account is None else _view(name, account)

    def listing(self) -> tuple[tuple[str, Role], ...]:
        """Names and roles, in alphabetical order."""
        return tuple((name, account.role) for name, account in sorted(self._roster.known().items()))

    def find(self, name: str) -> tuple[Person, str] | None:
        """An account as it is now, and its serial; None where there is none that may be used."""
        account = self._roster.known().get(name)
        return None if account is None or account.disabled else (_person(name, account), account.serial)

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
            nobody, account = self._nobody, self._roster.known().get(name)
            hashed = nobody if account is None or account.subject else account.hash
            if not self._fits(hashed, password) or account is None or not self._is_good(account):
                raise AuthRefused("name and password do not fit", "", "try again, or ask your administrator")
            try_.succeeded()
            return _person(name, account), account.serial

    def _is_good(self, account: Account) -> bool:
        late = 0 < account.one_time_until < self._clock()
        return not (account.disabled or account.subject or late)

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


def _find(accounts: dict[str, Account], name: str) -> Account:
    if name not in accounts:
        raise UsageError("there is no such account", "", "`account list` shows those that there are")
    return accounts[name]


def _person(name: str, account: Account) -> Person:
    return Person(name, frozenset(ROLES[: ROLES.index(account.role) + 1]), account.one_time_until > 0)


def _view(name: str, account: Account) -> AccountView:
    source: Literal["local", "oidc"] = "oidc" if account.subject else "local"
    return AccountView(name, account.role, account.disabled, account.one_time_until > 0, source)


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name) or name in RESERVED:
        raise UsageError(
            f"an account cannot be called {name!r}",
            "a name has 1 to 32 lower-case letters, digits and . _ -, begins with a letter, and is not one of "
            + ", ".join(sorted(RESERVED)),
            "choose another name",
        )


def _elsewhere() -> UsageError:
    return UsageError(
        "this account is managed elsewhere", "the hospital's sign-in service knows its password and role",
        "change them there; here it can be disabled or removed",
    )  # fmt: skip


def new_serial() -> str:
    """What tells the sessions of an account as it is now from those of before."""
    return secrets.token_hex(16)


def _one_time() -> str:
    """16 signs that nobody mistakes for others, 79 bits: it is read out and typed in once."""
    return "-".join("".join(secrets.choice(_SYLLABLES) for _ in range(4)) for _ in range(4))


def _normal(password: str) -> str:
    """The same characters, however the keyboard wrote them."""
    return unicodedata.normalize("NFKC", password.encode("utf-8", "replace").decode())
