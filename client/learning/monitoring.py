"""Self and cross monitoring: two different networks that learn from frozen copies of themselves and of each other.

Stage 2 of Zhai et al. 2023 (PA-Seg, arXiv 2208.05669). Stage 1 leaves two networks f₁ and f₂ that learnt from a few
drawn voxels. Their frozen copies g₁ and g₂ then say something of every voxel: each network learns the most probable
labels of its own copy, and the softened probabilities of the other's. Two networks of one architecture make the same
mistakes and have little to tell each other.

Which state of a network is its best one so far, and which network the better one, the authors read off dense labels of
validation cases. Here it is told by the loss on what was drawn on cases that are held back (:func:`held_out_loss`);
where none are, the last weights are taken. How far the two agree (:func:`agreement`) says when they have nothing more
to tell each other, not which of them is right.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from wardround.client.learning.batches import Batch
from wardround.client.learning.learner import Checkpoint, OnlineLearner
from wardround.client.learning.metrics import mean_dice
from wardround.client.learning.replay import Sample
from wardround.client.learning.terms import Pass, Term
from wardround.client.supervision.distillation import hard_targets, soft_targets
from wardround.errors import UsageError
from wardround.models.catalogue import architecture

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


class BestSoFar:
    """The best state that a learner was seen in.

    Parameters
    ----------
    learner
        As it is now, its first state.
    judge
        Tells how bad a state is, without dense labels; a state that it cannot judge (NaN) is not taken. None for the
        last state seen.
    """

    def __init__(self, learner: OnlineLearner, judge: Judge | None = None) -> None:
        self._learner = learner
        self._judge = judge
        self.loss = float("inf")
        """What the judge says of it; infinite where nothing was said."""
        self.network = learner.frozen()
        """A frozen copy."""
        self._state: Checkpoint | None = None
        if judge is not None:
            self._state = learner.checkpoint()
            found = judge(learner)
            self.loss = found if found <= self.loss else self.loss

    def look(self) -> bool:
        """Judge the learner as it is now; True where this is now the best state, or nobody judges."""
        if self._judge is not None:
            found = self._judge(self._learner)
            if not found <= self.loss:
                return False
            self.loss = found
            self._state = self._learner.checkpoint()
        self.network = self._learner.frozen()
        return True

    def restore(self) -> None:
        """Put the learner back into its best state; where nobody judges it stays as it is."""
        if self._state is not None:
            self._learner.restore(self._state)


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
        Tells how bad a learner is, without dense labels, see :func:`held_out_loss`. The copies are then those of the
        best state met at a refresh so far, g₁ and g₂ each for itself; None takes the state at hand.

    Raises
    ------
    UsageError
        If the two have the same architecture, different labels, or one sees slices and the other volumes.
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
        specs = [architecture(learner.settings.model) for learner in (first, second)]
        if specs[0].dimensions != specs[1].dimensions:
            raise UsageError(
                "a network that sees slices and one that sees volumes cannot monitor each other",
                "each learns from what the other says of the same windows",
                "name two networks of as many axes",
            )
        # Strides are powers of two: a window that fits the greater one fits both.
        for learner in (first, second):
            learner.stride = max(spec.stride for spec in specs)
        self.learners = (first, second)
        self.settings = settings
        self.updates = 0
        self._judged = judge is not None
        self._best = BestSoFar(first, judge), BestSoFar(second, judge)
        self._heard: tuple[Tensor, tuple[Tensor, Tensor]] | None = None

    @property
    def copies(self) -> tuple[nn.Module, nn.Module]:
        """g₁ and g₂."""
        return self._best[0].network, self._best[1].network

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
                term = _Heard(self, number)
                learner.attach(term)
                try:
                    own = np.random.default_rng(seed)
                    totals[number] += learner.update(lambda kept=samples: kept, 1, learning_rate, own, between)  # type: ignore[misc]
                finally:
                    learner.detach(term)
            self.updates += 1
            if self.updates % self.settings.refresh == 0:
                self.refresh()
        self._heard = None
        return (totals[0] / updates, totals[1] / updates) if updates else (float("nan"), float("nan"))

    def refresh(self) -> None:
        """Take the frozen copies again: of the learners as they are; where there is a judge, of those no worse."""
        self._heard = None
        for best in self._best:
            best.look()

    def choose(self) -> OnlineLearner:
        """What to keep at the end: the learner of the lesser loss, both back in their best states, the last included.

        Without a judge nothing is chosen: both stay as they are, and it is the first.
        """
        if not self._judged:
            return self.learners[0]
        self.refresh()
        for best in self._best:
            best.restore()
        return self.learners[0 if self._best[0].loss <= self._best[1].loss else 1]

    def loss(self, number: int, logits: Tensor, batch: Batch) -> Tensor:
        """L₁ or L₂ without what the learner's settings give, of the student's logits."""
        own, other = (self._listen(batch)[place] for place in (number, 1 - number))
        share, temperature = self.settings.share, self.settings.temperature
        return (1 - share) * hard_targets(logits, own) + share * soft_targets(logits, other, temperature)

    @torch.no_grad()
    def _listen(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits of both copies; the second learner mostly asks for what the first has just heard."""
        if self._heard is None or not torch.equal(self._heard[0], batch.image):
            one, other = (copy(batch.image).float() for copy in self.copies)
            self._heard = batch.image, (one, other)
        return self._heard[1]


class _Heard(Term):
    """What one of two learners hears from the copies."""

    name = "monitoring"

    def __init__(self, monitors: Monitors, number: int) -> None:
        super().__init__()
        self._monitors, self._number = monitors, number

    def __call__(self, seen: Pass) -> Tensor:
        return self._monitors.loss(self._number, seen.logits, seen.batch)


def held_out_loss(samples: Sequence[Sample]) -> Judge:
    """A judge: mean loss on what was drawn on cases that are not learnt from.

    Parameters
    ----------
    samples
        Of these cases. What a proxy mask or an expansion of points says of other voxels does not count.

    Raises
    ------
    UsageError
        If there are none.
    """
    if not samples:
        raise UsageError("no case is held back", "what was drawn on one tells which state is best", "hold one back")
    drawn = [
        one if one.drawn is None else replace(one, weight=np.where(one.drawn, one.weight, 0).astype(one.weight.dtype))
        for one in samples
    ]
    return lambda learner: float(np.mean(learner.losses(drawn)))


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
