"""Signing in with the hospital's own service: away to it, and back to our page.

Who was on the way to the viewer is led there in the end: by our sign-in page, which goes on to no other site.

What has to be known when somebody comes back travels in a cookie, sealed with a key of this process: so nobody who
only begins, however often, takes a place from those who finish. A way back is good once.
"""

import base64
import hashlib
import hmac
import json
import logging
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from wardround.client.workbench.access import Access
from wardround.client.workbench.accounts import Accounts
from wardround.client.workbench.errors import ApiError
from wardround.client.workbench.people import PREFIX
from wardround.client.workbench.provider import Identity, Provider, SignInRefused
from wardround.client.workbench.roster import ROLES, Role
from wardround.client.workbench.signing import OidcSettings
from wardround.errors import AuthRefused, UsageError

log = logging.getLogger(__name__)

COOKIE = "wardround-oidc"
PATH = "/oidc"
WITHIN_S = 600.0
"""Time to sign in at the service."""
AT_ONCE = 4
"""That are asked for at the service; the others are told to try again, and hold no thread that a stroke needs."""
_LONGEST = 4096
_NEXT = re.compile(r"/ohif/[\x21-\x5b\x5d-\x7e]{0,1500}")
"""A page of the viewer; longer, the cookie would not be kept."""
_MOST_USED = 10_000


@dataclass(frozen=True)
class _Journey:
    state: str
    nonce: str
    verifier: str
    until: float
    next: str


class _Seal:
    """Writes journeys so that nobody else can, and opens each once."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._used: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, after: str) -> _Journey:
        state, nonce, verifier = (secrets.token_urlsafe(48) for _ in range(3))
        return _Journey(state, nonce, verifier, self._clock() + WITHIN_S, after)

    def write(self, journey: _Journey) -> str:
        content = base64.urlsafe_b64encode(json.dumps(vars(journey)).encode()).decode()
        return f"{content}.{self._mark(content)}"

    def open(self, sealed: str, state: str) -> _Journey:
        """The journey whose state came back; it is over with this."""
        content, _, mark = sealed[:_LONGEST].partition(".")
        if not hmac.compare_digest(mark.encode(), self._mark(content).encode()):
            raise SignInRefused("expired", "no journey of ours")
        journey = _Journey(**json.loads(base64.urlsafe_b64decode(content)))
        if not hmac.compare_digest(journey.state.encode(), state.encode()):
            raise SignInRefused("expired", "another state came back")
        now = self._clock()
        with self._lock:
            while self._used and (next(iter(self._used.values())) < now or len(self._used) >= _MOST_USED):
                self._used.popitem(last=False)
            if journey.until < now or journey.state in self._used:
                raise SignInRefused("expired", "the journey is over")
            self._used[journey.state] = journey.until
        return journey

    def _mark(self, content: str) -> str:
        return hmac.new(self._key, content.encode(), hashlib.sha256).hexdigest()


def make_router(  # noqa: PLR0915 - one function a route
    access: Access,
    accounts: Accounts,
    settings: OidcSettings | None,
    provider: Provider | None,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> APIRouter:
    """The ways to and from the service, and what the sign-in page may know. All of it is for strangers.

    Parameters
    ----------
    access, accounts
        Who may come in, and who there is.
    settings, provider
        Of the service; None where there is none.
    clock
        Seconds, never going back.
    """
    router = APIRouter(tags=["People"])
    seal = _Seal(clock)
    busy = 0

    async def asked(work: Callable[..., Any], *args: object) -> Any:
        nonlocal busy
        if busy >= AT_ONCE:
            raise SignInRefused("busy")
        busy += 1
        try:
            return await run_in_threadpool(work, *args)
        finally:
            busy -= 1

    def configured() -> tuple[OidcSettings, Provider]:
        if settings is None or provider is None:
            raise ApiError(404, "no-sign-in-service", "there is no sign-in service", "", "sign in by password")
        return settings, provider

    @router.get(f"{PREFIX}/entrance", summary="How one signs in")
    def entrance() -> dict[str, Any]:
        offered = None if settings is None else {"title": settings.title, "start": f"{PATH}/start"}
        return {"passwords": access.passwords, "oidc": offered}

    @router.get(f"{PATH}/start", summary="Sign in with the hospital's service", response_class=Response)
    async def start(next: str = "") -> Response:
        _, service = configured()
        journey = seal.begin(next if _NEXT.fullmatch(next) else "")
        try:
            where = await asked(service.address, journey.state, journey.nonce, journey.verifier)
        except SignInRefused as error:
            return _refused(error, journey.next)
        response = RedirectResponse(where, status_code=303)
        response.set_cookie(
            # Lax: whoever comes back comes from the service's page.
            COOKIE, seal.write(journey), max_age=int(WITHIN_S), path=PATH, secure=access.secure, httponly=True,
            samesite="lax",
        )  # fmt: skip
        return response

    @router.get(f"{PATH}/callback", summary="Come back from it", response_class=Response)
    async def callback(request: Request) -> Response:
        of, service = configured()
        said = {name: value[:_LONGEST] for name, value in request.query_params.items()}
        after = ""
        try:
            journey = seal.open(request.cookies.get(COOKIE, ""), said.get("state", ""))
            after = journey.next
            if said.get("iss", of.issuer) != of.issuer:  # RFC 9207
                raise SignInRefused("not-valid", "another service answers")
            if "code" not in said:
                raise SignInRefused("cancelled")
            found = await asked(service.identity, said["code"], journey.nonce, journey.verifier)
            # Not to the viewer itself: a browser that comes from another site does not show the new cookie there yet.
            response: Response = RedirectResponse(_page(next=after) if after else "/", status_code=303)
            await run_in_threadpool(_admit, request, response, found, of)
        except SignInRefused as error:
            response = _refused(error, after)
        response.delete_cookie(COOKIE, path=PATH, secure=access.secure, httponly=True, samesite="lax")
        return response

    def _admit(request: Request, response: Response, found: Identity, of: OidcSettings) -> None:
        role = _role(found, of)
        name = found.name.partition("@")[0].lower()
        try:
            person, serial = accounts.from_provider(name, found.subject, role)
        except UsageError as error:
            raise SignInRefused("no-name") from error
        except AuthRefused as error:
            raise SignInRefused("disabled") from error
        access.admit(request, response, person, serial)

    return router


def _role(found: Identity, settings: OidcSettings) -> Role:
    for role in reversed(ROLES):
        if found.groups.intersection(getattr(settings.roles, role)):
            return role
    raise SignInRefused("no-role")


def _refused(error: SignInRefused, after: str) -> Response:
    log.warning("a sign-in is refused: %s", error.why)
    asked = {"next": after} if after else {}
    return RedirectResponse(_page(refused=error.reason, **asked), status_code=303)


def _page(**asked: str) -> str:
    """Our sign-in page."""
    return f"/login.html?{urlencode(asked)}"
