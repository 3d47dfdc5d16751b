"""Benches are built beside each other, bounded in number, and found again as they were."""

import threading
from typing import Any, cast

import pytest

from wardround.client.workbench.bench import Bench
from wardround.client.workbench.benches import Benches
from wardround.client.workbench.news import News
from wardround.errors import UsageError


class Stool:
    """As little of a bench as there can be."""

    def __init__(self, user: str, news: News) -> None:
        self.user, self.note = user, news.note
        self.desk: Any = None
        self.training: Any = None
        self.is_idle = True
        self.closed = False

    def close(self, wait_s: float = 0) -> None:
        self.closed = True


def benches(most: int = 2) -> Benches:
    return Benches(lambda user, news: cast(Bench, Stool(user, news)), most)


def test_one_persons_bench_does_not_hold_up_anothers() -> None:
    begun, go = threading.Event(), threading.Event()

    def build(user: str, news: News) -> Bench:
        if user == "slow":
            begun.set()
            assert go.wait(60)
        return cast(Bench, Stool(user, news))

    site = Benches(build)

    def come() -> None:
        with site.of("slow"):
            pass

    slow = threading.Thread(target=come)
    slow.start()
    assert begun.wait(60)
    fast = threading.Thread(target=lambda: site.of("fast").__enter__(), daemon=True)
    fast.start()
    fast.join(30)
    held_up = fast.is_alive()
    go.set()
    slow.join(60)
    assert not held_up


def test_two_who_come_at_once_get_the_same_bench() -> None:
    built: list[str] = []
    both = threading.Barrier(2)

    def build(user: str, news: News) -> Bench:
        built.append(user)
        return cast(Bench, Stool(user, news))

    site, found = Benches(build), list[Bench]()

    def come() -> None:
        both.wait(60)
        with site.of("ann") as bench:
            found.append(bench)

    threads = [threading.Thread(target=come) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert built == ["ann"]
    assert found[0] is found[1]


def test_the_one_that_was_used_longest_ago_is_freed() -> None:
    site, found = benches(), dict[str, Any]()
    for user in ("ann", "bob", "ann", "cat"):
        with site.of(user) as bench:
            found[user] = bench
    assert [user for user in found if site.peek(user)] == ["ann", "cat"]
    assert (found["ann"].closed, found["bob"].closed) == (False, True)
    with site.of("bob") as again:
        assert again is not found["bob"]


def test_nobodys_bench_is_freed_under_their_hands_or_while_it_learns() -> None:
    site = benches(most=1)
    with site.of("ann") as ann:
        with site.of("bob") as bob:
            cast(Any, bob).is_idle = False
        assert site.peek("bob") is bob
        with site.of("cat"):
            pass
        assert site.peek("cat") is None
        assert site.peek("ann") is ann
    assert site.peek("ann") is None, "it was the only one to free"


def test_an_empty_desk_goes_first_and_an_open_case_is_known_afterwards() -> None:
    site = benches()
    for user in ("ann", "bob", "cat"):
        with site.of(user) as bench:
            if user == "ann":
                cast(Any, bench).desk = type("Desk", (), {"case_id": "case"})()
    assert [user for user in ("ann", "bob", "cat") if site.peek(user)] == ["ann", "cat"]
    with site.of("bob"), site.of("dan"), site.of("cat"):
        pass
    with site.of("bob"), site.of("dan"), site.of("cat"):
        with site.of("eve"):
            pass
        assert site.peek("ann") is None, "all others are at work"
    assert [site.left_open("ann") for _ in range(2)] == ["case", "case"]
    site.forget_left_open("ann")
    assert site.left_open("ann") is None


def test_what_somebody_waits_for_outlives_the_bench() -> None:
    site = benches(most=1)
    with site.of("ann") as ann:
        ann.note()
        ann.training = cast(Any, "task")
    seen = site.news("ann").changes
    with site.of("bob"):
        pass
    assert site.peek("ann") is None
    assert site.training("ann") == "task"
    with site.of("ann") as ann:
        assert site.training("ann") == "task"
        ann.note()
    assert site.news("ann").wait(seen, 60) == seen + 1
    assert site.training("nobody") is None


def test_nobody_gets_one_after_the_end() -> None:
    site = benches()
    with site.of("ann") as ann:
        pass
    site.close()
    assert cast(Any, ann).closed
    with pytest.raises(UsageError, match="closing"), site.of("bob"):
        pass
