"""Example slices that a run leaves in `examples/`, one `.npz` file each, and in `imagined/` what generators made.

Arrays `image`, `truth`, `proxy`, `prediction` and `residual` are 2D and of one shape; the label arrays hold label
values, the residual 0 … 1. `title` is text, `drawn` lists the positions of the drawn slices as text; `spacing` (row,
column, in mm) may be there. Everything but `image` may be missing.
"""

import io
import logging
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wardround import files
from wardround.errors import UsageError

LAYERS = ("truth", "proxy", "prediction")
IMAGINED = "imagined"
"""Folder of made images: `title` is the site, and `truth` the labels that an image was made of."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Example:
    """One slice to look at.

    Attributes
    ----------
    image
        Intensities, shape (rows, columns), any finite range.
    truth, proxy, prediction
        Label values, uint8, the shape of `image`; None where there are none.
    residual
        Disagreement between proxy and prediction, 0 … 1, the shape of `image`; None where there is none.
    title
        What the slice shows.
    drawn
        Positions of the slices that were drawn on the case.
    spacing
        Pixel size (row, column) in mm.
    """

    image: NDArray[np.float32]
    truth: NDArray[np.uint8] | None = None
    proxy: NDArray[np.uint8] | None = None
    prediction: NDArray[np.uint8] | None = None
    residual: NDArray[np.float32] | None = None
    title: str = ""
    drawn: tuple[str, ...] = ()
    spacing: tuple[float, float] = (1.0, 1.0)

    def labels(self) -> tuple[int, ...]:
        """The label values that occur in any layer, without background."""
        found: set[int] = set()
        for layer in (self.truth, self.proxy, self.prediction):
            if layer is not None:
                found.update(int(value) for value in np.unique(layer))
        return tuple(sorted(found - {0}))

    def dice(self, layer: NDArray[np.uint8] | None) -> float:
        """Mean Dice over labels between `layer` and the truth on this slice alone; NaN where either is missing."""
        if layer is None or self.truth is None:
            return float("nan")
        scores = []
        for value in self.labels():
            one, two = layer == value, self.truth == value
            total = int(one.sum() + two.sum())
            if total:
                scores.append(2.0 * int((one & two).sum()) / total)
        return float(np.mean(scores)) if scores else float("nan")

    def cropped(self, ratio: float = 1.0) -> "Example":
        """The part around the labels with a margin, `ratio` times as high as wide in mm where the slice allows it.

        Where no layer holds a label, the whole slice.
        """
        masks = [layer > 0 for layer in (self.truth, self.proxy, self.prediction) if layer is not None]
        rows, columns = np.nonzero(np.any(masks, axis=0)) if masks else (np.empty(0), np.empty(0))
        if rows.size == 0:
            return self
        extent = [(rows.min(), rows.max() + 1), (columns.min(), columns.max() + 1)]
        stretch = (ratio, 1.0)
        sizes = [(high - low) * size for (low, high), size in zip(extent, self.spacing, strict=True)]
        side = 1.5 * max(size / factor for size, factor in zip(sizes, stretch, strict=True))
        box = []
        for axis, (low, high) in enumerate(extent):
            length = self.image.shape[axis]
            wanted = min(length, max(round(side * stretch[axis] / self.spacing[axis]), 16))
            start = int(np.clip((low + high - wanted) // 2, 0, length - wanted))
            box.append(slice(start, start + wanted))
        where = tuple(box)

        def cut(layer: Any) -> Any:
            return None if layer is None else layer[where]

        return Example(
            cut(self.image),
            cut(self.truth),
            cut(self.proxy),
            cut(self.prediction),
            cut(self.residual),
            self.title,
            self.drawn,
            self.spacing,
        )


def load_examples(folder: Path, kind: str = "examples") -> list[Example]:
    """Read `folder/examples/*.npz` in the order of the file names; a damaged file is logged and left out.

    `kind` is another folder of the same form, such as :data:`IMAGINED`.
    """
    return list(_read_all(folder / kind))


def chosen(examples: Sequence[Example], count: int) -> list[Example]:
    """At most `count` of the examples, evenly over the list with the last one among them, in their order."""
    taken = min(count, len(examples))
    return [examples[len(examples) - 1 - back * len(examples) // taken] for back in reversed(range(taken))]


def _read_all(folder: Path) -> Iterator[Example]:
    for path in sorted(folder.glob("*.npz")):
        try:
            yield _read(path)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            _log.warning("example %s is left out of the report: %s", path.name, type(error).__name__)


def _read(path: Path) -> Example:
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    image = np.nan_to_num(np.asarray(arrays["image"], dtype=np.float32), posinf=0.0, neginf=0.0)
    if image.ndim != 2 or image.size == 0:
        raise ValueError("an example image has two axes")

    def layer(name: str, labels: bool) -> Any:
        values = arrays.get(name)
        if values is None or values.size == 0:
            return None
        if values.shape != image.shape:
            raise ValueError("the layers of an example share one shape")
        filled = np.nan_to_num(np.asarray(values, dtype=np.float32), posinf=0.0, neginf=0.0)
        return np.rint(filled).clip(0, 255).astype(np.uint8) if labels else filled.clip(0.0, 1.0)

    spacing = np.ravel(arrays.get("spacing", np.ones(2))).astype(float)
    usable = spacing.size == 2 and bool(np.isfinite(spacing).all()) and bool((spacing > 0).all())
    return Example(
        image,
        layer("truth", True),
        layer("proxy", True),
        layer("prediction", True),
        layer("residual", False),
        str(arrays["title"]) if "title" in arrays else path.stem,
        tuple(str(item) for item in np.ravel(arrays.get("drawn", np.empty(0, dtype=str)))),
        (float(spacing[0]), float(spacing[1])) if usable else (1.0, 1.0),
    )


def save_example(path: Path, example: Example) -> Path:
    """Write one example as `.npz`, atomically.

    Raises
    ------
    UsageError
        If `path` does not end in `.npz`.
    StorageError
        If the disk is full or the folder is not writable.
    """
    if path.suffix != ".npz":
        raise UsageError(f"cannot write the example {path.name}", "examples are .npz files", "name it *.npz")
    layers = {name: getattr(example, name) for name in (*LAYERS, "residual")}
    stream = io.BytesIO()
    np.savez_compressed(
        stream,
        image=example.image,
        title=np.array(example.title),
        drawn=np.array(example.drawn, dtype=str),
        spacing=np.array(example.spacing),
        **{name: values for name, values in layers.items() if values is not None},
    )
    files.write_bytes(path, stream.getvalue())
    return path
