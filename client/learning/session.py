"""One case's loop: predict, suggest, draw, propagate, update."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from wardround.client.annotation.effort import contour_effort
from wardround.client.annotation.guidance import next_slices, residual_map
from wardround.client.annotation.prompts import Annotations, ExtentPrompt, SlicePrompt, SliceRequest
from wardround.client.annotation.propagation import PropagationCache, ProxyMask, propagate
from wardround.client.cases.volume import Volume
from wardround.client.learning.inference import normalise
from wardround.client.learning.learner import OnlineLearner
from wardround.client.learning.replay import Sample
from wardround.strategies.plan import RoundPlan

Probabilities = npt.NDArray[np.float32]


@dataclass(eq=False)
class CaseSession:
    """The state of one case while it is being annotated.

    The prediction before the case is taken once, at the start, and stays as it is for all annotation rounds: a target
    that followed the current prediction would only confirm it (Tian et al. 2023, temporal fusion).

    Parameters
    ----------
    case_id
        Which case.
    image
        Intensities on the case's own grid.
    learner
        Predicts and learns.
    plan
        Rules of the round.
    rng
        Only source of randomness of this case.
    extent
        Where the object lies, if the annotator gave it.
    dense
        Every slice of one plane that may hold an object, where the arm of an experiment learns from dense labels: they
        make the target, while the slices that the plan asks for decide the voxel weights, by the same rule in all arms.
    """

    case_id: str
    image: Volume
    learner: OnlineLearner
    plan: RoundPlan
    rng: np.random.Generator
    extent: ExtentPrompt | None = None
    dense: tuple[SlicePrompt, ...] = ()
    annotations: Annotations = field(init=False)
    proxy: ProxyMask | None = field(init=False, default=None)
    chosen: tuple[SliceRequest, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        self.annotations = Annotations(extent=self.extent)
        self.normalised = normalise(self.image.array)
        self.before = self.learner.predict(self.normalised)
        self.prediction = self.before
        self._cache = PropagationCache()
        self._propagated: ProxyMask | None = None

    @property
    def depth(self) -> tuple[int, int]:
        """First and one past the last slice across axis 2 that may hold an object."""
        return (self.extent.lower[2], self.extent.upper[2] + 1) if self.extent else (0, self.image.shape[2])

    @property
    def paid(self) -> Annotations:
        """What the annotator is charged for: the drawn slices, or the dense labels that hold them."""
        return Annotations(slices=self.dense, extent=self.extent) if self.dense else self.annotations

    @property
    def cost(self) -> int:
        """Contour pixels that were drawn, as :func:`wardround.client.annotation.effort.contour_effort` counts them."""
        return contour_effort(self.paid)

    @property
    def residual(self) -> npt.NDArray[np.float32] | None:
        """``[I, J, K]``, 0 … 1: where proxy and prediction disagree; None before anything was drawn."""
        return None if self.proxy is None else residual_map(self.proxy, self.prediction)

    def suggest(self, step: int) -> tuple[SliceRequest, ...]:
        """The slices to draw in annotation round `step` (0-based) under the plan's budget and rule."""
        requests = next_slices(
            self.annotations,
            self.image.shape,
            self.image.spacing,
            rule=self.plan.suggestion,
            total=self.plan.slices_per_case,
            allocation=self.plan.allocation,
            rounds=self.plan.annotation_rounds,
            step=step,
            proxy=self._propagated,
            prediction=self.prediction,
            uncertainty=None,
            rng=self.rng,
        )
        self.chosen += requests
        return requests

    def answer(self, *drawn: SlicePrompt) -> None:
        """Take drawn slices and propagate all that was asked for into a new proxy mask.

        Dense labels, where an arm has them, replace the proxy as a target. They do not reach the suggestions: the arm
        is asked for its next slices by the same rule, from the same knowledge, as one that draws nothing else.
        """
        self.annotations = self.annotations.adding(*drawn)
        self._propagated = propagate(self.image, self.annotations, self.plan.labels, cache=self._cache)
        self.proxy = self._dense_mask() if self.dense else self._propagated

    def refresh(self) -> None:
        """Predict again with the current weights."""
        self.prediction = self.learner.predict(self.normalised)

    def sample(self) -> Sample:
        """What the learner learns from this case as it stands.

        Target (temporal fusion, Tian et al. 2023): ``y = (1 - w) p0 + w q`` off the drawn slices, the drawing on them.
        The share ``1 - w`` of the frozen prediction grows from zero to ``1 - fusion`` over the rounds, since an
        untrained network has nothing to say. Voxel weight: ``1 + lambda`` on the slices that the plan asked for, 1
        elsewhere; under slices-only supervision 0 elsewhere.
        """
        assert self.proxy is not None, "answer() comes before sample()"
        progress = (self.plan.round - 1) / self.plan.rounds
        share = (1 - self.plan.fusion) * progress
        target = (1 - share) * self.proxy.probabilities + share * self.before
        target[:, self.proxy.annotated] = self.proxy.probabilities[:, self.proxy.annotated]
        asked = np.zeros(self.image.shape, dtype=bool)
        for request in self.chosen:
            asked[(slice(None),) * request.axis + (request.index,)] = True
        elsewhere = 0.0 if self.plan.supervision == "slices" else 1.0
        weight = np.where(asked, 1 + self.plan.annotated_weight, elsewhere)
        return Sample(self.case_id, self.normalised, target.astype(np.float16), weight.astype(np.float16))

    def _dense_mask(self) -> ProxyMask:
        """Dense labels as a mask: certain everywhere."""
        labels = np.zeros(self.image.shape, dtype=np.uint8)
        for prompt in self.dense:
            labels[(slice(None),) * prompt.axis + (prompt.index,)] = prompt.labels
        classes = np.arange(self.plan.labels, dtype=labels.dtype)[:, None, None, None]
        everywhere = np.ones(self.image.shape, dtype=bool)
        return ProxyMask((labels == classes).astype(np.float32), everywhere, everywhere.astype(np.float32))
