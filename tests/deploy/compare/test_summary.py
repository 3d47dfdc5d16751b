"""The numbers of a comparison, worked by hand."""

import math

import pytest

from wardround.deploy.compare.summary import BEST_SINGLE, LOCAL_ONLY, OverSeeds, Row, rows
from wardround.deploy.compare.tables import compare_table, open_runs
from wardround.deploy.report.results import Results


@pytest.fixture
def table(comparison: Results) -> dict[str, Row]:
    return {row.name: row for row in rows(comparison)}


def test_rows_come_in_the_order_of_the_command_and_what_is_beside_them_last(table: dict[str, Row]) -> None:
    assert list(table) == ["plain", "fair", LOCAL_ONLY, BEST_SINGLE]
    assert [row.combines for row in table.values()] == [True, True, False, False]


def test_intervals_are_students_over_seeds(table: dict[str, Row]) -> None:
    # Means 0.69, 0.70, 0.71: s = 0.01, t(0.975, 2) = 4.3027, so ± 4.3027 · 0.01 / √3 = 0.02484.
    found = table["plain"].dice
    assert (found.mean, found.count) == (pytest.approx(0.70), 3)
    assert (found.low, found.high) == (pytest.approx(0.67516, abs=1e-5), pytest.approx(0.72484, abs=1e-5))
    assert OverSeeds.of([0.5]).text() == "0.500"
    assert not OverSeeds.of([math.nan]).known


def test_the_worst_site_is_found_for_each_seed(table: dict[str, Row]) -> None:
    # 0.70, 0.70 at south, then 0.65 at north.
    assert table["fair"].worst.mean == pytest.approx((0.7 + 0.7 + 0.65) / 3)
    assert table["fair"].sites["north"].mean == pytest.approx(2.15 / 3)
    assert table["fair"].worst_site == "south"
    assert table["plain"].worst_site == "south"


def test_the_first_strategy_is_what_the_others_are_compared_with(table: dict[str, Row]) -> None:
    assert table["plain"].against is None
    # North: −3, −5, −17 points; south: +10.
    found = table["fair"].against
    assert found is not None
    assert (found.reference, found.cases) == ("plain", 2)
    assert found.mean == pytest.approx((-25 / 3 + 10) / 2)


def test_hospitals_that_learn_alone_use_their_own_model_and_the_best_one_anybodys(table: dict[str, Row]) -> None:
    assert {site: score.mean for site, score in table[LOCAL_ONLY].sites.items()} == pytest.approx(
        {"north": 0.7, "south": 0.5}
    )
    # South's model is the best at north as well.
    assert {site: score.mean for site, score in table[BEST_SINGLE].sites.items()} == pytest.approx(
        {"north": 0.74, "south": 0.5}
    )
    assert table[BEST_SINGLE].dice.mean == pytest.approx(0.62)


def test_the_table_has_a_column_a_site_and_what_was_sent(comparison: Results) -> None:
    table = compare_table(comparison)
    assert table.headers == (
        *("strategy", "Dice [95 %]", "worst site [95 %]", "north", "south", "− plain, points"),
        *("from the sites, MB", "seconds"),
    )
    plain, fair, alone, best = table.rows
    assert plain[1:5] == ("0.700 [0.675, 0.725]", "0.600 [0.600, 0.600] (south)", "0.800", "0.600")
    assert (plain[-2:], fair[-2], alone[-2]) == (("2.0", "61"), "1.0", "–")
    assert best[-1] == "–"


def test_what_is_missing_is_named(comparison: Results) -> None:
    assert open_runs(comparison) == []
    part = comparison.model_copy(update={"arms": comparison.arms[:4]})
    assert set(open_runs(part)) == {"fair: seed 1, 2 not run", "plain: seed 2 not run", "local: seed 1, 2 not run"}
