"""Cases that attacks are tried on: phantoms, and canaries, whose labels nobody could guess."""

import numpy as np

from wardround.client.cases.phantoms import draw_phantom
from wardround.client.learning.inference import normalise
from wardround.client.learning.replay import Sample

LABELS = 3
SHAPE = (16, 24, 16)
# Voxels along each side of the blocks of one random label that a canary is made of.
BLOCK = 4


def phantom(seed: int) -> Sample:
    """A phantom with its whole label."""
    image, labels = draw_phantom(np.random.default_rng([seed, 0]), shape=SHAPE)
    return _sample(f"phantom-{seed}", image.array, np.asarray(labels.array, dtype=np.int64))


def canary(seed: int) -> Sample:
    """A phantom's image under labels drawn at random in blocks: who knows them has learnt this very case."""
    rng = np.random.default_rng([seed, 1])
    image, _ = draw_phantom(rng, shape=SHAPE)
    coarse = rng.integers(0, LABELS, [side // BLOCK for side in SHAPE])
    return _sample(f"canary-{seed}", image.array, np.kron(coarse, np.ones((BLOCK,) * 3, np.int64)))


def _sample(name: str, image: np.ndarray, labels: np.ndarray) -> Sample:
    target = (labels == np.arange(LABELS)[:, None, None, None]).astype(np.float16)
    return Sample(name, normalise(image), target, np.ones(SHAPE, np.float16))
