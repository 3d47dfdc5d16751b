"""What shapes there are, without a single mask: a statistical model of signed distances to draw new masks from.

Principal components of signed distance maps (Leventon et al. 2000, "Statistical shape influence in geodesic active
contours"; several structures at once as in Tsai et al. 2003), with the place of the object as further coordinates. A
memory that rehearses with it keeps means and directions over many people, and nobody's mask. That is no proof of
privacy: whoever holds the model learns what a few people have in common.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.special import ndtr, ndtri
from scipy.stats import qmc

from wardround.errors import DataError, GeometryError

LabelArray = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]

# Fewer masks than this are too easily told from their mean.
FEWEST = 4
# Standard deviations at which the normal distribution of every coordinate is cut off.
EXTENT = 2.0
# Distances are cut off at this fraction of the longest side: what is far from every border says nothing of the shape.
REACH = 0.25
# A direction along which distances change by less than this share of a voxel is rounding.
LEAST = 1e-4
# Draws, a power of two, over which volumes are adjusted.
DRAWS = 64


@dataclass(frozen=True, eq=False)
class ShapeKind:
    """Masks that show the same structures: a normal distribution over signed distance maps and places.

    It is cut off at :data:`EXTENT` standard deviations along every direction.

    Parameters
    ----------
    structures
        ``[S]``, uint8: the labels that are shown, ascending, without background.
    frequency
        How many masks were of this kind.
    mean
        ``[S, *spatial]``, float32: mean distance to each structure's border, positive inside, of objects that are
        moved to the middle of the grid. In the unit of the spacing that was given to :meth:`ShapeModel.fit`.
    levels
        ``[S]``, float32: a voxel belongs to a structure where the distance is above its level. What is drawn has the
        mean volume then; at level 0 it would not, as distances of different shapes do not add up to a distance.
    directions
        ``[K, S, *spatial]``, float32: change of the distances along each component, for one standard deviation.
    place
        ``[axes]``, float32: mean distance of the object from the middle of the grid, in voxels.
    moves
        ``[K, axes]``, float32: change of the place along each component, for one standard deviation.
    """

    structures: LabelArray
    frequency: int
    mean: FloatArray
    levels: FloatArray
    directions: FloatArray
    place: FloatArray
    moves: FloatArray

    @classmethod
    def fit(cls, masks: Sequence[LabelArray], components: int, steps: npt.NDArray[np.float64]) -> "ShapeKind":
        """Learn from masks ``[*spatial]`` that all show the same structures, at least two."""
        grid = np.array(masks[0].shape)
        structures = np.unique(masks[0])[np.unique(masks[0]) > 0]
        places = np.array(
            [np.round(np.argwhere(mask != 0).mean(axis=0) - (grid - 1) / 2).astype(int) for mask in masks]
        )
        # Beyond the edge the edge continues, as where an image cuts an organ off.
        centred = [
            ndimage.shift(mask, -place, order=0, mode="nearest") for mask, place in zip(masks, places, strict=True)
        ]
        reach = REACH * float((grid * steps).max())
        maps = np.stack([[_signed_distance(mask == one, steps, reach) for one in structures] for mask in centred])
        mean, place = maps.mean(axis=0), places.mean(axis=0)
        # A voxel of place weighs as much as one of distance everywhere.
        voxels = maps[0].size
        weight = float(np.sqrt(voxels))
        rows = np.concatenate([(maps - mean).reshape(len(maps), -1), weight * (places - place)], axis=1)
        _, strengths, found = np.linalg.svd(rows, full_matrices=False)
        count = min(components, len(masks) // 2, int((strengths > LEAST * weight * steps.min()).sum()))
        found = found[:count] * (strengths[:count, None] / np.sqrt(len(masks) - 1))
        directions = found[:, :voxels].reshape(count, *mean.shape)
        shares = np.array([[(mask == one).mean() for one in structures] for mask in centred]).mean(axis=0)
        return cls(
            structures=structures.astype(np.uint8),
            frequency=len(masks),
            mean=mean.astype(np.float32),
            levels=_levels(mean, directions, shares),
            directions=directions.astype(np.float32),
            place=place.astype(np.float32),
            moves=(found[:, voxels:] / weight).astype(np.float32),
        )

    def mask(self, scores: npt.NDArray[np.float64]) -> LabelArray:
        """The mask at these coordinates ``[K]``, in standard deviations: ``[*spatial]``, uint8."""
        levels = self.levels.reshape(-1, *(1,) * (self.mean.ndim - 1))
        distances = self.mean + np.tensordot(scores, self.directions, axes=1) - levels
        place = self.place + scores @ self.moves
        moved = np.stack([ndimage.shift(own, place, order=1, mode="nearest") for own in distances])
        labels = np.where(moved.max(axis=0) > 0, self.structures[moved.argmax(axis=0)], 0)
        return np.asarray(labels, dtype=np.uint8)


@dataclass(frozen=True, eq=False)
class ShapeModel:
    """Masks of several kinds, each as frequent as it was seen.

    Slices through an organ of two parts show the one, the other or both; one distribution over all of them would
    draw what lies between, which is none of them.

    Parameters
    ----------
    kinds
        In the order of their structures.
    """

    kinds: tuple[ShapeKind, ...]

    @classmethod
    def fit(
        cls, masks: Sequence[LabelArray], components: int = 8, *, spacing: Sequence[float] | None = None
    ) -> "ShapeModel":
        """Learn a model of `masks`, none of which it keeps.

        Parameters
        ----------
        masks
            Label maps ``[*spatial]``, uint8, on one grid; two or three axes. Masks without any structure are passed
            over, and so are kinds of which there are fewer than :data:`FEWEST`: what is that rare is a person.
        components
            Directions of each kind, at most. Half as many as there are masks are the most in any case: with one fewer
            than masks, each mask would be a point of the model.
        spacing
            Between voxel centres along each axis, in any unit; None for 1.

        Raises
        ------
        DataError
            If no kind has enough masks.
        GeometryError
            If grids differ.
        """
        shown: dict[tuple[int, ...], list[LabelArray]] = {}
        for mask in masks:
            if mask.any():
                shown.setdefault(tuple(np.unique(mask[mask > 0]).tolist()), []).append(mask)
        grids = {mask.shape for same in shown.values() for mask in same}
        if len(grids) > 1:
            raise GeometryError(
                "a model of shapes needs masks on one grid", f"there are {len(grids)} grids", "resample them first"
            )
        enough = [shown[structures] for structures in sorted(shown) if len(shown[structures]) >= FEWEST]
        if not enough:
            raise DataError(
                f"{len(masks)} masks are too few for a model of shapes",
                f"a model of fewer than {FEWEST} that show the same would be the masks themselves",
                "wait for more cases",
            )
        steps = np.ones(enough[0][0].ndim) if spacing is None else np.asarray(spacing, dtype=np.float64)
        return cls(tuple(ShapeKind.fit(same, components, steps) for same in enough))

    def sample(self, rng: np.random.Generator) -> LabelArray:
        """Draw a mask, ``[*spatial]``, uint8, that shows the structures of its kind.

        A draw that lacks one, as where a small structure has left the image, is drawn again nearer to the mean.

        Raises
        ------
        DataError
            If the mean lacks one as well: the masks of a kind have too little in common.
        """
        frequencies = np.array([kind.frequency for kind in self.kinds], dtype=np.float64)
        kind = self.kinds[int(rng.choice(len(self.kinds), p=frequencies / frequencies.sum()))]
        for strength in (1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.0):
            mask = kind.mask(strength * _truncated_normal(rng.random(len(kind.directions))))
            if np.isin(kind.structures, mask).all():
                return mask
        raise DataError(
            "this model of shapes draws masks that lack a structure",
            "the masks that it was fitted to have too little in common",
            "fit it to masks of one organ, in crops round it",
        )

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """All that the model is, by name, to be kept as safetensors."""
        return {
            f"{number}/{field.name}": np.asarray(getattr(kind, field.name))
            for number, kind in enumerate(self.kinds)
            for field in fields(kind)
        }

    @classmethod
    def of(cls, arrays: Mapping[str, npt.NDArray[np.generic]]) -> "ShapeModel":
        """The model that :meth:`arrays` came from."""
        kinds = []
        for number in range(len({name.split("/")[0] for name in arrays})):
            own: dict[str, Any] = {
                field.name: np.asarray(arrays[f"{number}/{field.name}"]) for field in fields(ShapeKind)
            }
            kinds.append(ShapeKind(**own | {"frequency": int(own["frequency"])}))
        return cls(tuple(kinds))


def _truncated_normal(uniform: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Values of a normal distribution that is cut off at :data:`EXTENT`, for uniform ones in 0 … 1."""
    edge = ndtr(EXTENT)
    return np.asarray(ndtri((1 - edge) + uniform * (2 * edge - 1)), dtype=np.float64)


def _levels(
    mean: npt.NDArray[np.float64], directions: npt.NDArray[np.float64], shares: npt.NDArray[np.float64]
) -> FloatArray:
    """Where to cut the distances, so that each structure fills its share of the grid over evenly spread draws."""
    spread = np.zeros((1, 0))
    if len(directions):
        spread = qmc.Sobol(len(directions), scramble=False).random_base2(DRAWS.bit_length() - 1) + 0.5 / DRAWS
    scores = _truncated_normal(spread)
    return np.array(
        [
            np.quantile(own + np.tensordot(scores, along, axes=1), 1 - share)
            for own, along, share in zip(mean, np.moveaxis(directions, 1, 0), shares, strict=True)
        ],
        dtype=np.float32,
    )


def _signed_distance(region: npt.NDArray[np.bool_], steps: npt.NDArray[np.float64], reach: float) -> FloatArray:
    """Distance to the border of a region, positive inside, cut off at `reach`; an absent region is that far away."""
    if not region.any() or region.all():
        return np.full(region.shape, reach if region.any() else -reach, dtype=np.float32)
    inside = ndimage.distance_transform_edt(region, sampling=steps)
    outside = ndimage.distance_transform_edt(~region, sampling=steps)
    half = 0.5 * float(steps.min())
    return np.asarray(np.clip(np.where(region, inside - half, half - outside), -reach, reach), dtype=np.float32)
