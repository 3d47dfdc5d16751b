"""The numbers of a run that people quote, computed in one place for the terminal, the page and the benchmarks.

How a score is counted
    The score of a test case is its Dice averaged over the labels. An arm with one model scores a case with that
    model. An arm with a model per site scores a case with the model of the site whose test case it is, averaged over
    those sites: every hospital uses its own. A case of none of these sites is averaged over all models. The score of
    an arm under one seed is the mean over its test cases; `mean ± sd` is over seeds (sample standard deviation).
A paired difference
    Both arms score the same case under the same seed. Differences are averaged over seeds for each case, then over
    cases; the interval is the 95 % percentile bootstrap over cases.
The best single-site model at a site
    Of all the sites' own models, the one with the highest mean on that site's test cases over all seeds. It is chosen
    on the test cases themselves, which favours it over whatever is compared with it.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wardround.deploy.report.results import GLOBAL, ArmResult, CaseScore, ModelResult, Results
from wardround.pages import NOTHING

ARM_ORDER = ("federated", "dense", "pooled", "local", "proxy", "slices-only")
MAIN_ARM = "federated"
LOCAL_ARM = "local"


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of `count` values; NaN where there are none (sd: fewer than two)."""

    mean: float = math.nan
    sd: float = math.nan
    count: int = 0
    low: float = math.nan
    high: float = math.nan

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Summarise the finite values."""
        kept = [float(value) for value in values if math.isfinite(value)]
        if not kept:
            return cls()
        mean = math.fsum(kept) / len(kept)
        square = math.fsum((value - mean) ** 2 for value in kept)
        sd = math.sqrt(square / (len(kept) - 1)) if len(kept) > 1 else math.nan
        return cls(mean, sd, len(kept), min(kept), max(kept))

    @property
    def known(self) -> bool:
        """Whether there was any value."""
        return self.count > 0

    def text(self, digits: int = 3, scale: float = 1.0) -> str:
        """`0.853 ± 0.004`, or a dash where nothing was measured."""
        if not self.known:
            return NOTHING
        mean = f"{self.mean * scale:.{digits}f}"
        return f"{mean} ± {self.sd * scale:.{digits}f}" if self.count > 1 else mean


@dataclass(frozen=True)
class PairedDifference:
    """Arm minus reference over the test cases that both have scored, in Dice points (0.01 Dice).

    Attributes
    ----------
    reference
        Name of the arm that is subtracted.
    mean, sd
        Over cases, each averaged over the seeds that both arms ran.
    low, high
        95 % bootstrap interval of the mean.
    cases
        Number of cases.
    better
        Share of the cases in which the arm is better, 0 … 1.
    """

    reference: str
    mean: float
    sd: float
    low: float
    high: float
    cases: int
    better: float

    def text(self) -> str:
        """`−0.8 [−1.6, +0.1]`."""
        interval = f" [{signed(self.low)}, {signed(self.high)}]" if self.cases > 1 else ""
        return signed(self.mean) + interval


@dataclass(frozen=True)
class BestLocal:
    """The best single-site model on one site's test cases: whose it is, and its Dice over seeds."""

    owner: str
    dice: Spread


@dataclass(frozen=True)
class ArmSummary:
    """One row of the table: an arm over all its seeds.

    Attributes
    ----------
    name
        The arm, with the strategy appended where the run holds the arm under several strategies.
    arm, strategy, seeds
        As in the results.
    dice
        Mean Dice over labels, spread over seeds.
    label_dice, label_hd95, label_assd
        Label name → Dice (0 … 1), HD95 and ASSD (mm), spread over seeds.
    site_dice
        Site → mean Dice over labels on its test cases, spread over seeds.
    worst_site
        The site with the lowest mean, "" where no site is known.
    against
        The paired difference of this arm minus the federated arm; None for that arm itself or without common cases.
    effort, strict_effort
        Shares of contouring every slice, 0 … 1.
    updates, seconds, bytes_up, bytes_down, peak_memory_mb
        Spreads over seeds.
    cases
        Number of test cases scored.
    """

    name: str
    arm: str
    strategy: str
    seeds: tuple[int, ...]
    dice: Spread
    label_dice: Mapping[str, Spread]
    label_hd95: Mapping[str, Spread]
    label_assd: Mapping[str, Spread]
    site_dice: Mapping[str, Spread]
    worst_site: str
    against: PairedDifference | None
    effort: Spread
    strict_effort: Spread
    updates: Spread
    seconds: Spread
    bytes_up: Spread
    bytes_down: Spread
    peak_memory_mb: Spread
    cases: int


@dataclass(frozen=True)
class GoalLine:
    """One statement about the run. `value` and `goal` share `unit`; `met` is None where no goal was set."""

    title: str
    value: float
    goal: float
    unit: str
    met: bool | None
    text: str


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, with a real minus; a dash for NaN."""
    if not math.isfinite(value):
        return NOTHING
    rounded = round(value, digits) + 0.0
    return f"{rounded:+.{digits}f}".replace("-", "−")


def label_name(key: str, labels: Sequence[str]) -> str:
    """The name of the label `key` ("1" → "anterior"), or the key itself where the data set names none."""
    if key.isdecimal():
        return labels[int(key)] if int(key) < len(labels) else f"label {int(key)}"
    return key


def case_mean(score: CaseScore) -> float:
    """Dice of one case averaged over its labels; derived structures (keys that are no number) do not count."""
    return Spread.of(value for key, value in score.dice.items() if key.isdecimal()).mean


def model_at(result: ArmResult, site: str) -> ModelResult | None:
    """The model that `site` uses in this arm: its own, else the global one."""
    return result.models.get(site) or result.models.get(GLOBAL)


def case_scores(
    result: ArmResult, measure: Callable[[CaseScore], float] = case_mean, *, site: str | None = None
) -> dict[str, float]:
    """Score every test case of one arm and seed, as the module's docstring says.

    Parameters
    ----------
    result
        The arm under one seed.
    measure
        What to read from a case; the mean Dice over labels by default.
    site
        Only this site's test cases, with the model that this site uses.

    Returns
    -------
    dict
        Case → score; cases without a finite score are left out.
    """
    collected: dict[str, list[float]] = {}
    for name, model in result.models.items():
        for score in model.cases:
            foreign = name != GLOBAL and bool(score.sites) and name not in score.sites
            # A site whose own run failed has no model: another hospital's must not stand in for it.
            if foreign and (result.arm == LOCAL_ARM or set(score.sites) & set(result.models)):
                continue
            if site is not None and (site not in score.sites or model_at(result, site) is not model):
                continue
            value = measure(score)
            if math.isfinite(value):
                collected.setdefault(score.case, []).append(value)
    return {case: float(np.mean(values)) for case, values in collected.items()}


def site_names(results: Results) -> tuple[str, ...]:
    """All sites in the order of the run, those that only test cases name last."""
    names = dict.fromkeys(results.sites)
    for result in results.arms:
        for model in result.models.values():
            for score in model.cases:
                names.update(dict.fromkeys(score.sites))
    return tuple(names)


def arm_groups(results: Results) -> dict[str, tuple[ArmResult, ...]]:
    """Row name → the arm's results over seeds, in the usual order of the arms."""
    strategies: dict[str, set[str]] = {}
    for result in results.arms:
        strategies.setdefault(result.arm, set()).add(result.strategy)
    groups: dict[str, list[ArmResult]] = {}
    order = {arm: index for index, arm in enumerate(ARM_ORDER)}
    for result in sorted(results.arms, key=lambda item: order.get(item.arm, len(order))):
        several = len(strategies[result.arm]) > 1
        name = f"{result.arm} ({result.strategy})" if several else result.arm
        groups.setdefault(name, []).append(result)
    return {name: tuple(group) for name, group in groups.items()}


def paired(
    arm: Sequence[ArmResult], reference: Sequence[ArmResult], name: str, *, site: str | None = None
) -> PairedDifference | None:
    """Compare two arms case by case.

    Returns
    -------
    PairedDifference or None
        None where the arms share no seed or no test case.
    """
    others = {result.seed: result for result in reference}
    pairs = [
        (case_scores(result, site=site), case_scores(others[result.seed], site=site))
        for result in arm
        if result.seed in others
    ]
    return _difference(pairs, name)


def _difference(pairs: Iterable[tuple[dict[str, float], dict[str, float]]], name: str) -> PairedDifference | None:
    by_case: dict[str, list[float]] = {}
    for own, other in pairs:
        for case in own.keys() & other.keys():
            by_case.setdefault(case, []).append(100.0 * (own[case] - other[case]))
    if not by_case:
        return None
    values = np.array([np.mean(by_case[case]) for case in sorted(by_case)])
    draws = np.random.default_rng(0).choice(values, size=(2000, values.size)).mean(axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    sd = float(values.std(ddof=1)) if values.size > 1 else math.nan
    better = float((values > 0).mean())
    return PairedDifference(name, float(values.mean()), sd, float(low), float(high), int(values.size), better)


def best_local(results: Results) -> dict[str, BestLocal]:
    """The best single-site model at every site that has test cases; empty without a local arm."""
    scores: dict[str, dict[str, list[float]]] = {}
    for result in results.arms:
        for owner, model in result.models.items():
            if result.arm != LOCAL_ARM or owner == GLOBAL:
                continue
            for site in dict.fromkeys(site for score in model.cases for site in score.sites):
                mean = Spread.of(case_mean(score) for score in model.cases if site in score.sites).mean
                scores.setdefault(site, {}).setdefault(owner, []).append(mean)
    best = {}
    for site in site_names(results):
        candidates = [BestLocal(owner, Spread.of(values)) for owner, values in scores.get(site, {}).items()]
        known = [candidate for candidate in candidates if candidate.dice.known]
        if known:
            best[site] = max(known, key=lambda candidate: candidate.dice.mean)
    return best


def summarise(results: Results) -> list[ArmSummary]:
    """One summary per arm, the federated arm first."""
    groups = arm_groups(results)
    main = next((name for name in groups if name.startswith(MAIN_ARM)), None)
    return [_summary(name, groups, main, results) for name in groups]


def _summary(name: str, groups: Mapping[str, tuple[ArmResult, ...]], main: str | None, results: Results) -> ArmSummary:
    group = groups[name]
    labels = results.dataset.labels

    def over_seeds(read: Callable[[ArmResult], float]) -> Spread:
        return Spread.of(read(result) for result in group)

    def by_label(field: str) -> dict[str, Spread]:
        scores = [score for result in group for model in result.models.values() for score in model.cases]
        keys = sorted({key for score in scores for key in getattr(score, field)}, key=_label_order)

        def read(key: str) -> Spread:
            def measure(score: CaseScore) -> float:
                return float(getattr(score, field).get(key, math.nan))

            return over_seeds(lambda result: Spread.of(case_scores(result, measure).values()).mean)

        return {label_name(key, labels): read(key) for key in keys}

    site_dice = {
        site: over_seeds(lambda result, site=site: Spread.of(case_scores(result, site=site).values()).mean)  # type: ignore[misc]
        for site in site_names(results)
    }
    known = {site: spread for site, spread in site_dice.items() if spread.known}
    return ArmSummary(
        name=name,
        arm=group[0].arm,
        strategy=group[0].strategy,
        seeds=tuple(sorted({result.seed for result in group})),
        dice=over_seeds(lambda result: Spread.of(case_scores(result).values()).mean),
        label_dice=by_label("dice"),
        label_hd95=by_label("hd95_mm"),
        label_assd=by_label("assd_mm"),
        site_dice=known,
        worst_site=min(known, key=lambda site: known[site].mean) if known else "",
        against=paired(group, groups[main], main) if main is not None and main != name else None,
        effort=over_seeds(lambda result: result.effort.contour),
        strict_effort=over_seeds(lambda result: result.effort.strict),
        updates=over_seeds(lambda result: result.updates),
        seconds=over_seeds(lambda result: result.seconds.total),
        bytes_up=over_seeds(lambda result: result.bytes.up),
        bytes_down=over_seeds(lambda result: result.bytes.down),
        peak_memory_mb=over_seeds(lambda result: result.peak_memory_mb),
        cases=len({case for result in group for case in case_scores(result)}),
    )


def _label_order(key: str) -> tuple[int, int, str]:
    return (0, int(key), "") if key.isdecimal() else (1, 0, key)


def goals(
    results: Results, *, dense_margin: float = 2.0, floor_dice: float | None = None, most_effort: float | None = None
) -> list[GoalLine]:
    """What the run shows about the federated arm, each against its goal.

    Parameters
    ----------
    results
        The run.
    dense_margin
        By how many Dice points the federated arm may stay below the dense one.
    floor_dice, most_effort
        Where given, the least mean Dice (0 … 1) and the largest contour effort (0 … 1).

    Returns
    -------
    list of GoalLine
        Only lines for which the run holds both sides of the comparison.
    """
    groups = arm_groups(results)
    summaries = {summary.name: summary for summary in summarise(results)}
    main = next((name for name in groups if name.startswith(MAIN_ARM)), None)
    if main is None:
        return []
    lines = []
    own = summaries[main]
    if floor_dice is not None and own.dice.known:
        text = f"mean Dice {own.dice.text()} (at least {floor_dice:.2f})"
        lines.append(GoalLine("mean Dice", own.dice.mean, floor_dice, "Dice", own.dice.mean >= floor_dice, text))
    if most_effort is not None and own.effort.known:
        text = f"effort {own.effort.text()} of full contouring (at most {most_effort:.2f})"
        lines.append(GoalLine("effort", own.effort.mean, most_effort, "share", own.effort.mean <= most_effort, text))
    for name, group in groups.items():
        difference = paired(groups[main], group, name) if name != main else None
        if difference is None or group[0].arm == LOCAL_ARM:
            continue
        goal = -dense_margin if group[0].arm == "dense" else math.nan
        met = difference.mean >= goal if math.isfinite(goal) else None
        wanted = f", goal ≥\u00a0{signed(goal)}" if met is not None else ""
        text = f"{difference.text()} Dice points over {difference.cases} test cases{wanted}"
        lines.append(GoalLine(f"{main} − {name}", difference.mean, goal, "points", met, text))
    for site, best in best_local(results).items():
        if site in own.site_dice:
            value = 100.0 * (own.site_dice[site].mean - best.dice.mean)
            text = f"{signed(value)} Dice points against the model of {best.owner}, goal ≥\u00a00"
            title = f"{site}: {main} − best single site"
            lines.append(GoalLine(title, value, 0.0, "points", value >= 0.0, text))
    return lines
