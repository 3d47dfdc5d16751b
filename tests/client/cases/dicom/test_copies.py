"""Copies for others: the same image, nobody's name, and as valid as the original."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicoms import affine_of, convert, enhanced, noise, save, series
from pydicom import dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless

from wardround.client.cases.dicom.copies import write_copies
from wardround.client.cases.dicom.deidentify import Options
from wardround.client.cases.dicom.importing import read_series
from wardround.client.cases.dicom.register import Register
from wardround.client.cases.dicom.series import find_series
from wardround.errors import UsageError

AXIAL = affine_of(np.eye(3), (1, 1, 2), (3, 4, 5))
DATA = os.environ.get("WARDROUND_DATA")


@pytest.fixture
def register(tmp_path: Path) -> Iterator[Register]:
    with Register(tmp_path / "register") as opened:
        yield opened


# Long, and with letters: four digits are now and then among the forty of a new UID.
WORDS = ("KOWALCZYK", "Kowalczyk", "HOSPITAL-0815-QZ")


def patient(dataset: Any, _: int) -> None:
    dataset.PatientName, dataset.PatientID, dataset.StudyDescription = "KOWALCZYK^JANE", WORDS[2], "for KOWALCZYK"
    words = np.frombuffer(dataset.PixelData, "<u2") | np.uint16(0xF000)  # an overlay in the upper bits
    dataset.PixelData = words.tobytes()


@pytest.mark.parametrize("packed", ["no", "JPEG-LS", "big endian"])
def test_a_copy_is_the_same_image_of_nobody(packed: str, register: Register, tmp_path: Path) -> None:
    datasets = series(noise((8, 6, 4), low=-2048, high=2048), AXIAL, bits=12, change=patient)
    if packed == "JPEG-LS":
        for dataset in datasets:
            dataset.compress(JPEGLSLossless, generate_instance_uid=False)
            (stream,) = generate_frames(dataset.PixelData, number_of_frames=1)
            dataset.PixelData = encapsulate([stream[:2] + b"\xff\xfe\x00\x0cKOWALCZYK^" + stream[2:]])  # a comment
    folder = save(datasets, tmp_path / "Kowalczyk Jane")
    if packed == "big endian":
        if shutil.which("dcmconv") is None:
            pytest.skip("dcmtk is not installed")
        folder = convert(folder, tmp_path / "Jane", "dcmconv", "+te")
    report = find_series(folder)
    assert write_copies(report, tmp_path / "copies", Options(), register) == 4
    paths = [path for path in (tmp_path / "copies").rglob("*") if path.is_file()]
    assert len(paths) == 4
    before = [path.read_bytes() for path in folder.iterdir()]
    assert all(word.encode() in data for data in before for word in (WORDS[0], WORDS[2])), "there is something to find"
    for path in paths:
        data = path.read_bytes()
        assert not any(word.encode() in data for word in (*WORDS, str(datasets[0].StudyInstanceUID)))
        assert dcmread(path).file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert (np.frombuffer(dcmread(path).PixelData, "<u2") < 4096).all()
        assert not any(word in str(path.relative_to(tmp_path)) for word in (*WORDS, datasets[0].SeriesInstanceUID))
    (old,) = report.volumes
    (after,) = find_series(tmp_path / "copies").volumes
    assert after.series_uid == register.new_uid(old.series_uid)
    one, other = read_series(register, old)[0], read_series(register, after)[0]
    assert np.array_equal(one.array, other.array)
    assert np.array_equal(one.affine, other.affine)


def test_frames_of_one_object_are_copied_as_one(register: Register, tmp_path: Path) -> None:
    report = find_series(save([enhanced(noise((5, 4, 6)), AXIAL)], tmp_path / "dicom"))
    assert write_copies(report, tmp_path / "copies", Options(), register) == 1
    (after,) = find_series(tmp_path / "copies").volumes
    assert np.array_equal(read_series(register, report.volumes[0])[0].array, read_series(register, after)[0].array)


def test_copies_go_nowhere_where_something_is(register: Register, tmp_path: Path) -> None:
    report = find_series(save(series(noise((4, 4, 3)), AXIAL), tmp_path / "dicom"))
    with pytest.raises(UsageError, match="not empty"):
        write_copies(report, tmp_path / "dicom", Options(), register)


def faults(path: Path) -> set[str]:
    """What the validator of dicom3tools finds, without the places that name items."""
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, errors="replace", check=False)
    return {line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")}


@pytest.mark.data
@pytest.mark.skipif(DATA is None, reason="WARDROUND_DATA names no folder of real images")
@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
@pytest.mark.parametrize("options", [Options(), Options(dates="shift", retain_patient_characteristics=True)])
def test_a_copy_of_a_real_image_has_no_fault_that_the_original_did_not_have(
    options: Options, register: Register, tmp_path: Path
) -> None:
    cases = Path(DATA or "") / "dicom_cases"
    for name in ("ct_head_phantom_axial", "ct_with_dicom_seg/ct", "mr_t1_sagittal_hfs", "mr_hippocampus_crop/Study1"):
        report = find_series(cases / name)
        write_copies(report, tmp_path / name, options, register)
        new = next((tmp_path / name).rglob("*.dcm"))
        uid = register.original_uid(new.stem)
        (old,) = (
            path for path in (cases / name).iterdir() if dcmread(path, stop_before_pixels=True).SOPInstanceUID == uid
        )
        assert faults(new) - faults(old) == set(), name
