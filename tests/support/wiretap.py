"""A relay between sites and their coordinator that hears everything in the clear.

It has a server's certificate of the coordinator's own authority, as nobody but the coordinator can make one: sites take
it for the coordinator, and TLS ends here. What it hears is what a coordinator is told, from the first byte to the last.
"""

import asyncio
import contextlib
import datetime
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wardround.deploy.provisioning.authority import Authority
from wardround.server.home import CoordinatorHome


class Wiretap:
    """Carries every connection to a coordinator's public port, and keeps what it carries.

    Parameters
    ----------
    coordinator
        Where it leads to, and whose authority it uses.
    port
        Where it listens.
    folder
        For its certificate.
    """

    def __init__(self, coordinator: CoordinatorHome, port: int, folder: Path) -> None:
        authority = Authority(coordinator.ca)
        authority.issue_server(folder, ["localhost"], datetime.datetime.now(datetime.UTC))
        self._own = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._own.load_cert_chain(folder / "server.crt", folder / "server.key")
        self._trust = ssl.create_default_context(cafile=str(coordinator.ca_certificate))
        self._target = coordinator.settings.port
        self._sent: list[bytearray] = []
        self._told: list[bytearray] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wiretap", daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._carry, "127.0.0.1", port, ssl=self._own), self._loop
        ).result()

    @property
    def sent(self) -> list[bytes]:
        """What sites sent, one connection after the other."""
        return [bytes(one) for one in self._sent]

    @property
    def told(self) -> list[bytes]:
        """What they were told."""
        return [bytes(one) for one in self._told]

    def close(self) -> None:
        """Carry nothing any more."""
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(
                "127.0.0.1", self._target, ssl=self._trust, server_hostname="localhost"
            )
        except OSError:
            writer.transport.abort()
            return
        sent, told = bytearray(), bytearray()
        self._sent.append(sent)
        self._told.append(told)
        ways = [
            asyncio.ensure_future(_pump(reader, back, sent)),
            asyncio.ensure_future(_pump(there, writer, told)),
        ]
        # A connection carries questions and answers by turns: when one side ends it, nothing is on its way.
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for one in (writer, back):
            one.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, kept: bytearray) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            kept += data
            sink.write(data)
            await sink.drain()


@contextmanager
def wiretap(coordinator: CoordinatorHome, port: int, folder: Path) -> Iterator[Wiretap]:
    """A relay that listens as long as the block lasts."""
    tap = Wiretap(coordinator, port, folder)
    try:
        yield tap
    finally:
        tap.close()
