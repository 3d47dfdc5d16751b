"""How good a proxy mask is for what it costs: Dice against annotation effort, without any network.

Every row is one way to spend a budget of slices on every case: how many slices across which axis, in how many rounds,
by which rule, merged how. Read the table by effort: a row is beaten if another has more Dice for less. Only training
cases of the split are read, because settings are chosen from this table.

Run on the folder of a data set that has a ``dataset.json`` and a ``split.json``::

    OMP_NUM_THREADS=1 python benchmarks/proxy.py DATA/hippocampus --cases 40
    OMP_NUM_THREADS=1 python benchmarks/proxy.py DATA/lgg_multisite --cases 40

The table is printed as Markdown. The last line compares, case by case and on the same slices, registration with shape
interpolation alone (Wilcoxon signed-rank test, one-sided).
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from wardround.client.annotation.annotator import SimulatedAnnotator, Truth
from wardround.client.annotation.effort import Effort, effort_of
from wardround.client.annotation.guidance import allocate, suggest
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


SCHEMES = (
    Scheme(8),
    Scheme(10),
    Scheme(12),
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


def measure(image: Volume, labels: Volume, scheme: Scheme, classes: int, seed: int) -> Figures:
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
    for share in np.cumsum(scheme.shares):
        until = np.ceil(np.array(whole) * min(share, 1) - 1e-6).astype(int)
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


def main() -> None:
    """Measure every scheme on every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--sitk", action="store_true", help="also measure SimpleITK's demons (slow)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = list(training_cases(options.data, options.cases))
    schemes = SCHEMES + ((Scheme(12, registration="sitk"),) if options.sitk else ())
    print(f"{len(cases)} training cases of {options.data.name}, one thread, seed {SEED}; mean over cases (sd)\n")
    print("| slices and rule | drawn | effort | strict effort | Dice, whole | Dice, structures | CPU seconds |")
    print("|---|---|---|---|---|---|---|")
    whole: dict[Scheme, list[float]] = {}
    for scheme in schemes:
        rows = [measure(image, labels, scheme, classes, n) for n, (image, labels, classes) in enumerate(cases)]
        whole[scheme] = [row.whole for row in rows]
        means = [
            f"{np.mean([row.slices for row in rows]):.1f}",
            f"{np.mean([row.effort.contour for row in rows]):.3f}",
            f"{np.mean([row.effort.strict for row in rows]):.3f}",
            f"{np.mean(whole[scheme]):.3f} ({np.std(whole[scheme]):.3f})",
            f"{np.mean([row.structures for row in rows]):.3f} ({np.std([row.structures for row in rows]):.3f})",
            f"{np.mean([row.seconds for row in rows]):.3f}",
        ]
        print(f"| {scheme} | {' | '.join(means)} |", flush=True)
    gain = np.array(whole[Scheme(12)]) - np.array(whole[Scheme(12, registration="none")])
    test = stats.wilcoxon(gain, alternative="greater")
    print(f"\nRegistration against shape alone: {gain.mean():+.3f} Dice, p = {test.pvalue:.1e}, n = {len(cases)}.")


if __name__ == "__main__":
    main()
