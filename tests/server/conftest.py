"""A grid in memory whose sites do what a test tells them to, and a clock that moves only where somebody waits."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from wardround.server.exchange import Pace
from wardround.strategies.contract import (
    ARRAYS,
    METRICS,
    PLAN,
    Weights,
    arrays_in,
    weights_from_record,
    weights_to_record,
)
from wardround.strategies.parcel import unwrap
from wardround.strategies.plan import RoundPlan

Site = Callable[[Message], Message | None]


class ToyGrid(Grid):
    """Sites by name. A site returns its reply, None for silence, or raises what a grid raises on a broken reply."""

    def __init__(self, sites: Mapping[str, Site]) -> None:
        self.sites = dict(sites)
        self.online = list(sites)
        self.sent: list[Message] = []
        self._waiting: dict[str, Message] = {}
        self._first_id = 100

    def id_of(self, name: str) -> int:
        return self._first_id + list(self.sites).index(name)

    def name_of(self, node: int) -> str:
        return list(self.sites)[node - self._first_id]

    def renumber(self, first: int) -> None:
        """Node ids are drawn anew whenever a site registers."""
        self._first_id = first

    def get_node_ids(self) -> list[int]:
        return [self.id_of(name) for name in self.online]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        identities = []
        for message in messages:
            identity = f"m{len(self.sent)}"
            message.metadata.__dict__["_message_id"] = identity
            self._waiting[identity] = message
            self.sent.append(message)
            identities.append(identity)
        return identities

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = []
        for identity in message_ids:
            message = self._waiting.get(identity)
            if message is None:
                continue
            reply = self.sites[self.name_of(message.metadata.dst_node_id)](message)
            if reply is not None:
                del self._waiting[identity]
                replies.append(reply)
        return replies

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(self, *args: Any, **keywords: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        raise NotImplementedError


class Learner:
    """A site that moves the weights towards `target` by a share that depends on the round, and scores them."""

    def __init__(self, target: float, examples: float = 1.0) -> None:
        self.target = target
        self.examples = examples
        self.plans: list[RoundPlan] = []

    def __call__(self, message: Message) -> Message:
        plan = RoundPlan.from_record(message.content.config_records[PLAN])
        self.plans.append(plan)
        weights = weights_from_record(arrays_in(unwrap(message.content)))
        if message.metadata.message_type == "evaluate":
            distance = float(np.abs(weights["w"] - self.target).mean())
            return self.answer(message, None, {"num-examples": self.examples, "dice": 1 / (1 + distance)})
        share = np.float32(1 / (2 + plan.round))
        moved = {name: (a + share * (np.float32(self.target) - a)).astype(a.dtype) for name, a in weights.items()}
        return self.answer(message, moved, {"num-examples": self.examples, "loss": 0.25})

    @staticmethod
    def answer(message: Message, weights: Weights | None, metrics: Mapping[str, Any]) -> Message:
        content = RecordDict({METRICS: MetricRecord(dict(metrics))})
        if weights is not None:
            content[ARRAYS] = weights_to_record(weights)
        return Message(content, reply_to=message)


class FakeTime:
    """Counts the seconds that were waited."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wait(self, seconds: float) -> None:
        assert seconds > 0
        self.seconds += seconds

    def pace(self) -> Pace:
        return Pace(now=lambda: self.seconds, wait=self.wait)


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages ask the process who it is."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture
def toy_grid() -> type[ToyGrid]:
    return ToyGrid


@pytest.fixture
def learner() -> type[Learner]:
    return Learner


@pytest.fixture
def clock() -> FakeTime:
    return FakeTime()


@pytest.fixture
def initial() -> Weights:
    rng = np.random.default_rng(3)
    return {
        "w": rng.normal(size=(17, 3)).astype(np.float32),
        "b": rng.normal(size=5).astype(np.float32),
        "steps": np.arange(0, 350, 7),
        "count": np.array(2, np.int64),
    }


@pytest.fixture
def plans() -> Callable[[int], RoundPlan]:
    def plan(number: int) -> RoundPlan:
        return RoundPlan(run="toy", round=number, rounds=4, seed=11, model="toy", labels=2)

    return plan
