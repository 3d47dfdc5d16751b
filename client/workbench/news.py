"""That something has changed which a person may want to see. It outlives their bench."""

import threading


class News:
    """A number that rises with every change, and those who wait for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._changes = 0

    @property
    def changes(self) -> int:
        """How many there were."""
        return self._changes

    def note(self) -> None:
        """Something has changed."""
        with self._changed:
            self._changes += 1
            self._changed.notify_all()

    def wait(self, seen: int, timeout_s: float) -> int:
        """Wait until :attr:`changes` is above `seen`, at most `timeout_s` seconds, and return it."""
        with self._changed:
            self._changed.wait_for(lambda: self._changes > seen, timeout_s)
            return self._changes
