"""The numbers of a stream that people quote, computed in one place for the terminal, the page and the benchmark.

Dice of a run
    A test case counts by its mean over labels, averaged over seeds; the interval is the 95 % percentile bootstrap over
    test cases.
Effort at a share of dense
    The curve of an arm over its budgets is followed by straight lines from the least effort to the most. The effort is
    that of the first place which reaches the share of the dense arm's Dice; where the smallest budget already reaches
    it, that budget's effort is an upper bound. Its interval resamples test cases of both arms together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wardround.deploy.report.results import ArmResult, Interaction, Results
from wardround.deploy.report.summary import (
    PairedDifference,
    Spread,
    case_scores,
    paired,
    signed,
)
from wardround.deploy.stream.arms import DENSE, SLICES_ONLY
from wardround.pages import NOTHING

RESAMPLES = 2000
SHARE_OF_DENSE = 0.99
WINDOW = 15

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean over `count` cases and its 95 % bootstrap interval; NaN where there are none (bounds: fewer than two)."""

    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    count: int = 0

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """The mean of the finite values and its interval, by resampling them."""
        kept = np.array([value for value in values if math.isfinite(value)])
        if not kept.size:
            return cls()
        return cls.around(float(kept.mean()), resample(kept)[:, 0], int(kept.size))

    @classmethod
    def around(cls, mean: float, draws: Floats, count: int) -> "Interval":
        """A mean with the interval of its resampled values ``[R]``."""
        if count < 2:
            return cls(mean, math.nan, math.nan, count)
        low, high = np.nanpercentile(draws, [2.5, 97.5])
        return cls(mean, float(low), float(high), count)

    @property
    def known(self) -> bool:
        """Whether there was any value."""
        return self.count > 0

    def text(self, digits: int = 3) -> str:
        """`0.853 [0.841, 0.862]`, or a dash."""
        if not self.known:
            return NOTHING
        interval = f" [{self.low:.{digits}f}, {self.high:.{digits}f}]" if math.isfinite(self.low) else ""
        return f"{self.mean:.{digits}f}{interval}"

    def points(self) -> str:
        """The same in Dice points with signs: `−0.8 [−1.6, +0.1]`."""
        if not self.known:
            return NOTHING
        interval = f" [{signed(100 * self.low)}, {signed(100 * self.high)}]" if math.isfinite(self.low) else ""
        return signed(100 * self.mean) + interval


@dataclass(frozen=True)
class Point:
    """One run of a stream over its seeds: a point of an arm's curve.

    Attributes
    ----------
    name, family, budget, seeds
        ``proxy-8``, ``proxy``, 8 and the seeds that were run.
    effort, strict_effort
        Shares of contouring every slice, 0 … 1, over seeds.
    dice
        Of the final model on test cases; `dice_seeds` is its spread over seeds.
    proxy_dice
        Of what the learner was given, on the streamed cases; for dense labels 1.
    updates, rejected, seconds
        Over seeds; `rejected` counts cases whose updates were taken back.
    """

    name: str
    family: str
    budget: int
    seeds: tuple[int, ...]
    effort: Spread
    strict_effort: Spread
    dice: Interval
    dice_seeds: Spread
    proxy_dice: Interval
    updates: Spread
    rejected: Spread
    seconds: Spread


@dataclass(frozen=True)
class Reach:
    """The effort at which an arm reaches a share of the dense arm's Dice.

    Attributes
    ----------
    family
        The arm.
    level
        The Dice to reach.
    effort
        Share of contouring every slice; infinite where the curve stays below.
    low, high
        95 % bootstrap interval over test cases; infinite where it is not reached.
    bound
        Whether the smallest budget already reaches it, so that `effort` is an upper bound.
    """

    family: str
    level: float
    effort: float
    low: float
    high: float
    bound: bool

    def text(self) -> str:
        """`0.21 [0.18, 0.26]`, `≤ 0.15`, or `not reached`."""
        if not math.isfinite(self.effort):
            return "not reached" + (f" (interval from {self.low:.3f})" if math.isfinite(self.low) else "")
        high = f"{self.high:.3f}" if math.isfinite(self.high) else "not reached"
        return f"{'≤ ' if self.bound else ''}{self.effort:.3f} [{self.low:.3f}, {high}]"


def runs_by_name(results: Results) -> dict[str, tuple[ArmResult, ...]]:
    """Run → its results over seeds, in the order of the experiment."""
    names = dict.fromkeys(result.arm for result in results.arms)
    return {name: tuple(result for result in results.arms if result.arm == name) for name in names}


def points(results: Results) -> list[Point]:
    """Every run as a point, in the order of the experiment."""
    return [_point(name, group) for name, group in runs_by_name(results).items()]


def curves(results: Results) -> dict[str, list[Point]]:
    """Arm → its points from the least to the most effort; those without a final model are left out."""
    found: dict[str, list[Point]] = {}
    for point in points(results):
        if point.dice.known and point.effort.known:
            found.setdefault(point.family, []).append(point)
    return {family: sorted(own, key=lambda point: point.effort.mean) for family, own in found.items()}


def dense_point(results: Results) -> Point | None:
    """The arm on dense labels, with the largest budget where it was run with several."""
    return max(curves(results).get(DENSE, ()), key=lambda point: point.budget, default=None)


def by_case(group: Sequence[ArmResult]) -> dict[str, float]:
    """Test case → Dice of the final models, averaged over seeds."""
    collected: dict[str, list[float]] = {}
    for result in group:
        for case, value in case_scores(result).items():
            collected.setdefault(case, []).append(value)
    return {case: float(np.mean(values)) for case, values in sorted(collected.items())}


def against(results: Results, name: str, reference: str) -> PairedDifference | None:
    """One run minus another, case by case under the same seed; None where either is missing or they are the same."""
    groups = runs_by_name(results)
    if name == reference or name not in groups or reference not in groups:
        return None
    return paired(groups[name], groups[reference], reference)


def partner(results: Results, point: Point) -> str:
    """The run that only sees the slices drawn with the same budget; empty where there is none."""
    name = f"{SLICES_ONLY}-{point.budget}"
    return name if point.name != name and name in runs_by_name(results) else ""


def reaches(results: Results, share: float = SHARE_OF_DENSE) -> list[Reach]:
    """For every arm but dense, the effort at which it reaches `share` of the dense arm's Dice."""
    dense = dense_point(results)
    if dense is None:
        return []
    groups = runs_by_name(results)
    whole = by_case(groups[dense.name])
    found = []
    for family, curve in curves(results).items():
        if family == DENSE:
            continue
        scores = [by_case(groups[point.name]) for point in curve]
        cases = sorted(set(whole).intersection(*scores))
        if not cases:
            continue
        table = np.array([[own[case] for case in cases] for own in (whole, *scores)])
        efforts = [point.effort.mean for point in curve]
        drawn = [effort_at(efforts, means[1:], share * means[0]) for means in resample(table.T)]
        means = table.mean(axis=1)
        effort = effort_at(efforts, means[1:], share * means[0])
        low, high = (float(np.percentile(drawn, q, method="nearest")) for q in (2.5, 97.5))
        found.append(Reach(family, share * float(means[0]), effort, low, high, bool(means[1] >= share * means[0])))
    return found


def effort_at(efforts: Sequence[float], dice: Sequence[float] | Floats, level: float) -> float:
    """The effort at which a curve first reaches `level`, by straight lines between its points.

    Parameters
    ----------
    efforts, dice
        Of the points, efforts rising.
    level
        Dice to reach.

    Returns
    -------
    float
        The first effort where the first point already reaches it; infinity where none does.
    """
    for index, value in enumerate(dice):
        if value >= level:
            if index == 0:
                return float(efforts[0])
            share = (level - dice[index - 1]) / (value - dice[index - 1])
            return float(efforts[index - 1] + share * (efforts[index] - efforts[index - 1]))
    return math.inf


def prequential(group: Sequence[ArmResult], window: int = WINDOW) -> Floats:
    """Dice of the model on each new case before anything was drawn on it, as a running mean.

    Parameters
    ----------
    group
        A run over its seeds.
    window
        Cases in the mean; fewer at the start.

    Returns
    -------
    array
        ``[cases]``, a value for every place in the stream, averaged over seeds; as long as the shortest of them.
    """
    streams = [[item.model_dice for item in result.interactions if item.step == 0] for result in group]
    length = min((len(stream) for stream in streams), default=0)
    if not length:
        return np.empty(0)
    values = np.array([stream[:length] for stream in streams], dtype=float)
    windows = [values[:, max(0, end - window) : end] for end in range(1, length + 1)]
    return np.array([float(np.nanmean(part)) if np.isfinite(part).any() else math.nan for part in windows])


def resample(values: Floats, stream: int = 0) -> Floats:
    """Means of bootstrap samples.

    Parameters
    ----------
    values
        ``[cases]`` or ``[cases, columns]``; a case is drawn with all its columns.
    stream
        Independent draws have different numbers.

    Returns
    -------
    array
        ``[RESAMPLES, columns]``. The draw depends on the number of cases and on `stream` only.
    """
    table = values[:, None] if values.ndim == 1 else values
    places = np.random.default_rng([0, stream]).integers(len(table), size=(RESAMPLES, len(table)))
    drawn: Floats = np.stack([np.nanmean(column[places], axis=1) for column in table.T], axis=1)
    return drawn


def last_steps(result: ArmResult) -> list[Interaction]:
    """The last step of every streamed case: what was paid for it, and what was learnt from."""
    last: dict[tuple[str, int], Interaction] = {}
    for item in result.interactions:
        key = (item.case, item.round)
        if key not in last or item.step > last[key].step:
            last[key] = item
    return list(last.values())


def _point(name: str, group: Sequence[ArmResult]) -> Point:
    proxies: dict[str, list[float]] = {}
    for result in group:
        for item in last_steps(result):
            proxies.setdefault(item.case, []).append(item.proxy_dice)
    return Point(
        name=name,
        family=group[0].family or name,
        budget=group[0].budget,
        seeds=tuple(sorted(result.seed for result in group)),
        effort=Spread.of(result.effort.contour for result in group),
        strict_effort=Spread.of(result.effort.strict for result in group),
        dice=Interval.of(list(by_case(group).values())),
        dice_seeds=Spread.of(Spread.of(case_scores(result).values()).mean for result in group),
        proxy_dice=Interval.of([Spread.of(values).mean for values in proxies.values()]),
        updates=Spread.of(float(result.updates) for result in group),
        rejected=Spread.of(float(result.rejected) for result in group),
        seconds=Spread.of(result.seconds.total for result in group),
    )
