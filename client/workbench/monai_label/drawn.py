"""What the parameters of an inference request draw: clicks, scribbles and a region, as prompts of ours.

Every viewer sends all clicks of the case with every request. Points and regions are voxel indices ``(i, j, k)`` of the
image as it was loaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wardround.client.annotation.prompts import (
    UNLABELLED,
    ExtentPrompt,
    Labels3D,
    PointPrompt,
    Prompt,
    scribbles_of,
)
from wardround.client.cases.nifti import MAX_LABEL
from wardround.client.workbench.monai_label.replies import Refused
from wardround.client.workbench.monai_label.uploads import SentLabels

BACKGROUND = "background"
FOREGROUND = "foreground"
SCRIBBLES = "_scribbles"
MOST_POINTS = 10_000


@dataclass(frozen=True, eq=False)
class Drawn:
    """What a request draws.

    Parameters
    ----------
    prompts
        Clicks, in the order of labels and then of the request, or scribbles.
    extent
        The region that holds the object, if the request has one.
    """

    prompts: tuple[Prompt, ...]
    extent: ExtentPrompt | None = None

    @property
    def any(self) -> bool:
        """Whether a person has drawn anything."""
        return bool(self.prompts) or self.extent is not None


def clicks(params: Mapping[str, Any], labels: Sequence[str]) -> tuple[PointPrompt, ...]:
    """The clicks of a request.

    A DeepEdit client has a list for every label's name, and one for ``background``; a DeepGrow client has
    ``foreground`` and ``background``, and may name the label that it means as ``label``.

    Parameters
    ----------
    params
        Of the request; lists of ``[i, j, k]``.
    labels
        Names of labels 1, 2, …

    Raises
    ------
    Refused
        With 400, if a click is no three whole numbers.
    """
    values = {BACKGROUND: 0, FOREGROUND: value_of(params.get("label"), labels)}
    values |= {name: value for value, name in enumerate(labels, 1)}
    points = [
        PointPrompt(_index(point), value)
        for name, value in values.items()
        for point in _listed(params.get(name), f"the clicks of {'the background' if not value else f'label {value}'}")
    ]
    if len(points) > MOST_POINTS:
        raise Refused(400, "too many clicks", f"a request may hold {MOST_POINTS}", "draw a scribble or a slice instead")
    return tuple(points)


def scribbles(params: Mapping[str, Any], sent: SentLabels, labels: Sequence[str]) -> tuple[Prompt, ...]:
    """The strokes in a label map of scribbles.

    Parameters
    ----------
    params
        ``label_info`` numbers the segments of the map by name (``id``, or ``idx``), ``selected_label_name`` says what
        the strokes of ``foreground_scribbles`` draw; ``<label>_scribbles`` draw that label. Other segments are what
        was segmented before, and draw nothing.
    sent
        The map.
    labels
        Names of labels 1, 2, …

    Raises
    ------
    Refused
        With 400, if no segment holds scribbles.
    """
    selected = value_of(params.get("selected_label_name", params.get("label")), labels)
    meant = {BACKGROUND: 0, FOREGROUND: selected} | {name: value for value, name in enumerate(labels, 1)}
    strokes: Labels3D = np.full(sent.values.shape, UNLABELLED, dtype=np.uint8)
    known = False
    for name, number in numbered(params, sent).items():
        if name.endswith(SCRIBBLES) and (value := meant.get(name.removesuffix(SCRIBBLES))) is not None:
            strokes[sent.values == number] = value
            known = True
    if not known:
        raise Refused(
            400,
            "no segment of the label map holds scribbles",
            "`label_info` names none that ends in `_scribbles`",
            "draw foreground_scribbles and background_scribbles",
        )
    return scribbles_of(strokes)


def region(params: Mapping[str, Any], shape: tuple[int, int, int]) -> ExtentPrompt | None:
    """The region ``roi`` = ``[i0, i1, j0, j1, k0, k1]`` of a request, cut to the image; None if it has none.

    Either of the two bounds of an axis may come first. 3D Slicer sends the voxels of its box's corners in RAS, and on a
    usual image i falls where x grows.
    """
    found = params.get("roi")
    if not found:
        return None
    if not isinstance(found, Sequence) or isinstance(found, str) or len(found) != 6:
        raise Refused(400, "`roi` must be six whole numbers", "first and last voxel along i, j, k", "")
    bounds = [_whole(number, "`roi`") for number in found]
    lower, upper = (
        tuple(min(max(bound, 0), side - 1) for bound, side in zip(ends, shape, strict=True))
        for ends in zip(*(sorted(pair) for pair in zip(bounds[0::2], bounds[1::2], strict=True)), strict=True)
    )
    return ExtentPrompt((lower[0], lower[1], lower[2]), (upper[0], upper[1], upper[2]))


def numbered(params: Mapping[str, Any], sent: SentLabels) -> dict[str, int]:
    """Which number in a sent label map is which segment, by name: the request says so, else the file."""
    info = params.get("label_info")
    if not info:
        return dict(sent.segments)
    found: dict[str, int] = {}
    for one in _listed(info, "`label_info`"):
        number = one.get("id", one.get("idx")) if isinstance(one, Mapping) else None
        if number is None or not isinstance(one.get("name"), str):
            raise Refused(400, "an entry of `label_info` has no name or no number", "", "give `name` and `idx`")
        found[one["name"]] = value = _whole(number, "`label_info`")
        if not 0 <= value <= MAX_LABEL:
            raise Refused(400, f"`label_info` must hold numbers of 0 … {MAX_LABEL}", "a voxel has one byte", "")
    return found


def renumbered(params: Mapping[str, Any], sent: SentLabels, labels: Sequence[str]) -> Labels3D:
    """A finished label map with our numbers.

    The names in the file itself count first, then those of ``label_info``. 3D Slicer's plug-in counts there over all of
    its segments, while its file has consecutive numbers for those that it saves: where it left one out in between, its
    ``idx`` are not what is in the file. A map that can be read both ways is refused; a structure under another's name
    is the worst that a label can be.

    Raises
    ------
    Refused
        With 400, if it holds a segment whose name is none of `labels`, or, where segments have no names, a number
        above theirs; with 409, if it can be read in two ways.
    """
    present = {int(number) for number in np.unique(sent.values)} - {0}
    readings = [
        {number: found.get(number, "") for number in present}
        for found in _readings(params, sent, labels)
        if present <= found.keys()
    ]
    if not readings:
        raise Refused(
            400,
            "the label map holds numbers that the plan does not know",
            f"it holds {', '.join(str(number) for number in sorted(present))}; the plan knows 1 to {len(labels)}",
            "remove these segments, or say which they are in `label_info`",
        )
    if any(other != readings[0] for other in readings[1:]):
        raise Refused(
            409,
            "the label map can be read in two ways",
            "`label_info` leaves out numbers, and the map may count without the gaps",
            "remove segments that are no structures before you save, or save as .seg.nrrd",
        )
    table = np.zeros(256, dtype=np.uint8)
    for number, name in readings[0].items():
        if name == BACKGROUND or name.endswith(SCRIBBLES):
            continue
        if name not in labels:
            raise Refused(
                400,
                "the label map holds a segment that the plan does not know",
                f"segment number {number} has another name than {', '.join(labels)}",
                "rename or remove the segment",
            )
        table[number] = list(labels).index(name) + 1
    found: Labels3D = table[sent.values]
    return found


def _readings(params: Mapping[str, Any], sent: SentLabels, labels: Sequence[str]) -> list[dict[int, str]]:
    """What the numbers of a finished map may mean: names by number."""
    if sent.segments:
        return [{number: name for name, number in sent.segments.items()}]
    said = {number: name for name, number in numbered(params, sent).items()}
    if not any(name in labels for name in said.values()):
        return [dict(enumerate(labels, 1)) | said]
    if said.keys() == set(range(1, len(said) + 1)):
        return [said]
    return [said, dict(enumerate(said.values(), 1))]


def value_of(name: object, labels: Sequence[str]) -> int:
    """The number of the label called `name`; 1 where a request names none."""
    if not name:
        return 1
    if name == BACKGROUND:
        return 0
    if not isinstance(name, str) or name not in labels:
        raise Refused(400, "the request means a label that the plan does not know", "", f"use {', '.join(labels)}")
    return list(labels).index(name) + 1


def _index(point: object) -> tuple[int, int, int]:
    if not isinstance(point, Sequence) or isinstance(point, str) or len(point) != 3:
        raise Refused(400, "a click must be three whole numbers", "voxel indices i, j, k of the image", "")
    i, j, k = (_whole(number, "a click") for number in point)
    return i, j, k


def _whole(number: object, what: str) -> int:
    if isinstance(number, bool) or not isinstance(number, int | float) or number % 1 != 0:
        raise Refused(400, f"{what} must hold whole numbers", "voxel indices are counted from 0", "")
    return int(number)


def _listed(value: object, what: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise Refused(400, f"{what} must be a list", "", "")
    return value
