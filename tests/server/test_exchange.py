"""Sending, waiting and accounting for every site."""

from typing import Any

import pytest
from flwr.app import Message, RecordDict
from google.protobuf.message import DecodeError

from wardround.errors import Interrupted, RoundError
from wardround.server.exchange import exchange, wait_for_sites


def going() -> bool:
    return False


def messages(grid: Any) -> list[Message]:
    return [Message(RecordDict(), node, "train") for node in grid.get_node_ids()]


def echo(message: Message) -> Message:
    return Message(RecordDict(), reply_to=message)


def test_everybody_answers_without_waiting(toy_grid: Any, clock: Any) -> None:
    grid = toy_grid({"a": echo, "b": echo})
    answers = list(exchange(grid, messages(grid), 10.0, clock.pace(), going))
    assert [(answer.node, answer.reply is not None, answer.reason) for answer in answers] == [
        (100, True, ""),
        (101, True, ""),
    ]
    assert clock.seconds == 0


def test_late_ones_are_named_at_the_deadline_and_not_before(toy_grid: Any, clock: Any) -> None:
    grid = toy_grid({"a": echo, "b": lambda message: None})
    answers = list(exchange(grid, messages(grid), 10.0, clock.pace(), going))
    assert [(answer.node, answer.reason) for answer in answers] == [(100, ""), (101, "late")]
    assert clock.seconds == pytest.approx(10.0)


def test_an_answer_in_the_last_moment_counts(toy_grid: Any, clock: Any) -> None:
    grid = toy_grid({"a": lambda message: echo(message) if clock.seconds >= 10 else None})
    (answer,) = exchange(grid, messages(grid), 10.0, clock.pace(), going)
    assert answer.reply is not None


def test_a_grid_that_takes_longer_than_the_deadline_is_asked_once(toy_grid: Any, clock: Any) -> None:
    def slow(message: Message) -> Message:
        clock.seconds += 100
        return echo(message)

    grid = toy_grid({"a": slow, "b": slow})
    answers = list(exchange(grid, messages(grid), 10.0, clock.pace(), going))
    assert all(answer.reply is not None for answer in answers)


@pytest.mark.parametrize("error", [DecodeError("x"), ValueError("x"), KeyError("x"), TypeError("x")])
def test_undecodable(toy_grid: Any, clock: Any, error: Exception) -> None:
    def broken(message: Message) -> Message:
        raise error

    grid = toy_grid({"a": broken, "b": echo})
    answers = list(exchange(grid, messages(grid), 10.0, clock.pace(), going))
    assert [answer.reason for answer in answers] == ["undecodable", ""]


def test_other_failures_of_the_grid_are_not_blamed_on_a_site(toy_grid: Any, clock: Any) -> None:
    def offline(message: Message) -> Message:
        raise ConnectionError("the coordinator lost its server")

    grid = toy_grid({"a": offline})
    with pytest.raises(ConnectionError):
        list(exchange(grid, messages(grid), 10.0, clock.pace(), going))


def test_replies_to_something_else_are_ignored(toy_grid: Any, clock: Any) -> None:
    def stray(message: Message) -> Message:
        reply = echo(message)
        reply.metadata.__dict__["_reply_to_message_id"] = "m77"
        return reply

    grid = toy_grid({"a": stray})
    (answer,) = exchange(grid, messages(grid), 10.0, clock.pace(), going)
    assert answer.reason == "late"


@pytest.mark.parametrize("shortened", [False, True])
def test_not_delivered(toy_grid: Any, clock: Any, shortened: bool) -> None:
    """One grid of Flower returns None for what it could not push, another leaves it out."""
    grid = toy_grid({"a": echo, "b": echo, "c": echo})
    push = grid.push_messages

    def partly(sent: list[Message]) -> list[str | None]:
        first, _, third = push(sent)
        return [first, third] if shortened else [first, None, third]

    grid.push_messages = partly
    answers = list(exchange(grid, messages(grid), 10.0, clock.pace(), going))
    assert {answer.node: answer.reason for answer in answers} == {101: "not-delivered", 100: "", 102: ""}


def test_stop_between_two_sites(toy_grid: Any, clock: Any) -> None:
    asked: list[int] = []

    def count(message: Message) -> Message:
        asked.append(message.metadata.dst_node_id)
        return echo(message)

    grid = toy_grid({"a": count, "b": count})
    with pytest.raises(Interrupted):
        list(exchange(grid, messages(grid), 10.0, clock.pace(), lambda: len(asked) == 1))
    assert asked == [100]


def test_stop_while_waiting(toy_grid: Any, clock: Any) -> None:
    grid = toy_grid({"a": lambda message: None})
    with pytest.raises(Interrupted):
        list(exchange(grid, messages(grid), 1000.0, clock.pace(), lambda: clock.seconds > 5))
    assert clock.seconds < 10


def test_it_may_be_broken_off_and_taken_up_again(toy_grid: Any, clock: Any) -> None:
    grid = toy_grid({"a": echo, "b": lambda message: echo(message) if clock.seconds >= 10 else None})
    sent = messages(grid)
    done, still_open = exchange(grid, sent, 60.0, clock.pace(), going, until=lambda: clock.seconds >= 5)
    assert [(answer.node, answer.reason) for answer in (done, still_open)] == [(100, ""), (101, "still-open")]
    assert clock.seconds < 8
    (last,) = exchange(grid, (), 60.0, clock.pace(), going, waiting={still_open.identity: 101})
    assert last.reply is not None


def test_nothing_to_send(toy_grid: Any, clock: Any) -> None:
    assert list(exchange(toy_grid({"a": echo}), [], 10.0, clock.pace(), going)) == []


def test_the_roster_is_ordered_by_name_not_by_id(toy_grid: Any, clock: Any) -> None:
    grid = toy_grid({"c": echo, "a": echo, "b": echo})
    roster = wait_for_sites(grid, 3, 10.0, grid.name_of, clock.pace(), going)
    assert list(roster.items()) == [(101, "a"), (102, "b"), (100, "c")]


def test_a_quorum_that_never_comes(toy_grid: Any, clock: Any) -> None:
    grid = toy_grid({"a": echo})
    with pytest.raises(RoundError, match="1 of 2"):
        wait_for_sites(grid, 2, 10.0, grid.name_of, clock.pace(), going)
    assert clock.seconds == pytest.approx(10.0)


def test_pauses_grow(toy_grid: Any, clock: Any) -> None:
    pauses: list[float] = []
    wait = clock.wait
    clock.wait = lambda seconds: (pauses.append(seconds), wait(seconds))
    grid = toy_grid({"a": lambda message: None})
    list(exchange(grid, messages(grid), 20.0, clock.pace(), going))
    assert pauses[:3] == [0.02, 0.04, 0.08]
    assert max(pauses) == 2.0
