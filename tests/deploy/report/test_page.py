import base64
import re
import struct
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex

from wardround import files
from wardround.deploy.report.examples import Example, save_example
from wardround.deploy.report.page import write_report
from wardround.deploy.report.results import parse_results, save_results
from wardround.deploy.report.slices import draw_imagined
from wardround.deploy.report.theme import CONTOURS, LIGHT
from wardround.errors import DataError, StorageError

FIGURES = ("overview", "effort", "rounds", "sites", "examples", "cost")
VOID = {"meta", "img", "source", "br", "hr", "link", "input"}


class Reader(HTMLParser):
    """Collects tags, attributes and text, and insists that every element is closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def report(folder: Path) -> Reader:
    return Reader(write_report(folder).read_text(encoding="utf-8"))


def _size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def test_a_whole_run_gives_every_figure_and_table(run_folder: Path) -> None:
    reader = Reader((run_folder / "report.html").read_text(encoding="utf-8"))
    pictures = reader.all("img")
    assert len(pictures) == len(FIGURES)
    assert all(len(picture["alt"] or "") > 40 for picture in pictures)
    assert len(reader.all("source")) == len(FIGURES)
    for name in FIGURES:
        for suffix in ("", "-dark"):
            width, height = _size((run_folder / "figures" / f"{name}{suffix}.png").read_bytes())
            assert width > 600
            assert height > 200
    assert _size((run_folder / "figures" / "overview.png").read_bytes()) == (1600, 900)
    for expected in ("federated", "proxy", "Südufer", "federated − dense", "best single-site model"):
        assert expected in reader.text
    assert "\ufffd" not in reader.text


def test_the_page_needs_nothing_from_outside(run_folder: Path) -> None:
    reader = Reader((run_folder / "report.html").read_text(encoding="utf-8"))
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in reader.tags}
    for tag, attributes in reader.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "srcset", "href", "action"):
            if name in attributes:
                assert (attributes[name] or "").startswith("data:image/png;base64,"), (tag, name)
    page = (run_folder / "report.html").read_text(encoding="utf-8")
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in page


def test_the_embedded_pictures_are_the_files(run_folder: Path) -> None:
    reader = Reader((run_folder / "report.html").read_text(encoding="utf-8"))
    embedded = {base64.b64decode((picture["src"] or "").split(",", 1)[1]) for picture in reader.all("img")}
    assert embedded == {(run_folder / "figures" / f"{name}.png").read_bytes() for name in FIGURES}


def test_names_from_the_run_cannot_become_markup(tmp_path: Path, record: Callable[..., Any], example: Any) -> None:
    evil = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"
    raw = record(arms=("federated", "local"), seeds=(0,), rounds=1)

    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {evil if key in ("Westend", "strategy-x") else key: poison(item) for key, item in value.items()}
        if isinstance(value, list):
            return [poison(item) for item in value]
        return evil if value == "Westend" else value

    raw = poison(raw)
    raw["dataset"] = {"name": evil, "labels": ["background", evil, "$x_{1$"]}
    raw["command"] = raw["created"] = raw["version"] = raw["machine"]["torch"] = evil
    raw["settings"] = {evil: evil, "list": [evil]}
    raw["arms"][0]["strategy"] = evil
    raw["arms"][0]["rounds"][0]["refused"] = {evil: evil}
    for model in raw["arms"][0]["models"].values():
        model["cases"][0]["case"] = evil
    save_results(raw, tmp_path)
    kept = example(0)
    save_example(
        tmp_path / "examples" / "a.npz",
        Example(kept.image, kept.truth, kept.proxy, kept.prediction, kept.residual, evil, (evil,)),
    )
    reader = report(tmp_path)
    assert not reader.all("script")
    assert all(set(attributes) == {"alt", "src"} for attributes in reader.all("img"))
    assert evil in reader.text


def test_control_and_direction_signs_are_shown_as_replacement(tmp_path: Path, record: Callable[..., Any]) -> None:
    raw = record(arms=("federated",), seeds=(0,), rounds=1)
    raw["dataset"]["name"] = "a\u202eb\x07c"
    save_results(raw, tmp_path)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "\u202e" not in page
    assert "\x07" not in page


def _nothing(raw: Any) -> Any:
    return {}


def _no_tests_yet(raw: Any) -> Any:
    for arm in raw["arms"]:
        arm["models"] = {}
    return raw


def _no_interactions(raw: Any) -> Any:
    for arm in raw["arms"]:
        arm["interactions"] = []
    return raw


def _one_label(raw: Any) -> Any:
    for arm in raw["arms"]:
        for model in arm["models"].values():
            for case in model["cases"]:
                for measure in ("dice", "hd95_mm", "assd_mm"):
                    del case[measure]["2"]
    raw["dataset"]["labels"] = ["background", "tumour"]
    return raw


def _all_null(raw: Any) -> Any:
    def blank(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: blank(item) for key, item in value.items()}
        if isinstance(value, list):
            return [blank(item) for item in value]
        return None if isinstance(value, float) else value

    return blank(raw)


def _bare_arm(raw: Any) -> Any:
    return {"arms": [{"arm": "something else"}]}


def _no_sites(raw: Any) -> Any:
    raw["sites"] = {}
    for arm in raw["arms"]:
        for model in arm["models"].values():
            for case in model["cases"]:
                case["sites"] = []
    return raw


@pytest.mark.parametrize(
    "change", [_nothing, _no_tests_yet, _no_interactions, _one_label, _all_null, _bare_arm, _no_sites]
)
def test_a_partial_run_still_gives_a_page(
    tmp_path: Path, record: Callable[..., Any], change: Callable[[Any], Any]
) -> None:
    save_results(change(record(arms=("federated", "local"), seeds=(0,), rounds=1)), tmp_path)
    reader = report(tmp_path)
    assert reader.all("h1")
    assert "nan" not in re.sub(r"[\w.-]*[a-z]nan|nan[a-z][\w.-]*", "", reader.text.lower())


def test_an_interrupted_run_says_so(tmp_path: Path, record: Callable[..., Any]) -> None:
    raw = record(arms=("federated",), seeds=(0,), rounds=2)
    raw["settings"]["rounds"] = 5
    raw["seed_list"] = [0, 1]
    save_results(raw, tmp_path)
    text = report(tmp_path).text
    assert "This run is not complete." in text
    assert "2 of 5 rounds" in text
    assert "seed 1 not run" in text


def test_a_refused_reply_is_named_with_its_reason(tmp_path: Path, record: Callable[..., Any]) -> None:
    raw = record(arms=("federated",), seeds=(0,), rounds=1)
    raw["arms"][0]["rounds"][0]["refused"] = {"Westend": "not-finite"}
    save_results(raw, tmp_path)
    text = report(tmp_path).text
    assert "Replies that were left out" in text
    assert "not-finite" in text


def test_health_of_attention_has_a_column_where_it_is_known(tmp_path: Path, record: Callable[..., Any]) -> None:
    raw = record(arms=("federated",), seeds=(0,), rounds=2)
    save_results(raw, tmp_path)
    assert "attention" not in report(tmp_path).text
    sites = raw["arms"][0]["rounds"][1]["sites"].values()
    for number, site in enumerate(sites):
        site["kernel_ratio"] = 1.5 + number
    save_results(raw, tmp_path)
    text = report(tmp_path).text
    assert "attention" in text
    assert f"{1.5 + (len(sites) - 1) / 2:.2f}" in text


def test_what_generators_made_is_shown_in_a_row_for_each_site_where_there_is_any(
    tmp_path: Path, record: Callable[..., Any], example: Any
) -> None:
    save_results(record(arms=("federated",), seeds=(0,), rounds=1), tmp_path)
    assert "generators make" not in report(tmp_path).text
    assert not (tmp_path / "figures" / "imagined.png").exists()
    heights = []
    for place, site in enumerate(("Westend", "Nordstadt")):
        for number in range(2):
            kept = example(number, size=24)
            made = Example(kept.image, truth=kept.truth, title=site, spacing=(1.0, 2.0))
            save_example(tmp_path / "imagined" / f"{place:03d}-{site}-{number}.npz", made)
        reader = report(tmp_path)
        heights.append(_size((tmp_path / "figures" / "imagined.png").read_bytes())[1])
    assert "What the sites' generators make" in reader.text
    assert heights[1] - heights[0] == pytest.approx(2.15 * 120, abs=2)
    (told,) = (text for picture in reader.all("img") if (text := picture["alt"] or "").startswith("Made images"))
    assert told == "Made images by site. Westend: two. Nordstadt: two."
    page = (tmp_path / "report.html").read_bytes()
    assert write_report(tmp_path).read_bytes() == page


def test_more_sites_than_fit_are_counted(tmp_path: Path, record: Callable[..., Any], example: Any) -> None:
    save_results(record(arms=("federated",), seeds=(0,), rounds=1), tmp_path)
    for place in range(12):
        made = Example(example(0, size=24).image, truth=example(0, size=24).truth, title=f"site {place}")
        save_example(tmp_path / "imagined" / f"{place:03d}.npz", made)
    assert "2 more sites are in imagined/" in report(tmp_path).text


def test_a_structure_has_the_colour_of_the_legend_whatever_else_is_on_the_slice(
    tmp_path: Path, record: Callable[..., Any], example: Any
) -> None:
    results = parse_results(record(arms=("federated",), seeds=(0,), rounds=1))
    kept = example(0)
    only = Example(kept.image, truth=np.where(kept.truth == 2, 2, 0).astype(np.uint8), title="Westend")
    sketch = draw_imagined(results, [only], LIGHT)
    assert sketch is not None
    (contours,) = (part for part in sketch.figure.axes[0].collections if part.get_paths())
    (patch,) = sketch.figure.legends[0].get_patches()
    assert to_hex(contours.get_edgecolor()[0]) == to_hex(patch.get_facecolor()) == CONTOURS[1]


def test_tests_of_generators_have_columns_where_they_are_known(tmp_path: Path, record: Callable[..., Any]) -> None:
    raw = record(arms=("federated",), seeds=(0,), rounds=2)
    save_results(raw, tmp_path)
    assert "faithful" not in report(tmp_path).text.lower()
    north, south, _ = raw["arms"][0]["rounds"][1]["sites"].values()
    north.update(made=16.0, made_nearer=0.4, made_faithful=0.71)
    south.update(made=0.0, made_nearer=0.9, made_faithful=0.33)
    save_results(raw, tmp_path)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    rows = [re.sub("(<[^>]+>)+", "|", row) for row in page.split("<tr")]
    assert any("|loss|made|nearer|faithful|effort|" in row for row in rows)
    assert any("|8|0.65|0.52|" in row for row in rows)
    assert "0.5 is neither nearer nor farther" in page


def test_many_sites_fit(tmp_path: Path, record: Callable[..., Any]) -> None:
    raw = record(arms=("federated",), seeds=(0,), rounds=1)
    names = [f"Hospital number {index} with quite a long name" for index in range(15)]
    raw["sites"] = {name: {"stream": 1, "tests": 1} for name in names}
    for index, case in enumerate(raw["arms"][0]["models"]["global"]["cases"]):
        case["sites"] = [names[index % 15]]
    raw["arms"][0]["interactions"] = [
        {"site": name, "case": "c", "round": 1, "step": 0, "effort": 0.0, "model_dice": 0.5} for name in names
    ]
    save_results(raw, tmp_path)
    reader = report(tmp_path)
    assert all(name in reader.text for name in names)
    assert "3 more sites" in reader.text


def test_the_same_run_gives_the_same_bytes(tmp_path: Path, record: Callable[..., Any]) -> None:
    save_results(record(arms=("federated",), seeds=(0,), rounds=1), tmp_path)
    first = write_report(tmp_path).read_bytes()
    assert write_report(tmp_path).read_bytes() == first


def test_no_results_is_an_error_with_a_fix(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_older_page(
    tmp_path: Path, record: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_results({}, tmp_path)
    old = write_report(tmp_path).read_bytes()
    save_results(record(arms=("federated",), seeds=(0,), rounds=1), tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StorageError):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == old
