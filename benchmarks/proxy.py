"""How good a proxy mask is for what it costs: Dice against annotation effort, without any network.

Every row is one way to spend a budget of slices on every case: how many slices across which axis, in how many rounds,
by which rule, merged how. Read the table by effort: a row is beaten if another has more Dice for less. Only training
cases of the split are read, because settings are chosen from this table.

Run on the folder of a data set that has a ``dataset.json`` and a ``split.json``::

    OMP_NUM_THREADS=1 python benchmarks/proxy.py DATA/hippocampus --cases 40
    OMP_NUM_THREADS=1 python benchmarks/proxy.py DATA/lgg_multisite --cases 40

The table is printed as Markdown. Below it the proxy is compared, case by case, with shape interpolation alone
(Wilcoxon signed-rank test, one-sided): on the same slices, and at the same effort, where the interpolation may use
evenly spaced slices of any single plane. Its Dice at that effort is read off the case's own curve over several numbers
of slices. In thick slices the two planes that cut across them look cheap, because their coarse pixels make short
contours that nobody could draw well. ``--only-tests`` leaves the table out.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from wardround.client.annotation.allocation import allocate
from wardround.client.annotation.annotator import SimulatedAnnotator, Truth
from wardround.client.annotation.effort import Effort, effort_of
from wardround.client.annotation.guidance import next_slices, suggest
from wardround.client.annotation.prompts import Annotations
from wardround.client.annotation.propagation import PropagationCache, PropagationSettings, ProxyMask, propagate
from wardround.client.cases.dataset import load_dataset, split_by_file
from wardround.client.cases.nifti import read_image, read_labels
from wardround.client.cases.volume import Volume

SEED = 0


@dataclass(frozen=True)
class Scheme:
    """One way to spend a budget.

    Parameters
    ----------
    slices
        Slices a case, shared by :func:`allocate`, or the slices across each axis.
    shares
        Fraction of the budget in each round.
    rule
        Of the second round on; ``doubt`` follows the proxy's own doubt, because there is no network here.
        ``information`` knows no prediction here either: its slices are Chebyshev nodes.
    extent
        Whether the object's extent is known.
    registration
        As in :class:`PropagationSettings`.
    """

    slices: int | tuple[int, int, int]
    shares: tuple[float, ...] = (1.0,)
    rule: str = "even"
    extent: bool = True
    registration: str = "demons"

    def __str__(self) -> str:
        rounds = "one round" if len(self.shares) == 1 else f"rounds of {' + '.join(f'{n:.0%}' for n in self.shares)}"
        parts = [f"{self.slices} slices", self.rule, rounds]
        parts += ["no extent"] * (not self.extent)
        parts += {"demons": [], "none": ["shape alone"]}.get(self.registration, [self.registration])
        return ", ".join(parts)


@dataclass(frozen=True)
class Figures:
    """Of one case: Dice of the object, mean Dice of structures, effort, slices drawn, CPU seconds of propagation."""

    whole: float
    structures: float
    effort: Effort
    slices: int
    seconds: float


# Slices of one plane at which shape interpolation alone is measured.
COUNTS = (2, 3, 4, 5, 6, 8, 10, 12, 15)

COMPARED = tuple(Scheme(count, rule="information") for count in (4, 8, 10, 12))
SCHEMES = (
    Scheme(8),
    Scheme(10),
    Scheme(12),
    Scheme(8, rule="information"),
    Scheme(10, rule="information"),
    Scheme(12, rule="information"),
    Scheme(12, rule="random"),
    Scheme(12, (0.5, 0.5)),
    Scheme(12, (0.5, 0.5), "doubt"),
    Scheme(12, (0.67, 0.33), "doubt"),
    Scheme(12, registration="none"),
    Scheme(12, extent=False),
    Scheme((2, 6, 0)),
    Scheme((2, 8, 0)),
    Scheme((3, 3, 3)),
    Scheme((3, 3, 3), rule="random"),
)


def measure(image: Volume, labels: Volume, classes: int, scheme: Scheme, seed: int) -> Figures:
    """Spend one budget on one case."""
    annotator = SimulatedAnnotator({"": Truth(labels)})
    extent = annotator.extent("")
    assert extent is not None
    size = tuple(high - low + 1 for low, high in zip(extent.lower, extent.upper, strict=True))
    whole = scheme.slices
    if isinstance(whole, int):
        whole = allocate(whole, size if scheme.extent else image.shape, image.spacing, image.shape)
    annotations = Annotations(extent=extent if scheme.extent else None)
    settings = replace(PropagationSettings(), registration=scheme.registration)
    cache, rng = PropagationCache(), np.random.default_rng(np.random.SeedSequence([SEED, seed]))
    proxy: ProxyMask | None = None
    seconds, before = 0.0, np.zeros(3, dtype=int)
    for step, share in enumerate(np.cumsum(scheme.shares)):
        until = np.ceil(np.array(whole) * min(share, 1) - 1e-6).astype(int)
        if scheme.rule == "information":
            requests = next_slices(
                annotations,
                image.shape,
                image.spacing,
                rule="information",
                total=sum(whole),
                allocation=whole,
                rounds=len(scheme.shares),
                step=step,
                proxy=proxy,
                prediction=np.full((classes, *image.shape), 1 / classes, dtype=np.float32),
                uncertainty=None,
                rng=rng,
            )
        else:
            requests = suggest(
                annotations,
                image.shape,
                tuple((until - before).tolist()),
                rule="residual" if scheme.rule == "doubt" else scheme.rule,
                residual=None if proxy is None else 1 - proxy.probabilities.max(axis=0),
                rng=rng,
            )
        before = until
        annotations = annotations.adding(*(annotator.draw("", request) for request in requests))
        start = time.process_time()
        proxy = propagate(image, annotations, classes, settings=settings, cache=cache)
        seconds += time.process_time() - start
    assert proxy is not None
    found, true = proxy.labels, labels.array
    return Figures(
        dice(found > 0, true > 0),
        float(np.mean([dice(found == label, true == label) for label in range(1, classes)])),
        effort_of(annotations, *annotator.full_effort("")),
        len(annotations.slices),
        seconds,
    )


def interpolated(
    cases: list[tuple[Volume, Volume, int]], efforts: np.ndarray
) -> tuple[list[np.ndarray], list[tuple[int, int]]]:
    """Dice of shape interpolation alone at given efforts, for each plane that slices can be drawn on.

    Parameters
    ----------
    cases
        As :func:`training_cases` yields them.
    efforts
        ``[N, M]``: M contour efforts for each of N cases.

    Returns
    -------
    list of ndarray
        For each axis ``[N, M]``, linear between the efforts of :data:`COUNTS` slices.
    list of tuple
        For each axis how many of the efforts lie below and above the curve; there the curve's end is taken.
    """
    found, outside = [], []
    for axis in range(3):
        dices, below, above = np.zeros(efforts.shape), 0, 0
        for n, (image, labels, classes) in enumerate(cases):
            points = []
            for count in COUNTS:
                slices = (count if axis == 0 else 0, count if axis == 1 else 0, count if axis == 2 else 0)
                row = measure(image, labels, classes, Scheme(slices, registration="none"), n)
                if points and row.effort.contour <= points[-1][0]:
                    break
                points.append((row.effort.contour, row.whole))
                if row.effort.contour > efforts[n].max():
                    break
            effort, whole = np.array(points).T
            dices[n] = np.interp(efforts[n], effort, whole)
            below += int(np.count_nonzero(efforts[n] < effort[0]))
            above += int(np.count_nonzero(efforts[n] > effort[-1]))
        found.append(dices)
        outside.append((below, above))
    return found, outside


def paired(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Mean gain, its 95 % bootstrap interval over cases, and the one-sided test."""
    gain = ours - theirs
    if not gain.any():
        return "no difference"
    draws = np.random.default_rng(SEED).choice(gain, (4000, len(gain))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    p = stats.wilcoxon(gain, alternative="greater").pvalue
    return f"{gain.mean():+.4f} Dice [{low:+.4f}, {high:+.4f}], p = {p:.1e}, n = {len(gain)}"


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Dice of two masks; two empty ones agree."""
    total = np.count_nonzero(one) + np.count_nonzero(other)
    return 2 * np.count_nonzero(one & other) / total if total else 1.0


def training_cases(folder: Path, count: int) -> Iterator[tuple[Volume, Volume, int]]:
    """Image, labels and number of classes of the first training cases that hold an object."""
    dataset = load_dataset(folder)
    federation = split_by_file(dataset, Path("split.json"))
    for case in sorted(case for cases in federation.sites.values() for case in cases):
        files = dataset.cases[case]
        if files.label is None or not count:
            continue
        labels = read_labels(files.label)
        if labels.array.any():
            count -= 1
            yield read_image(files.image), labels, len(dataset.label_names)


def table(cases: list[tuple[Volume, Volume, int]], schemes: tuple[Scheme, ...]) -> None:
    """Measure every scheme on every case and print a row for each: means over cases (sd)."""
    print("| slices and rule | drawn | effort | strict effort | Dice, whole | Dice, structures | CPU seconds |")
    print("|---|---|---|---|---|---|---|")
    for scheme in schemes:
        rows = [measure(*case, scheme, n) for n, case in enumerate(cases)]
        wholes, structures = [row.whole for row in rows], [row.structures for row in rows]
        means = [
            f"{np.mean([row.slices for row in rows]):.1f}",
            f"{np.mean([row.effort.contour for row in rows]):.3f}",
            f"{np.mean([row.effort.strict for row in rows]):.3f}",
            f"{np.mean(wholes):.3f} ({np.std(wholes):.3f})",
            f"{np.mean(structures):.3f} ({np.std(structures):.3f})",
            f"{np.mean([row.seconds for row in rows]):.3f}",
        ]
        print(f"| {scheme} | {' | '.join(means)} |", flush=True)
    print()


def main() -> None:
    """Print the table of schemes and the paired tests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--only-tests", action="store_true", help="leave the table out")
    parser.add_argument("--sitk", action="store_true", help="also measure SimpleITK's demons (slow)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = list(training_cases(options.data, options.cases))
    print(f"{len(cases)} training cases of {options.data.name}, one thread, seed {SEED}\n")
    if not options.only_tests:
        table(cases, SCHEMES + ((Scheme(12, registration="sitk"),) if options.sitk else ()))
    print("Registration and shape against shape alone, on the same slices and at the same effort of a single plane:\n")
    ours = [[measure(*case, scheme, n) for n, case in enumerate(cases)] for scheme in COMPARED]
    efforts = np.array([[row.effort.contour for row in rows] for rows in ours]).T
    planes, outside = interpolated(cases, efforts)
    for m, scheme in enumerate(COMPARED):
        proxy = np.array([row.whole for row in ours[m]])
        same = [measure(*case, replace(scheme, registration="none"), n).whole for n, case in enumerate(cases)]
        print(f"- {scheme}: {proxy.mean():.4f} at effort {efforts[:, m].mean():.3f}")
        print(f"  - same slices {np.mean(same):.4f}: {paired(proxy, np.array(same))}")
        for axis, dices in enumerate(planes):
            print(f"  - same effort, axis {axis} {dices[:, m].mean():.4f}: {paired(proxy, dices[:, m])}")
    print(f"\nEfforts off the ends of the planes' curves, (below, above), of {efforts.size}: {outside}")


if __name__ == "__main__":
    main()
