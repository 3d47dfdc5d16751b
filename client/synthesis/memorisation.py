"""Does a generator give patients away: are its images nearer to those that it learnt from than other patients' are?

Each synthetic image is held against the training image that is most like it, and so is each image of people whom the
generator has not seen. An image counts as a copy where it is far nearer than those people are. And where synthetic
images as a whole are nearer, by the rank test of Meehan et al. 2020 ("A non-parametric test to detect data-copying in
generative models"), the generator has learnt its training images rather than their kind.

Two images are compared piece by piece, each piece at the shift that suits it best, by correlation: a copy is found as
well if it is brighter, noisier, shifted or bent a little.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import fft, ndimage
from scipy.stats import mannwhitneyu
from torch import Tensor

from wardround.errors import DataError, GeometryError

FloatArray = npt.NDArray[np.float32]

# With fewer images of other people no difference could be told from chance.
FEWEST = 3
# Variance below which a piece of an image, whose variance is 1 as a whole, shows nothing.
FLAT = 0.01


@dataclass(frozen=True)
class MemorisationSettings:
    """How near is too near.

    Parameters
    ----------
    candidates
        Training images that are looked at piece by piece: the most similar ones as a whole.
    smoothing
        Width in voxels of a Gaussian over all images first: a generator that makes less noise than a scanner is not
        nearer to anybody by that.
    shift
        Largest shift of a whole image along each axis, in voxels.
    piece
        Side of a piece in voxels.
    reach
        Largest further shift of a piece along each axis, in voxels.
    copied
        An image is a copy below this fraction of the distance at which five of a hundred unseen people lie.
    nearer
        Largest accepted probability that a synthetic image is nearer to the training images than an unseen person's;
        0.5 where there is no difference.
    significance
        Of the rank test: only what is less probable by chance counts as nearer. Slices of one person are not
        independent, so that it is a convention, not a probability.
    """

    candidates: int = 4
    smoothing: float = 1.0
    shift: int = 4
    piece: int = 9
    reach: int = 2
    copied: float = 0.5
    nearer: float = 0.8
    significance: float = 0.01


@dataclass(frozen=True, eq=False)
class MemorisationReport:
    """What was found, and what is made of it.

    Parameters
    ----------
    copies
        Synthetic images that are copies.
    nearest_synthetic, nearest_held_out
        Distance to the nearest training image, of every synthetic and of every unseen image: 1 - correlation, float64,
        0 for a copy, about 1 for what has nothing in common.
    neighbours
        Index of the nearest training image of every synthetic one.
    nearer
        Probability that a synthetic image is nearer than an unseen one (ties count half), 0 … 1.
    chance
        Probability of such a difference, or of a larger one, where there is none (one-sided Mann-Whitney test).
    passed
        Whether nothing was copied, and synthetic images are not nearer as a whole.
    """

    copies: int
    nearest_synthetic: npt.NDArray[np.float64]
    nearest_held_out: npt.NDArray[np.float64]
    neighbours: npt.NDArray[np.int_]
    nearer: float
    chance: float
    passed: bool


def memorised(
    synthetic: FloatArray | Sequence[FloatArray],
    training: FloatArray | Sequence[FloatArray],
    held_out: FloatArray | Sequence[FloatArray],
    settings: MemorisationSettings = MemorisationSettings(),
) -> MemorisationReport:
    """Compare synthetic images with those that their generator learnt from.

    Parameters
    ----------
    synthetic, training, held_out
        ``[N, *spatial]``, float32, two or three spatial axes, all on one grid, any intensity scale. `training` holds
        **all** that the generator has seen; `held_out` images of other people from the same scanners, of whom the
        generator has seen nothing. Both sets are best made alike, such as one slice in three of each person.
    settings
        How near is too near.

    Raises
    ------
    DataError
        If there are too few images to tell.
    GeometryError
        If grids differ.
    """
    parts = [np.asarray(images, dtype=np.float32) for images in (synthetic, training, held_out)]
    if not len(parts[0]) or not len(parts[1]) or len(parts[2]) < FEWEST:
        raise DataError(
            f"copies cannot be told with {len(parts[0])} synthetic, {len(parts[1])} training and "
            f"{len(parts[2])} unseen images",
            f"it needs one, one and {FEWEST}",
            "keep more images from the generator, and do not use it until then",
        )
    if len({images.shape[1:] for images in parts}) > 1:
        raise GeometryError(
            "synthetic, training and unseen images must lie on one grid",
            "their sides are " + ", ".join(str(images.shape[1:]) for images in parts),
            "resample them to the generator's grid",
        )
    made, learnt, unseen = (_normalised(_smoothed(images, settings.smoothing)) for images in parts)
    distances, neighbours = _nearest(made, learnt, settings)
    expected, _ = _nearest(unseen, learnt, settings)
    copies = int((distances < settings.copied * np.quantile(expected, 0.05)).sum())
    test = mannwhitneyu(distances, expected, alternative="less")
    nearer = 1 - float(test.statistic) / (len(distances) * len(expected))
    chance = float(test.pvalue)
    passed = copies == 0 and not (nearer > settings.nearer and chance < settings.significance)
    return MemorisationReport(copies, distances, expected, neighbours, nearer, chance, passed)


def _smoothed(images: FloatArray, width: float) -> FloatArray:
    return np.asarray(ndimage.gaussian_filter(images, (0, *(width,) * (images.ndim - 1))), dtype=np.float32)


def _normalised(images: FloatArray) -> FloatArray:
    """Every image with mean 0 and deviation 1; a constant one is 0."""
    axes = tuple(range(1, images.ndim))
    centred = images - images.mean(axis=axes, keepdims=True)
    deviation = centred.std(axis=axes, keepdims=True)
    return np.asarray(centred / np.maximum(deviation, 1e-6), dtype=np.float32)


def _nearest(
    images: FloatArray, training: FloatArray, settings: MemorisationSettings
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int_]]:
    """Distance to the nearest training image, and which one it is."""
    alike, shifts = _alike(images, training, settings.shift)
    count = min(settings.candidates, len(training))
    chosen = np.argsort(-alike, axis=1, kind="stable")[:, :count]
    margin = settings.shift + settings.reach
    padded = np.pad(training, [(0, 0)] + [(margin, margin)] * (training.ndim - 1), mode="edge")
    distances, neighbours = np.empty(len(images)), np.empty(len(images), dtype=int)
    for index, candidates in enumerate(chosen):
        aligned = []
        for one in candidates:
            starts = settings.shift - shifts[index, one]
            ends = starts + np.array(images.shape[1:]) + 2 * settings.reach
            aligned.append(padded[(one, *(slice(*ends) for ends in zip(starts, ends, strict=True)))])
        found = _distances(images[index], np.stack(aligned), settings)
        best = int(found.argmin())
        distances[index], neighbours[index] = found[best], candidates[best]
    return distances, neighbours


def _alike(
    images: FloatArray, training: FloatArray, shift: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int_]]:
    """Correlation of whole images at their best shift, round the edges, ``[N, M]``, and that shift, ``[N, M, axes]``.

    An image is the training image moved by the shift.
    """
    axes = tuple(range(1, images.ndim))
    furthest = [min(shift, (side - 1) // 2) for side in images.shape[1:]]
    moves = np.array(list(product(*(range(-far, far + 1) for far in furthest))))
    theirs = np.conj(fft.rfftn(training, axes=axes))
    found = np.empty((len(images), len(training)))
    shifts = np.empty((len(images), len(training), len(axes)), dtype=int)
    for index, image in enumerate(images):
        products = fft.irfftn(fft.rfftn(image) * theirs, s=images.shape[1:], axes=axes)
        near = products[(slice(None), *moves.T)]
        found[index], shifts[index] = near.max(axis=1), moves[near.argmax(axis=1)]
    return found / images[0].size, shifts


def _distances(image: FloatArray, candidates: FloatArray, settings: MemorisationSettings) -> npt.NDArray[np.float64]:
    """1 - correlation of pieces at their best shifts, averaged over the pieces that show something.

    `candidates`, ``[K, *spatial]``, are larger than `image` by the reach on every side.
    """
    piece = min(settings.piece, *image.shape)
    ours, theirs = torch.from_numpy(image)[None, None], torch.from_numpy(candidates)[:, None]
    mean, their_mean = _averaged(ours, piece), _averaged(theirs, piece)
    variance = (_averaged(ours.square(), piece) - mean.square()).clamp_min(0)
    their_variance = (_averaged(theirs.square(), piece) - their_mean.square()).clamp_min(FLAT)
    best = -torch.ones(len(candidates), *mean.shape[1:])
    for shift in product(range(2 * settings.reach + 1), repeat=image.ndim):
        part, part_mean, part_variance = theirs, their_mean, their_variance
        for axis, start in enumerate(shift, start=2):
            part = part.narrow(axis, start, ours.shape[axis])
            part_mean = part_mean.narrow(axis, start, mean.shape[axis])
            part_variance = part_variance.narrow(axis, start, mean.shape[axis])
        together = _averaged(ours * part, piece) - mean * part_mean
        best = torch.maximum(best, together / (variance.clamp_min(FLAT) * part_variance).sqrt())
    # What shows more counts more; a piece without contrast says nothing.
    weight = torch.where(variance > FLAT, variance.sqrt(), 0.0)
    total = float(weight.sum())
    axes = tuple(range(1, best.ndim))
    likeness = (weight * best).sum(dim=axes) / total if total > 0 else torch.zeros(len(candidates))
    return np.asarray(1 - likeness.double().numpy(), dtype=np.float64)


def _averaged(images: Tensor, piece: int) -> Tensor:
    """Mean of every piece that lies inside the image."""
    pool = F.avg_pool2d if images.ndim == 4 else F.avg_pool3d
    return pool(images, piece, stride=1)
