"""One hospital ten times slower than the others: how long until buffered rounds are as good as synchronous ones.

Both arms see the same phantoms under a simulated clock: a site has learnt from a round's cases after a second, the
slow one after ten. *synchronous* is fedavg, which waits for it; *buffered* is FedBuff (Nguyen et al. 2022), which does
not, and of whose slow site the cases of the rounds in between are left out. After every round the global weights are
scored on the test cases of all sites, at no cost. Equal Dice is, for each seed, that of the worse of both last
weights; the time of an arm is that of the first round from which it stays at least as good. What the other arm gained
beyond stands in the column of the last weights.

Run::

    python benchmarks/asynchronous.py --out runs/asynchronous

An interrupted run goes on with the same command.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch

from wardround.client.annotation.prompts import Labels3D
from wardround.client.cases.dataset import load_dataset
from wardround.client.cases.nifti import read_image, read_labels
from wardround.client.cases.volume import Volume
from wardround.client.learning.inference import normalise
from wardround.client.learning.learner import OnlineLearner
from wardround.client.learning.metrics import mean_dice
from wardround.client.learning.settings import LearningSettings
from wardround.deploy.clock import CLOCK
from wardround.deploy.compare.settings import CompareSettings, compare_settings_from
from wardround.deploy.compare.summary import OverSeeds
from wardround.deploy.dealing import ArmRun
from wardround.deploy.preparation import EXPERIMENT, claim, data_folder, prepare, stored_settings
from wardround.deploy.progress import Progress
from wardround.deploy.report.tables import Table
from wardround.deploy.simulation import run_arm
from wardround.files import write_text
from wardround.server.journal import read_weights

SYNCHRONOUS, BUFFERED = "synchronous", "buffered"
CURVE = "curve.json"
SLOW_S = 10.0

Curve = list[list[float]]
"""Of every round: simulated seconds, and Dice on the test cases of all sites."""


def main() -> int:
    """Run or resume both arms and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/asynchronous"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--tests", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--updates", type=int, default=10, help="a case")
    parser.add_argument("--buffer", type=int, default=3)
    parser.add_argument("--side", type=int, default=24, help="voxels along every axis")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = settings_of(options)
    if not (options.out / EXPERIMENT).exists():
        claim(options.out, settings, "benchmarks/asynchronous.py")
    elif stored_settings(options.out) != settings:
        parser.error(f"{options.out} holds another comparison; give another --out")
    load = os.getloadavg()[0]
    curves: dict[str, list[Curve]] = {SYNCHRONOUS: [], BUFFERED: []}
    for run in prepare(options.out, settings):
        curves[run.arm].append(curve_of(run, data_folder(options.out, settings)))
        print(f"{run.name}: {curves[run.arm][-1][-1][0]:.0f} s, Dice {curves[run.arm][-1][-1][1]:.3f}", flush=True)
    slow = f"one of {options.sites} sites {SLOW_S:g} times slower, buffer of {options.buffer}"
    print(f"\n{slow}, {options.rounds} rounds, seeds {options.seeds}, load {load:.1f}\n")
    print(table_of(curves).markdown())
    return 0


def settings_of(options: argparse.Namespace) -> CompareSettings:
    """Both arms under one clock."""
    side = options.side
    drawn = {"sites": options.sites, "cases": options.cases, "tests": options.tests, "shape": (side, side, side)}
    buffered = {"strategy": "fedbuff", "options": {"buffer": options.buffer}}
    return compare_settings_from(
        {
            "phantoms": drawn,
            "arms": {SYNCHRONOUS: {}, BUFFERED: buffered},
            "beside": (),
            "rounds": options.rounds,
            "seeds": tuple(options.seeds),
            "slow": {f"site_{options.sites}": SLOW_S},
            "plan": {"updates_per_case": options.updates, "validation_cases": 0},
            "device": "cpu",
        }
    )


def curve_of(run: ArmRun, data: Path) -> Curve:
    """Run or resume an arm; its curve is on the disk beside it."""
    path = run.folder / CURVE
    known: dict[str, list[float]] = json.loads(path.read_text()) if path.exists() else {}
    dataset = load_dataset(data)
    tests: list[tuple[Volume, Labels3D]] = []
    for case in sorted({case for site in run.cases.values() for case in site.tests}):
        label = dataset.cases[case].label
        assert label is not None
        truth = np.asarray(read_labels(label).array, dtype=np.uint8)
        tests.append((read_image(dataset.cases[case].image), truth))
    learner = OnlineLearner(LearningSettings.of(run.plan), torch.device("cpu"))

    def score(progress: Progress) -> None:
        if progress.phase == "train" or progress.site or str(progress.round) in known:
            return
        learner.load(read_weights(run.folder / "journal", progress.round))
        labels = [learner.predict(normalise(image.array)).argmax(axis=0).astype(np.uint8) for image, _ in tests]
        dice = [mean_dice(found, truth, run.plan.labels) for found, (_, truth) in zip(labels, tests, strict=True)]
        now = json.loads((run.folder / CLOCK).read_text())["now"]
        known[str(progress.round)] = [now, float(np.mean(dice))]
        write_text(path, json.dumps(known))

    run_arm(run.folder, listen=score)
    return [known[number] for number in sorted(known, key=int)]


def reached(curve: Curve, level: float) -> float:
    """Seconds after which a curve stays at `level` or above; infinite where it ends below."""
    when = float("inf")
    for seconds, dice in reversed(curve):
        if dice < level:
            break
        when = seconds
    return when


def table_of(curves: dict[str, list[Curve]]) -> Table:
    """A row an arm: how long it took, how good it ended, and when it was as good as both are at their ends."""
    levels = [min(curve[-1][1] for curve in both) for both in zip(*curves.values(), strict=True)]
    waited = [reached(curve, level) for curve, level in zip(curves[SYNCHRONOUS], levels, strict=True)]
    rows = []
    for arm, found in curves.items():
        times = [reached(curve, level) for curve, level in zip(found, levels, strict=True)]
        shares = [time / other for time, other in zip(times, waited, strict=True)]
        rows.append(
            (
                arm,
                f"{np.mean([curve[-1][0] for curve in found]):.0f}",
                OverSeeds.of([curve[-1][1] for curve in found]).text(),
                ", ".join(f"{time:.0f}" for time in times),
                ", ".join(f"{share:.2f}" for share in shares),
            )
        )
    return Table(("arm", "seconds in all", "Dice [95 %]", "seconds to equal Dice", "of synchronous"), tuple(rows))


if __name__ == "__main__":
    raise SystemExit(main())
