"""What stands on the images beside labels: a bar of a known length, and a word where the rendering is an old one."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import chromium
from workbench import FakeStudio, workbench
from workbench_page import SMALL, Page, visiting

FAINT = np.array([159, 179, 187]) / 255


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    home: Path = tmp_path_factory.mktemp("marks") / "home"
    with (
        workbench(home, cases=1, studio=FakeStudio) as bench,
        chromium() as browser,
        visiting(browser, bench, SMALL) as found,
    ):
        found.sign_in("ann")
        found.open("case-0")
        yield found


def bar(page: Page) -> int:
    """Pixels of the longest bright run in the line above the lower edge of the axial plane."""
    left, top, width, height = (round(one) for one in page.cell("axial"))
    line = page.picture()[top + height - 12 : top + height - 8, left + 4 : left + width // 2]
    bright = (np.abs(line - FAINT).max(axis=2) < 0.12).any(axis=0)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], bright.astype(int), [0]])))
    return int((edges[1::2] - edges[::2]).max(initial=0))


@pytest.mark.long
def test_the_bar_is_as_long_as_it_says(page: Page) -> None:
    def per_mm() -> float:
        spacing: list[float] = page.ask("workbench.viewer.spacing")
        across = abs(page.place("axial", 1, 0)[0] - page.place("axial", 0, 0)[0])
        return float(across / spacing[page.ask("workbench.viewer.grid.axis[0]")])

    def told(most_mm: float) -> float | None:
        """The round length that is shown, below one; None as long as the bar has none."""
        mm = bar(page) / per_mm()
        lengths = [power * one for power in (0.1, 1, 10, 100) for one in (1, 2, 5)]
        return next((one for one in lengths if one < most_mm and abs(mm - one) * per_mm() <= 3), None)

    whole = page.until(lambda: told(1000), "the bar has a round length, to the pixel")
    page.ask("workbench.viewer.zoom(6, workbench.painter.cursor)")
    page.until(lambda: told(whole), "of what is enlarged the bar covers less")
    page.page.click("#fit")
    page.until(lambda: told(1000) == whole)


@pytest.mark.long
def test_a_rendering_that_takes_long_waits_until_somebody_asks(page: Page) -> None:
    page.page.click("#fit")
    page.until("(!workbench.viewer.stale || workbench.viewer.outdated) && !workbench.viewer.measuring")
    page.ask("void (workbench.viewer.cost = 60000)")  # as on a machine without a graphics card
    page.ask("void (workbench.viewer.window = [0, 1])")
    page.drag("axial", (4.5, 8.5), (9.5, 8.5))
    page.steps(1)
    page.picture()
    assert page.ask("workbench.viewer.outdated"), "nobody who draws waits for it"
    page.keys("f", "g", "g", "a")
    page.picture()
    assert page.ask("workbench.viewer.outdated"), "nor who looks at another plane"
    left, top, width, height = page.ask("workbench.viewer.renderingCell")
    box = page.page.locator("#view").bounding_box()
    page.page.mouse.click(box["x"] + left + width / 2, box["y"] + top + height / 2)
    page.until("!workbench.viewer.asked && workbench.viewer.cost < 60000", "it is drawn, and its time is taken anew")
