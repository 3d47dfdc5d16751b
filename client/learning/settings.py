"""How a learner updates, as one frozen value."""

from dataclasses import dataclass, field

from wardround.client.learning.asked import Asked
from wardround.client.learning.augmentation import Augmentation, Augmenter, augmentation_named
from wardround.client.learning.schedule import learning_rate
from wardround.client.learning.teachers import Distillation
from wardround.client.supervision.regularisation import Regularisation, ramp
from wardround.strategies.plan import RoundPlan


@dataclass(frozen=True)
class LearningSettings:
    """How the learner updates.

    Parameters
    ----------
    model, labels, seed
        As in :func:`wardround.models.catalogue.build`.
    batch_size
        Volumes (or windows) in one update.
    weight_decay
        Decoupled decay of AdamW (Loshchilov and Hutter 2019).
    proximal_mu
        Strength of the FedProx term ``mu / 2 * ||w - w_global||^2`` (Li et al. 2020, equation 2); 0 leaves it out.
    patch
        Sides of a training window in voxels,
        :data:`~wardround.client.learning.batches.PATCH_LIMIT` if None; volumes that fit are used whole.
    amp
        Mixed precision on CUDA.
    augmentation
        What is done to every batch; None for nothing.
    regularisation
        What is asked of voxels that nobody drew.
    distillation
        What is learnt from teachers.
    stored_logits
        Weight of the difference to what was answered when a remembered case was accepted; 0 leaves it out.
    dice
        Weight of the soft Dice term beside cross-entropy; 0 leaves it out.
    local_keys
        Patterns of arrays that stay at the site.
    head_share
        Share of the updates in a row in which these alone learn, the others being left to the rest; 0: all learn in
        every update.
    asked
        What a strategy asks of the loss and of what leaves.
    """

    model: str
    labels: int
    seed: int
    batch_size: int = 2
    weight_decay: float = 1e-4
    proximal_mu: float = 0.0
    patch: tuple[int, int, int] | None = None
    amp: bool = True
    augmentation: Augmenter | None = field(default_factory=Augmentation)
    regularisation: Regularisation = field(default_factory=Regularisation)
    distillation: Distillation = field(default_factory=Distillation)
    stored_logits: float = 0.0
    dice: float = 1.0
    local_keys: tuple[str, ...] = ()
    head_share: float = 0.0
    asked: Asked = field(default_factory=Asked)

    @classmethod
    def of(cls, plan: RoundPlan) -> "LearningSettings":
        """What a plan says of it; regularisation has the strength of the plan's round."""
        return cls(
            plan.model,
            plan.labels,
            plan.seed,
            plan.batch_size,
            proximal_mu=plan.proximal_mu,
            patch=plan.patch,
            # Half precision loses small gradients unless they are scaled, and scales follow from what a case holds.
            amp=plan.amp and plan.privacy == "none",
            augmentation=augmentation_named(plan.augmentation),
            regularisation=Regularisation(
                crf=plan.crf_weight,
                variance=plan.variance_weight,
                attentive=plan.attentive_weight,
                kernel=plan.attentive_kernel,
                side=plan.regularisation_side,
                strength=ramp(max(0, plan.round - 1) / plan.rounds, plan.regularisation_ramp),
            ),
            distillation=Distillation.of(plan),
            stored_logits=plan.stored_logits,
            local_keys=plan.local_keys,
            head_share=plan.head_share,
            asked=Asked.of(plan, learning_rate(plan)),
        )
