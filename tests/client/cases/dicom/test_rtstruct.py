"""Contours become labels, held against a rasteriser that knows nothing of ours."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dicoms import affine_of, rotation
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset

from wardround.client.cases.dicom.rtstruct import STRUCTURE_SET, filled, read_rtstruct
from wardround.client.cases.volume import Volume
from wardround.errors import SeriesRefused

SHAPE = (40, 36, 6)
TURNED = affine_of(rotation(0.3, -0.4, 0.9), (0.8, 0.9, 2.5), (-100.5, 20.25, 7.0))
IMAGE = Volume(np.zeros(SHAPE, np.float32), TURNED)
CANARY = "KOWALSKA^EWA"
Points = npt.NDArray[np.float64]


def circle(centre: tuple[float, float], radius: float, count: int = 60) -> Points:
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle)], axis=1)


def disc(centre: tuple[float, float], radius: float) -> npt.NDArray[np.bool_]:
    i, j = np.meshgrid(np.arange(SHAPE[0]), np.arange(SHAPE[1]), indexing="ij")
    return np.asarray((i - centre[0]) ** 2 + (j - centre[1]) ** 2 <= radius**2)


def contour(points: Points, k: float, kind: str = "CLOSED_PLANAR") -> Dataset:
    """Voxel indices on slice `k` as a contour in millimetres."""
    index = np.column_stack([points, np.full(len(points), k)])
    places = index @ TURNED[:3, :3].T + TURNED[:3, 3]
    item = Dataset()
    item.ContourGeometricType, item.NumberOfContourPoints = kind, len(points)
    item.ContourData = [f"{one:.8f}" for one in places.ravel()]
    return item


def structure_set(structures: dict[str, list[Dataset]], frame: str = "1.2.3") -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = STRUCTURE_SET, "1.2.840.10008.1.2.1"
    made = FileDataset("", {}, file_meta=meta)
    made.SOPClassUID, made.PatientName = STRUCTURE_SET, CANARY
    rois, contours = [], []
    for number, (name, items) in enumerate(structures.items(), start=1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, frame
        drawn.ReferencedROINumber, drawn.ContourSequence = number, items
        rois.append(roi)
        contours.append(drawn)
    made.StructureSetROISequence, made.ROIContourSequence = rois, contours
    return made


def test_a_hole_two_parts_and_slices_on_an_oblique_image() -> None:
    ring = [contour(circle((15.3, 14.2), 9.1), k) for k in (1, 2)]
    ring += [contour(circle((15.3, 14.2), 4.4), k) for k in (1, 2)]
    ring.append(contour(circle((33.1, 30.2), 3.3), 2))
    other = [contour(circle((33.1, 8.3), 4.2), 4.4)]
    found = read_rtstruct(structure_set({"ring": ring, "other": other}), IMAGE, frame_of_reference="1.2.3").array
    expected = np.zeros(SHAPE, np.uint8)
    around = disc((15.3, 14.2), 9.1) & ~disc((15.3, 14.2), 4.4)
    expected[:, :, 1], expected[:, :, 2] = around, around | disc((33.1, 30.2), 3.3)
    expected[:, :, 4] = 2 * disc((33.1, 8.3), 4.2)
    # A polygon of 60 corners is a little smaller than its circle.
    assert (found != expected).sum() <= 6
    assert (found[:, :, [0, 3, 5]] == 0).all()


def test_a_keyhole_is_a_hole() -> None:
    outer, inner = circle((18.2, 17.1), 12.3), circle((18.2, 17.1), 5.2)
    keyhole = np.concatenate([outer, outer[:1], inner[::-1][-1:], inner[::-1], outer[:1]])
    one = read_rtstruct(structure_set({"a": [contour(keyhole, 3)]}), IMAGE).array
    two = read_rtstruct(structure_set({"a": [contour(outer, 3), contour(inner, 3)]}), IMAGE).array
    assert (one == two).all()
    assert one[18, 17, 3] == 0
    assert one[18, 26, 3] == 1


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(3, 12))
def test_any_simple_polygon_is_filled_as_matplotlib_fills_it(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    angle = np.sort(random.uniform(0, 2 * np.pi, count))
    radius = random.uniform(3, 25, count)
    points = np.stack([19 + radius * np.cos(angle), 17 + radius * np.sin(angle)], axis=1)
    ours, _ = filled([points], SHAPE[:2])
    i, j = np.meshgrid(np.arange(SHAPE[0]), np.arange(SHAPE[1]), indexing="ij")
    # Slightly moved, as ours decides for centres on an edge; a polygon around its own centre never crosses itself.
    theirs = Outline(points - 1e-6).contains_points(np.column_stack([i.ravel(), j.ravel()])).reshape(ours.shape)
    assert (ours == theirs).all()


def test_a_square_through_the_centres_takes_one_edge_of_each_pair() -> None:
    square = np.array([[5.0, 5.0], [9.0, 5.0], [9.0, 12.0], [5.0, 12.0]])
    inside, crossings = filled([square], SHAPE[:2])
    expected = np.zeros(SHAPE[:2], bool)
    expected[5:9, 5:12] = True
    assert (inside == expected).all()
    assert crossings == 14


@pytest.mark.parametrize(("off", "slice_"), [(0.4, 3), (-0.4, 3), (0.6, 4)])
def test_a_contour_belongs_to_the_nearest_slice(off: float, slice_: int) -> None:
    found = read_rtstruct(structure_set({"a": [contour(circle((18, 17), 6), 3 + off)]}), IMAGE).array
    assert np.flatnonzero(found.any(axis=(0, 1))).tolist() == [slice_]


SQUARE = np.array([[5.0, 5.0], [9.0, 5.0], [9.0, 12.0], [5.0, 12.0]])


def _spoilt(**changes: Any) -> Dataset:
    item = contour(SQUARE, 2)
    for name, value in changes.items():
        setattr(item, name, value)
    return item


def _leaning() -> Dataset:
    item = contour(SQUARE, 2)
    data = np.array(item.ContourData, float).reshape(-1, 3)
    data[0] += TURNED[:3, 2]
    item.ContourData = [f"{one:.6f}" for one in data.ravel()]
    return item


HOSTILE: dict[str, tuple[list[Dataset], str]] = {
    "above the image": ([contour(SQUARE, 7)], "outside-image"),
    "beside the image": ([contour(SQUARE + 60, 2)], "outside-image"),
    "leaning": ([_leaning()], "tilted-contour"),
    "two numbers a point": ([_spoilt(ContourData=["1", "2", "3", "4"])], "damaged-label"),
    "two points": ([_spoilt(ContourData=["1", "2", "3", "4", "5", "6"])], "damaged-label"),
    "no numbers": ([_spoilt(ContourData=["1e400"] * 9)], "damaged-label"),
    "points only": ([_spoilt(ContourGeometricType="POINT")], "no-contours"),
    "nothing": ([], "no-contours"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_contours_are_refused_without_a_word_about_them(what: str, caplog: pytest.LogCaptureFixture) -> None:
    items, reason = HOSTILE[what]
    with pytest.raises(SeriesRefused) as refused:
        read_rtstruct(structure_set({CANARY: items}), IMAGE)
    assert refused.value.reason == reason
    assert "KOWALSKA" not in str(refused.value) + caplog.text


def test_structures_that_overlap_or_lie_elsewhere_are_refused() -> None:
    both = structure_set({"a": [contour(SQUARE, 2)], "b": [contour(SQUARE + 2, 2)]})
    with pytest.raises(SeriesRefused) as refused:
        read_rtstruct(both, IMAGE)
    assert refused.value.reason == "overlapping-segments"
    assert set(np.unique(read_rtstruct(both, IMAGE, overlaps="highest").array)) == {0, 1, 2}
    assert set(np.unique(read_rtstruct(both, IMAGE, structures=[2], names=["b"]).array)) == {0, 1}
    with pytest.raises(SeriesRefused) as refused:
        read_rtstruct(both, IMAGE, frame_of_reference="1.2.4")
    assert refused.value.reason == "other-frame-of-reference"


def test_a_structure_of_number_0_is_a_label_by_its_name_or_refused() -> None:
    one = structure_set({"a": [contour(SQUARE, 2)]})
    one.StructureSetROISequence[0].ROINumber = one.ROIContourSequence[0].ReferencedROINumber = 0
    assert read_rtstruct(one, IMAGE, names=["a"]).array.any()
    with pytest.raises(SeriesRefused) as refused:
        read_rtstruct(one, IMAGE)
    assert refused.value.reason == "too-many-labels"


def test_a_contour_of_many_crossings_is_given_up() -> None:
    zigzag = np.tile([[5.0, 1.0], [6.0, 30.0]], (50, 1))
    with pytest.raises(SeriesRefused) as refused:
        filled([zigzag], SHAPE[:2], most=1000)
    assert refused.value.reason == "too-many-points"
    assert filled([zigzag] * 700, SHAPE[:2])[1] == 700 * 2900
