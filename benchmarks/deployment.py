"""What a federation of real processes costs, beside plain Flower's own on the same machine, in one run.

* **Wardround**: `wardround coordinator serve` and two `wardround site serve`, made by the commands of the manuals: TLS,
  keys, gate, ledger, journal, database on disk. A round takes one small phantom, one drawn slice and one optimiser
  step, so that the machinery is what is measured; not none, since weights that do not change are not sent twice.
* **Flower**: `flower-superlink`, two `flower-supernode` and `flwr run`, as its quickstart has them: FedAvg, TLS, no
  keys for sites, state in memory. Its app needs numpy alone, is given the same weights and sends them back a little
  smaller. ``--stock-database`` gives it the database on disk that a coordinator needs which is to survive a restart.

Both train in every round. Wardround also scores the last model, which is no part of a round's time here. A round's time
is that between two closed rounds; the first one, which ends a start, is left out. *Learning* is what a site charges to
predicting, annotating, propagating and updating, of the slower site; *overhead* is the rest.

Bytes are those of Flower's own account of a run at its Fleet API, by site. With ``--wire`` the sites of one more run go
through relays that count what is on the line, TLS, HTTP, polls and heartbeats included; its times are not shown.

Memory is the highest resident set of any process of a kind, by the kernel's own mark (Linux only), in 10**6 bytes.

No network of the catalogue has 1, 10 or 100 million parameters. Three U-Nets of its own kind, only wider, are entered
into the catalogue of every measured process by a `sitecustomize` module in its environment, and sites allow them in
their policies. Nothing else is changed.

    OMP_NUM_THREADS=1 python benchmarks/deployment.py [--parameters 1e6 1e7] [--rounds 6] [--repeat 1] [--wire]
    OMP_NUM_THREADS=1 python benchmarks/deployment.py --parameters 1e8 --rounds 3        # 10 GB of memory, minutes
"""

import argparse
import contextlib
import importlib.metadata
import itertools
import json
import os
import platform
import re
import select
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import numpy as np
import psutil
from deployment import eventually, free_ports, is_up, make_coordinator
from engine import end
from federation import Federation, Reference, Where, local_options

from wardround.client.cases.phantoms import write_phantom_dataset
from wardround.deploy.coordinator.control import Control
from wardround.flower import environment
from wardround.strategies.contract import Weights

SITES = 2
LABELS = 3
SHAPE = (16, 16, 16)
SEED = 0
WIDTHS = {1e6: 21, 1e7: 66, 1e8: 207}
"""Feature channels of the finest level, by parameters about; every next level has twice as many."""
PLAN: Mapping[str, Any] = {
    "updates_per_case": 1,
    "rehearsal": 0.0,
    "annotation_rounds": 1,
    "slices_per_case": 1,
    "suggestion": "even",
    "model_vote": 0.0,
    "extent": False,
    "validation_cases": 0,
    "batch_size": 1,
}
PATIENCE_S = 3600.0
KINDS = {
    "SuperLink": r"wardround\.server\.superlink|flower-superlink",
    "ServerApp": r"flwr-serverapp",
    "SuperExec": r"flower-superexec",
    "SuperNode": r"wardround\.client\.supernode|flower-supernode",
    "ClientApp": r"flwr-clientapp",
    "agent": r"site serve",
    "coordinator": r"coordinator serve",
}

CUSTOMIZE = '''
"""Enters wider networks into the catalogue, when it is imported."""
import importlib.util
import sys

WIDTHS = {widths}


class Wider:
    def find_spec(self, name, path=None, target=None):
        if name != "wardround.models.catalogue":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            for width in WIDTHS:
                channels = tuple(width * 2**level for level in range(4))
                module._ARCHITECTURES[f"unet3d-{{width}}"] = module.Architecture(3, channels, 1)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Wider())
'''

PROJECT = """
[project]
name = "plain"
version = "1.0.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "benchmark"
[tool.flwr.app.components]
serverapp = "plain.server:app"
clientapp = "plain.client:app"
[tool.flwr.app.config]
rounds = 1
weights = ""
closed = ""
"""
SERVER = """
import time
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid, context):
    with np.load(context.run_config["weights"]) as stored:
        arrays = ArrayRecord({name: Array(stored[name]) for name in stored.files})

    def close(number, arrays):
        with open(context.run_config["closed"], "a") as closed:
            closed.write(f"{time.time()}\\n")

    result = FedAvg(fraction_evaluate=0.0).start(
        grid, arrays, num_rounds=context.run_config["rounds"], evaluate_fn=close
    )
    answered = [int(one["sites"]) for one in result.train_metrics_clientapp.values()]
    if answered != [1] * context.run_config["rounds"]:
        raise RuntimeError(f"not every round was trained: {answered}")
"""
CLIENT = """
import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    weights = {name: array.numpy() for name, array in message.content["arrays"].items()}
    share = np.float32(1 - 1e-3 * (1 + context.node_id % 7))
    arrays = ArrayRecord({name: Array(array * share) for name, array in weights.items()})
    metrics = MetricRecord({"num-examples": 8, "sites": 1})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
"""


@dataclass
class Cost:
    """What one run of one engine took.

    Parameters
    ----------
    rounds
        Seconds between two closed rounds.
    learning
        Seconds of each of them in which the slower site learnt; empty where nothing is learnt.
    down, up
        Bytes to and from one site, over those that are needed: one model a message.
    memory
        Peak resident bytes of any one process, by kind.
    cpu
        User and system seconds of all processes of a kind, from their start to the end of the run.
    load
        Of the machine at the end, over the last minute.
    """

    rounds: list[float]
    learning: list[float]
    down: float
    up: float
    memory: dict[str, int] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    load: float = 0.0

    @property
    def overhead(self) -> list[float]:
        """Seconds of each round in which nothing was learnt."""
        return [
            whole - learnt for whole, learnt in zip(self.rounds, self.learning or [0.0] * len(self.rounds), strict=True)
        ]


class Phantoms(Reference):
    """What sites of the measured federation hold: as many small phantoms as there are rounds."""

    def __init__(self, folder: Path, rounds: int) -> None:
        super().__init__(folder)
        object.__setattr__(self, "_rounds", rounds)
        write_phantom_dataset(folder / "data", SITES, rounds, 1, SEED, shift_strength=1.0, shape=SHAPE)
        object.__setattr__(self, "_split", json.loads((folder / "data" / "split.json").read_text()))

    _rounds: int
    _split: dict[str, dict[str, list[str]]]

    @property
    def plan(self) -> dict[str, Any]:
        return {**PLAN, "rounds": self._rounds, "labels": LABELS}

    @property
    def sites(self) -> list[str]:
        return sorted(self._split["sites"])

    def cases(self, site: str) -> tuple[list[list[str]], list[str]]:
        return [[case] for case in self._split["sites"][site]], self._split["test"][site]


class Watch:
    """Looks at the memory of all processes under this one, as long as its block lasts."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self._seconds: dict[int, tuple[str, float]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.1):
            for pid in _below(os.getpid()):
                with contextlib.suppress(OSError):
                    words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                    kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, words)), "")
                    marks = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
                    if kind and marks:
                        self.peaks[kind] = max(self.peaks.get(kind, 0), int(marks[1]) * 1024)
                        times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                        self._seconds[pid] = (kind, (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK"))

    @property
    def cpu(self) -> dict[str, float]:
        """Seconds of all processes, by kind."""
        found = dict.fromkeys(KINDS, 0.0)
        for kind, seconds in self._seconds.values():
            found[kind] += seconds
        return found


def _below(root: int) -> list[int]:
    """Processes that `root` started, and those that they did."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError, IndexError):
                parent = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    found: list[int] = []
    left = [root]
    while left:
        mine = children.get(left.pop(), [])
        found += mine
        left += mine
    return found


class Relay:
    """Carries bytes to one port of this machine and back, and counts them.

    Parameters
    ----------
    port
        Where it carries them to.
    """

    def __init__(self, port: int) -> None:
        self.down = self.up = 0
        self._target = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            near, _ = self._server.accept()
            threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._target)) as far:
            while True:
                for ready in select.select([near, far], [], [])[0]:
                    data = ready.recv(1 << 16)
                    if not data:
                        return
                    if ready is near:
                        self.up += len(data)
                        far.sendall(data)
                    else:
                        self.down += len(data)
                        near.sendall(data)


def make_weights(parameters: float) -> Weights:
    """The weights of the network that has about so many parameters."""
    from wardround.models.catalogue import build
    from wardround.models.weights import weights_of

    return weights_of(build(model_name(parameters), LABELS, SEED))


def model_name(parameters: float) -> str:
    """What the network is called in the catalogue of a measured process."""
    return f"unet3d-{WIDTHS[parameters]}"


def run_wardround(folder: Path, parameters: float, rounds: int, *, wire: bool = False) -> Cost:
    """Run our federation."""
    raw = sum(array.nbytes for array in make_weights(parameters).values())
    reference = Phantoms(folder / "reference", rounds)
    federation = Federation(folder / "federation", reference, local_options())
    relays = {name: Relay(federation.home.settings.port) for name in reference.sites} if wire else {}
    for name, site in federation.sites.items():
        _change(site.policy, r'"unet3d-small", "unet3d"', f'"{model_name(parameters)}"')
        if wire:
            _change(site.settings_file, r":\d+\"", f':{relays[name].port}"')
    here = Where(environment={"PYTHONPATH": str(folder.parent / "customize")})
    with Watch() as watch, federation.serving(here, dict.fromkeys(reference.sites, here)):
        federation.run("cost", "--model", model_name(parameters))
        with Control(federation.home) as control:
            (account,) = control.runs()
    records = federation.rounds("cost")
    check(all(len(record.sites) == SITES for record in records) and len(records) == rounds, "a site was missing")
    closed = [
        (federation.home.run_folder("cost") / "rounds" / f"{record.round:05d}" / "round.json").stat().st_mtime
        for record in records
    ]
    learning = [
        max(sum(v for k, v in site.metrics.items() if k.startswith("seconds-")) for site in record.sites.values())
        for record in records
    ]
    # The last model goes out once more, to be scored.
    needed = {"down": raw * (rounds + 1), "up": raw * rounds}
    down, up = account.bytes_sent / SITES, account.bytes_received / SITES
    if wire:
        down, up = (max(getattr(relay, way) for relay in relays.values()) for way in ("down", "up"))
    return Cost(
        _between(closed),
        learning[1:],
        down / needed["down"],
        up / needed["up"],
        watch.peaks,
        watch.cpu,
        os.getloadavg()[0],
    )


def run_flower(folder: Path, parameters: float, rounds: int, *, database: bool = False) -> Cost:
    """Run plain Flower."""
    weights = make_weights(parameters)
    raw = sum(array.nbytes for array in weights.values())
    home = make_coordinator(folder / "certificates")
    stored, closed, app = folder / "weights.npz", folder / "closed", folder / "app"
    np.savez(stored, **weights)
    (app / "plain").mkdir(parents=True)
    for name, text in {"pyproject.toml": PROJECT, "plain/server.py": SERVER, "plain/client.py": CLIENT}.items():
        (app / name).write_text(text)
    (app / "plain" / "__init__.py").touch()
    port = home.settings.runtime_port
    (folder / "operator").mkdir()
    (folder / "operator" / "config.toml").write_text(
        f'[superlink]\ndefault = "lab"\n[superlink.lab]\naddress = "localhost:{port}"\n'
        f'root-certificates = "{home.ca_certificate}"\n'
    )
    authority = ["--root-certificates", str(home.ca_certificate)]
    link = [
        "flower-superlink",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--ssl-ca-certfile",
        str(home.ca_certificate),
    ]
    link += ["--ssl-certfile", str(home.server_certificate), "--ssl-keyfile", str(home.server_key)]
    link += ["--disable-runtime-dependency-installation"]
    link += ["--database", str(folder / "state.db")] if database else []
    with Watch() as watch, contextlib.ExitStack() as stack:
        stack.enter_context(serving(link, folder / "superlink"))
        eventually(lambda: is_up(home), "a SuperLink", PATIENCE_S)
        for number, node_port in enumerate(free_ports(SITES)):
            node = ["flower-supernode", "--superlink", f"localhost:{port}", *authority, "--port", str(node_port)]
            stack.enter_context(serving(node, folder / f"supernode-{number}"))
        settings = f'rounds={rounds} weights="{stored}" closed="{closed}"'
        started = flwr(folder, "run", str(app), "lab", "-c", settings)
        run = str(started["run-id"])

        def over() -> Mapping[str, Any] | None:
            (found,) = flwr(folder, "ls", "lab", "--run-id", run)["runs"]
            return found if str(found["status"]).startswith("finished") else None

        found = eventually(over, "the end of the run", PATIENCE_S)
        assert found is not None
        if found["status"] != "finished:completed":
            raise RuntimeError(f"{found}\n{(folder / 'superlink.log').read_text()[-4000:]}")
    traffic = found["network-traffic"]
    times = [float(line) for line in closed.read_text().split()]
    check(len(times) == rounds + 1, "a round is missing")
    needed = raw * rounds * SITES
    return Cost(
        _between(times[1:]),
        [],
        int(traffic["outbound-bytes"]) / needed,
        int(traffic["inbound-bytes"]) / needed,
        watch.peaks,
        watch.cpu,
        os.getloadavg()[0],
    )


@contextlib.contextmanager
def serving(command: Sequence[str], home: Path) -> Iterator[None]:
    """A process of plain Flower, as long as the block lasts; it is ended as its user would."""
    with home.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment(home), start_new_session=True)
    try:
        yield
        check(process.poll() is None, f"{command[0]} ended")
    finally:
        below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        end({one.pid: one for one in below})


def flwr(folder: Path, *arguments: str) -> dict[str, Any]:
    """A command of plain Flower's operator."""
    command = ["flwr", *arguments, "--format", "json"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(folder / "operator"))
    found: dict[str, Any] = json.loads(answer.stdout[answer.stdout.index("{") :])
    check(bool(found.get("success")), answer.stdout + answer.stderr)
    return found


def _between(moments: Sequence[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(moments)]


def _change(path: Path, old: str, new: str) -> None:
    text, count = re.subn(old, new, path.read_text(), count=1)
    check(count == 1, f"{path} has no {old}")
    path.write_text(text)


def check(holds: bool, problem: str) -> None:
    """Refuse to print a figure for a run that did not do the work."""
    if not holds:
        raise RuntimeError(problem)


def measure(run: Callable[..., Cost], parameters: float, rounds: int, **options: bool) -> Cost:
    """One run in a folder of its own; what it says goes to standard error."""
    with tempfile.TemporaryDirectory(prefix="wardround-") as name, contextlib.redirect_stdout(sys.stderr):
        folder = Path(name)
        (folder / "customize").mkdir()
        (folder / "customize" / "sitecustomize.py").write_text(CUSTOMIZE.format(widths=tuple(WIDTHS.values())))
        (folder / "run").mkdir()
        return run(folder / "run", parameters, rounds, **options)


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parameters", type=float, nargs="+", choices=list(WIDTHS), default=[1e6, 1e7])
    parser.add_argument("--rounds", type=int, default=6, help="two at least; the first one is not timed")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each engine, in turn; the table shows medians")
    parser.add_argument("--wire", action="store_true", help="count bytes on the line as well, in a run of its own")
    parser.add_argument("--stock-database", action="store_true", help="plain Flower keeps its state on disk, too")
    parser.add_argument("--json", type=Path, help="write every run here as well")
    options = parser.parse_args()
    # Ended from outside, it must still end what it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Here, too: the widths must be known to whoever draws the first weights.
    exec(CUSTOMIZE.format(widths=tuple(WIDTHS.values())), {})
    runs: dict[float, dict[str, list[Cost]]] = {}
    wires: dict[float, Cost] = {}
    for parameters in options.parameters:
        found = runs[parameters] = {"Wardround": [], "Flower": []}
        for _ in range(options.repeat):
            found["Wardround"].append(measure(run_wardround, parameters, options.rounds))
            found["Flower"].append(measure(run_flower, parameters, options.rounds, database=options.stock_database))
        if options.wire:
            wires[parameters] = measure(run_wardround, parameters, options.rounds, wire=True)
    if options.json:
        text = {
            f"{parameters:g}": {
                **{engine: [asdict(cost) for cost in costs] for engine, costs in found.items()},
                **({"wire": asdict(wires[parameters])} if parameters in wires else {}),
            }
            for parameters, found in runs.items()
        }
        options.json.write_text(json.dumps(text, indent=1))
    loads = [cost.load for found in runs.values() for costs in found.values() for cost in costs]
    state = "on disk" if options.stock_database else "in memory"
    print(
        f"{SITES} sites, {options.rounds} rounds, medians over {options.repeat} runs; {os.cpu_count()} cores, "
        f"load {min(loads):.1f} to {max(loads):.1f}; Python {platform.python_version()}, "
        f"Flower {importlib.metadata.version('flwr')} with its state {state}\n"
    )
    print_rounds(runs)
    print_bytes(runs, wires)
    print_memory(runs)
    print_cpu(runs)


def print_rounds(runs: Mapping[float, Mapping[str, Sequence[Cost]]]) -> None:
    """Seconds of a round."""
    print("| parameters | Wardround, s | of it learning, s | overhead, s | plain Flower, s | whole | overhead |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for parameters, found in runs.items():
        ours, theirs = found["Wardround"], found["Flower"]
        whole = _median(cost.rounds for cost in ours)
        plain, over = _median(cost.rounds for cost in theirs), _median(cost.overhead for cost in ours)
        print(
            f"| {parameters:.0e} | {whole:.2f} | {_median(cost.learning for cost in ours):.2f} | {over:.2f} "
            f"| {plain:.2f} | {whole / plain:.2f} × | {over / plain:.2f} × |"
        )


def print_bytes(runs: Mapping[float, Mapping[str, Sequence[Cost]]], wires: Mapping[float, Cost]) -> None:
    """Bytes by site and message, over the raw weights."""
    print("\n| parameters | Wardround, to a site | from a site | on the line, to | from | plain Flower, to | from |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for parameters, found in runs.items():
        (ours, *_), (theirs, *_) = found["Wardround"], found["Flower"]
        wire = wires.get(parameters)
        line = f"{wire.down:.4f} | {wire.up:.4f}" if wire else "- | -"
        print(f"| {parameters:.0e} | {ours.down:.4f} | {ours.up:.4f} | {line} | {theirs.down:.4f} | {theirs.up:.4f} |")


def print_memory(runs: Mapping[float, Mapping[str, Sequence[Cost]]]) -> None:
    """Peak memory by process."""
    print(f"\n| parameters | engine | {' | '.join(f'{kind}, MB' for kind in KINDS)} |")
    print(f"| --- | --- |{' --- |' * len(KINDS)}")
    for parameters, found in runs.items():
        for engine, costs in found.items():
            peaks = {kind: max(cost.memory.get(kind, 0) for cost in costs) for kind in KINDS}
            cells = (f"{peak / 1e6:.0f}" if peak else "-" for peak in peaks.values())
            print(f"| {parameters:.0e} | {engine} | {' | '.join(cells)} |")


def print_cpu(runs: Mapping[float, Mapping[str, Sequence[Cost]]]) -> None:
    """CPU time by process, which tells more than the clock where a machine has other work as well."""
    print(f"\n| parameters | engine | {' | '.join(f'{kind}, CPU s' for kind in KINDS)} | all |")
    print(f"| --- | --- |{' --- |' * len(KINDS)} --- |")
    for parameters, found in runs.items():
        for engine, costs in found.items():
            spent = [statistics.median(cost.cpu.get(kind, 0.0) for cost in costs) for kind in KINDS]
            print(f"| {parameters:.0e} | {engine} | {' | '.join(f'{one:.1f}' for one in spent)} | {sum(spent):.1f} |")


def _median(groups: Iterable[Sequence[float]]) -> float:
    return statistics.median(value for group in groups for value in group)


if __name__ == "__main__":
    main()
