"""Data sets on disk in the layout of the Medical Segmentation Decathlon (MSD), and how they are dealt to sites.

A data set is a folder with ``dataset.json`` (labels and pairs of files). A ``manifest.csv`` beside it may say more
about each case: its ``subject`` (left and right of one scan must not end on both sides of a split), its natural
``site`` and the ``source_dtype`` of its intensity pipeline.

Beside image and label a case may name a ``scribble``, a volume of strokes. The value of voxels without a stroke is the
description's ``scribble_ignore_value``.
"""

import csv
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wardround.client.annotation.prompts import UNLABELLED
from wardround.client.cases.nifti import check_same_grid, read_image, read_labels
from wardround.client.cases.volume import Volume
from wardround.errors import DataError, UsageError

STRATA = 4


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case; `label` is None where nobody has labelled it, `scribble` where nobody drew strokes."""

    id: str
    image: Path
    label: Path | None
    scribble: Path | None = None


@dataclass(frozen=True)
class Dataset:
    """A folder of cases.

    Parameters
    ----------
    name
        As its ``dataset.json`` says.
    root
        The folder.
    cases
        Case id → files, in the order of ``dataset.json``.
    label_names
        Index = label value; ``label_names[0]`` is the background.
    subjects
        Case id → subject; a case of which nothing is known is its own subject.
    natural_sites
        Case id → the institution it comes from; empty where unknown.
    pipelines
        Case id → intensity pipeline (the manifest's ``source_dtype``); empty where unknown.
    scribble_ignore_value
        What files of strokes hold where there is no stroke.
    """

    name: str
    root: Path
    cases: Mapping[str, CaseFiles]
    label_names: tuple[str, ...]
    subjects: Mapping[str, str]
    natural_sites: Mapping[str, str] = field(default_factory=dict)
    pipelines: Mapping[str, str] = field(default_factory=dict)
    scribble_ignore_value: int = UNLABELLED

    @property
    def labelled(self) -> tuple[str, ...]:
        """Ids of the cases that have a label, in the order of ``dataset.json``."""
        return tuple(case.id for case in self.cases.values() if case.label is not None)


@dataclass(frozen=True)
class Federation:
    """Which site holds which cases.

    Parameters
    ----------
    sites
        Site name → ids of its training cases in the order in which they arrive. No case is at two sites.
    tests
        Site name → ids of its test cases; one test case may serve several sites. Same names as `sites`.
    """

    sites: Mapping[str, tuple[str, ...]]
    tests: Mapping[str, tuple[str, ...]]

    @property
    def test_cases(self) -> tuple[str, ...]:
        """Every test case once, in order of first mention."""
        return tuple(dict.fromkeys(case for cases in self.tests.values() for case in cases))


def load_dataset(folder: Path) -> Dataset:
    """Read ``dataset.json`` and, where present, ``manifest.csv``; check that every named file exists.

    Raises
    ------
    DataError
        If the folder is missing or empty, either file cannot be read, or a named file is missing.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder", "the path is wrong or not mounted", "give the data set's folder")
    if not any(folder.iterdir()):
        raise DataError(f"{folder} is empty", "the data set was never copied there", "copy the data set and try again")
    description = _read_object(folder / "dataset.json")
    cases: dict[str, CaseFiles] = {}
    for entry in [*_list(description, "training", folder), *_list(description, "test", folder)]:
        case = _case_files(folder, entry)
        if case.id in cases:
            raise _broken(folder / "dataset.json", f"it names case {case.id} twice")
        cases[case.id] = case
    if not cases:
        raise DataError(
            f"{folder / 'dataset.json'} names no case", "its list `training` is empty", "list the pairs of files there"
        )
    manifest = _read_manifest(folder / "manifest.csv")

    def column(name: str) -> dict[str, str]:
        return {case: manifest[case][name] for case in cases if manifest.get(case, {}).get(name)}

    return Dataset(
        name=str(description.get("name", folder.name)),
        root=folder,
        cases=cases,
        label_names=_label_names(description, folder),
        subjects={case: case for case in cases} | column("subject"),
        natural_sites=column("site"),
        pipelines=column("source_dtype"),
        scribble_ignore_value=_ignore_value(description, folder),
    )


def read_scribbles(dataset: Dataset, case: str) -> Volume:
    """Read the strokes of a case.

    Returns
    -------
    Volume
        Shape ``(I, J, K)``, uint8: the label on a stroke, :data:`~wardround.client.annotation.prompts.UNLABELLED`
        elsewhere. :func:`~wardround.client.annotation.prompts.scribbles_of` makes prompts of it.

    Raises
    ------
    DataError
        If the case names no scribble, or the file cannot be read or holds a value that ``dataset.json`` does not name.
    GeometryError
        If it does not lie on the grid of the image.
    """
    files = dataset.cases[case]
    if files.scribble is None:
        raise DataError(
            f"case {case} has no scribble", "dataset.json names none for it", "add the path under `scribble` there"
        )
    strokes = read_image(files.scribble)
    check_same_grid(read_image(files.image), strokes, str(files.scribble))
    drawn = strokes.array != dataset.scribble_ignore_value
    if not np.isin(strokes.array[drawn], np.arange(len(dataset.label_names))).all():
        raise DataError(
            f"{files.scribble} holds a value that is no label",
            f"dataset.json names the labels 0 … {len(dataset.label_names) - 1} "
            f"and {dataset.scribble_ignore_value} for voxels without a stroke",
            "set `scribble_ignore_value` in dataset.json, or correct the strokes",
        )
    return strokes.with_array(np.where(drawn, strokes.array, UNLABELLED).astype(np.uint8))


def verify_dataset(dataset: Dataset) -> None:
    """Open the files of every case and stop at the first that cannot be used.

    Raises
    ------
    DataError
        Naming the file: unreadable, not finite, or a label value that ``dataset.json`` does not name.
    GeometryError
        Naming the file: not 3D, or image and label do not share a grid.
    """
    for case in dataset.cases.values():
        image = read_image(case.image)
        if case.scribble is not None:
            read_scribbles(dataset, case.id)
        if case.label is None:
            continue
        label = read_labels(case.label)
        check_same_grid(image, label, str(case.label))
        if (highest := int(label.array.max())) >= len(dataset.label_names):
            raise DataError(
                f"{case.label} holds the label value {highest}",
                f"dataset.json names only the values 0 … {len(dataset.label_names) - 1}",
                "name every structure under `labels` in dataset.json, or correct the label",
            )


def split_by_file(dataset: Dataset, path: Path) -> Federation:
    """Deal the cases as a JSON file says.

    Either ``{"sites": {site: [ids]}, "test": [ids] | {site: [ids]}}``, or sites under ``federation`` or
    ``simulated_federation`` (entries that are no list are remarks) and test cases under ``validation``. Test cases that
    the file gives to no site go to every site that trains on cases of the same natural site; where that is unknown, of
    the same intensity pipeline; else to all sites.

    Parameters
    ----------
    path
        As typed, or relative to the data set's folder.

    Raises
    ------
    DataError
        If the file cannot be read, names an unknown or unlabelled case or site, leaves a site empty, puts a case at two
        sites, or has a subject in training and in test.
    """
    if not path.is_absolute() and not path.exists():
        path = dataset.root / path
    split = _read_object(path)
    sites, listed = _sites_of(split, path)
    test = split.get("test", split.get("validation", []))
    if isinstance(test, dict):
        if strangers := test.keys() - sites.keys():
            raise _broken(path, f"`test` names the unknown site {min(strangers)}")
        tests = {site: _ids(test.get(site, []), path) for site in sites}
    else:
        tests = _assign_tests(dataset, sites, _ids(test, path))
    return _checked(dataset, Federation(sites, tests), f"{path} ({listed})")


def split_natural(dataset: Dataset, test_fraction: float, rng: np.random.Generator) -> Federation:
    """One site per institution; a fraction of each one's subjects is held out as its test cases.

    Raises
    ------
    DataError
        If the manifest names no site for some case, or an institution is too small to be split.
    """
    missing = [case for case in dataset.labelled if case not in dataset.natural_sites]
    if missing:
        raise DataError(
            f"{dataset.root} cannot be split by natural site",
            f"manifest.csv names no site for {len(missing)} of {len(dataset.labelled)} cases",
            "add a column `site` to manifest.csv, or choose another split",
        )
    by_site: dict[str, list[str]] = defaultdict(list)
    for case in dataset.labelled:
        by_site[dataset.natural_sites[case]].append(case)
    homes: dict[str, set[str]] = defaultdict(set)
    for case in dataset.labelled:
        homes[dataset.subjects[case]].add(dataset.natural_sites[case])
    # Whoever was seen at several institutions is trained on at each: as a test case of one it would leak to another.
    return _hold_out(
        dataset,
        {site: _by_subject(dataset, by_site[site]) for site in sorted(by_site)},
        test_fraction,
        rng,
        may_test=lambda subject: len(homes[subject]) == 1,
    )


def split_even(dataset: Dataset, sites: int, test_fraction: float, rng: np.random.Generator) -> Federation:
    """Deal whole subjects to `sites` sites at random, as evenly as they go (IID sites).

    Raises
    ------
    UsageError
        If `sites` or `test_fraction` is out of range.
    DataError
        If there are too few subjects.
    """
    subjects = list(_subjects(dataset, sites))
    dealt = [[subjects[n] for n in hand] for hand in np.array_split(rng.permutation(len(subjects)), sites)]
    return _hold_out(dataset, _hands(dataset, dealt), test_fraction, rng)


def split_dirichlet(
    dataset: Dataset, sites: int, alpha: float, test_fraction: float, rng: np.random.Generator
) -> Federation:
    """Deal whole subjects to `sites` sites so that their intensities differ (non-IID sites).

    Subjects are put into :data:`STRATA` strata by the quantiles of an image-only statistic, the logarithm of the 99th
    percentile of intensity; the shares of the sites in each stratum are drawn from a symmetric Dirichlet distribution,
    as Hsu et al. 2019 (arXiv:1909.06335) do with classes.

    Parameters
    ----------
    alpha
        Concentration, above 0: small values give sites that each hold one stratum, large ones even shares.

    Raises
    ------
    UsageError
        If `sites`, `alpha` or `test_fraction` is out of range.
    DataError
        If there are too few subjects, or an image cannot be read.
    """
    if not (alpha > 0 and np.isfinite(alpha)):
        raise UsageError(f"a Dirichlet split cannot use alpha = {alpha}", "alpha must be above 0", "try 0.5")
    members = _subjects(dataset, sites)
    subjects = list(members)
    level = [float(np.mean([_brightness(dataset.cases[case].image) for case in members[s]])) for s in subjects]
    ranked = np.argsort(level, kind="stable")
    hands: list[list[str]] = [[] for _ in range(sites)]
    for stratum in np.array_split(ranked, min(STRATA, len(subjects))):
        shares = rng.dirichlet(np.full(sites, alpha))
        cuts = np.round(np.cumsum(shares)[:-1] * len(stratum)).astype(int)
        for hand, drawn in zip(hands, np.split(rng.permutation(stratum), cuts), strict=True):
            hand.extend(subjects[n] for n in drawn)
    # A small alpha leaves sites with nothing to train or to test on: the largest site gives.
    while len(smallest := min(hands, key=len)) < 2:
        smallest.append(max(hands, key=len).pop())
    return _hold_out(dataset, _hands(dataset, hands), test_fraction, rng)


def _brightness(path: Path) -> float:
    return float(np.log(max(float(np.percentile(read_image(path).array.astype(np.float64), 99)), 1e-6)))


def _by_subject(dataset: Dataset, cases: Iterable[str]) -> dict[str, list[str]]:
    members: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        members[dataset.subjects[case]].append(case)
    return dict(members)


def _subjects(dataset: Dataset, sites: int) -> dict[str, list[str]]:
    members = _by_subject(dataset, dataset.labelled)
    if sites < 1:
        raise UsageError(f"cannot deal cases to {sites} sites", "a federation has at least one site", "ask for more")
    if len(members) < 2 * sites:
        raise DataError(
            f"cannot deal {len(members)} subjects to {sites} sites",
            "each site needs two subjects, one to learn from and one to be tested on",
            "ask for fewer sites, or add cases",
        )
    return members


def _hands(dataset: Dataset, hands: Sequence[Sequence[str]]) -> dict[str, dict[str, list[str]]]:
    members = _by_subject(dataset, dataset.labelled)
    return {f"site_{n}": {s: members[s] for s in hand} for n, hand in enumerate(hands, start=1)}


def _hold_out(
    dataset: Dataset,
    sites: Mapping[str, Mapping[str, Sequence[str]]],
    test_fraction: float,
    rng: np.random.Generator,
    may_test: Callable[[str], bool] = lambda _: True,
) -> Federation:
    """Split site → subject → cases into training and test, each with a subject at least (no test at fraction 0)."""
    if not 0 <= test_fraction < 1:
        raise UsageError(
            f"cannot hold out a fraction of {test_fraction} for testing", "it must be in [0, 1)", "try 0.2"
        )
    train: dict[str, tuple[str, ...]] = {}
    tests: dict[str, tuple[str, ...]] = {}
    for site, members in sites.items():
        names = list(members)
        order = [names[n] for n in rng.permutation(len(names))]
        candidates = [subject for subject in order if may_test(subject)]
        wanted = max(1, round(test_fraction * len(order))) if test_fraction else 0
        held = set(candidates[: min(wanted, len(order) - 1)])
        if test_fraction and not held:
            raise DataError(
                f"site {site} cannot be split into training and test cases",
                f"{len(order)} subjects leave none to test on",
                "give the site more subjects, or ask for a test fraction of 0",
            )
        train[site] = tuple(case for subject in order if subject not in held for case in members[subject])
        tests[site] = tuple(case for subject in order if subject in held for case in members[subject])
    return _checked(dataset, Federation(train, tests), str(dataset.root))


def _assign_tests(
    dataset: Dataset, sites: Mapping[str, tuple[str, ...]], tests: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    assigned: dict[str, list[str]] = {site: [] for site in sites}
    for case in tests:
        homes: list[str] = []
        for traits in (dataset.natural_sites, dataset.pipelines):
            if case in traits and not homes:
                homes = [s for s, train in sites.items() if any(traits.get(t) == traits[case] for t in train)]
        for site in homes or sites:
            assigned[site].append(case)
    return {site: tuple(cases) for site, cases in assigned.items()}


def _checked(dataset: Dataset, federation: Federation, source: str) -> Federation:
    def refuse(cause: str) -> DataError:
        return DataError(f"cannot use the split of {source}", cause, "correct the split, or choose another one")

    labelled = set(dataset.labelled)
    home: dict[str, str] = {}
    for site, cases in federation.sites.items():
        if not cases:
            raise refuse(f"site {site} has no training case")
        for case in cases:
            if case in home:
                raise refuse(f"case {case} is listed twice: at {home[case]} and at {site}")
            home[case] = site
    for site, cases in federation.tests.items():
        if len(set(cases)) != len(cases):
            raise refuse(f"a test case of {site} is listed twice")
    for case in (*home, *federation.test_cases):
        if case not in dataset.cases:
            raise refuse(f"case {case} is not in the data set")
        if case not in labelled:
            raise refuse(f"case {case} has no label")
    trained = {dataset.subjects[case]: case for case in home}
    for case in federation.test_cases:
        if (twin := trained.get(dataset.subjects[case])) is not None:
            raise refuse(f"subject {dataset.subjects[case]} is in training ({twin}) and in test ({case})")
    return federation


def _sites_of(split: Mapping[str, Any], path: Path) -> tuple[dict[str, tuple[str, ...]], str]:
    for key in ("sites", "federation", "simulated_federation"):
        value = split.get(key)
        if isinstance(value, dict):
            sites = {str(site): _ids(ids, path) for site, ids in value.items() if isinstance(ids, list)}
            if sites:
                return sites, key
    raise _broken(path, "it names no sites: no `sites`, `federation` or `simulated_federation` with lists of case ids")


def _ids(value: Any, path: Path) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(case, str) for case in value):
        raise _broken(path, "a list of case ids was expected and something else was found")
    return tuple(value)


def _broken(path: Path, cause: str) -> DataError:
    return DataError(f"cannot use {path}", cause, "correct the file and try again")


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist", "it was moved or never copied", "check the path") from error
    except OSError as error:
        raise _broken(path, error.strerror or type(error).__name__) from error
    except ValueError as error:
        raise _broken(path, "it is no valid JSON") from error
    if not isinstance(value, dict):
        raise _broken(path, "a JSON object was expected")
    return value


def _list(description: Mapping[str, Any], key: str, folder: Path) -> list[Any]:
    value = description.get(key, [])
    if not isinstance(value, list):
        raise _broken(folder / "dataset.json", f"`{key}` is no list")
    return value


def _case_files(folder: Path, entry: Any) -> CaseFiles:
    """One item of `training` ({"image": …, "label": …}) or of `test` (a path)."""
    pair = entry if isinstance(entry, dict) else {"image": entry}
    image = _inside(folder, pair.get("image"))
    label = _inside(folder, pair["label"]) if pair.get("label") else None
    scribble = _inside(folder, pair["scribble"]) if pair.get("scribble") else None
    return CaseFiles(image.name.removesuffix(".gz").removesuffix(".nii"), image, label, scribble)


def _inside(folder: Path, name: Any) -> Path:
    if not isinstance(name, str) or not name:
        raise _broken(folder / "dataset.json", "a case names no image")
    relative = os.path.normpath(name)
    if os.path.isabs(relative) or relative.split(os.sep)[0] == os.pardir:
        raise _broken(folder / "dataset.json", f"{name} lies outside the data set's folder")
    path = folder / relative
    if not path.is_file():
        raise DataError(f"{path} does not exist", "dataset.json names it", "copy the file, or remove the case")
    return path


def _ignore_value(description: Mapping[str, Any], folder: Path) -> int:
    value = description.get("scribble_ignore_value", UNLABELLED)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _broken(folder / "dataset.json", "`scribble_ignore_value` is no whole number")
    return value


def _label_names(description: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    labels = description.get("labels")
    if not isinstance(labels, dict) or {str(n) for n in range(len(labels))} != labels.keys() or len(labels) < 2:
        raise _broken(
            folder / "dataset.json", '`labels` must name the values 0, 1, … without a gap ({"0": "background", …})'
        )
    return tuple(str(labels[str(n)]) for n in range(len(labels)))


def _read_manifest(path: Path) -> dict[str, dict[str, str]]:
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, ValueError, csv.Error) as error:
        raise _broken(path, "it cannot be read as CSV in UTF-8") from error
    if rows and "case" not in rows[0]:
        raise _broken(path, "it has no column `case`")
    return {row["case"]: row for row in rows}
