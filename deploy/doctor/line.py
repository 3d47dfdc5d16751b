"""The way to a coordinator, one step after the other: name, proxy, connection. The first that fails says why.

A step is taken by hand and not by an HTTP library, because a library says that it failed and not what stood in the way.
"""

import base64
import errno
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from wardround.errors import WardroundError

PATIENCE_S = 10.0
_LONGEST_ANSWER = 16_384


class Broken(WardroundError):
    """The line ends here. `step` is the check that found it."""

    def __init__(self, step: str, problem: str, cause: str, fix: str) -> None:
        super().__init__(problem, cause, fix)
        self.step = step


@dataclass(frozen=True)
class Proxy:
    """A proxy that the environment names; `credentials` are sent to it as they stand there."""

    host: str
    port: int
    credentials: str = ""

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Target:
    """A coordinator's address, and the proxy on the way, if there is one."""

    host: str
    port: int
    proxy: Proxy | None = None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @classmethod
    def of(cls, url: str) -> "Target":
        """The target of ``https://host:port``, through the proxy that HTTPS_PROXY and NO_PROXY say."""
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 443
        return cls(host, port, _proxy_for(host, port))


def _proxy_for(host: str, port: int) -> Proxy | None:
    found = getproxies()
    address = found.get("https") or found.get("all")
    if not address or proxy_bypass(f"{host}:{port}"):
        return None
    parts = urlsplit(address if "://" in address else f"http://{address}")
    try:
        proxy_port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        proxy_port = 0
    if parts.scheme != "http" or not parts.hostname or not proxy_port:
        raise Broken(
            "proxy",
            "the proxy that the environment names cannot be used",
            "HTTPS_PROXY is not of the form http://host:port",
            "correct HTTPS_PROXY, or take it away where there is no proxy",
        )
    credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else ""
    return Proxy(parts.hostname, proxy_port, credentials)


def resolve(target: Target) -> str:
    """Look up the name that this machine must know: that of the proxy, or without one that of the coordinator.

    Returns
    -------
    str
        An address.

    Raises
    ------
    Broken
        If there is none.
    """
    host = target.proxy.host if target.proxy else target.host
    port = target.proxy.port if target.proxy else target.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Broken(
            "name",
            f"the name {host} is not known",
            f"the name service says: {getattr(error, 'strerror', None) or type(error).__name__}",
            "check the name"
            + (" in HTTPS_PROXY" if target.proxy else " in site.toml")
            + "; ask the network team whether this machine may look it up"
            + ("" if target.proxy else ", or whether a proxy must be used (HTTPS_PROXY)"),
        ) from error
    return str(found[0][4][0])


@contextmanager
def connect(target: Target) -> Iterator[socket.socket]:
    """A connection to the coordinator's port, through the proxy if there is one.

    Raises
    ------
    Broken
        If there is no way through.
    """
    plain = _dial(target)
    try:
        plain.settimeout(PATIENCE_S)
        if target.proxy:
            _ask_proxy(plain, target, target.proxy)
        yield plain
    finally:
        plain.close()


def _dial(target: Target) -> socket.socket:
    there = target.proxy or target
    step, what = ("proxy", "the proxy") if target.proxy else ("connection", "the coordinator")
    try:
        return socket.create_connection((there.host, there.port), timeout=PATIENCE_S)
    except TimeoutError as error:
        raise Broken(
            step,
            f"{what} at {there} does not answer",
            "a firewall drops what is sent there, or the address is wrong",
            f"ask the network team to allow outgoing TCP to {there}; nothing needs to come in"
            + ("" if target.proxy else ". If a proxy is to be used, set HTTPS_PROXY"),
        ) from error
    except OSError as error:
        refused = error.errno == errno.ECONNREFUSED
        raise Broken(
            step,
            f"{what} at {there} cannot be reached",
            "the machine is there, but nothing listens on that port" if refused else error.strerror or "no way there",
            f"check the port; ask who runs {what} whether it is up"
            if refused
            else f"ask the network team for a way to {there}",
        ) from error


def _ask_proxy(plain: socket.socket, target: Target, proxy: Proxy) -> None:
    """CONNECT, and what the proxy says to it."""
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.credentials:
        lines.append("Proxy-Authorization: Basic " + base64.b64encode(proxy.credentials.encode()).decode())
    try:
        plain.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = b""
        while b"\r\n\r\n" not in answer and len(answer) < _LONGEST_ANSWER and (more := plain.recv(1)):
            answer += more
    except OSError as error:
        raise Broken(
            "proxy",
            f"the proxy {proxy} does not answer a CONNECT",
            "it may be no HTTP proxy" if isinstance(error, TimeoutError) else error.strerror or "it hung up",
            "check HTTPS_PROXY",
        ) from error
    status = re.match(rb"HTTP/1\.[01] (\d{3})", answer)
    if status is None:
        raise Broken("proxy", f"{proxy} is no HTTP proxy", "its answer to a CONNECT is not HTTP", "check HTTPS_PROXY")
    code = int(status[1])
    if 200 <= code < 300:
        return
    causes = {
        407: (
            "it wants a name and a password" + (", and did not accept ours" if proxy.credentials else ""),
            "put them into HTTPS_PROXY (http://name:password@host:port), or ask for an exception",
        ),
        403: ("its rules forbid this address", f"ask the network team to allow CONNECT to {target}"),
        405: ("it does not allow CONNECT", f"ask the network team to allow CONNECT to {target}"),
        502: (
            "it cannot reach the coordinator itself",
            "ask the network team whether the proxy may go to " + str(target),
        ),
        503: (
            "it cannot reach the coordinator itself",
            "ask the network team whether the proxy may go to " + str(target),
        ),
        504: ("the coordinator did not answer it", "ask the network team whether the proxy may go to " + str(target)),
    }
    cause, fix = causes.get(code, ("it refused", f"ask the network team to allow CONNECT to {target}"))
    raise Broken("proxy", f"the proxy {proxy} does not let us through to {target}", f"{cause} (HTTP {code})", fix)
