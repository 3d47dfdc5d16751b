"""Who sits out, and how one comes back."""

import pytest

from wardround.server.records import Standing
from wardround.server.settings import LoopSettings
from wardround.server.standing import judge, quarantined

RULE = LoopSettings(rounds=20, quarantine_after=3, quarantine_rounds=2)


def history(outcomes: str, settings: LoopSettings = RULE) -> str:
    """What becomes of one site, round by round: good, refused or missing; Q where it is not asked, whatever it did."""
    standing: dict[str, Standing] = {}
    told = ""
    for number, would in enumerate(outcomes, 1):
        outcome = "Q" if quarantined(standing, number, settings) else would
        told += outcome
        standing = judge(
            standing, number, {"a"} if outcome == "g" else set(), {"a"} if outcome == "r" else set(), settings
        )
    return told


@pytest.mark.parametrize(
    ("outcomes", "told"),
    [
        ("gggg", "gggg"),
        ("rrg", "rrg"),
        ("rrgrrg", "rrgrrg"),
        ("rrrgggg", "rrrQQgg"),
        # On probation one refused reply is enough, a good one ends it.
        ("rrrggrggg", "rrrQQrQQg"),
        ("rrrgggrrg", "rrrQQgrrg"),
        # Who does not reply keeps the standing.
        ("rmrmrg", "rmrmrQ"),
        ("rrrggmrg", "rrrQQmrQ"),
    ],
)
def test_histories(outcomes: str, told: str) -> None:
    assert history(outcomes) == told


def test_switched_off() -> None:
    assert history("rrrrrr", LoopSettings(rounds=20)) == "rrrrrr"
    assert quarantined({"a": Standing(0, 9)}, 5, LoopSettings(rounds=20)) == frozenset()


def test_sites_are_judged_one_by_one() -> None:
    before = {"a": Standing(2), "b": Standing(2), "c": Standing(1)}
    after = judge(before, 4, {"b"}, {"a", "d"}, RULE)
    assert after == {"a": Standing(0, 6), "c": Standing(1), "d": Standing(1)}
    assert quarantined(after, 6, RULE) == {"a"}
    assert quarantined(after, 7, RULE) == frozenset()
