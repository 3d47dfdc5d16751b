"""What a codec saves, costs and loses: bytes both ways, Dice, time and memory of a federation of phantoms.

Every codec runs the same federation under the same seeds, and differs from ``none`` in how weights travel alone. Bytes
are those of the journal, plan and scalars included, of training and not of the scoring at the end. Time is CPU time of
this process: what reading and writing arrays takes at sites and coordinator, beside all that the run takes. In a live
federation a gate reads what comes and what leaves once more, and writes the latter again, to compare; *with a gate*
counts that as well, measured on one update. Dice is of the last global weights, as the sites were given them, on the
test cases of all sites; its loss is paired by seed.

    OMP_NUM_THREADS=1 python benchmarks/codecs.py --out runs/codecs
    OMP_NUM_THREADS=1 python benchmarks/codecs.py --out runs/small --cases 4 --tests 3 --rounds 3 --updates 12
    OMP_NUM_THREADS=1 python benchmarks/codecs.py --coding

An interrupted table goes on with the same command. ``--plan FIELD=VALUE`` sets any field of the plan in all runs.
``--coding`` codes the weights of two networks and a change of them, and takes seconds.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from runner import fields_of, result_of, run_all, write_result

Result = TypeVar("Result")

CODECS = ("none", "lossless", "fp16", "bf16", "int8", "topk")
BYTES, DICE, TIME = 0.30, 0.005, 0.05
"""Goals: share of the bytes without a codec, loss of Dice, and share of the time of a run."""


class Meter:
    """CPU seconds within functions that it wraps, those within one another counted once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def wrapped(self, function: Callable[..., Result]) -> Callable[..., Result]:
        """The same function, measured."""

        def call(*arguments: Any, **named: Any) -> Result:
            started = time.process_time()
            self._depth += 1
            try:
                return function(*arguments, **named)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.process_time() - started

        return call


def run_one(codec: str, seed: int, options: argparse.Namespace) -> None:
    """One federation; its result lies in the folder of all."""
    from wardround.deploy.preparation import EXPERIMENT, claim, prepare
    from wardround.deploy.presets import CODEC
    from wardround.deploy.settings import settings_from
    from wardround.deploy.simulation import peak_memory_mb, run_arm
    from wardround.server.journal import read_rounds
    from wardround.strategies.codecs import formats

    plan = {"model": options.model, "updates_per_case": options.updates, **fields_of(options.plan), **CODEC[codec]}
    phantoms = {"sites": options.sites, "cases": options.cases, "tests": options.tests, "shape": options.shape}
    settings = settings_from(
        {"phantoms": phantoms, "rounds": options.rounds, "seeds": (seed,), "plan": plan, "device": options.device}
    )
    folder = options.out / f"{codec}-{seed}"
    if not (folder / EXPERIMENT).exists():
        claim(folder, settings, "benchmarks/codecs.py")
    (run,) = prepare(folder, settings)
    meter = Meter()
    for name in ("write", "read"):
        setattr(formats, name, meter.wrapped(getattr(formats, name)))
    started = time.process_time()
    run_arm(run.folder)
    whole = time.process_time() - started
    records = read_rounds(run.folder / "journal")
    reports = [report for record in records for report in record.sites.values()]
    last = records[-1].evaluation
    assert last is not None
    write_result(
        result_of(options.out, codec, seed),
        {
            "codec": codec,
            "seed": seed,
            "up": sum(report.bytes_up for report in reports),
            "down": sum(report.bytes_down for report in reports),
            "dice": float(np.mean([scores["dice"] for scores in last.sites.values()])),
            "codec_seconds": meter.seconds,
            "gate_seconds": gate_seconds(settings, seed) * len(reports),
            "seconds": whole,
            "memory_mb": peak_memory_mb(),
        },
    )


def gate_seconds(settings: Any, seed: int) -> float:
    """What a gate adds for one update: it reads what comes and what leaves, and writes what leaves once more."""
    from wardround.server.app import initial_weights

    plan = settings.round_plan("federated", seed, run="gate", round=1, labels=3)
    return 0.0 if (plan.codec, plan.codec_down) == ("none", "none") else code(initial_weights(plan), plan).gate


@dataclass(frozen=True)
class Coded:
    """Of one update: bytes beside those of its numbers, and CPU seconds to write, to read, and of a gate."""

    up: float
    down: float
    write: float
    read: float
    gate: float


def code(weights: Any, plan: Any) -> Coded:
    """Weights down and a change up whose entries are normal, as those of a few steps of AdamW nearly are."""
    from wardround.strategies.codecs import formats, record

    rng = np.random.default_rng(0)
    after = {name: (one + rng.normal(scale=0.003, size=one.shape)).astype(one.dtype) for name, one in weights.items()}
    times = [time.process_time()]
    down = record.write_down(weights, plan.codec_down)
    given = record.read_down(down, plan.codec_down)
    times.append(time.process_time())
    up = record.write_up(after, given, plan.codec, plan.codec_share)
    times.append(time.process_time())
    for name, array in up.items():
        record.read_array(array, record.up_formats(plan.codec), given[name])
    times.append(time.process_time())
    record.read_down(down, plan.codec_down)
    for name, array in up.items():
        record.read_array(array, record.up_formats(plan.codec), given[name])
        if array.stype in formats.FORMATS:
            formats.is_plain(array)
    times.append(time.process_time())
    whole = sum(one.nbytes for one in weights.values())
    sizes = [sum(len(array.data) for array in record_.values()) / whole for record_ in (up, down)]
    spent = np.diff(times)
    return Coded(sizes[0], sizes[1], spent[1], spent[2], spent[3])


def print_coding(models: Sequence[str], codecs: Sequence[str]) -> None:
    """What coding takes and leaves of a network's weights, without a federation."""
    from wardround.deploy.presets import CODEC
    from wardround.server.app import initial_weights
    from wardround.strategies.plan import RoundPlan

    print("| network | codec | up | down | both | write, ms | read, ms | a gate, ms |")
    print("|---|---|---|---|---|---|---|---|")
    for model in models:
        for codec in codecs:
            plan = RoundPlan(run="coding", round=1, rounds=1, seed=0, model=model, labels=3, **CODEC[codec])
            found = code(initial_weights(plan), plan)
            shares = (found.up, found.down, (found.up + found.down) / 2)
            times = (1000 * seconds for seconds in (found.write, found.read, found.gate))
            cells = [*(f"{share:.3f}" for share in shares), *(f"{spent:.0f}" for spent in times)]
            print(f"| {model} | {codec} | {' | '.join(cells)} |", flush=True)


def print_table(results: Sequence[dict[str, Any]], codecs: Sequence[str]) -> None:
    """Markdown, and which goals are met."""
    by = {(one["codec"], one["seed"]): one for one in results}
    seeds = sorted({one["seed"] for one in results if one["codec"] == "none"})
    print(f"\nseeds {', '.join(map(str, seeds))}; mean (sd over seeds)\n")
    print("| codec | bytes up | bytes down | both | Dice | loss of Dice | coding | with a gate | memory, MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for codec in codecs:
        rows = [(by[codec, seed], by["none", seed]) for seed in seeds if (codec, seed) in by]
        if not rows:
            continue

        def mean(of: Callable[[dict[str, Any], dict[str, Any]], float], digits: str, rows: Any = rows) -> str:
            values = [of(*pair) for pair in rows]
            return f"{np.mean(values):{digits}}" + (f" ({np.std(values, ddof=1):{digits}})" if len(values) > 1 else "")

        cells = [
            mean(lambda one, plain: one["up"] / plain["up"], ".3f"),
            mean(lambda one, plain: one["down"] / plain["down"], ".3f"),
            mean(lambda one, plain: (one["up"] + one["down"]) / (plain["up"] + plain["down"]), ".3f"),
            mean(lambda one, plain: one["dice"], ".4f"),
            mean(lambda one, plain: plain["dice"] - one["dice"], "+.4f"),
            mean(lambda one, plain: one["codec_seconds"] / one["seconds"], ".2%"),
            mean(lambda one, plain: (one["codec_seconds"] + one["gate_seconds"]) / one["seconds"], ".2%"),
            mean(lambda one, plain: one["memory_mb"], ".0f"),
        ]
        print(f"| {codec} | {' | '.join(cells)} |")
    print()
    for codec in ("int8", "topk"):
        rows = [(by[codec, seed], by["none", seed]) for seed in seeds if (codec, seed) in by]
        if not rows:
            continue
        share = np.mean([(one["up"] + one["down"]) / (plain["up"] + plain["down"]) for one, plain in rows])
        loss = np.mean([plain["dice"] - one["dice"] for one, plain in rows])
        spent = np.mean([(one["codec_seconds"] + one["gate_seconds"]) / one["seconds"] for one, _ in rows])
        goals = (("bytes", share, BYTES), ("Dice", loss, DICE), ("time", spent, TIME))
        print(
            f"- {codec}: " + ", ".join(f"{n} {v:.3f} ≤ {most}: {'yes' if v <= most else 'no'}" for n, v, most in goals)
        )


def main() -> int:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/codecs"))
    parser.add_argument("--codecs", default=",".join(CODECS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--model", default="unet3d-small")
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--tests", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=24)
    parser.add_argument("--shape", type=lambda text: tuple(map(int, text.split(","))), default=(40, 48, 40))
    parser.add_argument("--plan", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--coding", action="store_true", help="no federation: what coding takes and leaves of networks")
    parser.add_argument("--one", nargs=2, metavar=("CODEC", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    codecs = [name for name in options.codecs.split(",") if name]
    if options.coding:
        print_coding([options.model, "unet3d"], codecs)
        return 0
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.one:
        run_one(options.one[0], int(options.one[1]), options)
        return 0
    wanted = [(codec, int(seed)) for seed in options.seeds.split(",") for codec in codecs]
    waiting = [run for run in wanted if not result_of(options.out, *run).exists()]
    passed = sys.argv[1:]
    failed = run_all(
        waiting,
        lambda codec, seed: [sys.executable, os.path.abspath(__file__), *passed, "--one", codec, str(seed)],
        options.out,
        options.jobs,
    )
    results = [json.loads(path.read_text()) for run in wanted if (path := result_of(options.out, *run)).exists()]
    if any(one["codec"] == "none" for one in results):
        print_table(results, codecs)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
