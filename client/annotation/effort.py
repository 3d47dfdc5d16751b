"""What drawing costs: annotation effort, exactly as the literature counts it, and a stricter count.

The unit is the boundary pixel, what a hand has to trace. Effort is a fraction: pixels paid for what was drawn on all
planes over pixels that a full manual segmentation would need (every slice of array axis 2). A slice costs its contours,
as the literature counts it; a scribble costs its stroke's pixels, which the hand traces as well. Looking and clicking
cost something in the strict count alone.

What is charged are the drawings as they stand: a slice that was drawn again counts once, as it was drawn last, and a
step that was undone counts nothing, though both took a hand's time. What was erased stays charged as it was drawn.
Adding a drawing therefore never lowers effort, unless it is a slice drawn again with fewer boundary pixels.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wardround.client.annotation.prompts import UNLABELLED, Annotations, Drawn, PointPrompt, ScribblePrompt, SlicePrompt

# What else a person does, in units of one traced boundary pixel.
VIEWED_SLICE_COST = 10.0
CLICK_COST = 2.0
EXTENT_CLICKS = 6
AXIAL = 2


@dataclass(frozen=True)
class Effort:
    """Annotation effort as fractions of a full manual segmentation.

    Parameters
    ----------
    contour
        Boundary pixels of slices and pixels of strokes. May exceed 1, because up to three planes are drawn and one
        plane is full.
    strict
        The same, and a constant for every slice that is looked at, and the clicks of points and of the extent.
    """

    contour: float
    strict: float


def boundary_pixels(labels: npt.NDArray[np.generic]) -> int:
    """Count the foreground pixels that touch another label.

    The thick inner boundary of Tian et al. 2023 (arXiv 2312.06072): a pixel counts if it holds a structure and one of
    its four neighbours holds another label. The edge of the image is no boundary.

    Parameters
    ----------
    labels
        Shape ``(H, W)``, integers, 0 is background.
    """
    boundary = np.zeros(labels.shape, dtype=bool)
    down = labels[1:] != labels[:-1]
    right = labels[:, 1:] != labels[:, :-1]
    boundary[1:] |= down
    boundary[:-1] |= down
    boundary[:, 1:] |= right
    boundary[:, :-1] |= right
    return int(np.count_nonzero(boundary & (labels != 0)))


def contour_effort(annotations: Annotations) -> int:
    """Boundary pixels of every drawn slice on every plane, and pixels of every stroke: what was paid."""
    return sum(_traced(prompt) for prompt in (*annotations.slices, *annotations.scribbles, *annotations.erased))


def _traced(prompt: Drawn) -> int:
    """Pixels that a hand traced."""
    match prompt:
        case SlicePrompt():
            return boundary_pixels(prompt.labels)
        case ScribblePrompt():
            return 0 if prompt.remains else int(np.count_nonzero(prompt.labels != UNLABELLED))
        case PointPrompt():
            return 0


def full_effort(labels: npt.NDArray[np.generic]) -> int:
    """Boundary pixels of all slices on array axis 2: what a full manual segmentation of ``[I, J, K]`` costs."""
    return sum(boundary_pixels(labels[:, :, k]) for k in range(labels.shape[AXIAL]))


def strict_effort(
    annotations: Annotations, viewed_slice_cost: float = VIEWED_SLICE_COST, click_cost: float = CLICK_COST
) -> float:
    """What was paid, with every viewed slice (also an empty one), every point and the extent's six clicks charged.

    A slice that is scribbled on is looked at, once however many strokes it gets, and not again if it is drawn as well.
    """
    points = [prompt for prompt in (*annotations.points, *annotations.erased) if isinstance(prompt, PointPrompt)]
    clicks = len(points) + (EXTENT_CLICKS if annotations.extent is not None else 0)
    drawings = (*annotations.slices, *annotations.scribbles, *annotations.erased)
    viewed = len({(drawn.axis, drawn.index) for drawn in drawings if not isinstance(drawn, PointPrompt)})
    return contour_effort(annotations) + viewed_slice_cost * viewed + click_cost * clicks


def strict_full_effort(labels: npt.NDArray[np.generic], viewed_slice_cost: float = VIEWED_SLICE_COST) -> float:
    """A full manual segmentation in the strict count: contours and a constant for every axial slice with an object."""
    viewed = int(np.count_nonzero((labels != 0).any(axis=(0, 1))))
    return full_effort(labels) + viewed_slice_cost * viewed


def effort_of(annotations: Annotations, full_contour: float, full_strict: float) -> Effort:
    """Both counts as fractions of the full ones.

    A case without any structure costs nothing in full. Its fraction is 0 where nothing was paid and 1 otherwise, so
    that a mean over cases stays finite.
    """
    return Effort(
        _fraction(contour_effort(annotations), full_contour), _fraction(strict_effort(annotations), full_strict)
    )


def _fraction(paid: float, full: float) -> float:
    if full <= 0:
        return 1.0 if paid > 0 else 0.0
    return paid / full
