"""From an image to class probabilities, on the image's own grid."""

import numpy as np
import numpy.typing as npt
import torch
from monai.inferers import SlidingWindowInferer
from torch import nn

# Longest side of a window in voxels: smaller volumes are predicted in one piece.
WINDOW_LIMIT = 128


def normalise(array: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Shift and scale one image to zero mean and unit variance over its own voxels (no statistics of other cases).

    Parameters
    ----------
    array
        Intensities ``[I, J, K]`` in any unit: the scale of a scanner spans four orders of magnitude between cases.
    """
    values = np.asarray(array, dtype=np.float64)
    deviation = values.std()
    return np.asarray((values - values.mean()) / (deviation if deviation > 0 else 1.0), dtype=np.float32)


def padded_shape(shape: tuple[int, ...], stride: int) -> tuple[int, ...]:
    """Round every side of `shape` up to a multiple of `stride`, and all of them to two where one would do for each.

    A network's lowest level has one voxel a stride, and a single voxel has no variance to normalise by.
    """
    if all(side <= stride for side in shape):
        return (2 * stride,) * len(shape)
    return tuple(-(-side // stride) * stride for side in shape)


def predict(
    network: nn.Module,
    image: npt.NDArray[np.float32],
    *,
    stride: int,
    device: torch.device,
    amp: bool = False,
    window: tuple[int, ...] | None = None,
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
        Sides of the window in voxels; by default the volume itself, rounded up and capped at :data:`WINDOW_LIMIT`.

    Returns
    -------
    numpy.ndarray
        ``[C, I, J, K]``, float32, sums to one over C.
    """
    sides = window or tuple(min(side, WINDOW_LIMIT) for side in image.shape)
    inferer = SlidingWindowInferer(
        roi_size=padded_shape(sides, stride), sw_batch_size=1, overlap=0.25, mode="gaussian", padding_mode="constant"
    )
    training = network.training
    network.eval()
    try:
        with torch.inference_mode(), torch.autocast(device.type, enabled=amp and device.type == "cuda"):
            batch = torch.from_numpy(np.ascontiguousarray(image))[None, None].to(device)
            logits = inferer(batch, network)
            return np.asarray(torch.softmax(logits.float(), dim=1)[0].cpu().numpy(), dtype=np.float32)
    finally:
        network.train(training)
