"""Three coupled stages: a generator, the segmenter that learns from its images, and operators that validation picks.

GenSeg (Zhang et al. 2025, doi 10.1038/s41467-025-61754-6)::

    I    θ*(A)  = argmin_θ max_H  L_gan(θ, H, A; D_train)
    II   S*(A)  = argmin_S  L_seg(S; D_train) + γ L_seg(S; {(G(M̂; θ*(A), A), M̂)})     M̂: deformed masks of D_train
    III  A      = argmin_A  L_seg(S*(A); D_val)

Each is approximated by steps that take turns. Stages I and III are here; stage II is the learner's own training, so a
search never moves a segmenter. Stage III looks ahead one step of I and II
(:func:`wardround.client.synthesis.hypergradient.hypergradient`) and puts everything back.

Validation pairs are read by stage III alone. Their cases may not be among those that the generator has learnt from,
since what it makes is learnt from.

An architecture step whose hypergradient is not finite is left out, and the log says so.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wardround.client.supervision.losses import segmentation_loss
from wardround.client.synthesis.adversarial import BETAS, Adversarial, Adversaries
from wardround.client.synthesis.hypergradient import HypergradientSettings, hypergradient
from wardround.client.synthesis.masks import deformed
from wardround.client.synthesis.optimiser_state import load_optimiser, names_array, names_of, optimiser_arrays
from wardround.client.synthesis.pairs import Pair, stacked
from wardround.errors import DataError, UsageError
from wardround.models.searched import SearchedSettings
from wardround.models.weights import Arrays, load_weights, weights_of

Labels = npt.NDArray[np.uint8]
Deform = Callable[[Labels, np.random.Generator], Labels]
"""Maps labels ``[*spatial]`` to other labels of that shape."""
SegmentationLoss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Of a segmenter, images ``[N, 1, *spatial]`` and a one-hot target ``[N, labels, *spatial]``: a scalar."""

# GenSeg's, of the architecture.
DECAY = 1e-5

log = logging.getLogger(__name__)


def loss_on_pairs(segmenter: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy and soft Dice, every voxel once; see :data:`SegmentationLoss`."""
    return segmentation_loss(segmenter(images), target, torch.ones_like(target[:, 0]))


@dataclass(frozen=True)
class CoupledSettings:
    """How the stages take turns.

    Parameters
    ----------
    batch
        Pairs in every step, of training and of validation each.
    learning_rate
        Of generator and discriminator (Adam) while they are trained alone.
    joint_rate
        Of both during :meth:`CoupledSearch.advance`; also η_G, the step of the generator that is looked ahead.
    architecture_rate
        Of the architecture (Adam).
    segmenter_rate
        η_S, the step of the segmenter that is looked ahead.
    gamma
        γ, how much the segmenter's loss on synthetic pairs counts. At 0 validation says nothing of the generator, and
        the architecture stays.
    every
        An architecture step follows every so many generator steps; 0 never, so that the generator is trained on, but
        without feedback.
    frozen
        Nothing moves in :meth:`CoupledSearch.advance`: GenSeg's control "separate", a generator that is trained first
        and then used as it is.
    l1
        Weight of the mean absolute difference to the real image beside the adversarial loss.
    probe
        Length of the displacement by which second derivatives are measured, see
        :class:`wardround.client.synthesis.hypergradient.HypergradientSettings`.
    adversarial
        Which adversarial loss.
    """

    batch: int = 8
    learning_rate: float = 2e-4
    joint_rate: float = 2e-5
    architecture_rate: float = 3e-3
    segmenter_rate: float = 1e-2
    gamma: float = 1.0
    every: int = 2
    frozen: bool = False
    l1: float = 100.0
    probe: float = 0.01
    adversarial: Adversarial = "bce"


@dataclass(frozen=True)
class Advance:
    """What one advance did.

    Parameters
    ----------
    generator, discriminator
        Losses before their steps; NaN if frozen.
    feedback
        Length (L2) of the hypergradient; None without an architecture step, and where it was not finite.
    hop
        How much of the validation loss arrived at the generator's weights, as
        :attr:`wardround.client.synthesis.hypergradient.Hypergradient.hop`; None as well.
    validation
        Validation loss after the segmenter's looked-ahead step; None as well.
    """

    generator: float
    discriminator: float
    feedback: float | None = None
    hop: float | None = None
    validation: float | None = None


class CoupledSearch:
    """A generator with its discriminator, how they learn, and how validation moves the generator's operators.

    Given the same settings, seed, pairs and generators it ends bit-equal on the same CPU. The global random state of
    torch is left as it was.

    Parameters
    ----------
    settings
        How the stages take turns.
    network
        Sizes of generator and discriminator.
    seed
        Fixes their weights and the first architecture.
    device
        Where they are; segmenters have to be there, too.
    deform
        Makes the masks that images are made for in the architecture step.
    """

    def __init__(
        self,
        settings: CoupledSettings,
        network: SearchedSettings,
        seed: int,
        device: torch.device,
        deform: Deform = deformed,
    ) -> None:
        self.settings = settings
        self.network = network
        self.device = device
        self._deform = deform
        self._adversaries = Adversaries(network, seed, device, settings.l1, settings.adversarial)
        self._generator = self._adversaries.generator
        self._optimisers = self._adversaries.optimisers | {
            "architecture": torch.optim.Adam(
                [self._generator.architecture], settings.architecture_rate, BETAS, weight_decay=DECAY
            )
        }
        self._advances = 0
        self.seen: frozenset[str] = frozenset()
        """Cases that the generator has learnt from."""
        self.judged_by: frozenset[str] = frozenset()
        """Cases that validation of the architecture has read."""

    @property
    def architecture(self) -> npt.NDArray[np.float32]:
        """``[steps up, 3]``: a copy of A before its softmax, finest step first; all of it that others may be told."""
        return np.asarray(self._generator.architecture.detach().cpu().numpy().copy(), dtype=np.float32)

    @architecture.setter
    def architecture(self, values: npt.NDArray[np.float32]) -> None:
        with torch.no_grad():
            self._generator.architecture.copy_(torch.from_numpy(np.array(values)))

    def pretrain(
        self,
        pairs: Sequence[Pair],
        updates: int,
        rng: np.random.Generator,
        between: Callable[[], None] = lambda: None,
    ) -> float:
        """Train generator and discriminator alone, at the present architecture.

        Parameters
        ----------
        pairs
            Training pairs on one grid, at least one.
        updates
            Steps of each of the two.
        rng
            Source of batches and dropout.
        between
            Called after each step; others may use the device before it returns.

        Returns
        -------
        float
            Mean loss of the generator; NaN for no updates.

        Raises
        ------
        UsageError
            If pairs do not share one grid that fits.
        DataError
            If an image holds values that are not finite.
        """
        self._check(pairs)
        self.seen |= {pair.case_id for pair in pairs}
        total = 0.0
        for _ in range(updates):
            with self._noise(rng):
                total += self._adversaries.step(*self._batch(pairs, rng), self.settings.learning_rate)[0]
            between()
        return total / updates if updates else float("nan")

    def advance(
        self,
        segmenter: nn.Module,
        training: Sequence[Pair],
        validation: Sequence[Pair],
        rng: np.random.Generator,
        loss: SegmentationLoss = loss_on_pairs,
    ) -> Advance:
        """One step of generator and discriminator on training pairs and, every so often, one of the architecture.

        The segmenter ends bit-identical, its buffers and gradients as well: the caller trains it, by another optimiser.

        Parameters
        ----------
        segmenter
            As it is now, on the search's device.
        training, validation
            Pairs on one grid, at least one each, of different cases.
        rng
            Source of batches, deformed masks and dropout; one of its own, where numbers must not depend on the search.
        loss
            What the segmenter is trained and judged by.

        Raises
        ------
        UsageError
            If a validation case is among those that something is learnt from, or as of :meth:`pretrain`.
        DataError
            If no training mask can be deformed, or as of :meth:`pretrain`.
        """
        self._check(training)
        self._check(validation)
        judges = frozenset(pair.case_id for pair in validation)
        learnt_from = self.seen | {pair.case_id for pair in training}
        if judges & learnt_from:
            raise UsageError(
                f"{len(judges & learnt_from)} of {len(judges)} validation cases are also learnt from",
                "what a generator has learnt from comes back in its images, and so reaches the segmenter",
                "set cases aside for validation before the generator's first update, and keep them there",
            )
        if self.settings.frozen:
            return Advance(float("nan"), float("nan"))
        self.seen = learnt_from
        self._advances += 1
        with self._noise(rng):
            images, masks = self._batch(training, rng)
            losses = self._adversaries.step(images, masks, self.settings.joint_rate)
            if not self.settings.every or self._advances % self.settings.every or not self.settings.gamma:
                return Advance(*losses)
            self.judged_by |= judges
            shapes = self._shapes(training, rng)
            return self._architecture_step(
                segmenter, images, masks, shapes, *self._batch(validation, rng), loss, losses
            )

    def sample(self, labels: Labels, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """Make an image for each of `labels`.

        Parameters
        ----------
        labels
            ``[N, *spatial]``, uint8.
        rng
            Source of dropout, which is on.

        Returns
        -------
        numpy.ndarray
            ``[N, *spatial]``, normalised intensities.
        """
        found = []
        with self._noise(rng), torch.no_grad():
            for start in range(0, len(labels), self.settings.batch):
                part = torch.from_numpy(labels[start : start + self.settings.batch].astype(np.int64))
                found.append(self._generator(self._one_hot(part))[:, 0].float().cpu().numpy())
        return np.concatenate(found) if found else np.zeros(labels.shape, dtype=np.float32)

    def arrays(self) -> Arrays:
        """Everything that it is, by name, for one file; names of cases are among it."""
        parts: dict[str, Arrays] = {
            "generator": weights_of(self._generator),
            "critic": weights_of(self._adversaries.discriminator),
            **{f"moments.{name}": optimiser_arrays(own) for name, own in self._optimisers.items()},
            "cases": {"seen": names_array(self.seen), "judged_by": names_array(self.judged_by)},
            "steps": {"advances": np.asarray([self._advances])},
        }
        return {f"{part}/{name}": array for part, arrays in parts.items() for name, array in arrays.items()}

    def load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become what :meth:`arrays` was taken of: whatever follows is bit-equal.

        Raises
        ------
        PlanError
            If they are of other networks.
        """
        parts: dict[str, Arrays] = {}
        for name, array in arrays.items():
            part, own = name.split("/", 1)
            parts.setdefault(part, {})[own] = array
        load_weights(self._generator, parts["generator"])
        load_weights(self._adversaries.discriminator, parts["critic"])
        for name, optimiser in self._optimisers.items():
            load_optimiser(optimiser, parts.get(f"moments.{name}", {}))
        self.seen, self.judged_by = (names_of(parts["cases"][name]) for name in ("seen", "judged_by"))
        self._advances = int(parts["steps"]["advances"][0])

    def _architecture_step(  # noqa: PLR0917
        self,
        segmenter: nn.Module,
        images: Tensor,
        masks: Tensor,
        shapes: Tensor,
        judging: Tensor,
        judged: Tensor,
        loss: SegmentationLoss,
        losses: tuple[float, float],
    ) -> Advance:
        """Move the architecture against its hypergradient; nothing else moves."""
        settings, architecture = self.settings, self._generator.architecture
        try:
            found = hypergradient(
                training_loss=lambda: loss(segmenter, images, masks),
                synthetic_loss=lambda: loss(segmenter, self._generator(shapes), shapes),
                validation_loss=lambda: loss(segmenter, judging, judged),
                generator_loss=lambda: self._adversaries.loss(images, masks),
                segmenter=segmenter,
                generator=self._generator,
                architecture=[architecture],
                settings=HypergradientSettings(
                    settings.segmenter_rate, settings.joint_rate, settings.gamma, settings.probe
                ),
            )
        except FloatingPointError as error:
            log.warning("an architecture step was left out: %s", error)
            return Advance(*losses)
        (architecture.grad,) = found.total
        feedback = float(torch.linalg.vector_norm(architecture.grad))
        self._optimisers["architecture"].step()
        architecture.grad = None
        return Advance(*losses, feedback, found.hop, found.validation)

    def _batch(self, pairs: Sequence[Pair], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Images and one-hot masks of random pairs."""
        images, labels = stacked(self._chosen(pairs, rng))
        return images.to(self._generator.architecture), self._one_hot(labels)

    def _chosen(self, pairs: Sequence[Pair], rng: np.random.Generator) -> list[Pair]:
        """Random pairs for one batch, none twice where there are enough."""
        count = self.settings.batch
        return [pairs[index] for index in rng.choice(len(pairs), count, replace=len(pairs) < count)]

    def _shapes(self, pairs: Sequence[Pair], rng: np.random.Generator) -> Tensor:
        """One-hot masks that are none of the masks of `pairs`; what cannot be deformed is left out."""
        found = []
        for pair in self._chosen([pair for pair in pairs if pair.labels.min() < pair.labels.max()] or pairs, rng):
            with suppress(DataError):
                found.append(self._deform(pair.labels, rng))
        if not found:
            raise DataError(
                f"none of {len(pairs)} training pairs has a mask that can be deformed",
                "they show no structure, or nothing that could move",
                "train on slices that show structures",
            )
        return self._one_hot(torch.from_numpy(np.stack(found).astype(np.int64)))

    def _one_hot(self, labels: Tensor) -> Tensor:
        own = F.one_hot(labels.to(self.device), self.network.labels).movedim(-1, 1)
        return own.to(self._generator.architecture.dtype, memory_format=torch.contiguous_format)

    def _check(self, pairs: Sequence[Pair]) -> None:
        sides = {pair.labels.shape for pair in pairs}
        if len(sides) != 1 or any(side % self.network.stride for side in next(iter(sides))):
            raise UsageError(
                f"the generator cannot learn from {len(pairs)} pairs on {len(sides)} grids",
                f"it needs one pair at least, all on one grid with sides that are multiples of {self.network.stride}",
                "make all pairs on one grid",
            )
        if not all(np.isfinite(pair.image).all() for pair in pairs):
            raise DataError(
                f"some of {len(pairs)} images hold values that are not finite",
                "a generator that sees them is lost",
                "leave these images out",
            )

    @contextmanager
    def _noise(self, rng: np.random.Generator) -> Iterator[None]:
        """Let torch's global noise, of dropout, come from `rng` within the block."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(int(rng.integers(2**62)))
            yield
