"""Images and label maps as viewers send them."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from played_studio import oblique

from wardround.client.cases import nifti
from wardround.client.cases.volume import Volume
from wardround.client.workbench.monai_label import nrrd, uploads
from wardround.errors import DataError, GeometryError, WardroundError

IMAGE = oblique(0)


def labels() -> Volume:
    return IMAGE.with_array(np.random.default_rng(1).integers(0, 3, IMAGE.shape).astype(np.uint8))


@pytest.mark.parametrize("compress", [False, True])
def test_an_image_is_told_by_its_content(compress: bool) -> None:
    found = uploads.read_image(nifti.encode(IMAGE, compress=compress))
    assert found.same_grid(IMAGE)
    assert np.array_equal(found.array, IMAGE.array)
    mask = uploads.read_image(nrrd.encode(labels(), compress=compress))
    assert mask.array.dtype == np.float32


@pytest.mark.parametrize("data", [b"", b"GIF89a", gzip.compress(b"nothing", mtime=0), b"\x1f\x8bcut", b"NRRD0004\n"])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(WardroundError):
        uploads.read_image(data)


def test_an_image_with_nan_is_refused() -> None:
    array = IMAGE.array.astype(np.float32)
    array[1, 1, 1] = np.nan
    with pytest.raises(DataError, match="NaN"):
        uploads.read_image(nifti.encode(IMAGE.with_array(array)))


def test_labels_come_as_nifti_nrrd_or_bare_bytes() -> None:
    sent = labels()
    for data in (nifti.encode(sent), nrrd.encode(sent), nrrd.encode(sent, compress=True)):
        assert np.array_equal(uploads.read_labels(data, IMAGE).values, sent.array)
    raw = sent.array.tobytes(order="F")
    assert np.array_equal(uploads.read_labels(raw, IMAGE, raw=True).values, sent.array)
    with pytest.raises(GeometryError):
        uploads.read_labels(raw[:-1], IMAGE, raw=True)


def test_a_cut_out_is_put_where_it_belongs() -> None:
    """3D Slicer saves segmentations without the empty rim."""
    affine = IMAGE.affine.copy()
    affine[:3, 3] = (IMAGE.affine @ [3, 2, 4, 1])[:3]
    cut = Volume(np.full((2, 3, 1), 2, np.uint8), affine)
    expected = np.zeros(IMAGE.shape, np.uint8)
    expected[3:5, 2:5, 4:5] = 2
    for data in (nrrd.encode(cut), nifti.encode(cut)):
        assert np.array_equal(uploads.read_labels(data, IMAGE).values, expected)


@pytest.mark.parametrize("change", ["half a voxel", "out of the image", "flipped", "coarser"])
def test_another_grid_is_refused(change: str) -> None:
    affine = IMAGE.affine.copy()
    match change:
        case "half a voxel":
            affine[:3, 3] += affine[:3, 0] / 2
        case "out of the image":
            affine[:3, 3] += affine[:3, 0]
        case "flipped":
            affine[:3, 0] *= -1
        case "coarser":
            affine[:3, :3] *= 2
    with pytest.raises(GeometryError):
        uploads.read_labels(nrrd.encode(Volume(labels().array, affine)), IMAGE)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0.5, -1, 255, 1000])
def test_an_image_is_no_label_map(value: float) -> None:
    array = np.zeros(IMAGE.shape, np.float32)
    array[0, 0, 0] = value
    with pytest.raises(DataError, match="whole numbers"):
        uploads.read_labels(nifti.encode(IMAGE.with_array(array)), IMAGE)


def test_no_error_names_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        uploads.read_image(b"nothing")
    assert "/" not in str(caught.value)
