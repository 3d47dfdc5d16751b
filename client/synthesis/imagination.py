"""What a site imagines: training pairs that its own generator makes, as augmentation or in place of remembered cases.

A generator learns at the end of a round from cases that the site has accepted, and makes pairs for what is rehearsed
then and in the next round. Some cases are never shown to it. By these it is tested before anything that it makes is
learnt from. It must not have learnt its cases by heart (:mod:`wardround.client.synthesis.memorisation`), and the site's
network must find the labels in its images nearly as well as in images of these cases; else it goes back to what it was
before the round.

Where old cases are to be rehearsed without being kept (generative replay, Shin et al. 2017, arXiv 1705.08690), the
generator takes them over: once it has passed its test they leave the memory, and from then on it learns from new cases
and from its own pairs of old ones. What is kept of them is the generator, a model of shapes
(:mod:`wardround.client.synthesis.shapes`) and vectors of texture. Until it can take over, they stay.

Nothing of this leaves the site, but for the weights of searched operators where plan and policy have them shared.
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from wardround.client.learning.learner import OnlineLearner
from wardround.client.learning.metrics import mean_dice
from wardround.client.learning.replay import ReplayMemory, Sample
from wardround.client.synthesis.makers import SearchedMaker, maker_named, stride_of
from wardround.client.synthesis.masks import deformed
from wardround.client.synthesis.memorisation import MemorisationReport, memorised
from wardround.client.synthesis.optimiser_state import names_array, names_of
from wardround.client.synthesis.pairs import Pair, grid_of, pairs_of, synthetic_sample
from wardround.client.synthesis.quality import Faithfulness, faithfulness
from wardround.client.synthesis.shapes import FEWEST, ShapeModel
from wardround.errors import DataError, PlanError
from wardround.models.catalogue import architecture
from wardround.models.weights import OPERATORS, Arrays
from wardround.strategies.plan import RoundPlan

# Pairs that are made at a time.
POOL = {2: 48, 3: 8}
# Every so many cases, one is kept from the generator.
KEPT_APART = 4
# With fewer cases none can be kept apart.
LEAST_CASES = 3
# Textures that are kept of cases that are not, and shapes that are drawn of the old model to make the new one.
TEXTURES = 64
SHAPES = 64
# Slices of a volume that are compared in the search for copies.
LOOKED_AT = 4
# Of the Dice that the network has on real images of cases kept apart, made images must reach so much.
FAITHFUL = 0.5
# Dice on real images below which a network knows too little to judge made ones.
JUDGES_FROM = 0.2
# Steps of the generator between two of the network, where validation steers it.
STEPS_A_BLOCK = 8

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Verdict:
    """What the test of a generator found.

    Parameters
    ----------
    copies
        What it has learnt by heart.
    faithful
        How well the site's network finds the labels in the images that were made of them.
    real
        Dice, 0 … 1, of the same network on real images of the cases kept apart.
    """

    copies: MemorisationReport
    faithful: Faithfulness
    real: float

    @property
    def passed(self) -> bool:
        """Whether what was made may be learnt from: it shows nobody, and it shows what it was made of."""
        shown = self.faithful.dice > self.faithful.shuffled and self.faithful.dice >= FAITHFUL * self.real
        return self.copies.passed and shown and self.real >= JUDGES_FROM


class Imagination:
    """A site's generator in one round.

    Parameters
    ----------
    plan
        Of the round; it has `synthesis`, or a `memory` that is not the reservoir.
    device
        Where the generator is.
    kept
        What :meth:`arrays` returned in the round before; empty in the first one.
    rng
        Of all that it learns and makes; used by nobody else.
    """

    def __init__(
        self,
        plan: RoundPlan,
        device: torch.device,
        kept: Mapping[str, npt.NDArray[np.generic]],
        rng: np.random.Generator,
    ) -> None:
        self.plan = plan
        self.verdict: Verdict | None = None
        self.pool: list[Sample] = []
        self._rng = rng
        self._dimensions = architecture(plan.model).dimensions
        self._maker = maker_named(
            plan.synthesis, self._dimensions, plan.labels, plan.seed, device, plan.synthesis_weight
        )
        self._apart: frozenset[str] = frozenset()
        self._grid: tuple[int, ...] | None = None
        self._shape: tuple[int, int, int] = (1, 1, 1)
        self._spacing = (1.0, 1.0, 1.0)
        self._shapes: ShapeModel | None = None
        self._textures: npt.NDArray[np.float32] | None = None
        self._passed = False
        self._before: Arrays | None = None
        if kept:
            self._load(kept)

    @property
    def seen(self) -> frozenset[str]:
        """Cases that the generator has learnt from."""
        return self._maker.seen

    @property
    def operators(self) -> npt.NDArray[np.float32]:
        """Weights of searched operators, of a maker that has any."""
        assert isinstance(self._maker, SearchedMaker)
        return self._maker.architecture

    def take_operators(self, weights: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Go on with those that came with the global weights.

        Raises
        ------
        PlanError
            If there are none that fit.
        """
        assert isinstance(self._maker, SearchedMaker)
        own, given = self._maker.architecture, weights.get(OPERATORS)
        if given is None or (given.shape, given.dtype) != (own.shape, own.dtype):
            raise PlanError(
                "the weights hold no operators that fit",
                "the plan has them shared",
                "use the model and the labels that the run was started with",
            )
        self._maker.architecture = np.asarray(given, dtype=np.float32)

    @property
    def stands_for_cases(self) -> bool:
        """Whether it makes pairs in place of cases that are no longer kept."""
        return self._passed and self._old > 0

    def share(self, memory: ReplayMemory) -> float:
        """Share of the recalled samples that are made ones, 0 … 1.

        As augmentation what the plan says. Beside kept cases half; in place of them as many as have been taken over.
        """
        if not self.pool:
            return 0.0
        if self.plan.memory == "generative":
            return 1 - len(memory) / max(1, memory.reservoir.seen)
        return 0.5 if self.plan.memory == "both" else self.plan.synthesis_share

    def draw(self, count: int, rng: np.random.Generator) -> list[Sample]:
        """Made samples, at random with replacement."""
        return [self.pool[int(rng.integers(len(self.pool)))] for _ in range(count)]

    def wake(self, memory: ReplayMemory) -> None:
        """Make pairs by what was learnt in earlier rounds, if it passed its test then."""
        if self._passed:
            self.pool = self._samples(*self._made(self._training(memory), POOL[self._dimensions], self._old))

    def learn(self, memory: ReplayMemory, between: Callable[[], None]) -> None:
        """Learn from the cases that are remembered, and from made pairs of those that no longer are.

        Not at all as long as there are too few of them to keep one apart: what came out could not be tested.
        """
        self._before = self._maker.arrays() if self._passed else None
        self._set_apart(memory)
        training = self._training(memory)
        if not training or not self._pairs(memory, self._apart):
            return
        self._maker.learn(self._with_dreams(training, memory), self.plan.synthesis_updates, self._rng, between)

    def rehearse(
        self, learner: OnlineLearner, memory: ReplayMemory, updates: int, recall: Callable[[int], None]
    ) -> None:
        """Test the generator, make pairs and have `recall` take `updates` steps; with a search, by turns.

        Where validation steers the generator, it moves between blocks of the network's own steps: the network of the
        moment is looked at, and what it learns next is made by what came out.
        """
        training, apart = self._training(memory), self._pairs(memory, self._apart)
        if not training or not apart:
            recall(updates)
            return
        blocks, waking = 1, self.pool
        if isinstance(self._maker, SearchedMaker):
            blocks = max(1, min(updates, self.plan.synthesis_updates // (4 * STEPS_A_BLOCK)))
        for block in range(blocks):
            if isinstance(self._maker, SearchedMaker):
                segmenter = learner.frozen().requires_grad_(True)
                for _ in range(STEPS_A_BLOCK):
                    self._maker.heed(segmenter, training, apart, self._rng)
            self._judge(learner, training, apart)
            if not self._passed:
                self.pool = waking
            recall((block + 1) * updates // blocks - block * updates // blocks)
        if not self._passed and self._before is not None:
            # What it had passed with in an earlier round goes on, with the old cases that it stands for.
            self._maker.load(self._before)
            self._passed = True
        elif self.plan.memory == "generative" and self._passed:
            self._take_over(memory, training)

    def arrays(self) -> Arrays:
        """All that is kept from one round to the next, by name."""
        found: Arrays = {f"maker/{name}": array for name, array in self._maker.arrays().items()}
        found |= {
            "apart": names_array(self._apart),
            "passed": np.array([self._passed]),
            "shape": np.array(self._shape, dtype=np.int64),
            "spacing": np.array(self._spacing),
        }
        if self._grid is not None:
            found["grid"] = np.array(self._grid, dtype=np.int64)
        if self._textures is not None:
            found["textures"] = self._textures
        if self._shapes is not None:
            found |= {f"shapes/{name}": array for name, array in self._shapes.arrays().items()}
        return found

    def _load(self, kept: Mapping[str, npt.NDArray[np.generic]]) -> None:
        def part(prefix: str) -> Arrays:
            return {
                name.removeprefix(prefix): np.asarray(array) for name, array in kept.items() if name.startswith(prefix)
            }

        self._maker.load(part("maker/"))
        self._apart = names_of(kept["apart"])
        self._passed = bool(kept["passed"][0])
        first, second, third = (int(side) for side in kept["shape"])
        self._shape = (first, second, third)
        self._spacing = (float(kept["spacing"][0]), float(kept["spacing"][1]), float(kept["spacing"][2]))
        if "grid" in kept:
            self._grid = tuple(int(side) for side in kept["grid"])
        if "textures" in kept:
            self._textures = np.asarray(kept["textures"], dtype=np.float32)
        if shapes := part("shapes/"):
            self._shapes = ShapeModel.of(shapes)

    def _set_apart(self, memory: ReplayMemory) -> None:
        """Keep every fourth case from the generator for good; one as soon as there are three."""
        known = frozenset(memory.reservoir.kept)
        self._apart &= known
        due = max(int(len(known) >= LEAST_CASES), len(known) // KEPT_APART)
        for name in reversed(memory.reservoir.kept):
            if len(self._apart) < due and name not in self.seen:
                self._apart |= {name}

    def _training(self, memory: ReplayMemory) -> list[Pair]:
        return self._pairs(memory, frozenset(memory.reservoir.kept) - self._apart)

    def _pairs(self, memory: ReplayMemory, names: frozenset[str]) -> list[Pair]:
        """Pairs of remembered cases, in the order in which these are kept."""
        found = []
        for name in memory.reservoir.kept:
            if name not in names:
                continue
            sample = memory.sample(name)
            if self._grid is None:
                stride = math.lcm(
                    stride_of(self.plan.synthesis, self._dimensions, self.plan.labels),
                    architecture(self.plan.model).stride,
                )
                self._grid = grid_of(sample.image.shape, self._dimensions, self.plan.synthesis_side, stride)
            self._shape, self._spacing = _three(sample.image.shape), sample.spacing
            found += pairs_of(sample, self._grid)
        return found

    def _with_dreams(self, training: list[Pair], memory: ReplayMemory) -> list[Pair]:
        """Training pairs, and made ones of cases that were taken over: as many as these were, four times at most."""
        gone = memory.reservoir.seen - len(memory)
        if not self._old or gone < 1:
            return training
        wanted = min(4.0, gone / max(1, len(memory))) * len(training)
        images, labels = self._made([], max(1, round(wanted)), 1.0)
        # A name of its own each: what stands beside it is nobody's other slice.
        return training + [
            Pair(f"made/{number}", image, mask) for number, (image, mask) in enumerate(zip(images, labels, strict=True))
        ]

    def _samples(self, images: npt.NDArray[np.float32], labels: npt.NDArray[np.uint8]) -> list[Sample]:
        shape = (*self._shape[:2], 1) if self._dimensions == 2 else self._shape
        return [
            synthetic_sample(
                str(number),
                image,
                mask,
                classes=self.plan.labels,
                shape=shape,
                spacing=self._spacing,
                weight=self.plan.synthesis_weight,
            )
            for number, (image, mask) in enumerate(zip(images, labels, strict=True))
        ]

    @property
    def _old(self) -> float:
        """Share of what is made that stands for cases that are no longer kept.

        In place of kept cases all of it; where pairs are wanted as augmentation as well, half.
        """
        if self.plan.memory != "generative" or self._shapes is None:
            return 0.0
        return 1.0 if self.plan.synthesis == "off" else 0.5

    def _made(
        self, training: list[Pair], count: int, old: float
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        """Images, and the labels that they were made of.

        A share of `old` is drawn from the model of shapes, in a texture that was kept; the rest are labels of a
        remembered case, deformed, in the texture of another case.
        """
        remembered = [pair for pair in training if pair.labels.any()]
        old = old if remembered else float(old > 0)
        own = self._maker.styles(np.stack([pair.image for pair in training])) if training else None
        masks, styles = [], []
        for _ in range(count if remembered or old else 0):
            if self._shapes is not None and self._rng.random() < old:
                masks.append(self._shapes.sample(self._rng))
                textures = self._textures
            else:
                pair = remembered[int(self._rng.integers(len(remembered)))]
                try:
                    mask = deformed(pair.labels, self._rng)
                except DataError:
                    continue  # Nothing of it can move, and it is not handed on as it is.
                masks.append(mask)
                others = [index for index, other in enumerate(training) if other.case_id != pair.case_id]
                textures = None if own is None else own[others]
            if textures is not None and len(textures):
                styles.append(textures[int(self._rng.integers(len(textures)))])
        if not masks:
            nothing = (0, *(self._grid or ()))
            return np.zeros(nothing, dtype=np.float32), np.zeros(nothing, dtype=np.uint8)
        labels = np.stack(masks)
        # A texture is given to all or to none.
        return self._maker.make(labels, np.stack(styles) if len(styles) == len(masks) else None, self._rng), labels

    def _judge(self, learner: OnlineLearner, training: list[Pair], apart: list[Pair]) -> None:
        """Make pairs, and keep them if their generator has learnt nothing by heart and shows what it is asked for.

        It is judged by what it makes of the cases that it has just learnt, in their textures: that is where it would
        copy. What stands for older cases has passed in an earlier round.
        """
        self.pool, self._passed, self.verdict = [], False, None
        images, labels = self._made(training, POOL[self._dimensions], 0.0)
        known, unseen = (_looked_at(np.stack([pair.image for pair in part])) for part in (training, apart))
        try:
            copies = memorised(_looked_at(images), known, unseen)
            network = learner.frozen()
            faithful = faithfulness(lambda found: _labels(network, found), images, labels, self.plan.labels)
        except DataError:
            return  # Too few images to tell: then nothing is learnt from what was made.
        predicted = _labels(network, np.stack([pair.image for pair in apart]))
        real = [mean_dice(one, pair.labels, self.plan.labels) for one, pair in zip(predicted, apart, strict=True)]
        shown = [dice for dice in real if not math.isnan(dice)]
        self.verdict = Verdict(copies, faithful, float(np.mean(shown)) if shown else 0.0)
        self._passed = self.verdict.passed
        if self._passed:
            if self._old:
                images, labels = self._made(training, POOL[self._dimensions], self._old)
            self.pool = self._samples(images, labels)
        elif not copies.passed:
            _LOG.warning("the generator has learnt cases by heart: nothing that it makes is learnt from")
        else:
            _LOG.info("the generator does not show what it is asked for yet: nothing that it makes is learnt from")

    def _take_over(self, memory: ReplayMemory, training: list[Pair]) -> None:
        """Let the generator stand for the cases in memory, if it can: these are forgotten then."""
        masks = [pair.labels for pair in training if pair.labels.any()]
        if self._shapes is not None:
            # What the model knew of older cases goes on in what it draws, as much as there were.
            gone = memory.reservoir.seen - len(memory)
            masks += [self._shapes.sample(self._rng) for _ in range(min(SHAPES, gone))]
        if len(masks) < FEWEST:
            return
        self._shapes = ShapeModel.fit(masks)
        found = self._maker.styles(np.stack([pair.image for pair in training]))
        if found is not None:
            known = found if self._textures is None else np.concatenate([self._textures, found])
            self._textures = known[self._rng.permutation(len(known))[:TEXTURES]]
        memory.forget()


def _looked_at(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """``[N, *sides]``: slices as they are; of each volume a few slices, evenly spaced."""
    if images.ndim < 4:
        return images
    where = np.linspace(0, images.shape[3] - 1, LOOKED_AT + 2).round().astype(int)[1:-1]
    return np.concatenate([images[..., place] for place in where])


@torch.no_grad()
def _labels(network: nn.Module, images: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    device = next(network.parameters()).device
    parts = [network(torch.from_numpy(image[None, None]).to(device)).argmax(dim=1) for image in images]
    return np.asarray(torch.cat(parts).cpu().numpy(), dtype=np.uint8)


def _three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    first, second, third = shape
    return first, second, third
