"""What sites' generators make, taken from the snapshots of a run so that its report can show it.

A simulation has every site on one machine. At a hospital none of this leaves the site, and no report shows it.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from wardround.client.synthesis.shown import Shown
from wardround.deploy.preparation import INDEX, stored_settings
from wardround.deploy.report.examples import IMAGINED, Example, save_example
from wardround.deploy.report.summary import MAIN_ARM
from wardround.files import remove_folder

# As wardround.client.learning.state.LOCAL and what wardround.client.dreaming puts before the names of its arrays: these
# would import torch into the process that only waits for the arms.
_LOCAL, _SHOWN = "local.safetensors", "dreams/shown/"

logger = logging.getLogger(__name__)


def keep_imagined(out: Path) -> None:
    """Write `imagined/*.npz` into the experiment's folder: a slice of each made image that sites have kept.

    They are those of the newest snapshot of every site in the first run of the main arm. What was in the folder is
    replaced; there is none where no generator has passed its test yet. A snapshot that cannot be read is logged and
    left out.

    Raises
    ------
    StorageError
        If the disk is full or the folder is not writable.
    """
    if (out / IMAGINED).exists():
        remove_folder(out / IMAGINED)
    first = stored_settings(out).seeds[0]
    for run in json.loads((out / INDEX).read_text(encoding="utf-8"))["runs"]:
        if (run["arm"], run["seed"]) != (MAIN_ARM, first):
            continue
        for place, site in enumerate(run["sites"]):
            shown = _shown(out / "arms" / run["folder"] / "sites" / site)
            for number, example in enumerate(_examples(site, shown) if shown is not None else ()):
                save_example(out / IMAGINED / f"{place:03d}-{site}-{number}.npz", example)


def _shown(site: Path) -> Shown | None:
    newest = max((site / "state").glob("round-*/state.json"), default=None)
    if newest is None or not (file := newest.with_name(_LOCAL)).exists():
        return None
    try:
        with safe_open(file, framework="numpy") as stored:
            names = filter(lambda name: name.startswith(_SHOWN), stored.keys())
            arrays = {name.removeprefix(_SHOWN): stored.get_tensor(name) for name in names}
        return Shown.of(arrays) if arrays else None
    except (OSError, SafetensorError, KeyError) as error:
        logger.warning("made images of %s are left out of the report: %s", site.name, type(error).__name__)
        return None


def _examples(site: str, shown: Shown) -> Iterator[Example]:
    """Slices, with rows along j, as a viewer would show them."""
    for image, labels, spacing in zip(shown.images, shown.labels, shown.spacing, strict=True):
        chosen = _slice(labels)
        yield Example(
            image[chosen].T, truth=labels[chosen].T, title=site, spacing=(float(spacing[1]), float(spacing[0]))
        )


def _slice(labels: npt.NDArray[np.uint8]) -> tuple[slice, slice] | tuple[slice, slice, int]:
    """Of a volume the axial slice that holds most of the structures; of a slice all."""
    if labels.ndim == 2:
        return slice(None), slice(None)
    return slice(None), slice(None), int((labels > 0).sum(axis=(0, 1)).argmax())
