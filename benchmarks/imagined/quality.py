"""What made images are like: whether they show their masks, look real, are copies, and heed their reference."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from imagined.arms import Recipe
from imagined.cases import Deal, images_of, labels_of, shown, slices_of
from wardround.client.cases.dataset import Dataset
from wardround.client.synthesis.diffusion import ImageGenerator
from wardround.client.synthesis.masks import deformed
from wardround.client.synthesis.memorisation import memorised
from wardround.client.synthesis.pairs import Pair
from wardround.client.synthesis.quality import (
    Faithfulness,
    embedding,
    faithfulness,
    kernel_distance,
    radial_spectrum,
    spectral_gap,
)

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]

# Neighbouring slices are alike: every so many are compared.
EVERY = 3
# Slices of a stack, whose voxels are counted together for one Dice, as those of a volume are: where a single slice
# grazes a structure, Dice would be 0 or 1 for a few voxels.
STACK = 16


@dataclass(frozen=True, eq=False)
class Real:
    """What made images are held against, ``[N, I, J]`` each.

    Parameters
    ----------
    training
        All that the generator has seen with a structure in it.
    images, labels
        Slices of held-out cases.
    """

    training: Images
    images: Images
    labels: Labels

    @classmethod
    def of(cls, dataset: Dataset, dealt: Deal, recipe: Recipe, training: Sequence[Pair]) -> "Real":
        """Slices that show a structure."""
        held_out = shown(slices_of(dataset, dealt.held_out, recipe.grid))[::EVERY]
        learnt = images_of(training) if training else np.zeros((0, *recipe.grid), dtype=np.float32)
        return cls(learnt, images_of(held_out), labels_of(held_out))


def judged(  # noqa: PLR0917
    images: Images, labels: Labels, real: Real, judge: nn.Module, recipe: Recipe, rng: np.random.Generator
) -> dict[str, Any]:
    """Every measure of one generator, as plain values."""
    some = slice(recipe.looked_at)
    shown_well = faithful(judge, images, labels)
    distance = kernel_distance(features(judge, real.images), images[some], real.images, rng)
    held = np.sort(rng.permutation(len(real.images))[some])
    copies = memorised(images[some], real.training, real.images[held])
    return {
        "faithfulness": shown_well.dice,
        "shuffled": shown_well.shuffled,
        "gap": spectral_gap(images, real.images).tolist(),
        "power": radial_spectrum(images).tolist(),
        "kernel distance": {"value": distance.value, "low": distance.low, "high": distance.high},
        "memorisation": {
            "copies": copies.copies,
            "nearer": copies.nearer,
            "chance": copies.chance,
            "passed": copies.passed,
            "synthetic": float(np.median(copies.nearest_synthetic)),
            "held out": float(np.median(copies.nearest_held_out)),
        },
        "images": len(images),
    }


def judged_real(real: Real, judge: nn.Module, recipe: Recipe, rng: np.random.Generator) -> dict[str, Any]:
    """The same of real images: what a perfect generator would come to. Half of them are held against the others."""
    half = rng.permutation(len(real.images))
    first, second = half[::2], half[1::2]
    found = faithful(judge, real.images[half], real.labels[half])
    some = slice(recipe.looked_at)
    distance = kernel_distance(features(judge, real.images), real.images[first][some], real.images[second], rng)
    return {
        "faithfulness": found.dice,
        "shuffled": found.shuffled,
        "gap": spectral_gap(real.images[first], real.images[second]).tolist(),
        "power": radial_spectrum(real.images).tolist(),
        "kernel distance": {"value": distance.value, "low": distance.low, "high": distance.high},
        "images": len(real.images),
    }


def style_check(
    generator: ImageGenerator, pairs: Sequence[Pair], judge: nn.Module, recipe: Recipe, rng: np.random.Generator
) -> dict[str, float]:
    """Does a reference lend its texture, and nothing else? The same masks from the same noise, by several references.

    Returns
    -------
    dict
        ``mean``, ``sd``: how much of the difference between two references arrives in the images (1 for all of it, 0
        for none), by least squares; ``towards``: share of images whose deviation moves towards that of the other
        reference; ``faithful``, ``faithful own``: faithfulness with a reference of another case, and with the very
        image that the mask was made of; ``correlation``: voxel by voxel with the reference, less than that with the
        references of other images.
    """
    count = max(4, recipe.looked_at // 4)
    chosen = [pairs[int(index)] for index in rng.integers(len(pairs), size=count)]
    labels = np.stack([deformed(pair.labels, rng) for pair in chosen])
    # The dullest and the liveliest references: the difference between them is to arrive.
    order = sorted(pairs, key=lambda pair: float(pair.image.std()))
    quarter = max(1, len(order) // 4)
    dull = [order[int(index)] for index in rng.integers(quarter, size=count)]
    lively = [order[-1 - int(index)] for index in rng.integers(quarter, size=count)]
    noise = int(rng.integers(2**62))

    def made(references: Sequence[Pair]) -> Images:
        styles = generator.style_of(images_of(references))
        return generator.sample(labels, styles, np.random.default_rng(noise))

    first, second, own = made(dull), made(lively), made(chosen)
    found = {}
    for name, measure in (("mean", np.mean), ("sd", np.std)):
        moved = measure(second, axis=(1, 2)) - measure(first, axis=(1, 2))
        wanted = measure(images_of(lively), axis=(1, 2)) - measure(images_of(dull), axis=(1, 2))
        found[name] = float((moved * wanted).sum() / max(float(np.square(wanted).sum()), 1e-12))
        if name == "sd":
            found["towards"] = float((moved * wanted > 0).mean())

    found["faithful"] = (faithful(judge, first, labels).dice + faithful(judge, second, labels).dice) / 2
    found["faithful own"] = faithful(judge, own, labels).dice
    flat = [_standard(images.reshape(count, -1)) for images in (second, images_of(lively))]
    together = flat[0] @ flat[1].T / flat[0].shape[1]
    found["correlation"] = float(np.diag(together).mean() - together[~np.eye(count, dtype=bool)].mean())
    return found


def faithful(judge: nn.Module, images: Images, labels: Labels) -> Faithfulness:
    """What the judge finds in images, against what they were made of; in stacks of :data:`STACK` slices."""
    stack = min(STACK, len(images) // 2)
    whole = len(images) // stack * stack

    def stacks(slices: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return slices[:whole].reshape(-1, stack, *slices.shape[1:])

    def found(these: Images) -> Labels:
        return stacks(predicted(judge, these.reshape(-1, *these.shape[2:])))

    return faithfulness(found, stacks(images), stacks(labels), classes_of(judge))


def features(judge: nn.Module, real: Images) -> Callable[[Tensor], Tensor]:
    """The judge's features about their mean over `real`: far from zero the kernel sees little but that mean."""
    embed = embedding(judge)
    centre = torch.cat([embed(part) for part in torch.from_numpy(real)[:, None].split(64)]).mean(dim=0)
    return lambda images: embed(images) - centre


@torch.no_grad()
def predicted(network: nn.Module, images: Images) -> Labels:
    """Most likely labels of images ``[N, I, J]``."""
    place = next(network.parameters()).device
    parts = torch.from_numpy(np.ascontiguousarray(images))[:, None].split(64)
    return np.concatenate([network(part.to(place)).argmax(dim=1).cpu().numpy() for part in parts]).astype(np.uint8)


def classes_of(network: nn.Module) -> int:
    """How many labels it tells apart."""
    side = 32
    with torch.no_grad():
        place = next(network.parameters()).device
        return int(network(torch.zeros(1, 1, side, side, device=place)).shape[1])


def _standard(values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    centred = values - values.mean(axis=1, keepdims=True)
    return centred / np.maximum(centred.std(axis=1, keepdims=True), 1e-6)
