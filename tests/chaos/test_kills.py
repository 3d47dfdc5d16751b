"""Every process of a federation is killed at every moment of a round, and the run ends as if nobody had been.

A process that comes back takes longer than a round does from its last update to its end: one of these moments is met in
the first round, and the others one after the other in the last, so that there is a round behind it to go on from.
"""

from collections.abc import Iterable

import pytest
from faults import Ground, Missed, Moment, Part

MOMENTS: tuple[Moment, ...] = ("aggregation", "before training", "mid-training", "mid-upload", "journal write")
PARTS: tuple[Part, ...] = ("serverapp", "superlink", "superexec", "supernode", "clientapp", "agent")
TRIES = 5


def kill_at(ground: Ground, blows: Iterable[tuple[Part, Moment]]) -> None:
    """As many runs as it takes to strike at every moment; each must end as the reference did."""
    rounds = ground.federation.reference.plan["rounds"]
    left = list(blows)
    for _ in range(TRIES):
        # Many blows in one round are many attempts at it.
        course = ground.start(f"{left[0][0]}-{len(ground.runs())}", retries=50)
        missed = []
        for part, moment in left:
            try:
                course.kill(1 if moment == "aggregation" else rounds, moment, part)
            except Missed:
                missed.append((part, moment))
        course.finish()
        course.check()
        left = missed
        if not left:
            return
    pytest.fail(f"never in time for {left}")


@pytest.mark.long
@pytest.mark.parametrize("part", PARTS)
def test_killed_at_every_moment(ground: Ground, part: Part) -> None:
    # While weights are combined and written down, no courier is under way.
    kill_at(ground, [(part, moment) for moment in (MOMENTS[1:4] if part == "clientapp" else MOMENTS)])


def test_killed_once_everywhere(ground: Ground) -> None:
    kill_at(ground, [("agent", "mid-training"), ("superlink", "mid-upload"), ("serverapp", "journal write")])
