"""What a site imagines: training pairs that its own generator makes, as augmentation or in place of remembered cases.

A generator learns at the end of a round from cases that the site has accepted, and makes pairs for what is rehearsed
then and in the next round. Some cases are never shown to it. By these it is tested before anything that it makes is
learnt from. It must not have learnt the cases that are remembered by heart
(:mod:`wardround.client.synthesis.memorisation`), and the site's network must find the labels in its images nearly as
well as in images of the cases kept apart; else it goes back to what it was before the round.

Where old cases are to be rehearsed without being kept (generative replay, Shin et al. 2017, arXiv 1705.08690), the
generator takes them over: once it has passed its test they leave the memory, and from then on it learns from new cases
and from its own pairs of old ones. What is kept of them is the generator and a
:class:`~wardround.client.synthesis.substitute.Substitute`. Cases that show what this cannot draw yet stay.

Nothing of this leaves the site, but for the weights of searched operators where plan and policy have them shared.
"""

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace

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
from wardround.client.synthesis.shown import Shown
from wardround.client.synthesis.substitute import Substitute, substituted
from wardround.errors import DataError, PlanError
from wardround.models.catalogue import architecture
from wardround.models.weights import OPERATORS, Arrays
from wardround.strategies.plan import RoundPlan

# Pairs that are made to be recalled, and to test the generator by.
POOL = {2: 48, 3: 16}
TESTED = {2: 48, 3: 8}
# Every so many cases, one is kept from the generator.
KEPT_APART = 4
# With fewer cases none can be kept apart.
LEAST_CASES = 3
# Slices of a volume that are compared in the search for copies, and images at most.
LOOKED_AT = 4
COMPARED = 512
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
        What :meth:`arrays` returned in the round before; empty in the first one. What another kind of generator, or one
        on another grid, left is not gone on with.
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
        self.pool: list[_Made] = []
        self._rng = rng
        self._dimensions = architecture(plan.model).dimensions
        self._maker = maker_named(
            plan.synthesis, self._dimensions, plan.labels, plan.seed, device, plan.synthesis_weight
        )
        self._apart: frozenset[str] = frozenset()
        self._grid: tuple[int, ...] = ()
        self._frame: _Frame | None = None
        self._frames: dict[str, _Frame] = {}
        self._known: dict[str, list[Pair]] = {}
        self._substitute: Substitute | None = None
        self._shown: Shown | None = None
        self._passed = False
        self._before: Arrays | None = None
        if kept and np.array_equal(kept["kind"], self._kind):
            self._load(kept)
        elif kept:
            _LOG.warning("the plan has another generator than in the round before: it begins anew")

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
    def shown(self) -> Shown | None:
        """A few of the pairs that were made last by a generator that had passed its test; None before there are any."""
        if not self.pool:
            return self._shown
        steps = [made.frame.steps(self._grid) for made in self.pool]
        return Shown.among([made.image for made in self.pool], [made.labels for made in self.pool], steps)

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
        chosen = (self.pool[int(rng.integers(len(self.pool)))] for _ in range(count))
        return [self._sample(made) for made in chosen]

    def opened(self, case_id: str, memory: ReplayMemory) -> None:
        """A case is opened; with a search every fourth, from the third on, is withheld from learning.

        It is to validate the search: what is learnt from is no judge of what is learnt.
        """
        if self.plan.synthesis == "genseg" and memory.reservoir.seen % KEPT_APART == LEAST_CASES - 1:
            self._apart |= {case_id}
            memory.withheld |= {case_id}

    def wake(self, memory: ReplayMemory, between: Callable[[], None] = lambda: None) -> None:
        """Make pairs by what was learnt in earlier rounds, if it passed its test then."""
        if self.plan.synthesis == "genseg":
            memory.withheld |= self._apart
        if self._passed:
            self.pool = self._made(self._training(memory), POOL[self._dimensions], self._old, between)

    def learn(self, memory: ReplayMemory, between: Callable[[], None] = lambda: None) -> None:
        """Learn from the cases that are remembered, and from made pairs of those that no longer are.

        Not at all as long as there are too few of them to keep one apart: what came out could not be tested.
        """
        self._before = self._maker.arrays() if self._passed else None
        self._set_apart(memory)
        training = self._training(memory)
        if not training or not self._pairs(memory, self._apart):
            if len(memory) >= LEAST_CASES:
                _LOG.info("no pairs can be made of the remembered cases: too little of them is labelled as a whole")
            return
        updates = self.plan.synthesis_updates
        if isinstance(self._maker, SearchedMaker):
            updates -= STEPS_A_BLOCK * self._blocks  # Those that it takes while it is steered.
        self._maker.learn(self._with_dreams(training, memory, between), updates, self._rng, between)

    def rehearse(  # noqa: PLR0917
        self,
        learner: OnlineLearner,
        memory: ReplayMemory,
        updates: int,
        recall: Callable[[int], None],
        between: Callable[[], None] = lambda: None,
        phase: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Test the generator, make pairs and have `recall` take `updates` steps; with a search, by turns.

        Where validation steers the generator, it moves between blocks of the network's own steps: the network of the
        moment is looked at, and what it learns next is made by what came out. `phase` is entered for its own work.
        """
        training, apart = self._training(memory), self._pairs(memory, self._apart)
        if not training or not apart:
            recall(updates)
            return
        waking = self.pool
        blocks = self._blocks if isinstance(self._maker, SearchedMaker) else 1
        for block in range(blocks):
            with phase():
                self._steer(learner, training, apart, between)
                self._judge(learner, training, apart, between)
            if not self._passed:
                self.pool = waking
            recall((block + 1) * updates // blocks - block * updates // blocks)
        if not self._passed and self._before is not None:
            # What it had passed with in an earlier round goes on, with the old cases that it stands for.
            self._maker.load(self._before)
            self._passed = True
        elif self.plan.memory == "generative" and self._passed:
            self._take_over(memory)

    def arrays(self) -> Arrays:
        """All that is kept from one round to the next, by name."""
        found: Arrays = {f"maker/{name}": array for name, array in self._maker.arrays().items()}
        found |= {
            "kind": self._kind,
            "apart": names_array(self._apart),
            "passed": np.array([self._passed]),
            "grid": np.array(self._grid, dtype=np.int64),
        }
        if self._frame is not None:
            found |= {"shape": np.array(self._frame.shape), "spacing": np.array(self._frame.spacing)}
        if self._substitute is not None:
            found |= {f"substitute/{name}": array for name, array in self._substitute.arrays().items()}
        if (shown := self.shown) is not None:
            found |= {f"shown/{name}": array for name, array in shown.arrays().items()}
        return found

    def _load(self, kept: Mapping[str, npt.NDArray[np.generic]]) -> None:
        def part(prefix: str) -> Arrays:
            return {
                name.removeprefix(prefix): np.asarray(array) for name, array in kept.items() if name.startswith(prefix)
            }

        self._maker.load(part("maker/"))
        self._apart = names_of(kept["apart"])
        self._passed = bool(kept["passed"][0])
        self._grid = tuple(int(side) for side in kept["grid"])
        if "shape" in kept:
            first, second, third = (int(side) for side in kept["shape"])
            steps = (float(kept["spacing"][0]), float(kept["spacing"][1]), float(kept["spacing"][2]))
            self._frame = _Frame((first, second, third), steps)
        if substitute := part("substitute/"):
            self._substitute = Substitute.of(substitute)
        if shown := part("shown/"):
            self._shown = Shown.of(shown)

    @property
    def _kind(self) -> npt.NDArray[np.int64]:
        """What must be the same in the round before to go on from it."""
        kind = int(self.plan.synthesis == "genseg")
        return np.array([kind, self._dimensions, self.plan.labels, self.plan.synthesis_side], dtype=np.int64)

    @property
    def _old(self) -> float:
        """Share of what is made that stands for cases that are no longer kept.

        In place of kept cases all of it; where pairs are wanted as augmentation as well, half.
        """
        if self.plan.memory != "generative" or self._substitute is None:
            return 0.0
        return 1.0 if self.plan.synthesis == "off" else 0.5

    @property
    def _blocks(self) -> int:
        return max(1, self.plan.synthesis_updates // (4 * STEPS_A_BLOCK))

    def _set_apart(self, memory: ReplayMemory) -> None:
        """Keep every fourth case from the generator for good; one as soon as there are three."""
        known = frozenset(memory.reservoir.kept)
        self._apart &= known
        if self.plan.synthesis == "genseg" and self._apart:
            return  # They were chosen when they were opened.
        due = max(int(len(known) >= LEAST_CASES), len(known) // KEPT_APART)
        for name in reversed(memory.reservoir.kept):
            if len(self._apart) < due and name not in self.seen:
                self._apart |= {name}
        if self.plan.synthesis == "genseg":
            memory.withheld |= self._apart

    def _training(self, memory: ReplayMemory) -> list[Pair]:
        return self._pairs(memory, frozenset(memory.reservoir.kept) - self._apart)

    def _pairs(self, memory: ReplayMemory, names: frozenset[str]) -> list[Pair]:
        """Pairs of remembered cases, in the order in which these are kept."""
        found = []
        for name in memory.reservoir.kept:
            if name not in names:
                continue
            if name not in self._known:
                self._known[name] = self._pairs_of(memory.sample(name))
            found += self._known[name]
        return found

    def _pairs_of(self, sample: Sample) -> list[Pair]:
        shape = sample.image.shape
        if not self._grid:
            stride = math.lcm(
                stride_of(self.plan.synthesis, self._dimensions, self.plan.labels),
                architecture(self.plan.model).stride,
            )
            self._grid = grid_of(shape, self._dimensions, self.plan.synthesis_side, stride)
        depth = 1 if self._dimensions == 2 else shape[2]
        self._frame = self._frames[sample.case_id] = _Frame((shape[0], shape[1], depth), sample.spacing)
        return pairs_of(sample, self._grid)

    def _with_dreams(self, training: list[Pair], memory: ReplayMemory, between: Callable[[], None]) -> list[Pair]:
        """Training pairs, and made ones of cases that were taken over: as many as these were, four times at most."""
        if not self._old or self._substitute is None:
            return training
        wanted = min(4.0, self._substitute.cases / max(1, len(memory))) * len(training)
        made = self._made([], max(1, round(wanted)), 1.0, between)
        # A name of its own each: what stands beside it is nobody's other slice.
        return training + [Pair(f"made/{number}", one.image, one.labels) for number, one in enumerate(made)]

    def _sample(self, made: "_Made") -> Sample:
        return synthetic_sample(
            "pair",
            made.image,
            made.labels,
            classes=self.plan.labels,
            shape=made.frame.shape,
            spacing=made.frame.spacing,
            weight=self.plan.synthesis_weight,
        )

    def _made(self, training: list[Pair], count: int, old: float, between: Callable[[], None]) -> list["_Made"]:
        """Images of new labels.

        A share of `old` are drawn from what stands for old cases; the rest are labels of a remembered case, deformed,
        in the texture of another case. What cannot be drawn or deformed is left out, and so are images with
        values that are not finite.
        """
        remembered = [pair for pair in training if pair.labels.any()]
        own = self._maker.styles(np.stack([pair.image for pair in training])) if training else None
        masks, styles, frames = [], [], []
        for _ in range(count):
            try:
                if self._substitute is not None and old and (not remembered or self._rng.random() < old):
                    assert self._frame is not None
                    mask, style = self._substitute.draw(self._rng)
                    frame = self._frame
                elif remembered:
                    pair = remembered[int(self._rng.integers(len(remembered)))]
                    frame = self._frames[pair.case_id]
                    mask = deformed(pair.labels, self._rng, spacing=frame.steps(self._grid))
                    others = [index for index, other in enumerate(training) if other.case_id != pair.case_id]
                    style = None if own is None or not others else own[self._rng.choice(others)]
                else:
                    break
            except DataError:
                continue
            masks.append(mask)
            frames.append(frame)
            styles += [] if style is None else [style]
        if not masks:
            return []
        # A texture is given to all or to none.
        given = np.stack(styles) if len(styles) == len(masks) else None
        images = self._maker.make(np.stack(masks), given, self._rng, between)
        made = [_Made(*each) for each in zip(images, masks, frames, strict=True)]
        return [one for one in made if np.isfinite(one.image).all()]

    def _steer(
        self, learner: OnlineLearner, training: list[Pair], apart: list[Pair], between: Callable[[], None]
    ) -> None:
        """Let cases that nothing is learnt from move the operators of a search."""
        if not isinstance(self._maker, SearchedMaker):
            return
        segmenter = learner.frozen().requires_grad_(True)
        for _ in range(STEPS_A_BLOCK):
            # Where no mask can be deformed, or a gradient is not finite, there is nothing to heed.
            with suppress(DataError, FloatingPointError):
                self._maker.heed(segmenter, training, apart, self._rng)
            between()

    def _judge(
        self, learner: OnlineLearner, training: list[Pair], apart: list[Pair], between: Callable[[], None]
    ) -> None:
        """Make pairs, and keep them if their generator has learnt nothing by heart and shows what it is asked for.

        It is judged by what it makes of the cases that it has just learnt, in their textures: that is where it would
        copy. What stands for older cases has passed in an earlier round.
        """
        self.pool, self._passed, self.verdict = [], False, None
        made = self._made(training, TESTED[self._dimensions], 0.0, between)
        images = np.array([one.image for one in made], dtype=np.float32)
        if not len(images):
            _LOG.warning("the generator makes no images: it has diverged, or none of its cases shows a structure")
            return
        network = learner.frozen()
        try:
            known, unseen = (_looked_at(np.stack([pair.image for pair in part])) for part in (training, apart))
            copies = memorised(_looked_at(images), known, unseen)
            faithful = faithfulness(
                lambda found: _labels(network, found), images, np.stack([one.labels for one in made]), self.plan.labels
            )
        except DataError:
            return  # Too few images to tell: then nothing is learnt from what was made.
        predicted = _labels(network, np.stack([pair.image for pair in apart]))
        real = [mean_dice(one, pair.labels, self.plan.labels) for one, pair in zip(predicted, apart, strict=True)]
        shown = [dice for dice in real if not math.isnan(dice)]
        self.verdict = Verdict(copies, faithful, float(np.mean(shown)) if shown else 0.0)
        self._passed = self.verdict.passed
        if self._passed:
            more = POOL[self._dimensions]
            self.pool = self._made(training, more, self._old, between) if self._old or len(made) < more else made
        elif not copies.passed:
            _LOG.warning("the generator has learnt cases by heart: nothing that it makes is learnt from")
        else:
            _LOG.info("the generator does not show what it is asked for yet: nothing that it makes is learnt from")

    def _take_over(self, memory: ReplayMemory) -> None:
        """Let the generator stand for the cases in memory that it can: these are forgotten then.

        Cases that were kept from it are forgotten with the others: they have served their test.
        """
        names = [name for name in memory.reservoir.kept if name not in self._apart]
        training = self._training(memory)
        textures = self._maker.styles(np.stack([pair.image for pair in training]))
        masks = [pair.labels for pair in training]
        found = substituted(self._substitute, masks, textures, len(names), self._rng)
        if found is None:
            return
        drawn = [name for name in names if found.covers([pair.labels for pair in self._known[name]])]
        if not drawn:
            return
        self._substitute = replace(found, cases=found.cases - len(names) + len(drawn))
        memory.forget({*drawn, *self._apart})


@dataclass(frozen=True)
class _Frame:
    """Where a pair is stretched back to: ``[I, J, K]`` voxels, K being 1 for slices, and millimetres between them."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]

    def steps(self, grid: tuple[int, ...]) -> list[float]:
        """Millimetres between the voxels of the generator's grid."""
        return [step * own / side for step, own, side in zip(self.spacing, self.shape, grid, strict=False)]


@dataclass(frozen=True, eq=False)
class _Made:
    """A made image and the labels that it was made of, on the generator's grid."""

    image: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]
    frame: _Frame


def _looked_at(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """``[N, *sides]``: slices, evenly spaced if there are many; of each volume a few, evenly spaced as well."""
    if images.ndim == 4:
        where = np.linspace(0, images.shape[3] - 1, LOOKED_AT + 2).round().astype(int)[1:-1]
        images = np.concatenate([images[..., place] for place in where])
    if len(images) <= COMPARED:
        return images
    return np.asarray(images[np.linspace(0, len(images) - 1, COMPARED).round().astype(int)], dtype=np.float32)


@torch.no_grad()
def _labels(network: nn.Module, images: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    device = next(network.parameters()).device
    parts = [network(torch.from_numpy(image[None, None]).to(device)).argmax(dim=1) for image in images]
    return np.asarray(torch.cat(parts).cpu().numpy(), dtype=np.uint8)
