"""What the federation itself costs: our in-process grid beside Flower's own simulation, in one run.

Twenty-five rounds of federated averaging over two sites. The model has about a million parameters and each site takes
one SGD step a round, so that next to nothing of the time is training. Both engines run the same ClientApp, each in a
process of its own, one after the other.

* **ours**: ``wardround.deploy.grid.InProcessGrid`` and ``wardround.server.rounds.run_rounds`` with everything that a
  simulation does: every reply is checked, every round is written to a journal on disk, the last model is evaluated.
* **Flower**: ``flwr.simulation.run_simulation`` with the Ray backend and Flower's own ``FedAvg.start``, without
  evaluation. It is called from Python, which spares it the start of the local SuperLink that ``flwr run`` adds.

Memory is the highest sum over the whole process tree while it runs: *RSS* counts a page that processes share once for
each of them, *PSS* once in all (Linux only).

Run::

    OMP_NUM_THREADS=1 python benchmarks/engine.py [--repeat 3] [--rounds 25] [--json engine.json]
"""

import argparse
import contextlib
import itertools
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

SITES = 2
WIDTHS = (512, 1024, 512, 10)
"""Layers of the model: 1 055 242 parameters."""
SEED = 0


@dataclass(frozen=True)
class Cost:
    """What one run of one engine took.

    Parameters
    ----------
    seconds
        Wall time from the end of the imports to the end of the last round.
    seconds_with_imports
        Wall time from the start of the process to its end.
    cpu_seconds
        User and system time of the process tree, imports included; as last seen of each process, so a little less than
        it was.
    rss_mb, pss_mb
        Peaks over the process tree, in 10**6 bytes; `pss_mb` is 0 where the system does not tell.
    processes
        The most processes at one time.
    """

    seconds: float
    seconds_with_imports: float
    cpu_seconds: float
    rss_mb: float
    pss_mb: float
    processes: int


def private_environment(folder: Path) -> dict[str, str]:
    """An environment in which Flower and Ray write to `folder` and call nobody."""
    return os.environ | {
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }


def client_app():
    """A ClientApp that takes one SGD step and answers with the weights; the same one for both engines."""
    import numpy as np
    import torch
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()

    # Plain tensors and a step by hand: modules on the meta device and torch.optim import torch's compiler on first use,
    # which takes longer than all that is measured here.
    def loss_of(weights: dict[str, torch.Tensor], node: int) -> torch.Tensor:
        rng = np.random.default_rng([SEED, node % 2**32])
        values = torch.from_numpy(rng.standard_normal((8, WIDTHS[0]), dtype=np.float32))
        for layer in range(len(WIDTHS) - 1):
            values = values.relu() if layer else values
            values = torch.nn.functional.linear(values, weights[f"{layer}.weight"], weights[f"{layer}.bias"])
        targets = torch.from_numpy(rng.integers(WIDTHS[-1], size=8))
        return torch.nn.functional.cross_entropy(values, targets)

    @app.train()
    def train(message: Message, context) -> Message:
        torch.set_num_threads(1)
        weights = {n: w.requires_grad_() for n, w in message.content["arrays"].to_torch_state_dict().items()}
        loss = loss_of(weights, context.node_id)
        slopes = torch.autograd.grad(loss, list(weights.values()))
        with torch.no_grad():
            stepped = {n: w - 0.1 * slope for (n, w), slope in zip(weights.items(), slopes, strict=True)}
        metrics = MetricRecord({"num-examples": 8, "loss": float(loss)})
        return Message(RecordDict({"arrays": ArrayRecord(OrderedDict(stepped)), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context) -> Message:
        weights = message.content["arrays"].to_torch_state_dict()
        metrics = MetricRecord({"num-examples": 8, "loss": float(loss_of(weights, context.node_id))})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def initial_weights() -> dict[str, "np.ndarray"]:  # noqa: F821  (numpy is imported by the measured process only)
    """Weights by name, float32, drawn from :data:`SEED`."""
    import numpy as np

    rng = np.random.default_rng(SEED)
    weights = {}
    for index, (inputs, outputs) in enumerate(itertools.pairwise(WIDTHS)):
        weights[f"{index}.weight"] = (rng.standard_normal((outputs, inputs)) / inputs**0.5).astype(np.float32)
        weights[f"{index}.bias"] = np.zeros(outputs, np.float32)
    return weights


def run_ours(rounds: int, folder: Path) -> float:
    """Run our engine and return the seconds after imports."""
    from wardround.deploy.grid import InProcessGrid
    from wardround.server.journal import Journal
    from wardround.server.rounds import LoopSettings, run_rounds
    from wardround.strategies.catalogue import make_strategy
    from wardround.strategies.plan import RoundPlan

    app, weights = client_app(), initial_weights()
    start = time.perf_counter()
    grid = InProcessGrid(app, [f"site-{index}" for index in range(SITES)])

    def plan(number: int) -> RoundPlan:
        return RoundPlan(run="engine", round=number, rounds=rounds, seed=SEED, model="mlp", labels=WIDTHS[-1])

    result = run_rounds(
        grid,
        make_strategy("fedavg"),
        plan,
        weights,
        Journal(folder / "journal"),
        LoopSettings(rounds=rounds, quorum=SITES, deadline_s=600),
    )
    seconds = time.perf_counter() - start
    check(weights, result.weights, len(result.rounds), rounds)
    return seconds


def run_flower(rounds: int, folder: Path) -> float:
    """Run Flower's simulation engine and return the seconds after imports."""
    import flwr.simulation
    import ray  # noqa: F401  (so that its import is not counted)
    from flwr.app import Array, ArrayRecord
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg

    app, weights = client_app(), initial_weights()
    server, results = ServerApp(), []

    @server.main()
    def main(grid, context) -> None:
        arrays = ArrayRecord({name: Array(array) for name, array in weights.items()})
        results.append(FedAvg(fraction_evaluate=0.0).start(grid, arrays, num_rounds=rounds))

    start = time.perf_counter()
    flwr.simulation.run_simulation(
        server,
        app,
        SITES,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": SITES, "_temp_dir": str(folder / "ray"), "include_dashboard": False},
        },
    )
    seconds = time.perf_counter() - start
    (result,) = results
    final = {name: array.numpy() for name, array in result.arrays.items()}
    check(weights, final, len(result.train_metrics_clientapp), rounds)
    return seconds


def check(before: dict, after: dict, done: int, rounds: int) -> None:
    """Refuse to print a figure for a run that did not do the work."""
    import numpy as np

    assert done == rounds, f"{done} of {rounds} rounds"
    assert before.keys() == after.keys()
    assert all(np.isfinite(array).all() for array in after.values())
    assert all(not np.array_equal(before[name], after[name]) for name in before)


ENGINES = {"ours": run_ours, "flower": run_flower}


def measure(engine: str, rounds: int) -> Cost:
    """Run one engine in a process of its own and watch its process tree."""
    with tempfile.TemporaryDirectory(prefix="wr-") as name:
        folder = Path(name)
        command = [sys.executable, __file__, "--child", engine, "--rounds", str(rounds), "--folder", name]
        start = time.perf_counter()
        with (folder / "log").open("w") as log:
            child = subprocess.Popen(command, stdout=log, stderr=log, env=private_environment(folder))
        seen: dict[int, psutil.Process] = {}
        cpu: dict[int, float] = {}
        rss = pss = processes = ticks = 0
        try:
            while child.poll() is None:
                tree = list(living(child.pid, seen))
                rss = max(rss, sum(memory(process, "rss") for process in tree))
                processes = max(processes, len(tree))
                cpu |= {process.pid: used for process in tree if (used := cpu_time(process))}
                if ticks % 5 == 0:  # Reading PSS walks all mappings, which is slow: not at every tick.
                    pss = max(pss, sum(memory(process, "pss") for process in tree))
                ticks += 1
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(0.05)
            elapsed = time.perf_counter() - start
        finally:
            end(seen)
        if child.returncode != 0:
            sys.exit(f"{engine} failed:\n{(folder / 'log').read_text()[-4000:]}")
        seconds = json.loads((folder / "seconds.json").read_text())
    return Cost(seconds, elapsed, sum(cpu.values()), rss / 1e6, pss / 1e6, processes)


def living(root: int, seen: dict[int, psutil.Process]) -> Iterator[psutil.Process]:
    """The tree under `root`, and processes that were once in it and have lost their parent since."""
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(root)
        for process in (top, *top.children(recursive=True)):
            seen.setdefault(process.pid, process)
    yield from (process for process in seen.values() if process.is_running())


def memory(process: psutil.Process, kind: str) -> int:
    """Bytes that a process holds; 0 if it has gone or the system does not tell."""
    try:
        info = process.memory_full_info() if kind == "pss" else process.memory_info()
    except psutil.Error:
        return 0
    return int(getattr(info, kind, 0))


def cpu_time(process: psutil.Process) -> float:
    """User and system seconds of one process so far; 0 if it has gone."""
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system


def end(seen: dict[int, psutil.Process]) -> None:
    """End what the engine left running; only processes that it started, by their id."""
    left = [process for process in seen.values() if process.is_running()]
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    for process in psutil.wait_procs(left, timeout=5)[1]:
        with contextlib.suppress(psutil.Error):
            process.kill()


def main() -> None:
    """Measure both engines and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--repeat", type=int, default=1, help="runs of each engine; the table shows medians")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--json", type=Path, help="write every run here as well")
    parser.add_argument("--child", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        seconds = ENGINES[options.child](options.rounds, options.folder)
        (options.folder / "seconds.json").write_text(json.dumps(seconds))
        return

    # Ended from outside, it must still end what it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    runs = {engine: [measure(engine, options.rounds) for _ in range(options.repeat)] for engine in options.engines}
    medians = {
        engine: {name: statistics.median(asdict(cost)[name] for cost in costs) for name in asdict(costs[0])}
        for engine, costs in runs.items()
    }
    parameters = sum(inputs * outputs + outputs for inputs, outputs in itertools.pairwise(WIDTHS))
    print(
        f"{options.rounds} rounds, {SITES} sites, {parameters:,} parameters, one SGD step a round; seed {SEED}, "
        f"median of {options.repeat}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"Python {platform.python_version()}"
    )
    columns = {
        "seconds": ("after imports", "{:.2f} s"),
        "seconds_with_imports": ("with imports", "{:.2f} s"),
        "cpu_seconds": ("CPU", "{:.2f} s"),
        "rss_mb": ("peak RSS", "{:.0f} MB"),
        "pss_mb": ("peak PSS", "{:.0f} MB"),
        "processes": ("processes", "{:.0f}"),
    }
    print(f"{'':8}" + "".join(f"{title:>15}" for title, _ in columns.values()))
    for engine, cost in medians.items():
        print(f"{engine:8}" + "".join(f"{form.format(cost[name]):>15}" for name, (_, form) in columns.items()))
    if len(medians) == len(ENGINES):
        ratios = (medians["flower"][name] / max(medians["ours"][name], 1e-9) for name in columns)
        print(f"{'ratio':8}" + "".join(f"{ratio:>14.1f}×" for ratio in ratios))
    if options.json:
        text = {engine: [asdict(cost) for cost in costs] for engine, costs in runs.items()}
        options.json.write_text(json.dumps(text, indent=1))


if __name__ == "__main__":
    main()
