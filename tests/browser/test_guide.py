"""What the plan asks for is said on the page: seven points of a structure, or strokes on a slice."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium
from workbench import workbench
from workbench_page import CONTRASTS, Page, visiting

from wardround.client.annotation.prompts import PointPrompt, ScribblePrompt
from wardround.client.home import SiteHome
from wardround.client.learning.latest import LatestModel
from wardround.client.learning.learner import LearningSettings, OnlineLearner, resolve_device
from wardround.strategies.plan import RoundPlan

ENDS = ("right", "left", "front", "back", "top", "bottom")


def asking(prompts: str) -> Any:
    """Puts a model with a plan that asks for `prompts` into a home."""

    def bring(home: SiteHome) -> None:
        plan = RoundPlan(
            run="demo", round=2, rounds=4, seed=1, model="unet3d-small", labels=3, updates_per_case=16,
            supervision="partial", prompts=prompts,
        )  # fmt: skip
        weights = OnlineLearner(LearningSettings.of(plan), resolve_device("cpu")).weights()
        LatestModel(home.site / "model").save(plan, weights)

    return bring


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def _points(page: Page) -> list[tuple[tuple[int, ...], int]]:
    return [(tuple(one["index"]), one["label"]) for one in page.answer["drawn"] if one["kind"] == "point"]


def _next(page: Page) -> str:
    """Which point is asked for."""
    shown = page.page.locator("#guide-ends [aria-current=step]")
    return str(shown.get_attribute("data-key")).removeprefix("end-") if shown.count() else ""


def _labels(page: Page) -> dict[str, str]:
    rows = page.page.locator("#guide-rows button").all_inner_texts()
    return {name: count for name, count in (row.strip().split("\n")[-2:] for row in rows)}


def _around(page: Page, name: str) -> tuple[list[int], list[int], list[int]]:
    """Middle, first and last turned voxel of a structure of the imported label."""
    label = page.bench.store.label("case-0", "imported")  # type: ignore[attr-defined]
    value = {"anterior": 1, "posterior": 2}[name]
    inside = np.argwhere(label.array == value)
    deepest = inside[np.abs(inside - np.median(inside, axis=0)).sum(axis=1).argmin()]
    turned = [page.ask(f"workbench.viewer.grid.toTurned({one.tolist()})") for one in inside]
    low, high = np.min(turned, axis=0).tolist(), np.max(turned, axis=0).tolist()
    return page.ask(f"workbench.viewer.grid.toTurned({deepest.tolist()})"), low, high


def _click(page: Page, at: list[int]) -> None:
    """Click on a turned voxel, in the axial plane."""
    page.ask(f"workbench.go(workbench.viewer.grid.toVoxel({at}))")
    page.drag("axial", (at[0] + 0.5, at[1] + 0.5), (at[0] + 0.5, at[1] + 0.5))


def _ends(middle: list[int], low: list[int], high: list[int], shape: list[int]) -> list[list[int]]:
    found = []
    for t in range(3):
        for out in (min(high[t] + 1, shape[t] - 1), max(low[t] - 1, 0)):
            at = list(middle)
            at[t] = out
            found.append(at)
    return found


def test_seven_points_are_set_with_the_guide(tmp_path: Path, browser: Any) -> None:
    with workbench(tmp_path / "home", cases=1, prepare=asking("points")) as bench:
        with visiting(browser, bench) as page:
            page.sign_in("ann")
            page.open("case-0")
            shape = page.ask("workbench.viewer.grid.turned")
            assert page.text("#guide-head").lower() == "seven points"
            assert page.ask("workbench.panel.tool") == "point", "the tool that is needed is in the hand"
            assert (_next(page), _labels(page)) == ("inside", {"anterior": "0 of 7", "posterior": "0 of 7"})
            before = page.answer["versions"]["prediction"]

            middle, low, high = _around(page, "anterior")
            ends = _ends(middle, low, high, shape)
            _click(page, middle)
            page.steps(1)
            assert page.ask("workbench.panel.label") == 0, "ends lie outside"
            assert page.page.locator("#guide-rows button:disabled").count() == 1, "one structure after the other"
            expected = [middle]
            for number, (name, at) in enumerate(zip(ENDS[:4], ends, strict=False), start=2):
                assert _next(page) == name
                assert f"the {name} " in page.text("#guide-next")
                if name == "front":
                    _click(page, ends[3])
                    page.until("document.getElementById('said').textContent.includes('not to the front')")
                    assert page.answer["step"] == number - 1, "on the wrong side nothing is sent"
                _click(page, at)
                expected.append(at)
                page.steps(number)
                page.until(lambda many=number: _labels(page)["anterior"] == f"{many} of 7")
            # Without a mouse: the cursor goes up to the first slice behind the top.
            assert _next(page) == "top"
            page.page.locator("#view").focus()
            page.ask(f"workbench.go(workbench.viewer.grid.toVoxel({middle}))")
            page.keys(*["PageUp"] * (ends[4][2] - middle[2]), "Space")
            page.steps(6)
            page.keys("z")
            page.steps(5)
            page.until(lambda: _next(page) == "top", "what was taken back is missing again")
            page.keys("y")
            page.steps(6)
            page.until(lambda: _next(page) == "bottom")
            page.ask(f"workbench.go(workbench.viewer.grid.toVoxel({middle}))")
            page.keys(*["PageDown"] * (middle[2] - ends[5][2]), "Space")
            page.steps(7)
            expected += ends[4:]
            page.until(lambda: _labels(page) == {"anterior": "7 of 7", "posterior": "0 of 7"})
            assert page.ask("workbench.panel.label") == 2, "the next structure"
            assert _next(page) == "inside"
            assert "inside posterior" in page.text("#guide-next").lower()
            page.keys("1")
            _click(page, [middle[0], middle[1] + 1, middle[2]])
            page.steps(8)
            assert page.ask("workbench.panel.label") == 1, "a click in the box corrects, and begins nothing"
            assert "enclosed" in page.text("#guide-next")
            page.keys("z")
            page.steps(7)
            voxels = [tuple(page.ask(f"workbench.viewer.grid.toVoxel({at})")) for at in expected]
            assert _points(page) == [(voxels[0], 1), *((one, 0) for one in voxels[1:])]

            _, proxy = page.layer("proxy")
            assert (proxy == 1).sum() > 1, "the label so far follows the points"
            page.until(lambda: page.layer("prediction")[0] > before, "the prediction follows as the model learns")
            assert page.ask("document.querySelector('#guide-next').getAttribute('aria-live')") == "polite"
            faint = [(round(ratio, 1), text) for ratio, text in page.ask(CONTRASTS) if ratio < 4.5]
            assert not faint
            spare = page.ask(
                "(({ clientWidth, scrollWidth }) => clientWidth - scrollWidth)(document.getElementById('panel'))"
            )
            assert spare >= 0, "nothing is cut off"

            page.keys("Shift+A")
            page.until(lambda: bench.store.label("case-0", "ann") is not None)
            drawing = bench.store.drawing("case-0", "ann")
        assert drawing.state == "accepted"
        assert [prompt for step in drawing.steps for prompt in step] == [
            PointPrompt(index, int(n == 0)) for n, index in enumerate(voxels)
        ]


@pytest.mark.long
def test_a_set_that_was_left_is_gone_on_with(tmp_path: Path, browser: Any) -> None:
    with workbench(tmp_path / "home", cases=1, prepare=asking("points")) as bench:
        with visiting(browser, bench) as page:
            page.sign_in("ann")
            page.open("case-0")
            middle, low, high = _around(page, "posterior")
            ends = _ends(middle, low, high, page.ask("workbench.viewer.grid.turned"))
            page.page.locator("#guide-rows button[data-key=label-2]").focus()
            page.keys("Enter")
            _click(page, middle)
            page.page.locator("#guide-ends button[data-key=end-bottom]").focus()
            page.keys("Enter")
            page.until(lambda: _next(page) == "bottom", "ends are set in any order")
            _click(page, ends[5])
            _click(page, ends[0])
            page.steps(3)
            page.until(lambda: _next(page) == "left")
        bench.studio.close("case-0", "ann")
        with visiting(browser, bench) as page:
            page.sign_in("ann")
            page.opened("case-0")
            assert _labels(page) == {"anterior": "0 of 7", "posterior": "3 of 7"}
            for left in (4, 3, 2, 1):
                name = _next(page)
                _click(page, ends[ENDS.index(name)])
                page.steps(7 - left + 1)
                page.until(lambda many=7 - left + 1: _labels(page)["posterior"] == f"{many} of 7")
            assert len(page.answer["points"]["complete"]) == 1
            assert len(_points(page)) == 7


def test_strokes_on_the_suggested_slice_are_asked_for(tmp_path: Path, browser: Any) -> None:
    with workbench(tmp_path / "home", cases=1, prepare=asking("scribbles")) as bench, visiting(browser, bench) as page:
        page.sign_in("ann")
        page.open("case-0")
        asked = page.answer["suggestion"][0]
        assert page.text("#guide-head").lower() == "strokes"
        assert page.text("#suggest").removeprefix("Suggested: ") in page.text("#guide-next")
        assert _labels(page) == {"anterior": "–", "posterior": "–", "Background": "–"}
        page.page.locator("#view").focus()
        page.keys("n", "1", "Space", "ArrowRight", "ArrowRight", "Space")
        page.steps(1)
        page.until(lambda: _labels(page) == {"anterior": "stroked", "posterior": "–", "Background": "–"})
        assert page.answer["suggestion"][0] == asked
        page.keys("0", "Shift+ArrowUp", "Space", "ArrowLeft", "ArrowLeft", "Space")
        page.steps(2)
        page.until(lambda: page.answer["suggestion"][0] != asked, "the slice is done")
        page.until(lambda: _labels(page) == {"anterior": "–", "posterior": "–", "Background": "–"})
        drawn = bench.store.drawing("case-0", "ann").steps
        assert all(isinstance(prompt, ScribblePrompt) for step in drawn for prompt in step)
        assert {(prompt.axis, prompt.index) for step in drawn for prompt in step} == {(asked["axis"], asked["index"])}


@pytest.mark.long
def test_where_slices_are_asked_for_nothing_is_said(tmp_path: Path, browser: Any) -> None:
    with workbench(tmp_path / "home", cases=1) as bench, visiting(browser, bench) as page:
        page.sign_in("ann")
        page.open("case-0")
        assert not page.page.locator("#guide").is_visible()
