"""Ways to combine what hospitals learn, beside each other: the tables behind docs/researchers.md.

Tasks
    *scanners*: phantoms of four hospitals whose scanners differ much. *institutions*: tumours in FLAIR of four
    hospitals. *hippocampus*: the simulated sites of its split file. *phantoms*: tiny, for a look without data.

On the scanners every strategy of the catalogue and every rule of weighting is an arm, with its defaults; beside them
stand *pooled* (one site has all cases), *local only* (every site alone) and the best single site. All arms of a seed
start from the same weights, see the same cases of a site in the same order, and take as many updates. Nothing is chosen
on the way: the last weights are tested, once. Intervals are over seeds.

Real images take longer: there a few strategies learn from eight cases of each site, so that a table takes less than an
hour of two cores. ``--full`` takes all strategies and all cases, for a machine with a GPU.

Run with a folder that holds the data sets::

    python benchmarks/strategies.py scanners --out runs/strategies
    python benchmarks/strategies.py institutions --data DATA --out runs/strategies

An interrupted run goes on with the same command. The table is printed as Markdown; OUT/TASK holds the report
(OUT/TASK-full with ``--full``).
``--model`` and whatever else `wardround compare` knows can be given as well.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wardround.deploy.compare.tables import compare_table
from wardround.deploy.report.results import load_results
from wardround.strategies.catalogue import names
from wardround.strategies.weighting import rules


@dataclass(frozen=True)
class Task:
    """A comparison.

    Parameters
    ----------
    options
        Of `wardround compare`.
    data
        Name of the data set's folder; "" for phantoms.
    strategies, weightings
        Arms; None for all.
    short
        More options, without ``--full``.
    """

    options: tuple[str, ...]
    data: str = ""
    strategies: tuple[str, ...] | None = None
    weightings: tuple[str, ...] | None = None
    short: tuple[str, ...] = ()


_PLAIN = ("--plan", "validation_cases=0")
# One of each kind: a mean, near the global weights, steps of the server, robust, local keys, corrected, a network each.
_FEW = ("fedavg", "fedprox", "fedavgm", "fedtrimmedavg", "fedbn", "scaffold", "ditto")
TASKS: Mapping[str, Task] = {
    "scanners": Task(
        (
            *("--sites", "4", "--cases", "8", "--tests", "6", "--shift", "3", "--shape", "32,40,32", "--rounds", "8"),
            *("--plan", "updates_per_case=16", *_PLAIN),
        )
    ),
    "institutions": Task(
        (
            *("--sites", "split.json", "--rounds", "6", "--plan", "slices_per_case=8"),
            *("--plan", "updates_per_case=16", "--plan", "patch=96,96,24", *_PLAIN),
        ),
        "lgg_multisite",
        _FEW,
        ("worst-site",),
        ("--cases", "8", "--plan", "patch=64,64,16"),
    ),
    "hippocampus": Task(
        (
            *("--sites", "split.json", "--rounds", "8", "--plan", "slices_per_case=12"),
            *("--plan", "updates_per_case=16", *_PLAIN),
        ),
        "hippocampus",
        _FEW,
        ("worst-site",),
        ("--cases", "8"),
    ),
    "phantoms": Task(
        (
            *("--sites", "2", "--cases", "2", "--tests", "1", "--shift", "3", "--shape", "24,24,24", "--rounds", "2"),
            *("--plan", "updates_per_case=2", *_PLAIN),
        ),
        strategies=("fedavg", "fedbuff"),
        weightings=("afl",),
    ),
}


def main() -> int:
    """Run or resume a task and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=tuple(TASKS))
    parser.add_argument("--data", type=Path, help="holds the data sets; $WARDROUND_DATA by default")
    parser.add_argument("--out", type=Path, default=Path("runs/strategies"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", default="2")
    parser.add_argument("--full", action="store_true", help="all strategies and all cases")
    options, more = parser.parse_known_args()
    task, out = TASKS[options.task], options.out / (options.task + "-full" * options.full)
    if options.data is None and (named := os.environ.get("WARDROUND_DATA")):
        options.data = Path(named)
    if options.data is None and task.data:
        parser.error("give the folder of the data sets with --data")

    command = [sys.executable, "-m", "wardround.deploy.cli", "compare", "--jobs", options.jobs]
    if (out / "experiment.json").exists():
        command += ["--resume", str(out)]
    else:
        command += ["--out", str(out), "--seeds", options.seeds, *arms_of(task, full=options.full)]
        command += [*task.options, *(() if options.full else task.short), *more]
        command += ["--data", str(options.data / task.data)] if task.data else []
    code = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode
    if (out / "results.json").exists():
        results = load_results(out)
        print(f"\n{options.task}: {len(results.sites)} sites, seeds {results.seed_list}, load {results.machine.load}\n")
        print(compare_table(results).markdown())
    return code


def arms_of(task: Task, *, full: bool) -> Sequence[str]:
    """The arms as options of `wardround compare`; fedavg comes first, since the others are compared with it."""
    everyone = sorted(names(), key=lambda name: name != "fedavg")
    strategies = everyone if full else task.strategies or everyone
    # By examples is fedavg itself.
    every = [rule for rule in rules() if rule != "examples"]
    weightings = every if full else task.weightings or every
    return ["--strategies", ",".join(strategies), "--weightings", ",".join(weightings)]


if __name__ == "__main__":
    raise SystemExit(main())
