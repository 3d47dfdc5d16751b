"""What made pairs are worth to a network that learns from few labelled volumes: the tables behind docs/researchers.md.

Tasks
    *hippocampus*: anterior and posterior part, slice by slice. *phantoms*: drawn cases, tiny, for a look without data.

All arms of a seed learn from the same k labelled volumes, with the same number of updates of as many slices, from the
same first weights. Where an arm has made pairs, they take places of real ones in its batches, so that nothing is
learnt beside the updates that every arm has. A generator sees the same labelled volumes and nothing else, and is used
only where it has passed the test for memorisation. Arms in which validation steers something set one case in five
aside for it; the baseline, strong augmentation, learns from all. What an image shows is judged by a network that has
learnt from other people's images. Nobody serves two stages: the ids of every stage are in each result. Nothing is
chosen on the way: the last weights are tested, once, on the validation cases of the data's ``split.json``. Dice is
that of the argmax on the volume's own grid; a missed structure has Dice 0. Settings are the papers' or were chosen
with ``--inner``, which tests on training cases instead.

Run with a folder that holds the data sets::

    python benchmarks/synthesis.py hippocampus --data DATA --out runs/synthesis

Two cores take the default schedule; ``--full`` keeps the protocol and takes larger networks and schedules, for a GPU
with ``--device cuda``. An interrupted run goes on with the same command: what is finished is read from OUT. Tables are
printed as Markdown; OUT/TASK holds them with the runs, the generators and a picture.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from imagined.arms import GENERATORS, TASKS, Arm, Generator, Recipe, Task
from imagined.cases import deal
from imagined.generators import train_generator
from imagined.picture import draw
from imagined.runs import run, train_judge
from imagined.tables import Results, goal_lines, tables_of
from runner import fields_of, result_of, run_all, write_result
from torch import nn
from weak.labels import draw_phantoms

from wardround.client.cases.dataset import Dataset, load_dataset
from wardround.models.catalogue import build
from wardround.models.weights import load_arrays, load_weights, save_arrays

JUDGE = "judge"
GENERATOR = "generator-"


def main() -> int:
    """Run or resume a task and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=tuple(TASKS))
    parser.add_argument("--data", type=Path, help="holds the data sets; $WARDROUND_DATA by default")
    parser.add_argument("--out", type=Path, default=Path("runs/synthesis"))
    parser.add_argument("--arms", nargs="+", default=[], metavar="ARM")
    parser.add_argument("--k", nargs="+", type=int, default=[], help="numbers of labelled volumes")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--full", action="store_true", help="larger networks and more updates")
    parser.add_argument("--inner", action="store_true", help="hold out training cases: to choose settings")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="of the recipe: to choose settings")
    parser.add_argument("--one", nargs=2, metavar=("RUN", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.data is None and (named := os.environ.get("WARDROUND_DATA")):
        options.data = Path(named)
    if options.data is None and TASKS[options.task].data:
        parser.error("give the folder of the data sets with --data")
    if unknown := sorted(set(options.arms) - set(TASKS[options.task].arms)):
        parser.error(f"there is no arm called {unknown[0]}")

    if options.one:
        run_one(options, options.one[0], int(options.one[1]))
        return 0
    return run_task(options)


def run_task(options: argparse.Namespace) -> int:
    """Run what is not finished, `jobs` at a time: judge, generators, arms. What failed is named; its log tells why."""
    folder = folder_of(options)
    folder.mkdir(parents=True, exist_ok=True)
    dataset_of(options)
    stages = [[(JUDGE, 0)], generators_of(options), arms_of(options)]
    finished(options)
    waiting = [[one for one in stage if not result_of(folder, *one).exists()] for stage in stages]
    load = f"load {os.getloadavg()[0]:.1f}"
    print(f"{options.task}: {sum(map(len, waiting))} runs to go, seeds {options.seeds}, {load}", flush=True)

    def command(name: str, seed: int) -> list[str]:
        return [sys.executable, *sys.argv, "--one", name, str(seed)]

    for stage in waiting:
        # What follows reads what these leave.
        if run_all(stage, command, folder, options.jobs):
            return 1
    print_task(options)
    return 0


def run_one(options: argparse.Namespace, name: str, seed: int) -> None:
    """One run in this process; its result appears as a whole or not at all."""
    folder, recipe, dataset = folder_of(options), recipe_of(options), dataset_of(options)
    result: dict[str, Any]
    if name == JUDGE:
        dealt = deal(dataset, recipe, 1, seed, apart=False, inner=options.inner)
        learner, result = train_judge(recipe, dataset, dealt, options.device)
        save_arrays(folder / "judge.safetensors", learner.weights())
    else:
        kind, k = kind_of(name)
        judge = judge_of(folder, recipe, dataset, options.device)
        generator = GENERATORS.get(kind.removeprefix(GENERATOR)) if kind.startswith(GENERATOR) else None
        arm = TASKS[options.task].arms.get(kind)
        maker = generator or arm
        assert maker is not None
        dealt = deal(dataset, recipe, k, seed, apart=maker.apart, inner=options.inner)
        if generator is not None:
            files = folder / f"{name}-{seed}"
            result = train_generator(generator, recipe, dataset, dealt, seed, options.device, files, judge)
        else:
            assert arm is not None
            files = usable(folder, arm, k, seed)
            result = run(arm, recipe, dataset, dealt, seed, options.device, files, judge)
            if (example := result.pop("example", None)) is not None:
                np.savez_compressed(folder / f"{name}-{seed}.npz", images=example[0], labels=example[1])
        result |= {"k": k, "setting": asdict(maker), "deal": dealt.described()}
    write_result(result_of(folder, name, seed), result | {"run": name, "seed": seed, "recipe": recipe.described()})


def usable(folder: Path, arm: Arm, k: int, seed: int) -> Path | None:
    """Files of an arm's generator; None where it has none, or one that has learnt its cases by heart."""
    if arm.source not in GENERATORS:
        return None
    name = f"{GENERATOR}{arm.source}-k{k}"
    result = json.loads(result_of(folder, name, seed).read_text())
    if not result["quality"]["memorisation"]["passed"]:
        print("the generator has learnt cases by heart: nothing that it made is learnt from", flush=True)
        return None
    return folder / f"{name}-{seed}"


def judge_of(folder: Path, recipe: Recipe, dataset: Dataset, device: str) -> nn.Module:
    """The judge, frozen."""
    network = build(recipe.model, len(dataset.label_names), 0)
    load_weights(network, load_arrays(folder / "judge.safetensors"))
    return network.to(torch.device(device)).eval().requires_grad_(False)


def print_task(options: argparse.Namespace) -> None:
    """Tables of the finished runs as Markdown, here and in OUT, with the picture beside them."""
    folder, task = folder_of(options), TASKS[options.task]
    results = finished(options)
    if not results.arms:
        return
    some = next(iter(results.arms.values()))[0]
    held = "held-out training cases" if options.inner else "test cases"
    text = [f"### {task.title}", f"{len(some['manifest']['test'])} {held}, {some['recipe']}"]
    text += [f"#### {title}\n\n{table.markdown()}" for title, table in tables_of(task, results).items()]
    text += ["\n".join(goal_lines(task, results))]
    (folder / "tables.md").write_text("\n\n".join(text) + "\n")
    (folder / "results.json").write_text(json.dumps(asdict(results), indent=1))
    draw(task, results, folder, dataset_of(options), folder / "picture.png")
    print("\n\n".join(text), flush=True)


def finished(options: argparse.Namespace) -> Results:
    """The runs of this very recipe, on these very cases, that lie in OUT."""
    folder, recipe, dataset = folder_of(options), recipe_of(options), dataset_of(options)
    judge: dict[str, Any] = {}
    if (path := result_of(folder, JUDGE, 0)).exists():
        judge = json.loads(path.read_text())
        check(path, judge, {"recipe": recipe.described()})
    found: list[dict[str, list[dict[str, Any]]]] = []
    for runs in (generators_of(options), arms_of(options)):
        found.append({})
        for name, seed in runs:
            if not (path := result_of(folder, name, seed)).exists():
                continue
            kind, k = kind_of(name)
            plain = kind.removeprefix(GENERATOR)
            maker: Generator | Arm = GENERATORS[plain] if plain != kind else TASKS[options.task].arms[kind]
            dealt = deal(dataset, recipe, k, seed, apart=maker.apart, inner=options.inner)
            result = json.loads(path.read_text())
            wanted = {"recipe": recipe.described(), "setting": asdict(maker), "deal": dealt.described()}
            check(path, result, wanted)
            found[-1].setdefault(name, []).append(result)
    return Results(judge, *found)


def check(path: Path, result: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """That a result was made under the settings that are asked for."""
    plain = json.loads(json.dumps(wanted))
    if any(result[key] != value for key, value in plain.items()):
        raise SystemExit(f"{path} holds a run under other settings; give another --out")


def arms_of(options: argparse.Namespace) -> list[tuple[str, int]]:
    """Runs of arms: few labelled volumes first, and seed after seed."""
    arms = TASKS[options.task].arms
    return [
        (f"{name}-k{k}", seed)
        for k in sizes_of(options)
        for seed in options.seeds
        for name in options.arms or arms
        if k in arms[name].sizes or not arms[name].sizes
    ]


def generators_of(options: argparse.Namespace) -> list[tuple[str, int]]:
    """Runs of the generators that those arms need, each once."""
    arms = TASKS[options.task].arms
    needed = []
    for name, seed in arms_of(options):
        kind, k = kind_of(name)
        if arms[kind].source in GENERATORS:
            needed.append((f"{GENERATOR}{arms[kind].source}-k{k}", seed))
    return list(dict.fromkeys(needed))


def kind_of(name: str) -> tuple[str, int]:
    """Arm or generator of a run, and its number of labelled volumes."""
    kind, _, k = name.rpartition("-k")
    return kind, int(k)


def sizes_of(options: argparse.Namespace) -> tuple[int, ...]:
    """Numbers of labelled volumes that are asked for."""
    return tuple(options.k) or recipe_of(options).sizes


def recipe_of(options: argparse.Namespace) -> Recipe:
    """As asked for."""
    task: Task = TASKS[options.task]
    changed = fields_of(options.set)
    if unknown := sorted(set(changed) - {field.name for field in fields(Recipe)}):
        raise SystemExit(f"recipes know of no {unknown[0]}")
    return replace(task.full if options.full else task.cpu, **changed)


def folder_of(options: argparse.Namespace) -> Path:
    """Where the runs of a task lie."""
    folder: Path = options.out / (options.task + "-full" * options.full + "-inner" * options.inner)
    return folder


def dataset_of(options: argparse.Namespace) -> Dataset:
    """The data set; phantoms are drawn where they are not there yet."""
    task = TASKS[options.task]
    if task.data:
        return load_dataset(options.data / task.data)
    return load_dataset(draw_phantoms(options.out / "data", train=16, test=2, shape=(24, 28, 24)))


if __name__ == "__main__":
    raise SystemExit(main())
