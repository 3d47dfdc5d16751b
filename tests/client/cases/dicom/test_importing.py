"""Series become cases: voxels and place as they are in the files, checked against SimpleITK and on real series."""

import json
import os
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
from dicoms import CT, MR, PET, affine_of, convert, encoded, enhanced, noise, rotation, save, series
from dying import die_at_line, forked
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from wardround import files
from wardround.client.arrivals import IMPORTED
from wardround.client.cases import store as store_module
from wardround.client.cases.dicom import importing
from wardround.client.cases.dicom import register as register_module
from wardround.client.cases.dicom.importing import import_series, read_series
from wardround.client.cases.dicom.register import Register
from wardround.client.cases.dicom.series import find_series
from wardround.client.cases.nifti import decode_image, encode
from wardround.client.cases.store import CaseStore
from wardround.client.cases.volume import Volume
from wardround.client.intake import add_label
from wardround.errors import DataError, SeriesRefused, StorageError

AXIAL = affine_of(np.eye(3), (0.8, 0.9, 2.5), (-100.5, 20.25, 7.0))
DATA = os.environ.get("WARDROUND_DATA")


@pytest.fixture
def register(tmp_path: Path) -> Iterator[Register]:
    with Register(tmp_path / "register") as opened:
        yield opened


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CaseStore]:
    with CaseStore(tmp_path / "store") as opened:
        yield opened


def read(register: Register, folder: Path, **options: Any) -> Volume:
    """The only volume of a folder."""
    (found,) = find_series(folder).volumes
    return read_series(register, found, **options)[0]


def read_by_simpleitk(folder: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def assert_is(volume: Volume, image: sitk.Image) -> None:
    """The same voxels at the same places, to a ten-thousandth of a millimetre at every corner."""
    assert volume.shape == image.GetSize()
    for corner in np.ndindex(2, 2, 2):
        index = [int(c * (n - 1)) for c, n in zip(corner, volume.shape, strict=True)]
        place = (volume.affine @ [*index, 1])[:3]
        assert np.abs(place - image.TransformIndexToPhysicalPoint(index)).max() < 1e-4
    assert np.array_equal(volume.array, sitk.GetArrayFromImage(image).transpose(2, 1, 0))


@pytest.mark.data
@pytest.mark.skipif(DATA is None, reason="WARDROUND_DATA names no folder of real images")
@pytest.mark.parametrize(
    "name", ["ct_head_phantom_axial", "mr_t1_sagittal_hfs", "ct_with_dicom_seg/ct", "mr_hippocampus_crop/Study1"]
)
def test_real_series_import_as_is_known_of_them(name: str, register: Register, store: CaseStore) -> None:
    cases = Path(DATA or "") / "dicom_cases"
    known = json.loads((cases / "expected.json").read_text())[name]
    (found,) = find_series(cases / name).volumes
    volume = store.image(import_series(store, register, found))
    assert volume.shape == tuple(known["size_xyz"])
    assert np.abs(np.subtract(volume.affine[:3, 3], known["first_position"])).max() < 1e-4
    assert np.abs(np.subtract(volume.spacing[:2], known["pixel_spacing_row_col"][::-1])).max() < 1e-4
    assert abs(volume.spacing[2] - known["slice_step_mm"]) < 1e-4
    assert found.stack is not None
    assert abs(found.stack.tilt - known["shear_degrees"]) < 1e-3
    values = volume.array.astype(np.float64)
    assert (values.min(), values.max(), values.sum()) == tuple(known[f"value_{what}"] for what in ("min", "max", "sum"))
    assert_is(volume, sitk.Cast(read_by_simpleitk(cases / name), sitk.sitkFloat32))


@pytest.mark.data
@pytest.mark.skipif(DATA is None, reason="WARDROUND_DATA names no folder of real images")
def test_all_real_files_are_a_volume_or_have_a_reason() -> None:
    report = find_series(Path(DATA or "") / "dicom_cases")
    assert len(report.volumes) == 4
    assert sum(len(volume.frames) for volume in report.volumes) + sum(report.skipped.values()) == report.files
    assert report.skipped["localizer"] == 1
    assert report.skipped["segmentation"] == 2


ANGLE = st.floats(-np.pi, np.pi)
SPACING = st.floats(0.2, 6.0)
PLACE = st.floats(-300, 300)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    angles=st.tuples(ANGLE, ANGLE, ANGLE),
    spacing=st.tuples(SPACING, SPACING, SPACING),
    origin=st.tuples(PLACE, PLACE, PLACE),
    shape=st.tuples(st.integers(2, 6), st.integers(2, 6), st.integers(2, 6)),
    backwards=st.booleans(),
)
def test_any_orthogonal_grid_comes_back_and_as_simpleitk_reads_it(  # noqa: PLR0917
    angles: tuple[float, float, float],
    spacing: tuple[float, float, float],
    origin: tuple[float, float, float],
    shape: tuple[int, int, int],
    backwards: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    affine = affine_of(rotation(*angles), spacing, origin)
    array = noise(shape)
    image = Volume(array.astype(np.float32), affine)
    if backwards:  # left-handed: slices count against their normal
        affine = affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, shape[2] - 1], [0, 0, 0, 1]])
        array = array[:, :, ::-1]
    save(series(array, affine, kind=MR), folder / "dicom")
    with Register(folder / "register") as register:
        volume = read(register, folder / "dicom")
    assert np.array_equal(volume.array, image.array)
    assert np.abs(volume.affine - image.affine).max() < 1e-4
    assert_is(volume, sitk.Cast(read_by_simpleitk(folder / "dicom"), sitk.sitkFloat32))
    # From NIfTI, which rounds to 32 bits, the same voxel is still at the same place.
    nifti = decode_image(encode(volume), folder)
    corners = np.array([[*(n * c for n, c in zip(shape, corner, strict=True)), 1] for corner in np.ndindex(2, 2, 2)])
    away = np.linalg.inv(volume.affine) @ (nifti.affine @ corners.T)
    assert np.abs(away[:3] - corners.T[:3]).max() < 0.5
    assert np.array_equal(nifti.array, volume.array)


@pytest.mark.parametrize("order", ["by name", "shuffled", "in one file"])
def test_slices_are_in_the_order_of_their_places(order: str, register: Register, tmp_path: Path) -> None:
    array = noise((5, 4, 7))
    if order == "in one file":
        save([enhanced(array, AXIAL)], tmp_path / "dicom")
        expected = array * (1 + np.arange(7)) - np.arange(7)
    else:
        datasets = series(array, AXIAL)
        save(datasets if order == "by name" else datasets[::-1], tmp_path / "dicom")
        expected = array
    volume = read(register, tmp_path / "dicom")
    assert np.array_equal(volume.array, expected)
    assert np.abs(volume.affine - AXIAL).max() < 1e-9


def test_each_slice_has_its_own_slope_and_intercept(register: Register, tmp_path: Path) -> None:
    def scale(dataset: Any, k: int) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = str(0.5 * (k + 1)), str(-10 * k)

    array = noise((3, 4, 5), low=0)
    save(series(array, AXIAL, kind=PET, change=scale), tmp_path / "dicom")
    volume = read(register, tmp_path / "dicom")
    assert np.allclose(volume.array, array * 0.5 * np.arange(1, 6) - 10 * np.arange(5))


@pytest.mark.parametrize(("slope", "intercept"), [("2.5", None), (None, "-1024"), ("2.5", ""), ("2.5", "-1024")])
@pytest.mark.parametrize("how", ["single images", "frames"])
def test_a_slope_or_an_intercept_alone_is_what_other_readers_make_of_it(
    how: str, slope: str | None, intercept: str | None, register: Register, tmp_path: Path
) -> None:
    """Compared with SimpleITK; the frames of an enhanced object have theirs in sequences of their own."""

    def change(dataset: Any, _: int = 0) -> None:
        for name, value in (("RescaleSlope", slope), ("RescaleIntercept", intercept)):
            if name in dataset:
                del dataset[name]
            if value is not None:
                setattr(dataset, name, value)

    array = noise((4, 3, 3), low=0)
    if how == "frames":
        one = enhanced(array, AXIAL)
        for group in one.PerFrameFunctionalGroupsSequence:
            change(group.PixelValueTransformationSequence[0])
        save([one], tmp_path / "dicom")
    else:
        save(series(array, AXIAL, change=change), tmp_path / "dicom")
    found = read(register, tmp_path / "dicom").array
    assert np.allclose(found, array * float(slope or 1) + float(intercept or 0))
    if how == "single images":
        for path in (tmp_path / "dicom").iterdir():
            image = sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="GDCMImageIO"))[0].T
            assert any(np.allclose(image, found[:, :, k]) for k in range(3))


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("signed", [True, False])
def test_words_hold_no_more_than_their_stored_bits(bits: int, signed: bool, register: Register, tmp_path: Path) -> None:
    half = 1 << (bits - 1)
    array = noise((4, 4, 3), low=-half, high=half) if signed else (noise((4, 4, 3), low=0, high=half) * 2).astype("<u2")

    def overlay(dataset: Any, _: int) -> None:
        words = np.frombuffer(dataset.PixelData, "<u2") | np.uint16((0xFFFF << bits) & 0xFFFF)
        dataset.PixelData = words.tobytes()  # as old scanners keep an overlay in the upper bits

    save(series(array, AXIAL, bits=bits, change=overlay), tmp_path / "dicom")
    assert np.array_equal(read(register, tmp_path / "dicom").array, array.astype(np.float32))


def test_bits_may_stand_at_the_upper_end_of_a_word(register: Register, tmp_path: Path) -> None:
    def raise_bits(dataset: Any, _: int) -> None:
        dataset.PixelData = (np.frombuffer(dataset.PixelData, "<u2") << 4).astype("<u2").tobytes()
        dataset.HighBit = 15

    array = noise((4, 4, 3), low=-2048, high=2048)
    save(series(array, AXIAL, bits=12, change=raise_bits), tmp_path / "dicom")
    assert np.array_equal(read(register, tmp_path / "dicom").array, array)


def test_where_low_is_white_values_are_turned_around_but_hounsfield_units_are_not(
    register: Register, tmp_path: Path
) -> None:
    def invert(dataset: Any, _: int) -> None:
        dataset.PhotometricInterpretation = "MONOCHROME1"

    array = noise((4, 4, 3), low=0, high=4096).astype(np.uint16)
    save(series(array, AXIAL, kind=MR, bits=12, change=invert, name="mr"), tmp_path / "mr")
    save(series(array, AXIAL, kind=CT, bits=12, change=invert, name="ct"), tmp_path / "ct")
    assert np.array_equal(read(register, tmp_path / "mr").array, 4095 - array.astype(np.float32))
    assert np.array_equal(read(register, tmp_path / "ct").array, array)


def test_padding_stays_or_becomes_the_lowest_value(register: Register, tmp_path: Path) -> None:
    def pad(dataset: Any, _: int) -> None:
        dataset.PixelPaddingValue = -2000

    array = noise((4, 4, 3))
    array[0] = -2000
    save(series(array, AXIAL, change=pad), tmp_path / "dicom")
    assert np.array_equal(read(register, tmp_path / "dicom").array, array)
    lowest = read(register, tmp_path / "dicom", padding="lowest").array
    assert np.array_equal(lowest[1:], array[1:])
    assert np.array_equal(lowest[0], np.broadcast_to(array[1:].min(axis=(0, 1)), (4, 3)))


def test_an_object_of_a_lookup_table_is_refused(register: Register, tmp_path: Path) -> None:
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    def table(dataset: Any, _: int) -> None:
        dataset.ModalityLUTSequence = Sequence([Dataset()])

    save(series(noise((4, 4, 3)), AXIAL, change=table), tmp_path / "dicom")
    with pytest.raises(SeriesRefused) as caught:
        read(register, tmp_path / "dicom")
    assert caught.value.reason == "lookup-table"


def by_pydicom(syntax: Any) -> Callable[[Path, Path], Path]:
    def run(folder: Path, target: Path) -> Path:
        from pydicom import dcmread

        datasets = []
        for path in sorted(folder.iterdir()):
            dataset = dcmread(path)
            dataset.compress(syntax, generate_instance_uid=False)
            datasets.append(dataset)
        return save(datasets, target)

    return run


def by_command(*command: str) -> Callable[[Path, Path], Path]:
    return lambda folder, target: convert(folder, target, *command)


CODINGS: dict[str, Callable[[Path, Path], Path]] = {
    "RLE by pydicom": by_pydicom(RLELossless),
    "JPEG-LS by pydicom": by_pydicom(JPEGLSLossless),
    "JPEG 2000 by gdcm": by_command("gdcmconv", "--j2k"),
    "JPEG-LS by gdcm": by_command("gdcmconv", "--jpegls"),
    "JPEG Lossless by gdcm": by_command("gdcmconv", "--jpeg"),
    "RLE by gdcm": by_command("gdcmconv", "--rle"),
    "JPEG Lossless by dcmtk": by_command("dcmcjpeg", "+un"),
    "JPEG-LS by dcmtk": by_command("dcmcjpls", "+un"),
    "RLE by dcmtk": by_command("dcmcrle", "+un"),
    "big endian by dcmtk": by_command("dcmconv", "+te"),
    "implicit by dcmtk": by_command("dcmconv", "+ti"),
}


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("coding", CODINGS)
def test_compressed_images_are_what_they_were(coding: str, signed: bool, register: Register, tmp_path: Path) -> None:
    tool = {"gdcm": "gdcmconv", "dcmtk": "dcmcjpeg"}.get(coding.rpartition(" by ")[2])
    if tool and not (shutil.which(tool) or (Path(sys.executable).parent / tool).exists()):
        pytest.skip(f"{tool} is not installed")
    array = noise((16, 12, 3), low=-2048 if signed else 0, high=2047)
    stored = array if signed else array.astype(np.uint16)
    save(series(stored, AXIAL, bits=12), tmp_path / "plain")
    packed = CODINGS[coding](tmp_path / "plain", tmp_path / "packed")
    assert np.array_equal(read(register, packed).array, array)


def test_a_compressed_image_of_another_size_than_its_header_says_is_not_decoded(
    register: Register, tmp_path: Path
) -> None:
    save(series(noise((16, 12, 3), low=0).astype(np.uint16), AXIAL), tmp_path / "plain")
    packed = by_pydicom(JPEGLSLossless)(tmp_path / "plain", tmp_path / "packed")
    for path in packed.iterdir():
        data = bytearray(path.read_bytes())
        at = data.index(b"\xff\xf7") + 5
        data[at : at + 4] = b"\xff\xff\xff\xff"  # 65535 × 65535
        path.write_bytes(bytes(data))
    with pytest.raises(SeriesRefused) as caught:
        read(register, packed)
    assert caught.value.reason == "pixel-format"


def moved(array: npt.NDArray[Any], places: npt.NDArray[Any], folder: Path) -> Path:
    """A series whose slices lie at these places."""

    def place(dataset: Any, k: int) -> None:
        dataset.ImagePositionPatient = [float(value) for value in places[k]]

    return save(series(array, AXIAL, change=place), folder)


STRAIGHT = (AXIAL @ np.array([[0, 0, k, 1] for k in range(6)]).T).T[:, :3]
TILTED = STRAIGHT + np.array([0, 0.7, 0]) * np.arange(6)[:, None]


@pytest.mark.parametrize(
    ("places", "reason", "measured"),
    [
        (TILTED, "gantry-tilt", "15.64 degrees"),
        (np.delete(STRAIGHT, 3, axis=0), "missing-slices", "1 slices"),
        (STRAIGHT + [[0, 0, 0.4 * (k == 2)] for k in range(6)], "uneven-spacing", "2.1 to 2.9 mm"),
        (STRAIGHT[[0, 1, 1, 2, 3]], "duplicate-slices", "1 of 5"),
    ],
)
def test_a_stack_that_is_no_grid_is_refused_with_what_was_measured(  # noqa: PLR0917
    places: npt.NDArray[Any], reason: str, measured: str, register: Register, store: CaseStore, tmp_path: Path
) -> None:
    folder = moved(noise((5, 4, len(places))), places, tmp_path / "dicom")
    (found,) = find_series(folder).volumes
    with pytest.raises(SeriesRefused, match=measured) as caught:
        import_series(store, register, found)
    assert caught.value.reason == reason
    assert store.cases() == register.cases() == ()


@pytest.mark.parametrize("what", ["tilt", "uneven", "missing"])
def test_what_is_resampled_is_right_at_every_place(what: str, register: Register, tmp_path: Path) -> None:
    """A field that is linear in space is the same after linear interpolation, wherever there were slices around."""
    places = {
        "tilt": TILTED,
        "uneven": STRAIGHT + [[0, 0, 0.4 * (k == 2)] for k in range(6)],
        "missing": np.delete(STRAIGHT, 3, axis=0),
    }[what]
    shape = (12, 14, len(places))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    x = places[:, 0][index[2]] + AXIAL[0, 0] * index[0]
    y = places[:, 1][index[2]] + AXIAL[1, 1] * index[1]
    field = 10 * x + 20 * y + 30 * places[:, 2][index[2]]
    folder = moved(np.round(field).astype(np.int16), places, tmp_path / "dicom")
    (found,) = find_series(folder).volumes
    volume, source = read_series(register, found, tilt="resample", uneven="resample")
    assert source.resampled
    assert np.allclose(volume.affine[:3, :3], np.diag([0.8, 0.9, 2.5]))
    grid = np.stack([*np.meshgrid(*(np.arange(n) for n in volume.shape), indexing="ij"), np.ones(volume.shape)])
    world = np.tensordot(volume.affine, grid, axes=1)
    expected = 10 * world[0] + 20 * world[1] + 30 * world[2]
    inside = np.abs(volume.array - expected) < 1.5
    # Of a tilted stack, corners of the upright grid lie outside every slice: those have the lowest value.
    assert inside[:, 5:-5].all()
    assert (inside | (volume.array == field.round().min()) | (np.abs(volume.array - expected) < 600)).all()
    assert inside.mean() > (0.7 if what == "tilt" else 0.999)


def test_positions_with_one_decimal_are_even_enough(register: Register, tmp_path: Path) -> None:
    places = np.zeros((9, 3))
    places[:, 2] = np.round(np.arange(9) * 0.75, 1)
    assert read(register, moved(noise((4, 4, 9)), places, tmp_path / "dicom")).spacing[2] == pytest.approx(0.75)


def test_importing_twice_changes_nothing_and_the_source_is_kept(
    register: Register, store: CaseStore, tmp_path: Path
) -> None:
    array = noise((5, 4, 6))
    datasets = series(array, AXIAL)
    (found,) = find_series(save(datasets, tmp_path / "dicom")).volumes
    case_id = import_series(store, register, found)
    assert case_id == import_series(store, register, found) == register.case_id(found.series_uid)
    assert store.cases() == register.cases() == (case_id,)
    source = register.source(case_id)
    assert source.series_uid == datasets[0].SeriesInstanceUID
    assert not source.resampled
    assert [source.instances[at].SOPInstanceUID for at, _ in source.frames] == [one.SOPInstanceUID for one in datasets]
    assert all("PixelData" not in one for one in source.instances)
    assert source.grid.same_grid(store.image(case_id))


def test_frames_of_one_object_lead_back_to_it(register: Register, store: CaseStore, tmp_path: Path) -> None:
    dataset = enhanced(noise((5, 4, 6)), AXIAL)
    (found,) = find_series(save([dataset], tmp_path / "dicom")).volumes
    source = register.source(import_series(store, register, found))
    (only,) = source.instances
    for k, (at, frame) in enumerate(source.frames):
        group = only.PerFrameFunctionalGroupsSequence[frame]
        assert at == 0
        assert group.FrameContentSequence[0].InStackPositionNumber == k + 1


def test_a_changed_series_does_not_replace_the_case(register: Register, store: CaseStore, tmp_path: Path) -> None:
    (found,) = find_series(save(series(noise((5, 4, 6)), AXIAL), tmp_path / "one")).volumes
    case_id = import_series(store, register, found)
    (other,) = find_series(save(series(noise((5, 4, 6), seed=1), AXIAL), tmp_path / "other")).volumes
    with pytest.raises(DataError, match="other images"):
        import_series(store, register, other)
    assert np.array_equal(store.image(case_id).array, noise((5, 4, 6)))


@pytest.mark.parametrize(
    ("rows", "columns", "reason"),
    [(65535, 65535, "too-many-voxels"), (20_000, 2, "pixel-format"), (9_000, 9_000, "damaged-pixels")],
)
def test_no_room_is_made_for_what_a_header_only_claims(
    rows: int, columns: int, reason: str, register: Register, tmp_path: Path
) -> None:
    def claim(dataset: Any, _: int) -> None:
        dataset.Rows, dataset.Columns = rows, columns

    save(series(noise((4, 4, 3)), AXIAL, change=claim), tmp_path / "dicom")
    with pytest.raises(SeriesRefused) as caught:
        read(register, tmp_path / "dicom")
    assert caught.value.reason == reason


@pytest.mark.parametrize("how", ["cut short", "gone", "replaced", "no pixels"])
def test_a_file_that_is_not_what_it_was_refuses_the_series(
    how: str, register: Register, store: CaseStore, tmp_path: Path
) -> None:
    datasets = series(noise((5, 4, 6)), AXIAL)
    folder = save(datasets, tmp_path / "dicom")
    (found,) = find_series(folder).volumes
    path = sorted(folder.iterdir())[2]
    if how == "cut short":
        path.write_bytes(path.read_bytes()[:-20])
    elif how == "gone":
        path.unlink()
    elif how == "replaced":
        path.write_bytes(encoded(series(noise((5, 4, 6)), AXIAL, name="other")[0]))
    else:
        path.write_bytes(path.read_bytes().replace(b"\xe0\x7f\x10\x00", b"\xe0\x7f\x11\x00"))
    with pytest.raises(SeriesRefused) as caught:
        import_series(store, register, found)
    assert caught.value.reason in {"damaged-pixels", "damaged-file", "pixel-format"}
    assert store.cases() == register.cases() == ()


def test_a_full_disk_leaves_what_the_next_import_finishes(
    register: Register, store: CaseStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = find_series(save(series(noise((5, 4, 6)), AXIAL), tmp_path / "dicom")).volumes

    def full(*_: object) -> None:
        raise StorageError("cannot write", "the disk is full", "free some space")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_bytes", full)
        with pytest.raises(StorageError):
            import_series(store, register, found)
    assert register.case_of_series(found.series_uid) is None
    case_id = import_series(store, register, found)
    assert register.case_of_series(found.series_uid) == case_id


def _siz(rows: int, columns: int, components: int) -> bytes:
    return b"\xff\x4f\xff\x51" + struct.pack(">2H8LH", 41, 0, columns, rows, 0, 0, columns, rows, 0, 0, components)


@pytest.mark.parametrize(
    "stream",
    [
        b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\0jp2c" + _siz(60_000, 60_000, 1),
        _siz(60_000, 60_000, 1),
        _siz(4, 5, 16_384),
        b"\xff\xd8\xff\xc0\0\x0b\x08\0\4\0\5\xff",
        b"nothing at all",
    ],
    ids=["in boxes", "larger", "many components", "many components of JPEG", "no stream"],
)
def test_no_decoder_sees_a_stream_that_is_larger_than_its_header_says_or_does_not_say(
    stream: bytes, register: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = series(noise((5, 4, 3)), AXIAL)
    for dataset in datasets:
        dataset.PixelData = encapsulate([stream])
        dataset["PixelData"].VR = "OB"
        dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    monkeypatch.setattr("wardround.client.cases.dicom.pixels.iter_pixels", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(SeriesRefused) as caught:
        read(register, save(datasets, tmp_path / "dicom"))
    assert caught.value.reason == "pixel-format"


@pytest.mark.parametrize("crashed", [False, True])
def test_headers_of_other_images_than_the_stored_ones_are_never_taken_for_theirs(
    crashed: bool, register: Register, store: CaseStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = series(noise((5, 4, 6)), AXIAL)
    (some,) = find_series(save(datasets[:4], tmp_path / "some")).volumes
    (whole,) = find_series(save(datasets, tmp_path / "whole")).volumes
    case_id = register.case_id(whole.series_uid)

    class Killed(Exception):
        pass

    def meanwhile(at: Register, case: str, content: str) -> None:
        if crashed:
            raise Killed
        with monkeypatch.context() as patch:
            patch.setattr(Register, "complete", complete)
            with pytest.raises(DataError):
                import_series(store, register, whole)
        complete(at, case, content)

    complete = Register.complete
    with monkeypatch.context() as patch:
        patch.setattr(Register, "complete", meanwhile)
        with pytest.raises((Killed, DataError)):
            import_series(store, register, some)
    if crashed:
        with pytest.raises(DataError):
            import_series(store, register, whole)
    with pytest.raises(DataError, match="not in the register"):
        register.source(case_id)
    assert import_series(store, register, some) == case_id
    assert len(register.source(case_id).instances) == store.image(case_id).shape[2] == 4


def import_and_die(number: int, folder: Path, dicom: Path) -> None:
    """Import, and die before the given line that register, store or importing execute."""
    die_at_line(number, (importing, register_module, store_module, files))
    import_all(folder, dicom)


def import_all(folder: Path, dicom: Path) -> str:
    label = Volume(np.ones((3, 3, 2), np.uint8), AXIAL)
    with Register(folder / "register") as register, CaseStore(folder / "store") as store:
        (found,) = find_series(dicom).volumes
        return import_series(store, register, found, then=lambda case_id: add_label(store, case_id, label, IMPORTED))


def test_a_kill_at_any_line_is_repaired_by_the_next_import(tmp_path: Path) -> None:
    dicom = save(series(noise((3, 3, 2)), AXIAL), tmp_path / "dicom")
    step = 23
    for number in range(0, 100_000, step):
        folder = tmp_path / str(number)
        ended = not os.WIFSIGNALED(forked(partial(import_and_die, number, folder, dicom)))
        with Register(folder / "register") as register, CaseStore(folder / "store") as store:
            assert set(register.cases()) <= store.labelled(IMPORTED), "whose import has ended has its label"
        case_id = import_all(folder, dicom)
        with Register(folder / "register") as register, CaseStore(folder / "store") as store:
            assert store.cases() == register.cases() == (case_id,)
            assert len(register.source(case_id).instances) == 2
            assert np.array_equal(store.image(case_id).array, noise((3, 3, 2)))
            assert store.labelled(IMPORTED) == {case_id}
            assert len(list((folder / "store" / "volumes").iterdir())) == 2
        if ended:
            assert number > 10 * step
            return
    raise AssertionError("it never ended by itself")
