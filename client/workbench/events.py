"""Server-sent events: the page learns at once that the model has moved on.

One event a change, ``data: {"progress": …}``. Each open page holds a thread that waits; these have a pool of their own,
so that no number of pages keeps a stroke waiting.
"""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor

from fastapi.responses import StreamingResponse

from wardround.client.workbench import notation
from wardround.client.workbench.errors import ApiError, note
from wardround.client.workbench.studio import Studio

EACH = 6
"""Pages of one account that are told of changes."""
ALL = 64
_WAIT_S = 1.0
_SIGN_OF_LIFE_S = 15.0


class Events:
    """Streams of events.

    Parameters
    ----------
    studio
        Whose changes are told.
    """

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._waiters = ThreadPoolExecutor(ALL, thread_name_prefix="events")

    def end(self) -> None:
        """End all streams: the server stops."""
        self._ended.set()
        self._waiters.shutdown(wait=False, cancel_futures=True)

    def stream(self, user: str, is_signed_in: Callable[[], bool]) -> StreamingResponse:
        """An answer that goes on until the page is closed, or its user is signed in no more.

        Raises
        ------
        ApiError
            If too many pages are open.
        """
        with self._lock:
            if self._open[user] >= EACH or self._open.total() >= ALL:
                raise ApiError(429, "too-many-pages", "too many pages are open", "", "close one of them")
        return StreamingResponse(
            self._lines(user, is_signed_in),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    async def _lines(self, user: str, is_signed_in: Callable[[], bool]) -> AsyncIterator[str]:
        with self._lock:
            if self._open[user] >= EACH or self._open.total() >= ALL:
                return  # It was asked for together with others, that began first.
            self._open[user] += 1
        try:
            loop = asyncio.get_running_loop()
            seen, quiet = -1, 0.0
            while not self._ended.is_set() and is_signed_in():
                before = seen
                seen = await loop.run_in_executor(self._waiters, self._studio.wait_for_change, user, seen, _WAIT_S)
                if seen != before:
                    quiet = 0.0
                    progress = await loop.run_in_executor(self._waiters, self._studio.progress, user)
                    yield f"data: {json.dumps({'progress': notation.progress(progress)})}\n\n"
                    continue
                quiet += _WAIT_S
                if quiet >= _SIGN_OF_LIFE_S:
                    quiet = 0.0
                    yield ": still here\n\n"
        except Exception as error:  # noqa: BLE001 - its text is not for the log
            if not self._ended.is_set():
                note(error)
        finally:
            with self._lock:
                self._open[user] -= 1
