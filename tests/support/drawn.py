"""Drawings that are the same, and a person who draws on the phantoms of a live site, for tests."""

from typing import Any

import numpy as np
from living import SHAPE

from wardround.client.annotation.annotator import Truth
from wardround.client.annotation.prompts import ErasePrompt, PointPrompt, Prompt, SliceRequest
from wardround.client.cases.drawings import Drawing
from wardround.client.cases.phantoms import draw_phantom
from wardround.client.cases.store import CaseStore
from wardround.client.cases.volume import Volume
from wardround.client.home import SiteHome
from wardround.client.intake import STORE


def same_prompt(one: Prompt, other: Prompt) -> bool:
    """Of one kind, in one place, with the same pixels."""
    if type(one) is not type(other):
        return False
    if isinstance(one, PointPrompt):
        return one == other
    assert not isinstance(other, PointPrompt)
    mine, yours = (p.mask if isinstance(p, ErasePrompt) else p.labels for p in (one, other))
    place = (one.axis, one.index) == (other.axis, other.index)
    return place and mine.dtype == yours.dtype and np.array_equal(mine, yours)


def same_drawing(one: Drawing, other: Drawing) -> bool:
    """Equal in all that they hold."""
    for steps, others in ((one.steps, other.steps), (one.undone, other.undone)):
        if [len(step) for step in steps] != [len(step) for step in others]:
            return False
        pairs = (pair for mine, yours in zip(steps, others, strict=True) for pair in zip(mine, yours, strict=True))
        if not all(same_prompt(*pair) for pair in pairs):
            return False
    names = set(Drawing.__dataclass_fields__) - {"steps", "undone"}
    return all(getattr(one, name) == getattr(other, name) for name in names)


def person(number: int, author: str = "ann", **fields: Any) -> tuple[Drawing, Volume]:
    """What a person draws on a phantom: three slices in three steps, an extent; and the label that they accept."""
    labels = draw_phantom(np.random.default_rng(number), shape=SHAPE)[1]
    truth = Truth(labels)
    steps = tuple((truth.slice(SliceRequest(axis, SHAPE[axis] // 2)),) for axis in (2, 1, 0))
    given = {"steps": steps, "extent": truth.extent(), "state": "accepted", "effort_contour": 100.0}
    return Drawing(f"case-{number}", author, **(given | fields)), labels


def draw(home: SiteHome, *numbers: int, author: str = "ann", **fields: Any) -> None:
    """Phantoms without an imported label, drawn on and accepted by a person."""
    with CaseStore(home.site / STORE) as store:
        for number in numbers:
            store.add_case(f"case-{number}", draw_phantom(np.random.default_rng(number), shape=SHAPE)[0])
            drawing, labels = person(number, author, **fields)
            store.save_drawing(drawing, labels if drawing.state == "accepted" else None)
