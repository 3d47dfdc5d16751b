"""The page, the tables and the figures of a stream."""

from pathlib import Path

import pytest

from wardround.deploy.report.results import Results, load_results, save_results
from wardround.deploy.stream.page import write_stream_report
from wardround.deploy.stream.tables import curve_table, forgetting_table, matrix_table, open_runs, stream_tables

PNG = b"\x89PNG"


def figures(folder: Path) -> set[str]:
    found = set((folder / "figures").glob("*.png"))
    assert all(path.read_bytes().startswith(PNG) for path in found)
    return {path.stem for path in found if not path.stem.endswith("-dark")}


def test_a_shuffled_stream(curve: Results, tmp_path: Path) -> None:
    save_results(curve, tmp_path)
    page = write_stream_report(tmp_path).read_text()
    assert figures(tmp_path) == {"curve", "prequential", "proxy"}
    for text in ("Dice against effort", "proxy-4", "slices-only-8", "99%", "0.210", "−3.0"):
        assert text in page
    assert page.count("<img") == 3
    assert 'src="http' not in page
    assert write_stream_report(tmp_path).read_text() == page


def test_a_stream_that_is_ordered_by_site(ordered: Results, tmp_path: Path) -> None:
    save_results(ordered, tmp_path)
    page = write_stream_report(tmp_path).read_text()
    assert figures(tmp_path) == {"curve", "prequential", "proxy", "forgetting", "transfer"}
    for text in ("north", "south", "west", "Backward transfer", "+2.5", "−25.0"):
        assert text in page


@pytest.mark.parametrize(
    ("name", "every", "told"),
    [
        ("curve", 0, "final model of a run only"),
        ("curve", 1, "model after every chunk of the stream and by the final model"),
        ("curve", 2, "model after every 2 chunks of the stream and by the final model"),
        ("ordered", 0, "model after every site, and by nothing else"),
    ],
)
def test_the_page_says_when_test_cases_were_read(
    name: str, every: int, told: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    results: Results = request.getfixturevalue(name)
    save_results(results.model_copy(update={"settings": {"evaluate_every": every}}), tmp_path)
    page = write_stream_report(tmp_path).read_text()
    assert page.count("Test cases are read by the") == 1
    assert f"Test cases are read by the {told}." in page


def test_a_stream_that_stopped_says_what_is_missing(curve: Results, tmp_path: Path) -> None:
    arms = tuple(arm.model_copy(update={"models": {}}) if arm.arm == "proxy-8" else arm for arm in curve.arms[:-1])
    partial = curve.model_copy(update={"arms": arms})
    assert open_runs(partial) == [
        "proxy-8, seed 0: not finished",
        "proxy-8, seed 1: not finished",
        "slices-only-8: seed 1 not run",
    ]
    save_results(partial, tmp_path)
    assert "not complete" in write_stream_report(tmp_path).read_text()


def test_what_comes_from_the_data_is_escaped(curve: Results, tmp_path: Path) -> None:
    dataset = curve.dataset.model_copy(update={"name": "<script>alert(1)</script>"})
    save_results(curve.model_copy(update={"dataset": dataset}), tmp_path)
    assert "<script>" not in write_stream_report(tmp_path).read_text()


def test_the_table_has_the_columns_that_there_are_numbers_for(curve: Results, ordered: Results) -> None:
    table = curve_table(curve)
    assert table.headers[-4:-1] == ("− dense-8, points", "− slices-only, points", "updates")
    rows = {row[0]: row for row in table.rows}
    assert rows["proxy-8"][-4:] == ("+1.0 [+1.0, +1.0]", "+6.0 [+6.0, +6.0]", "100", "0")
    assert rows["dense-8"][-4] == "–"
    assert curve_table(ordered).headers[-3:] == ("proxy Dice", "updates", "taken back")
    assert all(len(row) == len(table.headers) for table in (table, curve_table(ordered)) for row in table.rows)


def test_the_tables_of_forgetting(ordered: Results) -> None:
    rows = {row[0]: row for row in forgetting_table(ordered).rows}
    assert rows["no-replay-8"][2] == "−25.0 [−25.0, −25.0]"
    assert matrix_table(ordered, "proxy-8").rows[0] == ("after north", "0.700", "0.500", "0.400")
    assert len(stream_tables(ordered)) == 4


@pytest.mark.parametrize("name", ["curve", "ordered"])
def test_results_come_back_as_they_were(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    results: Results = request.getfixturevalue(name)
    save_results(results, tmp_path)
    again = load_results(tmp_path)
    assert again.groups == results.groups
    assert [arm.checkpoints for arm in again.arms] == [arm.checkpoints for arm in results.arms]
    assert [(arm.family, arm.budget) for arm in again.arms] == [(arm.family, arm.budget) for arm in results.arms]
