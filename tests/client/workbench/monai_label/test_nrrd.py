"""NRRD as SimpleITK, and so 3D Slicer, reads and writes it."""

import gzip
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from scipy.spatial.transform import Rotation

from wardround.client.cases.volume import Volume
from wardround.client.workbench.monai_label import nrrd
from wardround.errors import DataError, WardroundError


@st.composite
def volumes(draw: st.DrawFn) -> Volume:
    """Masks on oblique, flipped and anisotropic grids."""
    shape = draw(st.tuples(*[st.integers(1, 6)] * 3))
    turn = Rotation.from_euler("xyz", draw(st.tuples(*[st.floats(-180, 180)] * 3)), degrees=True).as_matrix()
    spacing = draw(st.tuples(*[st.floats(0.2, 7)] * 3))
    flips = draw(st.tuples(*[st.sampled_from((-1, 1))] * 3))
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing * flips
    affine[:3, 3] = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    array = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 255, shape, dtype=np.uint8)
    return Volume(array, affine)


@given(volumes(), st.booleans())
@settings(max_examples=40)
def test_simpleitk_finds_every_voxel_where_it_is(
    tmp_path_factory: pytest.TempPathFactory, volume: Volume, packed: bool
) -> None:
    file = tmp_path_factory.mktemp("nrrd") / "mask.nrrd"
    file.write_bytes(nrrd.encode(volume, compress=packed))
    read = sitk.ReadImage(str(file))
    assert read.GetPixelID() == sitk.sitkUInt8
    assert np.array_equal(sitk.GetArrayFromImage(read).transpose(2, 1, 0), volume.array)
    last = tuple(side - 1 for side in volume.shape)
    for index in ((0, 0, 0), last, (last[0], 0, 0), (0, last[1], 0)):
        place = np.array(read.TransformIndexToPhysicalPoint(index))
        assert np.abs(place - (volume.affine @ [*index, 1])[:3]).max() < 1e-6
    found = nrrd.decode(file.read_bytes()).volume
    assert found.same_grid(volume)
    assert np.array_equal(found.array, volume.array)


@pytest.mark.parametrize("kind", [sitk.sitkUInt8, sitk.sitkInt16, sitk.sitkUInt16, sitk.sitkInt32, sitk.sitkFloat32])
@pytest.mark.parametrize("packed", [False, True])
def test_what_simpleitk_writes_is_read(tmp_path: Path, kind: int, packed: bool) -> None:
    array = np.random.default_rng(0).integers(0, 100, (4, 5, 6))
    image = sitk.Cast(sitk.GetImageFromArray(array), kind)
    image.SetSpacing((0.5, 2, 3))
    image.SetOrigin((1, -2, 3))
    image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / "one.nrrd"), useCompression=packed)
    found = nrrd.decode((tmp_path / "one.nrrd").read_bytes()).volume
    assert np.array_equal(found.array, array.transpose(2, 1, 0))
    assert np.allclose(found.affine[:3, 3], (1, -2, 3))
    assert np.allclose(found.affine @ [1, 2, 3, 1], [*image.TransformIndexToPhysicalPoint((1, 2, 3)), 1])


def test_the_mask_is_the_bytes_after_the_header() -> None:
    """OHIF takes these for its voxels."""
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    data = nrrd.encode(Volume(array, np.eye(4)))
    assert data.endswith(b"\n\n" + array.tobytes(order="F"))


def test_a_file_in_ras_lies_in_lps() -> None:
    data = nrrd.encode(Volume(np.zeros((1, 1, 1), np.uint8), np.eye(4)))
    turned = data.replace(b"left-posterior-superior", b"right-anterior-superior")
    assert np.array_equal(nrrd.decode(turned).volume.affine, np.diag([-1, -1, 1, 1]))


def test_segments_of_3d_slicer_have_names() -> None:
    data = nrrd.encode(Volume(np.ones((1, 1, 1), np.uint8), np.eye(4)))
    fields = b"Segment0_ID:=Segment_1\nSegment0_Name:=posterior\nSegment0_LabelValue:=1\nSegment0_Layer:=0\n\n"
    assert nrrd.decode(data.replace(b"\n\n", b"\n" + fields, 1)).segments == {"posterior": 1}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"dimension: 3", b"dimension: 4"),
        (b"sizes: 2 3 4", b"sizes: 2 3"),
        (b"sizes: 2 3 4", b"sizes: 2 3 5"),
        (b"sizes: 2 3 4", b"sizes: 60000 60000 60000"),
        (b"sizes: 2 3 4", b"sizes: 0 3 4"),
        (b"type: unsigned char", b"type: block"),
        (b"encoding: raw", b"encoding: bzip2"),
        (b"encoding: raw", b"encoding: gzip"),
        (b"encoding: raw", b"encoding: raw\ndata file: /etc/passwd"),
        (b"encoding: raw", b"encoding: raw\nbyte skip: x\ndatafile: LIST"),
        (b"space: left-posterior-superior", b"space: scanner-xyz"),
        (b"space: left-posterior-superior\n", b""),
        (b"space directions: (1.0,0.0,0.0)", b"space directions: none"),
        (b"(1.0,0.0,0.0)", b"(nan,0.0,0.0)"),
        (b"NRRD0004", b"NRRD"),
        (b"\n\n", b"\n"),
    ],
)
def test_what_makes_no_sense_is_refused(old: bytes, new: bytes) -> None:
    data = nrrd.encode(Volume(np.full((2, 3, 4), 7, np.uint8), np.eye(4)))
    assert old in data
    with pytest.raises(WardroundError) as caught:
        nrrd.decode(data.replace(old, new))
    assert "passwd" not in str(caught.value)


def test_a_bomb_is_not_unpacked() -> None:
    bomb = gzip.compress(bytes(1 << 22))
    with pytest.raises(DataError, match="too large"):
        nrrd.inflate(bomb, 1 << 20)
    data = nrrd.encode(Volume(np.zeros((2, 3, 4), np.uint8), np.eye(4)), compress=True)
    head = data[: data.index(b"\n\n") + 2]
    with pytest.raises(DataError, match="too large"):
        nrrd.decode(head + bomb)
