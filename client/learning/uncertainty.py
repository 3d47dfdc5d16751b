"""What the model itself doubts: the entropy of its predictions under small changes of the image."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from wardround.client.learning.augmentation import Augmentation
from wardround.errors import UsageError

Probabilities = npt.NDArray[np.float32]


class Predictor(Protocol):
    """Anything that predicts, such as :class:`wardround.client.learning.learner.OnlineLearner`."""

    def predict(self, image: npt.NDArray[np.float32]) -> Probabilities:
        """Class probabilities ``[C, I, J, K]`` of a normalised image ``[I, J, K]``."""


def entropy(predictions: Sequence[Probabilities]) -> npt.NDArray[np.float32]:
    """Predictive entropy: of the mean over predictions, as a share of the entropy of a uniform distribution.

    It holds both kinds of doubt: where every single prediction is undecided, and where decided predictions contradict
    each other (Wang et al. 2019, "Aleatoric uncertainty estimation with test-time augmentation", equation 11). Mutual
    information would leave out the first, which is what a drawing settles as well.

    Parameters
    ----------
    predictions
        Class probabilities ``[C, I, J, K]``, float32, each summing to one over C; at least one, and two classes.

    Returns
    -------
    ndarray
        ``[I, J, K]``, float32, 0 (all agree and are certain) … 1 (nothing is known).

    Raises
    ------
    UsageError
        If there is no prediction, only one class, or predictions of different shapes.
    """
    if not predictions or len({prediction.shape for prediction in predictions}) > 1 or len(predictions[0]) < 2:
        raise UsageError(
            "there is no entropy of these predictions",
            "there are none, they have one class only, or they differ in shape",
            "predict one case several times",
        )
    mean: npt.NDArray[np.float64] = np.stack(predictions).mean(axis=0, dtype=np.float64)
    terms = mean * np.log(np.maximum(mean, 1e-12))
    return np.asarray(np.clip(-terms.sum(axis=0) / np.log(len(mean)), 0, 1), dtype=np.float32)


def augmented_predictions(
    learner: Predictor,
    image: npt.NDArray[np.float32],
    passes: int,
    rng: np.random.Generator,
    *,
    augmentation: Augmentation | None = None,
) -> list[Probabilities]:
    """Predict an image as it is and under small changes, each undone in the prediction.

    Changes stay half as strong as those of training, so that the network has seen them: gain and offset of the
    intensities, a stretch about the centre and a shift by whole voxels. There are no flips: left is not right. A shift
    is undone exactly, a stretch up to trilinear interpolation.

    Parameters
    ----------
    learner
        Predicts.
    image
        ``[I, J, K]``, float32, normalised.
    passes
        How many predictions; the first is of the image as it is.
    rng
        Only source of randomness.
    augmentation
        Of training, whose strengths bound the changes; the default one if None.

    Returns
    -------
    list of ndarray
        `passes` times ``[C, I, J, K]``, float32, on the grid of `image`, sums to one over C.
    """
    augmentation = augmentation or Augmentation()
    predictions = [learner.predict(image)] if passes > 0 else []
    for _ in range(passes - 1):
        gain = rng.uniform(1 - augmentation.contrast / 2, 1 + augmentation.contrast / 2)
        lift = rng.uniform(-augmentation.brightness / 2, augmentation.brightness / 2)
        scale = rng.uniform(1 - augmentation.scale / 2, 1 + augmentation.scale / 2, 3)
        # Training shifts by up to this fraction of half a side.
        reach = np.maximum(1, np.round(augmentation.shift * np.array(image.shape) / 4)).astype(int)
        shift = rng.integers(-reach, reach + 1)
        moved = _shifted(_stretched(image, scale), shift)
        found = learner.predict(np.asarray(gain * moved + lift, dtype=np.float32))
        back = np.stack([_stretched(_shifted(channel, -shift), 1 / scale) for channel in found])
        predictions.append(np.asarray(back / back.sum(axis=0), dtype=np.float32))
    return predictions


def _stretched(array: npt.NDArray[np.float32], scale: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """The array stretched by `scale` along each axis about its centre; beyond the edge the edge continues."""
    centre = (np.array(array.shape) - 1) / 2
    moved = ndimage.affine_transform(array, 1 / scale, centre - centre / scale, order=1, mode="nearest")
    return np.asarray(moved, dtype=np.float32)


def _shifted(array: npt.NDArray[np.float32], shift: npt.NDArray[np.int_]) -> npt.NDArray[np.float32]:
    """The array moved by whole voxels; beyond the edge the edge continues."""
    for axis, step in enumerate(shift):
        side = array.shape[axis]
        array = np.take(array, np.clip(np.arange(side) - step, 0, side - 1), axis=axis)
    return array
