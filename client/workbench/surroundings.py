"""What the model sees in a large image outside the window of a desk: found behind, piece by piece."""

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from wardround.client.cases.volume import Volume
from wardround.client.learning.inference import normalise
from wardround.client.workbench.layers import Bytes3D
from wardround.client.workbench.window import SIDE, Window

# Voxels round a piece that are predicted with it and left out: a network sees little at the edge of what it is given.
_HALO = 8

Predict = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


class Surroundings:
    """The predicted labels of a whole image, as far as they are known.

    Pieces near the middle of `near` come first. One thread at a time calls :meth:`look`.

    Parameters
    ----------
    image
        The whole image.
    scale
        Mean and standard deviation of its intensities.
    near
        Where the desk works.
    """

    def __init__(self, image: Volume, scale: tuple[float, float], near: Window) -> None:
        self._image = image
        self.scale = scale
        self.labels: Bytes3D = np.zeros(image.shape, dtype=np.uint8)
        core = SIDE - 2 * _HALO
        middle = [(first + end) / 2 for first, end in zip(near.origin, near.end, strict=True)]
        starts = itertools.product(*(range(0, side, core) for side in image.shape))
        self._left = sorted(
            starts, key=lambda at: -sum((low + core / 2 - mid) ** 2 for low, mid in zip(at, middle, strict=True))
        )

    @property
    def left(self) -> int:
        """Pieces that are not known yet."""
        return len(self._left)

    def look(self, predict: Predict) -> None:
        """Predict the next piece."""
        at = self._left[-1]
        core = SIDE - 2 * _HALO
        ends = [min(low + core, side) for low, side in zip(at, self._image.shape, strict=True)]
        outer = [
            (max(low - _HALO, 0), min(end + _HALO, side))
            for low, end, side in zip(at, ends, self._image.shape, strict=True)
        ]
        (i0, i1), (j0, j1), (k0, k1) = outer
        found = predict(normalise(self._image.array[i0:i1, j0:j1, k0:k1], self.scale)).argmax(axis=0)
        inner = tuple(slice(low - first, end - first) for low, end, (first, _) in zip(at, ends, outer, strict=True))
        self.labels[at[0] : ends[0], at[1] : ends[1], at[2] : ends[2]] = found[inner]
        self._left.pop()
