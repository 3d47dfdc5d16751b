"""Self and cross monitoring: two different networks that learn from frozen copies of themselves and of each other.

Stage 2 of Zhai et al. 2023 (PA-Seg, arXiv 2208.05669). Stage 1 leaves two networks f₁ and f₂ that learnt from a few
drawn voxels. Their frozen copies g₁ and g₂ then say something of every voxel: each network learns the most probable
labels of its own copy, and the softened probabilities of the other's. Two networks of one architecture make the same
mistakes and have little to tell each other.

Which network is the better one is told without dense labels: by the loss on what was drawn on cases that were not
learnt from (:func:`held_out_loss`), or by how far the two agree (:func:`agreement`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from wardround.client.learning.batches import Batch
from wardround.client.learning.learner import OnlineLearner
from wardround.client.learning.metrics import mean_dice
from wardround.client.learning.replay import Sample
from wardround.client.supervision.distillation import hard_targets, soft_targets
from wardround.errors import UsageError

Judge = Callable[[OnlineLearner], float]


@dataclass(frozen=True)
class MonitoringSettings:
    """How much is learnt from whom.

    Parameters
    ----------
    share
        w, 0 … 1: weight of the other network's soft labels; one's own hard labels have ``1 − w``.
    temperature
        T of the soft labels, above 0.
    refresh
        Updates after which the frozen copies are taken again.
    """

    share: float = 0.5
    temperature: float = 4.0
    refresh: int = 200


class Monitors:
    """Two learners and the frozen copies that they learn from.

    To the loss that a learner's settings give, every update adds

    ``L₁ = (1 − w) · DC_CE(f₁(x), argmax g₁(x)) + w · T² · KL(softmax(g₂(x) / T) ‖ softmax(f₁(x) / T))``

    and L₂ with the parts exchanged. x is what the student sees, deformed alike. Samples whose weight is 0 everywhere
    leave nothing but this, as in the paper; otherwise what was drawn stays in the loss.

    Parameters
    ----------
    first, second
        f₁ and f₂ of different architectures, after stage 1.
    settings
        How much is learnt from whom.
    judge
        Tells how bad a learner is, without dense labels. The copies are then those of the best state met at a refresh
        so far, g₁ and g₂ each for itself; None takes the state at hand.

    Raises
    ------
    UsageError
        If the two have the same architecture, or different labels.
    """

    def __init__(
        self,
        first: OnlineLearner,
        second: OnlineLearner,
        settings: MonitoringSettings = MonitoringSettings(),
        judge: Judge | None = None,
    ) -> None:
        if first.settings.model == second.settings.model:
            raise UsageError(
                f"two networks of the architecture {first.settings.model!r} cannot monitor each other",
                "they would make the same mistakes",
                "name two different networks of the catalogue",
            )
        if first.settings.labels != second.settings.labels:
            raise UsageError(
                "two networks with different labels cannot monitor each other",
                f"one knows {first.settings.labels} labels, the other {second.settings.labels}",
                "train both on the same structures",
            )
        self.learners = (first, second)
        self.settings = settings
        self.updates = 0
        self._judge = judge
        self._best = [float("inf"), float("inf")]
        self._copies: list[nn.Module] = [first.frozen(), second.frozen()]
        self._heard: tuple[Tensor, tuple[Tensor, Tensor]] | None = None
        if judge is not None:
            self._best = [judge(learner) for learner in self.learners]

    @property
    def copies(self) -> tuple[nn.Module, nn.Module]:
        """g₁ and g₂."""
        return self._copies[0], self._copies[1]

    def update(
        self,
        batch: Callable[[], Sequence[Sample]],
        updates: int,
        learning_rate: float,
        rng: np.random.Generator,
        between: Callable[[], None] = lambda: None,
    ) -> tuple[float, float]:
        """Take `updates` gradient steps with each learner, both on the same windows, deformed alike.

        The copies are taken again after every :attr:`MonitoringSettings.refresh` updates, counted over all calls.

        Parameters
        ----------
        batch, updates, learning_rate, rng, between
            As of :meth:`wardround.client.learning.learner.OnlineLearner.update`.

        Returns
        -------
        tuple of float
            Mean loss of either learner over the steps; NaN for none.
        """
        totals = [0.0, 0.0]
        for _ in range(updates):
            samples, seed = batch(), int(rng.integers(2**62))
            for number, learner in enumerate(self.learners):
                learner.further = self._term(number)
                try:
                    own = np.random.default_rng(seed)
                    totals[number] += learner.update(lambda kept=samples: kept, 1, learning_rate, own, between)  # type: ignore[misc]
                finally:
                    learner.further = None
            self.updates += 1
            if self.updates % self.settings.refresh == 0:
                self.refresh()
        self._heard = None
        return (totals[0] / updates, totals[1] / updates) if updates else (float("nan"), float("nan"))

    def refresh(self) -> None:
        """Take the frozen copies again: of the learners as they are; where there is a judge, of those no worse."""
        self._heard = None
        for number, learner in enumerate(self.learners):
            if self._judge is not None:
                found = self._judge(learner)
                if not found <= self._best[number]:
                    continue
                self._best[number] = found
            self._copies[number] = learner.frozen()

    def _term(self, number: int) -> Callable[[Tensor, Batch], Tensor]:
        """L₁ or L₂ as a function of the student's logits."""
        share, temperature = self.settings.share, self.settings.temperature

        def loss(logits: Tensor, batch: Batch) -> Tensor:
            heard = self._listen(batch)
            own, other = heard[number], heard[1 - number]
            return (1 - share) * hard_targets(logits, own) + share * soft_targets(logits, other, temperature)

        return loss

    @torch.no_grad()
    def _listen(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits of both copies; the second learner mostly asks for what the first has just heard."""
        if self._heard is None or not torch.equal(self._heard[0], batch.image):
            one, other = (copy(batch.image).float() for copy in self._copies)
            self._heard = batch.image, (one, other)
        return self._heard[1]


def held_out_loss(samples: Sequence[Sample]) -> Judge:
    """A judge: mean loss on what was drawn on cases that are not learnt from.

    Parameters
    ----------
    samples
        At least one, with weight 0 off the drawn voxels.
    """
    return lambda learner: float(np.mean(learner.losses(samples)))


def agreement(one: OnlineLearner, other: OnlineLearner, images: Sequence[npt.NDArray[np.float32]]) -> float:
    """How far two learners agree: thresholded Dice of their predictions, 0 … 1, averaged over structures and images.

    Parameters
    ----------
    one, other
        Of the same labels.
    images
        At least one, ``[I, J, K]``, normalised. NaN where neither finds a structure in any of them.
    """
    found = []
    for image in images:
        masks = [np.asarray(learner.predict(image).argmax(axis=0), dtype=np.uint8) for learner in (one, other)]
        found.append(mean_dice(masks[0], masks[1], one.settings.labels))
    values = np.array(found)
    return float(values[~np.isnan(values)].mean()) if not np.isnan(values).all() else float("nan")
