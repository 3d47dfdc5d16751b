"""From an image to class probabilities, on the image's own grid."""

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from wardround.models.windows import FittingInferer


def normalise(array: npt.NDArray[np.generic], scale: tuple[float, float] | None = None) -> npt.NDArray[np.float32]:
    """Shift and scale one image to zero mean and unit variance over its own voxels (no statistics of other cases).

    Parameters
    ----------
    array
        Intensities ``[I, J, K]`` in any unit: the scale of a scanner spans four orders of magnitude between cases.
    scale
        :func:`intensity_scale` of the image that `array` is a part of; None where it is the whole image.
    """
    values = np.asarray(array, dtype=np.float64)
    mean, deviation = intensity_scale(values) if scale is None else scale
    return np.asarray((values - mean) / deviation, dtype=np.float32)


def intensity_scale(array: npt.NDArray[np.generic]) -> tuple[float, float]:
    """Mean and standard deviation of all voxels; the latter is 1 where all are equal."""
    deviation = float(array.std(dtype=np.float64))
    return float(array.mean(dtype=np.float64)), deviation if deviation > 0 else 1.0


def predict(
    network: nn.Module,
    image: npt.NDArray[np.float32],
    *,
    stride: int,
    device: torch.device,
    amp: bool = False,
    window: tuple[int, ...] | None = None,
    dimensions: int = 3,
) -> npt.NDArray[np.float32]:
    """Class probabilities of a whole volume by sliding window (MONAI), blended with Gaussian weights.

    Parameters
    ----------
    network
        Maps ``[N, 1, I, J, K]`` to logits ``[N, C, I, J, K]`` for sides that are multiples of `stride`.
    image
        ``[I, J, K]``, float32, normalised by :func:`normalise`.
    stride
        As of the network's architecture.
    device
        Where to compute.
    amp
        Mixed precision (used on CUDA only).
    window
        Sides of the window in voxels; by default as :class:`~wardround.models.windows.FittingInferer` chooses.

    dimensions
        Spatial axes of the network: one with two maps ``[N, 1, I, J]`` and sees the volume slice by slice along k.

    Returns
    -------
    numpy.ndarray
        ``[C, I, J, K]``, float32, sums to one over C.
    """
    inferer = FittingInferer(stride, window, dimensions)
    training = network.training
    network.eval()
    try:
        with torch.inference_mode(), torch.autocast(device.type, enabled=amp and device.type == "cuda"):
            batch = torch.from_numpy(np.ascontiguousarray(image))[None, None].to(device)
            logits = inferer(batch, network)
            return np.asarray(torch.softmax(logits.float(), dim=1)[0].cpu().numpy(), dtype=np.float32)
    finally:
        network.train(training)
