"""A voxel is at the same place of the patient as DICOM, NIfTI, NRRD, a segmentation and a viewer's click say it."""

import tempfile
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
from dicoms import affine_of, rotation, save, series
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset

from wardround.client.cases import nifti
from wardround.client.cases.dicom.importing import read_series
from wardround.client.cases.dicom.register import Register
from wardround.client.cases.dicom.segmentation import Origin, encoded, write_seg
from wardround.client.cases.dicom.segments import read_seg
from wardround.client.cases.dicom.series import find_series
from wardround.client.workbench.monai_label import nrrd
from wardround.client.workbench.monai_label.drawn import clicks

NEAR = 0.5
"""Voxels. What is exact is held to much less."""
ORIGIN = Origin(made="MANUAL", author="ann", model="", round=0, when=datetime(2026, 3, 1))
Floats = npt.NDArray[np.float64]
Grid = tuple[Floats, tuple[int, int, int], tuple[int, int, int]]

angles = st.floats(-np.pi, np.pi)
flips = st.sampled_from([np.diag(np.array(signs) * 2.0 - 1) for signs in np.ndindex(2, 2, 2)])


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """An affine with flips (left-handed ones as well), a shape, and a voxel."""
    turn = rotation(draw(angles), draw(angles), draw(angles)) if draw(st.booleans()) else np.eye(3)
    turn = turn[:, draw(st.permutations(range(3)))]
    spacing = [draw(st.floats(0.3, 6.0)) for _ in range(3)]
    origin = [draw(st.floats(-400, 400)) for _ in range(3)]
    i, j, k = (draw(st.integers(2, 7)) for _ in range(3))
    voxel = (draw(st.integers(0, i - 1)), draw(st.integers(0, j - 1)), draw(st.integers(0, k - 1)))
    return affine_of(turn @ draw(flips), spacing, origin), (i, j, k), voxel


def place_of(affine: Floats, index: Any) -> Floats:
    return np.asarray(affine[:3, :3] @ np.asarray(index, float) + affine[:3, 3])


def off(affine: Floats, place: Floats, index: Any) -> float:
    """How many voxels a place is away from the centre of a voxel, along the worst axis."""
    exact = np.linalg.solve(affine[:3, :3], place - affine[:3, 3])
    return float(np.abs(exact - np.asarray(index, float)).max())


def voxel_of(array: npt.NDArray[Any]) -> tuple[int, ...]:
    """Where the only voxel of a label is."""
    (found,) = np.argwhere(array)
    return tuple(int(one) for one in found)


def place_in_seg(seg: Dataset) -> Floats:
    """Of the only pixel, worked out from the frame's own attributes."""
    frame, row, column = voxel_of(np.atleast_3d(seg.pixel_array).reshape(-1, seg.Rows, seg.Columns))
    shared = seg.SharedFunctionalGroupsSequence[0]
    group = seg.PerFrameFunctionalGroupsSequence[frame]
    position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
    turned = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    down, along = (float(one) for one in shared.PixelMeasuresSequence[0].PixelSpacing)
    return np.asarray(position + turned[:3] * along * column + turned[3:] * down * row)


@settings(max_examples=12, deadline=None)
@given(grid=grids())
def test_a_voxel_is_at_one_place_whoever_says_it(grid: Grid) -> None:
    check(grid)


@pytest.mark.long
@settings(max_examples=200, deadline=None)
@given(grid=grids())
def test_a_voxel_is_at_one_place_on_many_more_grids(grid: Grid) -> None:
    check(grid)


def check(grid: Grid) -> None:
    """Follow one voxel through every format."""
    affine, shape, voxel = grid
    place = place_of(affine, voxel)
    numbers = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    with tempfile.TemporaryDirectory() as name, Register(Path(name) / "register") as register:
        folder = save(series(numbers, affine), Path(name) / "in")
        (found,) = find_series(folder).volumes
        image, source = read_series(register, found)
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        theirs = reader.Execute()
        sent = Path(name) / "sent.nii.gz"
        sent.write_bytes(nifti.encode(image))
        opened = sitk.ReadImage(str(sent))
        # DICOM: our voxel, and that of SimpleITK.
        index = voxel_of(image.array == numbers[voxel])
        assert off(image.affine, place, index) < 1e-3
        assert theirs.TransformPhysicalPointToIndex(place.tolist()) == index
        assert theirs[index] == numbers[voxel]
        # NIfTI: the file as a viewer opens it, which has 32-bit floats.
        assert off(image.affine, np.array(opened.TransformIndexToPhysicalPoint(index)), index) < 1e-2
        assert opened[index] == numbers[voxel]
        again = nib.Nifti1Image.from_bytes(nifti.encode(image, compress=False))
        assert off(image.affine, place_of(np.diag([-1, -1, 1, 1]) @ again.affine, index), index) < 1e-2
        # A click: the viewer turns the place into an index of the image that it was sent.
        clicked = opened.TransformPhysicalPointToIndex(place.tolist())
        (point,) = clicks({"foreground": [list(clicked)]}, ("ball",))
        assert off(image.affine, place, point.index) <= NEAR
        label = np.zeros(image.shape, np.uint8)
        label[point.index] = 1
        labels = image.with_array(label)
        # A segmentation: by its own attributes, and read again.
        seg = dcmread(BytesIO(encoded(write_seg(source, labels, ["ball"], ORIGIN))))
        assert off(image.affine, place_in_seg(seg), point.index) < 1e-3
        assert (read_seg(seg, image).array == label).all()
        # NRRD: as 3D Slicer gets it, and back.
        mask = Path(name) / "mask.nrrd"
        mask.write_bytes(nrrd.encode(labels))
        seen = sitk.ReadImage(str(mask))
        drawn = voxel_of(sitk.GetArrayFromImage(seen).T)
        assert off(image.affine, np.array(seen.TransformIndexToPhysicalPoint(drawn)), point.index) < 1e-3
        back = nrrd.decode(mask.read_bytes()).volume
        assert off(image.affine, place_of(back.affine, voxel_of(back.array)), point.index) < 1e-3
