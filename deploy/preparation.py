"""From settings to folders: the data set, the sites' case stores, and one folder for each arm and seed.

::

    OUT/
      experiment.json              the settings and the command
      index.json                   which site has how many cases, which runs there are
      data/                        drawn cases, where there is no data set
      sites/<site>/store/          every case of a site, imported once and shared by all arms
      arms/<arm>-seed<k>/          one run: arm.json, journal/, sites/<site>/
      arms/local-<site>-seed<k>/   the same with a single site
      examples/, imagined/         slices to look at: of cases, and of what generators made
      results.json, report.html

Every step is safe to repeat: what is there and whole is left as it is.
"""

import importlib.metadata
import itertools
import json
import os
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil

from wardround import __version__
from wardround.client.cases.dataset import Dataset, load_dataset, verify_dataset
from wardround.client.cases.nifti import read_image, read_labels
from wardround.client.cases.phantoms import write_phantom_dataset
from wardround.client.cases.store import CaseStore, Role
from wardround.deploy.compare.layout import compare_layout
from wardround.deploy.compare.settings import CompareSettings
from wardround.deploy.dealing import ArmRun, Layout, capped_split, case_sites, simulation_layout
from wardround.deploy.settings import ExperimentSettings, PhantomSettings, SimulationSettings, read_settings
from wardround.deploy.stream.layout import stream_layout, stream_split
from wardround.deploy.stream.settings import StreamSettings
from wardround.errors import DataError, UsageError
from wardround.files import write_text

EXPERIMENT = "experiment.json"
INDEX = "index.json"
ARM = "arm.json"
DONE = "done.json"

# As wardround.client.site.REFERENCE, which would import torch into the process that only waits for the arms.
REFERENCE = "reference"

Settings = SimulationSettings | StreamSettings | CompareSettings
"""Of the kinds of experiment."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and of how much."""


def claim(out: Path, settings: Settings, command: str) -> None:
    """Make `out` the folder of a new experiment that `command` started.

    Raises
    ------
    UsageError
        If something is there already.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        if (out / EXPERIMENT).is_file():
            fix = f"go on with `wardround {settings.command} --resume {out}`, or choose another --out"
            raise UsageError(f"{out} already holds an experiment", "an experiment is never overwritten", fix)
        raise UsageError(f"{out} is not empty", "it holds something else", "choose another --out")
    content = {
        "version": __version__,
        "kind": settings.command,
        "command": command,
        "settings": settings.model_dump(mode="json"),
    }
    write_text(out / EXPERIMENT, json.dumps(content, indent=1))


def stored_settings(out: Path) -> Settings:
    """The settings of the experiment in `out`.

    Raises
    ------
    UsageError
        If there is none.
    PlanError
        If its settings are not readable by this version.
    """
    kind: type[Settings] = SimulationSettings
    try:
        stored = json.loads((out / EXPERIMENT).read_text(encoding="utf-8"))
        kinds: dict[str, type[Settings]] = {one.command: one for one in (StreamSettings, CompareSettings)}
        kind = kinds.get(str(stored.get("kind")), SimulationSettings)
        content = stored["settings"]
    except OSError:
        raise UsageError(
            f"{out} holds no experiment", f"there is no {EXPERIMENT} in it", "start one with `wardround simulate --out`"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        content = None
    return read_settings(kind, content, out / EXPERIMENT)


def check(settings: Settings) -> None:
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
    federation = (
        stream_split(dataset, settings) if isinstance(settings, StreamSettings) else capped_split(dataset, settings)
    )
    used = {case for cases in (*federation.sites.values(), *federation.tests.values()) for case in cases}
    unlabelled = sorted(case for case in used if dataset.cases[case].label is None)
    if unlabelled:
        raise DataError(
            f"case {unlabelled[0]} has no label",
            "a simulated annotator draws from labels",
            "leave it out of the split, or add its label",
        )
    verify_dataset(replace(dataset, cases={case: dataset.cases[case] for case in sorted(used)}))


def prepare(out: Path, settings: Settings, progress: Progress | None = None) -> tuple[ArmRun, ...]:
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
    match settings:
        case StreamSettings():
            layout = stream_layout(out, settings, dataset)
        case CompareSettings():
            layout = compare_layout(out, settings, dataset)
        case _:
            layout = simulation_layout(out, settings, dataset)
    total = sum(len(stream) + len(tests) for stream, tests in layout.stores.values())
    done = itertools.count(1)
    for site, (stream, tests) in layout.stores.items():
        with CaseStore(store_folder(out, site)) as store:
            roles: dict[Role, tuple[str, ...]] = {"stream": stream, "test": tests}
            for role, cases in roles.items():
                for case in cases:
                    _import_case(store, dataset, case, role)
                    report("importing cases", next(done), total)
    for run in layout.runs:
        _write_run(run, out, dataset, elsewhere=settings.data is not None)
    _write_index(out, dataset, layout)
    return layout.runs


def data_folder(out: Path, settings: ExperimentSettings) -> Path:
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


def _import_case(store: CaseStore, dataset: Dataset, case: str, role: Role) -> None:
    files = dataset.cases[case]
    if case in store.cases(role) and (role == "stream" or store.label(case, REFERENCE) is not None):
        return
    store.add_case(case, read_image(files.image), role=role)
    if role == "test":
        if files.label is None:
            raise DataError(f"test case {case} has no label", "the data set names none", "leave it out of the split")
        store.save_label(case, read_labels(files.label), author=REFERENCE, round=0, effort=0.0)


def _write_run(run: ArmRun, out: Path, dataset: Dataset, *, elsewhere: bool) -> None:
    """Write arm.json and every site.json of a run; `arm.json` comes last and says that the rest is there."""
    if (run.folder / ARM).exists():
        return
    for site, folder in run.site_folders().items():
        content: dict[str, object] = {
            "name": site,
            "schedule": run.cases[site].schedule,
            "test": run.cases[site].tests,
            "author": f"simulated:{run.name}",
            "store": os.path.relpath(store_folder(out, site), folder),
            "dataset": str(dataset.root.resolve()),
            "device": run.device,
        }
        if site in run.kinds:
            content["prompts"] = run.kinds[site]
        write_text(folder / "site.json", json.dumps(content, indent=1))
    content = {
        "arm": run.arm,
        "seed": run.seed,
        "model": run.model,
        "sites": run.sites,
        "plan": run.plan.model_dump(mode="json"),
        "strategy": run.strategy,
        "strategy_options": run.strategy_options or {},
        "weighting": run.weighting,
        "weighting_options": dict(run.weighting_options),
        "slow": dict(run.slow),
        "engine": run.engine,
        "device": run.device,
        "evaluate_every": run.evaluate_every,
        "examples": run.examples,
        "strokes": run.strokes,
        "data": str(dataset.root.resolve()) if elsewhere else os.path.relpath(dataset.root, run.folder),
    }
    write_text(run.folder / ARM, json.dumps(content, indent=1))


def _write_index(out: Path, dataset: Dataset, layout: Layout) -> None:
    """What a report needs to know and no run does."""
    content = {
        "dataset": {"name": dataset.name, "labels": list(dataset.label_names)},
        "sites": {
            site: {"stream": len(cases), "tests": len(layout.federation.tests.get(site, ()))}
            for site, cases in layout.federation.sites.items()
        },
        "tests": case_sites(layout.federation),
        "groups": layout.groups,
        "runs": [
            {
                "folder": run.name,
                "arm": run.arm,
                "seed": run.seed,
                "model": run.model,
                "sites": run.sites,
                "strategy": run.strategy,
                "family": run.family,
                "budget": run.budget,
            }
            for run in layout.runs
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


def _silent(what: str, done: int, total: int) -> None:
    """Report to nobody."""
