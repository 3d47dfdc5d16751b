"""Memory of the ServerApp while it closes a round, by number of sites and of parameters.

Each measurement is one process that runs one round over sites that are files: a reply is inflated from its objects as
Flower's grid does it after the download, one after the other. What is reported is the peak of the resident memory
above that of the process before it made the first model, divided by the size of one model (float32). *all at once* is
the same with Flower's strategy on a list of all replies, as Flower's own loop does it.

    OMP_NUM_THREADS=1 python benchmarks/rounds.py
    OMP_NUM_THREADS=1 python benchmarks/rounds.py --parameters 1e6 1e7 1e8 --sites 2 8 32 --strategies fedavg fedadam
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from wardround.server.grids import ParcelGrid
from wardround.server.journal import Journal
from wardround.server.rounds import LoopSettings, run_rounds
from wardround.strategies.catalogue import make_strategy
from wardround.strategies.combine import combine
from wardround.strategies.contract import ARRAYS, METRICS, Weights, weights_to_record
from wardround.strategies.parcel import wrap
from wardround.strategies.plan import RoundPlan

LAYERS = 20


def model(parameters: int, seed: int) -> Weights:
    """Random weights in equal layers, and a counter as batch normalisation has it."""
    rng = np.random.default_rng(seed)
    weights: Weights = {
        f"layer.{number}.weight": rng.standard_normal(parameters // LAYERS, dtype=np.float32)
        for number in range(LAYERS)
    }
    weights["batches"] = np.array(seed, np.int64)
    return weights


class FileGrid(Grid):
    """Sites whose replies lie on the disk as the objects that Flower's server would hand out."""

    def __init__(self, folder: Path, sites: int) -> None:
        self._folder, self._sites = folder, sites
        self._sent: dict[str, Message] = {}

    def get_node_ids(self) -> list[int]:
        return list(range(1, self._sites + 1))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        identities = []
        for message in messages:
            identity = f"message-{len(self._sent)}"
            message.metadata.__dict__["_message_id"] = identity
            kept = Message(RecordDict(), message.metadata.dst_node_id, message.metadata.message_type)
            kept.metadata.__dict__.update(message.metadata.__dict__)
            self._sent[identity] = kept
            identities.append(identity)
        return identities

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._answer(self._sent[identity]) for identity in message_ids]

    def _answer(self, asked: Message) -> Message:
        if asked.metadata.message_type == "evaluate":
            return Message(RecordDict({METRICS: MetricRecord({"num-examples": 1.0, "dice": 0.5})}), reply_to=asked)
        reply = read_reply(self._folder, asked.metadata.dst_node_id)
        return Message(reply.content, reply_to=asked)

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *arguments: Any, **keywords: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        raise NotImplementedError


def write_reply(folder: Path, node: int, weights: Weights) -> None:
    """Leave a reply on the disk as its objects."""
    content = RecordDict({ARRAYS: weights_to_record(weights), METRICS: MetricRecord({"num-examples": float(node)})})
    message = Message(wrap(content), node, "train")
    (folder / str(node)).mkdir(parents=True)
    for name, part in get_all_nested_objects(message).items():
        (folder / str(node) / name).write_bytes(part.deflate())
    (folder / f"{node}.name").write_text(message.object_id)


def read_reply(folder: Path, node: int) -> Message:
    """Inflate a reply from its objects."""
    objects = {path.name: path.read_bytes() for path in (folder / str(node)).iterdir()}
    reply = inflate_object_from_contents((folder / f"{node}.name").read_text(), objects)
    assert isinstance(reply, Message)
    return reply


class Peak:
    """The largest resident memory of this process while the block runs."""

    def __enter__(self) -> "Peak":
        self._process = psutil.Process()
        self.bytes = self._process.memory_info().rss
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self.bytes = max(self.bytes, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def measure(folder: Path, sites: int, parameters: int, strategy: str, all_at_once: bool) -> dict[str, float]:
    """One round in this process."""
    start = model(parameters, 0)
    size = sum(array.nbytes for array in start.values())
    before = psutil.Process().memory_info().rss - size
    del start  # Whoever runs a round keeps no weights of its own.
    began = time.monotonic()
    with Peak() as peak:
        if all_at_once:
            flowers, start = make_strategy(strategy), model(parameters, 0)
            grid = ParcelGrid(FileGrid(folder, sites))
            plan = RoundPlan(run="memory", round=1, rounds=1, seed=0, model="none", labels=2)
            messages = list(flowers.configure_train(1, weights_to_record(start), plan.to_record(), grid))
            replies = [next(iter(grid.pull_messages([identity]))) for identity in grid.push_messages(messages)]
            combine(flowers, 1, replies, start)
        else:
            with tempfile.TemporaryDirectory(dir=folder) as output, Journal(Path(output)) as journal:
                run_rounds(
                    ParcelGrid(FileGrid(folder, sites)),
                    make_strategy(strategy),
                    lambda number: RoundPlan(run="memory", round=number, rounds=1, seed=0, model="none", labels=2),
                    model(parameters, 0),
                    journal,
                    LoopSettings(rounds=1, quorum=sites),
                )
    return {"models": (peak.bytes - before) / size, "mb": peak.bytes / 2**20, "seconds": time.monotonic() - began}


def main() -> int:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--parameters", type=float, nargs="+", default=[1e6, 1e7])
    parser.add_argument("--strategies", nargs="+", default=["fedavg", "fedadam", "fedmedian", "krum"])
    parser.add_argument("--folder", type=Path, help="where replies lie meanwhile; a real disk, not memory")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in ("_task_id", "_run_id", "_node_id"):
        setattr(TaskIdentity, name, 1)
    if options.one:
        strategy, sites, parameters, at_once = options.one
        print(json.dumps(measure(options.folder, int(sites), int(parameters), strategy, at_once == "all")))
        return 0
    print("| parameters | model MB | strategy | sites | peak, models | peak, MB | seconds | all at once, models |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for parameters in map(int, options.parameters):
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            folder = Path(name)
            for node in range(1, max(options.sites) + 1):
                write_reply(folder, node, model(parameters, node))
            for strategy in options.strategies:
                for sites in options.sites:
                    ours = one(folder, strategy, sites, parameters, "one")
                    flowers = one(folder, strategy, sites, parameters, "all")
                    print(
                        f"| {parameters:.0e} | {parameters * 4 / 2**20:.0f} | {strategy} | {sites} "
                        f"| {ours['models']:.1f} | {ours['mb']:.0f} | {ours['seconds']:.1f} "
                        f"| {flowers['models']:.1f} |",
                        flush=True,
                    )
    return 0


def one(folder: Path, strategy: str, sites: int, parameters: int, mode: str) -> dict[str, float]:
    """A measurement in a process of its own."""
    command = [sys.executable, __file__, "--folder", str(folder), "--one", strategy, str(sites), str(parameters), mode]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise RuntimeError(answer.stderr)
    result: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    raise SystemExit(main())
