"""Who asked the SuperLink for what: one line of JSON a request.

Polls, heartbeats and the chunks of a model are left out as long as they succeed: they are most of the traffic and say
nothing. Whatever is refused is written down, up to a number of lines a minute, so that a flood of nonsense fills
neither the disk nor the reader's patience; how many were left out is written down as well.
"""

import json
import logging
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

log = logging.getLogger(__name__)

ROUTINE = frozenset(
    {
        "/health",
        "/v1/fleet/send-node-heartbeat",
        "/v1/fleet/pull-messages",
        "/v1/fleet/pull-object",
        "/v1/fleet/push-object",
        "/v1/control/list-nodes",
        "/v1/control/list-runs",
        "/v1/control/stream-logs",
        "/v1/runtime/acquire-task",
        "/v1/runtime/confirm-message-received",
        "/v1/runtime/get-nodes",
        "/v1/runtime/pull-messages",
        "/v1/runtime/pull-object",
        "/v1/runtime/push-logs",
        "/v1/runtime/push-messages",
        "/v1/runtime/push-object",
        "/v1/runtime/send-task-heartbeat",
    }
)
"""Calls that are written down only when they fail."""

REFUSALS_A_MINUTE = 120


class AuditTrail:
    """Appends to one file. It is opened for every line, so that it may be moved aside at any time.

    Parameters
    ----------
    path
        A file of JSON lines, readable by its owner only.
    clock
        Seconds since the epoch.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._minute = 0
        self._refusals = 0

    def note(self, *, call: str | None, status: int, **details: str | float | None) -> None:
        """Write down one request.

        Parameters
        ----------
        call
            Its path; None for one that names no call.
        status
            Of the answer; 0 if there was none.
        details
            Anything else; what is None is left out.
        """
        refused = not 200 <= status < 400
        if call in ROUTINE and not refused:
            return
        now = self._clock()
        if refused and not self._has_room(now):
            return
        self._append(now, {"call": call, "status": status, **details})

    def _has_room(self, now: float) -> bool:
        minute = int(now // 60)
        if minute != self._minute:
            left_out = self._refusals - REFUSALS_A_MINUTE
            if left_out > 0:
                self._append(now, {"left-out": left_out})
            self._minute, self._refusals = minute, 0
        self._refusals += 1
        return self._refusals <= REFUSALS_A_MINUTE

    def _append(self, now: float, entry: dict[str, str | float | None]) -> None:
        time_of_day = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds")
        kept = {"time": time_of_day, **{name: value for name, value in entry.items() if value is not None}}
        line = (json.dumps(kept) + "\n").encode()
        try:
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(handle, line)
            finally:
                os.close(handle)
        except OSError as error:
            # The federation goes on when the disk is full; that its record has a hole is said where it can be.
            log.error("cannot write the audit trail (%s)", error.strerror)
