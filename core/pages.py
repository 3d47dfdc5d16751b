"""What every page of ours shares: how it looks, how values are written on it, and what a server of pages lets through.

A page comes as a file (the report) or from a server (the status pages); both are drawn with ``page.css``, and neither
loads anything from elsewhere. Only the standard library is used, so that every room may build on this.
"""

import ipaddress
import math
import re
from collections.abc import Awaitable, Callable, Container, Iterable, MutableMapping
from datetime import UTC, datetime
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from wardround.errors import ConnectionFailed

NOTHING = "–"
"""Stands where there is no value."""

POLICY = (
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
"""The content security policy of a served page: its own style sheet, and nothing else of any kind."""

HEADERS: tuple[tuple[str, str], ...] = (
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-store"),
)
"""What every answer of a status page carries."""

_HOST = re.compile(r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[^\s:@/\[\]]+))(?::[0-9]{1,5})?")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


@cache
def style() -> str:
    """The style sheet."""
    return files("wardround").joinpath("page.css").read_text(encoding="utf-8")


def printable(value: object) -> str:
    """Any value as text, with a mark in place of what cannot be printed."""
    return "".join(sign if sign.isprintable() or sign in "\n\u00a0" else "\ufffd" for sign in str(value))


def text(value: object) -> str:
    """Any value, escaped, with a mark in place of what cannot be printed."""
    return escape(printable(value), quote=True)


def count(number: int, noun: str) -> str:
    """`1 case`, `2 cases`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def number(value: float) -> str:
    """Three digits, or a dash."""
    return f"{value:.3g}" if math.isfinite(value) else NOTHING


def size(count: float) -> str:
    """Bytes in a unit that fits."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} bytes" if math.isfinite(count) else NOTHING


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 90:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def moment(seconds: float) -> str:
    """A time, given in seconds since 1970, to the minute and in UTC."""
    if not math.isfinite(seconds):
        return NOTHING
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def ago(seconds: float) -> str:
    """How long ago something was, in the largest unit that fits."""
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 0:
        return "in the future"
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length:
            return f"{count(int(seconds // length), unit)} ago"
    return "just now" if seconds < 10 else f"{int(seconds)} seconds ago"


def template_settings() -> dict[str, Any]:
    """How a template engine (Jinja2) is set up for our pages, besides escaping: nothing unprintable gets in."""
    return {
        "trim_blocks": True,
        "lstrip_blocks": True,
        # A text that is marked as safe is of a class of its own, and stays as it is.
        "finalize": lambda value: printable(value) if type(value) is str else value,
    }


def template_names() -> dict[str, Any]:
    """What every template may call or name."""
    return {"size": size, "number": number, "duration": duration, "moment": moment, "count": count, "nothing": NOTHING}


def template_folders(package: str) -> list[str]:
    """Where the templates of a package lie, and the page that they all extend."""
    return [str(files(package).joinpath("templates")), str(files("wardround"))]


def server_settings(host: str, port: int) -> dict[str, Any]:
    """How a server (uvicorn) of a page is set up: with limits that a status page never needs to exceed."""
    return {
        "host": host,
        "port": port,
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "limit_concurrency": 32,
        "timeout_keep_alive": 5,
        "ws": "none",
    }


def run(server: Callable[..., object], page: Any, host: str, port: int) -> None:
    """Let `server` (uvicorn's ``run``) serve a page until the process is told to end.

    Raises
    ------
    ConnectionFailed
        If the port cannot be opened.
    """
    try:
        server(page, **server_settings(host, port))
    except SystemExit as error:  # uvicorn's way of saying that it could not listen
        raise ConnectionFailed(
            f"the page cannot be served on {host}:{port}",
            "another program has the port, or the address is none of this machine's",
            "choose another status-port",
        ) from error


class Guard:
    """Lets only reading requests for one of our names through to a page, and puts our headers on every answer.

    A page bound to the loopback interface can still be asked by any web site that the reader visits: that site's own
    name is pointed to 127.0.0.1 (DNS rebinding). Such a request carries the foreign name as its host and is refused.
    An address in place of a name cannot be rebound and passes.

    Parameters
    ----------
    application
        An ASGI application.
    names
        Host names besides ``localhost`` under which the page may be asked for.
    """

    def __init__(self, application: Application, names: Iterable[str] = ()) -> None:
        self._application = application
        self._names = {"localhost", *(name.lower().rstrip(".") for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or hand it on."""
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = [(name.encode(), value.encode()) for name, value in HEADERS]
                kept = [pair for pair in message.get("headers", ()) if pair[0].lower() not in dict(ours)]
                message = {**message, "headers": [*kept, *ours]}
            await send(message)

        if scope["method"] not in ("GET", "HEAD"):
            await _refuse(with_headers, 405, "this page can only be read", allow="GET, HEAD")
        elif not is_for(scope, self._names):
            await _refuse(with_headers, 421, "this page is not served under that name")
        else:
            await self._application(scope, receive, with_headers)


def is_for(scope: Scope, names: Container[str]) -> bool:
    """Whether a request is for one of our host `names` (lower case), or for an address, which cannot be rebound."""
    hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    if len(hosts) != 1:
        return False
    found = _HOST.fullmatch(hosts[0].strip().lower())
    if found is None:
        return False
    name = found["name"] or found["address"]
    if name.rstrip(".") in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _refuse(send: Send, status: int, why: str, **headers: str) -> None:
    body = f"{why}\n".encode()
    fields = {"content-type": "text/plain; charset=utf-8", "content-length": str(len(body)), **headers}
    pairs = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
