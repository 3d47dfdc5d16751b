"""The pyramid: coarse levels only where there is something left to align."""

from wardround.client.annotation.sampling import SMALLEST_LEVEL, pyramid


def test_sides_double_from_level_to_level() -> None:
    assert list(pyramid((48, 50), (5, 4, 3))) == [((12, 13), 5), ((24, 25), 4), ((48, 50), 3)]


def test_levels_that_would_be_too_small_are_left_out_but_never_the_last() -> None:
    side = 2 * SMALLEST_LEVEL
    assert [steps for _, steps in pyramid((side, 100), (5, 4, 3))] == [4, 3]
    assert [steps for _, steps in pyramid((side - 1, 100), (5, 4, 3))] == [3]
    assert list(pyramid((1, 1), (5, 4, 3))) == [((1, 1), 3)]
