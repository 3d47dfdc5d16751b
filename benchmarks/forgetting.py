"""What a stream of regimes leaves of the earlier ones, arm against arm: the tables behind docs/researchers.md.

Streams
    *institutions*: tumours in FLAIR of four hospitals, one after the other. *scanners*: phantoms of four scanners.
    *structures*: hippocampi, the anterior part labelled first, then the posterior one. *phantoms*: two scanners, tiny,
    for a look without data.

Every regime has training cases and test cases of its own. Cases come one after the other and take a fixed number of
updates each. All arms of a seed meet the same cases in the same order, take the same number of updates on as many
samples, with the same augmentation, from the same weights; arms that remember remember as many cases. Seeds differ in
their cases, in the order of these and, where it is free, in that of the regimes. Nothing is chosen on the way: the last
weights count. Settings are the papers' or were chosen with ``--inner``, which holds out training cases instead.

Run with a folder that holds the data sets::

    python benchmarks/forgetting.py institutions --data DATA --out runs/forgetting

An interrupted run goes on with the same command: what is finished is read from OUT. Tables are printed as Markdown;
OUT/STREAM holds them with the runs and a picture.
"""

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from memory.arms import ABLATIONS, ARMS, TASKS, Arm, Recipe, Task, picked
from memory.picture import draw
from memory.runs import run
from memory.streams import Regime, dealt, regimes_of
from memory.tables import Runs, cost_table, generator_table, goal_lines, main_table, matrix_table, regime_table
from runner import fields_of, result_of, run_all, write_result

from wardround.client.cases.dataset import Dataset, load_dataset


def main() -> int:
    """Run or resume a stream and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stream", choices=tuple(TASKS))
    parser.add_argument("--data", type=Path, help="holds the data sets; $WARDROUND_DATA by default")
    parser.add_argument("--out", type=Path, default=Path("runs/forgetting"))
    parser.add_argument("--arms", nargs="+", default=[], choices=(*ARMS, *ABLATIONS), metavar="ARM")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--full", action="store_true", help="whole resolution, large networks and more updates")
    parser.add_argument("--inner", action="store_true", help="hold out training cases: to choose settings")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="of the recipe, or of every arm")
    parser.add_argument("--one", nargs=2, metavar=("ARM", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.data is None and (named := os.environ.get("WARDROUND_DATA")):
        options.data = Path(named)
    if options.data is None and TASKS[options.stream].phantoms is None:
        parser.error("give the folder of the data sets with --data")

    if options.one:
        run_one(options, options.one[0], int(options.one[1]))
        return 0
    return run_stream(options)


def run_stream(options: argparse.Namespace) -> int:
    """Run what is not finished, `jobs` at a time, and print; a failed run is named, and its error lies in its log."""
    arms, folder = arms_of(options), folder_of(options)
    folder.mkdir(parents=True, exist_ok=True)
    dataset = dataset_of(options)
    finished(options, arms, dataset)
    waiting = [(arm, seed) for seed in options.seeds for arm in arms if not result_of(folder, arm, seed).exists()]
    load = f"load {os.getloadavg()[0]:.1f}"
    print(f"{options.stream}: {len(waiting)} runs to go, seeds {options.seeds}, {load}", flush=True)

    def command(arm: str, seed: int) -> list[str]:
        return [sys.executable, *sys.argv, "--one", arm, str(seed)]

    failed = run_all(waiting, command, folder, options.jobs)
    print_stream(options, arms, finished(options, arms, dataset))
    return 1 if failed else 0


def run_one(options: argparse.Namespace, arm: str, seed: int) -> None:
    """One run in this process; its result appears as a whole or not at all."""
    dataset = dataset_of(options)
    result = run(
        arms_of(options)[arm], recipe_of(options), dataset, stream_of(options, dataset, seed), seed, options.device
    )
    write_result(result_of(folder_of(options), arm, seed), result)


def print_stream(options: argparse.Namespace, arms: Mapping[str, Arm], runs: Runs) -> None:
    """Tables of the finished runs as Markdown, here and in OUT, with the picture beside them."""
    if not any(runs.values()):
        return
    folder, task = folder_of(options), TASKS[options.stream]
    some = next(found[0] for found in runs.values() if found)
    orders = {
        run["seed"]: " → ".join(part["name"] for part in run["regimes"]) for found in runs.values() for run in found
    }
    held = "held-out training cases" if options.inner else "test cases"
    counts = ", ".join(f"{part['name']} {len(part['train'])} + {len(part['test'])}" for part in some["regimes"])
    text = [f"Training and {held}: {counts}. {some['recipe']}"]
    text += ["Orders: " + "; ".join(f"seed {seed}: {order}" for seed, order in sorted(orders.items()))]
    tables = {
        task.title: main_table(arms, runs),
        "Regimes, final Dice": regime_table(arms, runs),
        "Accuracy matrix": matrix_table(arms, runs),
        "Cost": cost_table(arms, runs),
    }
    if any(arm.generative for arm in arms.values()):
        tables["Generators"] = generator_table(arms, runs)
    text += [f"### {title}\n\n{table.markdown()}" for title, table in tables.items()]
    text += ["\n".join(goal_lines(runs))]
    (folder / "tables.md").write_text("\n\n".join(text) + "\n")
    (folder / "results.json").write_text(json.dumps(runs, indent=1))
    draw(arms, runs, folder / "picture.png")
    print("\n\n".join(text), flush=True)


def finished(options: argparse.Namespace, arms: Mapping[str, Arm], dataset: Dataset) -> Runs:
    """The runs of this very recipe, on these very cases, that lie in OUT."""
    found: dict[str, list[Any]] = defaultdict(list)
    recipe = recipe_of(options)
    for seed in options.seeds:
        stream = [
            {"name": part.name, "train": list(part.pool), "test": list(part.test)}
            for part in stream_of(options, dataset, seed)
        ]
        for name, arm in arms.items():
            if (path := result_of(folder_of(options), name, seed)).exists():
                result = json.loads(path.read_text())
                # What a run of an earlier version does not say was as it is by default.
                held = (Arm(**result["arm"]), Recipe(**result["recipe"] | {"patch": tuple(result["recipe"]["patch"])}))
                same = plain(held) == plain((arm, recipe)) and result["regimes"] == stream
                if not same:
                    raise SystemExit(f"{path} holds a run under other settings; give another --out")
                found[name].append(result)
    return found


def plain(values: tuple[Arm, Recipe]) -> str:
    """To compare by: JSON knows no tuples."""
    return json.dumps([asdict(value) for value in values])


def arms_of(options: argparse.Namespace) -> dict[str, Arm]:
    """The arms and the fields that were asked for."""
    own = {field.name for field in fields(Arm)}
    return picked(options.arms, {name: value for name, value in fields_of(options.set).items() if name in own})


def recipe_of(options: argparse.Namespace) -> Recipe:
    """As asked for."""
    task: Task = TASKS[options.stream]
    own = {field.name for field in fields(Recipe)}
    both = own | {field.name for field in fields(Arm)}
    changed = fields_of(options.set)
    if unknown := sorted(set(changed) - both):
        raise SystemExit(f"neither arms nor recipes know of {unknown[0]}")
    return replace(task.full if options.full else task.recipe, **{k: v for k, v in changed.items() if k in own})


def folder_of(options: argparse.Namespace) -> Path:
    """Where the runs of a stream lie."""
    folder: Path = options.out / (options.stream + "-full" * options.full + "-inner" * options.inner)
    return folder


def dataset_of(options: argparse.Namespace) -> Dataset:
    """The data set; phantoms are drawn where they are not there yet."""
    task = TASKS[options.stream]
    if task.phantoms is not None:
        return load_dataset(task.phantoms.write(options.out / "data" / options.stream))
    return load_dataset(options.data / task.data)


def stream_of(options: argparse.Namespace, dataset: Dataset, seed: int) -> tuple[Regime, ...]:
    """The regimes of a seed, in order, with the cases of each."""
    task, recipe = TASKS[options.stream], recipe_of(options)
    return dealt(regimes_of(dataset, task.parts or {}, recipe.tests, options.inner), recipe.cases, seed, task.free)


if __name__ == "__main__":
    raise SystemExit(main())
