"""Layers: what a viewer lays over an image, as small as it can be sent.

A layer is cut to the smallest box that holds anything. The box and a version say what a page has to redraw, and
whether it has to.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from wardround.client.annotation.prompts import UNLABELLED
from wardround.errors import UsageError

LayerName = Literal["proxy", "prediction", "residual", "confidence", "drawn"]
LAYERS: tuple[LayerName, ...] = get_args(LayerName)

Bytes3D = npt.NDArray[np.uint8]
Box6 = tuple[int, int, int, int, int, int]


@dataclass(frozen=True, eq=False)
class Layer:
    """One overlay.

    Parameters
    ----------
    name
        One of :data:`LAYERS`. ``proxy`` and ``prediction`` hold labels, 0 for background. ``residual`` and
        ``confidence`` hold 0 … 255 for 0 … 1. ``drawn`` holds 0 where nothing was drawn, else the label plus one, so
        that a stroke that says background is 1.
    version
        Rises with every change; never used twice, not even after a restart.
    shape
        ``(I, J, K)`` of the image.
    box
        ``(i0, i1, j0, j1, k0, k1)``, half-open: the smallest box of all values above 0; six zeros if there are none.
    values
        ``[i1 - i0, j1 - j0, k1 - k0]``, uint8.
    """

    name: LayerName
    version: int
    shape: tuple[int, int, int]
    box: Box6
    values: Bytes3D

    def wire(self) -> bytes:
        """The values in the order in which they travel: raw bytes, i fastest."""
        return self.values.tobytes(order="F")

    def whole(self) -> Bytes3D:
        """The layer on the image's grid, ``[I, J, K]``, uint8."""
        volume = np.zeros(self.shape, dtype=np.uint8)
        i0, i1, j0, j1, k0, k1 = self.box
        volume[i0:i1, j0:j1, k0:k1] = self.values
        return volume


def make_layer(
    name: LayerName,
    version: int,
    values: Bytes3D,
    origin: tuple[int, int, int] = (0, 0, 0),
    image: tuple[int, int, int] | None = None,
) -> Layer:
    """Cut `values` ``[I, J, K]``, uint8, to their box.

    Parameters
    ----------
    origin, image
        Where they begin in an image, and its shape, where they are a part of one.
    """
    shape = image or (values.shape[0], values.shape[1], values.shape[2])
    plane = np.asarray(values.any(axis=2))
    if not plane.any():
        return Layer(name, version, shape, (0, 0, 0, 0, 0, 0), np.zeros((0, 0, 0), dtype=np.uint8))
    (i0, i1), (j0, j1) = _bounds(plane, 1), _bounds(plane, 0)
    k0, k1 = _bounds(values[i0:i1, j0:j1], (0, 1))
    i, j, k = origin
    box = (i + i0, i + i1, j + j0, j + j1, k + k0, k + k1)
    return Layer(name, version, shape, box, np.asfortranarray(values[i0:i1, j0:j1, k0:k1]))


def _bounds(found: npt.NDArray[np.generic], others: int | tuple[int, int]) -> tuple[int, int]:
    """First and one past the last position, along the axis that is left, that holds anything."""
    where = np.flatnonzero(np.any(found, axis=others))
    return int(where[0]), int(where[-1]) + 1


def share_bytes(share: npt.NDArray[np.float32]) -> Bytes3D:
    """A map of 0 … 1 as 0 … 255."""
    return np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)


def drawn_bytes(labels: Bytes3D) -> Bytes3D:
    """Drawn labels, :data:`UNLABELLED` elsewhere, as the layer ``drawn`` has them."""
    return np.where(labels == UNLABELLED, 0, labels + np.uint8(1)).astype(np.uint8)


def checked_name(name: str) -> LayerName:
    """`name`, if there is such a layer.

    Raises
    ------
    UsageError
        If there is none.
    """
    for known in LAYERS:
        if name == known:
            return known
    raise UsageError(f"there is no layer called {name!r}", "", f"choose one of {', '.join(LAYERS)}")
