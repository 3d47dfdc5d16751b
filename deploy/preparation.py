"""From settings to folders: the data set, the sites' case stores, and one folder for each arm and seed.

::

    OUT/
      experiment.json              the settings and the command
      index.json                   which site has how many cases, which runs there are
      data/                        drawn cases, where there is no data set
      sites/<site>/store/          every case of a site, imported once and shared by all arms
      arms/<arm>-seed<k>/          one run: arm.json, journal/, sites/<site>/
      arms/local-<site>-seed<k>/   the same with a single site
      results.json, report.html

Every step is safe to repeat: what is there and whole is left as it is.
"""

import importlib.metadata
import itertools
import json
import os
import platform
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil

from wardround import __version__
from wardround.client.cases.dataset import (
    Dataset,
    Federation,
    load_dataset,
    split_by_file,
    split_dirichlet,
    split_even,
    split_natural,
    verify_dataset,
)
from wardround.client.cases.nifti import read_image, read_labels
from wardround.client.cases.phantoms import write_phantom_dataset
from wardround.client.cases.store import CaseStore, Role
from wardround.deploy.settings import Arm, PhantomSettings, SimulationSettings, is_split_file, read_settings
from wardround.errors import DataError, UsageError
from wardround.files import write_text

EXPERIMENT = "experiment.json"
INDEX = "index.json"
ARM = "arm.json"
DONE = "done.json"
POOLED = "pooled"

# As wardround.client.site.REFERENCE, which would import torch into the process that only waits for the arms.
REFERENCE = "reference"

_SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

# Streams of randomness that share a seed must not share numbers.
_SPLIT_STREAM, _ORDER_STREAM = 1, 2

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and of how much."""


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
    sites
        The sites that take part.
    strategy
        How their weights are combined; plain averaging where there is one site only.
    """

    folder: Path
    arm: Arm
    seed: int
    model: str
    sites: tuple[str, ...]
    strategy: str

    @property
    def name(self) -> str:
        """The folder's name: unique in the experiment."""
        return self.folder.name

    def site_folders(self) -> dict[str, Path]:
        """Site → its folder."""
        return {site: self.folder / "sites" / site for site in self.sites}


def claim(out: Path, settings: SimulationSettings, command: str) -> None:
    """Make `out` the folder of a new experiment that `command` started.

    Raises
    ------
    UsageError
        If something is there already.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        if (out / EXPERIMENT).is_file():
            fix = f"go on with `wardround simulate --resume {out}`, or choose another --out"
            raise UsageError(f"{out} already holds an experiment", "an experiment is never overwritten", fix)
        raise UsageError(f"{out} is not empty", "it holds something else", "choose another --out")
    content = {"version": __version__, "command": command, "settings": settings.model_dump(mode="json")}
    write_text(out / EXPERIMENT, json.dumps(content, indent=1))


def stored_settings(out: Path) -> SimulationSettings:
    """The settings of the experiment in `out`.

    Raises
    ------
    UsageError
        If there is none.
    PlanError
        If its settings are not readable by this version.
    """
    try:
        content = json.loads((out / EXPERIMENT).read_text())["settings"]
    except OSError:
        raise UsageError(
            f"{out} holds no experiment", f"there is no {EXPERIMENT} in it", "start one with `wardround simulate --out`"
        ) from None
    except (ValueError, KeyError, TypeError):
        content = None
    return read_settings(content, out / EXPERIMENT)


def check(settings: SimulationSettings) -> None:
    """Read everything that an experiment would import, and write nothing.

    Raises
    ------
    DataError, GeometryError
        If a case cannot be used, naming its file.
    UsageError
        If the split does not fit the data.
    """
    if settings.data is None:
        return
    dataset = load_dataset(settings.data)
    federation = split(dataset, settings)
    used = {case for cases in (*federation.sites.values(), *federation.tests.values()) for case in cases}
    unlabelled = sorted(case for case in used if dataset.cases[case].label is None)
    if unlabelled:
        raise DataError(
            f"case {unlabelled[0]} has no label",
            "a simulated annotator draws from labels",
            "leave it out of the split, or add its label",
        )
    verify_dataset(replace(dataset, cases={case: dataset.cases[case] for case in sorted(used)}))


def prepare(out: Path, settings: SimulationSettings, progress: Progress | None = None) -> tuple[ArmRun, ...]:
    """Write everything that the arms need into `out`; what is there already is kept.

    Returns
    -------
    tuple of ArmRun
        All arms under all seeds.

    Raises
    ------
    WardroundError
        If the data cannot be used or the disk cannot hold it.
    """
    report = progress or _silent
    folder = data_folder(out, settings)
    if settings.phantoms is not None and not folder.exists():
        report("drawing phantoms", 0, 1)
        write_phantoms(folder, settings.phantoms)
        report("drawing phantoms", 1, 1)
    dataset = load_dataset(folder)
    federation = split(dataset, settings)
    holdings = _holdings(federation, settings)
    total = sum(len(stream) + len(tests) for stream, tests in holdings.values())
    done = itertools.count(1)
    for site, (stream, tests) in holdings.items():
        with CaseStore(store_folder(out, site)) as store:
            roles: dict[Role, tuple[str, ...]] = {"stream": stream, "test": tests}
            for role, cases in roles.items():
                for case in cases:
                    _import_case(store, dataset, case, role)
                    report("importing cases", next(done), total)
    runs = tuple(_runs(out, settings, federation))
    for run in runs:
        _write_run(run, out, settings, dataset, federation)
    _write_index(out, dataset, federation, runs)
    return runs


def data_folder(out: Path, settings: SimulationSettings) -> Path:
    """Where the data set of an experiment lies."""
    return settings.data.resolve() if settings.data is not None else out / "data"


def store_folder(out: Path, site: str) -> Path:
    """Where a site's cases lie, for all arms."""
    return out / "sites" / site / "store"


def write_phantoms(folder: Path, phantoms: PhantomSettings) -> None:
    """Draw a data set of phantoms into the new folder `folder`; it appears whole or not at all."""
    write_phantom_dataset(
        folder,
        sites=phantoms.sites,
        cases_per_site=phantoms.cases,
        test_cases_per_site=phantoms.tests,
        seed=phantoms.seed,
        shift_strength=phantoms.shift,
        shape=phantoms.shape,
    )


def split(dataset: Dataset, settings: SimulationSettings) -> Federation:
    """Deal the cases of a data set to sites, and cap their number.

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
    streams = {site: cases[: settings.cases_per_site] for site, cases in federation.sites.items()}
    tests = {site: federation.tests.get(site, ())[: settings.tests_per_site] for site in streams}
    if not any(tests.values()):
        raise DataError("there is no test case", "the split keeps none back", "name test cases in the split")
    return Federation(sites=streams, tests=tests)


def schedule(cases: Sequence[str], rounds: int, rng: np.random.Generator) -> list[list[str]]:
    """Shuffle a site's cases and deal them over the rounds as evenly as their number allows.

    Every site streams until the last round; one with fewer cases than rounds has rounds without a new case, never the
    first one.
    """
    order = [cases[index] for index in rng.permutation(len(cases))]
    bounds = [-(-len(order) * number // rounds) for number in range(rounds + 1)]
    return [order[low:high] for low, high in itertools.pairwise(bounds)]


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


def _holdings(
    federation: Federation, settings: SimulationSettings
) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Site → the streamed and the test cases that its store holds."""
    all_tests = tuple(sorted(case_sites(federation)))
    own_tests = evaluated_at(federation)
    holdings = {
        site: (cases, all_tests if "local" in settings.arms else own_tests[site])
        for site, cases in federation.sites.items()
    }
    if POOLED in settings.arms:
        holdings[POOLED] = (tuple(case for cases in federation.sites.values() for case in cases), all_tests)
    return holdings


def _import_case(store: CaseStore, dataset: Dataset, case: str, role: Role) -> None:
    files = dataset.cases[case]
    if case in store.cases(role) and (role == "stream" or store.label(case, REFERENCE) is not None):
        return
    store.add_case(case, read_image(files.image), role=role)
    if role == "test":
        if files.label is None:
            raise DataError(f"test case {case} has no label", "the data set names none", "leave it out of the split")
        store.save_label(case, read_labels(files.label), author=REFERENCE, round=0, effort=0.0)


def _runs(out: Path, settings: SimulationSettings, federation: Federation) -> Iterator[ArmRun]:
    sites = tuple(federation.sites)
    for seed in settings.seeds:
        for arm in settings.arms:
            if arm == "local":
                for site in sites:
                    yield ArmRun(out / "arms" / f"local-{site}-seed{seed}", arm, seed, site, (site,), "fedavg")
            else:
                members = (POOLED,) if arm == POOLED else sites
                strategy = settings.strategy if len(members) > 1 else "fedavg"
                yield ArmRun(out / "arms" / f"{arm}-seed{seed}", arm, seed, "global", members, strategy)


def _write_run(run: ArmRun, out: Path, settings: SimulationSettings, dataset: Dataset, federation: Federation) -> None:
    """Write arm.json and every site.json of a run; `arm.json` comes last and says that the rest is there."""
    if (run.folder / ARM).exists():
        return
    schedules = {
        site: schedule(
            cases,
            settings.rounds,
            np.random.default_rng(np.random.SeedSequence([_ORDER_STREAM, run.seed, zlib.crc32(site.encode())])),
        )
        for site, cases in federation.sites.items()
    }
    if run.arm == POOLED:
        schedules = {POOLED: [_interleaved(parts) for parts in zip(*schedules.values(), strict=True)]}
    everything = tuple(sorted(case_sites(federation)))
    tests: Mapping[str, tuple[str, ...]] = (
        evaluated_at(federation)
        if run.model == "global" and run.arm != POOLED
        else dict.fromkeys(run.sites, everything)
    )
    for site, folder in run.site_folders().items():
        content: dict[str, object] = {
            "name": site,
            "schedule": schedules[site],
            "test": list(tests[site]),
            "author": f"simulated:{run.name}",
            "store": os.path.relpath(store_folder(out, site), folder),
            "dataset": str(dataset.root.resolve()),
            "device": settings.device,
        }
        write_text(folder / "site.json", json.dumps(content, indent=1))
    plan = settings.round_plan(run.arm, run.seed, run=run.name, round=0, labels=len(dataset.label_names))
    content = {
        "arm": run.arm,
        "seed": run.seed,
        "model": run.model,
        "sites": list(run.sites),
        "plan": plan.model_dump(mode="json"),
        "strategy": run.strategy,
        "strategy_options": settings.strategy_options if run.strategy == settings.strategy else {},
        "engine": settings.engine,
        "device": settings.device,
        "examples": run.arm == settings.arms[0] and run.seed == settings.seeds[0],
        "data": os.path.relpath(dataset.root, run.folder) if settings.data is None else str(dataset.root.resolve()),
    }
    write_text(run.folder / ARM, json.dumps(content, indent=1))


def _write_index(out: Path, dataset: Dataset, federation: Federation, runs: Sequence[ArmRun]) -> None:
    """What a report needs to know and no run does."""
    content = {
        "dataset": {"name": dataset.name, "labels": list(dataset.label_names)},
        "sites": {
            site: {"stream": len(cases), "tests": len(federation.tests.get(site, ()))}
            for site, cases in federation.sites.items()
        },
        "tests": case_sites(federation),
        "runs": [
            {
                "folder": run.name,
                "arm": run.arm,
                "seed": run.seed,
                "model": run.model,
                "sites": run.sites,
                "strategy": run.strategy,
            }
            for run in runs
        ],
        "machine": _machine(),
    }
    write_text(out / INDEX, json.dumps(content, indent=1))


def _machine() -> dict[str, object]:
    return {
        "cores": os.cpu_count(),
        "memory_gb": psutil.virtual_memory().total / 1e9,
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "load": os.getloadavg()[0],
    }


def _interleaved(parts: Sequence[Sequence[str]]) -> list[str]:
    """One case of every site in turn, so that a pooled learner sees them mixed as a federation does."""
    return [case for turn in itertools.zip_longest(*parts) for case in turn if case is not None]


def _silent(what: str, done: int, total: int) -> None:
    """Report to nobody."""
