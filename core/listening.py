"""Listening on a port: how it is taken, and that no more connections are let in than there is room for.

A server of asyncio hears of a connection when its TLS handshake is done. Whoever never finishes it would be counted
nowhere, and still hold a file. Here a connection is counted from the moment that it is accepted. Only the standard
library is used, so that every room may build on this.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Protocol

from wardround.errors import ConnectionFailed

_BREATH_S = 0.5
"""Until accepting is tried again where the process has no file left."""
_RESET = struct.pack("ii", 1, 0)


class Place(Protocol):
    """What a connection takes up, from when it is accepted until it is closed."""

    def leave(self) -> None:
        """Give it back; more than once is as good as once."""


Admit = Callable[[str], Place | None]
"""Takes the address of whoever connects; None where there is no room."""


def bind(host: str, port: int, *, who: str, fix: str) -> socket.socket:
    """Take a port, without listening on it yet.

    Parameters
    ----------
    who
        Listens there, as in "the workbench".
    fix
        What to do where the port cannot be had.

    Raises
    ------
    ConnectionFailed
        If it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
    except OSError as error:
        taken.close()
        raise ConnectionFailed(
            f"{who} cannot listen on {host}:{port}", error.strerror or type(error).__name__, fix
        ) from error
    taken.set_inheritable(False)
    return taken


def modern(context: object) -> None:
    """Let a server's TLS context, if it is one, speak TLS 1.2 and later only."""
    if isinstance(context, ssl.SSLContext):
        context.minimum_version = ssl.TLSVersion.TLSv1_2


async def accept(
    listening: socket.socket,
    admit: Admit,
    make_protocol: Callable[[Place], asyncio.Protocol],
    tls: ssl.SSLContext | None,
    handshake_s: Callable[[], float],
) -> None:
    """Let connections in until this is cancelled.

    Parameters
    ----------
    listening
        A socket that listens.
    admit
        Says who may come in.
    make_protocol
        Of a connection; it gives the place back when the connection is lost.
    tls
        None for plain TCP.
    handshake_s
        Seconds that a TLS handshake may take.
    """
    loop = asyncio.get_running_loop()
    listening.setblocking(False)
    beginning: set[asyncio.Task[None]] = set()
    try:
        while True:
            try:
                line, address = await loop.sock_accept(listening)
            except OSError:
                if listening.fileno() < 0:
                    return
                await asyncio.sleep(_BREATH_S)
                continue
            place = admit(address[0])
            if place is None:
                _drop(line)
                continue
            task = loop.create_task(_begin(line, place, make_protocol, tls, handshake_s()))
            beginning.add(task)
            task.add_done_callback(beginning.discard)
    finally:
        for task in beginning:
            task.cancel()


async def _begin(
    line: socket.socket,
    place: Place,
    make_protocol: Callable[[Place], asyncio.Protocol],
    tls: ssl.SSLContext | None,
    handshake_s: float,
) -> None:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(handshake_s):
            await loop.connect_accepted_socket(lambda: make_protocol(place), line, ssl=tls)
    except (OSError, EOFError):  # Of TLS and of time as well.
        place.leave()
        _drop(line)
    except BaseException:
        place.leave()
        _drop(line)
        raise


def _drop(line: socket.socket) -> None:
    """Close a connection, and leave nothing of it behind in the system."""
    with contextlib.suppress(OSError):
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    line.close()
