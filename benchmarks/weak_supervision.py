"""Learning from scribbles and points, arm against arm: the tables behind docs/researchers.md.

Tasks
    *acdc*: cardiac MR with an expert's scribbles. *tumours* and *hippocampus* (*points* runs both): seven points a
    structure. *kernel*: what the two attention kernels say of pairs of strokes in the course of training; it shares the
    runs of *acdc*. *federated*: four hospitals, each with another kind of label. *phantoms*: the arms of *acdc* on
    drawn cases, for a look without data.

All arms of a task take the same number of updates with the same batches' cases, augmentation and schedule, and those
of one network and seed start from the same weights. Nothing is chosen on the way: the last weights are tested, once, on
the validation cases of the data's ``split.json``. Settings are the papers' or were chosen with ``--inner``, which holds
out training cases instead. Dense labels reach the simulated annotator (:class:`~wardround.client.annotation.annotator.
Truth`), the arm *dense* through it, and the final metric. Dice is that of the argmax on the image's own grid; a missed
structure has Dice 0 and the image's diagonal as its Hausdorff distance.

Run with a folder that holds the data sets::

    python benchmarks/weak_supervision.py acdc --data DATA --out runs/weak

Two cores take the default schedule, small networks and short training; ``--full`` keeps the protocol and takes large
networks, whole resolution and the papers' schedule, for a GPU with ``--device cuda``. An interrupted run goes on with
the same command: what is finished is read from OUT. Tables are printed as Markdown; OUT/TASK holds them with the runs
and a picture.
"""

import argparse
import json
import os
import sys
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from runner import fields_of, result_of, run_all, write_result
from weak.arms import KERNELS, TASKS, Recipe, Task
from weak.federated import federated_table, run_federated
from weak.labels import Split, draw_phantoms, load, split_of, true_labels
from weak.picture import draw_example, draw_health
from weak.runs import run
from weak.tables import Runs, cost_table, gap_table, health_table, main_table, structure_table

from wardround.client.cases.nifti import read_image
from wardround.deploy.report.tables import Table

POINTS = ("tumours", "hippocampus")
FEDERATED = "federated"


def main() -> int:
    """Run or resume a task and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("acdc", "points", *POINTS, FEDERATED, "kernel", "phantoms"))
    parser.add_argument("--data", type=Path, help="holds the data sets; $WARDROUND_DATA by default")
    parser.add_argument("--out", type=Path, default=Path("runs/weak"))
    parser.add_argument("--arms", nargs="+", default=[])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--full", action="store_true", help="the papers' schedule, with large networks")
    parser.add_argument("--inner", action="store_true", help="hold out training cases: to choose settings")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="of every arm: to choose settings")
    parser.add_argument("--cases", type=int, help="only so many training cases")
    parser.add_argument("--one", nargs=3, metavar=("TASK", "ARM", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.data is None and (named := os.environ.get("WARDROUND_DATA")):
        options.data = Path(named)
    if options.data is None and options.task != "phantoms":
        parser.error("give the folder of the data sets with --data")

    if options.one:
        options.task = options.one[0]
        run_one(options, options.one[1], int(options.one[2]))
        return 0
    for name in POINTS if options.task == "points" else (options.task,):
        options.task = name
        if code := run_task(options):
            return code
    return 0


def run_task(options: argparse.Namespace) -> int:
    """Run what is not finished, `jobs` at a time, and print; a failed run is named, and its error lies in its log."""
    task, folder = task_of(options), folder_of(options)
    folder.mkdir(parents=True, exist_ok=True)
    root_of(options, task)
    waiting = [(arm, seed) for seed in options.seeds for arm in task.arms if not result_of(folder, arm, seed).exists()]
    load = f"load {os.getloadavg()[0]:.1f}"
    print(f"{options.task}: {len(waiting)} runs to go, seeds {options.seeds}, {load}", flush=True)

    def command(arm: str, seed: int) -> list[str]:
        return [sys.executable, *sys.argv, "--one", options.task, arm, str(seed)]

    failed = run_all(waiting, command, folder, options.jobs)
    print_task(options, task, folder)
    return 1 if failed else 0


def run_one(options: argparse.Namespace, arm: str, seed: int) -> None:
    """One run in this process; its result appears as a whole or not at all."""
    task, folder = task_of(options), folder_of(options)
    dataset = load(root_of(options, task))
    split = picked_split(options, dataset.root)
    if options.task == FEDERATED:
        model = task.arms[arm].model
        result = run_federated(arm, model, recipe_of(options, task), dataset, split, seed, options.device)
    else:
        result = run(task.arms[arm], recipe_of(options, task), dataset, split, seed, options.device)
    example = result.pop("example", None)
    if example is not None and seed == options.seeds[0]:
        np.savez_compressed(folder / f"{arm}-{seed}.npz", labels=example)
    write_result(result_of(folder, arm, seed), result)


def print_task(options: argparse.Namespace, task: Task, folder: Path) -> None:
    """Tables of the finished runs as Markdown, here and in OUT, with the picture beside them."""
    runs = finished(options, task, folder)
    if not any(runs.values()):
        return
    some = next(found[0] for found in runs.values() if found)
    tables: dict[str, Table]
    if options.task == "kernel":
        tables = {"The kernel on pairs of strokes": health_table(runs, KERNELS)}
        draw_health(runs, KERNELS, folder / "kernel.png")
    elif options.task == FEDERATED:
        tables = {task.title: federated_table(task, runs), "Cost": cost_table(task, runs)}
    else:
        tables = {
            task.title: main_table(task, runs),
            "Surface distance": structure_table(task, runs),
            "Gap": gap_table(task, runs),
            "Cost": cost_table(task, runs),
        }
        if any(arm in KERNELS for arm in runs):
            tables["The kernel on pairs of strokes"] = health_table(runs, KERNELS)
        dataset = load(root_of(options, task))
        case = some["test"][0]
        kept = {name: folder / f"{name}-{options.seeds[0]}.npz" for name in task.arms}
        examples = {name: np.load(file)["labels"] for name, file in kept.items() if file.exists()}
        image = read_image(dataset.cases[case].image).array
        draw_example(task, runs, image, true_labels(dataset, case), examples, folder / "picture.png")
    held = "held-out training cases" if options.inner else "test cases"
    text = [f"{len(some['train'])} training cases, {len(some['test'])} {held}, {some['recipe']}"]
    text += [f"### {title}\n\n{table.markdown()}" for title, table in tables.items()]
    (folder / "tables.md").write_text("\n\n".join(text) + "\n")
    (folder / "results.json").write_text(json.dumps(runs, indent=1))
    print("\n\n".join(text), flush=True)


def picked_split(options: argparse.Namespace, root: Path) -> Split:
    """Cases as asked for."""
    split = split_of(root, options.inner)
    return replace(split, train=split.train[: options.cases]) if options.cases else split


def finished(options: argparse.Namespace, task: Task, folder: Path) -> Runs:
    """The runs of this very recipe, on these very cases, that lie in OUT."""
    found: dict[str, list[Any]] = defaultdict(list)
    split = picked_split(options, root_of(options, task))
    for arm in task.arms:
        for seed in options.seeds:
            if (path := result_of(folder, arm, seed)).exists():
                result = json.loads(path.read_text())
                if options.task == FEDERATED:  # A site alone has its own cases.
                    same = set(result["train"]) <= set(split.train)
                else:
                    same = result["arm"] == asdict(task.arms[arm]) and result["train"] == list(split.train)
                same = same and result["test"] == list(split.test)
                if not same or result["recipe"] != recipe_of(options, task).described():
                    raise SystemExit(f"{path} holds a run under other settings; give another --out")
                found[arm].append(result)
    return found


def task_of(options: argparse.Namespace) -> Task:
    """The task, with the arms and the fields that were asked for."""
    name = {"kernel": "acdc"}.get(options.task, options.task)
    picked = options.arms or (list(KERNELS) if options.task == "kernel" else [])
    task = TASKS[name].picked(picked)
    changed = fields_of(options.set)
    if options.full:
        task = task.enlarged()
    arms = {arm: replace(settings, **changed) for arm, settings in task.arms.items()}
    return replace(task, arms=arms)


def recipe_of(options: argparse.Namespace, task: Task) -> Recipe:
    """As asked for."""
    recipe = task.full if options.full else task.cpu
    return replace(recipe, iterations=options.iterations) if options.iterations else recipe


def folder_of(options: argparse.Namespace) -> Path:
    """Where the runs of a task lie."""
    name = {"kernel": "acdc"}.get(options.task, options.task)
    folder: Path = options.out / (name + "-full" * options.full + "-inner" * options.inner)
    return folder


def root_of(options: argparse.Namespace, task: Task) -> Path:
    """The data set; phantoms are drawn where they are not there yet."""
    if options.task == "phantoms":
        return draw_phantoms(options.out / "data", train=12, test=6, shape=(32, 32, 16))
    root: Path = options.data / task.data
    return root


if __name__ == "__main__":
    raise SystemExit(main())
