"""OHIF, as MONAI Label ships it, in a real browser against a real archive: connects, a click, our mask.

The test needs a minute, most of it for the volume to be drawn without a graphics card. The screenshots lie in its
temporary folder: ``pytest --basetemp=…`` keeps them where one can look at them.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium
from ct import Series, ct_series
from orthanc import Orthanc, orthanc
from played_studio import REACH, PlayedStudio, played_workbench
from workbench import Workbench, password

from wardround.client.cases.dicom.importing import import_series
from wardround.client.cases.dicom.register import FOLDER, Register
from wardround.client.cases.dicom.series import find_series
from wardround.client.cases.store import CaseStore
from wardround.client.home import SiteHome
from wardround.client.intake import STORE
from wardround.client.workbench.monai_label import nrrd
from wardround.client.workbench.monai_label.desk import POINTS

PATIENCE = 180_000
SHOWN = "Array.from(services.segmentationService.getLabelmapVolume('1').voxelManager.getCompleteScalarDataArray())"
"""The voxels that OHIF lays over the image, x fastest."""

PLACED = (
    "cornerstoneTools.annotation.state.getAllAnnotations().some(one => one.metadata.toolName === 'ProbeMONAILabel')"
)
"""Whether a click has become a point."""
ARMED = """() => {
    const { viewports, activeViewportId } = services.viewportGridService.getState();
    const group = services.toolGroupService.getToolGroupForViewport(activeViewportId);
    return group?.toolOptions?.ProbeMONAILabel?.mode === 'Active';
}"""
"""Whether a press of the mouse draws a point."""
CHOSEN = """name => {
    const row = [...document.querySelectorAll('tr.clickable-row')].find(
        one => one.offsetParent && one.innerText.includes(name));
    return row !== undefined && !['', 'transparent'].includes(row.style.backgroundColor);
}"""
"""Whether the structure is the one that points are of."""


def arrive(series: Series, folder: Path, pacs: Orthanc) -> Any:
    """What brings the series into the archive and, by the importer, into a site's store."""
    folder.mkdir()
    for number, data in enumerate(series.files):
        (folder / f"{number}.dcm").write_bytes(data)
        pacs.upload(data)

    def prepare(home: SiteHome) -> None:
        (home.keys).mkdir(mode=0o700, exist_ok=True)
        home.pacs_password("archive").write_text(pacs.password)
        (found,) = find_series(folder).volumes
        with CaseStore(home.site / STORE) as store, Register(home.site / FOLDER) as register:
            import_series(store, register, found)

    return prepare


def settings(pacs: Orthanc, ohif: Path) -> str:
    """Lines of site.toml that name the viewer and the archive."""
    archive = f'[[pacs]]\nname = "archive"\ndicomweb = "{pacs.dicomweb}"\nuser = "{pacs.user}"\n'
    return f'ohif = "{ohif}"\n{archive}'


def click_in_ohif(bench: Workbench, series: Series, folder: Path) -> tuple[list[int], Any, Any]:
    """Open the study, connect, click into the ball, run: the click, our mask, and what OHIF then shows."""
    folder.mkdir()
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        said: list[str] = []
        page.on("console", lambda line: said.append(line.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        signed_in = page.request.post(f"{bench.url}/api/v1/login", data={"name": "ann", "password": password("ann")})
        assert signed_in.ok, signed_in.text()
        page.goto(f"{bench.url}/ohif/monai-label?StudyInstanceUIDs={series.study}", timeout=PATIENCE)
        page.get_by_text("Confirm and Hide").click(timeout=PATIENCE)
        axial = page.locator("canvas.cornerstone-canvas").first
        axial.wait_for(timeout=PATIENCE)
        # The image has come when its slice is counted in the corner.
        page.get_by_text(f"/{series.volume.shape[2]})").first.wait_for(timeout=PATIENCE)
        page.screenshot(path=folder / "opened.png")
        # Where the server is stands there already.
        assert page.locator("#monailabelServerURL").input_value() == f"{bench.url}/"
        page.locator(".settingsTable .actionButton").click()
        page.locator("label.tab-label", has_text="Point Prompts").click(timeout=PATIENCE)
        page.wait_for_function("services.segmentationService.getLabelmapVolume('1') !== undefined", timeout=PATIENCE)
        page.locator("tr.clickable-row:visible", has_text="anterior").click()
        page.wait_for_function(CHOSEN, arg="anterior", timeout=PATIENCE)
        page.wait_for_function(ARMED, timeout=PATIENCE)
        box = axial.bounding_box()
        assert box is not None
        columns, rows, _ = series.volume.shape
        pixel = box["width"] * 0.87 / columns  # OHIF leaves a margin round an image
        x = box["x"] + box["width"] / 2 + (series.centre[0] - columns / 2) * pixel
        y = box["y"] + box["height"] / 2 + (series.centre[1] - rows / 2) * pixel
        # Held until the point is there: on a busy machine a short press is over before OHIF has looked at it.
        page.mouse.move(x, y)
        page.mouse.down()
        page.wait_for_function(PLACED, timeout=PATIENCE)
        page.mouse.up()
        run = page.locator(".tab-content:visible .actionButton", has_text="Run")
        with page.expect_response(lambda one: f"/infer/{POINTS}" in one.url, timeout=PATIENCE) as found:
            run.click(timeout=PATIENCE)
        answer = found.value
        assert answer.status == 200, answer.text()
        page.get_by_text("Running Inference for Point Prompts - Successful").wait_for(timeout=PATIENCE)
        page.wait_for_function(f"{SHOWN}.some(value => value > 0)", timeout=PATIENCE)
        page.wait_for_timeout(500)  # a frame, for the screenshot; nothing waits for it
        page.screenshot(path=folder / "mask.png")
        form = answer.request.post_data or ""
        (asked,) = [line for line in form.splitlines() if line.startswith("{")]
        shown = np.array(page.evaluate(SHOWN), dtype=np.uint8).reshape(series.volume.shape, order="F")
        *_, click = json.loads(asked)["anterior"]
        return click, nrrd.decode(answer.body()).volume, shown


@pytest.mark.long
@pytest.mark.network
@pytest.mark.parametrize("studio", [PlayedStudio, None], ids=["played", "real"])
def test_ohif_connects_and_shows_the_mask_of_a_click(monai_label: Path, tmp_path: Path, studio: Any) -> None:
    series = ct_series()
    ohif = monai_label / "monailabel" / "endpoints" / "static" / "ohif"
    with orthanc() as pacs:
        prepare = arrive(series, tmp_path / "series", pacs)
        more = {"prepare": prepare, "settings": settings(pacs, ohif), "studio": studio}
        with played_workbench(tmp_path / "home", **more) as bench:
            click, mask, shown = click_in_ohif(bench, series, tmp_path / "screens")
    assert np.abs(np.array(click) - series.centre).max() <= 3, "the click went astray"
    assert mask.same_grid(series.volume)
    assert mask.array[tuple(click)] == 1
    if studio is not None:
        assert mask.array.sum() == (2 * REACH + 1) ** 3
    # OHIF shows the label that was clicked, and that one only.
    assert np.array_equal(shown, mask.array == 1), "OHIF shows other voxels than were sent"
