"""One run: an arm under a seed, trained to its last update and tested once."""

import hashlib
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from wardround.client.cases.dataset import Dataset
from wardround.client.cases.nifti import read_image
from wardround.client.cases.volume import Volume
from wardround.client.learning.augmentation import augmentation_named
from wardround.client.learning.inference import normalise
from wardround.client.learning.kernel_health import health_of
from wardround.client.learning.learner import LearningSettings, OnlineLearner
from wardround.client.learning.metrics import score
from wardround.client.learning.monitoring import MonitoringSettings, Monitors
from wardround.client.learning.replay import Sample
from wardround.client.supervision.regularisation import ramp
from weak.arms import Arm, Recipe
from weak.labels import Split, pooled, samples, true_labels

LOOKED_AT = 16
"""Windows on which a kernel's health is measured."""


def run(  # noqa: PLR0917
    arm: Arm, recipe: Recipe, dataset: Dataset, split: Split, seed: int, device: str
) -> dict[str, Any]:
    """Train and test; returns plain values, and the example's labels under ``"example"``."""
    torch.set_num_threads(1)
    started, load = time.time(), os.getloadavg()
    given, effort = samples(dataset, split.train, arm.labels, recipe.shrink)
    learner, log = train(arm, recipe, given, len(dataset.label_names), seed, torch.device(device))
    trained = time.time()
    scores, example = evaluate(learner, dataset, split.test, recipe.shrink)
    return {
        "arm": asdict(arm),
        "recipe": recipe.described(),
        "seed": seed,
        "train": list(split.train),
        "test": list(split.test),
        "effort": effort,
        "scores": scores,
        "log": log,
        "weights": digest(learner),
        "seconds": {"training": trained - started, "testing": time.time() - trained},
        "load": {"before": load, "after": os.getloadavg()},
        "example": example,
    }


def train(  # noqa: PLR0917
    arm: Arm, recipe: Recipe, given: Sequence[Sample], labels: int, seed: int, device: torch.device
) -> tuple[OnlineLearner, list[dict[str, float]]]:
    """The last iterate of an arm; nothing is chosen on the way. Also what was noted after each block of updates."""
    learner = learner_of(arm, arm.model, recipe, labels, seed, device)
    # Cases are met in the same order by all arms of a seed.
    order, rng = np.random.default_rng([seed, 1]), np.random.default_rng([seed, 2])
    if arm.second:
        return _two_stages(arm, recipe, learner, given, labels, seed, device)
    log = []
    for block, (updates, rate) in enumerate(blocks_of(recipe, recipe.iterations)):
        learner.regularisation = arm.regularisation.at(ramp(block / recipe.blocks, arm.ramp))
        loss = learner.update(drawer(given, order, recipe.batch), updates, rate, rng)
        noted = {"updates": float((block + 1) * recipe.iterations // recipe.blocks), "loss": loss}
        if arm.attentive:
            noted |= _health(learner, given)
        log.append(noted)
        print(noted, flush=True)
    return learner, log


def _two_stages(  # noqa: PLR0917
    arm: Arm,
    recipe: Recipe,
    first: OnlineLearner,
    given: Sequence[Sample],
    labels: int,
    seed: int,
    device: torch.device,
) -> tuple[OnlineLearner, list[dict[str, float]]]:
    """Half of the updates in stage 1, half in stage 2, so that the network has had as many as that of any other arm."""
    second = learner_of(arm, arm.second, recipe, labels, seed, device)
    log: list[dict[str, float]] = []
    blocks = blocks_of(recipe, recipe.iterations)
    for learner in (first, second):
        order, rng = np.random.default_rng([seed, 1]), np.random.default_rng([seed, 2])
        for block, (updates, rate) in enumerate(blocks[: recipe.blocks // 2]):
            learner.regularisation = arm.regularisation.at(ramp(block / recipe.blocks, arm.ramp))
            drawn = drawer(given, order, recipe.batch)
            log.append({"updates": float(updates), "loss": learner.update(drawn, updates, rate, rng)})
        learner.regularisation = arm.regularisation.at(0.0)
    monitors = Monitors(first, second, MonitoringSettings(refresh=max(1, recipe.iterations // 10)))
    for updates, rate in blocks[recipe.blocks // 2 :]:
        one, other = monitors.update(drawer(given, order, recipe.batch), updates, rate, rng)
        log.append({"updates": float(updates), "loss": one, "second": other})
    return first, log


def drawer(given: Sequence[Sample], order: np.random.Generator, count: int) -> Callable[[], list[Sample]]:
    """Draws `count` samples at a time, with replacement."""
    return lambda: [given[int(order.integers(len(given)))] for _ in range(count)]


def learner_of(  # noqa: PLR0917
    arm: Arm, model: str, recipe: Recipe, labels: int, seed: int, device: torch.device
) -> OnlineLearner:
    """Before its first update."""
    settings = LearningSettings(
        model,
        labels,
        seed,
        recipe.batch,
        patch=recipe.patch,
        augmentation=augmentation_named(recipe.augmentation),
        regularisation=arm.regularisation,
        dice=arm.dice,
    )
    return OnlineLearner(settings, device)


def blocks_of(recipe: Recipe, iterations: int) -> list[tuple[int, float]]:
    """Updates and learning rate of every block."""
    found = []
    for block in range(recipe.blocks):
        updates = (block + 1) * iterations // recipe.blocks - block * iterations // recipe.blocks
        half = 0.5 * (1 + math.cos(math.pi * block / max(1, recipe.blocks - 1)))
        found.append((updates, recipe.rate_end + (recipe.rate - recipe.rate_end) * half))
    return found


def _health(learner: OnlineLearner, given: Sequence[Sample]) -> dict[str, float]:
    """How the kernel weighs pairs of strokes of one label and of two, on the same windows every time."""
    rng = np.random.default_rng(0)
    chosen = [given[int(index)] for index in rng.integers(len(given), size=LOOKED_AT)]
    health = health_of(learner, chosen, rng)
    return {"mean": health.mean, "same": health.same, "different": health.different, "ratio": health.ratio}


def evaluate(
    learner: OnlineLearner, dataset: Dataset, cases: Sequence[str], shrink: int
) -> tuple[dict[str, dict[str, dict[str, float]]], npt.NDArray[np.uint8]]:
    """Scores of every structure of every case on its own grid, and the labels of the first case.

    An empty prediction of a present structure has Dice 0 and the image's diagonal as its Hausdorff distance.
    """
    scores: dict[str, dict[str, dict[str, float]]] = {}
    example = np.zeros((0, 0, 0), dtype=np.uint8)
    for number, case in enumerate(cases):
        image = read_image(dataset.cases[case].image)
        found = predicted(learner, image, shrink)
        truth = true_labels(dataset, case)
        diagonal = math.hypot(*(side * step for side, step in zip(image.shape, image.spacing, strict=True)))
        scores[case] = {}
        for label, name in enumerate(dataset.label_names[1:], start=1):
            result = score(found, truth, label, image.spacing)
            if math.isnan(result.dice):
                continue
            hd95 = diagonal if math.isnan(result.hd95_mm) else result.hd95_mm
            scores[case][name] = {"dice": result.dice, "hd95": hd95, "missed": float(math.isnan(result.hd95_mm))}
        example = found if number == 0 else example
    return scores, example


def predicted(learner: OnlineLearner, image: Volume, shrink: int) -> npt.NDArray[np.uint8]:
    """Labels on the image's own grid."""
    return labels_of(learner, pooled(normalise(image.array), shrink).astype(np.float32), image.shape, shrink)


def labels_of(
    learner: OnlineLearner, image: npt.NDArray[np.float32], shape: tuple[int, ...], shrink: int, slices: int = 1
) -> npt.NDArray[np.uint8]:
    """Labels on a grid of `shape` from an image that :func:`~weak.labels.pooled` made coarser.

    Probabilities are interpolated, and the most probable label is taken then.
    """
    probability = learner.predict(image)
    if slices > 1:
        factors = (shrink, shrink, slices)
        volume = functional.interpolate(torch.from_numpy(probability)[None], scale_factor=factors, mode="trilinear")
        probability = volume[0].numpy()
    elif shrink > 1:
        planes = torch.from_numpy(probability).permute(3, 0, 1, 2)
        fine = functional.interpolate(planes, scale_factor=shrink, mode="bilinear").permute(1, 2, 3, 0)
        probability = fine.numpy()
    rows, columns, depth = shape
    return np.asarray(probability[:, :rows, :columns, :depth].argmax(axis=0), dtype=np.uint8)


def digest(learner: OnlineLearner) -> str:
    """Of the weights: equal for equal bits."""
    whole = hashlib.sha256()
    for name, array in sorted(learner.weights().items()):
        whole.update(name.encode())
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()
