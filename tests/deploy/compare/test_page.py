"""The page and the picture of a comparison."""

from pathlib import Path

from wardround.deploy.compare.page import write_compare_report
from wardround.deploy.report.results import Results, parse_results, save_results


def test_the_page_holds_everything_and_is_the_same_again(comparison: Results, tmp_path: Path) -> None:
    save_results(comparison, tmp_path)
    page = write_compare_report(tmp_path).read_text()
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} == {"strategies", "strategies-dark"}
    for text in ("plain", "fair", "local only", "best single site", "0.700 [0.675, 0.725]", "weighting=qffl, q=2"):
        assert text in page
    assert page.count("<img") == 1
    assert 'src="http' not in page
    assert write_compare_report(tmp_path).read_text() == page


def test_a_name_with_markup_stays_text(comparison: Results, tmp_path: Path) -> None:
    record = comparison.model_dump(mode="json")
    record["dataset"]["name"] = "<script>alert(1)</script>"
    save_results(parse_results(record), tmp_path)
    assert "<script>alert" not in write_compare_report(tmp_path).read_text()


def test_a_comparison_that_has_just_begun(comparison: Results, tmp_path: Path) -> None:
    first = comparison.arms[0].model_copy(update={"models": {}})
    save_results(comparison.model_copy(update={"arms": (first,)}), tmp_path)
    page = write_compare_report(tmp_path).read_text()
    assert "plain, seed 0: not finished" in page
    assert "<img" not in page
