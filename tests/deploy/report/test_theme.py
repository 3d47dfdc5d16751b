import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardround.deploy.report.theme import DARK, LIGHT, Theme, counted, dice_limits, short, spread_out


def _luminance(colour: str) -> float:
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
def test_text_and_arms_stand_out_from_the_paper(theme: Theme) -> None:
    paper = _luminance(theme.paper)

    def contrast(colour: str) -> float:
        high, low = max(paper, _luminance(colour)), min(paper, _luminance(colour))
        return (high + 0.05) / (low + 0.05)

    assert contrast(theme.ink) >= 7
    assert contrast(theme.muted) >= 4.5
    assert all(contrast(colour) >= 3 for colour in theme.hues.values())


@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.01, 0.3))
def test_labels_keep_order_bounds_and_distance(positions: list[float], gap: float) -> None:
    moved = spread_out(positions, gap, 0.0, 1.0)
    assert all(-1e-9 <= value <= 1 + 1e-9 for value in moved)
    fitting = min(gap, 1.0 / max(len(positions) - 1, 1))
    ordered = sorted(moved)
    assert all(b - a >= fitting - 1e-9 for a, b in pairwise(ordered))
    for one in range(len(positions)):
        for two in range(len(positions)):
            if positions[one] < positions[two]:
                assert moved[one] < moved[two]


@given(st.lists(st.floats(0, 1) | st.just(float("nan")), max_size=6))
def test_dice_limits_hold_the_values_and_stay_in_range(values: list[float]) -> None:
    low, high = dice_limits(values)
    assert 0 <= low < high <= 1
    assert all(low <= value <= high for value in values if math.isfinite(value))


def test_names_are_cut_to_one_printable_line() -> None:
    assert short("a\nb\x00c") == "a·b·c"
    assert len(short("x" * 500, 20)) == 20
    assert short("Universitätsklinikum Musterstadt Nord", 16).endswith("Nord")


def test_counts_are_words_up_to_twelve() -> None:
    assert [counted(number) for number in (3, 12, 13)] == ["Three", "Twelve", "13"]
