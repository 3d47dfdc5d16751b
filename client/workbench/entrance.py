"""What every request passes before a route sees it, and what every answer carries.

The host must be ours (or another site's name was pointed here), a body has a limit and a sender, every answer has our
headers, every fault becomes an answer, and one line is logged: method, route, status, milliseconds. The route is
written as it was declared, ``/api/v1/cases/{case_id}``: no id, no name, no address of whoever asked.
"""

import asyncio
import logging
import re
import time
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from wardround import pages
from wardround.client.workbench.access import CLIENT_ADDRESS, SAFE, Access
from wardround.client.workbench.errors import ApiError, answer, failed, note
from wardround.errors import WardroundError

log = logging.getLogger(__name__)

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
    "connect-src 'self'; worker-src 'self' blob:; manifest-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; object-src 'none'"
)
"""What a page of ours may load: its own files."""
HEADERS: tuple[tuple[str, str], ...] = (
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), microphone=(), geolocation=()"),
    ("cache-control", "no-store"),
)
"""What an answer carries unless its route says something else."""
TRANSPORT = ("strict-transport-security", "max-age=31536000")
WITHOUT_SESSION = frozenset({"/api/v1/login", "/auth/token"})
"""What may be sent to by somebody who is not signed in: name and password."""
_MIB = 1 << 20
_DRAWING = re.compile(r"/api/v1/cases/[^/]+/draw")
_DRAWING_LIMIT = _MIB
"""Of a drawing: some hundred slices full of strokes. To read one takes the time of all others, so it has an end."""
_OTHERS_LIMIT = 1040 * _MIB
STRANGERS_WITHIN_S = 20.0
"""Time that somebody who is not signed in has to send name and password."""


class Entrance:
    """Wraps the application.

    Parameters
    ----------
    application
        An ASGI application.
    access
        Who may come in. Each route says for itself who may use it; but nobody who is not signed in may send a body, so
        that no stranger fills memory or disk before a route is asked.
    names
        Host names besides ``localhost`` under which it may be asked for. An address is one of ours in any case.
    secure
        Whether it is served with TLS by a certificate that stays: then browsers are told to ask for nothing else.
    """

    def __init__(
        self, application: pages.Application, access: Access, names: Iterable[str] = (), *, secure: bool = False
    ) -> None:
        self._application = application
        self._access = access
        self._names = frozenset({"localhost", *(name.lower().rstrip(".") for name in names)})
        self._headers = (*HEADERS, TRANSPORT) if secure else HEADERS

    async def __call__(self, scope: pages.Scope, receive: pages.Receive, send: pages.Send) -> None:
        """Answer one request, or hand it on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._application(scope, receive, send)
            return
        begun = time.perf_counter()
        status = 0

        async def with_headers(message: pages.Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=list(message.get("headers", ())))
                for name, value in self._headers:
                    headers.setdefault(name, value)
                message = {**message, "headers": headers.raw}
            await send(message)

        token = CLIENT_ADDRESS.set(scope["client"][0] if scope.get("client") else "")
        try:
            refused = self._refusal(scope)
            if refused is None:
                await self._application(scope, _limited(scope, receive), with_headers)
            else:
                await refused(scope, receive, with_headers)
        except Exception as error:  # noqa: BLE001 - the server's own handler would write its text down
            note(error)
            if status == 0:
                await failed()(scope, receive, with_headers)
        finally:
            CLIENT_ADDRESS.reset(token)
            milliseconds = (time.perf_counter() - begun) * 1000
            log.info("%s %s %d %.0f ms", _method(scope), _route(scope), status, milliseconds)

    def _refusal(self, scope: pages.Scope) -> Response | None:
        """What is said to a request that no route gets to see."""
        if not pages.is_for(scope, self._names):
            return answer(
                ApiError(
                    421, "unknown-host", "the workbench is not served under that name", "",
                    "use its address, or add the name to `names` in site.toml",
                )
            )  # fmt: skip
        if scope["method"] in SAFE:
            return None
        length, most = Headers(scope=scope).get("content-length", "0"), _limit(scope)
        if not length.isdecimal() or int(length) > most:
            return answer(
                ApiError(413, "too-large", "the request is too large", f"it may have {most} bytes", "send less at once")
            )
        if scope["path"] not in WITHOUT_SESSION:
            try:
                self._access.require(one_time=True)(Request(scope))
            except WardroundError as error:
                return answer(error)
        return None


def _limit(scope: pages.Scope) -> int:
    """Bytes that the body of a request may have."""
    if scope["path"] in WITHOUT_SESSION:
        return _MIB // 16
    if scope["path"].startswith("/api/"):
        return _DRAWING_LIMIT if _DRAWING.fullmatch(scope["path"]) else _MIB // 16
    return _OTHERS_LIMIT


def _limited(scope: pages.Scope, receive: pages.Receive) -> pages.Receive:
    """Count what a body really has; its length may not be said. A stranger's comes soon, or not at all."""
    if scope["method"] in SAFE:
        return receive
    so_far, most = 0, _limit(scope)
    ends = asyncio.get_running_loop().time() + STRANGERS_WITHIN_S if scope["path"] in WITHOUT_SESSION else None

    async def counting() -> pages.Message:
        nonlocal so_far
        try:
            async with asyncio.timeout_at(ends):
                message = await receive()
        except TimeoutError as error:
            raise HTTPException(408) from error
        so_far += len(message.get("body", b""))
        if so_far > most:
            raise HTTPException(413)
        return message

    return counting


def _route(scope: pages.Scope) -> str:
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else "-"


def _method(scope: pages.Scope) -> str:
    method: str = scope["method"]
    return method if method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH") else "-"
