"""The page in a real browser, against the real workbench: from signing in to a label in the store."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium
from workbench import workbench
from workbench_page import SMALL, Page, visiting

from wardround.client.cases.nifti import read_image
from wardround.client.cases.store import CaseStore
from wardround.client.home import SiteHome
from wardround.client.intake import STORE


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def _draw(page: Page) -> None:
    """Draw on the open case until a label is accepted, and look at every step at what a person would see."""
    page.keys("m")  # the prediction of a model that has learnt nothing is not shown by itself
    if not page.ask("workbench.panel.shows('prediction')"):
        page.keys("m")
    page.until("workbench.painter.layers.has('prediction')")
    columns, rows = page.ask("workbench.viewer.grid.size(workbench.viewer.active)")
    before, _ = page.layer("prediction")
    page.keys("s", "1")
    page.drag("axial", (columns * 0.4, rows * 0.5), (columns * 0.6, rows * 0.5))
    page.steps(1)
    assert (page.layer("proxy")[1] == 1).any(), "what was drawn is in the label so far"
    assert (page.layer("drawn")[1] == 2).sum() >= columns * 0.2 - 1
    page.keys("0")
    page.drag("axial", (columns * 0.1, rows * 0.1), (columns * 0.9, rows * 0.1))
    page.steps(2)
    page.until(lambda: page.layer("prediction")[0] > before, "a newer prediction")
    assert page.answer["effort_contour"] > 0
    assert "px" in page.text("#progress")

    page.keys("n")
    asked = page.answer["suggestion"][0]
    assert page.ask("workbench.painter.cursor")[asked["axis"]] == asked["index"]
    assert page.ask("workbench.viewer.grid.cut(workbench.viewer.active)") == asked["axis"]

    page.keys("z")
    page.steps(1)
    assert not (page.layer("drawn")[1] == 1).any(), "the stroke of background is gone"
    page.keys("y")
    page.steps(2)
    assert (page.layer("drawn")[1] == 1).any()


def test_from_signing_in_to_a_label_in_the_store(tmp_path: Path, browser: Any) -> None:
    with workbench(tmp_path / "home", cases=2) as bench, visiting(browser, bench, SMALL) as page:
        page.sign_in("ann")
        assert page.page.locator("#cases button").count() == 2
        assert page.text("#site") == "north"
        page.keys("Shift+N")
        page.until("workbench.ready === true")
        case_id = page.ask("workbench.session.id")
        _draw(page)
        proxy = page.ask("workbench.painter.layers.get('proxy').box"), page.layer("proxy")[1]

        page.keys("Shift+A")
        page.until(f"workbench.session?.id && workbench.session.id !== '{case_id}' && workbench.ready")
        label = bench.store.label(case_id, "ann")
        assert label is not None
        (i0, i1, j0, j1, k0, k1), values = proxy
        assert np.array_equal(label.array[i0:i1, j0:j1, k0:k1], values), "what was seen is what was stored"
        assert np.count_nonzero(label.array) == np.count_nonzero(values)
        page.until(lambda: "accepted" in page.text(f"#cases button[data-case='{case_id}']"))


@pytest.mark.long
def test_a_draft_is_there_again_the_next_day(tmp_path: Path, browser: Any) -> None:
    with workbench(tmp_path / "home", cases=1) as bench:
        with visiting(browser, bench, SMALL) as page:
            page.sign_in("ann")
            page.open("case-0")
            page.drag("axial", (4.5, 8.5), (10.5, 8.5))
            page.steps(1)
            drawn = page.layer("drawn")[1]
        bench.studio.close("case-0", "ann")
        with visiting(browser, bench, SMALL) as page:
            page.sign_in("ann")
            page.opened("case-0")
            assert "draft" in page.text("#cases button")
            page.until("workbench.painter.layers.has('drawn')")
            assert np.array_equal(page.layer("drawn")[1], drawn)
            page.page.select_option("#reason", "unsure")
            page.page.click("#skip")
            page.until(lambda: bench.store.drawing("case-0", "ann").state == "skipped")
            assert bench.store.drawing("case-0", "ann").reason == "unsure"
            page.until("!document.getElementById('empty').hidden")


@pytest.mark.data
@pytest.mark.long
def test_a_real_hippocampus_is_drawn_on(tmp_path: Path, browser: Any) -> None:
    images = sorted(Path(os.environ["WARDROUND_DATA"]).glob("**/imagesTr/*.nii.gz"))
    assert images, "WARDROUND_DATA holds no imagesTr"

    def bring(home: SiteHome) -> None:
        with CaseStore(home.site / STORE) as store:
            store.add_case("hippocampus", read_image(images[0]), "stream")

    with workbench(tmp_path / "home", cases=0, prepare=bring) as bench, visiting(browser, bench, SMALL) as page:
        page.sign_in("ann")
        page.open("hippocampus")
        _draw(page)
        page.keys("Shift+A")
        page.until(lambda: bench.store.label("hippocampus", "ann") is not None)
