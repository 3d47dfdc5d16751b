"""What one person drew on one case.

A drawing is everything that is needed to go on with it the next day, to show it to somebody else, or to learn from it
again: the prompts step by step, those that were undone, and what became of it.
:mod:`wardround.client.cases.drawing_file` has its bytes.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from wardround.client.annotation.prompts import (
    UNLABELLED,
    Annotations,
    ErasePrompt,
    ExtentPrompt,
    PointPrompt,
    Prompt,
    ScribblePrompt,
    SlicePrompt,
)
from wardround.errors import UsageError

State = Literal["open", "accepted", "skipped", "approved", "rejected"]
Source = Literal["proxy", "prediction", "whole"]

REASONS = frozenset(
    {
        "", "image-quality", "not-visible", "wrong-region", "wrong-case", "duplicate", "unsure", "later",
        "incomplete", "inaccurate", "wrong-structure", "other",
    }
)  # fmt: skip
"""Why a case was skipped or a label rejected: a closed list, so that no text about a patient is kept."""
_SAFE_MODEL = re.compile(r"[A-Za-z0-9:._-]{0,128}")


@dataclass(frozen=True, eq=False)
class Drawing:
    """What one author drew on one case.

    Parameters
    ----------
    case_id, author
        Not empty.
    steps
        In order; a step is what was drawn between two answers of the model. An empty step says nothing.
    extent
        Where the object lies, if the author gave it.
    undone
        Steps that can be done again, the one that was undone last at the end.
    state
        ``open`` is a draft; ``accepted`` and ``skipped`` are the author's word, ``approved`` and ``rejected`` a
        reviewer's on an accepted one.
    source
        What the accepted label is: the ``proxy`` of these steps, the model's ``prediction``, or a ``whole`` label from
        elsewhere.
    effort_contour, effort_strict
        What it cost, in boundary pixels, see :mod:`wardround.client.annotation.effort`; 0 or above.
    round
        The federation's round in which it was drawn, 0 or above.
    model
        Digest of the weights that were in front of the author; empty if not known.
    seconds
        How long the case was open, 0 or above.
    reason
        One of :data:`REASONS`, for a skipped or rejected case.

    Raises
    ------
    UsageError
        If a value is out of its range.
    """

    case_id: str
    author: str
    steps: tuple[tuple[Prompt, ...], ...] = ()
    extent: ExtentPrompt | None = None
    undone: tuple[tuple[Prompt, ...], ...] = ()
    state: State = "open"
    source: Source = "proxy"
    effort_contour: float = 0.0
    effort_strict: float = 0.0
    round: int = 0
    model: str = ""
    seconds: float = 0.0
    reason: str = ""

    def __post_init__(self) -> None:
        wrong = [
            name
            for name, right in (
                ("case_id", bool(self.case_id)),
                ("author", bool(self.author)),
                ("state", self.state in get_args(State)),
                ("source", self.source in get_args(Source)),
                ("effort_contour", _is_amount(self.effort_contour)),
                ("effort_strict", _is_amount(self.effort_strict)),
                ("round", self.round >= 0),
                ("model", _SAFE_MODEL.fullmatch(self.model) is not None),
                ("seconds", _is_amount(self.seconds)),
                ("reason", self.reason in REASONS),
            )
            if not right
        ]
        if wrong:
            raise UsageError(
                f"a drawing cannot have such a value of {wrong[0]}",
                "it is empty, unknown, negative or not finite",
                "correct the call",
            )

    @property
    def drawn(self) -> tuple[tuple[Prompt, ...], ...]:
        """The steps that say something."""
        return tuple(step for step in self.steps if step)

    @property
    def annotations(self) -> Annotations:
        """All that is drawn, as it stands."""
        known = Annotations(extent=self.extent)
        for step in self.steps:
            known = known.adding(*step)
        return known

    def in_groups(self, most: int) -> tuple[tuple[Prompt, ...], ...]:
        """The same prompts in the same order, in at most `most` steps, for a round that answers so often.

        Steps that are too many are put together, as evenly as they go; where they are too few, the prompts are dealt
        out evenly. A step after which nothing is left of what was drawn joins the next one, and is left out at the end.
        """
        parts: Sequence[tuple[Prompt, ...]] = self.drawn
        if len(parts) < most:
            parts = [(prompt,) for step in parts for prompt in step]
        groups: list[tuple[Prompt, ...]] = []
        waiting: tuple[Prompt, ...] = ()
        so_far = Annotations()
        for start, end in _evenly(len(parts), most):
            waiting += tuple(prompt for part in parts[start:end] for prompt in part)
            if _leaves_something(so_far.adding(*waiting)):
                so_far = so_far.adding(*waiting)
                groups.append(waiting)
                waiting = ()
        return tuple(groups)

    @property
    def classes(self) -> int:
        """How many classes, background included, a plan must have to learn from these steps."""
        highest = 0
        for prompt in (prompt for step in self.steps for prompt in step):
            if isinstance(prompt, PointPrompt):
                highest = max(highest, prompt.label)
            elif isinstance(prompt, SlicePrompt | ScribblePrompt):
                touched = prompt.labels[prompt.labels != UNLABELLED]
                highest = max(highest, int(touched.max(initial=0)))
        return highest + 1

    def fits(self, shape: tuple[int, int, int]) -> bool:
        """Whether all of it, what was undone too, can have been drawn on an image of `shape`."""
        steps = (*self.steps, *self.undone)
        inside = all(_fits(prompt, shape) for step in steps for prompt in step)
        extent = self.extent
        return inside and (
            extent is None
            or all(0 <= low <= high < side for low, high, side in zip(extent.lower, extent.upper, shape, strict=True))
        )


def _evenly(count: int, most: int) -> Iterator[tuple[int, int]]:
    """First and one past the last of `count` things, for each of at most `most` groups; the earlier are the larger."""
    groups = min(most, count)
    end = 0
    for number in range(groups):
        start, end = end, end + count // groups + (number < count % groups)
        yield start, end


def _leaves_something(drawn: Annotations) -> bool:
    strokes = (stroke.labels for stroke in drawn.scribbles)
    return bool(drawn.slices or drawn.points) or any((labels != UNLABELLED).any() for labels in strokes)


def _is_amount(value: float) -> bool:
    return value >= 0 and math.isfinite(value)


def _fits(prompt: Prompt, shape: tuple[int, int, int]) -> bool:
    if isinstance(prompt, PointPrompt):
        return all(0 <= at < side for at, side in zip(prompt.index, shape, strict=True))
    values = prompt.mask if isinstance(prompt, ErasePrompt) else prompt.labels
    expected = tuple(side for axis, side in enumerate(shape) if axis != prompt.axis)
    return 0 <= prompt.axis < 3 and values.shape == expected and 0 <= prompt.index < shape[prompt.axis]
