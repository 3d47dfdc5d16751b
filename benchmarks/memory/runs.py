"""One run: an arm under a seed, through the whole stream, tested after every few cases."""

import math
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from weak.labels import pooled, true_labels
from weak.runs import blocks_of, digest, drawer, labels_of

from memory.arms import Arm, Recipe
from memory.streams import Regime, samples_of
from wardround.client.cases.dataset import Dataset
from wardround.client.cases.nifti import read_image
from wardround.client.learning.augmentation import augmentation_named
from wardround.client.learning.consolidation import Consolidation
from wardround.client.learning.inference import normalise
from wardround.client.learning.learner import LearningSettings, OnlineLearner
from wardround.client.learning.metrics import dice
from wardround.client.learning.replay import ReplayMemory, Reservoir, Sample
from wardround.client.learning.stored_logits import centred_logits
from wardround.client.synthesis.imagination import Imagination
from wardround.strategies.plan import RoundPlan


def run(  # noqa: PLR0917
    arm: Arm, recipe: Recipe, dataset: Dataset, regimes: Sequence[Regime], seed: int, device: str
) -> dict[str, Any]:
    """Learn a stream and test on the way; returns plain values."""
    torch.set_num_threads(1)
    started, load = time.process_time(), os.getloadavg()
    drawn = [replace(part, structures=()) for part in regimes] if arm.joint else regimes
    stream = [samples_of(dataset, part, recipe.unlabelled, recipe.shrink, recipe.slices) for part in drawn]
    tests = Tests(dataset, regimes, recipe)
    learner = learner_of(arm, recipe, len(dataset.label_names), seed, torch.device(device))
    with tempfile.TemporaryDirectory() as folder:
        course = learn(arm, recipe, learner, stream, tests, seed, Path(folder))
    return {
        "arm": asdict(arm),
        "recipe": recipe.described(),
        "seed": seed,
        "regimes": [{"name": part.name, "train": list(part.pool), "test": list(part.test)} for part in regimes],
        **course,
        "weights": digest(learner),
        "seconds": {"learning": time.process_time() - started - tests.seconds, "testing": tests.seconds},
        "load": {"before": load, "after": os.getloadavg()},
    }


def learn(  # noqa: PLR0917
    arm: Arm,
    recipe: Recipe,
    learner: OnlineLearner,
    stream: Sequence[Sequence[Sample]],
    tests: "Tests",
    seed: int,
    folder: Path,
) -> dict[str, list[Any]]:
    """One case after the other; nothing is chosen on the way.

    Returns
    -------
    dict
        ``points``, what was tested when: ``cases`` so far, ``regime`` (how many have passed whole; None between), and
        ``dice`` of every test case by regime. ``losses``, the mean loss on every case. ``made``, by regime, what became
        of its generator, if any.
    """
    recall = np.random.default_rng([seed, 4])
    labels = learner.settings.labels
    dreams = imagination_of(recipe, labels, len(stream), seed, learner.device) if arm.generative else None
    memory = ReplayMemory(folder, Reservoir(arm.memory))
    everything = [sample for part in stream for sample in part]
    points = [{"cases": 0, "regime": 0, "dice": tests.of(learner)}]
    losses: list[float] = []
    made: list[dict[str, float]] = []

    def recalled(count: int) -> list[Sample]:
        share = 0.0 if dreams is None else dreams.share(memory)
        number = int(recall.binomial(count, share)) if share and len(memory) else count if share else 0
        return [*(dreams.draw(number, recall) if dreams else ()), *memory.draw(count - number, recall)]

    for number, part in enumerate(stream, start=1):
        for place, sample in enumerate(part, start=1):
            if arm.joint:
                draw = drawer(everything, recall, recipe.batch)
            else:

                def draw(sample: Sample = sample) -> list[Sample]:
                    others = recalled(recipe.batch // 2)
                    # Every update sees as many windows, whether anything is remembered or not.
                    return [sample] * (recipe.batch - len(others)) + others

            # What an arm draws beside windows and augmentation changes these of the case at hand alone.
            rng = np.random.default_rng([seed, 2, len(losses)])
            learner.open_case(learnt=bool(losses))
            blocks = blocks_of(recipe, recipe.updates)
            parts = [learner.update(draw, count, rate, rng) * count for count, rate in blocks if count]
            losses.append(math.fsum(parts) / recipe.updates)
            learner.accept_case(sample, rng)
            answered = centred_logits(learner.predict(sample.image)) if arm.logits else None
            memory.offer(replace(sample, logits=answered), recall)
            ends = place == len(part)
            if ends or len(losses) % recipe.every == 0:
                found = tests.of(learner)
                points.append({"cases": len(losses), "regime": number if ends else None, "dice": found})
                means = {name: round(mean(dices.values()), 3) for name, dices in found.items()}
                print(len(losses), round(losses[-1], 3), means, flush=True)
        if number == len(stream):
            break
        if dreams is not None:
            made.append(taken_over(dreams, learner, memory))
        elif arm.forgets:
            memory.forget(memory.reservoir.kept)
            memory.discard_unnamed()
    return {"points": points, "losses": losses, "made": made}


def imagination_of(recipe: Recipe, labels: int, regimes: int, seed: int, device: torch.device) -> Imagination:
    """A generator that has learnt nothing yet, as a site has one whose plan asks for generative replay."""
    plan = RoundPlan(
        run="forgetting",
        round=1,
        rounds=regimes,
        seed=seed,
        model=recipe.model,
        labels=labels,
        memory="generative",
        synthesis_updates=recipe.steps,
        synthesis_side=recipe.side,
    )
    return Imagination(plan, device, {}, np.random.default_rng([seed, 5]))


def taken_over(dreams: Imagination, learner: OnlineLearner, memory: ReplayMemory) -> dict[str, float]:
    """Have the generator learn what is remembered and stand for it; nothing of it is remembered then.

    Where it has learnt cases by heart it makes nothing, and they stay.
    """
    dreams.learn(memory, lambda: None)
    dreams.rehearse(learner, memory, 0, lambda _: None)
    memory.discard_unnamed()
    # Pairs of the test were made before the model of shapes knew this regime.
    dreams.wake(memory)
    found = {"kept": float(len(memory)), "made": float(len(dreams.pool))}
    if dreams.verdict is not None:
        found |= {"nearer": dreams.verdict.copies.nearer, "faithful": dreams.verdict.faithful.dice}
        found |= {"shuffled": dreams.verdict.faithful.shuffled, "real": dreams.verdict.real}
    print(found, flush=True)
    return found


def mean(values: Any) -> float:
    """NaN for none."""
    found = list(values)
    return math.fsum(found) / len(found) if found else math.nan


def learner_of(arm: Arm, recipe: Recipe, labels: int, seed: int, device: torch.device) -> OnlineLearner:
    """Before its first update: the same weights for all arms of a seed."""
    settings = LearningSettings(
        recipe.model,
        labels,
        seed,
        recipe.batch,
        patch=recipe.patch,
        augmentation=augmentation_named(recipe.augmentation),
        distillation=arm.distillation,
        stored_logits=arm.logits,
        dice=recipe.dice,
    )
    learner = OnlineLearner(settings, device)
    if arm.ewc:
        learner.attach(Consolidation(arm.ewc))
    return learner


@dataclass(frozen=True, eq=False)
class Asked:
    """A test case: its image as the network sees it, its labels on its own grid, and those that regimes ask for."""

    shrunk: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]
    structures: dict[str, tuple[int, ...]]


class Tests:
    """The test cases of all regimes; a case of several is predicted once.

    Dice is that of the argmax on the image's own grid, averaged over the structures of the regime; a structure of which
    nothing is found has Dice 0.
    """

    def __init__(self, dataset: Dataset, regimes: Sequence[Regime], recipe: Recipe) -> None:
        self._recipe = recipe
        self._names = [part.name for part in regimes]
        self.seconds = 0.0
        everything = tuple(range(1, len(dataset.label_names)))
        self._cases: dict[str, Asked] = {}
        for case in dict.fromkeys(case for part in regimes for case in part.test):
            image = read_image(dataset.cases[case].image)
            asked = {part.name: part.structures or everything for part in regimes if case in part.test}
            shrunk = pooled(normalise(image.array), recipe.shrink, recipe.slices).astype(np.float32)
            self._cases[case] = Asked(shrunk, true_labels(dataset, case), asked)

    def of(self, learner: OnlineLearner) -> dict[str, dict[str, float]]:
        """Regime → test case → Dice."""
        start = time.process_time()
        found: dict[str, dict[str, float]] = {name: {} for name in self._names}
        for case, asked in self._cases.items():
            labels = labels_of(learner, asked.shrunk, asked.labels.shape, self._recipe.shrink, self._recipe.slices)
            for name, structures in asked.structures.items():
                values = [dice(labels, asked.labels, label) for label in structures if (asked.labels == label).any()]
                if values:
                    found[name][case] = mean(values)
        self.seconds += time.process_time() - start
        return found
