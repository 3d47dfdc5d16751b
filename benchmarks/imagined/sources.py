"""Where the made pairs of an arm come from while its network learns."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from imagined.arms import Arm, Recipe
from imagined.cases import images_of, labels_of, learnable, shown
from imagined.generators import Made, made_by, new_masks, others, search_of
from wardround.client.learning.learner import OnlineLearner
from wardround.client.learning.replay import Sample
from wardround.client.supervision.losses import segmentation_loss
from wardround.client.synthesis.hypergradient import HypergradientSettings, hypergradient
from wardround.client.synthesis.knobs import AUGMENTATION, SYNTHESIS, Knobs, augment
from wardround.client.synthesis.pairs import Pair, stacked
from wardround.models.weights import load_arrays

# Rate of the network's looked-ahead step where it turns knobs, as of the coupled search.
AHEAD = 1e-2
# Bends of real pairs: elastic displacement in voxels and its width, standard deviations of the angle in radians and of
# the stretch. About those of the masks that generators get.
BENT, SMOOTH, TURNED, STRETCHED = 1.0, 5.0, 0.14, 0.1
# Quantiles of a histogram.
QUANTILES = 101


class Source:
    """Made pairs. This one has none.

    Attributes
    ----------
    pool
        What is drawn from.
    weight
        γ, how much each of them counts.
    made
        The same pairs as arrays; None for none.
    """

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.pool: list[Sample] = []
        self.made: Made | None = None

    def before(self, learner: OnlineLearner, block: int) -> None:
        """A block of the network's updates is about to begin. The network stays as it is."""

    def noted(self) -> dict[str, float]:
        """What is worth a note after each block."""
        return {}

    def filled(self, made: Made, classes: int) -> None:
        """Let `made` be the pool."""
        self.made = made
        self.pool = [
            learnable(Pair("made", image, mask), classes, self.weight) for image, mask in zip(*made, strict=True)
        ]


class Kept(Source):
    """Pairs that a generator has made before."""

    def __init__(self, made: Made, classes: int, weight: float) -> None:
        super().__init__(weight)
        self.filled(made, classes)


class Deformed(Source):
    """Real pairs, bent, with the intensities of another case: synthesis that learns nothing."""

    def __init__(
        self, pairs: Sequence[Pair], classes: int, count: int, weight: float, rng: np.random.Generator
    ) -> None:
        super().__init__(weight)
        self._pairs, self._classes, self._count, self._rng = pairs, classes, count, rng

    def before(self, learner: OnlineLearner, block: int) -> None:
        """Others for every block."""
        self.filled(self.make(self._count), self._classes)

    def make(self, count: int) -> Made:
        """As :meth:`Source.make`."""
        return bent_pairs(self._pairs, count, self._rng)


class Searched(Source):
    """A searched generator, that validation moves or not; new pairs for every block."""

    def __init__(  # noqa: PLR0917
        self,
        arm: Arm,
        recipe: Recipe,
        classes: int,
        training: Sequence[Pair],
        validation: Sequence[Pair],
        seed: int,
        files: Path,
        device: torch.device,
        rng: np.random.Generator,
    ) -> None:
        super().__init__(recipe.gamma)
        self.search = search_of(recipe, classes, seed, device, frozen=not arm.steered)
        self.search.load(load_arrays(files.with_suffix(".safetensors")))
        self.start = self.search.architecture
        self._steered = arm.steered
        self._recipe, self._classes, self._rng = recipe, classes, rng
        self._training, self._validation = shown(training), shown(validation)

    def before(self, learner: OnlineLearner, block: int) -> None:
        """Steps of the search against a copy of the network, and new pairs."""
        recipe = self._recipe
        if self._steered:
            segmenter = learner.frozen().requires_grad_(True)
            for _ in range(turns(recipe.advances, recipe.blocks, block)):
                self.search.advance(segmenter, self._training, self._validation, self._rng)
        self.filled(self.make(each_block(recipe)), self._classes)

    def make(self, count: int) -> Made:
        """As :meth:`Source.make`."""
        masks, _ = new_masks(self._training, count, self._rng)
        return self.search.sample(masks, self._rng), masks

    def noted(self) -> dict[str, float]:
        """How far the operators have moved."""
        return {"moved": float(np.abs(self.search.architecture - self.start).max())}


class Turned(Searched):
    """A generator that stays as it is; validation turns the knobs of augmentation and the weight of made pairs."""

    def __init__(self, knobs: Knobs, arm: Arm, recipe: Recipe, *rest: Any) -> None:
        super().__init__(replace(arm, steered=False), recipe, *rest)
        self.knobs = knobs
        self._optimiser = torch.optim.Adam(knobs.parameters(), recipe.knob_rate)

    def before(self, learner: OnlineLearner, block: int) -> None:
        """Steps of the knobs against a copy of the network, and new pairs with their new weight."""
        super().before(learner, block)
        segmenter = learner.frozen().requires_grad_(True)
        for _ in range(turns(self._recipe.advances // 2, self._recipe.blocks, block)):
            self._turn(segmenter)
        self.weight = self.knobs.values()["synthetic_weight"]
        assert self.made is not None
        self.filled(self.made, self._classes)

    def noted(self) -> dict[str, float]:
        """Where the knobs stand."""
        return self.knobs.values()

    def _turn(self, segmenter: torch.nn.Module) -> None:
        real, validation = (self._drawn(pairs) for pairs in (self._training, self._validation))
        assert self.made is not None
        made = self._drawn([Pair("made", *pair) for pair in zip(*self.made, strict=True)])
        rng = np.random.default_rng(int(self._rng.integers(2**62)))

        def loss(pairs: tuple[Tensor, Tensor]) -> Tensor:
            ones = torch.ones_like(pairs[0])
            image, target, weight = augment(self.knobs(), *pairs, ones, rng)
            return segmentation_loss(segmenter(image), target, weight[:, 0])

        def learnt_from() -> Tensor:
            gamma = self.knobs()["synthetic_weight"]
            return (loss(real) + gamma * loss(made)) / (1 + gamma)

        def judged_by() -> Tensor:
            image, target = validation
            return segmentation_loss(segmenter(image), target, torch.ones_like(image[:, 0]))

        found = hypergradient(
            None,
            learnt_from,
            judged_by,
            None,
            segmenter=segmenter,
            generator=None,
            architecture=[self.knobs.position],
            settings=HypergradientSettings(AHEAD),
            generators=[rng],
        )
        (self.knobs.position.grad,) = found.total
        self._optimiser.step()
        self.knobs.position.grad = None

    def _drawn(self, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        count = self._recipe.searched_batch
        images, labels = stacked([pairs[int(index)] for index in self._rng.integers(len(pairs), size=count)])
        target = torch.nn.functional.one_hot(labels, self._classes).movedim(-1, 1).float()
        place = self.search.device
        return images.to(place), target.contiguous().to(place)


def source_of(  # noqa: PLR0917
    arm: Arm,
    recipe: Recipe,
    classes: int,
    training: Sequence[Pair],
    validation: Sequence[Pair],
    seed: int,
    files: Path | None,
    device: torch.device,
    knobs: Knobs,
) -> Source:
    """Of an arm; `files` are those of its generator, which has passed its test."""
    rng = np.random.default_rng([seed, 8])
    if arm.source == "deformed":
        return Deformed(training, classes, each_block(recipe), recipe.gamma, rng)
    if files is None:
        return Source(recipe.gamma)
    if arm.source != "searched":
        return Kept(made_by(files), classes, recipe.gamma)
    rest = (arm, recipe, classes, training, validation, seed, files, device, rng)
    return Turned(knobs, *rest) if arm.augmentation == "knobs" else Searched(*rest)


def knobs_of() -> Knobs:
    """Augmentation and the weight of made pairs. A searched generator has no style to scale."""
    return Knobs((*AUGMENTATION, SYNTHESIS[0]))


def turns(whole: int, blocks: int, block: int) -> int:
    """How many of `whole` turns come before a block."""
    return (block + 1) * whole // blocks - block * whole // blocks


def each_block(recipe: Recipe) -> int:
    """Pairs that are made for a block, where all blocks have others."""
    return max(8, recipe.pool // recipe.blocks)


def bent_pairs(pairs: Sequence[Pair], count: int, rng: np.random.Generator) -> Made:
    """Real pairs through a random smooth map, each with the histogram of another case."""
    seen = shown(pairs)
    cases: dict[str, list[Pair]] = {}
    for pair in pairs:
        cases.setdefault(pair.case_id, []).append(pair)
    levels = {case: np.quantile(images_of(own), np.linspace(0, 1, QUANTILES)) for case, own in cases.items()}
    chosen = [seen[int(index)] for index in rng.integers(len(seen), size=count)]
    found = []
    for pair, other in zip(chosen, others(pairs, chosen, rng), strict=True):
        image = recoloured(pair.image, levels[pair.case_id], levels[other.case_id])
        found.append(bent(replace(pair, image=image), rng))
    return images_of(found), labels_of(found)


def bent(pair: Pair, rng: np.random.Generator) -> Pair:
    """Image and labels through the same random affine and elastic map."""
    sides = pair.image.shape
    grid = np.stack(np.meshgrid(*map(np.arange, sides), indexing="ij")).astype(np.float64)
    centre = (np.array(sides) - 1)[:, None, None] / 2
    matrix = np.eye(2) + rng.normal(0, STRETCHED, (2, 2)) * np.eye(2)
    angle = rng.normal(0, TURNED)
    matrix = matrix @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    places = np.tensordot(matrix, grid - centre, axes=1) + centre
    for axis in range(2):
        field = ndimage.gaussian_filter(rng.standard_normal(sides), SMOOTH, mode="reflect")
        places[axis] += field / field.std() * BENT
    image = ndimage.map_coordinates(pair.image, places, order=1, mode="nearest")
    shares = [
        ndimage.map_coordinates((pair.labels == label).astype(np.float32), places, order=1, mode="nearest")
        for label in range(int(pair.labels.max()) + 1)
    ]
    return Pair(pair.case_id, image.astype(np.float32), np.argmax(shares, axis=0).astype(np.uint8), pair.position)


def recoloured(
    image: npt.NDArray[np.float32], own: npt.NDArray[np.float64], others: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """`image` with the histogram of another case; both by their quantiles."""
    return np.interp(image, own, others).astype(np.float32)
