"""The line between sites and their coordinator, for tests that make it slow, cut it, or lose what it carries."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class FaultyLine:
    """Carries every connection to one port of this machine; it is whole until told otherwise.

    Parameters
    ----------
    port
        Where it listens.
    target
        Where it leads to.

    Attributes
    ----------
    delay
        Seconds that every piece is late, in both directions.
    to_lose
        So many more answers are lost: what was asked arrives, and the connection ends before the answer is back.
    lost
        So many were.
    """

    # A TLS handshake and the head of a request are shorter; one that hands a message over is longer.
    WORTH_LOSING = 4000

    def __init__(self, port: int, target: int) -> None:
        self.delay = 0.0
        self.to_lose = 0
        self.lost = 0
        self._target = target
        self._is_cut = False
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="line", daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._carry, "127.0.0.1", port), self._loop
        ).result()

    def close(self) -> None:
        """Carry nothing any more."""
        self._loop.call_soon_threadsafe(self._server.close)
        self._hang_up()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Nothing passes as long as the block lasts; what was open is torn."""
        self._is_cut = True
        self._hang_up()
        try:
            yield
        finally:
            self._is_cut = False

    def _hang_up(self) -> None:
        for writer in list(self._open):
            self._loop.call_soon_threadsafe(writer.transport.abort)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, back}
        self._open |= pair
        asked = 0

        async def forth() -> None:
            nonlocal asked
            while data := await reader.read(65536):
                await asyncio.sleep(self.delay)
                asked += len(data)
                back.write(data)
                await back.drain()
            back.write_eof()

        async def home() -> None:
            nonlocal asked
            while data := await there.read(65536):
                await asyncio.sleep(self.delay)
                if self.to_lose and asked > self.WORTH_LOSING:
                    self.to_lose -= 1
                    self.lost += 1
                    writer.transport.abort()
                    return
                asked = 0
                writer.write(data)
                await writer.drain()

        tasks = [asyncio.ensure_future(forth()), asyncio.ensure_future(home())]
        with contextlib.suppress(OSError):
            # Whoever asks may be done while the answer is still on its way; never the other way round.
            await asyncio.wait([tasks[1]])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in pair:
            one.close()
        self._open -= pair
