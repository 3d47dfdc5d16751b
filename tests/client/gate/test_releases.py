"""Each release is good for one sending of that very content, in time, also over a restart."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bundles import Clock
from flwr.app import RecordDict

from wardround.client.gate.gate import Gate
from wardround.client.gate.releases import RELEASE_LASTS_S

Answer = Callable[..., RecordDict]

CANARY = "DOE^JOHN^1970"
SHA = "ab" * 32


def test_what_was_never_released_does_not_leave(gate: Gate) -> None:
    assert not gate.released(SHA)
    assert list(gate.ledger.entries())[-1].sha256 == SHA
    for odd in ("", CANARY, SHA.upper(), SHA + "\n"):
        assert not gate.released(odd)
        assert list(gate.ledger.entries())[-1].sha256 is None
    assert {entry.code for entry in gate.ledger.entries()} == {"not-released"}


def test_each_release_is_good_for_one_sending(gate: Gate, release: Callable[..., str]) -> None:
    told = release()
    assert release() == told
    assert [gate.released(told) for _ in range(3)] == [True, True, False]


def test_the_release_must_have_been_for_the_message_that_is_answered(gate: Gate, release: Callable[..., str]) -> None:
    told = release()
    assert not gate.released(told, kind="evaluate")
    assert not gate.released(told, round=3)
    assert not gate.released(told, run="other")
    assert gate.released(told, kind="train", run="demo", round=2)


def test_a_restart_forgets_nothing(
    gate: Gate, home: Path, clock: Clock, release: Callable[..., str], answer: Answer
) -> None:
    sent, waiting = release(), release(content=answer(metrics={"num-examples": 6.0}))
    assert gate.released(sent)
    again = Gate(home, clock)
    assert not again.released(sent)
    assert again.released(waiting)
    assert not Gate(home, clock).released(waiting)


def test_a_ledger_that_is_set_aside_before_a_sending_stops_nothing(
    gate: Gate, home: Path, clock: Clock, release: Callable[..., str]
) -> None:
    """The new ledger then holds a sending whose release stands in the old one."""
    told = release()
    gate.ledger.set_aside()
    assert gate.released(told)
    again = Gate(home, clock)
    assert not again.released(told)
    assert again.ledger.verify().ok


def test_a_release_does_not_last(gate: Gate, home: Path, clock: Clock, release: Callable[..., str]) -> None:
    told = release()
    clock.now += RELEASE_LASTS_S + 1
    assert not gate.released(told)
    assert not Gate(home, clock).released(told)


def test_many_at_once(gate: Gate, release: Callable[..., str]) -> None:
    told = release()
    start = threading.Barrier(6)

    def ask(_: int) -> bool:
        start.wait()
        return gate.released(told)

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(ask, range(6))) == 1
    assert gate.ledger.verify().ok
