"""The folder of a live site: settings that are read strictly, and whether it takes part."""

from pathlib import Path

import pytest

from wardround.client.home import SETTINGS_TEMPLATE, SiteHome, WorkbenchSettings
from wardround.errors import DataError, StorageError

GOOD = SETTINGS_TEMPLATE.format(name="north", coordinator="https://fed.example.org:8443")


def home(folder: Path, text: str = GOOD) -> SiteHome:
    (folder / "site.toml").write_text(text)
    return SiteHome(folder)


def test_the_template_says_what_holds_anyway(tmp_path: Path) -> None:
    settings = home(tmp_path).settings
    assert settings == home(tmp_path, "\n".join(GOOD.splitlines()[:5])).settings
    assert (settings.name, settings.coordinator) == ("north", "https://fed.example.org:8443")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('device = "tpu"', "device"),
        ("cases-per-round = 0", "cases-per-round"),
        ("status-port = 70000", "status-port"),
        ('coordinator = "http://fed.example.org"', "coordinator"),
        ('name = "../north"', "name"),
        ('annotator = "nobody"', "annotator"),
        ("cases_per_round = 3", "cases_per_round"),
        ("extra = 1", "extra"),
        ("[[[", "line"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, line: str, named: str) -> None:
    key = line.partition(" =")[0]
    site, _, _ = GOOD.partition("[workbench]")
    kept = [old for old in site.splitlines() if not old.startswith(f"{key} =")]
    with pytest.raises(DataError, match=named):
        _ = home(tmp_path, "\n".join([*kept, line])).settings


WORKBENCH = """
[workbench]
port = 8447
labels = ["anterior", "posterior"]
review = true

[[pacs]]
name = "archive"
dicomweb = "http://127.0.0.1:8042/dicom-web"
dimse-port = 4242
"""
SITE, _, _ = GOOD.partition("[workbench]")


def test_a_site_serves_no_workbench_and_knows_no_archive_until_it_says_so(tmp_path: Path) -> None:
    for text in (GOOD, SITE):
        assert (home(tmp_path, text).workbench, home(tmp_path, text).pacs) == (WorkbenchSettings(), ())
    assert WorkbenchSettings().port == 0
    found = home(tmp_path, SITE + WORKBENCH)
    assert (found.workbench.port, found.workbench.labels, found.workbench.review) == (
        8447, ("anterior", "posterior"), True,
    )  # fmt: skip
    (archive,) = found.pacs
    assert (archive.name, archive.dimse_port) == ("archive", 4242)
    assert found.pacs_password("archive") == tmp_path / "keys" / "pacs-archive"


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("port = 8447", "port = 70000", "workbench.port"),
        ("port = 8447", 'host = "a b"', "workbench.host"),
        ("review = true", "reviews = true", "workbench.reviews"),
        ('"anterior"', '"ante\\nrior"', "workbench.labels"),
        ('"archive"', '"../archive"', "pacs.0.name"),
        ("http://127", "file://127", "pacs.0.dicomweb"),
        ("http://127", "http://user:word@127", "pacs.0.dicomweb"),
        ("[workbench]", "[work-bench]", "work-bench"),
        ("dimse-port = 4242", '[[pacs]]\nname = "archive"', "one name"),
    ],
)
def test_a_line_about_the_workbench_or_an_archive_that_cannot_be_used_is_named(
    tmp_path: Path, old: str, new: str, named: str
) -> None:
    assert old in WORKBENCH
    with pytest.raises(DataError, match=named):
        _ = home(tmp_path, SITE + WORKBENCH.replace(old, new)).workbench


def test_a_folder_without_settings_is_no_home(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="wardround site init"):
        _ = SiteHome(tmp_path).settings


def test_a_site_takes_part_until_it_says_otherwise(tmp_path: Path) -> None:
    assert SiteHome(tmp_path).participation == "active"
    for how in ("paused", "left", "active"):
        SiteHome(tmp_path).participate(how)  # type: ignore[arg-type]
        assert SiteHome(tmp_path).participation == how


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"participation": "maybe"}', '{"participation": ["left"]}'])
def test_a_damaged_state_never_counts_as_taking_part(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(StorageError, match="damaged"):
        _ = SiteHome(tmp_path).participation
