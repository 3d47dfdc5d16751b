"""Who may come in: passwords once, then a cookie for browsers or a bearer token for programs.

A token is random and says nothing. The server keeps its SHA-256, in memory: after a restart people sign in again. A
session ends when it is idle or old, when its owner signs out, and with any change of the account.

A browser sends its cookie with whatever it is made to send. A request that changes something and comes with a cookie
must therefore say that it comes from a page of ours (Sec-Fetch-Site or Origin); a program shows its token itself.

All windows of a browser share the cookie. A page says whose it is: what was drawn on it before somebody else signed in
in another window must not become that person's.
"""

import asyncio
import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from wardround.client.workbench.accounts import Accounts, Person, new_serial
from wardround.client.workbench.errors import ApiError
from wardround.client.workbench.roster import ROLES

COOKIE = "wardround"
WHOSE = "x-wardround-person"
"""Header of a request in which a page says for whom it was loaded."""
IDLE_S = 3600.0
OLDEST_S = 12 * 3600.0
TOKEN_IDLE_S = 4 * 3600.0
SESSIONS_EACH = 16
"""Of one account; the one that was idle for longest ends first."""
PASSWORDS_AT_ONCE = 2
"""That are looked at; the others wait, and hold no thread that a stroke needs."""
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})

Value = TypeVar("Value")

CLIENT_ADDRESS: ContextVar[str] = ContextVar("client_address", default="")
"""Where the request at hand comes from; it is counted with wrong passwords, and never written down."""


@dataclass
class _Session:
    name: str
    serial: str
    begun: float
    seen: float
    idle_s: float
    # Of the account as it will be when its owner's change, now under way, is written.
    coming: str = ""


class Access:
    """The one door of the workbench.

    Parameters
    ----------
    accounts
        Who there is.
    secure
        Whether the workbench is reached by TLS.
    passwords
        Whether people may sign in by password. Otherwise the hospital's sign-in service alone says who they are.
    clock
        Seconds, never going back.
    """

    def __init__(
        self,
        accounts: Accounts,
        *,
        secure: bool,
        passwords: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._accounts = accounts
        self.secure = secure
        self.passwords = passwords
        self._turns = asyncio.Semaphore(PASSWORDS_AT_ONCE)
        self._clock = clock
        self._sessions: dict[bytes, _Session] = {}
        self._lock = threading.Lock()

    async def in_turn(self, work: Callable[..., Value], *args: object) -> Value:
        """Do what takes long for everybody, such as looking at a password, in a thread: a few at a time."""
        async with self._turns:
            return await run_in_threadpool(work, *args)

    def token(self, name: str, password: str) -> str:
        """A bearer token.

        Raises
        ------
        AuthRefused
            If name and password do not fit; :class:`~wardround.client.workbench.patience.TooManyTries` if too many did
            not before.
        """
        return self._begin(*self._verified(name, password), TOKEN_IDLE_S)

    def sign_in(self, request: Request, response: Response, name: str, password: str) -> Person:
        """Give the browser a cookie. One that it had before ends: it may have been planted.

        Raises
        ------
        AuthRefused
            As :meth:`token`.
        ApiError
            If a page of somebody else's sends the browser here.
        """
        self.check_origin(request, required=False)
        person, serial = self._verified(name, password)
        self.admit(request, response, person, serial)
        return person

    def admit(self, request: Request, response: Response, person: Person, serial: str) -> None:
        """Give the browser of somebody who has shown who they are a cookie; one that it had before ends."""
        token = self._begin(person, serial, IDLE_S)
        self._end(request.cookies.get(COOKIE))
        response.set_cookie(
            COOKIE, token, max_age=int(OLDEST_S), path="/", secure=self.secure, httponly=True, samesite="strict"
        )

    def change_password(self, request: Request, person: Person, old: str, new: str) -> None:
        """Give somebody another password. Their sessions end, but for the one that asks.

        Raises
        ------
        AuthRefused, UsageError
            As :meth:`~wardround.client.workbench.accounts.Accounts.change_password`.
        """
        serial = new_serial()
        token, _ = _shown(request)
        with self._lock:
            session = self._sessions.get(_key(token or ""))
            if session is not None and session.name == person.name:
                # Before it is written: whatever else the page asks at that moment must find its session.
                session.coming = serial
        self._accounts.change_password(person.name, old, new, CLIENT_ADDRESS.get(), serial=serial)
        if session is not None and session.name == person.name:
            session.serial = serial

    def sign_out(self, request: Request, response: Response) -> None:
        """End the session of a request; the cookie goes."""
        self._end(_shown(request)[0])
        response.delete_cookie(COOKIE, path="/", secure=self.secure, httponly=True, samesite="strict")

    def require(self, *roles: str, one_time: bool = False) -> Callable[[Request], Person]:
        """A dependency that lets in whoever has one of `roles`, or any account where none is named.

        It answers 401 where nobody is known, and 403 where a role is missing or another site's page asks.

        Parameters
        ----------
        one_time
            Whether a one-time password is good enough.
        """
        unknown = set(roles) - set(ROLES)
        if unknown:
            raise ValueError(f"no roles: {sorted(unknown)}")

        def person(request: Request) -> Person:
            found = self.person(request)
            if found is None:
                raise ApiError(
                    401, "not-signed-in", "nobody is signed in", "the session has ended, or there was none",
                    "sign in", headers={"www-authenticate": 'Bearer realm="wardround"'},
                )  # fmt: skip
            if request.headers.get(WHOSE, found.name) != found.name:
                raise ApiError(
                    401, "not-signed-in", "somebody else is signed in", "another window of this browser has signed in",
                    "sign in again",
                )  # fmt: skip
            if found.must_change and not one_time:
                raise ApiError(
                    403, "change-password", "the password is good for one thing only: to choose another",
                    "somebody else made it", "choose a password of your own",
                )  # fmt: skip
            if roles and not found.roles.intersection(roles):
                raise ApiError(403, "not-allowed", "your account may not do this", "", "ask your administrator")
            return found

        # A test reads these, and holds every route against them.
        person.roles = frozenset(roles)  # type: ignore[attr-defined]
        return person

    def person(self, request: Request, *, quietly: bool = False) -> Person | None:
        """Who asks; None where nobody is signed in.

        Parameters
        ----------
        quietly
            Whether the session stays as idle as it was: the page asks by itself, with nobody in front of it.

        Raises
        ------
        ApiError
            If a cookie comes with a change that another site's page asks for.
        """
        token, is_cookie = _shown(request)
        found = self._find(token, quietly=quietly)
        if found is not None and is_cookie and request.method not in SAFE:
            self.check_origin(request, required=True)
        return found

    def check_origin(self, request: Request, *, required: bool) -> None:
        """Refuse what a page of another site sends.

        Parameters
        ----------
        required
            Whether a request that does not say where it comes from is refused as well.
        """
        if not is_own_page(request.headers, required=required):
            raise ApiError(
                403, "foreign-page", "the request does not come from the workbench's own page",
                "another web site sent it, or a program uses a browser's cookie", "programs use a bearer token",
            )  # fmt: skip

    def _verified(self, name: str, password: str) -> tuple[Person, str]:
        if not self.passwords:
            raise ApiError(
                403, "no-passwords", "nobody signs in by password here", "", "use the hospital's sign-in service"
            )
        return self._accounts.verify(name, password, CLIENT_ADDRESS.get())

    def _begin(self, person: Person, serial: str, idle_s: float) -> str:
        name = person.name
        token = secrets.token_urlsafe(32)
        now = self._clock()
        with self._lock:
            self._sessions = {key: one for key, one in self._sessions.items() if _lives(one, now)}
            mine = sorted((one.seen, key) for key, one in self._sessions.items() if one.name == name)
            for _, key in mine[: max(len(mine) - SESSIONS_EACH + 1, 0)]:
                del self._sessions[key]
            self._sessions[_key(token)] = _Session(name, serial, now, now, idle_s)
        return token

    def _find(self, token: str | None, *, quietly: bool) -> Person | None:
        if not token:
            return None
        key, now = _key(token), self._clock()
        with self._lock:
            session = self._sessions.get(key)
        if session is None:
            return None
        account = self._accounts.find(session.name)
        if account is None or account[1] not in (session.serial, session.coming) or not _lives(session, now):
            self._end(token)
            return None
        if not quietly:
            session.seen = now
        return account[0]

    def _end(self, token: str | None) -> None:
        if token:
            with self._lock:
                self._sessions.pop(_key(token), None)


def is_own_page(headers: Mapping[str, str], *, required: bool) -> bool:
    """Whether a request was sent by a page of the very host that it is for.

    Parameters
    ----------
    headers
        Of the request, in lower case.
    required
        Whether it must say so. Every browser does, in one of two headers.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None and site != "same-origin":
        return False
    if origin is not None:
        # Of the scheme nothing can be said: a proxy may have ended the TLS.
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and parts.netloc.lower() == headers.get("host", "").lower()
    return site is not None or not required


def _shown(request: Request) -> tuple[str | None, bool]:
    """The token of a request, and whether it is a cookie. Who shows a token is not known by a cookie as well."""
    header = request.headers.get("authorization")
    if header is not None:
        scheme, _, token = header.partition(" ")
        return (token.strip() if scheme.lower() == "bearer" else None), False
    return request.cookies.get(COOKIE), True


def _lives(session: _Session, now: float) -> bool:
    return now - session.seen < session.idle_s and now - session.begun < OLDEST_S


def _key(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
