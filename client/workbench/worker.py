"""The thread behind a bench: one task after the other, each of which stops between two batches when it is replaced."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from wardround.client.device import Device, give_way

log = logging.getLogger(__name__)

Kind = Literal["begin", "learn", "accept", "leave", "rehearse", "train", "look", "scout"]

# What waits until nothing else does.
_LAST: tuple[Kind, ...] = ("look", "train")


class Replaced(Exception):
    """The running task is not wanted any more."""


@dataclass(eq=False)
class Task:
    """Something to do while the device is held.

    Parameters
    ----------
    kind
        What for.
    run
        Does it; calls :meth:`Worker.between` between batches.
    updates
        How many updates of the model are left to do in it.
    """

    kind: Kind
    run: Callable[[], None]
    updates: int = 0
    cancelled: bool = False


class Worker:
    """Runs tasks in a thread of its own, which begins with the first task.

    Parameters
    ----------
    device
        Held during a task.
    changed
        Called when a task begins or ends.
    idle
        Called when nothing waits; may return something to do that nobody asked for.
    """

    def __init__(
        self, device: Device, changed: Callable[[], None], idle: Callable[[], Task | None] = lambda: None
    ) -> None:
        self._device = device
        self._changed = changed
        self._idle = idle
        self._state = threading.Condition()
        self._tasks: list[Task] = []
        self._running: Task | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._held = 0

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What runs and what waits, but for what nobody asked for."""
        with self._state:
            running = () if self._running is None or self._running.kind == "scout" else (self._running,)
            return (*running, *self._tasks)

    def put(self, task: Task) -> None:
        """Queue a task. What nobody asked for ends at once."""
        with self._state:
            if self._stopping:
                return
            position = len(self._tasks)
            while position and task.kind not in _LAST and self._tasks[position - 1].kind in _LAST:
                position -= 1
            self._tasks.insert(position, task)
            if self._running is not None and self._running.kind == "scout":
                self._running.cancelled = True
            self._start()
            self._state.notify_all()

    def cancel(self, *kinds: Kind) -> None:
        """Drop waiting tasks of these kinds; one that runs ends after its batch."""
        with self._state:
            self._tasks = [task for task in self._tasks if task.kind not in kinds]
            if self._running is not None and self._running.kind in kinds:
                self._running.cancelled = True
            self._state.notify_all()

    def wake(self) -> None:
        """Ask again whether there is something to do that nobody asked for."""
        with self._state:
            if not self._stopping:
                self._start()
                self._state.notify_all()

    def between(self) -> None:
        """Let people go first. Only a running task may call this.

        Raises
        ------
        Replaced
            If the task is not wanted any more.
        """
        self._check()
        self._device.between()
        self._check()

    def wait(self, timeout_s: float) -> bool:
        """Wait until nothing runs or waits that anybody asked for; False if it took longer."""
        with self._state:
            return self._state.wait_for(lambda: not self.tasks, timeout_s)

    @contextmanager
    def alone(self, timeout_s: float) -> Iterator[bool]:
        """Let no task begin until the block ends; whether all that ran or waited before was done in time.

        What nobody asked for ends after its batch; what is put meanwhile waits.
        """
        with self._state:
            waiting = list(self._tasks)
            if self._running is not None and self._running.kind == "scout":
                self._running.cancelled = True

            def done() -> bool:
                nothing = self._running is None and not any(task in self._tasks for task in waiting)
                self._held += nothing
                return nothing

            free = self._state.wait_for(done, timeout_s)
        try:
            yield free
        finally:
            with self._state:
                self._held -= free
                self._state.notify_all()

    def stop(self, timeout_s: float) -> None:
        """Drop all tasks and end the thread after its batch."""
        with self._state:
            self._stopping = True
            self._tasks.clear()
            self._state.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    def _check(self) -> None:
        running = self._running
        if self._stopping or (running is not None and running.cancelled):
            raise Replaced

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="bench", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        give_way()
        while (task := self._next()) is not None:
            self._changed()
            try:
                with self._device.background():
                    self._check()
                    task.run()
            except Replaced:
                pass
            except Exception as error:  # noqa: BLE001
                # Whatever it is (a full disk, a GPU out of memory), people must be able to go on drawing.
                log.error("what was behind a bench failed: %s %s", task.kind, type(error).__name__)
            with self._state:
                self._running = None
                self._state.notify_all()
            self._changed()

    def _next(self) -> Task | None:
        while True:
            with self._state:
                if self._stopping:
                    return None
                if self._held:
                    self._state.wait()
                    continue
                if self._tasks:
                    self._running = self._tasks.pop(0)
                    return self._running
            try:
                found = self._idle()
            except Exception as error:  # noqa: BLE001 - nobody asked for it; the thread must go on
                log.error("a bench could not look ahead: %s", type(error).__name__)
                found = None
            with self._state:
                if found is not None and not self._tasks and not self._stopping and not self._held:
                    self._running = found
                    return found
                if found is None and not self._tasks and not self._stopping and not self._held:
                    self._state.wait()
