"""A 3D image with its place in the patient."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wardround.errors import GeometryError

# Two grids are one if their affines agree to this fraction of the smallest voxel spacing.
GRID_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Volume:
    """A scalar or label image on a regular grid.

    Parameters
    ----------
    array
        Shape ``(I, J, K)``, indexed ``[i, j, k]`` (first axis = x). Any real dtype; intensities as float32 after
        slope and intercept, labels as uint8.
    affine
        Shape ``(4, 4)``, float64: voxel index ``(i, j, k, 1)`` to LPS millimetres, as DICOM and ITK use them.
        Index ``(0, 0, 0)`` is the *centre* of the first voxel.

    Raises
    ------
    GeometryError
        If the array is not 3D or empty, or the affine is not an invertible 4x4 matrix of finite numbers.
    """

    array: npt.NDArray[np.generic]
    affine: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.array.ndim != 3 or 0 in self.array.shape:
            raise GeometryError(
                f"a volume must have three non-empty axes, not shape {self.array.shape}",
                "the file holds a single slice, a time series or several channels",
                "export one 3D image per case",
            )
        affine = np.asarray(self.affine, dtype=np.float64)
        object.__setattr__(self, "affine", affine)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
            raise GeometryError(
                "the affine of a volume must be an invertible 4x4 matrix",
                "the header holds no usable orientation or a spacing of zero",
                "repair the header and import the case again",
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along i, j, k."""
        i, j, k = self.array.shape
        return i, j, k

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between voxel centres along i, j, k in millimetres."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)

    def same_grid(self, other: "Volume") -> bool:
        """Whether `other` has the same shape and, within :data:`GRID_TOLERANCE`, the same affine."""
        if self.shape != other.shape:
            return False
        tolerance = GRID_TOLERANCE * min(self.spacing)
        corners = np.array([[0, 0, 0, 1], [*(n - 1 for n in self.shape), 1]], dtype=np.float64)
        steps = np.abs(self.affine[:3, :3] - other.affine[:3, :3]).max() * max(self.shape)
        return bool(np.abs(corners @ (self.affine - other.affine).T).max() <= tolerance and steps <= tolerance)

    def with_array(self, array: npt.NDArray[np.generic]) -> "Volume":
        """Another array on the same grid."""
        if array.shape != self.shape:
            raise GeometryError(
                f"an array of shape {array.shape} does not lie on a grid of shape {self.shape}",
                "it was made for another volume",
                "pass an array of the volume's own shape",
            )
        return Volume(array, self.affine)
