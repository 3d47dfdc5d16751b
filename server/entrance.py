"""What may knock at the SuperLink at all, before any of its code sees a request.

Two entrances lead to one application. The public one knows the calls of the Fleet API, which sites use, and nothing
else: a request is let through if its method and the bytes of its path are exactly those of a call that it knows. There
is no prefix to match and nothing to decode, so no spelling of another path can be taken for an allowed one. The inner
one, on this machine only, knows every call.

What is let through is read whole first, against a limit for its kind and a least pace, so that the application never
waits for a slow sender and never holds more than a chunk of a model; and of who shows no key that is registered, not
even that. An answer goes out in pieces, each as soon as the peer has taken those before. Afterwards it is written down.
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
PIECE = 64 * 1024
"""In which answers go out."""


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
        Seconds that a sender may stay silent, and a reader leave a piece where it is.
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


class _NotTaken(Exception):
    """The peer does not read its answer."""


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
    is_known
        Whether the key that a SuperNode shows, as it stands in the header, is registered. Whoever shows another one may
        send a small body only. None lets everybody send what the limits allow.
    """

    def __init__(  # noqa: PLR0917
        self,
        application: Application,
        name: str,
        calls: frozenset[tuple[str, str]],
        limits: Limits,
        trail: AuditTrail,
        is_known: Callable[[bytes], bool] | None = None,
    ) -> None:
        self._application = application
        self._name = name
        self._calls = calls
        self._limits = limits
        self._trail = trail
        self._is_known = is_known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through, or refuse it."""
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError("an entrance speaks HTTP only")
        account = _Account(send, self._limits.patience)
        began = time.monotonic()
        try:
            await self._answer(scope, receive, account)
        # The application may have several tasks at work. Uvicorn closes a connection whose answer has no end.
        except* _NotTaken:
            account.status = 0
        finally:
            self._note(scope, account, time.monotonic() - began)

    async def _answer(self, scope: Scope, receive: Receive, account: "_Account") -> None:
        try:
            if not self._knows(scope):
                raise _Refused(404)
            body = await self._read(scope, receive)
            account.received = len(body)
            await self._application(scope, _replay(body, receive), account.send)
        except _Refused as refused:
            await account.refuse(refused.status)

    def _knows(self, scope: Scope) -> bool:
        path = scope["path"]
        return (
            (scope["method"], path) in self._calls
            and scope.get("raw_path", b"") == path.encode()
            and not scope.get("query_string")
        )

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        most = await self._allowance(scope)
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

    async def _allowance(self, scope: Scope) -> int:
        """Bytes of a body that are read."""
        most = self._limits.size(scope["path"])
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > most:
            raise _Refused(413)
        if self._is_known is None:
            return most
        if int(declared) <= SMALL:
            return min(most, SMALL)
        if not await asyncio.to_thread(self._is_known, headers.get(KEY_HEADER, b"")):
            raise _Refused(401)
        return most

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
    """Counts what goes out, piece by piece, and says no where nothing has gone out yet."""

    def __init__(self, send: Send, patience: float) -> None:
        self._send = send
        self._patience = patience
        self.status = 0
        self.received = 0
        self.sent = 0

    async def send(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            self.status = event["status"]
            await self._hand_on(event)
            return
        body, more = event.get("body", b""), event.get("more_body", False)
        for begin in range(0, max(len(body), 1), PIECE):
            piece = body[begin : begin + PIECE]
            await self._hand_on({**event, "body": piece, "more_body": more or begin + PIECE < len(body)})
            self.sent += len(piece)

    async def _hand_on(self, event: Event) -> None:
        try:
            async with asyncio.timeout(self._patience):
                await self._send(event)
        except TimeoutError:
            raise _NotTaken from None

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
