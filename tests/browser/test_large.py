"""An image of sixteen million voxels: it opens and is drawn on, and what comes after a stroke is a box of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium
from workbench import workbench
from workbench_page import SMALL, Page, visiting

from wardround.client.cases.phantoms import draw_phantom
from wardround.client.cases.store import CaseStore
from wardround.client.cases.volume import Volume
from wardround.client.home import SiteHome
from wardround.client.intake import STORE

SHAPE, OBJECT, AT = (320, 320, 160), (64, 72, 56), (130, 120, 50)


def image() -> Volume:
    """A phantom amid noise: what is to be drawn is small, the image is not."""
    small, _ = draw_phantom(np.random.default_rng(4), OBJECT)
    around = np.random.default_rng(5).normal(0, 0.1, SHAPE).astype(np.float32)
    around[tuple(slice(at, at + side) for at, side in zip(AT, OBJECT, strict=True))] = small.array
    scaled = np.rint(1000 * around / np.abs(around).max()).astype(np.int16)
    return Volume(scaled, np.diag([0.8, 0.8, 1.5, 1.0]))


def bring(home: SiteHome) -> None:
    with CaseStore(home.site / STORE) as store:
        store.add_case("large", image(), "stream")


def coloured(page: Page) -> int:
    """How many pixels of the images are not grey."""
    return int((np.ptp(page.picture(), axis=2) > 0.24).sum())


@pytest.mark.long
def test_a_large_image_is_drawn_on_and_its_layers_are_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A busy processor without a graphics card takes a minute and more for the first rendering of so much.
    monkeypatch.setattr("workbench_page.PATIENCE_S", 300.0)
    with (
        workbench(tmp_path / "home", cases=0, prepare=bring) as bench,
        chromium() as browser,
        visiting(browser, bench, SMALL) as page,
    ):
        sent: dict[str, int] = {}

        def note(response: Any) -> None:
            name = response.url.partition("/layers/")[2].partition("?")[0]
            if name and response.status == 200:
                sides = np.diff(np.array(response.headers["x-wardround-box"].split(","), dtype=int).reshape(3, 2))
                sent[name] = max(sent.get(name, 0), int(sides.prod()))

        page.page.set_default_timeout(300_000)
        page.page.on("response", note)
        page.sign_in("ann")
        page.open("large")
        before = coloured(page)
        centre = [at + side / 2 for at, side in zip(AT, OBJECT, strict=True)]
        page.ask(f"workbench.go({[int(one) for one in centre]})")
        columns, rows = page.ask("workbench.viewer.grid.size(workbench.viewer.active)")
        assert (columns, rows) == SHAPE[:2]
        for step, height in enumerate((-6.5, 6.5)):
            page.keys("s", str(step + 1))
            page.drag("axial", (160, rows / 2 + height), (176, rows / 2 + height))
            page.steps(step + 1)
        page.keys("r")
        for name in ("drawn", "proxy", "residual"):  # what a model that has learnt nothing predicts is everywhere
            page.until(f"workbench.painter.layers.has('{name}')")
            box = np.array(page.ask(f"workbench.painter.layers.get('{name}').box")).reshape(3, 2)
            assert 0 < np.diff(box).prod() < np.prod(SHAPE) / 4, f"{name} is a box of the image, not all of it"
            assert 0 < sent[name] < np.prod(SHAPE) / 4
        seen = "[1, 2].every((one) => workbench.painter.layers.get('proxy').values.includes(one))"
        page.until(seen, "both strokes are in the label so far")
        page.until(lambda: coloured(page) > 2 * before, "colours are seen where there was nothing but grey")
        page.keys("m")
        if not page.ask("workbench.panel.shows('prediction')"):  # the model learns, and it was shown by itself
            page.keys("m")
        page.until("workbench.painter.layers.has('prediction')")
        page.picture()  # a model that has learnt little sees something everywhere: the page moves nevertheless
        page.keys("n")
        asked = page.answer["suggestion"][0]
        assert page.ask("workbench.painter.cursor")[asked["axis"]] == asked["index"]
        page.keys("Shift+A")
        page.until(lambda: bench.store.label("large", "ann") is not None)
        label = bench.store.label("large", "ann")
        assert label is not None
        assert label.array.shape == SHAPE
