"""What is found in a source: volumes told apart, everything else counted with a reason, and nothing believed."""

import os
import re
import struct
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicoms import CT, MR, SECONDARY_CAPTURE, affine_of, encoded, enhanced, noise, rotation, save, series
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian

from wardround.client.cases.dicom import kinds
from wardround.client.cases.dicom import series as series_module
from wardround.client.cases.dicom.kinds import REASONS
from wardround.client.cases.dicom.series import FoundVolume, find_series
from wardround.client.cases.dicom.sources import Limits
from wardround.errors import DataError

AXIAL = affine_of(np.eye(3), (1, 1, 2), (0, 0, 0))
SAGITTAL = affine_of(rotation(0.0, np.pi / 2, 0.0), (1, 1, 2), (0, 0, 0))


def zipped(folder: Path, path: Path, **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


def places(volume: FoundVolume) -> list[float]:
    return [frame.position[2] for frame in volume.frames]


def test_series_are_told_apart_and_sorted_whatever_their_files_are_called(tmp_path: Path) -> None:
    both = series(noise((4, 4, 5)), AXIAL, name="one") + series(noise((4, 4, 3)), AXIAL, name="two", kind=MR)
    save(both, tmp_path / "a" / "b")
    report = find_series(tmp_path)
    assert sorted(len(volume.frames) for volume in report.volumes) == [3, 5]
    assert all(places(volume) == [2.0 * k for k in range(len(volume.frames))] for volume in report.volumes)
    assert all(volume.part == "" for volume in report.volumes)
    assert (report.skipped, report.files) == ({}, 8)


def test_an_archive_holds_what_the_folder_holds(tmp_path: Path) -> None:
    save(series(noise((4, 4, 5)), AXIAL), tmp_path / "dicom" / "deep")
    (tmp_path / "dicom" / "readme.txt").write_text("x")
    from_folder = find_series(tmp_path / "dicom")
    archive = zipped(tmp_path / "dicom", tmp_path / "all.zip", compression=zipfile.ZIP_DEFLATED)
    from_archive = find_series(archive)
    assert [volume.frames for volume in from_folder.volumes] == [volume.frames for volume in from_archive.volumes]
    assert from_folder.skipped == from_archive.skipped == {"not-dicom": 1}


def in_one_series(*groups: list[Any]) -> list[Any]:
    datasets = [dataset for group in groups for dataset in group]
    for dataset in datasets:
        for name in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
            setattr(dataset, name, getattr(datasets[0], name))
    return datasets


def marked(name: str, **values: Any) -> list[Any]:
    def mark(dataset: Any, _: int) -> None:
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    return series(noise((4, 4, 5)), AXIAL, kind=MR, name=name, change=mark)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"EchoNumbers": 1}, {"EchoNumbers": 2}),
        ({"EchoTime": "4.6"}, {"EchoTime": "9.2"}),
        ({"TemporalPositionIdentifier": 1}, {"TemporalPositionIdentifier": 2}),
        ({"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M"]}, {"ImageType": ["ORIGINAL", "PRIMARY", "P"]}),
        ({"DiffusionBValue": 0.0}, {"DiffusionBValue": 1000.0}),
    ],
)
def test_a_series_of_two_volumes_at_one_place_is_split(
    one: dict[str, Any], other: dict[str, Any], tmp_path: Path
) -> None:
    save(in_one_series(marked("a", **one), marked("b", **other)), tmp_path)
    report = find_series(tmp_path)
    assert [len(volume.frames) for volume in report.volumes] == [5, 5]
    assert len({volume.part for volume in report.volumes}) == 2
    assert all(volume.stack is not None and volume.stack.is_even for volume in report.volumes)


def test_two_volumes_that_no_header_tells_apart_stay_together_and_have_duplicates(tmp_path: Path) -> None:
    both = in_one_series(marked("a"), marked("b"))
    for number, dataset in enumerate(both):
        dataset.AcquisitionNumber = number  # tells slices apart, not volumes
    save(both, tmp_path)
    (volume,) = find_series(tmp_path).volumes
    assert volume.stack is not None
    assert volume.stack.duplicates == 5


def test_a_number_that_is_another_one_for_each_slice_splits_nothing(tmp_path: Path) -> None:
    def count(dataset: Any, k: int) -> None:
        dataset.AcquisitionNumber, dataset.TriggerTime, dataset.EchoTime = k, str(k), "5"

    save(series(noise((4, 4, 6)), AXIAL, change=count), tmp_path)
    (volume,) = find_series(tmp_path).volumes
    assert (len(volume.frames), volume.part) == (6, "")


def test_acquisitions_one_above_the_other_are_two_volumes_only_if_together_they_are_uneven(tmp_path: Path) -> None:
    far = affine_of(np.eye(3), (1, 1, 2), (0, 0, 100))
    upper = series(noise((4, 4, 5)), far, kind=MR, name="b")
    for dataset in upper:
        dataset.AcquisitionNumber = 2
    save(in_one_series(marked("a", AcquisitionNumber=1), upper), tmp_path / "apart")
    assert len(find_series(tmp_path / "apart").volumes) == 2
    near = affine_of(np.eye(3), (1, 1, 2), (0, 0, 10))
    upper = series(noise((4, 4, 5)), near, kind=MR, name="b")
    for dataset in upper:
        dataset.AcquisitionNumber = 2
    save(in_one_series(marked("a", AcquisitionNumber=1), upper), tmp_path / "together")
    assert [len(volume.frames) for volume in find_series(tmp_path / "together").volumes] == [10]


def test_orientations_and_sizes_are_volumes_of_their_own(tmp_path: Path) -> None:
    three = in_one_series(
        series(noise((4, 4, 5)), AXIAL, name="a"),
        series(noise((4, 4, 3)), SAGITTAL, name="b"),
        series(noise((6, 4, 2)), AXIAL, name="c"),
    )
    save(three, tmp_path)
    report = find_series(tmp_path)
    assert sorted(len(volume.frames) for volume in report.volumes) == [2, 3, 5]
    assert len({volume.part for volume in report.volumes}) == 3
    # The same from any names of files, so that a case keeps its id.
    save(three[::-1], tmp_path / "again")
    again = find_series(tmp_path / "again")
    assert [volume.part for volume in again.volumes] == [volume.part for volume in report.volumes]


def test_one_image_among_a_volume_does_not_rename_it(tmp_path: Path) -> None:
    save(in_one_series(marked("a"), series(noise((4, 4, 1)), SAGITTAL, kind=MR, name="b")), tmp_path)
    report = find_series(tmp_path)
    assert [(volume.part, len(volume.frames)) for volume in report.volumes] == [("", 5)]
    assert report.skipped == {"single-image": 1}


def of_kind(kind: str, **values: Any) -> Any:
    (dataset,) = series(noise((4, 4, 1)), AXIAL, kind=kind, name=kind + str(values))
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


KINDS = "1.2.840.10008.5.1.4.1.1."


@pytest.mark.parametrize(
    ("dataset", "reason"),
    [
        (of_kind(SECONDARY_CAPTURE), "secondary-capture"),
        (of_kind(KINDS + "7.2"), "secondary-capture"),
        (of_kind(KINDS + "88.33"), "structured-report"),
        (of_kind(KINDS + "88.59"), "key-object"),
        (of_kind(KINDS + "11.1"), "presentation-state"),
        (of_kind(KINDS + "66.4"), "segmentation"),
        (of_kind(KINDS + "66"), "raw-data"),
        (of_kind(KINDS + "66.1"), "registration"),
        (of_kind(KINDS + "481.3"), "radiotherapy"),
        (of_kind(KINDS + "104.1"), "document"),
        (of_kind("1.2.3.4"), "unsupported-kind"),
        (of_kind(CT, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localizer"),
        (of_kind(CT, SamplesPerPixel=3), "colour"),
        (of_kind(CT, BurnedInAnnotation="YES"), "burned-in-annotation"),
        (of_kind(CT, ImagePositionPatient=None), "no-geometry"),
        (of_kind(CT, PixelSpacing=["0", "1"]), "no-geometry"),
        (of_kind(CT, PixelSpacing=["1", "nan"]), "no-geometry"),
        (of_kind(CT, NumberOfFrames=4), "no-geometry"),
        (of_kind(CT, NumberOfFrames=2_000_000_000), "too-many-frames"),
        (of_kind(CT, Rows=None), "no-pixels"),
        (of_kind(CT, SeriesInstanceUID="../../etc/passwd"), "no-uid"),
        (of_kind(CT), "single-image"),
    ],
)
def test_what_is_no_volume_has_a_reason(dataset: Any, reason: str, tmp_path: Path) -> None:
    save([dataset], tmp_path)
    report = find_series(tmp_path)
    assert (report.volumes, report.skipped) == ((), {reason: 1})
    assert reason in REASONS


def test_the_same_file_twice_counts_once_and_another_of_the_same_uid_is_told(tmp_path: Path) -> None:
    datasets = series(noise((4, 4, 3)), AXIAL)
    save(datasets, tmp_path / "a")
    save(datasets[:2], tmp_path / "b")
    datasets[2].PixelData = bytes(len(datasets[2].PixelData))
    save(datasets[2:], tmp_path / "c")
    report = find_series(tmp_path)
    assert [len(volume.frames) for volume in report.volumes] == [3]
    assert report.skipped == {"repeated": 2, "conflicting": 1}


def test_links_pipes_and_what_is_no_dicom_are_left_out(tmp_path: Path) -> None:
    outside = save(series(noise((4, 4, 3)), AXIAL, name="outside"), tmp_path / "outside")
    folder = save(series(noise((4, 4, 3)), AXIAL), tmp_path / "dicom")
    (folder / "link").symlink_to(sorted(outside.iterdir())[0])
    (folder / "folder").symlink_to(outside)
    (folder / "round").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    (folder / "empty").write_bytes(b"")
    (folder / "text").write_text("hello")
    (folder / "archive").write_bytes(b"PK\x03\x04" + bytes(200))
    report = find_series(folder)
    assert len(report.volumes) == 1
    assert report.skipped == {"symlink": 3, "not-a-file": 1, "empty": 1, "not-dicom": 1, "archive": 1}


def test_a_file_without_preamble_is_read(tmp_path: Path) -> None:
    folder = save(series(noise((4, 4, 3)), AXIAL), tmp_path / "dicom")
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[132:])
    assert len(find_series(folder).volumes) == 1


def deep(levels: int) -> bytes:
    """A header with sequences within sequences."""
    data = encoded(of_kind(CT))
    at = data.index(b"\x10\x00\x10\x00")  # before PatientName
    open_ = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    close = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    return data[:at] + open_ * levels + close * levels + data[at:]


def oversized() -> bytes:
    """A header whose first element declares four gigabytes."""
    data = bytearray(encoded(of_kind(CT)))
    at = data.index(b"\x08\x00\x08\x00CS")
    return bytes(data[:at]) + b"\x08\x00\x08\x00UT\0\0\xfe\xff\xff\xff" + bytes(data[at + 8 :])


def deflated() -> bytes:
    dataset = of_kind(CT)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.PixelData = bytes(50_000_000)
    return encoded(dataset)


@pytest.mark.parametrize("data", [deep(5000), oversized(), deflated()], ids=["deep", "oversized", "deflated"])
def test_a_hostile_header_is_unreadable_and_does_no_harm(data: bytes, tmp_path: Path) -> None:
    folder = save(series(noise((4, 4, 3)), AXIAL), tmp_path)
    (folder / "hostile").write_bytes(data)
    report = find_series(folder)
    assert len(report.volumes) == 1
    assert sum(report.skipped.values()) == 1
    assert set(report.skipped) <= {"unreadable", "no-uid", "not-dicom", "no-geometry", "no-pixels"}


GOOD = encoded(series(noise((3, 3, 1)), AXIAL)[0])
FRAMES = encoded(enhanced(noise((3, 3, 2)), AXIAL))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([GOOD, FRAMES]), st.data())
def test_no_damaged_file_ever_raises(good: bytes, data: st.DataObject) -> None:
    damaged = bytearray(good[: data.draw(st.integers(0, len(good)))] if data.draw(st.booleans()) else good)
    for _ in range(data.draw(st.integers(0, 8))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("x", bytes(damaged))
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"wardround-damaged-{os.getpid()}.zip"
    path.write_bytes(stream.getvalue())
    try:
        report = find_series(path)
    finally:
        path.unlink()
    assert sum(len(volume.frames) for volume in report.volumes) + sum(report.skipped.values()) >= 1


def test_a_file_of_broken_groups_is_unreadable(tmp_path: Path) -> None:
    dataset = enhanced(noise((3, 3, 4)), AXIAL)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(list(dataset.PerFrameFunctionalGroupsSequence)[:2])
    save([dataset], tmp_path)
    assert find_series(tmp_path).skipped == {"unreadable": 1}


@pytest.mark.parametrize("what", ["entries", "total", "ratio", "directory"])
def test_an_archive_that_would_not_fit_is_refused(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(series(noise((64, 64, 6)), AXIAL), tmp_path / "dicom")
    archive = zipped(folder, tmp_path / "all.zip", compression=zipfile.ZIP_DEFLATED)
    monkeypatch.setattr("wardround.client.cases.dicom.sources._RATIO_FROM", 0)
    limits = {
        "entries": Limits(files=5),
        "total": Limits(archive_bytes=40_000),
        "ratio": Limits(ratio=1.01),
        "directory": Limits(directory_bytes=100),
    }[what]
    assert len(find_series(archive).volumes) == 1
    with pytest.raises(DataError):
        find_series(archive, limits)


def test_a_real_bomb_is_refused_by_the_usual_limits(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x", "w") as stream:
        for _ in range(300):
            stream.write(bytes(1 << 20))
    with pytest.raises(DataError, match="not unpacked"):
        find_series(path)


def test_entries_are_never_paths_and_links_in_archives_are_left_out(tmp_path: Path) -> None:
    datasets = series(noise((4, 4, 3)), AXIAL)
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number, dataset in enumerate(datasets):
            archive.writestr(f"../../../../tmp/evil-{number}", encoded(dataset))
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    before = set(Path("/tmp").glob("evil-*"))
    report = find_series(path)
    assert len(report.volumes) == 1
    assert report.volumes[0].files[0].read()[128:132] == b"DICM"
    assert report.skipped == {"symlink": 1}
    assert set(Path("/tmp").glob("evil-*")) == before
    assert sorted(tmp_path.iterdir()) == [path]


def test_an_entry_that_declares_less_than_it_holds_gives_no_more_than_it_declares(tmp_path: Path) -> None:
    path = tmp_path / "all.zip"
    data = encoded(of_kind(CT)) + bytes(1 << 20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x", data)
    raw = bytearray(path.read_bytes())
    at = raw.index(b"PK\x01\x02")
    struct.pack_into("<L", raw, at + 24, 200)
    path.write_bytes(bytes(raw))
    report = find_series(path)
    assert report.volumes == ()
    assert sum(report.skipped.values()) == 1


@pytest.mark.parametrize("packing", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_an_entry_that_is_unpacked_only_as_a_whole_is_left_out(packing: int, tmp_path: Path) -> None:
    folder = save(series(noise((4, 4, 3)), AXIAL), tmp_path / "dicom")
    assert find_series(zipped(folder, tmp_path / "all.zip", compression=packing)).skipped == {"compression": 3}


def test_encrypted_entries_and_archives_within_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", encoded(of_kind(CT)))
        archive.writestr("b", b"PK\x03\x04" + bytes(200))
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(raw))
    assert find_series(path).skipped == {"encrypted": 1, "archive": 1}


def test_a_damaged_archive_and_a_missing_source_are_told(tmp_path: Path) -> None:
    path = tmp_path / "all.zip"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(DataError, match="damaged"):
        find_series(path)
    with pytest.raises(DataError, match="cannot read"):
        find_series(tmp_path / "nowhere")


def test_every_reason_in_the_code_is_in_the_list() -> None:
    source = Path(series_module.__file__).read_text()
    used = set(re.findall(r'_Skip\("([a-z-]+)"', source)) | set(kinds._OTHER_CLASSES.values())
    assert used <= set(REASONS)


def test_two_patients_or_two_studies_in_one_series_are_two_volumes(tmp_path: Path) -> None:
    for name in ("PatientID", "StudyInstanceUID"):
        datasets = series(noise((4, 4, 8)), AXIAL, name=name)
        for k, dataset in enumerate(datasets):
            setattr(dataset, name, f"1.2.{k % 2}")
        save(datasets, tmp_path / name)
        one, other = find_series(tmp_path / name).volumes
        assert (len(one.frames), len(other.frames)) == (4, 4)
        assert one.part != other.part
        assert places(one) == [0, 4, 8, 12]
        assert places(other) == [2, 6, 10, 14]
    assert (one.study_uid, other.study_uid) == ("1.2.0", "1.2.1")


def test_a_series_of_countless_orientations_is_no_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def turn(dataset: Any, k: int) -> None:
        dataset.ImageOrientationPatient = [np.cos(k // 2), np.sin(k // 2), 0, -np.sin(k // 2), np.cos(k // 2), 0]

    save(series(noise((4, 4, 8)), AXIAL, change=turn), tmp_path)
    monkeypatch.setattr(series_module, "MOST_ORIENTATIONS", 4)
    assert len(find_series(tmp_path).volumes) == 4
    monkeypatch.setattr(series_module, "MOST_ORIENTATIONS", 3)
    assert find_series(tmp_path).skipped == {"single-image": 8}


@pytest.mark.parametrize("name", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
@pytest.mark.parametrize("uid", ["..", ".", "1..2", "/etc", "1.2/3"])
def test_a_uid_that_could_be_a_path_is_none(name: str, uid: str, tmp_path: Path) -> None:
    datasets = series(noise((4, 4, 3)), AXIAL)
    for number, dataset in enumerate(datasets):
        setattr(dataset, name, uid)
        (tmp_path / str(number)).write_bytes(encoded(dataset))
    assert find_series(tmp_path).skipped == {"no-uid": 3}


def test_progress_is_told_file_by_file(tmp_path: Path) -> None:
    save(series(noise((4, 4, 3)), AXIAL), tmp_path)
    told: list[tuple[int, int]] = []
    find_series(tmp_path, told=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
