"""A data set as one stream: the order of its cases, cut into chunks, for every arm and seed."""

import itertools
from collections.abc import Mapping
from pathlib import Path

from wardround.client.cases.dataset import Dataset, Federation
from wardround.deploy.dealing import ArmRun, Layout, SiteCases, case_sites, order_generator, schedule, split
from wardround.deploy.stream.settings import StreamSettings

SITE = "stream"
"""Name of the one site that sees all cases."""


def stream_layout(out: Path, settings: StreamSettings, dataset: Dataset) -> Layout:
    """Deal a data set to the runs of a stream.

    Raises
    ------
    UsageError, DataError
        As :func:`wardround.deploy.dealing.split`.
    """
    federation = stream_split(dataset, settings)
    groups = tuple(federation.sites) if settings.order == "by-site" else ()
    tests = tuple(sorted(case_sites(federation)))
    every = chunks_per_group(federation, settings.chunks) if groups else settings.evaluate_every
    runs: list[ArmRun] = []
    for seed in settings.seeds:
        cases = SiteCases(stream_order(federation, settings, seed), tests)
        for name, arm, budget in settings.runs():
            folder = out / "arms" / f"{name}-seed{seed}"
            plan = settings.round_plan(
                arm, budget, seed, run=folder.name, rounds=len(cases.schedule), labels=len(dataset.label_names)
            )
            runs.append(
                ArmRun(
                    folder=folder,
                    arm=name,
                    seed=seed,
                    model="global",
                    cases={SITE: cases},
                    plan=plan,
                    device=settings.device,
                    evaluate_every=every,
                    examples=not runs,
                    strokes=settings.strokes,
                    family=arm,
                    budget=budget,
                )
            )
    streamed = tuple(itertools.chain.from_iterable(federation.sites.values()))
    return Layout({SITE: (streamed, tests)}, tuple(runs), federation, groups)


def stream_split(dataset: Dataset, settings: StreamSettings) -> Federation:
    """Which cases stream from which site, and which it is tested on, capped as the settings say.

    Raises
    ------
    UsageError, DataError
        As :func:`wardround.deploy.dealing.split`.
    """
    federation = split(dataset, settings)
    streamed = set(spread(federation.sites, settings.cases))
    tested = set(spread(federation.tests, settings.tests))
    sites = {site: tuple(case for case in cases if case in streamed) for site, cases in federation.sites.items()}
    sites = {site: cases for site, cases in sites.items() if cases}
    tests = {site: tuple(case for case in federation.tests.get(site, ()) if case in tested) for site in sites}
    return Federation(sites=sites, tests=tests)


def spread(cases: Mapping[str, tuple[str, ...]], most: int | None) -> list[str]:
    """At most `most` different cases, the first ones of every site in proportion to its size."""
    ranked = [
        ((rank + 0.5) / len(own), place, case)
        for place, own in enumerate(cases.values())
        for rank, case in enumerate(own)
    ]
    return list(dict.fromkeys(case for _, _, case in sorted(ranked)))[:most]


def chunks_per_group(federation: Federation, chunks: int) -> int:
    """Chunks of every site in a stream that is ordered by site; none of them is without a new case."""
    fewest = min(len(cases) for cases in federation.sites.values())
    return max(1, min(chunks // len(federation.sites), fewest))


def stream_order(federation: Federation, settings: StreamSettings, seed: int) -> tuple[tuple[str, ...], ...]:
    """The cases of every chunk under a seed, the same for all arms."""
    if settings.order == "by-site":
        each = chunks_per_group(federation, settings.chunks)
        groups = (schedule(cases, each, order_generator(seed, site)) for site, cases in federation.sites.items())
        return tuple(itertools.chain.from_iterable(groups))
    everything = tuple(itertools.chain.from_iterable(federation.sites.values()))
    return schedule(everything, min(settings.chunks, len(everything)), order_generator(seed, SITE))
