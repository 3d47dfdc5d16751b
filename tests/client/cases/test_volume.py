"""Volumes: spacing, and when two grids are one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardround.client.cases.volume import Volume
from wardround.errors import GeometryError


def volume(shape: tuple[int, ...] = (3, 4, 5), affine: object = None) -> Volume:
    return Volume(np.zeros(shape, np.float32), np.eye(4) if affine is None else affine)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5, 1), (3, 0, 5), ()])
def test_an_array_that_is_not_3d_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(GeometryError, match="three non-empty axes"):
        volume(shape)


@pytest.mark.parametrize(
    "affine", [np.zeros((4, 4)), np.eye(3), np.full((4, 4), np.nan), np.diag([1, 1, 0, 1]), np.diag([np.inf, 1, 1, 1])]
)
def test_an_affine_that_leads_nowhere_is_refused(affine: object) -> None:
    with pytest.raises(GeometryError, match="invertible"):
        volume(affine=affine)


def test_spacing_is_that_of_the_axes_however_they_are_turned() -> None:
    turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.5, 2, 3])
    assert volume(affine=affine).spacing == (0.5, 2.0, 3.0)


def test_the_affine_becomes_float64() -> None:
    assert volume(affine=np.eye(4, dtype=np.float32)).affine.dtype == np.float64


def test_an_array_of_another_shape_does_not_lie_on_the_grid() -> None:
    with pytest.raises(GeometryError, match="does not lie"):
        volume().with_array(np.zeros((3, 4, 6)))


def test_another_array_keeps_the_grid() -> None:
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    other = volume(affine=affine).with_array(np.ones((3, 4, 5), np.uint8))
    assert other.same_grid(volume(affine=affine))
    assert other.array.dtype == np.uint8


@given(
    row=st.integers(0, 2),
    column=st.integers(0, 3),
    error=st.floats(0.01, 1) | st.floats(-1, -0.01),
    spacing=st.floats(0.3, 5),
)
def test_a_difference_that_shows_makes_another_grid(row: int, column: int, error: float, spacing: float) -> None:
    affine = np.diag([spacing, spacing, spacing, 1])
    other = affine.copy()
    other[row, column] += error * spacing
    assert volume(affine=affine).same_grid(volume(affine=affine))
    if abs(np.linalg.det(other[:3, :3])) > 1e-6:
        assert not volume(affine=affine).same_grid(volume(affine=other))


def test_rounding_to_32_bits_keeps_the_grid() -> None:
    affine = np.diag([0.9375, 0.9375, 1.1, 1.0])
    affine[:3, 3] = (-123.4567, 98.7654, 210.12345)
    rounded = affine.astype(np.float32).astype(np.float64)
    assert not np.array_equal(affine, rounded)
    assert volume(affine=affine).same_grid(volume(affine=rounded))


def test_another_shape_is_another_grid() -> None:
    assert not volume((3, 4, 5)).same_grid(volume((3, 5, 4)))
