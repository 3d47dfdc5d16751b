"""NIfTI: coordinates as nibabel and SimpleITK see them, scaled intensities, and refusals with a reason."""

import contextlib
import csv
import errno
import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.client.cases import nifti
from wardround.client.cases.volume import Volume
from wardround.errors import DataError, GeometryError, LabelError, StorageError, WardroundError

DATA = Path(os.environ.get("WARDROUND_DATA", "/nowhere"))
HIPPOCAMPUS = DATA / "hippocampus"
needs_hippocampus = pytest.mark.skipif(
    not HIPPOCAMPUS.is_dir(), reason="WARDROUND_DATA names no folder that holds hippocampus/"
)

OBLIQUE = np.array([[0.0, -1.2, 0.3, 10.0], [0.9, 0.0, 0.0, -20.0], [0.0, 0.4, 2.5, 30.0], [0, 0, 0, 1]])


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def test_the_affine_leads_to_where_nibabel_says_mirrored_into_lps(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", np.arange(24, dtype=np.int16).reshape(2, 3, 4), OBLIQUE)
    volume = nifti.read_image(path)
    voxel = np.array([1, 2, 3, 1])
    right, anterior, superior, _ = nib.load(path).affine @ voxel
    np.testing.assert_allclose(volume.affine @ voxel, [-right, -anterior, superior, 1], atol=1e-5)
    assert volume.array[1, 2, 3] == 23


def test_voxel_centres_are_those_of_simpleitk(tmp_path: Path) -> None:
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, -1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.5, 1.5, 4])
    affine[:3, 3] = (12, -34, 56)
    nifti.write_volume(tmp_path / "a.nii.gz", Volume(np.random.default_rng(0).random((4, 5, 6), np.float32), affine))
    ours, theirs = nifti.read_image(tmp_path / "a.nii.gz"), sitk.ReadImage(tmp_path / "a.nii.gz")
    for index in ((0, 0, 0), (3, 1, 5)):
        np.testing.assert_allclose(
            (ours.affine @ [*index, 1])[:3], theirs.TransformIndexToPhysicalPoint(index), atol=1e-4
        )
        assert ours.array[index] == theirs[index]
    np.testing.assert_allclose(ours.spacing, theirs.GetSpacing(), atol=1e-6)


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.array([[[0, 100, 30000]]], np.int16), np.eye(4))
    image.header.set_slope_inter(58.25, -7.0)
    path = tmp_path / "a.nii"
    # nibabel clears the scaling of integers when it saves, so the two header fields are written by hand.
    data = bytearray(image.to_bytes())
    data[112:120] = np.array([58.25, -7.0], "<f4").tobytes()
    path.write_bytes(bytes(data))
    volume = nifti.read_image(path)
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array.ravel(), [-7.0, 5818.0, 1747493.0])


@pytest.mark.parametrize("unit", [("meter", 1000.0), ("micron", 0.001), ("mm", 1.0), ("unknown", 1.0)])
def test_spacing_is_in_millimetres_whatever_the_files_unit(tmp_path: Path, unit: tuple[str, float]) -> None:
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.diag([2.0, 3.0, 4.0, 1.0]))
    image.header.set_xyzt_units(unit[0])
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(nifti.read_image(tmp_path / "a.nii").spacing, np.array([2, 3, 4]) * unit[1])


def test_nifti_2_is_read(tmp_path: Path) -> None:
    nib.save(nib.Nifti2Image(np.full((2, 3, 4), 5, np.int16), OBLIQUE), tmp_path / "a.nii.gz")
    volume = nifti.read_image(tmp_path / "a.nii.gz")
    assert volume.shape == (2, 3, 4)
    np.testing.assert_allclose(volume.affine[:2], -OBLIQUE[:2])


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        ("uint8", "uint8"),
        ("int16", "int16"),
        ("uint16", "uint16"),
        ("int32", "int32"),
        ("float32", "float32"),
        ("bool", "uint8"),
        ("float64", "float32"),
        ("int64", "int32"),
    ],
)
def test_what_is_written_is_read_back(tmp_path: Path, dtype: str, stored: str) -> None:
    array = (np.arange(60).reshape(3, 4, 5) % 2).astype(dtype)
    nifti.write_volume(tmp_path / "a.nii.gz", Volume(array, OBLIQUE))
    assert nib.load(tmp_path / "a.nii.gz").get_data_dtype() == np.dtype(stored)
    back = nifti.read_image(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(back.array, array.astype(np.float32))
    assert back.same_grid(Volume(array, OBLIQUE))


def test_integers_that_fit_no_nifti_type_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="int64"):
        nifti.write_volume(tmp_path / "a.nii.gz", Volume(np.full((2, 2, 2), 2**40), np.eye(4)))
    assert list(tmp_path.iterdir()) == []


def test_equal_volumes_give_equal_bytes() -> None:
    volume = Volume(np.random.default_rng(1).random((5, 5, 5), np.float32), OBLIQUE)
    assert nifti.encode(volume) == nifti.encode(volume.with_array(volume.array.copy()))
    assert gzip.decompress(nifti.encode(volume)) == nifti.encode(volume, compress=False)


def test_another_file_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\.nii\.gz"):
        nifti.write_volume(tmp_path / "a.mha", Volume(np.zeros((2, 2, 2), np.uint8), np.eye(4)))


def test_a_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="full"):
        nifti.write_volume(tmp_path / "a.nii.gz", Volume(np.zeros((2, 2, 2), np.uint8), np.eye(4)))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.nii\.gz does not exist"):
        nifti.read_image(tmp_path / "gone.nii.gz")


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        nifti.read_image(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x1f\x8b broken gzip", gzip.compress(b"no image", mtime=0), bytes(400)]
)
def test_a_file_that_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.nii\.gz as a NIfTI image"):
        nifti.read_image(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("keep", [10, 200, 348, 360, -1])
def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, keep: int) -> None:
    whole = nifti.encode(Volume(np.ones((4, 4, 4), np.float32), np.eye(4)), compress=False)
    (tmp_path / "a.nii").write_bytes(whole[:keep])
    with pytest.raises(DataError):
        nifti.read_image(tmp_path / "a.nii")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_header_gives_an_image_or_a_reason(damage: list[tuple[int, int]]) -> None:
    data = bytearray(nifti.encode(Volume(np.ones((3, 3, 3), np.int16), np.eye(4)), compress=False))
    for position, value in damage:
        data[position] = value
    with contextlib.suppress(WardroundError):
        assert np.isfinite(nifti.decode_image(bytes(data), Path("damaged.nii")).array).all()


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4, 2), (4, 4, 4, 1, 3)])
def test_anything_but_3d_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = save(tmp_path / "a.nii.gz", np.zeros(shape, np.float32))
    with pytest.raises(GeometryError, match=r"a\.nii\.gz has"):
        nifti.read_image(path)


def test_a_fourth_axis_of_length_one_is_dropped(tmp_path: Path) -> None:
    assert nifti.read_image(save(tmp_path / "a.nii", np.zeros((2, 3, 4, 1), np.float32))).shape == (2, 3, 4)


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", np.zeros((2, 2, 2), np.complex64))
    with pytest.raises(DataError, match="no real numbers"):
        nifti.read_image(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_a_voxel_that_is_not_finite_in_32_bits_is_refused(tmp_path: Path, bad: float) -> None:
    array = np.zeros((2, 2, 2))
    array[1, 0, 1] = bad
    path = save(tmp_path / "a.nii", array)
    with pytest.raises(DataError, match=r"a\.nii holds voxels that are NaN or infinite"):
        nifti.read_image(path)


def test_labels_that_are_whole_numbers_in_floats_are_read(tmp_path: Path) -> None:
    volume = nifti.read_labels(save(tmp_path / "a.nii", np.array([[[0.0, 1.0, 254.0]]])))
    assert volume.array.dtype == np.uint8
    assert volume.array.ravel().tolist() == [0, 1, 254]


@pytest.mark.parametrize("bad", [0.5, np.nan, np.inf, -1.0, 255.0, 1e30])
def test_labels_of_no_structure_are_refused(tmp_path: Path, bad: float) -> None:
    path = save(tmp_path / "a.nii", np.array([[[0.0, 1.0, bad]]]))
    with pytest.raises(DataError, match=r"a\.nii holds label values"):
        nifti.read_labels(path)


def test_a_label_on_another_grid_is_refused_with_what_differs() -> None:
    image = Volume(np.zeros((3, 4, 5), np.float32), np.eye(4))
    nifti.check_same_grid(image, image.with_array(np.ones(image.shape, np.uint8)))
    with pytest.raises(GeometryError, match=r"\(3, 4, 6\)"):
        nifti.check_same_grid(image, Volume(np.zeros((3, 4, 6), np.uint8), np.eye(4)))
    moved = np.eye(4)
    moved[0, 3] = 0.5
    with pytest.raises(GeometryError, match=r"seg\.nii .* affines"):
        nifti.check_same_grid(image, Volume(np.zeros((3, 4, 5), np.uint8), moved), "seg.nii")


def test_a_label_has_no_more_structures_than_are_known() -> None:
    label = Volume(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    label.array[1, 1, 1] = 2
    nifti.check_classes(label, 3)
    with pytest.raises(LabelError, match=r"seg\.nii goes up to 2, and the plan knows 0 to 1"):
        nifti.check_classes(label, 2, "seg.nii")


@pytest.mark.data
@needs_hippocampus
def test_real_intensities_keep_the_span_that_their_headers_give_them() -> None:
    with (HIPPOCAMPUS / "manifest.csv").open(newline="") as stream:
        tops = {row["case"]: float(row["intensity_max"]) for row in csv.DictReader(stream)}
    assert min(tops.values()) < 150
    assert max(tops.values()) > 1e6
    for case, top in tops.items():
        volume = nifti.read_image(HIPPOCAMPUS / "imagesTr" / f"{case}.nii.gz")
        assert float(volume.array.max()) == pytest.approx(top, rel=1e-5)
        assert volume.array.dtype == np.float32


@pytest.mark.data
@needs_hippocampus
def test_a_real_image_lies_where_simpleitk_puts_it() -> None:
    path = HIPPOCAMPUS / "imagesTr" / "hippocampus_003.nii.gz"
    ours, theirs = nifti.read_image(path), sitk.ReadImage(path)
    corner = tuple(n - 1 for n in ours.shape)
    np.testing.assert_allclose((ours.affine @ [*corner, 1])[:3], theirs.TransformIndexToPhysicalPoint(corner))
    np.testing.assert_allclose(ours.array, sitk.GetArrayFromImage(theirs).transpose(2, 1, 0), rtol=1e-6)
