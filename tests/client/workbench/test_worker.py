"""The thread behind a bench: in order, replaceable, and not stopped by a task that fails."""

import logging
import threading
from collections.abc import Callable, Iterator

import pytest

from wardround.client.device import Device
from wardround.client.workbench.worker import Kind, Task, Worker

LONG = 60.0


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker(Device(), lambda: None)
    yield worker
    worker.stop(LONG)


class Slow:
    """A task that stays between two batches until it is told to go on."""

    def __init__(self, worker: Worker, log: list[str], kind: Kind = "learn") -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.worker, self.log = worker, log
        self.task = Task(kind, self.run, 3)

    def run(self) -> None:
        self.begun.set()
        assert self.go_on.wait(LONG)
        self.worker.between()
        self.log.append("slow")


def says(log: list[str], word: str, kind: Kind = "learn") -> Task:
    return Task(kind, lambda: log.append(word))


def test_one_after_the_other_and_training_last(worker: Worker) -> None:
    log: list[str] = []
    slow = Slow(worker, log)
    worker.put(slow.task)
    assert slow.begun.wait(LONG)
    worker.put(says(log, "train", "train"))
    worker.put(says(log, "first"))
    worker.put(says(log, "second", "accept"))
    assert not worker.wait(0.01)
    slow.go_on.set()
    assert worker.wait(LONG)
    assert log == ["slow", "first", "second", "train"]


def test_what_is_cancelled_ends_between_two_batches(worker: Worker) -> None:
    log: list[str] = []
    slow = Slow(worker, log)
    worker.put(slow.task)
    worker.put(says(log, "waited"))
    worker.put(says(log, "kept", "accept"))
    assert slow.begun.wait(LONG)
    worker.cancel("learn")
    slow.go_on.set()
    assert worker.wait(LONG)
    assert log == ["kept"]


def test_a_task_that_fails_holds_up_no_other(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    log: list[str] = []

    def fail() -> None:
        raise RuntimeError("/home/somebody/Jane_Doe.nii.gz")

    with caplog.at_level(logging.DEBUG):
        worker.put(Task("learn", fail))
        worker.put(says(log, "next"))
        assert worker.wait(LONG)
    assert log == ["next"]
    assert "RuntimeError" in caplog.text
    assert "Jane" not in caplog.text, "the text of an error may name a patient"


def test_what_nobody_asked_for_ends_when_somebody_asks() -> None:
    log: list[str] = []
    tasks: list[Task] = []
    found: Callable[[], Task | None] = lambda: tasks.pop() if tasks else None  # noqa: E731
    worker = Worker(Device(), lambda: None, found)
    slow = Slow(worker, log, "scout")
    tasks.append(slow.task)
    worker.wake()
    assert slow.begun.wait(LONG)
    assert worker.tasks == ()
    assert worker.wait(0), "nobody waits for it"
    worker.put(says(log, "asked"))
    slow.go_on.set()
    assert worker.wait(LONG)
    worker.stop(LONG)
    assert log == ["asked"]


def test_a_look_ahead_that_fails_holds_up_nothing(caplog: pytest.LogCaptureFixture) -> None:
    log: list[str] = []
    failed = threading.Event()

    def idle() -> None:
        failed.set()
        raise RuntimeError("/home/somebody/Jane_Doe.nii.gz")

    worker = Worker(Device(), lambda: None, idle)
    try:
        worker.wake()
        assert failed.wait(LONG)
        worker.put(says(log, "next"))
        assert worker.wait(LONG)
    finally:
        worker.stop(LONG)
    assert log == ["next"]
    assert "Jane" not in caplog.text


def test_nothing_begins_while_somebody_is_alone() -> None:
    done: list[str] = []
    worker = Worker(Device(), lambda: None)
    worker.put(Task("learn", lambda: done.append("before")))
    with worker.alone(60) as free:
        assert free
        assert done == ["before"]
        worker.put(Task("train", lambda: done.append("after")))
        assert not worker.wait(0), "it waits"
        assert done == ["before"]
    assert worker.wait(60)
    assert done == ["before", "after"]
    worker.stop(60)


def test_who_cannot_be_alone_in_time_holds_nobody_up() -> None:
    go, done = threading.Event(), list[str]()
    worker = Worker(Device(), lambda: None)
    worker.put(Task("learn", lambda: (go.wait(60), done.append("learnt"))))  # type: ignore[func-returns-value, arg-type]
    with worker.alone(0) as free:
        assert not free
        go.set()
        assert worker.wait(60)
    assert done == ["learnt"]
    worker.stop(60)
