"""What is drawn at a place of the screen arrives at the voxel that is shown there, however the image is stored.

The oracle is the eye: one voxel of the image is bright. The test finds the bright spot in a screenshot of each plane,
draws there with the mouse, and compares what arrived with the index of the bright voxel. That the patient's right is
on the left of the screen is compared with the affine.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from browser import chromium
from workbench import FakeStudio, Workbench, workbench
from workbench_page import PLANES, Page, visiting

from wardround.client.annotation.prompts import UNLABELLED, ErasePrompt, PointPrompt, ScribblePrompt, SlicePrompt
from wardround.client.cases.store import CaseStore
from wardround.client.cases.volume import Volume
from wardround.client.home import SiteHome
from wardround.client.intake import STORE

BRIGHT = (3, 9, 2)
SHAPE = (11, 14, 9)


@dataclass(frozen=True)
class Grid:
    """How an image is stored: columns of the affine as directions in LPS, and millimetres along them."""

    directions: npt.NDArray[np.float64]
    spacing: tuple[float, float, float]

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        affine = np.eye(4)
        affine[:3, :3] = self.directions @ np.diag(self.spacing)
        affine[:3, 3] = (12.5, -30, 7)
        return affine


def _turned(degrees: float, axis: int) -> npt.NDArray[np.float64]:
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    one, other = (n for n in range(3) if n != axis)
    turn = np.eye(3)
    turn[one, one] = turn[other, other] = cosine
    turn[one, other], turn[other, one] = -sine, sine
    return turn


_LPS = np.eye(3)
_SAGITTAL = np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]], dtype=float)
GRIDS = {
    "lps": Grid(_LPS, (1.0, 1.0, 1.0)),
    "ras": Grid(np.diag([-1.0, -1.0, 1.0]), (1.0, 1.0, 1.0)),
    "flipped": Grid(np.diag([1.0, -1.0, -1.0]), (0.8, 0.8, 2.5)),
    "sagittal": Grid(_SAGITTAL, (0.9, 1.1, 3.0)),
    "oblique": Grid(_turned(20, 0) @ _turned(-12, 2), (0.7, 0.9, 2.0)),
    "oblique-sagittal": Grid(_turned(17, 1) @ _SAGITTAL @ np.diag([1.0, -1.0, 1.0]), (1.3, 0.6, 1.0)),
}


def _bring(home: SiteHome) -> None:
    array = np.full(SHAPE, 100, dtype=np.float32)
    array[BRIGHT] = 1000
    with CaseStore(home.site / STORE) as store:
        for name, grid in GRIDS.items():
            store.add_case(name, Volume(array, grid.affine), "stream")
        store.add_case("contour", Volume(array, GRIDS["flipped"].affine), "stream")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    path = tmp_path_factory.mktemp("geometry") / "home"
    with (
        workbench(path, cases=0, studio=FakeStudio, prepare=_bring) as bench,
        chromium() as browser,
        visiting(browser, bench) as page,
    ):
        page.page.set_viewport_size({"width": 1000, "height": 640})
        page.sign_in("ann")
        yield page


def _spot(page: Page, picture: npt.NDArray[np.float32], plane: str) -> tuple[float, float]:
    """Column and row of the bright spot in a plane's part of the picture."""
    left, top, width, height = page.cell(plane)
    # Letters and the bar of length lie at the edges, the cursor's lines are blue: white in the middle is the voxel.
    part = picture[int(top) : int(top + height), int(left) : int(left + width)].min(axis=-1)
    edge = 36
    part = np.where(part > 0.4, part, 0)
    part[:edge], part[-edge:], part[:, :edge], part[:, -edge:] = 0, 0, 0, 0
    rows, columns = np.nonzero(part)
    assert len(rows) > 20, f"the bright voxel is seen on the {plane} plane"
    weights = part[rows, columns]
    column, row = np.average(columns, weights=weights), np.average(rows, weights=weights)
    return left + float(column) + 0.5, top + float(row) + 0.5


def _last(bench: Workbench, case_id: str) -> Any:
    return bench.studio.drawn[case_id, "ann"][-1]


DAILY = ("oblique-sagittal",)  # turned, flipped, oblique and uneven at once


@pytest.mark.parametrize(
    "name", [*DAILY, *(pytest.param(one, marks=pytest.mark.long) for one in GRIDS if one not in DAILY)]
)
def test_a_stroke_arrives_at_the_voxel_that_is_seen(page: Page, name: str) -> None:
    page.open(name)
    page.ask(f"workbench.go({list(BRIGHT)})")
    if page.ask("workbench.viewer.large"):
        page.keys("g")
    picture = page.picture()
    box = page.page.locator("#view").bounding_box()
    axes = set()
    for plane in PLANES:
        column, row = _spot(page, picture, plane)
        for count, (key, expected) in enumerate([("p", PointPrompt), ("s", ScribblePrompt), ("e", ErasePrompt)]):
            page.keys(key, "1")
            before = len(page.bench.studio.drawn.get((name, "ann"), ()))
            page.page.mouse.click(box["x"] + column, box["y"] + row)
            page.until(lambda before=before: len(page.bench.studio.drawn.get((name, "ann"), ())) > before)
            prompt = _last(page.bench, name)
            assert isinstance(prompt, expected), count
            if isinstance(prompt, PointPrompt):
                assert prompt == PointPrompt(BRIGHT, 1)
                continue
            axes.add(prompt.axis)
            assert prompt.index == BRIGHT[prompt.axis]
            drawn = prompt.mask if isinstance(prompt, ErasePrompt) else prompt.labels == 1
            here = tuple(at for axis, at in enumerate(BRIGHT) if axis != prompt.axis)
            assert drawn.shape == tuple(side for axis, side in enumerate(SHAPE) if axis != prompt.axis)
            assert drawn[here]
            if isinstance(prompt, ScribblePrompt):
                assert np.argwhere(prompt.labels != UNLABELLED).tolist() == [list(here)]
    assert axes == {0, 1, 2}


def test_a_contour_tells_the_whole_slice_and_keeps_what_was_drawn_on_it(page: Page) -> None:
    page.open("contour")
    if page.ask("workbench.viewer.large"):
        page.keys("g")
    size = page.ask("workbench.viewer.grid.size(workbench.viewer.tiles()[0].plane)")
    assert size == [SHAPE[0], SHAPE[1]]
    page.keys("c", "1")
    page.drag("axial", (2, 3), (6, 3), (6, 8), (2, 8), (2, 3.2))
    page.until(lambda: page.bench.studio.drawn.get(("contour", "ann")))
    first = _last(page.bench, "contour")
    assert isinstance(first, SlicePrompt)
    assert (first.labels == 1).sum() == 4 * 5, "voxels whose middle lies within"
    assert (first.labels == 0).sum() == SHAPE[0] * SHAPE[1] - 4 * 5
    page.steps(1)
    page.keys("2")
    page.drag("axial", (6, 3), (9, 3), (9, 8), (6, 8), (6, 3.2))
    page.until(lambda: len(page.bench.studio.drawn["contour", "ann"]) == 2)
    second = _last(page.bench, "contour")
    assert (second.labels == 1).sum() == 20
    assert (second.labels == 2).sum() == 15


@pytest.mark.parametrize(
    "name", ["flipped", *(pytest.param(one, marks=pytest.mark.long) for one in ("lps", "sagittal"))]
)
def test_the_right_of_the_patient_is_on_the_left_of_the_screen(page: Page, name: str) -> None:
    page.open(name)
    affine = GRIDS[name].affine
    script = (
        "(() => { const { viewer } = workbench; return viewer.tiles().map((t) => [t.plane.name, [0, 1, 2].map((a) => {"
        " const go = (n) => { const v = [4, 4, 4]; v[a] = n; const r = viewer.grid.toTurned(v);"
        " return t.toScreen(r[t.plane.h], r[t.plane.v]); };"
        " const [from, to] = [go(4), go(5)]; return [to[0] - from[0], to[1] - from[1]]; })]); })()"
    )
    for plane, steps in page.ask(script):
        moved = np.array(steps)  # [stored axis, x and y on the screen]
        for axis in range(3):
            patient = affine[:3, axis] / np.linalg.norm(affine[:3, axis])  # L, P, S
            across = -patient[1] if plane == "sagittal" else patient[0]
            down = -patient[2] if plane != "axial" else patient[1]
            assert np.sign(np.round(moved[axis, 0], 6)) == np.sign(np.round(across, 6)), (plane, axis)
            assert np.sign(np.round(moved[axis, 1], 6)) == np.sign(np.round(down, 6)), (plane, axis)
