"""How the agent is spoken to: frames over a Unix socket.

One frame is four bytes that hold the length of its header (big-endian), the header (a JSON object in UTF-8), and then
the bytes of the arrays that the header lists, one after the other. Nothing is ever unpickled, and what a frame declares
is checked before a byte of it is awaited. A connection carries questions and answers by turns.
"""

import json
import logging
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Array

from wardround.errors import AuthRefused, ConnectionFailed, GateRefused

log = logging.getLogger(__name__)

Header = Mapping[str, Any]
Frame = tuple[dict[str, Any], dict[str, Array]]

HEADER_LIMIT = 2**22
"""Bytes of a header."""
ARRAYS_LIMIT = 2**34
"""Bytes of all arrays of a frame, where the receiver sets no limit of its own."""
ERROR = "error"
"""The operation of an answer that says why there is none; its code stands in ``code``."""
WRONG_PEER = "wrong-peer"
"""Code of the answer to a user that the agent does not serve."""
BYTES = "bytes"
"""Declared type of an array that is a plain file."""

_LENGTH = struct.Struct(">I")
_PIECE = 2**20
_LISTED = {"name": str, "dtype": str, "shape": list, "stype": str, "size": int}


class FrameRefused(ConnectionFailed):
    """What arrived is no frame, or a larger one than is accepted."""

    def __init__(self, cause: str) -> None:
        super().__init__("a message between agent and courier was refused", cause, "both must be of the same version")


def raw(data: bytes) -> Array:
    """A plain file as something that can travel."""
    return Array(dtype=BYTES, shape=(), stype=BYTES, data=data)


def send(connection: socket.socket, header: Header, arrays: Mapping[str, Array] | None = None) -> None:
    """Send one frame.

    Parameters
    ----------
    header
        JSON values; the key ``arrays`` is the frame's own.
    arrays
        Travel byte for byte as they are.

    Raises
    ------
    FrameRefused
        If the header is no JSON or too long.
    ConnectionFailed
        If the other side is gone.
    """
    arrays = arrays or {}
    listed = [
        {"name": name, "dtype": part.dtype, "shape": list(part.shape), "stype": part.stype, "size": len(part.data)}
        for name, part in arrays.items()
    ]
    try:
        text = json.dumps({**header, "arrays": listed}, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise FrameRefused("its header holds something that JSON does not know") from error
    if len(text) > HEADER_LIMIT:
        raise FrameRefused(f"its header has {len(text)} bytes, {HEADER_LIMIT} are allowed")
    try:
        connection.sendall(_LENGTH.pack(len(text)) + text)
        for part in arrays.values():
            connection.sendall(part.data)
    except OSError as error:
        raise _gone(error) from error


def receive(connection: socket.socket, limit: int = ARRAYS_LIMIT) -> Frame:
    """Receive one frame.

    Parameters
    ----------
    limit
        Bytes of all its arrays at most.

    Raises
    ------
    FrameRefused
        If it is no frame, or too large.
    ConnectionFailed
        If the other side is gone, or the connection's time limit has passed.
    """
    (length,) = _LENGTH.unpack(_read(connection, _LENGTH.size))
    if not 0 < length <= HEADER_LIMIT:
        raise FrameRefused(f"it declares a header of {length} bytes, {HEADER_LIMIT} are allowed")
    try:
        header = json.loads(_read(connection, length))
    except (ValueError, RecursionError) as error:
        raise FrameRefused("its header is no JSON") from error
    if not isinstance(header, dict) or not isinstance(header.get("op"), str):
        raise FrameRefused("its header names no operation")
    listed = _checked(header.pop("arrays", None), limit)
    arrays = {
        part["name"]: Array(part["dtype"], tuple(part["shape"]), part["stype"], _read(connection, part["size"]))
        for part in listed
    }
    return header, arrays


def ask(path: Path, header: Header, arrays: Mapping[str, Array] | None = None, *, timeout: float | None = 30) -> Frame:
    """Ask the agent that listens on `path` one question.

    Parameters
    ----------
    timeout
        Seconds to wait for each part of the answer; None waits as long as the agent lives.

    Raises
    ------
    GateRefused
        If the agent answers with an error; ``code`` is its name.
    AuthRefused
        If the agent runs as another user.
    ConnectionFailed
        If nobody listens, or the agent goes away before it has answered.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(str(path))
        except OSError as error:
            raise _gone(error, f"no agent listens on {path}") from error
        try:
            send(connection, header, arrays)
        except FrameRefused:
            raise
        except ConnectionFailed:
            log.info("the agent stopped listening before it had heard the question; its answer may say why")
        answer, found = receive(connection)
    if answer["op"] == ERROR:
        code = str(answer.get("code", "unknown"))
        if code == WRONG_PEER:
            raise AuthRefused("the agent does not answer this user", "it runs as another one", "become that user")
        raise GateRefused("the agent refused", code, "see the ledger: `wardround site audit`", code=code)
    return answer, found


def _checked(listed: Any, limit: int) -> list[dict[str, Any]]:
    """The frame's list of arrays, if it is one; sizes are known before anything is read."""
    if not isinstance(listed, list):
        raise FrameRefused("its header lists no arrays")
    for part in listed:
        if not isinstance(part, dict) or part.keys() != _LISTED.keys():
            raise FrameRefused("it describes an array in other words")
        if any(type(part[name]) is not kind for name, kind in _LISTED.items()) or part["size"] < 0:
            raise FrameRefused("it describes an array in other words")
        if any(type(side) is not int or side < 0 for side in part["shape"]):
            raise FrameRefused("it describes an array in other words")
    if len({part["name"] for part in listed}) != len(listed):
        raise FrameRefused("it holds two arrays of one name")
    total = sum(part["size"] for part in listed)
    if total > limit:
        raise FrameRefused(f"it declares {total} bytes, {limit} are allowed")
    return listed


def _read(connection: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes. Memory grows with what arrives, not with what was declared."""
    pieces = []
    while size:
        try:
            piece = connection.recv(min(size, _PIECE))
        except OSError as error:
            raise _gone(error) from error
        if not piece:
            raise ConnectionFailed("the connection between agent and courier ended", "the other side closed it", "")
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _gone(error: OSError, problem: str = "the connection between agent and courier ended") -> ConnectionFailed:
    cause = "it took too long" if isinstance(error, TimeoutError) else error.strerror or type(error).__name__
    return ConnectionFailed(problem, cause, "start it with `wardround site serve`, or see its log")
