"""Seven points a structure, and the seed labels they give: what is surely the structure, what surely not, the rest.

One point lies in the structure and six just beyond its ends, so that their box encloses it. Zhai et al. 2023 (PA-Seg,
arXiv 2208.05669, section III-A) take for the structure whatever is near to the inner point by geodesic distance in
that box, and for background all that lies outside. Here intensities are normalised first, and a seed must besides be
nearer to the inner point than to the faces of the box, which are background just as the points on them are. Without
that the distance has to be cut so early that few seeds are left.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wardround.client.annotation.geodesic import Convention, geodesic_distance
from wardround.client.annotation.prompts import UNLABELLED, Labels3D, PointPrompt, Shape, plane
from wardround.client.annotation.seeds import normalised
from wardround.errors import UsageError
from wardround.strategies.plan import Expansion

FloatArray = npt.NDArray[np.float32]
Box = tuple[slice, slice, slice]
Spacing = tuple[float, float, float]

POINTS = 7


@dataclass(frozen=True)
class SevenPoints:
    """The points of one structure, or of one part of it.

    Parameters
    ----------
    inner
        In the structure; its label is the structure's.
    outer
        Six points just beyond the structure's ends, with whatever label their voxels have.
    """

    inner: PointPrompt
    outer: tuple[PointPrompt, ...]

    @property
    def label(self) -> int:
        """Of the structure."""
        return self.inner.label

    @property
    def box(self) -> Box:
        """The smallest box that holds all seven points."""
        places = np.array([self.inner.index, *(point.index for point in self.outer)])
        i, j, k = (slice(int(low), int(high) + 1) for low, high in zip(places.min(0), places.max(0), strict=True))
        return i, j, k

    def within(self, shape: Shape) -> Box:
        """Where the structure may lie: the box without its faces, but with those that lie on a face of the image."""
        i, j, k = (
            slice(side.start + (side.start > 0), side.stop - (side.stop < length))
            for side, length in zip(self.box, shape, strict=True)
        )
        return i, j, k

    def encloses(self, shape: Shape) -> bool:
        """Whether the inner point lies within the box of the outer ones, in an image of `shape`.

        Beyond a face of the image nobody can click: there a point on the face will do.
        """
        places = np.array([point.index for point in self.outer])
        low, high, inner = places.min(axis=0), places.max(axis=0), np.array(self.inner.index)
        below = (low < inner) | ((low == 0) & (inner == 0))
        last = np.array(shape) - 1
        return bool((below & ((high > inner) | ((high == last) & (inner == last)))).all())


@dataclass(frozen=True)
class ExpansionSettings:
    """How far a point's label reaches.

    Parameters
    ----------
    convention, weight, sweeps
        Of :func:`~wardround.client.annotation.geodesic.geodesic_distance`: `convention` says what a step costs and
        `weight` is the λ of the literature, which means something else in each convention. Length is counted in voxels
        of the finest axis and intensity in robust standard deviations of the box.
    smoothing
        Width of the Gaussian over the box before, in voxels of the finest axis.
    threshold
        A seed lies nearer to the inner point than this share of the largest distance in the box; above 0, to 1.
    rival
        A seed's distance from the inner point is less than this share of the whole way through it from the inner point
        to the faces of the box; above 0, to 1, which rules out the faces alone.

    The defaults were chosen on training cases by ``benchmarks/seeds.py --points``: of all costs and pairs of shares
    with a mean precision of at least 0.9 those of the best mean recall. On both structures of 144 hippocampi of low
    contrast that is 0.39 at a precision of 0.90 (by length alone 0.21); on 64 tumours they are cautious, 0.36 at 0.95,
    and :data:`CONTRASTED` is meant for these.

    Raises
    ------
    UsageError
        If a share is not above 0 and at most 1.
    """

    convention: Convention = "additive"
    weight: float = 0.95
    sweeps: int = 4
    smoothing: float = 0.5
    threshold: float = 0.15
    rival: float = 0.68

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1 or not 0 < self.rival <= 1:
            raise UsageError(
                f"cannot expand points by the shares {self.threshold} and {self.rival}",
                "a share of a distance is above 0 and at most 1",
                "correct `threshold` or `rival`",
            )


# On 64 tumours in FLAIR recall 0.73 at a precision of 0.90; by length alone 0.19, by the threshold alone 0.41–0.44.
CONTRASTED = ExpansionSettings(weight=0.98, threshold=1.0, rival=0.62)
"""For structures that stand out from what is round them, such as tumours in FLAIR, chosen in the same way."""

EXPANSIONS: Mapping[Expansion, ExpansionSettings] = {"geodesic": ExpansionSettings(), "contrasted": CONTRASTED}
"""The settings that a plan may name."""


@dataclass(frozen=True, eq=False)
class Reach:
    """Distances in the box of seven points.

    Parameters
    ----------
    box
        Which part of the image.
    inner
        ``[i, j, k]`` of the box: geodesic distance from the inner point.
    faces
        The same from the faces of the box and the outer points.
    """

    box: Box
    inner: FloatArray
    faces: FloatArray

    def seeds(self, settings: ExpansionSettings) -> npt.NDArray[np.bool_]:
        """Where in the box the structure surely is."""
        near = self.inner < settings.threshold * self.inner.max()
        return np.asarray(near & (self.inner < settings.rival * (self.inner + self.faces)))


def seven_points(points: Sequence[PointPrompt], shape: Shape) -> tuple[SevenPoints, ...]:
    """Sort points into structures: each seven that follow one another belong together.

    Among the seven, the order is free: the first one that has a structure's label and lies within the box of the others
    is the inner one.

    Parameters
    ----------
    points
        As they were set, a multiple of seven.
    shape
        ``(I, J, K)`` of the image.

    Raises
    ------
    UsageError
        If there are no seven, or no point is enclosed by the other six.
    """
    if not points or len(points) % POINTS:
        raise UsageError(
            f"{len(points)} points are not seven for every structure",
            "a structure has one point inside and six just beyond its ends",
            "set the missing points, or take back those that are too many",
        )
    found = []
    for start in range(0, len(points), POINTS):
        seven = tuple(points[start : start + POINTS])
        outside = [at for point in seven for at, side in zip(point.index, shape, strict=True) if not 0 <= at < side]
        if outside:
            raise UsageError("a point lies outside the image", "it was set on another case", "set it again")
        choices = (
            SevenPoints(point, seven[:place] + seven[place + 1 :]) for place, point in enumerate(seven) if point.label
        )
        chosen = next((choice for choice in choices if choice.encloses(shape)), None)
        if chosen is None:
            raise UsageError(
                f"the points {start + 1} to {start + POINTS} enclose no structure",
                "none of them has a structure's label and lies within the box of the other six",
                "set one point inside the structure and one beyond each of its six ends",
            )
        found.append(chosen)
    return tuple(found)


def expand_points(
    image: FloatArray,
    spacing: Spacing,
    points: Sequence[PointPrompt],
    settings: ExpansionSettings = ExpansionSettings(),
) -> Labels3D:
    """Seed labels from seven points a structure.

    Of several parts of one structure every one keeps its seeds. A voxel that two structures claim is nobody's, and one
    is background only where it lies outside the boxes of all.

    Parameters
    ----------
    image
        ``[I, J, K]``, intensities in any unit.
    spacing
        Of the voxels along i, j, k, in millimetres.
    points
        Seven for every structure, see :func:`seven_points`.
    settings
        How far a label reaches.

    Returns
    -------
    Labels3D
        ``[I, J, K]``, uint8: a structure's label where it surely is, 0 where there surely is none,
        :data:`~wardround.client.annotation.prompts.UNLABELLED` between. Each point's voxel holds its label.

    Raises
    ------
    UsageError
        If the points do not enclose structures, or the image is not finite.
    """
    structures = seven_points(points, _shape(image))
    found = np.zeros(image.shape, dtype=np.uint8)
    for seven in structures:
        found[seven.within(_shape(image))] = UNLABELLED
    claims: dict[int, npt.NDArray[np.bool_]] = {}
    for seven in structures:
        reach = reach_of(image, spacing, seven, settings)
        own = claims.setdefault(seven.label, np.zeros(image.shape, dtype=bool))
        own[reach.box] |= reach.seeds(settings)
    claimed = np.sum([own.astype(np.uint8) for own in claims.values()], axis=0)
    for label, own in claims.items():
        found[own & (claimed == 1)] = label
    found[claimed > 1] = UNLABELLED
    for point in points:
        found[point.index] = point.label
    return found


def reach_of(image: FloatArray, spacing: Spacing, seven: SevenPoints, settings: ExpansionSettings) -> Reach:
    """The distances that decide, in the box of seven points.

    Parameters and errors are as of :func:`expand_points`; thresholds play no part.
    """
    box, shape = seven.box, _shape(image)
    finest = min(spacing)
    steps = (spacing[0] / finest, spacing[1] / finest, spacing[2] / finest)
    crop = normalised(np.ascontiguousarray(image[box]), steps, settings.smoothing)
    inner, faces = np.zeros((2, *crop.shape), dtype=bool)
    inner[_local(seven.inner, box)] = True
    for axis, (side, length) in enumerate(zip(box, shape, strict=True)):
        if side.start > 0:
            faces[plane(axis, 0)] = True
        if side.stop < length:
            faces[plane(axis, -1)] = True
    for point in seven.outer:
        faces[_local(point, box)] |= point.label != seven.label
    faces &= ~inner
    near, far = (
        geodesic_distance(
            crop, start, steps, convention=settings.convention, weight=settings.weight, sweeps=settings.sweeps
        )
        for start in (inner, faces)
    )
    return Reach(box, near, far)


def _local(point: PointPrompt, box: Box) -> tuple[int, ...]:
    return tuple(at - side.start for at, side in zip(point.index, box, strict=True))


def _shape(image: FloatArray) -> Shape:
    if image.ndim != 3:
        raise UsageError(f"an image of shape {image.shape}", "points lie in volumes", "pass a volume of one slice")
    i, j, k = image.shape
    return i, j, k
