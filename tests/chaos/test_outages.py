"""What a federation needs is away for a while: its SuperLink, the database, the line, a site that takes too long."""

import time

import pytest
from deployment import eventually
from faults import Course, Ground, Moment
from federation import PATIENCE_S

from wardround.server.journal import read_open

pytestmark = pytest.mark.long


def last(seconds: float) -> None:
    """Let a fault last. This is what it is, and no waiting for something."""
    time.sleep(seconds)


def begin(ground: Ground, name: str, moment: Moment, **settings: float) -> Course:
    """A run that has come to a moment of its last round."""
    course = ground.start(f"{name}-{len(ground.runs())}", **settings)
    course.reach(ground.federation.reference.plan["rounds"], moment, "superlink")
    return course


def end(course: Course) -> None:
    course.back = time.monotonic()
    course.finish()
    course.check()


# Flower gives an app up that was not heard of for a minute, and asks a site that counts as offline nothing.
@pytest.mark.parametrize("seconds", [10, 120])
def test_the_superlink_is_down(ground: Ground, seconds: int) -> None:
    course = begin(ground, f"down-{seconds}", "mid-training")
    with ground.without_superlink():
        last(seconds)
    end(course)


def test_the_database_is_locked(ground: Ground) -> None:
    course = begin(ground, "locked", "mid-upload")
    with ground.locked_database():
        last(25)
    end(course)


def test_the_line_is_cut(ground: Ground) -> None:
    course = begin(ground, "cut", "mid-upload")
    with ground.line.cut():
        last(40)
    end(course)


def test_answers_are_lost_on_their_way(ground: Ground) -> None:
    """Whoever gets no answer asks again: what arrived twice counts once."""
    lost = ground.line.lost
    course = ground.start(f"lost-{len(ground.runs())}")
    for round_ in (1, 2):
        course.reach(round_, "mid-upload", "clientapp")
        ground.line.to_lose = 3
        course.reach(round_, "closed")
    end(course)
    assert ground.line.lost > lost


def test_a_slow_line(ground: Ground) -> None:
    ground.line.delay = 0.2
    try:
        course = ground.start(f"slow-{len(ground.runs())}")
        end(course)
    finally:
        ground.line.delay = 0.0


def test_a_late_answer_counts_once(ground: Ground) -> None:
    """A site is halted over the deadline; its answer comes when the round is tried again."""
    course = begin(ground, "late", "mid-training", deadline=60.0, retries=50)

    def is_late() -> bool:
        course.look()
        view = read_open(course.folder)
        return view is not None and view.attempts > 0

    with ground.halted(ground.pid("agent")):
        eventually(is_late, "an attempt that is given up", PATIENCE_S)
    end(course)
