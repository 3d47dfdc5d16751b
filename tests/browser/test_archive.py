"""From the archive to the browser and back: an image is pulled, drawn on by mouse, accepted, and its label sent."""

import io
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium
from dicoms import MR, encoded, series
from orthanc import Orthanc, orthanc
from pydicom import dcmread
from workbench import Workbench, workbench
from workbench_page import Page, visiting

from wardround.client.cases.dicom.export import export_label
from wardround.client.cases.dicom.register import FOLDER, Register
from wardround.client.cases.dicom.segments import read_seg
from wardround.client.cases.nifti import read_image
from wardround.client.cases.store import CaseStore
from wardround.client.home import SiteHome
from wardround.client.intake import STORE
from wardround.deploy.cli import run

LABELS = ("anterior", "posterior")


def pull(pacs: Orthanc, home: SiteHome) -> None:
    """As an administrator does it: name the archive in site.toml, keep its password, and pull."""
    with home.settings_file.open("a") as settings:
        settings.write(f'\n[[pacs]]\nname = "archive"\ndicomweb = "{pacs.dicomweb}"\nuser = "{pacs.user}"\n')
    place = SiteHome(home.path)
    password = place.pacs_password("archive")
    password.parent.mkdir(exist_ok=True)
    password.touch(0o600)
    password.write_text(pacs.password)
    (study,) = {str(dcmread(io.BytesIO(pacs.file(one))).StudyInstanceUID) for one in pacs.instances()}
    assert run(["site", "pull", "--study", study, "--home", str(home.path)]) == 0


def send(path: Path, case_id: str, author: str) -> Mapping[str, Any]:
    """What a site's workbench does with an accepted label."""
    home = SiteHome(path)
    with CaseStore(home.site / STORE) as store, Register(home.site / FOLDER) as register:
        return export_label(home, store, register, case_id, author)


def draw(page: Page) -> None:
    """A stroke of each structure and one of the background, and the suggested slice looked up."""
    columns, rows = page.ask("workbench.viewer.grid.size(workbench.viewer.active)")
    strokes = [("1", 0.4, 0.4, 0.6), ("2", 0.6, 0.4, 0.6), ("0", 0.1, 0.1, 0.9)]
    for step, (key, height, left, right) in enumerate(strokes):
        page.keys("s", key)
        page.drag("axial", (columns * left, rows * height), (columns * right, rows * height))
        page.steps(step + 1)
    version, proxy = page.layer("proxy")
    assert version >= 0
    assert {1, 2} <= set(np.unique(proxy))
    page.keys("n")
    asked = page.answer["suggestion"][0]
    assert page.ask("workbench.painter.cursor")[asked["axis"]] == asked["index"]


@pytest.mark.data
@pytest.mark.long
def test_a_real_hippocampus_goes_from_the_archive_to_a_person_and_back(tmp_path: Path) -> None:
    (first, *_) = sorted(Path(os.environ["WARDROUND_DATA"]).glob("hippocampus/**/imagesTr/*.nii.gz"))
    image = read_image(first)
    stored = np.rint(image.array * (4000 / image.array.max())).astype(np.int16)
    objects = series(stored, image.affine, kind=MR, name="hippocampus")
    with orthanc() as pacs, chromium() as browser:
        for one in objects:
            pacs.upload(encoded(one))
        home = tmp_path / "home"
        with workbench(home, cases=0, labels=LABELS, prepare=partial(pull, pacs), export=partial(send, home)) as bench:
            there_and_back(bench, browser, pacs, stored)


def there_and_back(bench: Workbench, browser: Any, pacs: Orthanc, stored: np.ndarray) -> None:
    (case_id,) = bench.store.cases("stream")
    assert sorted(bench.store.image(case_id).shape) == sorted(stored.shape)
    assert np.array_equal(np.sort(bench.store.image(case_id).array, axis=None), np.sort(stored, axis=None))
    with visiting(browser, bench) as page:
        page.sign_in("ann")
        page.open(case_id)
        draw(page)
        page.keys("Shift+A")
        page.until(lambda: bench.store.label(case_id, "ann") is not None)
    before = set(pacs.instances())
    answer = bench.client("ann").post(f"/api/v1/cases/{case_id}/export", json={"author": "ann"})
    assert answer.status_code == 200, answer.text
    (new,) = set(pacs.instances()) - before
    label = bench.store.label(case_id, "ann")
    assert label is not None
    back = read_seg(dcmread(io.BytesIO(pacs.file(new))), bench.store.image(case_id), names=LABELS)
    assert np.array_equal(back.array, label.array), "what was accepted is what lies in the archive"
    assert {1, 2} <= set(np.unique(back.array))
