"""What stands for cases that are no longer kept: shapes, textures, and how many cases they come from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from wardround.client.synthesis.shapes import FEWEST, ShapeKind, ShapeModel
from wardround.errors import DataError
from wardround.models.weights import Arrays

FloatArray = npt.NDArray[np.float32]
LabelArray = npt.NDArray[np.uint8]

# Textures that are kept.
TEXTURES = 64
# Shapes of each kind that are drawn of the old model to make the new one, at most.
SHAPES = 32
# Draws by which a new model is tried before anything relies on it.
TRIALS = 8


@dataclass(frozen=True, eq=False)
class Substitute:
    """Masks and textures to draw from, and nobody's image or mask.

    Parameters
    ----------
    shapes
        Of all kinds of masks that there were, each as frequent as it was.
    textures
        ``[N, length]``, at most :data:`TEXTURES`, old and new ones by the number of cases behind them; None where the
        generator knows of none. They are in the terms of the generator as it was when they were taken.
    cases
        How many cases it stands for.
    """

    shapes: ShapeModel
    textures: FloatArray | None
    cases: int

    def arrays(self) -> Arrays:
        """All that it is, by name."""
        found: Arrays = {f"shapes/{name}": array for name, array in self.shapes.arrays().items()}
        found["cases"] = np.array([self.cases], dtype=np.int64)
        return found if self.textures is None else found | {"textures": self.textures}

    @classmethod
    def of(cls, arrays: Mapping[str, npt.NDArray[np.generic]]) -> "Substitute":
        """What :meth:`arrays` came from."""
        shapes = {name.removeprefix("shapes/"): array for name, array in arrays.items() if name.startswith("shapes/")}
        textures = np.asarray(arrays["textures"], dtype=np.float32) if "textures" in arrays else None
        return cls(ShapeModel.of(shapes), textures, int(arrays["cases"][0]))

    def covers(self, masks: Sequence[LabelArray]) -> bool:
        """Whether there are shapes of every kind among `masks`; those without a structure are no kind."""
        known = {tuple(kind.structures.tolist()) for kind in self.shapes.kinds}
        return {kind for mask in masks if (kind := _kind(mask))} <= known

    def draw(self, rng: np.random.Generator) -> tuple[LabelArray, FloatArray | None]:
        """A mask, and a texture for it.

        Raises
        ------
        DataError
            If the shape that was drawn shows nothing.
        """
        mask = self.shapes.sample(rng)
        return mask, None if self.textures is None else self.textures[int(rng.integers(len(self.textures)))]


def substituted(
    old: Substitute | None,
    masks: Sequence[LabelArray],
    textures: FloatArray | None,
    cases: int,
    rng: np.random.Generator,
) -> Substitute | None:
    """What stands for `cases` more cases as well; None where nothing can stand for any.

    A kind that is known already goes on in the masks that its own model draws, and stays as frequent as it was. Of a
    new kind there must be enough masks, and it must be one that can be drawn: else there are no shapes of it.

    Parameters
    ----------
    old
        What stands for earlier cases.
    masks
        ``[*spatial]`` each, of the new cases, on the generator's grid.
    textures
        ``[N, length]``, of the new cases.
    cases
        How many these are.
    rng
        Only source of randomness.
    """
    known = {} if old is None else {tuple(kind.structures.tolist()): kind for kind in old.shapes.kinds}
    new: dict[tuple[int, ...], list[LabelArray]] = {}
    for mask in masks:
        if mask.any():
            new.setdefault(_kind(mask), []).append(mask)
    kinds = []
    for structures in sorted({*known, *new}):
        before, own = known.get(structures), new.get(structures, [])
        if before is not None:
            count = min(SHAPES, max(FEWEST, before.frequency))
            own = own + _drawn(before, count, rng) if own else []
        found = _fitted(own, rng)
        if found is None:
            found = before
        elif before is not None:
            found = replace(found, frequency=before.frequency + len(new[structures]))
        if found is not None:
            kinds.append(found)
    if not kinds:
        return None
    gathered = 0 if old is None else old.cases
    mixed = textures
    if old is not None and old.textures is not None and textures is not None:
        share = round(TEXTURES * gathered / (gathered + cases))
        mixed = np.concatenate([_some(old.textures, share, rng), _some(textures, TEXTURES - share, rng)])
    elif textures is not None:
        mixed = _some(textures, TEXTURES, rng)
    return Substitute(ShapeModel(tuple(kinds)), mixed, gathered + cases)


def _kind(mask: LabelArray) -> tuple[int, ...]:
    return tuple(np.unique(mask[mask > 0]).tolist())


def _drawn(kind: ShapeKind, count: int, rng: np.random.Generator) -> list[LabelArray]:
    model, found = ShapeModel((kind,)), []
    for _ in range(count):
        try:
            found.append(model.sample(rng))
        except DataError:
            continue
    return found


def _fitted(masks: list[LabelArray], rng: np.random.Generator) -> ShapeKind | None:
    """A model of masks of one kind that can be drawn from; None where there is none."""
    if len(masks) < FEWEST:
        return None
    (kind,) = ShapeModel.fit(masks).kinds
    return kind if len(_drawn(kind, TRIALS, rng)) == TRIALS else None


def _some(textures: FloatArray, count: int, rng: np.random.Generator) -> FloatArray:
    return textures[rng.permutation(len(textures))[:count]]
