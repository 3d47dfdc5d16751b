"""What may knock at the SuperLink at all, before any of its code sees a request.

Two entrances lead to one application. The public one knows the calls of the Fleet API, which sites use, and nothing
else: a request is let through if its method and the bytes of its path are exactly those of a call that it knows. There
is no prefix to match and nothing to decode, so no spelling of another path can be taken for an allowed one. The inner
one, on this machine only, knows every call.

What is let through is read whole first, against a limit for its kind and a least pace, so that the application never
waits for a slow sender and never holds more than a chunk of a model. Afterwards it is written down.
"""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from wardround.server.audit import AuditTrail

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

FLEET = "/v1/fleet/"
KEY_HEADER = b"flwr-public-key"
"""In which a SuperNode shows its public key."""

SMALL = 64 * 1024
CHUNK = 6 * 2**20
"""Flower cuts arrays into chunks of 5 MiB."""
LARGE = 64 * 2**20
"""For a bundle, a context or a list of many messages, on the inner entrance."""


@dataclass(frozen=True)
class Limits:
    """How large and how slow a request may be.

    Parameters
    ----------
    sizes
        Bytes of a body by path.
    otherwise
        Bytes of a body for every other path.
    patience
        Seconds that a sender may stay silent.
    grace
        Seconds before the pace counts.
    pace
        Bytes a second that a sender has to keep after the grace.
    """

    sizes: Mapping[str, int]
    otherwise: int
    patience: float = 30.0
    grace: float = 20.0
    pace: float = 4096.0

    def size(self, path: str) -> int:
        """Bytes that a request to `path` may have."""
        return self.sizes.get(path, self.otherwise)


PUBLIC_LIMITS = Limits({f"{FLEET}push-object": CHUNK, f"{FLEET}push-messages": 4 * 2**20}, SMALL)
INNER_LIMITS = Limits({}, LARGE)


class _Refused(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Entrance:
    """One listener's view of the application.

    Parameters
    ----------
    application
        Flower's, shared by all entrances.
    name
        As the audit trail calls it.
    calls
        Method and path of every request that it lets through.
    limits
        How large and how slow a body may be.
    trail
        Where requests are written down.
    """

    def __init__(
        self, application: Application, name: str, calls: frozenset[tuple[str, str]], limits: Limits, trail: AuditTrail
    ) -> None:
        self._application = application
        self._name = name
        self._calls = calls
        self._limits = limits
        self._trail = trail

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through, or refuse it."""
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError("an entrance speaks HTTP only")
        account = _Account(send)
        began = time.monotonic()
        try:
            if not self._knows(scope):
                raise _Refused(404)
            body = await self._read(scope, receive)
            account.received = len(body)
            await self._application(scope, _replay(body, receive), account.send)
        except _Refused as refused:
            await account.refuse(refused.status)
        finally:
            self._note(scope, account, time.monotonic() - began)

    def _knows(self, scope: Scope) -> bool:
        path = scope["path"]
        return (
            (scope["method"], path) in self._calls
            and scope.get("raw_path", b"") == path.encode()
            and not scope.get("query_string")
        )

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        most = self._limits.size(scope["path"])
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > most:
            raise _Refused(413)
        pieces, size, began = [], 0, time.monotonic()
        while True:
            try:
                event = await asyncio.wait_for(receive(), self._limits.patience)
            except TimeoutError:
                raise _Refused(408) from None
            if event["type"] == "http.disconnect":
                raise _Refused(400)
            piece = event.get("body", b"")
            size += len(piece)
            if size > most:
                raise _Refused(413)
            pieces.append(piece)
            if not event.get("more_body", False):
                return b"".join(pieces)
            late = time.monotonic() - began - self._limits.grace
            if late > 0 and size < late * self._limits.pace:
                raise _Refused(408)

    def _note(self, scope: Scope, account: "_Account", seconds: float) -> None:
        request = scope.get("state", {}).get("protobuf_request")
        self._trail.note(
            entrance=self._name,
            peer=(scope.get("client") or ("",))[0],
            key=_fingerprint(scope),
            # A path that nobody knows is somebody else's text; it is not written down as it came.
            call=scope["path"] if self._knows(scope) else None,
            status=account.status,
            node=_number(request, "node_id") or _number(getattr(request, "node", None), "node_id"),
            run=_number(request, "run_id"),
            received=account.received,
            sent=account.sent,
            seconds=round(seconds, 3),
        )


class _Account:
    """Counts what goes out, and says no where nothing has gone out yet."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.received = 0
        self.sent = 0

    async def send(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            self.status = event["status"]
        else:
            self.sent += len(event.get("body", b""))
        await self._send(event)

    async def refuse(self, status: int) -> None:
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        body = b'{"detail":"refused"}'
        headers.append((b"content-length", str(len(body)).encode()))
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


def _replay(body: bytes, receive: Receive) -> Receive:
    """Hand on a body that was read already, and then what `receive` has to say."""
    events: list[Event] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Event:
        return events.pop() if events else await receive()

    return again


def _fingerprint(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == KEY_HEADER:
            return hashlib.sha256(value).hexdigest()[:16]
    return None


def _number(message: object, name: str) -> str | None:
    value = getattr(message, name, None)
    return str(value) if isinstance(value, int) and value else None
