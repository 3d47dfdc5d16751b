"""One run: an arm with k labelled volumes under a seed, trained to its last update and tested once."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from weak.labels import true_labels
from weak.runs import blocks_of, digest

from imagined.arms import Arm, Recipe
from imagined.cases import Deal, learnable, shown, slices_of
from imagined.quality import Real, judged, judged_real
from imagined.sources import Deformed, Searched, Source, Turned, knobs_of, source_of
from wardround.client.cases.dataset import Dataset
from wardround.client.cases.nifti import read_image
from wardround.client.cases.volume import Volume
from wardround.client.learning.augmentation import Augmenter, augmentation_named
from wardround.client.learning.inference import normalise
from wardround.client.learning.learner import LearningSettings, OnlineLearner
from wardround.client.learning.metrics import dice
from wardround.client.learning.replay import Sample
from wardround.client.synthesis.knobs import KnobAugmentation
from wardround.client.synthesis.pairs import Pair, resized

# Made pairs that are kept to be shown.
EXAMPLES = 8


def run(  # noqa: PLR0917
    arm: Arm,
    recipe: Recipe,
    dataset: Dataset,
    dealt: Deal,
    seed: int,
    device: str,
    files: Path | None,
    judge: nn.Module,
) -> dict[str, Any]:
    """Train and test; returns plain values, and where there is something to show, arrays under ``"example"``.

    Parameters
    ----------
    files
        Of the arm's generator; None where it has none, or where this did not pass its test and is not to be used.
    """
    torch.set_num_threads(1)
    started, load = time.time(), os.getloadavg()
    training, validation = (slices_of(dataset, part, recipe.grid) for part in (dealt.training, dealt.validation))
    learner, source, log, counts = train(
        arm, recipe, training, validation, len(dataset.label_names), seed, device, files
    )
    trained = time.time()
    scores = tested(learner, dataset, dealt.test, recipe)
    result: dict[str, Any] = {
        "manifest": manifest(dealt, source),
        "used": {"updates": recipe.iterations, **counts},
        "scores": scores,
        "log": log,
        "weights": digest(learner),
        "seconds": {"training": trained - started, "testing": time.time() - trained},
        "cores": time.process_time(),
        "load": {"before": load, "after": os.getloadavg()},
    }
    if isinstance(source, Searched) and not isinstance(source, Turned):
        result["architecture"] = {"start": source.start.tolist(), "end": source.search.architecture.tolist()}
    if isinstance(source, Turned):
        result["knobs"] = source.noted()
    if isinstance(source, Deformed) or (arm.steered and isinstance(source, Searched)):
        # As it is after its last block; other generators have been judged before.
        real = Real.of(dataset, dealt, recipe, shown(training))
        rng = np.random.default_rng([seed, 7])
        images, labels = source.make(recipe.pool)
        result["quality"] = judged(images, labels, real, judge, recipe, rng)
        result["example"] = images[:EXAMPLES], labels[:EXAMPLES]
    return result


def train(  # noqa: PLR0917
    arm: Arm,
    recipe: Recipe,
    training: Sequence[Pair],
    validation: Sequence[Pair],
    classes: int,
    seed: int,
    device: str,
    files: Path | None,
) -> tuple[OnlineLearner, Source, list[dict[str, float]], dict[str, int]]:
    """The last iterate of an arm; nothing is chosen on the way. Also where its made pairs came from, and notes."""
    place, knobs = torch.device(device), knobs_of()
    augmentation: Augmenter | None = (
        KnobAugmentation(knobs) if arm.augmentation == "knobs" else augmentation_named(arm.augmentation)
    )
    settings = LearningSettings(
        recipe.model, classes, seed, recipe.batch, patch=recipe.patch, augmentation=augmentation
    )
    learner = OnlineLearner(settings, place)
    source = source_of(arm, recipe, classes, training, validation, seed, files, place, knobs)
    batches = Batches([learnable(pair, classes) for pair in training], source, recipe, seed)
    rng, log = np.random.default_rng([seed, 2]), []
    for block, (updates, rate) in enumerate(blocks_of(recipe, recipe.iterations)):
        source.before(learner, block)
        loss = learner.update(batches, updates, rate, rng)
        log.append({"loss": loss, **source.noted()})
        print(log[-1], flush=True)
    return learner, source, log, {"real": batches.real, "made": batches.made}


class Batches:
    """Draws batches: the same slices in the same order in all arms that learn from the same cases.

    Where there are made pairs, they take the places of some of the slices that show a structure. The others stay, so
    that slices without any are as frequent as they are.
    """

    def __init__(self, given: Sequence[Sample], source: Source, recipe: Recipe, seed: int) -> None:
        self._given, self._source = given, source
        self._size, self._places = recipe.batch, round(recipe.share * recipe.batch)
        self._order, self._rng = np.random.default_rng([seed, 1]), np.random.default_rng([seed, 3])
        self._shown = [bool((sample.target[0] < 0.5).any()) for sample in given]
        self.real = self.made = 0

    def __call__(self) -> list[Sample]:
        """One batch."""
        chosen = self._order.integers(len(self._given), size=self._size).tolist()
        batch = [self._given[index] for index in chosen]
        pool = self._source.pool
        if pool and self._source.weight > 0:
            for place in range(self._places):
                if self._shown[chosen[place]]:
                    batch[place] = pool[int(self._rng.integers(len(pool)))]
                    self.made += 1
                    self.real -= 1
        self.real += self._size
        return batch


def manifest(dealt: Deal, source: Source) -> dict[str, list[str]]:
    """Case ids by stage, as they were used."""
    found = {
        "segmenter": list(dealt.training),
        "validation": list(dealt.validation),
        "judge": list(dealt.judge),
        "held out": list(dealt.held_out),
        "test": list(dealt.test),
        "generator": list(dealt.training) if source.made is not None else [],
    }
    if isinstance(source, Searched):
        assert source.search.seen == set(dealt.training), "the generator has learnt from other cases than it was to"
        assert source.search.judged_by <= set(dealt.validation), "the search has read other cases than it was to"
        found["generator"] = sorted(source.search.seen)
    return found


def tested(
    learner: OnlineLearner, dataset: Dataset, cases: Sequence[str], recipe: Recipe
) -> dict[str, dict[str, float]]:
    """Dice of every structure of every case on its own grid, thresholded; what is missed counts 0."""
    found = {}
    for case in cases:
        image, truth = read_image(dataset.cases[case].image), true_labels(dataset, case)
        labels = volume_labels(learner, image, recipe)
        found[case] = {name: dice(labels, truth, label) for label, name in enumerate(dataset.label_names[1:], start=1)}
    return found


def volume_labels(learner: OnlineLearner, image: Volume, recipe: Recipe) -> npt.NDArray[np.uint8]:
    """Most likely labels on the image's own grid; probabilities are stretched back from the network's."""
    seen = resized(normalise(image.array), recipe.grid)
    probabilities = learner.predict(seen)
    return np.asarray(np.stack([resized(one, image.shape) for one in probabilities]).argmax(axis=0), dtype=np.uint8)


def train_judge(recipe: Recipe, dataset: Dataset, dealt: Deal, device: str) -> tuple[OnlineLearner, dict[str, Any]]:
    """A network that has learnt from cases that no arm and no generator sees, and what it makes of real images."""
    torch.set_num_threads(1)
    started = time.time()
    pairs = slices_of(dataset, dealt.judge, recipe.grid)
    classes = len(dataset.label_names)
    settings = LearningSettings(
        recipe.model, classes, 0, recipe.batch, patch=recipe.patch, augmentation=augmentation_named("strong")
    )
    learner, rng = OnlineLearner(settings, torch.device(device)), np.random.default_rng([0, 2])
    batches = Batches([learnable(pair, classes) for pair in pairs], Source(0.0), recipe, 0)
    for updates, rate in blocks_of(recipe, recipe.judge_updates):
        learner.update(batches, updates, rate, rng)
    real = Real.of(dataset, dealt, recipe, [])
    network = learner.frozen()
    return learner, {
        "cases": list(dealt.judge),
        "quality": judged_real(real, network, recipe, np.random.default_rng(0)),
        "dice": float(
            np.nanmean([list(part.values()) for part in tested(learner, dataset, dealt.held_out, recipe).values()])
        ),
        "seconds": {"training": time.time() - started},
        "cores": time.process_time(),
    }
