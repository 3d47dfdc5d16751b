"""Labels become segmentations of the original series, and segmentations become labels, voxel for voxel."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
from dicoms import CT, MR, affine_of, enhanced, noise, rotation, save, series
from highdicom.seg import Segmentation, segread
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from wardround.client.cases.dicom.codes import PRIVATE_SCHEME, category, meaning, type_of
from wardround.client.cases.dicom.importing import read_series
from wardround.client.cases.dicom.register import Register, SourceSeries
from wardround.client.cases.dicom.segmentation import Made, Origin, encoded, write_seg
from wardround.client.cases.dicom.segments import read_seg
from wardround.client.cases.dicom.series import find_series
from wardround.client.cases.volume import Volume
from wardround.errors import DataError, GeometryError, SeriesRefused

DATA = os.environ.get("WARDROUND_DATA")
SHAPE = (12, 10, 7)
TURNED = affine_of(rotation(0.3, -0.4, 0.9), (0.8, 0.9, 2.5), (-100.5, 20.25, 7.0))
DAY = datetime(2026, 3, 1, 12, 30)
CANARY = "KOWALSKA^EWA"


@pytest.fixture
def register(tmp_path: Path) -> Iterator[Register]:
    with Register(tmp_path / "register") as opened:
        yield opened


def read(register: Register, folder: Path, **options: Any) -> tuple[Volume, SourceSeries]:
    (found,) = find_series(folder).volumes
    return read_series(register, found, **options)


def origin(made: Made = "SEMIAUTOMATIC", **changes: Any) -> Origin:
    return Origin(**{"made": made, "author": "ann", "model": "0123abcd", "round": 4, "when": DAY} | changes)


def some_labels(image: Volume, *, seed: int = 0, most: int = 2) -> Volume:
    """Specks of all labels, so that no two directions or slices are alike."""
    drawn = np.random.default_rng(seed)
    array = drawn.integers(0, most + 1, image.shape) * (drawn.random(image.shape) < 0.4)
    return image.with_array(array.astype(np.uint8))


def reread(dataset: Dataset) -> Dataset:
    return dcmread(BytesIO(encoded(dataset)))


def complaints(dataset: Dataset, path: Path) -> list[str]:
    """What dciodvfy says against it; that it does not know our own code scheme is no fault."""
    path.write_bytes(encoded(dataset))
    said = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, timeout=60, check=False)
    lines = [line for line in said.stderr.splitlines() if line.startswith(("Error", "Warning"))]
    return [line for line in lines if f"<{PRIVATE_SCHEME}>" not in line and "DICOMDIR" not in line]


@pytest.mark.parametrize("kind", ["single", "enhanced", "flipped"])
def test_what_is_written_is_read_voxel_for_voxel(tmp_path: Path, register: Register, kind: str) -> None:
    flips = np.diag([1.0, -1.0, -1.0]) if kind == "flipped" else np.eye(3)
    affine = affine_of(rotation(0.3, -0.4, 0.9) @ flips, (0.8, 0.9, 2.5), (-100.5, 20.25, 7.0))
    made = [enhanced(noise(SHAPE), affine)] if kind == "enhanced" else series(noise(SHAPE), affine, kind=MR)
    image, source = read(register, save(made, tmp_path / "in"))
    labels = some_labels(image)
    seg = reread(write_seg(source, labels, ["liver", "spot"], origin()))
    assert (read_seg(seg, image, frame_of_reference=source.frame_of_reference_uid).array == labels.array).all()
    # An oracle that does not share our reader: highdicom's own, on the originals' positions.
    volume = Segmentation.from_dataset(seg).get_volume(combine_segments=True)
    whole = Volume(np.asarray(volume.array, np.uint8), np.asarray(volume.affine))
    assert (lookup(whole, image, labels.array.shape) == labels.array).all()


def lookup(found: Volume, image: Volume, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Values of `found` at the centres of the voxels of `image`; 0 outside."""
    index = np.stack(np.meshgrid(*(np.arange(side) for side in shape), indexing="ij"), axis=-1).reshape(-1, 3)
    places = index @ image.affine[:3, :3].T + image.affine[:3, 3]
    inverse = np.linalg.inv(found.affine)
    exact = places @ inverse[:3, :3].T + inverse[:3, 3]
    near = np.round(exact).astype(int)
    assert np.abs(exact - near).max() < 1e-3
    inside = ((near >= 0) & (near < found.shape)).all(axis=1)
    values = np.zeros(len(near), np.uint8)
    values[inside] = found.array[tuple(near[inside].T)]
    return values.reshape(shape)


def test_a_segmentation_says_what_it_is_and_where_it_comes_from(tmp_path: Path, register: Register) -> None:
    def named(dataset: Dataset, _: int) -> None:
        dataset.SpecificCharacterSet, dataset.PatientName, dataset.PatientID = "ISO_IR 100", "M\u00fcller^Jo", "77"

    image, source = read(register, save(series(noise(SHAPE), TURNED, change=named), tmp_path / "in"))
    labels = some_labels(image, most=1)
    seg = reread(write_seg(source, labels, ["Liver", "r\u00e9gion\\2"], origin()))
    assert (str(seg.PatientName), seg.PatientID) == ("M\u00fcller^Jo", "77")
    assert (seg.StudyInstanceUID, seg.FrameOfReferenceUID) == (source.study_uid, source.frame_of_reference_uid)
    assert seg.SeriesInstanceUID != source.series_uid
    one, two = seg.SegmentSequence
    assert (one.SegmentLabel, two.SegmentLabel) == ("Liver", "r\u00e9gion/2")
    assert one.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert two.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == PRIVATE_SCHEME
    assert one.SegmentAlgorithmType == "SEMIAUTOMATIC"
    (algorithm,) = one.SegmentationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmName == "Wardround"
    assert "0123abcd" in algorithm.AlgorithmParameters
    referenced = {item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == source.series_uid
    assert referenced == {header.SOPInstanceUID for header in source.instances}
    for group in seg.PerFrameFunctionalGroupsSequence:
        (used,) = group.DerivationImageSequence[0].SourceImageSequence
        (under,) = [one for one in source.instances if one.SOPInstanceUID == used.ReferencedSOPInstanceUID]
        assert list(group.PlanePositionSequence[0].ImagePositionPatient) == list(under.ImagePositionPatient)


def test_who_drew_by_hand_used_no_algorithm(tmp_path: Path, register: Register) -> None:
    image, source = read(register, save(series(noise(SHAPE), TURNED), tmp_path / "in"))
    (segment,) = reread(write_seg(source, some_labels(image, most=1), ["x"], origin("MANUAL"))).SegmentSequence
    assert segment.SegmentAlgorithmType == "MANUAL"
    assert "SegmentationAlgorithmIdentificationSequence" not in segment


def test_the_same_label_is_the_same_object(tmp_path: Path, register: Register) -> None:
    image, source = read(register, save(series(noise(SHAPE), TURNED), tmp_path / "in"))
    labels = some_labels(image)
    first, again = (encoded(write_seg(source, labels, [], origin())) for _ in range(2))
    assert first == again
    other = dcmread(BytesIO(encoded(write_seg(source, some_labels(image, seed=1), [], origin()))))
    assert other.SOPInstanceUID != dcmread(BytesIO(first)).SOPInstanceUID
    assert other.SeriesInstanceUID == dcmread(BytesIO(first)).SeriesInstanceUID


@pytest.mark.parametrize("present", [(), (1,), (3,)])
def test_labels_without_a_voxel_keep_their_number(tmp_path: Path, register: Register, present: tuple[int, ...]) -> None:
    image, source = read(register, save(series(noise(SHAPE), TURNED), tmp_path / "in"))
    labels = some_labels(image, most=3)
    labels = labels.with_array(np.where(np.isin(labels.array, present), labels.array, 0))
    seg = reread(write_seg(source, labels, ["a", "b", "c", "d"], origin()))
    assert [segment.SegmentNumber for segment in seg.SegmentSequence] == [1, 2, 3, 4]
    assert (read_seg(seg, image).array == labels.array).all()


def test_a_resampled_case_has_frames_of_its_own(tmp_path: Path, register: Register) -> None:
    def tilted(dataset: Dataset, k: int) -> None:
        dataset.ImagePositionPatient = [-10.0, 5.0 + 0.7 * k, 2.5 * k]

    upright = affine_of(np.eye(3), (0.8, 0.9, 2.5), (-10, 5, 0))
    folder = save(series(noise(SHAPE), upright, change=tilted), tmp_path / "in")
    image, source = read(register, folder, tilt="resample")
    assert source.resampled
    assert image.shape != SHAPE
    labels = some_labels(image)
    seg = reread(write_seg(source, labels, [], origin()))
    assert (read_seg(seg, image).array == labels.array).all()
    with pytest.raises(GeometryError):
        write_seg(source, Volume(np.zeros(SHAPE, np.uint8), upright), [], origin())


def test_part_of_an_enhanced_object_is_labelled_on_its_own_frames(tmp_path: Path, register: Register) -> None:
    dataset = enhanced(noise((12, 10, 8)), TURNED)
    groups = dataset.PerFrameFunctionalGroupsSequence
    for group in groups:
        late = group.FrameContentSequence[0].InStackPositionNumber > 4
        group.FrameContentSequence[0].TemporalPositionIndex = 1 + late
        if late:  # the second phase lies where the first one does
            place = group.PlanePositionSequence[0]
            moved = np.array(place.ImagePositionPatient, float) - 4 * TURNED[:3, 2]
            place.ImagePositionPatient = [f"{one:.10f}" for one in moved]
    folder = save([dataset], tmp_path / "in")
    found = find_series(folder).volumes
    assert len(found) == 2
    for volume in found:
        image, source = read_series(register, volume)
        labels = some_labels(image)
        assert (read_seg(reread(write_seg(source, labels, [], origin())), image).array == labels.array).all()


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (Debian: dicom3tools)")
@pytest.mark.parametrize("made", ["SEMIAUTOMATIC", "MANUAL"])
@pytest.mark.parametrize("kind", ["single", "enhanced", "empty"])
def test_an_independent_checker_finds_no_fault(tmp_path: Path, register: Register, kind: str, made: Made) -> None:
    images = [enhanced(noise(SHAPE), TURNED)] if kind == "enhanced" else series(noise(SHAPE), TURNED)
    image, source = read(register, save(images, tmp_path / "in"))
    labels = some_labels(image)
    if kind == "empty":
        labels = labels.with_array(np.zeros_like(labels.array))
    seg = write_seg(source, labels, ["liver", "my own"], origin(made))
    assert complaints(seg, tmp_path / "seg.dcm") == []
    del seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence
    assert complaints(seg, tmp_path / "seg.dcm") != []


def test_headers_that_leave_out_or_garble_a_patient_do_not_stop_an_export(
    tmp_path: Path, register: Register, caplog: pytest.LogCaptureFixture
) -> None:
    def garbled(dataset: Dataset, _: int) -> None:
        for name in ("PatientID", "FrameOfReferenceUID"):
            del dataset[name]
        dataset.PatientName, dataset.PatientSex, dataset.PatientBirthDate = CANARY, "W", "1.1.1951"

    image, source = read(register, save(series(noise(SHAPE), TURNED, change=garbled), tmp_path / "in"))
    labels = some_labels(image)
    seg = reread(write_seg(source, labels, [], origin()))
    assert (str(seg.PatientName), seg.PatientSex, seg.PatientBirthDate) == (CANARY, "", "")
    assert seg.FrameOfReferenceUID
    assert "KOWALSKA" not in caplog.text


# --- reading -----------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(tmp_path: Path, register: Register) -> tuple[Volume, Volume, Dataset]:
    """An image, its labels, and a segmentation of them that may be changed."""
    image, source = read(register, save(series(noise(SHAPE), TURNED), tmp_path / "in"))
    labels = some_labels(image)
    return image, labels, reread(write_seg(source, labels, ["liver", "spot"], origin()))


def planes(labels: Volume) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(np.asarray(labels.array, np.uint8).transpose(2, 1, 0))


def other_kind(seg: Dataset, kind: str, stored: npt.NDArray[Any], number: int = 1) -> Dataset:
    """The same segmentation with one frame a slice, of another kind of pixels; positions from scratch."""
    seg.SegmentationType, seg.NumberOfFrames = kind, len(stored)
    seg.BitsAllocated = seg.BitsStored = 8 * stored.dtype.itemsize
    seg.HighBit = seg.BitsStored - 1
    frames = []
    for k in range(len(stored)):
        frame, place, of = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [f"{one:.9f}" for one in (TURNED @ [0, 0, k, 1])[:3]]
        of.ReferencedSegmentNumber = number
        frame.PlanePositionSequence = [place]
        if kind != "LABELMAP":
            frame.SegmentIdentificationSequence = [of]
        frames.append(frame)
    seg.PerFrameFunctionalGroupsSequence = frames
    seg.PixelData = stored.tobytes()
    if kind == "LABELMAP":
        seg.SOPClassUID = seg.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.7"
    return seg


def test_label_maps_and_fractions_are_read(drawn: tuple[Volume, Volume, Dataset]) -> None:
    image, labels, seg = drawn
    for dtype in (np.uint8, np.uint16):
        assert (read_seg(other_kind(seg, "LABELMAP", planes(labels).astype(dtype)), image).array == labels.array).all()
    seg.compress(RLELossless)
    assert (read_seg(reread(seg), image).array == labels.array).all()


def test_a_fraction_counts_from_a_half_on(drawn: tuple[Volume, Volume, Dataset]) -> None:
    image, _, seg = drawn
    seg.MaximumFractionalValue = 200
    stored = np.random.default_rng(1).integers(90, 111, (SHAPE[2], SHAPE[1], SHAPE[0])).astype(np.uint8)
    found = read_seg(other_kind(seg, "FRACTIONAL", stored, number=2), image).array
    assert (found == np.where(stored >= 100, 2, 0).transpose(2, 1, 0)).all()


def test_frames_may_be_turned_and_cropped(drawn: tuple[Volume, Volume, Dataset]) -> None:
    image, labels, seg = drawn
    one = (labels.array == 1).astype(np.uint8)[3:10, 2:8]
    # Columns run along -j, rows along +i: a frame [row, column] is [i, -j].
    other_kind(seg, "LABELMAP", np.ascontiguousarray(one[:, ::-1].transpose(2, 0, 1)))
    seg.Rows, seg.Columns = one.shape[:2]
    shared = seg.SharedFunctionalGroupsSequence[0]
    directions = TURNED[:3, :3] / np.linalg.norm(TURNED[:3, :3], axis=0)
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [*-directions[:, 1], *directions[:, 0]]
    shared.PixelMeasuresSequence[0].PixelSpacing = [0.8, 0.9]
    for k, group in enumerate(seg.PerFrameFunctionalGroupsSequence):
        place = (TURNED @ [3, 2 + one.shape[1] - 1, k, 1])[:3]
        group.PlanePositionSequence[0].ImagePositionPatient = [f"{value:.9f}" for value in place]
    expected = np.zeros_like(labels.array)
    expected[3:10, 2:8] = one
    assert (read_seg(seg, image).array == expected).all()


def test_names_decide_where_all_are_known(drawn: tuple[Volume, Volume, Dataset]) -> None:
    image, labels, seg = drawn
    swapped = np.choose(labels.array, [0, 2, 1])
    assert (read_seg(seg, image, names=["Spot", "LIVER"]).array == swapped).all()
    assert (read_seg(seg, image, names=["a", "b"]).array == labels.array).all()
    with pytest.raises(SeriesRefused) as refused:
        read_seg(seg, image, names=["spot", "b"])
    assert refused.value.reason == "unclear-names"


def test_segments_that_overlap_are_refused_or_decided(drawn: tuple[Volume, Volume, Dataset]) -> None:
    image, _, seg = drawn
    # Both segments get the pixels of one.
    for group in seg.PerFrameFunctionalGroupsSequence:
        group.PlanePositionSequence[0].ImagePositionPatient = [f"{value:.9f}" for value in TURNED[:3, 3]]
    with pytest.raises(SeriesRefused) as refused:
        read_seg(seg, image)
    assert refused.value.reason == "overlapping-segments"
    each = [read_seg(seg, image, segments=[number]).array for number in (1, 2)]
    assert (read_seg(seg, image, overlaps="highest").array == np.maximum(*each)).all()
    assert (read_seg(seg, image, overlaps="lowest").array == np.where(each[0] > 0, each[0], each[1])).all()


def _place(seg: Dataset, *values: float) -> None:
    seg.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient = list(values)


def _without(name: str) -> Any:
    return lambda seg: delattr(seg, name)


HOSTILE: dict[str, tuple[Any, str]] = {
    "half a voxel off": (lambda seg: _place(seg, *(TURNED @ [0.5, 0, 0, 1])[:3]), "other-grid"),
    "beside the image": (lambda seg: _place(seg, *(TURNED @ [5, 0, 0, 1])[:3]), "outside-image"),
    "below the image": (lambda seg: _place(seg, *(TURNED @ [0, 0, -1, 1])[:3]), "outside-image"),
    "nowhere": (lambda seg: _place(seg, float("nan"), 0, 0), "damaged-label"),
    "in a flat position": (lambda seg: _place(seg, 0), "damaged-label"),
    "pixels cut short": (lambda seg: setattr(seg, "PixelData", seg.PixelData[:4]), "damaged-label"),
    "four thousand million frames": (lambda seg: setattr(seg, "NumberOfFrames", 2**32 - 1), "damaged-label"),
    "more frames than groups": (lambda seg: setattr(seg, "NumberOfFrames", 99), "damaged-label"),
    "wide frames": (lambda seg: (setattr(seg, "Rows", 65535), setattr(seg, "Columns", 65535)), "damaged-label"),
    "wide frames, few bytes": (lambda seg: setattr(seg, "Rows", 16000), "damaged-label"),
    "no frames' places": (_without("PerFrameFunctionalGroupsSequence"), "damaged-label"),
    "no segments": (_without("SegmentSequence"), "damaged-label"),
    "no pixels": (_without("PixelData"), "damaged-label"),
    "another kind of object": (lambda seg: setattr(seg, "SOPClassUID", CT), "not-a-segmentation"),
    "another patient": (lambda seg: setattr(seg, "FrameOfReferenceUID", "1.2.3"), "other-frame-of-reference"),
    "a segment that is not there": (
        lambda seg: setattr(
            seg.PerFrameFunctionalGroupsSequence[0].SegmentIdentificationSequence[0], "ReferencedSegmentNumber", 9
        ),
        "damaged-label",
    ),
    "a segment of a high number": (
        lambda seg: setattr(seg.SegmentSequence[1], "SegmentNumber", 300), "too-many-labels",
    ),
    "an unknown way to store": (lambda seg: setattr(seg, "SegmentationType", "MESH"), "damaged-label"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_segmentations_are_refused_without_a_word_about_them(
    drawn: tuple[Volume, Volume, Dataset], what: str, caplog: pytest.LogCaptureFixture
) -> None:
    image, _, seg = drawn
    change, reason = HOSTILE[what]
    own = seg.FrameOfReferenceUID
    seg.PatientName = CANARY
    seg.SegmentSequence[0].SegmentLabel = CANARY
    change(seg)
    with pytest.raises(SeriesRefused) as refused:
        read_seg(seg, image, frame_of_reference=own)
    assert refused.value.reason == reason
    assert "KOWALSKA" not in str(refused.value) + caplog.text


def test_names_become_codes_that_others_know() -> None:
    assert type_of("Left_Ventricle").value == "87878005"
    assert type_of("tumour").value == type_of("Tumor").value == "108369006"
    assert category("liver").meaning == "Anatomical Structure"
    assert type_of("zone A") == type_of("zone A") != type_of("zone B")
    assert len(type_of("x" * 64).value) <= 16
    assert meaning("a\\b\n") == "a/b"
    assert meaning("\n") == "unnamed"


@pytest.mark.data
@pytest.mark.skipif(DATA is None, reason="WARDROUND_DATA does not name a folder of real images")
def test_real_segmentations_have_the_voxels_they_are_known_to_have(register: Register) -> None:
    folder = Path(DATA or "") / "dicom_cases"
    expected = json.loads((folder / "expected.json").read_text())
    image, source = read(register, folder / "ct_with_dicom_seg" / "ct")
    place = folder / "ct_with_dicom_seg" / "seg"
    options = {"frame_of_reference": source.frame_of_reference_uid}
    liver = read_seg(dcmread(place / "liver.dcm"), image, **options)
    known = expected["ct_with_dicom_seg/seg/liver.dcm"]["voxels_per_slice_by_z"]
    assert liver.array.sum(axis=(0, 1), dtype=int).tolist() == known
    reference = sitk.ReadImage(folder / "ct_with_dicom_seg" / "reference_nrrd" / "liver_seg.nrrd")
    assert (liver.array == sitk.GetArrayFromImage(reference).T).all()
    several = dcmread(place / "partial_overlaps.dcm")
    for number, voxels in expected["ct_with_dicom_seg/seg/partial_overlaps.dcm"]["voxels"].items():
        one = read_seg(several, image, segments=[int(number)], **options)
        assert int((one.array == int(number)).sum()) == voxels
    with pytest.raises(SeriesRefused) as refused:
        read_seg(several, image, **options)
    assert refused.value.reason == "overlapping-segments"
    again = write_seg(source, liver, ["liver"], origin())
    assert (read_seg(reread(again), image, **options).array == liver.array).all()
    assert segread(BytesIO(encoded(again))).number_of_segments == 1


def test_what_cannot_be_written_is_a_plain_error(tmp_path: Path, register: Register) -> None:
    image, source = read(register, save(series(noise(SHAPE), TURNED), tmp_path / "in"))
    del source.instances[0].SOPClassUID
    with pytest.raises(DataError, match="segmentation"):
        write_seg(source, some_labels(image), [], origin())
