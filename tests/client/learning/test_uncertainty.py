"""Uncertainty: between certain and undecided, and predictions that come back where they belong."""

import numpy as np
import pytest
from scipy import ndimage

from wardround.client.learning.augmentation import Augmentation
from wardround.client.learning.uncertainty import augmented_predictions, entropy
from wardround.errors import UsageError

SHAPE = (20, 24, 16)


class Threshold:
    """A network that is equivariant: every voxel is judged by its own intensity."""

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []

    def predict(self, image: np.ndarray) -> np.ndarray:
        self.images.append(image)
        inside = 1 / (1 + np.exp(-4 * image))
        return np.stack([1 - inside, inside]).astype(np.float32)


def smooth_image() -> np.ndarray:
    noise = np.random.default_rng(3).normal(size=SHAPE)
    image = ndimage.gaussian_filter(noise, 3)
    return (image / image.std()).astype(np.float32)


def one_hot(label: int) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[label][:, None, None, None] * np.ones((1, 2, 2, 2), np.float32)


def test_equal_certain_predictions_leave_no_doubt() -> None:
    assert entropy([one_hot(1), one_hot(1)]).max() == 0


def test_a_uniform_prediction_is_all_doubt() -> None:
    np.testing.assert_allclose(entropy([np.full((3, 2, 2, 2), 1 / 3, np.float32)]), 1, atol=1e-6)


def test_certain_predictions_that_contradict_each_other_are_doubt() -> None:
    found = entropy([one_hot(0), one_hot(1)])
    np.testing.assert_allclose(found, np.log(2) / np.log(3), atol=1e-6)
    assert found.dtype == np.float32
    assert found.shape == (2, 2, 2)


@pytest.mark.parametrize("predictions", [[], [np.ones((1, 2, 2, 2))], [one_hot(0), one_hot(0)[:, :1]]])
def test_what_has_no_entropy_is_refused(predictions: list[np.ndarray]) -> None:
    with pytest.raises(UsageError):
        entropy(predictions)


def test_predictions_come_back_aligned() -> None:
    image, network = smooth_image(), Threshold()
    quiet = Augmentation(contrast=0, brightness=0)
    found = augmented_predictions(network, image, 6, np.random.default_rng(0), augmentation=quiet)
    inner = (slice(None), *(slice(4, side - 4) for side in SHAPE))
    for prediction in found:
        assert prediction.shape == (2, *SHAPE)
        np.testing.assert_allclose(prediction.sum(axis=0), 1, atol=1e-5)
        assert np.abs(prediction - found[0])[inner].mean() < 0.03
    # The network did see other images: left where they were, the predictions would not agree.
    assert all(np.abs(other - image).mean() > 0.05 for other in network.images[1:])
    assert all(np.abs(Threshold().predict(other) - found[0])[inner].mean() > 0.06 for other in network.images[1:])


def test_a_shift_is_undone_exactly() -> None:
    image, network = smooth_image(), Threshold()
    shifts_only = Augmentation(scale=0, contrast=0, brightness=0, shift=0.4)
    first, *others = augmented_predictions(network, image, 5, np.random.default_rng(1), augmentation=shifts_only)
    inner = (slice(None), *(slice(3, side - 3) for side in SHAPE))
    assert all(np.array_equal(other[inner].round(5), first[inner].round(5)) for other in others)
    assert not all(np.array_equal(seen, image) for seen in network.images)


def test_the_first_prediction_is_of_the_image_itself_and_the_generator_decides_the_rest() -> None:
    image, network = smooth_image(), Threshold()

    def run(seed: int) -> list[np.ndarray]:
        return augmented_predictions(network, image, 3, np.random.default_rng(seed))

    one, same, other = run(0), run(0), run(1)
    assert len(one) == 3
    assert np.array_equal(one[0], network.predict(image))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one[1], other[1])
    assert run(0)[:1][0].shape == (2, *SHAPE)
    assert augmented_predictions(network, image, 0, np.random.default_rng(0)) == []
