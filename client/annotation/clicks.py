"""Seven clicks a structure, as a person would set them: one inside and six just beyond its ends. Made from true labels.

Zhai et al. 2023 (PA-Seg, arXiv 2208.05669), section III-A: the box of the six outer points encloses the structure. Only
:mod:`wardround.client.annotation.annotator` may call this: it is the one that sees the truth.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from wardround.client.annotation.prompts import Labels3D, PointPrompt, plane

Mask = npt.NDArray[np.bool_]
Index = tuple[int, int, int]

# How far beyond a structure's end somebody clicks, in voxels of the finest axis, and at least one voxel.
BEYOND = 2


def seven_clicks(labels: Labels3D, spacing: tuple[float, float, float], components: int = 1) -> tuple[PointPrompt, ...]:
    """Seven points for every structure, in ascending order of label.

    Parameters
    ----------
    labels
        True labels ``[I, J, K]``, uint8, 0 is background.
    spacing
        Of the voxels along i, j, k, in millimetres.
    components
        How many connected parts of a structure get seven points of their own, the largest ones; smaller parts are
        enclosed together with the nearest of these. With 1, one box encloses all of a structure.

    Returns
    -------
    tuple of PointPrompt
        For each part first the deepest voxel, by distance in millimetres, then the ends: low and high along i, j, k.
        Each point holds the true label of its voxel, so that an outer one may name another structure. Where a
        structure touches the face of the image, its outer point lies on that face, beside the structure if it can.
    """
    points = []
    for label in (int(value) for value in np.unique(labels) if value):
        for part in _parts(labels == label, components):
            places = (_deepest(part, spacing), *_ends(part, labels == label, spacing))
            points += [PointPrompt(place, int(labels[place])) for place in places]
    return tuple(points)


def _parts(structure: Mask, count: int) -> Iterator[Mask]:
    """The largest connected parts, largest first, each with the smaller parts that are nearest to it."""
    if count == 1:
        yield structure
        return
    numbers, found = ndimage.label(structure, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(numbers.ravel())[1:]
    largest = 1 + np.argsort(-sizes, kind="stable")[:count]
    if len(largest) < found:
        apart = ~np.isin(numbers, largest)
        nearest = ndimage.distance_transform_edt(apart, return_distances=False, return_indices=True)
        home = numbers[tuple(nearest)]
        for small in (n for n in range(1, found + 1) if n not in largest):
            inside = numbers == small
            numbers[inside] = np.bincount(home[inside]).argmax()
    for number in largest:
        yield numbers == number


def _deepest(part: Mask, spacing: tuple[float, float, float]) -> Index:
    # Beyond the image there is nothing to be near to: a structure that is cut off may be deepest at the cut.
    depth = ndimage.distance_transform_edt(part, sampling=spacing) if not part.all() else np.ones(part.shape)
    i, j, k = np.unravel_index(int(np.argmax(depth)), part.shape)
    return int(i), int(j), int(k)


def _ends(part: Mask, structure: Mask, spacing: tuple[float, float, float]) -> Iterator[Index]:
    finest = min(spacing)
    for axis, step in enumerate(spacing):
        away = max(1, round(BEYOND * finest / step))
        along = np.flatnonzero(part.any(axis=tuple(other for other in range(3) if other != axis)))
        for end, beyond in ((int(along[0]), int(along[0]) - away), (int(along[-1]), int(along[-1]) + away)):
            index = min(max(beyond, 0), part.shape[axis] - 1)
            pixels = np.argwhere(part[plane(axis, end)])
            middle = pixels[np.square(pixels - pixels.mean(axis=0)).sum(axis=1).argmin()]
            first, second = _beside(structure[plane(axis, index)], middle)
            place = [first, second]
            place.insert(axis, index)
            yield place[0], place[1], place[2]


def _beside(structure: npt.NDArray[np.bool_], pixel: npt.NDArray[np.intp]) -> tuple[int, int]:
    """`pixel`, or the one nearest to it that is not in the structure, if there is any."""
    free = np.argwhere(~structure)
    if len(free):
        pixel = free[np.square(free - pixel).sum(axis=1).argmin()]
    return int(pixel[0]), int(pixel[1])
