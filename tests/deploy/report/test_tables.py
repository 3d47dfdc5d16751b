from collections.abc import Callable
from typing import Any

from wardround.deploy.report.results import parse_results
from wardround.deploy.report.tables import Table, arm_table, drawing_table, open_ends, site_table


def test_tables_are_rectangular_and_name_every_arm_and_site(record: Callable[..., Any]) -> None:
    results = parse_results(record(rounds=1))
    for table in (arm_table(results), site_table(results)):
        assert {len(row) for row in table.rows} == {len(table.headers)}
    assert [row[0] for row in arm_table(results).rows] == ["federated", "dense", "pooled", "local", "proxy"]
    assert [row[0] for row in site_table(results).rows] == ["Nordstadt", "Südufer", "Westend"]
    assert "Dice anterior" in arm_table(results).headers


def test_without_local_models_there_is_no_column_for_them(record: Callable[..., Any]) -> None:
    assert site_table(parse_results(record(arms=("federated",), rounds=1))).headers == ("site", "federated")


def test_markdown_keeps_its_columns_whatever_a_site_is_called() -> None:
    lines = Table(("site", "Dice"), (("a|b", "0.9"),)).markdown().splitlines()
    assert lines == ["| site | Dice |", "| --- | ---: |", "| a\\|b | 0.9 |"]


def test_an_interrupted_run_says_where_it_stopped(record: Callable[..., Any]) -> None:
    raw = record(arms=("federated", "dense"), seeds=(0, 1), rounds=2)
    assert open_ends(parse_results(raw)) == []
    raw["settings"]["rounds"] = 5
    del raw["arms"][-1]
    raw["arms"][1]["rounds"] = raw["arms"][1]["rounds"] + [{"round": 5}]
    raw["arms"][1]["models"] = {}
    assert open_ends(parse_results(raw)) == [
        "federated, seed 0: 2 of 5 rounds",
        "federated, seed 1: 2 of 5 rounds",
        "dense, seed 0: not evaluated on test cases",
        "dense: seed 1 not run",
    ]


def test_what_was_drawn_is_counted_at_the_last_step_of_every_case(record: Callable[..., Any]) -> None:
    raw = record(arms=("federated", "dense"), rounds=1)
    assert drawing_table(parse_results(raw)).rows == ()
    for arm in raw["arms"]:
        for row in arm["interactions"]:
            clicked = arm["arm"] == "federated" and row["site"] == "Westend"
            row.update({"points": 7 * row["step"]} if clicked else {"slices": 2 * row["step"]})
    together = drawing_table(parse_results(raw))
    assert together.headers[:4] == ("arm", "slices", "slices with strokes", "points")
    assert [row[:4] for row in together.rows] == [("federated", "2.7", "0.0", "4.7"), ("dense", "4.0", "0.0", "0.0")]
    raw["settings"]["site_prompts.Westend"] = "points"
    apart = {row[:2]: row[2:5] for row in drawing_table(parse_results(raw)).rows}
    assert apart["federated", "Westend"] == ("0.0", "0.0", "14.0")
    assert apart["federated", "Nordstadt"] == ("4.0", "0.0", "0.0")
    assert len(apart) == 6
