"""Generators: trained on the labelled cases alone, tested, and let make the pairs that arms learn from."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from imagined.arms import Generator, Recipe
from imagined.cases import Deal, images_of, shown, slices_of
from imagined.quality import Real, judged, style_check
from wardround.client.cases.dataset import Dataset
from wardround.client.synthesis.coupled import CoupledSearch, CoupledSettings
from wardround.client.synthesis.diffusion import DiffusionSettings, ImageGenerator
from wardround.client.synthesis.masks import deformed
from wardround.client.synthesis.pairs import Pair
from wardround.models.denoiser import DenoiserSettings
from wardround.models.searched import SearchedSettings
from wardround.models.weights import save_arrays

Made = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]
"""Images and the labels that they were made of, ``[N, I, J]`` each."""


def diffusion_of(settings: Generator, recipe: Recipe, labels: int, seed: int, device: torch.device) -> ImageGenerator:
    """Before its first update."""
    style = recipe.style if settings.style else 0
    shape = DenoiserSettings(2, labels, recipe.channels, style, settings.frequency)
    return ImageGenerator(DiffusionSettings(batch=recipe.diffusion_batch), shape, seed, device)


def search_of(recipe: Recipe, labels: int, seed: int, device: torch.device, *, frozen: bool) -> CoupledSearch:
    """Before its first update; `frozen` for a generator without feedback."""
    settings = CoupledSettings(batch=recipe.searched_batch, gamma=recipe.gamma, frozen=frozen)
    return CoupledSearch(settings, SearchedSettings(2, labels, recipe.searched_channels), seed, device)


def new_masks(pairs: Sequence[Pair], count: int, rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], list[Pair]]:
    """Labels of random slices that show a structure, deformed, and these slices."""
    seen = shown(pairs)
    chosen = [seen[int(index)] for index in rng.integers(len(seen), size=count)]
    return np.stack([deformed(pair.labels, rng) for pair in chosen]), chosen


def others(pairs: Sequence[Pair], own: Sequence[Pair], rng: np.random.Generator) -> list[Pair]:
    """For each of `own` a random slice of another case that shows a structure."""
    seen = shown(pairs)
    found = []
    for pair in own:
        candidates = [other for other in seen if other.case_id != pair.case_id]
        found.append(candidates[int(rng.integers(len(candidates)))])
    return found


def make(generator: ImageGenerator, pairs: Sequence[Pair], count: int, rng: np.random.Generator) -> Made:
    """Pairs of deformed labels, in the texture of another case."""
    labels, chosen = new_masks(pairs, count, rng)
    styles = generator.style_of(images_of(others(pairs, chosen, rng)))
    return generator.sample(labels, styles, rng), labels


def train_generator(  # noqa: PLR0917
    settings: Generator,
    recipe: Recipe,
    dataset: Dataset,
    dealt: Deal,
    seed: int,
    device: str,
    files: Path,
    judge: nn.Module,
) -> dict[str, Any]:
    """Train and test a generator; what it is and what it made lie in `files` with two endings."""
    torch.set_num_threads(1)
    started, load = time.time(), os.getloadavg()
    pairs = slices_of(dataset, dealt.training, recipe.grid)
    labels, place = len(dataset.label_names), torch.device(device)
    rng = np.random.default_rng([seed, 5])
    style = None
    if settings.kind == "diffusion":
        generator = diffusion_of(settings, recipe, labels, seed, place)
        loss = generator.learn(shown(pairs), recipe.diffusion_updates, rng)
        trained = time.time()
        images, masks = make(generator, pairs, recipe.pool, rng)
        save_arrays(files.with_suffix(".safetensors"), generator.arrays())
        seen = generator.seen
        made = time.time()
        if settings.style:
            style = style_check(generator, shown(pairs), judge, recipe, np.random.default_rng([seed, 6]))
    else:
        search = search_of(recipe, labels, seed, place, frozen=True)
        loss = search.pretrain(shown(pairs), recipe.searched_updates, rng)
        trained = time.time()
        masks, _ = new_masks(pairs, recipe.pool, rng)
        images = search.sample(masks, rng)
        save_arrays(files.with_suffix(".safetensors"), search.arrays())
        seen = search.seen
        made = time.time()
    np.savez_compressed(files.with_suffix(".npz"), images=images, labels=masks)
    assert seen == set(dealt.training), "a generator has learnt from other cases than it was to"
    real = Real.of(dataset, dealt, recipe, shown(pairs))
    return {
        "manifest": {"generator": sorted(seen)},
        "loss": loss,
        "quality": judged(images, masks, real, judge, recipe, np.random.default_rng([seed, 7])),
        "style": style,
        "seconds": {"training": trained - started, "making": made - trained, "testing": time.time() - made},
        "cores": time.process_time(),
        "load": {"before": load, "after": os.getloadavg()},
    }


def made_by(files: Path) -> Made:
    """What a generator made."""
    with np.load(files.with_suffix(".npz")) as kept:
        return kept["images"], kept["labels"]
