"""How far a model's prediction can be believed, judged by what was drawn."""

import numpy as np
import numpy.typing as npt

from wardround.client.annotation.prompts import Annotations
from wardround.client.annotation.propagation import ProxyMask

FloatArray = npt.NDArray[np.float32]

# A prediction is believed that fills at most this share of the volume, is this certain within its object, and agrees
# with what was drawn to this Dice.
LARGEST_SHARE = 0.5
LEAST_CERTAINTY = 0.7
LEAST_AGREEMENT = 0.5
# Temperatures tried by calibration.
TEMPERATURES = tuple(float(t) for t in np.geomspace(0.125, 8, 37))


def calibrate(prediction: FloatArray, proxy: ProxyMask) -> FloatArray:
    """Scale the temperature of a prediction so that it is as certain as it is right on what was drawn.

    Temperature scaling (Guo et al. 2017, "On calibration of modern neural networks", section 4.2): the one temperature
    that minimises the mean negative log-likelihood of the drawn voxels.

    Parameters
    ----------
    prediction
        Class probabilities ``[C, I, J, K]``, float32.
    proxy
        Of the same case; only its drawn voxels are looked at.

    Returns
    -------
    ndarray
        ``[C, I, J, K]``, float32, sums to one over C; `prediction` itself where nothing was drawn.
    """
    if not proxy.annotated.any():
        return prediction
    logits = np.log(np.maximum(prediction, 1e-6))
    seen = logits[:, proxy.annotated].astype(np.float64)
    labels = proxy.probabilities[:, proxy.annotated].argmax(axis=0)[None]
    right = np.take_along_axis(seen, labels, axis=0)[0]
    losses = [float((np.logaddexp.reduce(seen / t, axis=0) - right / t).mean()) for t in TEMPERATURES]
    scaled = logits / TEMPERATURES[int(np.argmin(losses))]
    scaled = np.exp(scaled - scaled.max(axis=0))
    return np.asarray(scaled / scaled.sum(axis=0), dtype=np.float32)


def shape_estimate(
    annotations: Annotations, proxy: ProxyMask | None, prediction: FloatArray, uncertainty: FloatArray | None
) -> FloatArray | None:
    """What the model says about the object's shape, if it can be believed.

    The drawings decide whether, and how certain the model should be, but are not written into the estimate: from one
    slice to the next it must change as the shape does, not where a drawing corrects the model.

    Parameters
    ----------
    annotations
        What was drawn; outside the extent, where it is known, there is no object.
    proxy
        Of what was drawn; None before anything was.
    prediction
        Class probabilities ``[C, I, J, K]``, float32.
    uncertainty
        ``[I, J, K]``, 0 … 1: pulls the estimate towards one half; or None.

    Returns
    -------
    ndarray or None
        Probability of any structure ``[I, J, K]``, float32; None where the prediction shows no object, fills the
        volume, is undecided, or contradicts what was drawn.
    """
    if proxy is not None:
        prediction = calibrate(prediction, proxy)
    estimate = np.asarray(1 - prediction[0], dtype=np.float32)
    if annotations.extent is not None:
        low, high = annotations.extent.lower, annotations.extent.upper
        inside = np.zeros(estimate.shape, dtype=bool)
        inside[tuple(slice(first, last + 1) for first, last in zip(low, high, strict=True))] = True
        estimate = np.where(inside, estimate, np.float32(0))
    found = estimate > 0.5
    if not found.any() or found.mean() > LARGEST_SHARE:
        return None
    if proxy is None:
        if float(prediction.max(axis=0)[found].mean()) < LEAST_CERTAINTY:
            return None
    else:
        drawn, right = found[proxy.annotated], proxy.labels[proxy.annotated] > 0
        if 2 * np.count_nonzero(drawn & right) < LEAST_AGREEMENT * (np.count_nonzero(drawn) + np.count_nonzero(right)):
            return None
    if uncertainty is not None:
        estimate = estimate + uncertainty * (0.5 - estimate)
    return np.asarray(estimate, dtype=np.float32)
