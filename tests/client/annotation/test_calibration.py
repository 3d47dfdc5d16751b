"""Calibration: a model is as certain as it is right, and is believed only if it fits what was drawn."""

import numpy as np
import pytest

from wardround.client.annotation.calibration import calibrate, shape_estimate
from wardround.client.annotation.prompts import Annotations, ExtentPrompt
from wardround.client.annotation.propagation import ProxyMask

SHAPE = (12, 14, 10)


def one_hot(inside: np.ndarray) -> np.ndarray:
    return np.stack([~inside, inside]).astype(np.float32)


def ball() -> np.ndarray:
    i, j, k = np.indices(SHAPE)
    return (i - 6) ** 2 + (j - 7) ** 2 + (k - 5) ** 2 < 12


def proxy(inside: np.ndarray, *drawn: int) -> ProxyMask:
    annotated = np.zeros(SHAPE, dtype=bool)
    annotated[:, list(drawn)] = True
    return ProxyMask(one_hot(inside), annotated, np.ones(SHAPE, dtype=np.float32))


def prediction(inside: np.ndarray, certainty: float = 0.9) -> np.ndarray:
    hard = one_hot(inside)
    return (hard * certainty + (1 - hard) * (1 - certainty)).astype(np.float32)


def test_an_overconfident_model_is_cooled_to_its_accuracy() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(SHAPE) < 0.5
    wrong = rng.random(SHAPE) < 0.2
    found = calibrate(prediction(truth ^ wrong, 0.999), proxy(truth, *range(14)))
    np.testing.assert_allclose(found.max(axis=0).mean(), 0.8, atol=0.03)
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-5)
    assert np.array_equal(found.argmax(axis=0), (truth ^ wrong).astype(int))


def test_a_timid_model_is_sharpened() -> None:
    assert calibrate(prediction(ball(), 0.6), proxy(ball(), 7)).max(axis=0).mean() > 0.9


def test_only_drawn_voxels_decide() -> None:
    timid = prediction(ball(), 0.6)
    elsewhere = ball()
    elsewhere[:, 9:] = True
    assert np.array_equal(calibrate(timid, proxy(ball(), 7)), calibrate(timid, proxy(elsewhere, 7)))
    assert calibrate(timid, proxy(ball())) is timid


def test_a_good_prediction_is_believed() -> None:
    found = shape_estimate(Annotations(), None, prediction(ball()), None)
    assert found is not None
    np.testing.assert_allclose(found, prediction(ball())[1], atol=1e-6)


@pytest.mark.parametrize(
    "bad",
    [
        prediction(np.zeros(SHAPE, dtype=bool)),
        prediction(np.ones(SHAPE, dtype=bool)),
        prediction(ball(), 0.55),
    ],
)
def test_nothing_everything_and_undecided_are_not_believed(bad: np.ndarray) -> None:
    assert shape_estimate(Annotations(), None, bad, None) is None


def test_a_model_that_contradicts_the_drawing_is_not_believed() -> None:
    elsewhere = np.roll(ball(), 6, axis=0)
    assert shape_estimate(Annotations(), proxy(ball(), 6, 7), prediction(elsewhere), None) is None
    assert shape_estimate(Annotations(), proxy(ball(), 6, 7), prediction(ball()), None) is not None


def test_outside_the_extent_there_is_nothing() -> None:
    extent = ExtentPrompt((0, 7, 0), (11, 13, 9))
    found = shape_estimate(Annotations(extent=extent), None, prediction(ball()), None)
    assert found is not None
    assert found[:, :7].max() == 0
    assert found[:, 7:].max() > 0.5


def test_uncertainty_pulls_towards_one_half() -> None:
    doubt = np.zeros(SHAPE, dtype=np.float32)
    doubt[:, 7] = 1
    found = shape_estimate(Annotations(), None, prediction(ball()), doubt)
    assert found is not None
    assert (found[:, 7] == 0.5).all()
    np.testing.assert_allclose(found[:, 6], prediction(ball())[1][:, 6], atol=1e-6)
