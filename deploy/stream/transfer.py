"""What a stream that passes one group after the other keeps of the earlier ones.

``R[i][j]`` is the Dice on the test cases of group j after the stream has passed group i. Backward transfer is the mean
of ``R[T][j] - R[j][j]`` over the groups before the last (Lopez-Paz and Ranzato 2017, eq. 3), average accuracy the mean
of ``R[T][j]`` (eq. 2), forgetting the mean of ``max_{i<T} R[i][j] - R[T][j]`` (Chaudhry et al. 2018, eq. 3). Intervals
resample the test cases of each group, the same ones in every row.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wardround.deploy.report.results import ArmResult, ModelResult, Results
from wardround.deploy.report.summary import Spread, case_mean
from wardround.deploy.stream.summary import Floats, Interval, resample, runs_by_name


@dataclass(frozen=True)
class Forgetting:
    """What a run that passed one group after the other still knows.

    Attributes
    ----------
    name
        The run.
    matrix
        ``[T, T]``: Dice on group j after group i, means over seeds; NaN where nothing was measured.
    average, backward, forgotten
        Average accuracy, backward transfer and forgetting, as the module's docstring says; 1 is a Dice of 1.
    seeds
        That ran to the end; `backward_seeds` is backward transfer over them.
    """

    name: str
    matrix: tuple[tuple[float, ...], ...]
    average: Interval
    backward: Interval
    forgotten: Interval
    seeds: tuple[int, ...]
    backward_seeds: Spread


def forgetting(results: Results) -> list[Forgetting]:
    """Every run of a stream that is ordered by site; empty for another stream."""
    if len(results.groups) < 2:
        return []
    found = [_forgetting(name, group, results.groups) for name, group in runs_by_name(results).items()]
    return [item for item in found if item is not None]


def _forgetting(name: str, group: Sequence[ArmResult], groups: Sequence[str]) -> Forgetting | None:
    whole = [result for result in group if len(result.checkpoints) == len(groups)]
    if not whole:
        return None
    # Group → [seeds, T, cases], with the same cases for every seed and row.
    scores = {site: np.array([_on_group(result, site) for result in whole]) for site in groups}
    tested = [site for site in groups if scores[site].size]
    counts = [scores[site].shape[-1] for site in tested]
    draws = [resample(np.nanmean(scores[site], axis=0).T, number) for number, site in enumerate(tested)]
    places = [groups.index(site) for site in tested]

    def measure(columns: Sequence[Floats]) -> tuple[Floats, Floats, Floats]:
        """Average, backward transfer and forgetting from ``[R, T]`` for each tested group."""
        last = np.stack([column[:, -1] for column in columns])
        pairs = [(column, place) for column, place in zip(columns, places, strict=True) if place < len(groups) - 1]
        if not pairs:
            nothing = np.full(last.shape[1], math.nan)
            return last.mean(axis=0), nothing, nothing
        back = np.stack([column[:, -1] - column[:, place] for column, place in pairs])
        lost = np.stack([column[:, :-1].max(axis=1) - column[:, -1] for column, _ in pairs])
        return last.mean(axis=0), back.mean(axis=0), lost.mean(axis=0)

    means = measure([np.nanmean(scores[site], axis=(0, 2))[None] for site in tested])
    average, backward, forgotten = (
        Interval.around(float(mean[0]), drawn, sum(counts)) for mean, drawn in zip(means, measure(draws), strict=True)
    )
    per_seed = measure([np.nanmean(scores[site], axis=2) for site in tested])[1]
    rows = [
        [float(np.nanmean(scores[site][:, row])) if site in tested else math.nan for site in groups]
        for row in range(len(groups))
    ]
    return Forgetting(
        name,
        tuple(map(tuple, rows)),
        average,
        backward,
        forgotten,
        tuple(sorted(result.seed for result in whole)),
        Spread.of(per_seed.tolist()),
    )


def _on_group(result: ArmResult, site: str) -> list[list[float]]:
    """``[T, cases]``: Dice of every checkpoint on the test cases of one site, in the order of their names."""
    rows: list[Mapping[str, float]] = []
    for checkpoint in sorted(result.checkpoints, key=lambda item: item.round):
        scored = [score for score in ModelResult(cases=checkpoint.cases).cases if site in score.sites]
        rows.append({score.case: case_mean(score) for score in scored})
    cases = sorted(set(itertools.chain.from_iterable(rows)))
    return [[row.get(case, math.nan) for case in cases] for row in rows]
