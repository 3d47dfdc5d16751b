"""`wardround site import` of DICOM: what is printed, what is stored, and who is never named."""

import logging
import sqlite3
import subprocess
import sys
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from canaries import files, find
from dicoms import CT, MR, affine_of, encoded, noise, save, series
from living import make_home
from pydicom import dcmread
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset

from wardround.client.arrivals import IMPORTED, REFERENCE
from wardround.client.cases.dicom.importing import read_series
from wardround.client.cases.dicom.register import FOLDER, Register
from wardround.client.cases.dicom.segmentation import Origin, write_seg
from wardround.client.cases.dicom.series import find_series
from wardround.client.cases.nifti import write_volume
from wardround.client.cases.store import CaseStore
from wardround.client.cases.volume import Volume
from wardround.client.home import SiteHome
from wardround.client.intake import STORE
from wardround.client.removal import finish_removal, remove_case
from wardround.deploy.cli import run
from wardround.errors import DataError, GeometryError, SeriesRefused, StorageError, UsageError

AXIAL = affine_of(np.eye(3), (1, 1, 2), (0, 0, 0))
DAY = datetime(2026, 3, 1)
TEXT = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    return make_home(tmp_path / "home", cases=0, tests=0)


def bring(home: SiteHome, source: Path, *options: str) -> int:
    return run(["site", "import", str(source), *options, "--home", str(home.path)])


def stored(home: SiteHome) -> tuple[str, ...]:
    with CaseStore(home.site / STORE) as store:
        return store.cases()


def tilt(dataset: Any, k: int) -> None:
    dataset.ImagePositionPatient = [0, 0.5 * k, 2 * k]


@pytest.mark.parametrize("kind", ["dicom", "nifti"])
def test_a_case_that_comes_again_after_a_removal_that_was_interrupted_stays(
    home: SiteHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "dicom":
        source = save(series(noise((4, 4, 5)), AXIAL), tmp_path / "dicom")
    else:
        source = tmp_path / "image.nii.gz"
        write_volume(source, Volume(np.ones((4, 4, 5), np.float32), AXIAL))
    assert bring(home, source) == 0
    (case,) = stored(home)

    remove = CaseStore.remove

    def remove_and_die(store: CaseStore, case_id: str) -> None:
        remove(store, case_id)
        raise KeyboardInterrupt

    with CaseStore(home.site / STORE) as store, monkeypatch.context() as patch:
        patch.setattr(CaseStore, "remove", remove_and_die)
        with pytest.raises(KeyboardInterrupt):
            remove_case(home, store, case)
    assert stored(home) == ()
    assert bring(home, source) == 0
    with CaseStore(home.site / STORE) as store:
        finish_removal(home, store)  # As at the next start.
    assert stored(home) == (case,)


def test_what_can_be_imported_is_and_what_cannot_has_a_reason(
    home: SiteHome, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = save(series(noise((4, 4, 5)), AXIAL), tmp_path / "dicom" / "good")
    save(series(noise((4, 4, 5)), AXIAL, kind=MR, name="tilted", change=tilt), tmp_path / "dicom" / "tilted")
    (source / "notes.txt").write_text("hello")
    assert bring(home, tmp_path / "dicom") == DataError.exit_code
    said = capfd.readouterr()
    assert "2 volumes in 11 files; left out: files that are not DICOM (1)" in said.out
    assert "was not imported: gantry-tilt" in said.out
    assert "14.04 degrees" in said.out
    assert "1 new of 2 cases to learn from" in said.out
    assert "1 of 2 volumes were not imported" in said.err
    assert len(stored(home)) == 1
    assert bring(home, tmp_path / "dicom", "--tilt", "resample") == 0
    assert "1 new of 2 cases" in capfd.readouterr().out
    assert len(stored(home)) == 2
    assert bring(home, tmp_path / "dicom", "--tilt", "resample") == 0
    assert "0 new of 2 cases" in capfd.readouterr().out


def test_a_series_that_has_changed_does_not_keep_the_others_out(
    home: SiteHome, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    datasets = series(noise((4, 4, 5)), AXIAL)
    for dataset in datasets:
        dataset.SeriesInstanceUID = "1.2.1"  # the first in the order of UIDs
    assert bring(home, save(datasets[:3], tmp_path / "before")) == 0
    save(datasets, tmp_path / "dicom")
    save(series(noise((4, 4, 5)), AXIAL, kind=MR, name="other"), tmp_path / "dicom")
    capfd.readouterr()
    assert bring(home, tmp_path / "dicom") == DataError.exit_code
    said = capfd.readouterr()
    assert "was not imported: not-usable" in said.out
    assert "imported before, with other images" in said.out
    assert "1 new of 2 cases" in said.out
    assert len(stored(home)) == 2


def test_an_archive_and_a_label_that_lies_on_the_grid(
    home: SiteHome, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for number, dataset in enumerate(series(noise((4, 4, 5)), AXIAL)):
            archive.writestr(str(number), encoded(dataset))
    label, other = tmp_path / "label.nii.gz", tmp_path / "other.nii.gz"
    write_volume(label, Volume(np.ones((4, 4, 5), np.uint8), AXIAL))
    write_volume(other, Volume(np.ones((4, 4, 5), np.uint8), AXIAL + 1))
    assert bring(home, tmp_path / "all.zip", "--test") == UsageError.exit_code
    assert bring(home, tmp_path / "all.zip", "--test", "--label", str(other)) == GeometryError.exit_code
    assert stored(home) == ()
    assert bring(home, tmp_path / "all.zip", "--test", "--label", str(label)) == 0
    (case_id,) = stored(home)
    with CaseStore(home.site / STORE) as store:
        assert store.cases("test") == (case_id,)
        assert store.labelled(REFERENCE) == {case_id}
        assert store.labelled(IMPORTED) == frozenset()
    assert "1 new of 1 cases to be tested on" in capfd.readouterr().out


def test_an_import_that_ended_before_its_label_is_finished_by_the_next(
    home: SiteHome, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(series(noise((4, 4, 5)), AXIAL), tmp_path / "dicom")
    label = tmp_path / "label.nii.gz"
    write_volume(label, Volume(np.ones((4, 4, 5), np.uint8), AXIAL))
    typed = (home, tmp_path / "dicom", "--test", "--label", str(label))

    def killed(*_: object, **__: object) -> None:
        raise StorageError("the disk is full", "", "")

    with monkeypatch.context() as patch:
        patch.setattr(CaseStore, "save_label", killed)
        assert bring(*typed) == StorageError.exit_code
    with Register(home.site / FOLDER) as register:
        assert register.cases() == ()
    capfd.readouterr()
    assert bring(*typed) == 0
    assert "1 new of 1 cases" in capfd.readouterr().out
    with CaseStore(home.site / STORE) as store:
        assert store.labelled(REFERENCE) == set(stored(home))
    assert bring(*typed) == 0
    assert "0 new of 1 cases" in capfd.readouterr().out


def test_a_label_may_come_later(home: SiteHome, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save(series(noise((4, 4, 5)), AXIAL), tmp_path / "dicom")
    label = tmp_path / "label.nii.gz"
    write_volume(label, Volume(np.ones((4, 4, 5), np.uint8), AXIAL))
    assert bring(home, tmp_path / "dicom") == 0
    assert bring(home, tmp_path / "dicom", "--label", str(label)) == 0
    assert "known already; its label is new" in capfd.readouterr().out
    assert bring(home, tmp_path / "dicom", "--label", str(label)) == 0
    assert "its label is new" not in capfd.readouterr().out


def test_a_segmentation_whose_segments_overlap_is_taken_as_typed(
    home: SiteHome, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = save(series(noise((6, 5, 4)), AXIAL), tmp_path / "dicom")
    with Register(tmp_path / "elsewhere") as register:
        image, found = read_series(register, find_series(source).volumes[0])
    organ = np.zeros(image.shape, np.uint8)
    organ[1:5, 1:4, :] = 1
    organ[4:, 3:, :] = 2
    seg = write_seg(found, image.with_array(organ), ["organ", "tumour"], Origin("MANUAL", "ann", "", 0, DAY))
    # The tumour's frames also as the organ's: then it lies within.
    numbers = [group.SegmentIdentificationSequence[0] for group in seg.PerFrameFunctionalGroupsSequence]
    bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")[: len(numbers) * 30]
    frames = bits.reshape(len(numbers), -1)
    organs = dict(enumerate(one.ReferencedSegmentNumber for one in numbers))
    first, second = ([k for k, n in organs.items() if n == number] for number in (1, 2))
    frames[first] |= frames[second]
    seg.PixelData = np.packbits(frames.ravel(), bitorder="little").tobytes()
    label = tmp_path / "label.dcm"
    label.write_bytes(encoded(seg))
    assert bring(home, source, "--label", str(label)) == SeriesRefused.exit_code
    assert "overlapping-segments" in capfd.readouterr().out
    assert stored(home) == ()
    assert bring(home, source, "--label", str(label), "--overlap", "highest") == 0
    (case_id,) = stored(home)
    with CaseStore(home.site / STORE) as store:
        kept = store.label(case_id, IMPORTED)
    assert kept is not None
    assert np.array_equal(kept.array, organ)
    assert bring(home, source, "--label", str(label), "--overlap", "lowest") == DataError.exit_code
    assert "another label already" in capfd.readouterr().out


def test_options_of_other_kinds_of_cases_are_refused(home: SiteHome, tmp_path: Path) -> None:
    save(series(noise((4, 4, 5)), AXIAL), tmp_path / "dicom")
    save(series(noise((4, 4, 5)), AXIAL, name="two"), tmp_path / "dicom")
    assert bring(home, tmp_path / "dicom", "--id", "mine") == UsageError.exit_code
    assert bring(home, tmp_path / "dicom", "--case", "one") == UsageError.exit_code
    label = tmp_path / "label.nii.gz"
    write_volume(label, Volume(np.ones((4, 4, 5), np.uint8), AXIAL))
    assert bring(home, tmp_path / "dicom", "--label", str(label)) == UsageError.exit_code
    (tmp_path / "none").mkdir()
    assert bring(home, tmp_path / "none") == DataError.exit_code
    assert stored(home) == ()


def word(tag: int) -> str:
    """A word of its own for each attribute, so that one that is found says where it came from."""
    return f"QZ{tag:08X}ZQ"


def plant(dataset: Any, _: int) -> None:
    """A patient in every text of a header, in sequences and private attributes, beside what makes it an image."""
    for tag, (vr, *_rest) in DicomDictionary.items():
        if vr in TEXT and tag >> 16 not in (0, 2, 4):
            dataset.add_new(tag, vr, word(tag))
    item = Dataset()
    item.PatientName, item.PatientID = word(1), word(2)
    dataset.ReferencedPatientSequence = [item]
    dataset.private_block(0x0009, word(3), create=True).add_new(1, "LO", word(4))
    dataset.PatientBirthDate, dataset.SpecificCharacterSet = "19510203", "ISO_IR 192"
    dataset.file_meta.SourceApplicationEntityTitle = word(5)
    dataset.FrameOfReferenceUID = word(9)  # no UID, but readers take it and complain


def damaged(dataset: Any) -> list[bytes]:
    """Files of the same patient that are broken in ways that make readers talk."""
    data = encoded(dataset)
    pixels = data.index(b"\xe0\x7f\x10\x00OW")
    return [
        data[: pixels + 20],
        data[: len(data) // 2],
        data.replace(b"CS\x0c\x00MONOCHROME2 ", b"CS\x0c\x00" + word(7).encode()[:12]),
        data.replace(b"ISO_IR 192", word(8).encode()[:10]),
        data.replace(b"DS", b"IS"),
        data.replace(b"PN", b"UI"),
        data.replace(b"1.000000", word(10).encode()[:8]),
        data.replace(b"ISO_IR 192", word(8).encode()[:10]).replace(b"ORIGINAL", b"ORIG\xe4\xf6\xfcL"),
        data.replace(b"LO", b"OB"),
    ]


@pytest.mark.parametrize("how", ["folder", "archive"])
def test_nobody_is_named_anywhere_but_in_the_register(how: str, tmp_path: Path) -> None:
    """Of one good series, a tilted one and damaged files: everything said and everything stored is searched."""
    home = make_home(tmp_path / "home", cases=0, tests=0)
    folder = tmp_path / "DOE-JANE-19510203" / "DOE-JANE-FOLDER"
    good = series(noise((4, 4, 5)), AXIAL, change=plant)
    for dataset in good:
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    save(good, folder)

    def tilted(dataset: Any, k: int) -> None:
        plant(dataset, k)
        tilt(dataset, k)

    save(series(noise((4, 4, 5)), AXIAL, kind=MR, name="tilted", change=tilted), folder)
    for kind in (CT, MR):
        for number, data in enumerate(damaged(series(noise((4, 4, 3)), AXIAL, kind=kind, name=kind, change=plant)[1])):
            (folder / f"DOE-JANE-{kind}-{number}.dcm").write_bytes(data)
    source = folder
    if how == "archive":
        source = tmp_path / "upload.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for path in folder.iterdir():
                archive.write(path, f"DOE-JANE-FOLDER/DOE-JANE-{path.name}")
    script = (
        "import logging, sys; logging.basicConfig(level=logging.DEBUG); "
        "from wardround.deploy.cli import run; sys.exit(run(sys.argv[1:]))"
    )
    command = [sys.executable, "-W", "always", "-c", script, "site", "import", source.name, "--home", str(home.path)]
    # The path that the administrator typed may be said back; of what lies below it, nothing.
    done = subprocess.run(command, cwd=source.parent, capture_output=True, check=False, timeout=120)
    assert done.returncode == DataError.exit_code, done.stderr.decode()
    said = (done.stdout + done.stderr).replace(source.name.encode(), b"").replace(bytes(home.path), b"")
    words = [word(tag) for tag, (vr, *_) in DicomDictionary.items() if vr in TEXT] + [word(n) for n in range(1, 10)]
    uids = [str(good[0][name].value) for name in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")]
    needles = {text: text.encode() for text in [*words, *uids, word(8)[:10], "DOE-JANE", "19510203"]}
    assert find(needles, [said]) == set()
    register = home.site / FOLDER
    elsewhere = [
        data for data in files(home.path) if not data.startswith(str(register.relative_to(home.path)).encode())
    ]
    assert len(elsewhere) >= 3
    assert find(needles, elsewhere) == set()
    with Register(register) as opened:
        (case_id,) = opened.cases()
        assert opened.source(case_id).instances[0].PatientName == word(0x00100010)
        assert stored(home) == (case_id,)
    rows = sqlite3.connect(register / "register.sqlite").execute("SELECT series_uid FROM series").fetchall()
    assert find(needles, [str(rows).encode()]) == {uids[1]}


def test_reading_says_nothing_in_the_log(
    home: SiteHome, tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    caplog.set_level(logging.DEBUG)
    save(series(noise((4, 4, 5)), AXIAL, change=plant), tmp_path / "dicom")
    assert bring(home, tmp_path / "dicom") == 0
    assert "QZ" not in caplog.text
    assert not [warning for warning in recwarn if "QZ" in str(warning.message)]


def test_copies_are_made_by_the_options_that_were_typed(
    home: SiteHome, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def patient(dataset: Any, _: int) -> None:
        dataset.PatientName, dataset.PatientSex, dataset.PatientBirthDate = "DOE^JANE", "F", "19510203"

    source = save(series(noise((4, 4, 3)), AXIAL, change=patient), tmp_path / "dicom")
    typed = ["site", "deidentify", str(source), str(tmp_path / "copies"), "--home", str(home.path)]
    assert run([*typed, "--retain", "face"]) == UsageError.exit_code
    assert run([*typed, "--retain", "patient", "--dates", "shift"]) == 0
    assert "3 images of 1 volumes copied" in capfd.readouterr().out
    copies = [dcmread(path) for path in (tmp_path / "copies").rglob("*.dcm")]
    assert [(copy.PatientSex, copy.PatientName) for copy in copies] == [("F", "")] * 3
    assert {copy.LongitudinalTemporalInformationModified for copy in copies} == {"MODIFIED"}
    assert len({copy.StudyDate for copy in copies} - {"20200229"}) == 1
    assert run([*typed, "--retain", "patient"]) == UsageError.exit_code
    assert stored(home) == ()
