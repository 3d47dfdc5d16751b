"""What record-level differential privacy costs, and what it keeps: Dice against ε, canaries, membership.

``dice``: federations of phantoms by ``wardround simulate``, without privacy, with the steps of private rounds under
next to no noise (what clipping, sampling and learning at the end of a round cost by themselves), and with more and
more noise; ε is that of the first site, at δ = 10⁻⁵, by opacus's RDP accountant.

``leaks``: one site's learner on phantoms, one of which in three is a canary. Two attacks on the weights that it would
send: how far a canary is learnt by heart, as exposure among canaries that were not learnt from, and whether a case was
learnt from, by how much its loss fell.

::

    OMP_NUM_THREADS=1 python benchmarks/privacy.py dice --out runs/privacy
    OMP_NUM_THREADS=1 python benchmarks/privacy.py leaks --out runs/privacy

Tables are printed as Markdown. An interrupted run goes on with the same command.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from leakage.attacks import area, exposure, found_at, gained
from leakage.cases import LABELS, canary, phantom
from runner import result_of, write_result

from wardround.client.gate.budget import Budget
from wardround.client.learning.accountant import epsilon_of
from wardround.client.learning.learner import LearningSettings, OnlineLearner
from wardround.client.learning.private_steps import PrivateSteps
from wardround.client.learning.replay import Sample
from wardround.client.private_round import SPENT
from wardround.deploy.report.results import load_results
from wardround.deploy.report.summary import summarise
from wardround.strategies.noise import Noise

DELTA = 1e-5
# By noise multiplier; the smallest is next to none.
NOISES = (1e-6, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class Taken:
    """Steps of one kind."""

    noise_multiplier: float
    sample_rate: float
    steps: int


def main() -> int:
    """Run what was asked for and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("dice", "leaks"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--cases", type=int, default=32, help="Of a site.")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--updates", type=int, default=8, help="Steps a case.")
    parser.add_argument("--rate", type=float, default=0.5, help="At which a case takes part in a step.")
    parser.add_argument("--clip", type=float, default=0.5, help="Norm that a case's gradient is cut to.")
    parser.add_argument("--noises", default=",".join(f"{noise:g}" for noise in NOISES))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    return dice(options) if options.what == "dice" else leaks(options)


def dice(options: argparse.Namespace) -> int:
    """Federations with more and more noise."""
    rows = []
    for noise in (None, *map(float, options.noises.split(","))):
        folder = options.out / ("plain" if noise is None else f"noise-{noise:g}")
        command = [sys.executable, "-m", "wardround.deploy.cli", "simulate", "--jobs", "1"]
        if (folder / "experiment.json").exists():
            command += ["--resume", str(folder)]
        else:
            command += ["--out", str(folder), "--cases", str(options.cases), "--rounds", str(options.rounds)]
            command += ["--seeds", options.seeds, "--compare", "federated", "--shape", "16,24,16"]
            command += ["--plan", f"updates-per-case={options.updates}"]
            if noise is not None:
                command += ["--privacy", "record", "--plan", f"noise-multiplier={noise}", "--plan", "batch-size=1"]
                command += ["--plan", f"sample-rate={options.rate}", "--plan", f"clip-norm={options.clip}"]
        code = subprocess.run(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, check=False
        ).returncode
        if code:
            return code
        (arm,) = summarise(load_results(folder / "results.json"))
        spent = [epsilon_of(Budget(path).charges(), DELTA) for path in sorted(folder.rglob(SPENT))[:1]]
        rows.append(["–" if noise is None else f"{noise:g}", f"{spent[0]:.3g}" if spent else "∞", arm.dice.text()])
        print(f"  {rows[-1]}", file=sys.stderr, flush=True)
    print_table(["noise multiplier", "ε", "Dice"], rows)
    return 0


def leaks(options: argparse.Namespace) -> int:
    """Attacks on learners with more and more noise."""
    rows = []
    for noise in (None, *map(float, options.noises.split(","))):
        name = "plain" if noise is None else f"noise-{noise:g}"
        for seed in map(int, options.seeds.split(",")):
            path = result_of(options.out, f"leaks-{name}", seed)
            if not path.exists():
                write_result(path, attacked(options, noise, seed))
                print(f"  {name}, seed {seed}", file=sys.stderr, flush=True)
        found = [
            json.loads(result_of(options.out, f"leaks-{name}", int(seed)).read_text())
            for seed in options.seeds.split(",")
        ]
        means = {key: float(np.mean([each[key] for each in found])) for key in found[0]}
        rows.append(
            ["–" if noise is None else f"{noise:g}", "∞" if noise is None else f"{means['epsilon']:.3g}"]
            + [f"{means[key]:.2f}" for key in ("exposure", "canaries", "area", "found", "loss")]
        )
    head = ["noise multiplier", "ε", "exposure of a canary, bits", "canaries told apart", "members told apart",
            "members found at 10 % false alarms", "loss on new phantoms"]  # fmt: skip
    print_table(head, rows)
    return 0


def attacked(options: argparse.Namespace, noise: float | None, seed: int) -> dict[str, float]:
    """Learn, then attack. Cases of two halves come from one distribution; one half is learnt from."""
    half = options.cases
    canaries = max(1, half // 3)
    pool = [canary(1000 * seed + number) for number in range(2 * canaries)]
    plain = [phantom(1000 * seed + number) for number in range(2 * (half - canaries))]
    members = [*pool[:canaries], *plain[: half - canaries]]
    others = [*pool[canaries:], *plain[half - canaries :]]
    learner = OnlineLearner(LearningSettings("unet3d-small", LABELS, seed, augmentation=None), torch.device("cpu"))
    learner.load(learner.weights())
    before = learner.losses(members), learner.losses(others)
    steps = options.updates * half
    learn(learner, members, options, noise, seed, steps)
    after = learner.losses(members), learner.losses(others)
    inside, outside = (gained(old, new) for old, new in zip(before, after, strict=True))
    return {
        "epsilon": 0.0 if noise is None else epsilon_of([Taken(noise, options.rate, steps)], DELTA),
        "exposure": float(np.mean([exposure(loss, after[1][:canaries]) for loss in after[0][:canaries]])),
        "canaries": area(inside[:canaries], outside[:canaries]),
        "area": area(inside[canaries:], outside[canaries:]),
        "found": found_at(inside[canaries:], outside[canaries:], 0.1),
        "loss": float(np.mean(after[1][canaries:])),
    }


def learn(  # noqa: PLR0917
    learner: OnlineLearner,
    members: list[Sample],
    options: argparse.Namespace,
    noise: float | None,
    seed: int,
    steps: int,
) -> None:
    """All steps of a site on its members, with as many cases in a step with noise and without."""
    rng = np.random.default_rng(seed)
    if noise is None:
        size = max(1, round(options.rate * len(members)))
        learner.update(
            lambda: [members[int(number)] for number in rng.choice(len(members), size, replace=False)], steps, 4e-3, rng
        )
        return
    private = PrivateSteps(noise, options.clip, options.rate, len(members), Noise(f"leaks {seed}".encode()))
    learner.update_privately(lambda numbers: [[members[number]] for number in numbers], steps, 4e-3, private)


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """As Markdown."""
    for row in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    raise SystemExit(main())
