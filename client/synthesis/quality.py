"""Are synthetic images worth learning from: do they show what their masks say, and do they look real?

Faithfulness is measured with a segmenter that knows real images only, and against shuffled masks; realism with the
power per spatial frequency, and with the kernel distance of features, which is unbiased for the few images that a site
has (Bińkowski et al. 2018, "Demystifying MMD GANs").
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import fft
from torch import Tensor, nn

from wardround.client.learning.metrics import mean_dice
from wardround.errors import DataError, GeometryError, UsageError
from wardround.models.catalogue import Features

FloatArray = npt.NDArray[np.float32]
LabelArray = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float64]

# Ways to shuffle masks, at most; each is as good as another.
SHUFFLES = 16


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """How well synthetic images show their masks.

    Parameters
    ----------
    each
        ``[N]``: Dice of the segmenter's answer with the mask of each image, mean over structures; NaN where neither
        shows any.
    dice
        Mean of `each`, 0 … 1.
    shuffled
        The same mean with the masks of other images: what a generator that ignores its masks would reach.
    """

    each: Values
    dice: float
    shuffled: float


def faithfulness(
    predict: Callable[[FloatArray], LabelArray], images: FloatArray, labels: LabelArray, classes: int
) -> Faithfulness:
    """Ask a frozen segmenter what synthetic images show.

    Parameters
    ----------
    predict
        Images ``[N, *spatial]`` to labels ``[N, *spatial]``. It has learnt from real images of other people than the
        generator, else it finds what both have learnt by heart.
    images, labels
        ``[N, *spatial]``: synthetic images, and the masks that they were made for.
    classes
        Labels including background.

    Raises
    ------
    DataError
        If there are fewer than two images: a single mask cannot be shuffled.
    GeometryError
        If the segmenter's answer, or the masks, lie on another grid.
    """
    _at_least_two(images, labels)
    found = np.asarray(predict(images))
    if found.shape != labels.shape or images.shape != labels.shape:
        raise GeometryError(
            "images, their masks and what is found in them must lie on one grid",
            f"their shapes are {images.shape}, {labels.shape} and {found.shape}",
            "resample the masks, or take the strongest class of the logits",
        )
    count = len(labels)
    steps = np.unique(np.linspace(1, count - 1, min(count - 1, SHUFFLES)).round().astype(int))
    each = _dice_of(found, labels, classes)
    others = np.concatenate([_dice_of(found, np.roll(labels, step, axis=0), classes) for step in steps])
    return Faithfulness(each, _mean(each), _mean(others))


def radial_spectrum(images: FloatArray, bands: int = 8) -> Values:
    """Mean power per band of spatial frequency.

    Parameters
    ----------
    images
        ``[N, *spatial]``, any number of axes.
    bands
        How many, equally wide, from 0 to 0.5 cycles per voxel. What lies beyond in the corners belongs to the last.

    Returns
    -------
    numpy.ndarray
        ``[bands]``: mean squared amplitude, per frequency, of the images without their mean, under a Hann window (else
        opposite edges that differ would look like detail); in squared intensities per voxel, so that white noise of
        deviation s has s² in every band, and a little less in the first, from which the mean is gone.

    Raises
    ------
    UsageError
        If the grid is too coarse for so many bands.
    """
    sides, axes = images.shape[1:], tuple(range(1, images.ndim))
    radius = np.sqrt(sum(np.square(np.meshgrid(*map(_frequencies, sides), indexing="ij"))))
    band = np.minimum((radius * 2 * bands).astype(int), bands - 1)
    band[radius == 0] = -1
    held = np.bincount(band[band >= 0], minlength=bands)
    if not held.all():
        raise UsageError(
            f"a grid of {'×'.join(map(str, sides))} voxels has no frequency in one of {bands} bands",
            "",
            f"ask for {max(1, min(sides) // 2)} bands at most",
        )
    window = np.ones(())
    for side in sides:
        # The window of as many interior points: no voxel is lost entirely.
        window = np.multiply.outer(window, np.hanning(side + 2)[1:-1])
    centred = np.asarray(images, dtype=np.float64)
    centred = centred - (centred * window).sum(axis=axes, keepdims=True) / window.sum()
    power = np.square(np.abs(fft.fftn(centred * window, axes=axes))).mean(axis=0) / np.square(window).sum()
    sums = np.bincount(band[band >= 0], weights=power[band >= 0], minlength=bands)
    return np.asarray(sums / held, dtype=np.float64)


def spectral_gap(synthetic: FloatArray, real: FloatArray, bands: int = 8) -> Values:
    """How much stronger synthetic images are than real ones in each band, in decibel.

    Parameters
    ----------
    synthetic, real
        ``[N, *spatial]`` and ``[M, *spatial]``, in the same unit and with voxels of the same size.
    bands
        As of :func:`radial_spectrum`.

    Returns
    -------
    numpy.ndarray
        ``[bands]``: 0 where they are alike, below 0 where synthetic images are too smooth, above it where they are too
        rough. Its magnitude is the distance; a plain low-pass shows as a gap that goes on falling.
    """
    tiny = np.finfo(np.float64).tiny
    ours, theirs = (np.maximum(radial_spectrum(images, bands), tiny) for images in (synthetic, real))
    return np.asarray(10 * np.log10(ours / theirs), dtype=np.float64)


@dataclass(frozen=True)
class KernelDistance:
    """Squared maximum mean discrepancy of two sets of features, with its bootstrap interval.

    Parameters
    ----------
    value
        Unbiased: 0 on average where both sets are of one kind, and below it as often as above.
    low, high
        Bounds of the interval.
    synthetic, real
        How many images went in.
    """

    value: float
    low: float
    high: float
    synthetic: int
    real: int


def kernel_distance(
    embed: Callable[[Tensor], Tensor],
    synthetic: FloatArray,
    real: FloatArray,
    rng: np.random.Generator,
    *,
    resamples: int = 500,
    coverage: float = 0.95,
    batch: int = 64,
) -> KernelDistance:
    """The kernel inception distance of Bińkowski et al. 2018, on features of any network.

    MMD² = mean k(x, x') + mean k(y, y') - 2 mean k(x, y) over pairs of different images, with k(x, y) = (x·y / d + 1)³.
    Every feature is divided by its deviation over the real images first, so that none counts for its unit.

    The bootstrap draws images of both sets with replacement and leaves out pairs of an image with itself, which would
    bias it. Slices of one person are not independent; the interval is too narrow for them.

    Parameters
    ----------
    embed
        Images ``[N, 1, *spatial]`` to features ``[N, D]``, such as :func:`embedding`.
    synthetic, real
        ``[N, *spatial]`` and ``[M, *spatial]``, normalised as `embed` wants them; at least two each.
    rng
        Of the bootstrap.
    resamples, coverage
        Of the bootstrap.
    batch
        Images that are embedded at once.

    Raises
    ------
    DataError
        If there are fewer than two images in a set.
    """
    _at_least_two(synthetic, real)
    ours, theirs = (_embedded(embed, images, batch) for images in (synthetic, real))
    spread = theirs.std(axis=0)
    known = spread > 1e-12
    ours, theirs = ours[:, known] / spread[known], theirs[:, known] / spread[known]
    within, among, across = _kernel(ours, ours), _kernel(theirs, theirs), _kernel(ours, theirs)
    np.fill_diagonal(within, 0)
    np.fill_diagonal(among, 0)

    def discrepancy(first: Values, second: Values) -> float:
        """With `first` and `second` as counts of the images."""
        sizes = first.sum(), second.sum()
        pairs = [np.square(size) - np.square(counts).sum() for size, counts in zip(sizes, (first, second), strict=True)]
        alone = first @ within @ first / pairs[0] + second @ among @ second / pairs[1]
        return float(alone - 2 * (first @ across @ second) / (sizes[0] * sizes[1]))

    count, other = len(ours), len(theirs)
    value = discrepancy(np.ones(count), np.ones(other))
    drawn: list[float] = []
    while len(drawn) < resamples:
        first, second = (rng.multinomial(size, np.full(size, 1 / size)).astype(np.float64) for size in (count, other))
        # All draws of one image: there is no pair.
        if first.max() < count and second.max() < other:
            drawn.append(discrepancy(first, second))
    low, high = np.quantile(drawn, [(1 - coverage) / 2, (1 + coverage) / 2])
    return KernelDistance(value, float(low), float(high), count, other)


def embedding(network: nn.Module, stage: str = "bottleneck") -> Callable[[Tensor], Tensor]:
    """Mean and deviation over space of one stage of a catalogue network, ``[N, 2 · channels]``.

    The network is used as it is, in evaluation mode and without gradients; afterwards it is in the mode it was in.
    """

    def embed(images: Tensor) -> Tensor:
        training = network.training
        network.eval()
        try:
            with torch.no_grad(), Features(network, stage) as features:
                network(images.to(next(network.parameters()).device))
        finally:
            network.train(training)
        flat = features[stage].flatten(2)
        return torch.cat([flat.mean(dim=2), flat.std(dim=2, correction=0)], dim=1)

    return embed


def _at_least_two(*sets: npt.NDArray[np.generic]) -> None:
    if min(len(images) for images in sets) < 2:
        raise DataError(
            "synthetic images cannot be judged one by one",
            "at least two are needed, and two to compare them with",
            "make more",
        )


def _dice_of(found: LabelArray, labels: LabelArray, classes: int) -> Values:
    return np.array([mean_dice(one, other, classes) for one, other in zip(found, labels, strict=True)])


def _mean(values: Values) -> float:
    """Mean of what could be measured; NaN where nothing could."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _frequencies(side: int) -> Values:
    """Cycles per voxel, in the order of the Fourier transform."""
    return np.asarray(fft.fftfreq(side), dtype=np.float64)


def _embedded(embed: Callable[[Tensor], Tensor], images: FloatArray, batch: int) -> Values:
    tensor = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))[:, None]
    return np.concatenate([embed(part).detach().cpu().double().numpy() for part in torch.split(tensor, batch)])


def _kernel(first: Values, second: Values) -> Values:
    return np.asarray((first @ second.T / max(1, first.shape[1]) + 1) ** 3, dtype=np.float64)
