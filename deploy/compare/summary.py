"""The numbers of a comparison that people quote, computed in one place for the terminal, the page and the benchmark.

A test case counts by its mean Dice over labels. A seed has one score for an arm (the mean over test cases), one for
each site (over its own) and one for the worst site (the least of these); intervals are over seeds, by Student's t, and
so say how far the mean of other seeds on the same cases may lie. The best single site is, at each site, the model of
whichever hospital did best there over all seeds: it is chosen on the test cases themselves, which favours it.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from scipy.stats import t

from wardround.deploy.report.results import ArmResult, Results
from wardround.deploy.report.summary import (
    LOCAL_ARM,
    PairedDifference,
    Spread,
    arm_groups,
    best_local,
    case_mean,
    case_scores,
    paired,
    site_names,
)
from wardround.pages import NOTHING

BEST_SINGLE = "best single site"
LOCAL_ONLY = "local only"


@dataclass(frozen=True)
class OverSeeds:
    """A mean over `count` seeds with its 95 % interval; NaN where there is none (bounds: fewer than two seeds)."""

    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    count: int = 0

    @classmethod
    def of(cls, values: Iterable[float]) -> "OverSeeds":
        """The mean of the finite values, and Student's interval: mean ± t(0.975, n − 1) · s / √n."""
        found = Spread.of(values)
        if found.count < 2:
            return cls(found.mean, math.nan, math.nan, found.count)
        half = float(t.ppf(0.975, found.count - 1)) * found.sd / math.sqrt(found.count)
        return cls(found.mean, found.mean - half, found.mean + half, found.count)

    @property
    def known(self) -> bool:
        """Whether there was any value."""
        return self.count > 0

    def text(self) -> str:
        """`0.853 [0.841, 0.862]`, or a dash."""
        if not self.known:
            return NOTHING
        return f"{self.mean:.3f}" + (f" [{self.low:.3f}, {self.high:.3f}]" if math.isfinite(self.low) else "")


@dataclass(frozen=True)
class Row:
    """An arm over its seeds.

    Attributes
    ----------
    name
        As in the table.
    combines
        Whether it is a federation, and not beside one.
    dice, worst
        Over test cases, and of the worst site.
    sites
        Site → Dice there.
    worst_site
        The site with the lowest mean, "" where no site is known.
    against
        Minus the first strategy, case by case; None for that one, and where they share nothing.
    bytes_up, seconds
        Of a run: what left the sites, and how long it took.
    """

    name: str
    combines: bool
    dice: OverSeeds
    worst: OverSeeds
    sites: Mapping[str, OverSeeds]
    worst_site: str = ""
    against: PairedDifference | None = None
    bytes_up: Spread = field(default_factory=Spread)
    seconds: Spread = field(default_factory=Spread)


def rows(results: Results) -> list[Row]:
    """A row for every strategy in the order of the command, then what stands beside them."""
    groups = arm_groups(results)
    told = [name.removeprefix("arms.") for name in results.settings if name.startswith("arms.")]
    names = [name for name in told if name in groups] + [name for name in groups if name not in told]
    found = [_row(results, name, groups[name], groups.get(told[0], ()) if told else (), name in told) for name in names]
    best = _best_single(results)
    return [*found, best] if best is not None else found


def _row(
    results: Results, name: str, group: tuple[ArmResult, ...], reference: tuple[ArmResult, ...], combines: bool
) -> Row:
    by_seed = [
        {site: Spread.of(case_scores(result, site=site).values()).mean for site in site_names(results)}
        for result in group
    ]
    bytes_up = Spread.of(float(result.bytes.up) for result in group) if combines else Spread()
    return _of_sites(
        LOCAL_ONLY if name == LOCAL_ARM else name,
        by_seed,
        [Spread.of(case_scores(result).values()).mean for result in group],
        combines=combines,
        against=paired(group, reference, reference[0].arm) if reference and group != reference else None,
        bytes_up=bytes_up,
        seconds=Spread.of(result.seconds.total for result in group),
    )


def _best_single(results: Results) -> Row | None:
    """At each site, the model of the hospital that did best there."""
    best = best_local(results)
    alone = [result for result in results.arms if result.arm == LOCAL_ARM]
    if not best or not alone:
        return None
    by_seed, means = [], []
    for result in alone:
        scores: dict[str, dict[str, float]] = {site: {} for site in best}
        for site, winner in best.items():
            model = result.models.get(winner.owner)
            cases = model.cases if model is not None else ()
            scores[site] = {score.case: case_mean(score) for score in cases if site in score.sites}
        by_seed.append({site: Spread.of(own.values()).mean for site, own in scores.items()})
        by_case: dict[str, list[float]] = {}
        for own in scores.values():
            for case, value in own.items():
                by_case.setdefault(case, []).append(value)
        means.append(Spread.of(Spread.of(values).mean for values in by_case.values()).mean)
    return _of_sites(BEST_SINGLE, by_seed, means)


def _of_sites(
    name: str,
    by_seed: list[dict[str, float]],
    means: list[float],
    *,
    combines: bool = False,
    against: PairedDifference | None = None,
    bytes_up: Spread | None = None,
    seconds: Spread | None = None,
) -> Row:
    sites = {site: OverSeeds.of(scores[site] for scores in by_seed) for site in by_seed[0]}
    sites = {site: score for site, score in sites.items() if score.known}
    worst = [min((value for value in scores.values() if math.isfinite(value)), default=math.nan) for scores in by_seed]
    return Row(
        name,
        combines,
        OverSeeds.of(means),
        OverSeeds.of(worst),
        sites,
        min(sites, key=lambda site: sites[site].mean) if sites else "",
        against,
        bytes_up or Spread(),
        seconds or Spread(),
    )
