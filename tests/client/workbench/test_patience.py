"""What wrong passwords cost."""

import threading

import pytest

from wardround.client.workbench import patience as patience_module
from wardround.client.workbench.patience import FORGOTTEN_AFTER_S, FREE, LONGEST_S, Patience, TooManyTries


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def fail(patience: Patience, name: str = "ann", address: str = "10.0.0.1") -> None:
    with patience.trying(name, address):
        pass


def succeed(patience: Patience, name: str = "ann", address: str = "10.0.0.1") -> None:
    with patience.trying(name, address) as one:
        one.succeeded()


def wait_of(patience: Patience, name: str = "ann", address: str = "10.0.0.1") -> int:
    with pytest.raises(TooManyTries) as refused:
        fail(patience, name, address)
    return refused.value.seconds


def test_a_few_tries_are_free_and_each_further_one_doubles_the_wait() -> None:
    clock = Clock()
    patience = Patience(clock)
    for _ in range(FREE["name at address"]):
        fail(patience)
    waits = []
    for _ in range(12):
        waits.append(wait_of(patience))
        clock.now += waits[-1]
        fail(patience)
    assert waits[:4] == [2, 3, 5, 9]
    assert waits[-1] == LONGEST_S + 1
    assert waits == sorted(waits)


def test_a_refused_try_costs_nothing_more() -> None:
    patience = Patience(Clock())
    for _ in range(FREE["name at address"]):
        fail(patience)
    assert {wait_of(patience) for _ in range(10)} == {2}


def test_the_right_password_ends_the_count() -> None:
    patience = Patience(Clock())
    for _ in range(4):
        for _ in range(FREE["name at address"] - 1):
            fail(patience)
        succeed(patience)


def test_the_right_password_has_to_wait_as_well() -> None:
    patience = Patience(Clock())
    for _ in range(FREE["name at address"]):
        fail(patience)
    with pytest.raises(TooManyTries):
        succeed(patience)


def test_who_is_attacked_may_still_come_in_from_elsewhere() -> None:
    patience = Patience(Clock())
    for _ in range(FREE["name at address"]):
        fail(patience, address="10.0.0.66")
    wait_of(patience, address="10.0.0.66")
    succeed(patience, address="10.0.0.1")


def test_one_address_cannot_try_one_password_on_all_names() -> None:
    patience = Patience(Clock())
    for number in range(FREE["address"]):
        fail(patience, name=f"name-{number}")
    wait_of(patience, name="another")
    succeed(patience, name="another", address="10.0.0.2")


def test_an_account_of_ones_own_buys_no_tries_at_others() -> None:
    patience = Patience(Clock())
    for number in range(FREE["address"]):
        fail(patience, name=f"name-{number}")
        if number < FREE["address"] - 1:
            succeed(patience, name="mine")
    wait_of(patience, name="another")


def test_many_addresses_cannot_try_one_name_for_ever() -> None:
    patience = Patience(Clock())
    for number in range(FREE["name"]):
        fail(patience, address=f"10.0.{number}.1")
    wait_of(patience, address="10.1.0.1")


def test_what_was_wrong_is_forgotten_after_an_hour() -> None:
    clock = Clock()
    patience = Patience(clock)
    for _ in range(FREE["name at address"]):
        fail(patience)
    clock.now += FORGOTTEN_AFTER_S + 10
    fail(patience)
    fail(patience)


def test_tries_at_the_same_time_are_counted_before_they_are_looked_at() -> None:
    patience = Patience(Clock())
    inside, go, refused = threading.Semaphore(0), threading.Event(), []

    def attempt() -> None:
        try:
            with patience.trying("ann", "10.0.0.1"):
                inside.release()
                go.wait(30)
        except TooManyTries:
            refused.append(1)
            inside.release()

    threads = [threading.Thread(target=attempt) for _ in range(20)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert inside.acquire(timeout=30)
    go.set()
    for thread in threads:
        thread.join(30)
    assert len(refused) == 20 - FREE["name at address"]


def test_a_network_of_ipv6_is_one_address() -> None:
    patience = Patience(Clock())
    for number in range(FREE["name at address"]):
        fail(patience, address=f"2001:db8::{number + 1:x}")
    assert wait_of(patience, address="2001:db8::ffff")
    fail(patience, address="2001:db8:0:1::1")
    for _ in range(FREE["name at address"] - 1):
        fail(patience, address="10.0.0.7")
    fail(patience, address="::ffff:10.0.0.7")
    assert wait_of(patience, address="10.0.0.7")


def test_tries_that_are_refused_push_nobody_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience_module, "_MOST", 100)
    patience = Patience(Clock())
    for _ in range(FREE["name at address"]):
        fail(patience, "ann", "10.0.0.1")
    for number in range(FREE["address"]):
        fail(patience, f"nobody-{number}", "10.0.0.2")
    for number in range(200):
        wait_of(patience, f"other-{number}", "10.0.0.2")
    assert wait_of(patience, "ann", "10.0.0.1")
