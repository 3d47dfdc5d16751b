"""Streams: regimes that come one after the other, each with its own training cases and its own test.

=============== ======================================================= =====================================
stream          regimes                                                 their order
=============== ======================================================= =====================================
*institutions*  the four hospitals of the LGG FLAIR tumours             another one a seed
*scanners*      phantoms of four scanners                               another one a seed
*structures*    hippocampus: the anterior part labelled, then the       anterior first
                posterior one
*phantoms*      as *scanners*, tiny                                     another one a seed
=============== ======================================================= =====================================

A structure that is not labelled in a regime of *structures* is *unknown* there, which is what a case of this system
says of voxels that nobody labelled. ``unlabelled=background`` makes it background, the hard case of the literature
(Cermelli et al. 2020, arXiv 2002.00718).
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from weak.labels import KINDS, sample_of

from wardround.client.annotation.annotator import Truth
from wardround.client.annotation.prompts import UNLABELLED
from wardround.client.cases.dataset import Dataset
from wardround.client.cases.nifti import read_image, read_labels, write_volume
from wardround.client.cases.phantoms import LABEL_NAMES, ScannerShift, draw_phantom
from wardround.client.learning.replay import Sample
from wardround.files import new_folder

Unlabelled = Literal["unknown", "background"]


@dataclass(frozen=True)
class Phantoms:
    """What is drawn for a stream of scanners.

    Parameters
    ----------
    shape
        Of every phantom.
    scanners
        By name. A contrast below 0 turns dark and bright round, as another sequence does.
    train, test
        Cases of each.
    """

    shape: tuple[int, int, int]
    scanners: Mapping[str, ScannerShift]
    train: int
    test: int

    def write(self, folder: Path) -> Path:
        """Draw them, with a ``split.json`` and a ``manifest.csv``; kept if they are there."""
        if folder.exists():
            return folder
        cases: dict[str, dict[str, list[str]]] = {"sites": {}, "test": {}}
        rows, entries = ["case,subject,site"], []
        with new_folder(folder) as building:
            for number, (name, shift) in enumerate(self.scanners.items()):
                for index in range(self.train + self.test):
                    case = f"{name}_{index:03d}"
                    image, labels = draw_phantom(np.random.default_rng([number, index]), self.shape, shift)
                    entry = {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"}
                    write_volume(building / entry["image"], image)
                    write_volume(building / entry["label"], labels)
                    cases["sites" if index < self.train else "test"].setdefault(name, []).append(case)
                    rows.append(f"{case},{case},{name}")
                    entries.append(entry)
            described = {str(value): name for value, name in enumerate(LABEL_NAMES)}
            content = {"name": "phantoms", "labels": described, "training": entries}
            (building / "dataset.json").write_text(json.dumps(content))
            (building / "split.json").write_text(json.dumps(cases))
            (building / "manifest.csv").write_text("\n".join(rows) + "\n")
        return folder


@dataclass(frozen=True)
class Regime:
    """A part of a stream.

    Parameters
    ----------
    name
        In tables.
    pool
        Ids of the cases that may be learnt from in it.
    test
        Ids of its test cases, of none of which anything is learnt in any regime.
    structures
        Labels that are drawn in it, and that its test asks for; empty for all.
    """

    name: str
    pool: tuple[str, ...]
    test: tuple[str, ...]
    structures: tuple[int, ...] = ()


def regimes_of(dataset: Dataset, parts: Mapping[str, tuple[int, ...]], tests: int, inner: bool) -> tuple[Regime, ...]:
    """The regimes of a data set, before anything depends on a seed.

    Test cases are those that the data's ``split.json`` holds out; where a regime has fewer than `tests`, training cases
    join them for good. `inner` leaves the tests alone and holds out a third of what is learnt from instead.

    Parameters
    ----------
    dataset
        With its ``split.json``.
    parts
        Regime → its structures, where regimes are parts of an anatomy; empty where they are the data's own sites.
    tests
        Test cases of a regime, at most.
    inner
        Choose settings: a third of each pool, at most `tests` cases, is the test.
    """
    train, held = _split(dataset.root)
    if parts:
        # Every part is asked for in the same test cases, and learnt from cases of its own.
        share = len(train) // len(parts)
        found = [
            Regime(name, train[number * share : (number + 1) * share], held[:tests], structures)
            for number, (name, structures) in enumerate(parts.items())
        ]
        if not inner:
            return tuple(found)
        asked = tuple(itertools.chain.from_iterable(regime.pool[-tests:] for regime in found))
        subjects = {dataset.subjects[case] for case in asked}
        return tuple(
            replace(
                regime, pool=tuple(case for case in regime.pool if dataset.subjects[case] not in subjects), test=asked
            )
            for regime in found
        )
    sites = sorted({dataset.natural_sites[case] for case in train})
    found = []
    for number, site in enumerate(sites):
        own = [case for case in train if dataset.natural_sites[case] == site]
        # Ids are given in order of time: those that are moved or held out are of all times.
        own = [own[index] for index in np.random.default_rng(number).permutation(len(own))]
        test = [case for case in held if dataset.natural_sites[case] == site][:tests]
        # No more than a third of what there is: something is to be learnt, too.
        missing = min(tests - len(test), max(0, (len(own) - len(test)) // 3))
        test += own[:missing]
        own = own[missing:]
        if inner:
            count = min(tests, len(own) // 3)
            test, own = own[:count], own[count:]
        found.append(Regime(site, tuple(own), tuple(test)))
    return tuple(found)


def dealt(regimes: Sequence[Regime], cases: int, seed: int, free: bool) -> tuple[Regime, ...]:
    """The stream of a seed: other cases in another order, and regimes in an order of its own where that is `free`.

    No two of the first seeds have the same order of regimes, as long as there are orders left.
    """
    ordered = list(regimes)
    if free:
        orders = list(itertools.permutations(range(len(regimes))))
        picked = orders[int(np.random.default_rng(0).permutation(len(orders))[seed % len(orders)])]
        ordered = [regimes[index] for index in picked]
    found = []
    for regime in ordered:
        rng = np.random.default_rng([seed, 3, *regime.name.encode()])
        drawn = tuple(regime.pool[int(index)] for index in rng.permutation(len(regime.pool))[:cases])
        found.append(replace(regime, pool=drawn))
    return tuple(found)


def samples_of(dataset: Dataset, regime: Regime, unlabelled: Unlabelled, shrink: int, slices: int) -> list[Sample]:
    """What is learnt in a regime: every voxel of its cases, but for structures that are not drawn in it."""
    found = []
    for case in regime.pool:
        files = dataset.cases[case]
        assert files.label is not None
        image, truth = read_image(files.image), Truth(read_labels(files.label))
        given = KINDS["dense"](dataset, case, truth, image)
        if regime.structures:
            other = ~np.isin(given.known, (0, *regime.structures))
            known = np.where(other, UNLABELLED if unlabelled == "unknown" else 0, given.known)
            given = replace(given, known=known.astype(np.uint8))
        found.append(sample_of(case, image, given, len(dataset.label_names), shrink, slices))
    return found


def _split(root: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training and held-out cases, by ``split.json`` of either layout."""
    listed = json.loads((root / "split.json").read_text())
    if "sites" in listed:
        train, held = (tuple(itertools.chain.from_iterable(listed[part].values())) for part in ("sites", "test"))
        return train, held
    return tuple(listed["train"]), tuple(listed["validation"])
