"""Who streams which case when, in which run: a data set dealt to the sites, rounds and arms of a federation."""

import itertools
import re
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wardround.client.cases.dataset import (
    Dataset,
    Federation,
    split_by_file,
    split_dirichlet,
    split_even,
    split_natural,
)
from wardround.deploy.settings import (
    ExperimentSettings,
    FederationSettings,
    SimulationSettings,
    is_split_file,
    uncombined,
)
from wardround.errors import DataError, UsageError
from wardround.strategies.plan import LabelKind, RoundPlan

POOLED, LOCAL = "pooled", "local"

_SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

# Streams of randomness that share a seed must not share numbers.
_SPLIT_STREAM, _ORDER_STREAM = 1, 2


@dataclass(frozen=True)
class SiteCases:
    """What one site of a run works on.

    Parameters
    ----------
    schedule
        The cases that it streams in each round.
    tests
        The cases that it scores a model on.
    """

    schedule: tuple[tuple[str, ...], ...]
    tests: tuple[str, ...]


@dataclass(frozen=True)
class ArmRun:
    """One run of one arm under one seed.

    Parameters
    ----------
    folder
        Holds all of it.
    arm, seed
        Which.
    model
        ``global``, or the site's name where every site keeps a model of its own.
    cases
        The sites that take part, and what each works on.
    plan
        Of all rounds, with round 0.
    strategy, strategy_options
        How weights are combined; plain averaging where there is one site only.
    weighting, weighting_options
        How much each site counts.
    slow
        Site → seconds for a round under a simulated clock, where that is not one; empty for real time.
    engine, device
        Where it runs.
    evaluate_every
        Test cases are scored after every so many rounds as well; 0 for the last one only.
    examples
        Whether it keeps slices to look at.
    strokes
        ``expert`` or ``simulated``, as the settings have it.
    kinds
        Site → the kind of label that its people give, where it is another than the plan asks for.
    family, budget
        In a stream: the arm without its budget, and that budget in slices a case.
    """

    folder: Path
    arm: str
    seed: int
    model: str
    cases: Mapping[str, SiteCases]
    plan: RoundPlan
    strategy: str = "fedavg"
    strategy_options: Mapping[str, float | int] | None = None
    weighting: str = "examples"
    weighting_options: Mapping[str, float | int] = field(default_factory=dict)
    slow: Mapping[str, float] = field(default_factory=dict)
    engine: str = "inprocess"
    device: str = "auto"
    evaluate_every: int = 0
    examples: bool = False
    strokes: str = "expert"
    kinds: Mapping[str, LabelKind] = field(default_factory=dict)
    family: str = ""
    budget: int = 0

    @property
    def name(self) -> str:
        """The folder's name: unique in the experiment."""
        return self.folder.name

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that take part."""
        return tuple(self.cases)

    def site_folders(self) -> dict[str, Path]:
        """Site → its folder."""
        return {site: self.folder / "sites" / site for site in self.sites}


@dataclass(frozen=True)
class Layout:
    """Everything that an experiment has to write before it runs.

    Parameters
    ----------
    stores
        Case store → the streamed and the test cases that it holds.
    runs
        All arms under all seeds.
    federation
        Which cases stream at which site, and which it is tested on.
    groups
        In a stream that is ordered by site: the sites in that order.
    """

    stores: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
    runs: tuple[ArmRun, ...]
    federation: Federation
    groups: tuple[str, ...] = ()


def simulation_layout(out: Path, settings: SimulationSettings, dataset: Dataset) -> Layout:
    """Deal a data set to the runs of a federation and the arms beside it.

    Raises
    ------
    UsageError, DataError
        As :func:`split`.
    """
    federation = capped_split(dataset, settings)
    check_sites("site-prompts", settings.site_prompts, federation)
    check_sites("slow", settings.slow, federation)
    labels = len(dataset.label_names)
    return Layout(holdings(federation, settings.arms), tuple(_runs(out, settings, federation, labels)), federation)


def check_sites(option: str, named: Iterable[str], federation: Federation) -> None:
    """Refuse names of sites that the split does not have.

    Raises
    ------
    UsageError
        Naming the first.
    """
    if strangers := sorted(set(named) - federation.sites.keys()):
        raise UsageError(
            f"{option}: there is no site {strangers[0]!r}",
            f"the split has {', '.join(federation.sites)}",
            "name sites of the split",
        )


def capped_split(dataset: Dataset, settings: FederationSettings) -> Federation:
    """As :func:`split`, with at most so many cases a site as the settings allow."""
    federation = split(dataset, settings)
    return Federation(
        sites={site: cases[: settings.cases_per_site] for site, cases in federation.sites.items()},
        tests={site: cases[: settings.tests_per_site] for site, cases in federation.tests.items()},
    )


def split(dataset: Dataset, settings: ExperimentSettings) -> Federation:
    """Deal the cases of a data set to sites.

    Raises
    ------
    UsageError
        If the split cannot be made.
    DataError
        If a split file does not fit the data.
    """
    kind, *numbers = settings.sites.split(":") if not is_split_file(settings.sites) else ("file",)
    rng = np.random.default_rng(np.random.SeedSequence([_SPLIT_STREAM, len(dataset.cases)]))
    match kind:
        case "file" if settings.phantoms is None:
            federation = split_by_file(dataset, Path(settings.sites.removeprefix("file:")))
        case "file" | "natural" if settings.phantoms is not None:
            federation = split_by_file(dataset, Path("split.json"))
        case "natural":
            federation = split_natural(dataset, settings.test_fraction, rng)
        case "even":
            federation = split_even(dataset, int(numbers[0]), settings.test_fraction, rng)
        case _:
            federation = split_dirichlet(dataset, int(numbers[0]), float(numbers[1]), settings.test_fraction, rng)
    for name in federation.sites:
        if name in (POOLED, "global") or not _SITE_NAME.fullmatch(name):
            raise UsageError(
                f"a site cannot be called {name!r}", "the name is taken or no folder name", "rename the site"
            )
    tests = {site: federation.tests.get(site, ()) for site in federation.sites}
    if not any(tests.values()):
        raise DataError("there is no test case", "the split keeps none back", "name test cases in the split")
    return Federation(sites=federation.sites, tests=tests)


def schedule(cases: Sequence[str], rounds: int, rng: np.random.Generator) -> tuple[tuple[str, ...], ...]:
    """Shuffle a site's cases and deal them over the rounds as evenly as their number allows.

    Every site streams until the last round; one with fewer cases than rounds has rounds without a new case, never the
    first one.
    """
    order = [cases[index] for index in rng.permutation(len(cases))]
    bounds = [-(-len(order) * number // rounds) for number in range(rounds + 1)]
    return tuple(tuple(order[low:high]) for low, high in itertools.pairwise(bounds))


def evaluated_at(federation: Federation) -> dict[str, tuple[str, ...]]:
    """Site → the test cases that it scores a global model on.

    A case that belongs to several sites is scored once, at the one with the fewest so far: the model is the same.
    """
    belongs = case_sites(federation)
    dealt: dict[str, list[str]] = {site: [] for site in federation.sites}
    for case in sorted(belongs, key=lambda case: (len(belongs[case]), case)):
        dealt[min(belongs[case], key=lambda site: len(dealt[site]))].append(case)
    return {site: tuple(sorted(cases)) for site, cases in dealt.items()}


def case_sites(federation: Federation) -> dict[str, tuple[str, ...]]:
    """Test case → the sites that it stands for."""
    belongs: dict[str, list[str]] = {}
    for site, cases in federation.tests.items():
        for case in cases:
            belongs.setdefault(case, []).append(site)
    return {case: tuple(sites) for case, sites in belongs.items()}


def holdings(federation: Federation, arms: Container[str]) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Site → the streamed and the test cases that its store holds, for these arms."""
    all_tests = tuple(sorted(case_sites(federation)))
    own_tests = evaluated_at(federation)
    held = {site: (cases, all_tests if LOCAL in arms else own_tests[site]) for site, cases in federation.sites.items()}
    if POOLED in arms:
        held[POOLED] = (tuple(case for cases in federation.sites.values() for case in cases), all_tests)
    return held


def _runs(out: Path, settings: SimulationSettings, federation: Federation, labels: int) -> Iterator[ArmRun]:
    for seed in settings.seeds:
        for arm in settings.arms:
            for name, model, cases in dealt(federation, arm, settings.rounds, seed):
                combined = len(cases) > 1
                plan = settings.round_plan(arm, seed, run=name, round=0, labels=labels)
                yield ArmRun(
                    folder=out / "arms" / name,
                    arm=arm,
                    seed=seed,
                    model=model,
                    cases=cases,
                    plan=plan if combined else uncombined(plan),
                    strategy=settings.strategy if combined else "fedavg",
                    strategy_options=settings.strategy_options if combined or settings.strategy == "fedavg" else None,
                    weighting=settings.weighting if combined else "examples",
                    weighting_options=settings.weighting_options if combined else {},
                    slow=settings.slow if combined else {},
                    engine=settings.engine,
                    device=settings.device,
                    examples=arm == settings.arms[0] and seed == settings.seeds[0],
                    strokes=settings.strokes,
                    kinds=settings.kinds(arm),
                )


def dealt(federation: Federation, arm: str, rounds: int, seed: int) -> Iterator[tuple[str, str, dict[str, SiteCases]]]:
    """Deal the cases of an arm under a seed: all arms see the same cases of a site in the same order.

    Yields
    ------
    tuple
        Name of a run, the model that it learns (``global`` or a site), and the cases of every site in it.
    """
    everything = tuple(sorted(case_sites(federation)))
    schedules = {site: schedule(cases, rounds, order_generator(seed, site)) for site, cases in federation.sites.items()}
    if arm == LOCAL:
        for site, cases in schedules.items():
            yield f"{LOCAL}-{site}-seed{seed}", site, {site: SiteCases(cases, everything)}
    elif arm == POOLED:
        pooled = tuple(_interleaved(parts) for parts in zip(*schedules.values(), strict=True))
        yield f"{arm}-seed{seed}", "global", {POOLED: SiteCases(pooled, everything)}
    else:
        own_tests = evaluated_at(federation)
        each = {site: SiteCases(cases, own_tests[site]) for site, cases in schedules.items()}
        yield f"{arm}-seed{seed}", "global", each


def order_generator(seed: int, site: str) -> np.random.Generator:
    """What shuffles the stream of a site under a seed: the same for all arms."""
    return np.random.default_rng(np.random.SeedSequence([_ORDER_STREAM, seed, zlib.crc32(site.encode())]))


def _interleaved(parts: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """One case of every site in turn, so that a pooled learner sees them mixed as a federation does."""
    return tuple(case for turn in itertools.zip_longest(*parts) for case in turn if case is not None)
