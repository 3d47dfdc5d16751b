"""A site that is played: it has a key, speaks to the SuperLink as a SuperNode does, and answers what a test wants."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from deployment import PATIENCE
from flwr.app import ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects
from flwr.supernode.fleet_http_connection import http_request_response

from wardround.client.home import SiteHome
from wardround.deploy.provisioning.keys import read_private_key
from wardround.server.home import CoordinatorHome
from wardround.strategies.contract import (
    ARRAYS,
    METRICS,
    Weights,
    arrays_in,
    plan_in,
    weights_from_record,
    weights_to_record,
)
from wardround.strategies.parcel import is_wrapped, unwrap, wrap
from wardround.strategies.plan import RoundPlan

STEP = 1e-3
"""By so much an honest site moves every weight."""

_LOOK_S = 0.3


@dataclass(frozen=True)
class Asked:
    """A question of the coordinator.

    Parameters
    ----------
    message
        As it came, without its content.
    plan, weights
        What it brought.
    in_one_piece
        Whether the weights travel in one piece.
    """

    message: Message
    plan: RoundPlan
    weights: Weights
    in_one_piece: bool

    @property
    def kind(self) -> str:
        return self.message.metadata.message_type

    def answer(self, arrays: ArrayRecord | None, metrics: dict[str, object]) -> Message:
        """An answer with these arrays, in the way in which the question came."""
        content = RecordDict({METRICS: MetricRecord(metrics)})  # type: ignore[arg-type]
        if arrays is not None:
            content = RecordDict({ARRAYS: arrays, **content})
        return Message(wrap(content) if self.in_one_piece else content, reply_to=self.message)

    def error(self, code: int, reason: str) -> Message:
        """An error in place of an answer."""
        return Message(Error(code, reason), reply_to=self.message)

    def honest(self) -> Message:
        """The answer of a site that keeps the contract: every weight a step further."""
        if self.kind == "evaluate":
            return self.answer(None, {"num-examples": 2.0, "dice": 0.5})
        moved = {name: a + a.dtype.type(STEP) if a.dtype.kind == "f" else a for name, a in self.weights.items()}
        return self.answer(weights_to_record(moved), {"num-examples": 2.0, "loss": 0.5})


Play = Callable[[Asked], Iterable[Message]]


def honest(asked: Asked) -> Iterable[Message]:
    """Keeps the contract."""
    return [asked.honest()]


@contextmanager
def played_site(coordinator: CoordinatorHome, home: SiteHome, play: Play = honest) -> Iterator[None]:
    """A site that answers as long as the block lasts.

    Parameters
    ----------
    coordinator
        To whom it speaks.
    home
        Whose key it has.
    play
        What it sends when it is asked.
    """
    stop, faults = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            _serve(coordinator, home, play, stop)
        except BaseException as error:  # noqa: BLE001 - the test is told of it
            faults.append(error)

    thread = threading.Thread(target=run, name=home.settings.name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(PATIENCE)
    assert not faults, faults


def _serve(coordinator: CoordinatorHome, home: SiteHome, play: Play, stop: threading.Event) -> None:
    key = read_private_key(home.node_key)
    ca = coordinator.ca_certificate.read_bytes()
    address = f"localhost:{coordinator.settings.port}"
    with http_request_response(address, False, ca, (key, key.public_key())) as ways:
        _, receive, send, _, _, pull_object, push_object, confirm = ways
        while not stop.wait(_LOOK_S):
            if (found := receive()) is None:
                continue
            message, tree = found
            run_id, name = message.metadata.run_id, message.metadata.message_id
            ids = [part.object_id for part in iterate_object_tree(tree)]
            parts = pull_objects(ids, pull_object_fn=lambda part, run_id=run_id: pull_object(run_id, part))
            confirm(run_id, name)
            whole = inflate_object_from_contents(name, parts)
            assert isinstance(whole, Message)
            content = unwrap(whole.content)
            asked = Asked(
                message,
                RoundPlan.from_record(plan_in(content)),
                weights_from_record(arrays_in(content)),
                is_wrapped(whole.content),
            )
            for reply in play(asked):
                with no_object_id_recompute():
                    reply.metadata.__dict__["_message_id"] = reply.object_id
                    objects = {part: body.deflate() for part, body in get_all_nested_objects(reply).items()}
                    wanted, session = send(reply, get_object_tree(reply), 1.0)
                    for part in wanted:
                        push_object(run_id, session, part, objects[part])
