"""A few of the pairs that a generator has made, kept so that people can see what it makes.

They are no use to any learner. They lie beside the generator in the site's snapshot, and like it they stay there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Pairs that are kept to be looked at.
SHOWN = 4


@dataclass(frozen=True, eq=False)
class Shown:
    """Made pairs on the generator's grid, *n* of them.

    Parameters
    ----------
    images
        ``[n, *sides]``, float32, normalised intensities.
    labels
        ``[n, *sides]``, uint8: what each image was made of.
    spacing
        ``[n, axes]``, float64: millimetres between the voxels of each.
    """

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]
    spacing: npt.NDArray[np.float64]

    @classmethod
    def among(
        cls,
        images: Sequence[npt.NDArray[np.float32]],
        labels: Sequence[npt.NDArray[np.uint8]],
        spacing: Sequence[Sequence[float]],
    ) -> "Shown":
        """At most :data:`SHOWN` of these pairs, evenly over them; there must be one."""
        places = np.linspace(0, len(images) - 1, min(SHOWN, len(images))).round().astype(int)
        return cls(
            np.stack([images[place] for place in places]).astype(np.float32),
            np.stack([labels[place] for place in places]).astype(np.uint8),
            np.array([spacing[place] for place in places], dtype=np.float64),
        )

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """As named arrays."""
        return {"images": self.images, "labels": self.labels, "spacing": self.spacing}

    @classmethod
    def of(cls, arrays: Mapping[str, npt.NDArray[np.generic]]) -> "Shown":
        """What :meth:`arrays` returned."""
        return cls(
            np.asarray(arrays["images"], dtype=np.float32),
            np.asarray(arrays["labels"], dtype=np.uint8),
            np.asarray(arrays["spacing"], dtype=np.float64),
        )
