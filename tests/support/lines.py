"""Servers that are wrong in one way each, on the loopback interface: for whoever must say what is wrong."""

import datetime
import http.server
import json
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import format_datetime
from pathlib import Path
from typing import Any

from wardround.deploy.provisioning.authority import Authority

DAY = datetime.timedelta(days=1)


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that hangs up is what many of these tests are about."""


@contextmanager
def serving(
    handler: type[socketserver.BaseRequestHandler], tls: Path | None = None, host: str = "127.0.0.1"
) -> Iterator[int]:
    """Serve on a free port, with the certificate in the folder `tls` if one is given."""
    with _Server((host, 0), handler) as server:
        if tls is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(tls / "server.crt", tls / "server.key")
            # The handshake belongs into the thread of a connection, or one that never begins it would stop all others.
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


def certificate(folder: Path, name: str = "test", host: str = "localhost", at: datetime.datetime | None = None) -> Path:
    """An authority in ``folder/ca`` and a server's certificate of it in ``folder/tls``, both made at that time."""
    moment = at or now()
    Authority.create(folder / "ca", name, moment).issue_server(folder / "tls", [host], moment)
    return folder


def fleet(
    code: int | None, *, status: int = 400, skew: float = 0.0, headers: dict[str, str] | None = None
) -> type[http.server.BaseHTTPRequestHandler]:
    """What answers like a Fleet API: with that number of an error, and a clock that is so many seconds behind."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            body = b"<html>hello</html>" if code is None else json.dumps({"code": code, "message": "no"}).encode()
            self.send_response_only(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Date", format_datetime(now() - datetime.timedelta(seconds=skew), usegmt=True))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: a test's output stays quiet."""

    return Handler


class Silent(socketserver.BaseRequestHandler):
    """Takes a connection and never says a word."""

    def handle(self) -> None:
        while self.request.recv(4096):
            pass


class Plain(socketserver.BaseRequestHandler):
    """A web server without TLS."""

    def handle(self) -> None:
        self.request.recv(4096)
        self.request.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


class HangUp(socketserver.BaseRequestHandler):
    """Takes a connection and ends it at the first word."""

    def handle(self) -> None:
        self.request.recv(1)


def proxy(
    answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n", to: Callable[[str], int] | None = None
) -> tuple[type[socketserver.BaseRequestHandler], list[bytes]]:
    """A proxy that answers a CONNECT like that and then joins the caller to the port that `to` names for the target.

    Returns it and a list to which it adds every request that it gets.
    """
    seen: list[bytes] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            request = b""
            while b"\r\n\r\n" not in request:
                more = self.request.recv(4096)
                if not more:
                    return
                request += more
            seen.append(request)
            self.request.sendall(answer)
            if b" 200 " not in answer.split(b"\r\n")[0]:
                return
            target = request.split(b" ")[1].decode()
            port = int(target.rpartition(":")[2]) if to is None else to(target)
            with socket.create_connection(("127.0.0.1", port)) as there:
                back = threading.Thread(target=_pump, args=(there, self.request), daemon=True)
                back.start()
                _pump(self.request, there)
                back.join(10)

    return Handler, seen


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return
