"""DICOM in and out of the protocol: series that are sent, segmentations that are answered."""

import io
import json
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from ct import Series, ct_series
from dicoms import affine_of, encoded, noise, rotation
from dicoms import series as dicom_series
from played_studio import REACH, played_workbench
from workbench import Workbench

from wardround.client.cases import nifti
from wardround.client.cases.dicom.importing import import_series
from wardround.client.cases.dicom.register import FOLDER, Register
from wardround.client.cases.dicom.series import find_series
from wardround.client.cases.store import CaseStore
from wardround.client.home import SiteHome
from wardround.client.intake import STORE
from wardround.client.workbench.monai_label.desk import AUTOMATIC, POINTS
from wardround.client.workbench.monai_label.series import read_dicom
from wardround.errors import DataError, SeriesRefused

SHAPE = (7, 6, 5)
# Oblique, and with slices against the normal: nothing in it is where it would be by accident.
AFFINE = affine_of(rotation(0.3, -0.2, 0.5), (1.5, 2.0, 3.0), (10, -20, 30))
NOBODY = "Canary^Carla"


def oblique_files() -> list[bytes]:
    return [encoded(one) for one in dicom_series(noise(SHAPE), AFFINE, name="sent")]


def zipped(files: list[bytes], name: str = "{}") -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number, data in enumerate(files):
            archive.writestr(name.format(number), data)
    return packed.getvalue()


@pytest.mark.parametrize("pack", [lambda files: files, lambda files: [zipped(files, "../../{}")]], ids=["files", "zip"])
def test_a_series_is_one_volume(tmp_path: Path, pack: Any) -> None:
    found = read_dicom(pack(oblique_files()), tmp_path / "there")
    assert found.shape == SHAPE
    assert np.allclose(found.affine, AFFINE, atol=1e-4)
    assert list((tmp_path / "there").iterdir()) == [], "nothing of it stays"
    assert [one.name for one in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize(
    "files",
    [
        [b"nothing", b"nothing"],
        [zipped([])],
        [zipped([b"nothing"])],
        [b"PK\x03\x04 no archive"],
        [b"\0" * 128 + b"DICM" + b"\xff" * 400],
        oblique_files()[:1],
        oblique_files() + list(ct_series((8, 8, 4)).files),
    ],
)
def test_what_is_not_one_volume_is_refused(tmp_path: Path, files: list[bytes]) -> None:
    with pytest.raises(DataError):
        read_dicom(files, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_uneven_slices_are_refused(tmp_path: Path) -> None:
    files = oblique_files()
    with pytest.raises(SeriesRefused):
        read_dicom([*files[:2], *files[3:]], tmp_path)


@pytest.fixture(scope="module")
def series() -> Series:
    return ct_series((12, 10, 8), patient=NOBODY)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, series: Series) -> Iterator[Workbench]:
    """A site that serves OHIF, with a case that came from DICOM. Its archive is not asked for anything."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "ohif").mkdir()
    (folder / "series").mkdir()
    for number, data in enumerate(series.files):
        (folder / "series" / str(number)).write_bytes(data)

    def prepare(home: SiteHome) -> None:
        home.keys.mkdir(mode=0o700, exist_ok=True)
        home.pacs_password("archive").write_text("secret")
        with CaseStore(home.site / STORE) as store, Register(home.site / FOLDER) as register:
            import_series(store, register, find_series(folder / "series").volumes[0])

    pacs = '[[pacs]]\nname = "archive"\ndicomweb = "http://127.0.0.1:9/dicom-web"\nuser = "wardround"\n'
    settings = f'ohif = "{folder / "ohif"}"\n{pacs}'
    with played_workbench(folder / "home", prepare=prepare, settings=settings) as running:
        yield running


def infer(client: httpx.Client, model: str, params: Any, **query: Any) -> httpx.Response:
    return client.post(f"/infer/{model}", params=query, files={"params": (None, json.dumps(params))})


@pytest.mark.parametrize("clicked", [True, False])
def test_a_mask_comes_as_a_segmentation_of_its_series(bench: Workbench, series: Series, clicked: bool) -> None:
    click = (5, 4, 3)
    model, params = (POINTS, {"posterior": [click]}) if clicked else (AUTOMATIC, {})
    answer = infer(bench.client("ann"), model, params, image=series.series, output="dicom_seg")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/dicom"
    assert NOBODY not in answer.headers["content-disposition"]
    found = pydicom.dcmread(io.BytesIO(answer.content))
    (referenced,) = found.ReferencedSeriesSequence
    assert (found.StudyInstanceUID, referenced.SeriesInstanceUID) == (series.study, series.series)
    assert [one.SegmentLabel for one in found.SegmentSequence] == ["anterior", "posterior"]
    made = "SEMIAUTOMATIC" if clicked else "AUTOMATIC"
    assert {one.SegmentAlgorithmType for one in found.SegmentSequence} == {made}
    assert ("ann" in str(found.get("ContentCreatorName", ""))) is clicked
    if not clicked:
        return
    # Every frame lies where the series has the slice, with the voxels of the cube.
    origin = series.volume.affine[:3, 3]
    drawn = {}
    for frame, pixels in zip(found.PerFrameFunctionalGroupsSequence, found.pixel_array, strict=True):
        place = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        k = round((place - origin)[2] / series.volume.spacing[2])
        assert np.allclose(place, series.volume.affine[:3] @ [0, 0, k, 1])
        drawn[k] = {(int(column), int(row)) for row, column in np.argwhere(pixels)}
    cube = {(i, j) for i in range(5 - REACH, 6 + REACH) for j in range(4 - REACH, 5 + REACH)}
    assert {k: voxels for k, voxels in drawn.items() if voxels} == {
        k: cube for k in range(click[2] - REACH, click[2] + REACH + 1)
    }


def test_a_segmentation_needs_a_series(bench: Workbench) -> None:
    ann = bench.client("ann")
    image = nifti.encode(bench.store.image("case0"))
    sent = ann.post(f"/infer/{POINTS}", params={"output": "dicom_seg"}, files={"file": ("x.nii.gz", image)})
    for answer in (infer(ann, POINTS, {}, image="case0", output="dicom_seg"), sent):
        assert answer.status_code == 409
        assert "series" in answer.json()["error"]["problem"]


def test_where_the_archive_is_closed_no_reply_says_who_the_patient_is(tmp_path: Path, series: Series) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    for number, data in enumerate(series.files):
        (folder / str(number)).write_bytes(data)

    def prepare(home: SiteHome) -> None:
        with CaseStore(home.site / STORE) as store, Register(home.site / FOLDER) as register:
            import_series(store, register, find_series(folder).volumes[0])

    with played_workbench(tmp_path / "home", prepare=prepare) as running:
        answer = infer(running.client("ann"), POINTS, {}, image=series.series, output="dicom_seg")
        assert answer.status_code == 409
        assert NOBODY not in answer.text


@pytest.mark.parametrize("packed", [False, True])
def test_a_session_takes_a_series(bench: Workbench, series: Series, packed: bool) -> None:
    """With a click by voxels of the volume, and a mask where SimpleITK finds the slices of the series."""
    ann = bench.client("ann")
    files = [zipped(list(series.files))] if packed else list(series.files)
    sent = [("files", (f"{NOBODY}-{number}.dcm", data)) for number, data in enumerate(files)]
    made = ann.put("/session/", params={"uncompress": packed}, files=sent)
    assert made.status_code == 200, made.text
    assert "Canary" not in made.text
    answer = infer(ann, POINTS, {"anterior": [[5, 4, 3]]}, session_id=made.json()["session_id"], output="image")
    path = bench.home.path / "mask.nrrd"
    path.write_bytes(answer.content)
    mask = sitk.ReadImage(str(path))
    assert mask.GetSize() == series.volume.shape
    assert mask.GetPixel(5, 4, 3) == 1
    place = mask.TransformIndexToPhysicalPoint((5, 4, 3))
    assert np.allclose(place, (series.volume.affine @ [5, 4, 3, 1])[:3], atol=1e-3)
    assert ann.delete(f"/session/{made.json()['session_id']}").status_code == 200


def test_a_session_of_two_series_says_so(bench: Workbench, series: Series) -> None:
    other = ct_series((8, 8, 4)).files
    sent = [("files", (str(number), data)) for number, data in enumerate([*series.files, *other])]
    answer = bench.client("ann").put("/session/", files=sent)
    assert answer.status_code == 422
    broken = bench.client("ann").put("/session/", files={"files": ("x", b"PK\x03\x04 no archive")})
    assert broken.status_code == 422
    assert str(bench.home.path) not in broken.text
    assert set(answer.json()["error"]) == {"code", "problem", "cause", "fix"}


def test_who_goes_away_in_the_middle_of_an_upload_leaves_nothing(bench: Workbench) -> None:
    token, folder = bench.token("ann"), bench.home.site / "viewers" / "sessions"
    before = sorted(folder.rglob("*")) if folder.exists() else []
    host, _, port = bench.url.removeprefix("http://").partition(":")
    cases = bench.store.cases()
    for method, path, name in (("PUT", "/session/", "files"), ("PUT", "/datastore/image?image=new", "file")):
        with socket.create_connection((host, int(port)), timeout=60) as line:
            head = f"{method} {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n"
            kind = "content-type: multipart/form-data; boundary=x\r\ncontent-length: 50000000\r\n\r\n"
            part = f'--x\r\ncontent-disposition: form-data; name="{name}"; filename="a"\r\n\r\n'
            line.sendall((head + kind + part).encode() + b"\x1f\x8b" * 100_000)
    assert bench.client("ann").get("/info/").status_code == 200
    assert bench.store.cases() == cases
    assert (sorted(folder.rglob("*")) if folder.exists() else []) == before
