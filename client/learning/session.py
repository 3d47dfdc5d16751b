"""One case's loop: predict, suggest, draw, propagate, and what to learn from it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from wardround.client.annotation.calibration import LEAST_AGREEMENT
from wardround.client.annotation.effort import contour_effort
from wardround.client.annotation.guidance import next_point, next_slices, residual_map
from wardround.client.annotation.prompts import (
    UNLABELLED,
    Annotations,
    ExtentPrompt,
    Prompt,
    SlicePrompt,
    SliceRequest,
    looked_at,
)
from wardround.client.annotation.propagation import PropagationCache, PropagationSettings, ProxyMask, propagate
from wardround.client.annotation.seeds import drawn_labels
from wardround.client.cases.volume import Volume
from wardround.client.learning.inference import normalise
from wardround.client.learning.learner import OnlineLearner
from wardround.client.learning.metrics import mean_dice
from wardround.client.learning.replay import Sample
from wardround.client.learning.targets import (
    make_target,
    point_seeds,
    proxy_share,
    spread_labels,
    voxel_weights,
    with_seeds,
)
from wardround.client.learning.uncertainty import augmented_predictions, entropy
from wardround.strategies.plan import RoundPlan

Probabilities = npt.NDArray[np.float32]

# Voxels round the object in which a case's disagreement is measured.
NEIGHBOURHOOD = 3


@dataclass(frozen=True, eq=False)
class Step:
    """One answered annotation round, enough to live through it again.

    Parameters
    ----------
    drawn
        What the annotator drew in it.
    chosen
        All slices that had been suggested by then.
    rng
        State of the case's generator by then.
    """

    drawn: tuple[Prompt, ...]
    chosen: tuple[SliceRequest, ...]
    rng: Any


@dataclass(eq=False)
class CaseSession:
    """The state of one case while it is being annotated.

    The prediction before the case is taken once, at the start, and stays as it is for all annotation rounds: a target
    that followed the current prediction would only confirm it (Tian et al. 2023, temporal fusion). For the same reason
    it is this prediction that has a vote in propagation, where the plan gives it one.

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
    progress
        How much of the site's stream lies behind, 0 … 1.
    trust
        0 … 1, what the model has earned on earlier cases, see :class:`wardround.client.learning.state.Standing`.
    settings
        Of propagation.
    scale
        Of the intensities of the image that `image` is a part of, see
        :func:`~wardround.client.learning.inference.intensity_scale`; None where it is the whole one.
    unfinished
        Whether a person goes from structure to structure and may still come to one without points. Otherwise such a
        structure is one that the case does not have.
    """

    case_id: str
    image: Volume
    learner: OnlineLearner
    plan: RoundPlan
    rng: np.random.Generator
    extent: ExtentPrompt | None = None
    dense: tuple[SlicePrompt, ...] = ()
    progress: float = 0.0
    trust: float = 0.0
    settings: PropagationSettings = field(default_factory=PropagationSettings)
    scale: tuple[float, float] | None = None
    unfinished: bool = False
    annotations: Annotations = field(init=False)
    proxy: ProxyMask | None = field(init=False, default=None)
    chosen: tuple[SliceRequest, ...] = field(init=False, default=())
    steps: tuple[Step, ...] = field(init=False, default=())
    disagreement: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.normalised = normalise(self.image.array, self.scale)
        self.before = self.learner.predict(self.normalised)
        self._untouched = self.rng.bit_generator.state
        self.rewind()

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

    @property
    def agreement(self) -> float:
        """Thresholded Dice, 0 … 1, of the prediction before the case with what the annotator drew; NaN without objects.

        Only drawn voxels count. Elsewhere the proxy is a guess, and one in which the prediction may itself have had a
        vote: a model must not earn trust by agreeing with itself.
        """
        labels = drawn_labels(self.annotations, self.image.shape)
        drawn = labels != UNLABELLED
        predicted = np.asarray(self.before.argmax(axis=0)[drawn], dtype=np.uint8)
        return mean_dice(predicted, labels[drawn], self.plan.labels)

    @property
    def vote(self) -> float:
        """Weight of the prediction before the case in propagation.

        It is the plan's weight times the trust that earlier cases have earned. A prediction that agrees with the
        drawings of this very case to a Dice of less than :data:`LEAST_AGREEMENT` has none: far from them it would
        overrule what little was drawn.
        """
        weight = self.plan.model_vote * self.trust
        return 0.0 if not weight or self.agreement < LEAST_AGREEMENT else weight

    def rewind(self) -> tuple[Step, ...]:
        """Forget everything that was suggested and drawn, and return the steps that led here.

        Registrations are forgotten, too: found again in the same order they are the same bits.
        """
        steps, self.steps = self.steps, ()
        self.annotations = Annotations(extent=self.extent)
        self.prediction = self.before
        self.proxy = None
        self._propagated: ProxyMask | None = None
        self.disagreement = None
        self.chosen = ()
        self.rng.bit_generator.state = self._untouched
        self._cache = PropagationCache()
        return steps

    def repeat(self, step: Step) -> None:
        """Answer as in `step`, a step of this session that :meth:`rewind` returned."""
        self.chosen = step.chosen
        self.rng.bit_generator.state = step.rng
        self.answer(*step.drawn)

    def suggest(self, step: int) -> tuple[SliceRequest, ...]:
        """The slices to draw in annotation round `step` (0-based) under the plan's budget and rule."""
        seen = looked_at(self.annotations) if self.plan.prompts == "scribbles" else self.annotations
        requests = next_slices(
            seen,
            self.image.shape,
            self.image.spacing,
            rule=self.plan.suggestion,
            total=self.plan.slices_per_case,
            allocation=self.plan.allocation,
            rounds=self.plan.annotation_rounds,
            step=step,
            proxy=self._propagated,
            prediction=self.prediction,
            uncertainty=self._doubt(),
            rng=self.rng,
        )
        self.chosen += requests
        return requests

    def suggest_point(self) -> tuple[int, int, int] | None:
        """The voxel at which one more point would tell most; None before anything was drawn, or where all agree."""
        return None if self.proxy is None else next_point(self.proxy, self.prediction, self.image.spacing)

    def answer(self, *drawn: Prompt) -> None:
        """Take drawn slices, strokes and points, and propagate all that was drawn so far into a new proxy mask.

        Dense labels, where an arm has them, replace the proxy as a target. They do not reach the suggestions: the arm
        is asked for its next slices by the same rule, from the same knowledge, as one that draws nothing else.
        """
        self.annotations = self.annotations.adding(*drawn)
        self._propagate()
        self.steps += (Step(drawn, self.chosen, self.rng.bit_generator.state),)

    def resume(self, steps: Sequence[Step], extent: ExtentPrompt | None) -> None:
        """Come to where `steps` and `extent` lead, with a single propagation and with what the cache still holds.

        For a person who waits: a step that is taken back, or a draft of another day. The state is that of
        :meth:`rewind` and :meth:`repeat` but for the disagreement, which is measured on all of `steps` where it is not
        known yet, and for what continued propagation leaves to the order of drawing.
        """
        self.extent = extent
        self.annotations = Annotations(extent=extent)
        for step in steps:
            self.annotations = self.annotations.adding(*step.drawn)
        self.steps = tuple(steps)
        self.chosen = steps[-1].chosen if steps else ()
        self.rng.bit_generator.state = steps[-1].rng if steps else self._untouched
        if steps:
            self._propagate()
        else:
            self.proxy = self._propagated = self.disagreement = None

    def step_of(self, *drawn: Prompt) -> Step:
        """A step for :meth:`resume` in which nothing was suggested."""
        return Step(drawn, (), self._untouched)

    def _propagate(self) -> None:
        vote = self.vote
        self._propagated = propagate(
            self.image,
            self.annotations,
            self.plan.labels,
            settings=self.settings,
            cache=self._cache,
            prediction=self.before if vote > 0 else None,
            model_weight=vote,
        )
        if self.disagreement is None:
            self.disagreement = disagreement(self._propagated, self.before)
        self.proxy = self._dense_mask() if self.dense else self._propagated

    def refresh(self) -> None:
        """Predict again with the current weights."""
        self.prediction = self.learner.predict(self.normalised)

    def sample(self) -> Sample:
        """What the learner learns from this case as it stands: see :mod:`wardround.client.learning.targets`.

        Where the plan asks for points, what they spread to counts as drawn. It is a guess of good precision all the
        same, so that regularisation may ask of these voxels what it asks of those that nobody drew.

        Where strokes or points alone count, their labels are spread to what lies beside them, see
        :func:`~wardround.client.learning.targets.spread_labels`. A whole slice is thin only across itself, where the
        structure may end: with slices alone the target beside them stays that of proxy and prediction.

        Which slices weigh more follows what was drawn for the plan, also where dense labels are the target; these are
        certain everywhere.
        """
        assert self.proxy is not None, "answer() comes before sample()"
        assert self._propagated is not None
        plan, proxy = self.plan, self.proxy
        if plan.asked_for == "points":
            awaited = range(1, plan.labels) if self.unfinished else ()
            seeds = point_seeds(self.image, self.annotations.points, plan.expansion, awaited)
            proxy = with_seeds(proxy, seeds)
        share = proxy_share(plan.fusion_schedule, plan.fusion, self.progress, self.trust, proxy.confidence)
        target = make_target(
            proxy, self.before, share, boundary_smoothing=plan.boundary_smoothing, spacing=self.image.spacing
        )
        weight = voxel_weights(
            proxy,
            self._propagated.annotated,
            annotated_weight=plan.annotated_weight,
            confidence_weight=plan.confidence_weight,
            supervision=plan.supervision,
        )
        if plan.supervision == "partial" and (self.annotations.scribbles or self.annotations.points):
            target = spread_labels(target, weight > 0, self.image.spacing)
        return Sample(self.case_id, self.normalised, target, weight, self.proxy.annotated, self.image.spacing)

    def _doubt(self) -> npt.NDArray[np.float32] | None:
        """``[I, J, K]``, 0 … 1: what the model itself is unsure of, where the plan asks for it."""
        if not self.plan.uncertainty:
            return None
        return entropy(augmented_predictions(self.learner, self.normalised, self.plan.uncertainty, self.rng))

    def _dense_mask(self) -> ProxyMask:
        """Dense labels as a mask: certain everywhere."""
        labels = np.zeros(self.image.shape, dtype=np.uint8)
        for prompt in self.dense:
            labels[(slice(None),) * prompt.axis + (prompt.index,)] = prompt.labels
        classes = np.arange(self.plan.labels, dtype=labels.dtype)[:, None, None, None]
        everywhere = np.ones(self.image.shape, dtype=bool)
        return ProxyMask((labels == classes).astype(np.float32), everywhere, everywhere.astype(np.float32))


def disagreement(proxy: ProxyMask, prediction: Probabilities) -> float:
    """How much a case contradicts the model: mean residual in the object's neighbourhood.

    The neighbourhood is the proxy's object grown by :data:`NEIGHBOURHOOD` voxels, the whole volume where it has none.
    A mean over the volume would mostly say how large the background is.

    Parameters
    ----------
    proxy, prediction
        Of one case, probabilities ``[C, I, J, K]``.

    Returns
    -------
    float
        0 … 1.
    """
    residual = residual_map(proxy, prediction)
    found = proxy.labels > 0
    if not found.any():
        return float(residual.mean())
    return float(residual[ndimage.binary_dilation(found, iterations=NEIGHBOURHOOD)].mean())
