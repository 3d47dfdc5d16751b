"""What stands in front of Flower's grid."""

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict

from wardround.errors import RoundError
from wardround.server.grids import ParcelGrid, RosterGrid
from wardround.strategies.contract import ARRAYS, digest, weights_to_record
from wardround.strategies.parcel import PARCEL, is_wrapped, unwrap

WEIGHTS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array(7), "empty": np.zeros((0, 2), np.float16)}


def echo(message: Message) -> Message:
    return Message(message.content, reply_to=message)


def test_a_roster_grid_shows_its_sites_and_hands_on_the_rest(toy_grid: Any) -> None:
    grid = toy_grid({"a": echo, "b": echo})
    view = RosterGrid(grid, {100: "a"})
    assert view.get_node_ids() == [100]
    assert [(node.node_id, node.name) for node in view.get_nodes()] == [(100, "a")]
    identities = list(view.push_messages([Message(RecordDict(), 100, "train")]))
    assert len(list(view.pull_messages(identities))) == 1
    with pytest.raises(RoundError, match="waits for more"):
        [view.get_node_ids() for _ in range(10)]


def test_weights_travel_in_pieces_and_arrive_by_name(toy_grid: Any) -> None:
    came: list[RecordDict] = []

    def site(message: Message) -> Message:
        came.append(message.content)
        return Message(message.content, reply_to=message)

    content = RecordDict({ARRAYS: weights_to_record(WEIGHTS)})
    grid = ParcelGrid(toy_grid({"a": site, "b": site}))
    sent = grid.push_messages([Message(content, node, "train") for node in grid.get_node_ids()])
    replies = [reply for identity in sent for reply in grid.pull_messages([identity])]
    assert [digest(reply.content) for reply in replies] == [digest(content)] * 2
    assert all(is_wrapped(one) for one in came)
    assert digest(unwrap(came[0])) == digest(content)
    # One model in memory, however many sites are sent it.
    assert came[0] is came[1]


def test_a_piece_that_cannot_be_read_is_the_matter_of_one_site(toy_grid: Any) -> None:
    junk = RecordDict({ARRAYS: ArrayRecord({f"{PARCEL}.0": Array("uint8", (3,), PARCEL, b"abc")})})
    grid = ParcelGrid(toy_grid({"a": lambda message: Message(junk, reply_to=message), "b": echo}))
    first, second = grid.push_messages([Message(RecordDict(), node, "train") for node in grid.get_node_ids()])
    with pytest.raises(ValueError, match="table"):
        list(grid.pull_messages([first]))
    assert len(list(grid.pull_messages([second]))) == 1
