"""How long an answer took, phase by phase."""

import time


class Clock:
    """Milliseconds of an answer by phase.

    Phases follow each other: :meth:`lap` charges the time since the last one.
    """

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._spent: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """The time since the last lap was spent on `phase`."""
        now = time.perf_counter()
        self._spent[phase] = self._spent.get(phase, 0.0) + 1e3 * (now - self._last)
        self._last = now

    @property
    def spent(self) -> dict[str, float]:
        """By phase, and ``total``."""
        return {**self._spent, "total": 1e3 * (time.perf_counter() - self._start)}
