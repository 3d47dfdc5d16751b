"""What makes images of labels, behind one door: a diffusion model, or a searched generator that validation steers."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from wardround.client.synthesis.coupled import CoupledSearch, CoupledSettings
from wardround.client.synthesis.diffusion import DiffusionSettings, ImageGenerator
from wardround.client.synthesis.pairs import Pair
from wardround.models.denoiser import DenoiserSettings
from wardround.models.searched import SearchedSettings
from wardround.models.weights import Arrays
from wardround.strategies.plan import Synthesis

FloatArray = npt.NDArray[np.float32]
LabelArray = npt.NDArray[np.uint8]

# A volume has as many voxels as hundreds of slices: fewer go into one update, through narrower networks.
_SLICES = DenoiserSettings(2, 2, channels=(16, 32, 64), style=32)
_VOLUMES = DenoiserSettings(3, 2, channels=(8, 16, 32), style=32)
_BATCHES = {2: 16, 3: 2}


class Maker(Protocol):
    """What makes images of labels."""

    @property
    def seen(self) -> frozenset[str]:
        """Cases that it has learnt from."""
        ...

    def learn(
        self, pairs: Sequence[Pair], updates: int, rng: np.random.Generator, between: Callable[[], None]
    ) -> float:
        """Take `updates` steps on `pairs`; the mean loss."""
        ...

    def styles(self, images: FloatArray) -> FloatArray | None:
        """``[N, length]``: the texture of images ``[N, *spatial]``; None where it knows of none."""
        ...

    def make(
        self, labels: LabelArray, styles: FloatArray | None, rng: np.random.Generator, between: Callable[[], None]
    ) -> FloatArray:
        """Images ``[N, *spatial]`` of `labels` in `styles`."""
        ...

    def arrays(self) -> Arrays:
        """All that it is."""
        ...

    def load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become what :meth:`arrays` was taken of."""
        ...


class DiffusionMaker:
    """A diffusion model under a mask, with the texture of another image (MEDSAD, doi 10.1002/ima.70007).

    Parameters
    ----------
    dimensions, labels
        Spatial axes, and classes including background.
    seed, device
        Of its weights, and where they are.
    """

    def __init__(self, dimensions: int, labels: int, seed: int, device: torch.device) -> None:
        usual = _SLICES if dimensions == 2 else _VOLUMES
        shape = DenoiserSettings(dimensions, labels, usual.channels, usual.style)
        self._generator = ImageGenerator(DiffusionSettings(batch=_BATCHES[dimensions]), shape, seed, device)

    @property
    def seen(self) -> frozenset[str]:
        """As :attr:`Maker.seen`."""
        return self._generator.seen

    def learn(
        self, pairs: Sequence[Pair], updates: int, rng: np.random.Generator, between: Callable[[], None]
    ) -> float:
        """As :meth:`Maker.learn`."""
        return self._generator.learn(pairs, updates, rng, between)

    def styles(self, images: FloatArray) -> FloatArray | None:
        """As :meth:`Maker.styles`."""
        found = self._generator.style_of(images)
        return None if found is None else np.asarray(found.cpu().numpy(), dtype=np.float32)

    def make(
        self, labels: LabelArray, styles: FloatArray | None, rng: np.random.Generator, between: Callable[[], None]
    ) -> FloatArray:
        """As :meth:`Maker.make`."""
        given = None if styles is None else torch.from_numpy(styles).to(self._generator.device)
        return self._generator.sample(labels, given, rng, between=between)

    def arrays(self) -> Arrays:
        """As :meth:`Maker.arrays`."""
        return self._generator.arrays()

    def load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """As :meth:`Maker.load`."""
        self._generator.load(arrays)


class SearchedMaker:
    """A searched generator (GenSeg, doi 10.1038/s41467-025-61754-6), whose operators :meth:`heed` moves.

    Parameters
    ----------
    dimensions, labels, seed, device
        As of :class:`DiffusionMaker`.
    gamma
        γ of the look ahead.
    """

    def __init__(self, dimensions: int, labels: int, seed: int, device: torch.device, gamma: float = 1.0) -> None:
        network = SearchedSettings(dimensions, labels)
        settings = CoupledSettings(batch=_BATCHES[dimensions], gamma=gamma)
        self._search = CoupledSearch(settings, network, seed, device)

    @property
    def seen(self) -> frozenset[str]:
        """As :attr:`Maker.seen`."""
        return self._search.seen

    @property
    def architecture(self) -> FloatArray:
        """``[steps up, 3]``: the searched operators' weights before their softmax."""
        return self._search.architecture

    @architecture.setter
    def architecture(self, values: FloatArray) -> None:
        self._search.architecture = values

    def learn(
        self, pairs: Sequence[Pair], updates: int, rng: np.random.Generator, between: Callable[[], None]
    ) -> float:
        """As :meth:`Maker.learn`: at the operators as they are."""
        return self._search.pretrain(pairs, updates, rng, between)

    def heed(
        self, segmenter: nn.Module, training: Sequence[Pair], validation: Sequence[Pair], rng: np.random.Generator
    ) -> None:
        """Learn on, and let validation move the operators; `segmenter` is looked at and stays as it is."""
        self._search.advance(segmenter, training, validation, rng)

    def styles(self, images: FloatArray) -> FloatArray | None:
        """It knows of none."""
        return None

    def make(
        self, labels: LabelArray, styles: FloatArray | None, rng: np.random.Generator, between: Callable[[], None]
    ) -> FloatArray:
        """As :meth:`Maker.make`."""
        return self._search.sample(labels, rng)

    def arrays(self) -> Arrays:
        """As :meth:`Maker.arrays`."""
        return self._search.arrays()

    def load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """As :meth:`Maker.load`."""
        self._search.load(arrays)


def stride_of(kind: Synthesis, dimensions: int, labels: int) -> int:
    """Sides of a maker's images are multiples of it."""
    if kind == "genseg":
        return SearchedSettings(dimensions, labels).stride
    usual = _SLICES if dimensions == 2 else _VOLUMES
    return math.lcm(usual.stride, 2)


def maker_named(  # noqa: PLR0917
    kind: Synthesis, dimensions: int, labels: int, seed: int, device: torch.device, gamma: float
) -> DiffusionMaker | SearchedMaker:
    """The maker that a plan names; where it names none, the one that replay uses."""
    if kind == "genseg":
        return SearchedMaker(dimensions, labels, seed, device, gamma)
    return DiffusionMaker(dimensions, labels, seed, device)
