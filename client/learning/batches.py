"""From samples of any size to one batch of tensors: windows, padding, augmentation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wardround.client.learning.augmentation import Augmenter
from wardround.client.learning.replay import Sample
from wardround.models.windows import padded_shape

# A training window in voxels along each axis: larger volumes are learnt from in random windows of this size.
PATCH_LIMIT = (128, 128, 128)

Box = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class Batch:
    """What one update learns from. A network of two axes gets slices, without their last axis.

    Parameters
    ----------
    image
        ``[N, 1, *spatial]``, float32, normalised.
    target
        ``[N, C, *spatial]``, probabilities.
    weight
        ``[N, *spatial]``, at least 0: how much each voxel counts.
    drawn
        ``[N, *spatial]``, bool: voxels whose label somebody drew, and those outside of the image.
    inside, air
        ``[N, *spatial]``, bool: voxels of the image, and those of them that are as dark as its darkest.
    spacings
        Millimetres along each spatial axis, of every sample.
    logits
        ``[N, C, *spatial]``, what was stored with the samples; None where with none of them.
    known
        ``[N, *spatial]``, bool: voxels of which it was stored; None where `logits` is.
    factors
        ``[N]``, how much each sample counts as a whole; None where all count the same.
    told
        ``[N, C - 1]``, bool: of which structures anything is known in the sample that is cut; None where of all.
    """

    image: Tensor
    target: Tensor
    weight: Tensor
    drawn: Tensor
    inside: Tensor
    air: Tensor
    spacings: tuple[tuple[float, ...], ...]
    logits: Tensor | None = None
    known: Tensor | None = None
    factors: Tensor | None = None
    told: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same on `device`, in the memory layout that convolutions like."""
        layout = torch.channels_last_3d if self.image.ndim == 5 else torch.channels_last
        image = self.image.to(device).contiguous(memory_format=layout)
        target, weight = self.target.to(device), self.weight.to(device)
        drawn, inside, air = (voxels.to(device) for voxels in (self.drawn, self.inside, self.air))
        logits, known, factors, told = (
            None if part is None else part.to(device) for part in (self.logits, self.known, self.factors, self.told)
        )
        return Batch(image, target, weight, drawn, inside, air, self.spacings, logits, known, factors, told)


def assemble(  # noqa: PLR0917
    samples: Sequence[Sample],
    dimensions: int,
    stride: int,
    patch: tuple[int, int, int] | None,
    rng: np.random.Generator,
    augmentation: Augmenter | None,
) -> Batch:
    """Cut windows, pad them to one shape and augment.

    Padding is the image's mean, supervised as background: left out, the network calls it foreground.

    Parameters
    ----------
    samples
        At least one.
    dimensions
        Of the network: 2 learns from one slice of each sample, cut across its last axis.
    stride
        Of the network.
    patch
        Sides of a window in voxels, :data:`PATCH_LIMIT` if None.
    rng
        Of windows and augmentation.
    augmentation
        None for nothing.
    """
    limit = patch or PATCH_LIMIT
    boxes = [_window(sample, (*limit[:2], 1) if dimensions == 2 else limit, rng) for sample in samples]
    largest = tuple(max(box[axis].stop - box[axis].start for box in boxes) for axis in range(dimensions))
    shape = padded_shape(largest, stride)
    images, targets, voxels = [], [], []
    stored = any(sample.logits is not None for sample in samples)
    for sample, box in zip(samples, boxes, strict=True):
        flat = (..., 0) if dimensions == 2 else (...,)
        image, target, weight = sample.image[box][flat], sample.target[:, *box][flat], sample.weight[box][flat]
        open_ = np.ones(image.shape) if sample.drawn is None else ~sample.drawn[box][flat]
        padding = [(0, side - own) for side, own in zip(shape, image.shape, strict=True)]
        # 0 outside of the image, 1 for its air, 2 for the rest. What is air is known before noise is added to it.
        content = 1 + (image > sample.image.min())
        images.append(np.pad(image, padding)[None])
        background = np.pad(target[:1], [(0, 0), *padding], constant_values=1)
        targets.append(np.concatenate([background, np.pad(target[1:], [(0, 0), *padding])]))
        counts = np.pad(weight, padding, constant_values=sample.padding)
        facts = [counts, np.pad(open_, padding), np.pad(content, padding)]
        if stored:
            answers = np.zeros(sample.target.shape) if sample.logits is None else sample.logits
            has = np.full(image.shape, sample.logits is not None)
            facts += [np.pad(part, padding) for part in (has, *answers[:, *box][flat])]
        voxels.append(np.stack(facts))
    image_, target_, voxels_ = (
        torch.from_numpy(np.stack(part).astype(np.float32)) for part in (images, targets, voxels)
    )
    if augmentation is not None:
        # What moves in from outside is 0: it counts nothing, and nobody asks it to agree with its neighbours.
        image_, target_, voxels_ = augmentation(image_, target_, voxels_, rng)
    spacings = tuple(sample.spacing[:dimensions] for sample in samples)
    # Contiguous each: sums over a view would run in another order, and end with other last bits.
    weights, undrawn, found = (part.contiguous() for part in voxels_[:, :3].unbind(1))
    logits, known = (voxels_[:, 4:].contiguous(), voxels_[:, 3] > 0.5) if stored else (None, None)
    air = (found - 1).abs() < 0.5
    factors = torch.tensor([sample.factor for sample in samples]) if any(s.factor != 1 for s in samples) else None
    told = np.stack([sample.told for sample in samples])
    told_ = None if told.all() else torch.from_numpy(told)
    return Batch(image_, target_, weights, undrawn < 0.5, found > 0.5, air, spacings, logits, known, factors, told_)


def _window(sample: Sample, patch: tuple[int, int, int], rng: np.random.Generator) -> Box:
    """Choose one window: half of the time round a voxel that is likely to hold a structure, else anywhere."""
    shape = sample.image.shape
    if all(side <= limit for side, limit in zip(shape, patch, strict=True)):
        return (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))
    sides = np.minimum(shape, patch)
    start = np.array([rng.integers(whole - side + 1) for whole, side in zip(shape, sides, strict=True)])
    structure = np.flatnonzero((sample.target[0] < 0.5) & (sample.weight > 0))
    if structure.size and rng.random() < 0.5:
        centre = np.array(np.unravel_index(structure[rng.integers(structure.size)], shape))
        start = np.clip(centre - sides // 2, 0, np.array(shape) - sides)
    first, second, third = (slice(int(low), int(low + side)) for low, side in zip(start, sides, strict=True))
    return first, second, third
