"""What secure aggregation costs: bytes and seconds beside a plain round, and beside Flower's own SecAgg+.

One round with sites whose learning takes no time, coordinator and sites one after the other in this process, without a
network. Seconds are those of the processor, of everybody together; bytes are those of what is sent and answered, for
one site. Flower's is `SecAggPlusWorkflow` with `secaggplus_mod`, which work with its former interface only; its
settings are its defaults, all sites as neighbours and the same threshold. The difference is to the mean in the open::

    python benchmarks/secure.py --sites 3,10,50 --weights 100000,1400000

``--drop`` lets one site in five drop out after it has given shares.
"""

import argparse
import logging
import random
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.client import Client, NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.compat.common.recorddict_compat import parameters_to_arrayrecord
from flwr.server import History, LegacyContext, SimpleClientManager
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key

from wardround.client import door
from wardround.client.app import app
from wardround.deploy.grid import InProcessGrid
from wardround.server.desk import payload
from wardround.server.journal import Journal
from wardround.server.rounds import LoopSettings, run_rounds
from wardround.strategies.catalogue import make_strategy
from wardround.strategies.contract import Update, Weights
from wardround.strategies.plan import RoundPlan
from wardround.strategies.weighting import BY_EXAMPLES

THRESHOLD = 2 / 3
EXAMPLES = 20


def updates(sites: int, weights: int) -> dict[str, np.ndarray]:
    """Of each site its weights after the round; before it they are zeros."""
    return {
        f"site-{number:02d}": np.random.default_rng(number).normal(scale=0.05, size=weights).astype(np.float32)
        for number in range(sites)
    }


class Player:
    """A site that has learnt already."""

    def __init__(self, learnt: np.ndarray, examples: int) -> None:
        self._learnt, self._examples = learnt, examples

    def train(self, plan: RoundPlan, weights: Weights) -> Update:
        """What it learnt."""
        return Update({"w": self._learnt}, {"num-examples": float(self._examples)})

    def evaluate(self, plan: RoundPlan, weights: Weights) -> dict[str, float | list[float]]:
        """Nothing."""
        return {"num-examples": 1.0, "dice": 0.5}

    def status(self) -> dict[str, float]:
        """Nothing."""
        return {}


class CountingGrid(InProcessGrid):
    """Counts what is sent and answered while sites train, and lets some drop out."""

    def __init__(self, names: Iterable[str], dropped: frozenset[str] = frozenset()) -> None:
        super().__init__(app, names)
        self.bytes = 0
        self._dropped = dropped

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Count."""
        for identity in message_ids:
            message = self._waiting.get(identity)
            if message is None or message.metadata.message_type == "evaluate":
                continue
            is_dropped = self.site_name(message.metadata.dst_node_id) in self._dropped
            if is_dropped and message.metadata.message_type == "train.masked":
                del self._waiting[identity]
                return [Message(Error(100, "stopped"), reply_to=message)]
            self.bytes += payload(message.content)
        replies = super().pull_messages(message_ids)
        for reply in replies:
            if reply.metadata.message_type != "evaluate" and reply.has_content():
                self.bytes += payload(reply.content)
        return replies


def ours(learnt: dict[str, np.ndarray], secure: bool, dropped: frozenset[str]) -> tuple[float, float, np.ndarray]:
    """Bytes a site, seconds and mean of one round of ours."""
    for name, array in learnt.items():
        door.attach(name, Player(array, EXAMPLES))
    names = [name for name in learnt if secure or name not in dropped]
    grid = CountingGrid(names, dropped)
    plan = RoundPlan(
        run="cost", round=1, rounds=1, seed=0, model="none", labels=2, secure=secure, secure_threshold=THRESHOLD
    )
    given = {"w": np.zeros_like(next(iter(learnt.values())))}
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder)) as journal:
        began = time.process_time()
        result = run_rounds(
            grid,
            make_strategy("fedavg"),
            lambda number: plan,
            given,
            journal,
            LoopSettings(rounds=1),
            site_name=grid.site_name,
            weighting=BY_EXAMPLES,
        )
        seconds = time.process_time() - began
    door.detach_all()
    return grid.bytes / len(names), seconds, result.weights["w"]


class _Client(NumPyClient):
    def __init__(self, learnt: np.ndarray) -> None:
        self._learnt = learnt

    def fit(self, parameters: Any, config: Any) -> tuple[list[np.ndarray], int, dict[str, Any]]:
        return [self._learnt], EXAMPLES, {}


def _client_fn(learnt: np.ndarray) -> Callable[[Context], Client]:
    def client_fn(context: Context) -> Client:
        return _Client(learnt).to_client()

    return client_fn


class LegacyGrid(InProcessGrid):
    """A grid for Flower's former interface."""

    def __init__(self, learnt: dict[str, np.ndarray], dropped: frozenset[str]) -> None:
        super().__init__(app, learnt)
        self.bytes = 0
        self._learnt, self._dropped = learnt, dropped

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Answer by a client behind Flower's mod, and count."""
        replies = []
        for message in messages:
            name = self.site_name(message.metadata.dst_node_id)
            self.bytes += payload(message.content)
            if name in self._dropped and _stage(message.content) == "collect_masked_vectors":
                replies.append(Message(Error(5, "gone"), reply_to=message))
                continue
            client = ClientApp(_client_fn(self._learnt[name]), mods=[secaggplus_mod])
            copy = RecordDict({key: type(record)(dict(record)) for key, record in message.content.items()})
            reply = client(Message(copy, metadata=message.metadata), self._contexts[message.metadata.dst_node_id])
            if reply.has_content():
                self.bytes += payload(reply.content)
            replies.append(reply)
        return replies


def _stage(content: RecordDict) -> str:
    for record in content.config_records.values():
        if "stage" in record:
            return str(record["stage"])
    return ""


class _Strategy(FedAvg):
    result: list[np.ndarray]

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        self.result = parameters_to_ndarrays(results[0][1].parameters)
        return results[0][1].parameters, {}


def flowers(learnt: dict[str, np.ndarray], dropped: frozenset[str]) -> tuple[float, float, np.ndarray]:
    """Bytes a site, seconds and mean of one round of Flower's SecAgg+."""
    random.seed(0)
    grid = LegacyGrid(learnt, dropped)
    strategy = _Strategy(min_fit_clients=len(learnt), min_available_clients=len(learnt))
    manager = SimpleClientManager()
    for node in grid.get_node_ids():
        manager.register(GridClientProxy(node, grid, 1))
    base = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    context = LegacyContext(base, strategy=strategy, client_manager=manager)
    context.history = History()
    size = len(next(iter(learnt.values())))
    zeros = ndarrays_to_parameters([np.zeros(size, np.float32)])
    context.state.array_records[MAIN_PARAMS_RECORD] = parameters_to_arrayrecord(zeros, True)
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1, Key.START_TIME: 0.0})
    workflow = SecAggPlusWorkflow(1.0, THRESHOLD, max_weight=EXAMPLES)
    began = time.process_time()
    workflow(grid, context)
    return grid.bytes / len(learnt), time.process_time() - began, strategy.result[0]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", default="3,10")
    parser.add_argument("--weights", default="100000")
    parser.add_argument("--drop", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.ERROR)
    print("| sites | weights | round | bytes a site, of the plain round | CPU seconds | off by |")
    print("| --- | --- | --- | --- | --- | --- |")
    for sites in map(int, options.sites.split(",")):
        for weights in map(int, options.weights.split(",")):
            learnt = updates(sites, weights)
            dropped = frozenset(list(learnt)[::5]) if options.drop else frozenset()
            mean = np.mean([array.astype(np.float64) for name, array in learnt.items() if name not in dropped], axis=0)
            plain = ours(learnt, False, dropped)
            rounds = {"plain": plain, "secure": ours(learnt, True, dropped), "SecAgg+": flowers(learnt, dropped)}
            for name, (size, seconds, found) in rounds.items():
                off = np.abs(found.astype(np.float64) - mean).max()
                cost = f"{size:.0f} ({size / plain[0]:.2f}) | {seconds:.2f}"
                print(f"| {sites} | {weights} | {name} | {cost} | {off:.1e} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
