"""Where the object begins and ends: told by mouse and by keyboard, however the image is stored, and paid for."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from browser import chromium
from workbench import FakeStudio, workbench
from workbench_page import PLANES, SMALL, Page, visiting

from wardround.client.annotation.prompts import ExtentPrompt
from wardround.client.cases.store import CaseStore
from wardround.client.cases.volume import Volume
from wardround.client.home import SiteHome
from wardround.client.intake import STORE

SHAPE = (13, 15, 11)
LILAC = np.array([0xCD, 0xB4, 0xFF]) / 255


def _bring(home: SiteHome) -> None:
    array = np.random.default_rng(2).normal(100, 5, SHAPE).astype(np.float32)
    with CaseStore(home.site / STORE) as store:
        for name, flips in (("flipped", [1.0, -1.0, -1.0, 1.0]), ("sides", [-1.0, -1.0, 1.0, 1.0])):
            store.add_case(name, Volume(array, np.diag(flips)), "stream")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    path = tmp_path_factory.mktemp("extent") / "home"
    with (
        workbench(path, cases=0, studio=FakeStudio, prepare=_bring) as bench,
        chromium() as browser,
        visiting(browser, bench, SMALL) as page,
    ):
        page.sign_in("ann")
        yield page


def _known(page: Page, case_id: str, told: ExtentPrompt) -> None:
    """Wait until the studio knows an extent, and the page shows it."""
    page.until(lambda: page.bench.studio.extents.get((case_id, "ann")) == told, str(told))
    page.until("!workbench.session.queue.busy")
    assert page.answer["extent"] == {"lower": list(told.lower), "upper": list(told.upper)}


def _lilac(picture: npt.NDArray[np.float32]) -> Any:
    return np.abs(picture - LILAC).max(axis=-1) < 0.12


def test_a_box_is_drawn_and_its_ends_are_set(page: Page) -> None:
    page.open("flipped")
    page.keys("t")
    page.drag("axial", (3.5, 4.5), (6, 6), (8.5, 10.5))
    # Stored j runs from anterior to posterior here, k from superior to inferior: see the affine.
    turned = page.ask("workbench.viewer.grid.perm ?? workbench.viewer.grid.flip")
    corners = [page.ask(f"workbench.viewer.grid.toVoxel({one})") for one in ([3, 4, 0], [8, 10, SHAPE[2] - 1])]
    lower, upper = np.min(corners, axis=0), np.max(corners, axis=0)
    assert turned is not None
    box = ExtentPrompt(tuple(map(int, lower)), tuple(map(int, upper)))
    _known(page, "flipped", box)
    assert len(page.bench.studio.drawn.get(("flipped", "ann"), ())) == 0, "nothing is drawn by it"

    # Without a mouse: the slice that is shown is the first, and another one the last.
    page.page.locator("#view").focus()
    page.ask("workbench.go(workbench.viewer.grid.toVoxel([5, 6, 2]))")
    page.keys("i")
    page.until("workbench.answer.extent !== null && !workbench.session.queue.busy")
    page.ask("workbench.go(workbench.viewer.grid.toVoxel([5, 6, 7]))")
    page.keys("o")
    corners = [page.ask(f"workbench.viewer.grid.toVoxel({one})") for one in ([3, 4, 2], [8, 10, 7])]
    lower, upper = np.min(corners, axis=0), np.max(corners, axis=0)
    _known(page, "flipped", ExtentPrompt(tuple(map(int, lower)), tuple(map(int, upper))))

    # It is seen on all three planes.
    if page.ask("workbench.viewer.large"):
        page.keys("g")
    picture = page.picture()
    for plane in PLANES:
        left, top, width, height = (int(one) for one in page.cell(plane))
        assert _lilac(picture[top : top + height, left : left + width]).sum() > 40, plane


def test_a_side_is_moved_and_the_keyboard_draws_a_box(page: Page) -> None:
    page.open("sides")
    if page.ask("workbench.viewer.large"):
        page.keys("g")
    page.page.locator("#view").focus()
    page.keys("t")
    page.ask("workbench.go(workbench.viewer.grid.toVoxel([2, 3, 5]))")
    page.keys("Space", *["ArrowUp"] * 4, "Shift+ArrowUp")
    columns = page.ask("Math.sign(workbench.viewer.tiles()[0].perU)")
    page.keys(*["ArrowRight" if columns > 0 else "ArrowLeft"] * 6, "Space")
    _known(page, "sides", ExtentPrompt((2, 3, 0), (8, 12, SHAPE[2] - 1)))
    page.drag("coronal", (5.5, 0), (5.5, 1.5), (5.5, 2.5))
    _known(page, "sides", ExtentPrompt((2, 3, 2), (8, 12, SHAPE[2] - 1)))
    page.drag("axial", (9, 7), (8, 7), (7.5, 7))
    _known(page, "sides", ExtentPrompt((2, 3, 2), (7, 12, SHAPE[2] - 1)))
    page.page.click("#whole")
    _known(page, "sides", ExtentPrompt((0, 0, 0), (12, 14, 10)))
    assert not _lilac(page.picture()).sum() > 40, "a box about everything says nothing"
