"""What a bench keeps on disk, so that it goes on after a restart where it was.

It is a convenience and no record: drawings and labels lie in the case store. Something damaged is left out.
"""

import json
import logging
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from wardround.client.learning.replay import Reservoir
from wardround.client.learning.state import Standing
from wardround.errors import StorageError
from wardround.files import new_folder, remove_folder, sweep
from wardround.models.weights import Arrays, load_arrays, save_arrays

_NAME = re.compile(r"kept-([0-9]{6,12})")
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Kept:
    """A bench between two cases.

    Parameters
    ----------
    model, labels
        Network and number of classes.
    base
        Digest of the global weights that it began with.
    reservoir
        Which cases are remembered.
    standing
        How far the model has agreed with the annotator.
    weights, optimiser
        Of the bench's own model.
    """

    model: str
    labels: int
    base: str
    reservoir: Reservoir
    standing: Standing
    weights: Arrays = field(default_factory=dict)
    optimiser: Arrays = field(default_factory=dict)


def save_kept(folder: Path, kept: Kept) -> None:
    """Write `kept` as a whole, then remove what was kept before.

    Raises
    ------
    StorageError
        If the disk is full or not writable; what was kept before is then still there.
    """
    before = _numbered(folder)
    number = max(before, default=0) + 1
    with new_folder(folder / f"kept-{number:06d}") as new:
        save_arrays(new / "weights.safetensors", kept.weights)
        save_arrays(new / "optimiser.safetensors", kept.optimiser)
        content = {
            "model": kept.model,
            "labels": kept.labels,
            "base": kept.base,
            "reservoir": asdict(kept.reservoir),
            "standing": asdict(kept.standing),
        }
        (new / "kept.json").write_text(json.dumps(content), encoding="utf-8")
    for old in before:
        remove_folder(folder / f"kept-{old:06d}")


def load_kept(folder: Path) -> Kept | None:
    """What was kept last; None where there is nothing, or nothing that can be read."""
    sweep(folder)
    numbers = _numbered(folder)
    if not numbers:
        return None
    path = folder / f"kept-{max(numbers):06d}"
    try:
        content = json.loads((path / "kept.json").read_text(encoding="utf-8"))
        reservoir = {name.name: _tuple(content["reservoir"][name.name]) for name in fields(Reservoir)}
        return Kept(
            content["model"],
            content["labels"],
            content["base"],
            Reservoir(**reservoir),
            Standing(**content["standing"]),
            load_arrays(path / "weights.safetensors"),
            load_arrays(path / "optimiser.safetensors"),
        )
    except (OSError, ValueError, KeyError, TypeError, StorageError) as error:
        log.warning("what a bench had kept cannot be read (%s); it begins anew", type(error).__name__)
        return None


def _numbered(folder: Path) -> list[int]:
    """Numbers of what is kept; whatever else lies there is none of ours."""
    found = (_NAME.fullmatch(path.name) for path in folder.glob("kept-*"))
    return [int(name[1]) for name in found if name is not None]


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
