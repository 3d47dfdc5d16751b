"""A forward proxy for tests, of the kind that stands between a hospital and the world: CONNECT, and nothing else."""

import contextlib
import logging
import select
import socket
import sys
import threading
from collections.abc import Iterator

log = logging.getLogger(__name__)


class Proxy:
    """Carries what it is asked to, and counts.

    Parameters
    ----------
    address, port
        Where it listens; at port 0 the system chooses.

    Attributes
    ----------
    asked
        First lines of requests.
    carried
        Bytes from inside out, by destination.
    """

    def __init__(self, address: str = "127.0.0.1", port: int = 0) -> None:
        self.asked: list[str] = []
        self.carried: dict[str, int] = {}
        self._server = socket.create_server((address, port))
        self.url = f"http://{address}:{self._server.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                inner, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(inner,), daemon=True).start()

    def _carry(self, inner: socket.socket) -> None:
        with inner, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                head += inner.recv(65536)
            line = head.split(b"\r\n")[0].decode()
            self.asked.append(line)
            log.info("%s", line)
            method, target, _ = line.split(" ")
            if method != "CONNECT":
                inner.sendall(b"HTTP/1.1 405 Method Not Allowed\r\n\r\n")
                return
            host, _, port = target.rpartition(":")
            with socket.create_connection((host, int(port))) as outer:
                inner.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                while True:
                    for ready in select.select([inner, outer], [], [])[0]:
                        data = ready.recv(65536)
                        if not data:
                            return
                        if ready is inner:
                            self.carried[target] = self.carried.get(target, 0) + len(data)
                        (outer if ready is inner else inner).sendall(data)


@contextlib.contextmanager
def connect_proxy() -> Iterator[Proxy]:
    """A proxy that runs as long as the block lasts."""
    proxy = Proxy()
    try:
        yield proxy
    finally:
        proxy.close()


if __name__ == "__main__":
    # As a process of its own, on another host: says each request on standard error.
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    Proxy(sys.argv[1], int(sys.argv[2]))
    threading.Event().wait()
