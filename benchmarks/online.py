"""One site learns online from a few slices a case, in one pass over a stream: the table behind the README.

Parts (``--parts``, all by default)
    *curve*: hippocampus, 100 cases in shuffled order. Dice against effort for proxy masks and for the drawn slices
    alone, beside dense labels. These are certain everywhere: off the drawn slices each voxel weighs 1 for dense and
    confidence^16 for the proxy, on the drawn slices, of which dense has as many as the largest budget, both weigh 1 +
    λ. *forgetting-phantoms*: drawn cases whose sites differ strongly in their scanner, one site after the other.
    *forgetting-lgg*: low-grade glioma, one institution after the other, under one seed: a look, not a result. Both
    compare no replay, a small memory under two rules (*paper* keeps a random subset, as the method's authors do) and
    the default memory, all of them learning from the drawn slices alone, and proxy masks (the default) with the
    default memory, under a constant learning rate, so that a rate that falls cannot hide what is forgotten. No case's
    updates are checked on remembered ones, since that takes a memory: only memory differs. Without it a batch holds
    the new case alone and all updates go to it, none to rehearsal.

All runs of a seed start from the same weights, stream the same cases in the same order and spend the same number of
updates, which the tables show. Settings were chosen on training cases. Test cases are read by the final model, and by
the model after each site where the sites come one after the other. Ground truth reaches the simulated annotator and
that metric.

``--more`` adds arms: proxy masks without the object's first and last slices to the curve, the default learning rate
(*decaying*) and two more rules of memory to the phantoms.

Run with a folder that holds the data sets ``hippocampus`` and ``lgg_multisite``, each with ``dataset.json`` and
``split.json``::

    OMP_NUM_THREADS=1 python benchmarks/online.py --data DATA --out runs/online

An interrupted run goes on with the same command. ``--recipe gpu`` keeps the protocol and takes the larger network and
many more updates. Options that are not known here go to every ``wardround stream``, to try it smaller. Tables are
printed as Markdown, with the goals beside them; each part has its page in OUT/PART/report.html.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wardround.deploy.report.results import Results, load_results
from wardround.deploy.stream.goals import StreamTargets, stream_goals
from wardround.deploy.stream.summary import points
from wardround.deploy.stream.tables import open_runs, stream_tables
from wardround.errors import Interrupted

_SMALL, _SLICES = "replay_capacity=8", "supervision=partial"
_CONSTANT_RATE = ("--plan", "learning_rate=0.002", "--plan", "learning_rate_end=0.002")
_MEMORIES = (
    *("--order", "by-site", "--arms", "proxy,slices-only", *_CONSTANT_RATE, "--plan", "validation_cases=0"),
    *("--arm", f"no-replay:replay_capacity=0,{_SLICES}"),
    *("--arm", f"paper:replay=random-subset,{_SMALL},{_SLICES}"),
    *("--arm", f"reservoir:replay=reservoir,{_SMALL},{_SLICES}"),
)
_MORE_MEMORIES = (
    *("--arm", "decaying:learning_rate=0.004,learning_rate_end=0.0002"),
    *("--arm", f"class-balanced:replay=class-balanced,{_SMALL},{_SLICES}"),
    *("--arm", f"most-interfered:replay=most-interfered,{_SMALL},{_SLICES}"),
)
_BACKWARD = (StreamTargets(backward=-1.0, backward_families=("proxy", "slices-only", "decaying")),)


@dataclass(frozen=True)
class Part:
    """One stream.

    Parameters
    ----------
    options
        Of ``wardround stream``.
    updates
        A case, by recipe.
    data
        Folder of the data set; none for phantoms.
    more
        Options for the arms that are run if asked for.
    targets
        What it is held to, by arm.
    """

    options: Sequence[str]
    updates: dict[str, int]
    data: str = ""
    more: Sequence[str] = ()
    targets: Sequence[StreamTargets] = ()


PARTS = {
    "curve": Part(
        (*("--cases", "100", "--seeds", "0,1,2", "--arms", "dense,proxy,slices-only", "--budgets", "4,8,12"),),
        {"cpu": 20, "gpu": 192},
        "hippocampus",
        ("--arm", "no-extent:extent=false,slices_per_case=8"),
        (
            StreamTargets("slices-only", effort=0.30, dense_margin=1.5, total_effort=0.38, share_effort=0.25),
            StreamTargets("proxy", effort=0.30, dense_margin=1.5, slices_margin=5.0, share_effort=0.25),
        ),
    ),
    "forgetting-phantoms": Part(
        (
            *("--sites", "4", "--cases", "36", "--tests", "24", "--shift", "2.5", "--seeds", "0,1,2"),
            *("--budgets", "8", "--chunks", "12", *_MEMORIES),
        ),
        {"cpu": 16, "gpu": 96},
        more=_MORE_MEMORIES,
        targets=_BACKWARD,
    ),
    "forgetting-lgg": Part(
        (
            *("--cases", "48", "--seeds", "0", "--budgets", "8", "--chunks", "8", "--plan", "patch=96,96,24"),
            *_MEMORIES,
        ),
        {"cpu": 8, "gpu": 192},
        "lgg_multisite",
        targets=_BACKWARD,
    ),
}
RECIPES = {"cpu": ("--model", "unet3d-small"), "gpu": ("--model", "unet3d", "--device", "cuda")}


def main() -> int:
    """Run or resume every part and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--recipe", choices=RECIPES, default="cpu")
    parser.add_argument("--jobs", default="2")
    parser.add_argument("--more", action="store_true", help="run the additional arms as well")
    options, passed = parser.parse_known_args()
    names = [name for name in options.parts.split(",") if name]
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; known are {', '.join(PARTS)}")

    worst = 0
    for name in names:
        started = time.monotonic()
        part, more = PARTS[name], (*PARTS[name].more * options.more, *passed)
        code = run_part(part, options.data, options.out / name, recipe=options.recipe, jobs=options.jobs, more=more)
        worst = worst or code
        if code == Interrupted.exit_code:
            break
        if code == 0:
            print_part(name, load_results(options.out / name), part.targets)
            print(f"\n{name}: {(time.monotonic() - started) / 60:.1f} minutes in this call\n", flush=True)
    return worst


def run_part(part: Part, data: Path, out: Path, *, recipe: str, jobs: str, more: Sequence[str]) -> int:
    """Start or go on with the stream in `out`; returns the exit code of ``wardround stream``."""
    command = [sys.executable, "-m", "wardround.deploy.cli", "stream", "--jobs", jobs]
    if (out / "experiment.json").exists():
        command += ["--resume", str(out)]
    else:
        command += ["--data", str(data / part.data)] if part.data else []
        command += ["--out", str(out), *part.options, *RECIPES[recipe]]
        command += ["--plan", f"updates_per_case={part.updates[recipe]}", *more]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            # The stream got it as well, stops at its next step and says how to go on.
            continue


def print_part(name: str, results: Results, targets: Sequence[StreamTargets]) -> None:
    """Print tables and goals of one stream as Markdown."""
    streamed = sum(site.stream for site in results.sites.values())
    tested = max((point.dice.count for point in points(results)), default=0)
    seeds = f"seeds {', '.join(map(str, results.seed_list))}"
    if len(results.seed_list) == 1:
        seeds = f"seed {results.seed_list[0]} (one seed: a look, not a result)"
    print(f"\n## {name}\n\n{streamed} streamed cases, {tested} test cases, {seeds}, load {results.machine.load}\n")
    for title, table in stream_tables(results).items():
        print(f"### {title}\n\n{table.markdown()}\n")
    for note in open_runs(results):
        print(f"- open: {note}")
    totals = {point.name: point.updates.mean for point in points(results)}
    same = len(set(totals.values())) == 1
    print(f"- updates: {'the same in all runs' if same else 'not the same in all runs: ' + str(totals)}")
    lines = {line.title: line for held in targets for line in stream_goals(results, held)}
    for line in lines.values():
        print(f"- {line.title}: {line.text}" + ("" if line.met is None else " — reached" if line.met else " — missed"))


if __name__ == "__main__":
    raise SystemExit(main())
