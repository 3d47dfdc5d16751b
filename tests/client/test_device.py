"""One device, two users: who computes when. No clock: every step waits for the one before it."""

import os
import threading
from collections.abc import Callable

import pytest

from wardround.client.device import NICER, Device, give_way

LONG = 60.0


def person(device: Device, log: list[str], name: str = "person") -> threading.Thread:
    """Somebody who asks for the device once; returns when the request stands in the queue."""

    def interact() -> None:
        with device.interactive():
            log.append(name)

    before = device.waiting
    thread = threading.Thread(target=interact)
    thread.start()
    until(lambda: device.waiting > before)
    return thread


def until(condition: Callable[[], bool]) -> None:
    """Poll with a deadline."""
    waiting = threading.Event()
    for _ in range(int(LONG / 0.01)):
        if condition():
            return
        waiting.wait(0.01)
    pytest.fail("it did not happen")


def test_a_person_comes_between_two_batches() -> None:
    device, log, threads = Device(), [], []
    with device.federated():
        for batch in range(4):
            log.append(f"batch {batch}")
            if batch == 1:
                threads.append(person(device, log))
            device.between()
    for thread in threads:
        thread.join(LONG)
    assert log == ["batch 0", "batch 1", "person", "batch 2", "batch 3"]


def test_those_who_wait_go_first_in_their_order() -> None:
    device, log = Device(), []
    with device.federated():
        threads = [person(device, log, name) for name in ("first", "second", "third")]
        device.between()
        log.append("batch")
    for thread in threads:
        thread.join(LONG)
    assert log == ["first", "second", "third", "batch"]


def test_a_round_gets_its_batch_however_many_people_come() -> None:
    """Each person, while holding the device, sees the next one come: the round would never end if they went first."""
    device, log = Device(), []
    threads: list[threading.Thread] = []

    def greedy(left: int) -> None:
        with device.interactive():
            log.append(f"person {left}")
            if left:
                before = device.waiting
                threads.append(threading.Thread(target=greedy, args=(left - 1,)))
                threads[-1].start()
                until(lambda: device.waiting > before)

    with device.federated():
        threads.append(threading.Thread(target=greedy, args=(3,)))
        threads[0].start()
        until(lambda: device.waiting == 1)
        for batch in range(3):
            device.between()
            log.append(f"batch {batch}")
    until(lambda: len(log) == 7)
    for thread in threads:
        thread.join(LONG)
    assert log == ["person 3", "batch 0", "person 2", "batch 1", "person 1", "batch 2", "person 0"]


def test_one_round_after_the_other() -> None:
    device, log = Device(), []

    def second() -> None:
        with device.federated():
            log.append("second")

    thread = threading.Thread(target=second)
    with device.federated():
        thread.start()
        for _ in range(3):
            device.between()
            log.append("first")
    thread.join(LONG)
    assert log == ["first", "first", "first", "second"]


def test_a_block_that_fails_lets_go() -> None:
    device = Device()
    with pytest.raises(KeyError), device.federated():
        raise KeyError
    with device.interactive(), pytest.raises(KeyError):
        raise KeyError
    with device.federated():
        device.between()


def updates(device: Device, log: list[str], name: str, batches: int) -> threading.Thread:
    """A block of updates that takes a place in the queue; returns when it stands there."""

    def learn() -> None:
        with device.background():
            for batch in range(batches):
                log.append(f"{name} {batch}")
                device.between()

    before = device.waiting
    thread = threading.Thread(target=learn)
    thread.start()
    until(lambda: device.waiting > before)
    return thread


def test_a_person_goes_before_updates_and_these_before_a_round() -> None:
    device, log = Device(), []
    with device.federated():
        threads = [updates(device, log, "update", 2), person(device, log)]
        device.between()
        log.append("batch")
    for thread in threads:
        thread.join(LONG)
    assert log == ["person", "update 0", "update 1", "batch"]


def test_updates_step_aside_for_a_person_and_not_for_a_round() -> None:
    device, log, threads = Device(), [], []

    def train() -> None:
        with device.federated():
            log.append("batch")

    with device.background():
        threads.append(threading.Thread(target=train))
        threads[0].start()
        until(lambda: device.waiting == 1)
        device.between()
        log.append("update 0")
        threads.append(person(device, log))
        device.between()
        log.append("update 1")
    for thread in threads:
        thread.join(LONG)
    assert log == ["update 0", "person", "update 1", "batch"]


def test_a_round_that_waits_is_not_overtaken_by_updates() -> None:
    device, log, threads = Device(), [], []

    def train() -> None:
        with device.federated():
            log.append("batch")

    with device.interactive():
        threads.append(threading.Thread(target=train))
        threads[0].start()
        until(lambda: device.waiting == 1)
        threads.append(updates(device, log, "update", 1))
    for thread in threads:
        thread.join(LONG)
    assert log == ["batch", "update 0"]


def test_no_batch_begins_before_those_beside_have_their_answer() -> None:
    device, log = Device(), []
    begun, go_on = threading.Event(), threading.Event()

    def propagate() -> None:
        with device.beside():
            begun.set()
            go_on.wait(LONG)
            log.append("answer")

    thread = threading.Thread(target=propagate)
    with device.background():
        thread.start()
        assert begun.wait(LONG), "who propagates waits for nobody"
        timer = threading.Timer(0.2, go_on.set)
        timer.start()
        device.between()
        log.append("batch")
    thread.join(LONG)
    assert log == ["answer", "batch"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux knows the priority of a thread")
def test_a_thread_gives_way_once_and_alone() -> None:
    before, found = os.getpriority(os.PRIO_PROCESS, 0), []

    def behind() -> None:
        for _ in range(2):
            give_way()
        found.append(os.getpriority(os.PRIO_PROCESS, 0))

    thread = threading.Thread(target=behind)
    thread.start()
    thread.join(LONG)
    assert found == [min(19, before + NICER)]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
