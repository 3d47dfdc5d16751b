"""Drawings that are the same, for tests."""

import numpy as np

from wardround.client.annotation.prompts import ErasePrompt, PointPrompt, Prompt
from wardround.client.cases.drawings import Drawing


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
