"""Segmentation metrics of one case, per structure, on the original grid."""

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class StructureScore:
    """How well one structure of one case is segmented.

    Parameters
    ----------
    dice
        0 … 1 of the thresholded (argmax) mask. An empty prediction of a present structure, and a prediction of an
        absent structure, count 0; NaN where the structure is absent and none was predicted (nothing to measure).
    hd95_mm
        95th percentile of the symmetric Hausdorff distance in millimetres; NaN where either mask is empty.
    assd_mm
        Average symmetric surface distance in millimetres; NaN where either mask is empty.
    """

    dice: float
    hd95_mm: float
    assd_mm: float


def dice(prediction: Labels, reference: Labels, label: int) -> float:
    """Dice of one structure in two label maps of one shape, as :attr:`StructureScore.dice` counts it."""
    ours, theirs = prediction == label, reference == label
    total = int(ours.sum()) + int(theirs.sum())
    if total == 0:
        return float("nan")
    return 2.0 * float(np.logical_and(ours, theirs).sum()) / total


def mean_dice(prediction: Labels, reference: Labels, labels: int) -> float:
    """Mean of :func:`dice` over the structures 1 … `labels` - 1 that are present or predicted."""
    values = np.array([dice(prediction, reference, label) for label in range(1, labels)])
    return float(values[~np.isnan(values)].mean()) if not np.isnan(values).all() else float("nan")


def score(prediction: Labels, reference: Labels, label: int, spacing: tuple[float, float, float]) -> StructureScore:
    """All metrics of one structure.

    Parameters
    ----------
    prediction, reference
        Label maps ``[I, J, K]``, uint8, on the original grid of the image.
    label
        Value of the structure.
    spacing
        Millimetres between voxel centres along i, j, k.
    """
    ours, theirs = prediction == label, reference == label
    overlap = dice(prediction, reference, label)
    if not ours.any() or not theirs.any():
        return StructureScore(overlap, float("nan"), float("nan"))
    both = np.argwhere(ours | theirs)
    box = tuple(slice(max(0, low - 1), high + 2) for low, high in zip(both.min(0), both.max(0), strict=True))
    a = torch.from_numpy(ours[box].astype(np.float32))[None, None]
    b = torch.from_numpy(theirs[box].astype(np.float32))[None, None]
    with warnings.catch_warnings():
        # MONAI 1.6 calls its own edge finder with an argument that it has deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        hd95 = compute_hausdorff_distance(a, b, include_background=True, percentile=95, spacing=list(spacing))
        assd = compute_average_surface_distance(a, b, include_background=True, symmetric=True, spacing=list(spacing))
    return StructureScore(overlap, float(hd95.item()), float(assd.item()))
