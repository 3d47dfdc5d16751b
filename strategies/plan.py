"""The plan of a round: everything a site needs to know to take part, as one frozen value that travels."""

import hashlib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from flwr.app import ConfigRecord
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)

from wardround.errors import PlanError
from wardround.strategies.record_privacy import check_record_privacy

Supervision = Literal["proxy", "dense", "partial"]
Prompts = Literal["slices", "scribbles", "points"]
Suggestion = Literal["information", "residual", "residual-sampled", "even", "random"]
FusionSchedule = Literal["linear", "constant", "sigmoid", "inverse-sigmoid", "trust", "confidence"]
Replay = Literal["reservoir", "class-balanced", "most-interfered", "random-subset"]
Kernel = Literal["windowed", "released"]
Strength = Literal["none", "light", "strong"]
Teachers = Literal["case", "federation", "both"]
Scale = Literal["encoder", "bottleneck", "branch", "decoder"]
Synthesis = Literal["off", "medsad", "genseg"]
Memory = Literal["reservoir", "generative", "both"]
Expansion = Literal["geodesic", "contrasted"]
LabelKind = Literal["dense", "slices", "scribbles", "points"]
Codec = Literal["none", "lossless", "fp16", "bf16", "int8", "topk"]
CodecDown = Literal["none", "lossless", "fp16", "bf16"]
Personal = Literal["none", "ditto", "apfl"]
Privacy = Literal["none", "record"]
Pattern = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.*?]{1,200}$")]

# Steepness of the voxel weight in the proxy's confidence: a voxel that is right in 19 of 20 cases counts 0.44, one in 4
# of 5 counts 0.03. A proxy of few slices is wrong in the same way in every case, which no amount of cases averages out.
CERTAINTY = 16

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._=+:@-]{0,127}$"

# What Flower's strategies add to the record they are given.
_FLOWERS_OWN = frozenset({"server-round"})


# What earlier versions called learning from what was drawn alone, when only slices could be drawn.
FORMERLY_PARTIAL = "slices"


class RoundPlan(BaseModel):
    """What one round asks of every site.

    Types are strict: a number in quotes or a bool in place of a count is refused, never converted. Unknown fields are
    refused too, so that a site cannot take part in something it does not understand.

    Parameters
    ----------
    run
        Name of the run: letters, digits and ``._=+:@-``; it can be part of a file name.
    round
        1 … `rounds`; 0 is evaluation before any training.
    rounds
        How many rounds the run has.
    seed
        Of everything that is drawn at random, together with the site's name and the round.
    model
        A name in :mod:`wardround.models.catalogue`.
    labels
        Number of classes including background.
    supervision
        ``proxy``: learn from the proxy mask, off the drawn voxels weighted by its confidence; ``partial``: from what
        was drawn and nothing between (``slices``, as an earlier version called it, is read as this); ``dense``: from
        whole labels. The proxy teaches much better where updates are few or the task is hard, and no worse than a few
        tenths of a point where a long stream has taught all there is (``benchmarks/online.py``). It is shown,
        corrected and plans the next slice under each.
    prompts
        What the annotator is asked for. ``slices``: every pixel of a few slices. ``scribbles``: a stroke for each
        structure and background on these slices. ``points``: seven clicks a structure, one in it and six around it, and
        one more where proxy and prediction disagree most in every further annotation round; they are spread as in
        PA-Seg (Zhai et al. 2023, arXiv 2208.05669), and what they spread to counts as drawn.
    expansion
        How far seven points are spread: ``geodesic``, as was best on structures of low contrast, where it is cautious
        on others; ``contrasted`` for structures that stand out from what is round them, such as tumours in FLAIR. See
        :data:`wardround.client.annotation.expansion.EXPANSIONS`.
    annotation_rounds
        How often a case alternates between drawing and learning.
    slices_per_case
        Drawn slices a case, over all annotation rounds.
    allocation
        Slices along i, j, k; None lets the site choose by the shape of the case.
    suggestion
        Rule by which the next slices are chosen.
    uncertainty
        Predictions under test-time augmentation whose entropy guides the next slice; 0 leaves it out.
    extent
        Whether the annotator also clicks the object's bounding box.
    model_vote
        Weight of the model's own prediction beside a registration vote at no distance, times the site's trust in its
        model; 0 leaves it out.
    updates_per_case
        Optimiser steps a case.
    rehearsal
        Share of those steps that are made from memory alone, at the end of the round; 0 … 1.
    batch_size
        Samples a step.
    learning_rate, learning_rate_end
        First and last value of a cosine over the rounds.
    annotated_weight
        λ: a voxel on a drawn slice weighs 1 + λ in the loss, any other 1.
    fusion
        Share of the proxy mask in the target, 0 … 1; the rest is the prediction frozen before the case.
    fusion_schedule
        How that share develops over the stream, as :func:`wardround.client.learning.targets.proxy_share` has it.
    crf_weight
        Of the gated conditional random field (Obukhov et al. 2019, arXiv 1906.04651) among voxels that nobody drew, in
        the loss: 0 leaves it out; AttenScribble has 0.1, PA-Seg 1.
    variance_weight
        Of the variance of intensity within each class (PA-Seg has 0.1).
    attentive_weight
        Of attentive similarity (AttenScribble, Yang et al. 2023, arXiv 2312.06614: 0.1). It needs a network with
        attention.
    attentive_kernel
        ``windowed``: affinities that are normalised in their window; ``released``: as the authors released them, which
        training drives to nothing.
    regularisation_side
        Longest side in voxels of the grid on which the random field compares neighbours; time and memory grow with it.
    regularisation_ramp
        Share of the rounds over which these three weights rise to what is said here (PA-Seg); 0 for from the start.
    augmentation
        How strongly training batches are changed: ``none``, ``light``, or ``strong`` as nnU-Net does it.
    distill_weight
        Of what the network answered before, beside what was drawn: a teacher that learns no more, taken when a case is
        opened (Tian et al. 2022, multi-scale multi-task distillation: 0.4); 0 leaves it out.
    distill_temperature
        By which the answers of teacher and student are softened; learning without forgetting (Li and Hoiem 2016) has 2.
    distill_certainty
        Whether a voxel counts as much as the teacher is certain of it.
    distill_head
        Whether the teacher is answered by a second head on the same decoder, which stays at the site.
    teachers
        ``case``: the network as it was when the case was opened, from the site's second case on; ``federation``: the
        round's global weights, from the second round on; ``both``: half of the weight each, where there are both.
    contrast_weight
        Of the contrast at each of `contrast_scales` between features of structures and of what is round them, old and
        new ones (Tian et al.: 0.1); 0 leaves it out. It compares voxels of coarser grids that lie wholly in what is
        known of one structure. With ``partial`` supervision and few slices there are none at the coarser scales, and
        the site's log warns.
    contrast_temperature
        Of that contrast.
    contrast_scales
        Features that are contrasted; ``branch`` is a copy of the bottleneck for the contrast alone, which stays at the
        site.
    contrast_edges
        Scales of which only voxels at a structure's border are contrasted.
    stored_logits
        Weight of the squared difference to what the network answered when a remembered case was accepted (dark
        experience replay, Buzzega et al. 2020: α); 0 leaves it out.
    memory
        What is rehearsed: ``reservoir``, cases that are kept; ``generative``, pairs that a generator makes in place of
        cases, which are kept until it can stand for them; ``both``, half of each. With a `replay_capacity` of 0 there
        is nothing to learn a generator from.
    synthesis
        What makes further training pairs, at each site from its own accepted cases: ``medsad``, a diffusion model under
        a mask (Huang et al. 2024); ``genseg``, a generator whose operators are searched by what they do for the
        segmentation (Zhang et al. 2025); ``off``, nothing.
    synthesis_weight
        γ: a voxel of a made pair against one of a real case.
    synthesis_share
        Share of the recalled samples that are made ones, 0 … 1.
    synthesis_updates
        Steps of the generator in a round.
    synthesis_side
        Longest side in voxels of the grid on which pairs are made; time and memory grow with it.
    share_knobs
        Whether the searched operators' weights, a few dozen numbers, travel and are averaged with the network. Sites
        allow it or not; nothing else of a generator ever travels.
    confidence_weight
        How far the weight of a voxel off the drawn slices follows the proxy's confidence to the power of
        :data:`CERTAINTY`: 0 not at all, 1 entirely.
    boundary_smoothing
        Width in voxels over which a target is softened at the proxy's border where confidence is low; 0 for none.
    adaptivity
        How far updates and learning rate of a case follow its disagreement with the model: they stay within a factor
        of ``1 + adaptivity`` of the plan's; 0 spends the same on every case.
    replay_capacity
        Cases that a site keeps to rehearse.
    replay
        Which cases are kept and recalled, as :mod:`wardround.client.learning.replay` has it.
    validation_cases
        Remembered cases on which every new case's updates are checked before they stay; 0 for no check.
    rollback_drop
        Fall of their mean Dice from which a case's updates are taken back, at most two cases in a row.
    proximal_mu
        μ of FedProx (Li et al. 2020, eq. 2): the site adds ``μ/2 · ‖w − w_global‖²`` to its loss.
    control_variates
        Whether sites correct every gradient by how theirs differ from those of the federation, and tell by how much
        (SCAFFOLD, Karimireddy et al. 2020); see :mod:`wardround.strategies.scaffold`. Sites allow it or not.
    normalised_steps
        R: a site's change is divided by its steps over R, which travel beside it (FedNova, Wang et al. 2020); see
        :mod:`wardround.strategies.nova`. 0 leaves changes as they are.
    moon_weight
        μ of MOON (Li et al. 2021, eq. 5): of the contrast between what the network sees in a case, what the global one
        sees in it (alike) and what the site's own of the round before sees (unlike); 0 leaves it out.
    moon_temperature
        τ of that contrast.
    personal
        What each site trains for itself beside the federation's network, and then evaluates and draws with: ``ditto``,
        a network of its own that is held near the global one (Li et al. 2021); ``apfl``, a mixture of the two (Deng et
        al. 2020); ``none``. See :mod:`wardround.client.learning.apart`. It costs a second pass for every update.
    personal_weight
        λ of Ditto: ``λ/2 · ‖v − w_global‖²``.
    personal_share
        α of APFL: share of the site's own in the mixture, 0 … 1.
    personal_adaptive
        Whether each site learns its α, beginning with that share.
    head_share
        Share of the updates in a row in which the arrays of `local_keys` learn alone; in the others the rest does
        (FedRep, Collins et al. 2021). 0: all learn in every update.
    local_keys
        Patterns of arrays of the network that never travel, as in :mod:`wardround.strategies.local_keys`: each site
        has its own, with which it draws, evaluates and predicts. None by default.
    codec
        How a site's weights travel to the coordinator. ``none``: as they are; ``lossless``: to the last bit in fewer
        bytes; the others send the change: ``fp16`` or ``bf16`` in half precision, ``int8`` in 255 steps, ``topk`` the
        largest of these. What ``int8`` and ``topk`` leave out is kept at the site and sent with its next update. Small
        arrays and integers travel to the last bit under each. See :mod:`wardround.strategies.codecs`.
    codec_down
        How the global weights travel to the sites: ``none``, ``lossless``, or in half precision.
    codec_share
        Share of the entries of an array that ``topk`` sends, 0 … 1.
    privacy
        ``record``: what leaves a site is differentially private for each of its cases, see
        :meth:`wardround.client.learning.round.OnlineRound.learn_privately`; nothing is learnt while a case is drawn,
        `updates_per_case` steps for each new case follow at the end of the round, and `batch_size` is the number of
        windows of a case in a step. ``none``: it is not.
    noise_multiplier
        σ: standard deviation of the noise in a step over `clip_norm`.
    clip_norm
        C: the gradient of a case, over all its windows and all weights together, is cut to this Euclidean norm.
    sample_rate
        q: probability with which each remembered case takes part in a step, 0 … 1.
    patch
        Voxels of a training patch along i, j, k; None means whole volumes up to the site's limit.
    amp
        Mixed precision where the device is a GPU.
    secure
        Whether the coordinator is to learn the sum of the sites' updates and of their scalars, and nothing of one
        site's: see :mod:`wardround.strategies.secure`.
    secure_threshold
        More than this share of the sites that gave keys must stay to the end, 2/3 … 1. The rest may drop out, and as
        many may work together with the coordinator against the others without learning anything of one of them.
    secure_bits
        Binary places of a change under secure aggregation: the mean is off by 2⁻ᵇ⁻¹ at most.
    secure_clip
        Largest change of one weight in a round under secure aggregation. A site that changes one further says so and
        sends nothing.
    secure_examples
        Largest ``num-examples`` of a site under secure aggregation. Each of the last three has its price in bytes.
    deadline_s
        Seconds after which an answer is no longer waited for.

    Raises
    ------
    PlanError
        If a field is unknown, missing, of another type or out of range. The message names the field.

    Examples
    --------
    >>> plan = RoundPlan(run="demo", round=1, rounds=3, seed=0, model="unet3d-small", labels=3)
    >>> RoundPlan.from_record(plan.to_record()) == plan
    True
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    run: Annotated[str, Field(pattern=_NAME)]
    round: Annotated[int, Field(ge=0)]
    rounds: Annotated[int, Field(ge=1, le=1_000_000)]
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    model: Annotated[str, Field(pattern=_NAME)]
    labels: Annotated[int, Field(ge=2, le=64)]
    supervision: Supervision = "proxy"
    prompts: Prompts = "slices"
    expansion: Expansion = "geodesic"
    annotation_rounds: Annotated[int, Field(ge=1, le=16)] = 2
    slices_per_case: Annotated[int, Field(ge=1, le=4096)] = 8
    allocation: tuple[int, int, int] | None = None
    suggestion: Suggestion = "information"
    uncertainty: Annotated[int, Field(ge=0, le=64)] = 0
    extent: bool = True
    model_vote: Annotated[float, Field(ge=0, le=100)] = 0.4
    updates_per_case: Annotated[int, Field(ge=0, le=1_000_000)] = 24
    rehearsal: Annotated[float, Field(ge=0, le=1)] = 0.5
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 2
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 4e-3
    learning_rate_end: Annotated[float, Field(ge=0, le=1)] = 2e-4
    annotated_weight: Annotated[float, Field(ge=0, le=1e4)] = 4.0
    fusion: Annotated[float, Field(ge=0, le=1)] = 0.9
    fusion_schedule: FusionSchedule = "linear"
    crf_weight: Annotated[float, Field(ge=0, le=100)] = 0.0
    variance_weight: Annotated[float, Field(ge=0, le=100)] = 0.0
    attentive_weight: Annotated[float, Field(ge=0, le=100)] = 0.0
    attentive_kernel: Kernel = "windowed"
    regularisation_side: Annotated[int, Field(ge=8, le=512)] = 64
    regularisation_ramp: Annotated[float, Field(ge=0, le=1)] = 0.0
    augmentation: Strength = "light"
    distill_weight: Annotated[float, Field(ge=0, le=100)] = 0.0
    distill_temperature: Annotated[float, Field(ge=0.1, le=100)] = 1.0
    distill_certainty: bool = True
    distill_head: bool = False
    teachers: Teachers = "case"
    contrast_weight: Annotated[float, Field(ge=0, le=100)] = 0.0
    contrast_temperature: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    contrast_scales: tuple[Scale, ...] = ("encoder", "bottleneck", "branch", "decoder")
    contrast_edges: tuple[Scale, ...] = ()
    stored_logits: Annotated[float, Field(ge=0, le=100)] = 0.0
    memory: Memory = "reservoir"
    synthesis: Synthesis = "off"
    synthesis_weight: Annotated[float, Field(ge=0, le=100)] = 1.0
    synthesis_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    synthesis_updates: Annotated[int, Field(ge=1, le=1_000_000)] = 300
    synthesis_side: Annotated[int, Field(ge=16, le=512)] = 32
    share_knobs: bool = False
    confidence_weight: Annotated[float, Field(ge=0, le=1)] = 1.0
    boundary_smoothing: Annotated[float, Field(ge=0, le=8)] = 0.0
    adaptivity: Annotated[float, Field(ge=0, le=4)] = 0.0
    replay_capacity: Annotated[int, Field(ge=0, le=1_000_000)] = 256
    replay: Replay = "reservoir"
    validation_cases: Annotated[int, Field(ge=0, le=64)] = 4
    rollback_drop: Annotated[float, Field(gt=0, le=1)] = 0.05
    proximal_mu: Annotated[float, Field(ge=0, le=1e4)] = 0.0
    control_variates: bool = False
    normalised_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    moon_weight: Annotated[float, Field(ge=0, le=1000)] = 0.0
    moon_temperature: Annotated[float, Field(ge=0.01, le=100)] = 0.5
    personal: Personal = "none"
    personal_weight: Annotated[float, Field(ge=0, le=1e4)] = 0.1
    personal_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    personal_adaptive: bool = True
    head_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    local_keys: Annotated[tuple[Pattern, ...], Field(max_length=64)] = ()
    codec: Codec = "none"
    codec_down: CodecDown = "none"
    codec_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    privacy: Privacy = "none"
    noise_multiplier: Annotated[float, Field(gt=0, le=1e4)] = 1.0
    clip_norm: Annotated[float, Field(gt=0, le=1e4)] = 1.0
    sample_rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    patch: tuple[int, int, int] | None = None
    amp: bool = True
    secure: bool = False
    secure_threshold: Annotated[float, Field(ge=2 / 3, le=1)] = 2 / 3
    secure_bits: Annotated[int, Field(ge=8, le=32)] = 20
    secure_clip: Annotated[float, Field(gt=0, le=1024)] = 8.0
    secure_examples: Annotated[int, Field(ge=1, le=2**24)] = 2**16
    deadline_s: Annotated[float, Field(gt=0, le=366 * 24 * 3600)] = 3600.0

    @field_validator("allocation", "patch", mode="before")
    @classmethod
    def _from_list(cls, value: object) -> object:
        """A record knows neither tuples nor None: a list stands for the one, an empty list for the other."""
        if isinstance(value, list):
            return tuple(value) or None
        return value

    @field_validator("contrast_scales", "contrast_edges", "local_keys", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        """A record knows no tuples, and somebody who writes names puts commas between them, or ``none``."""
        if isinstance(value, list):
            return tuple(value)
        if not isinstance(value, str):
            return value
        return () if value == "none" else tuple(name.strip() for name in value.split(","))

    @field_validator("contrast_scales", "contrast_edges", "local_keys")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("must name everything once")
        return value

    @field_validator("supervision", mode="before")
    @classmethod
    def _as_it_was_called(cls, value: object) -> object:
        return "partial" if value == FORMERLY_PARTIAL else value

    @field_validator("allocation")
    @classmethod
    def _some_slices(cls, value: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
        if value is not None and not (min(value) >= 0 and 1 <= sum(value) <= 4096):
            raise ValueError("must hold three counts from 0 up, and one slice at least")
        return value

    @field_validator("patch")
    @classmethod
    def _some_voxels(cls, value: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
        if value is not None and not all(8 <= side <= 1024 for side in value):
            raise ValueError("every side must be between 8 and 1024 voxels")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "RoundPlan":
        if self.round > self.rounds:
            raise ValueError(f"round {self.round} lies behind the last of {self.rounds}")
        if self.learning_rate_end > self.learning_rate:
            raise ValueError("learning-rate-end must not exceed learning-rate")
        if not set(self.contrast_edges) <= set(self.contrast_scales):
            raise ValueError("contrast-edges must be among contrast-scales")
        if self.share_knobs and self.synthesis != "genseg":
            raise ValueError("share-knobs needs synthesis genseg: there is nothing else to share")
        if self.privacy == "record":
            check_record_privacy(dict(self))
        if self.secure and self.codec != "none":
            raise ValueError("secure needs codec none: masked numbers cannot be made fewer or coarser")
        if self.head_share and not self.local_keys:
            raise ValueError("head-share needs local-keys: there is nothing that could learn alone")
        if self.personal != "none" and self.local_keys:
            raise ValueError("personal and local-keys are two ways to the same; choose one")
        return self

    # Stands behind the other validators so that it wraps them all.
    @model_validator(mode="wrap")
    @classmethod
    def _name_the_field(cls, values: Any, handler: ModelWrapValidatorHandler["RoundPlan"]) -> "RoundPlan":
        try:
            return handler(values)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = str(first["loc"][0]) if first["loc"] else ""
            message = first["msg"].removeprefix("Value error, ")
            raise PlanError(
                f"the plan's {field.replace('_', '-')} cannot be used" if field else "the plan cannot be used",
                message[:1].lower() + message[1:],
                "correct the plan; a field that is unknown here may come from another version of Wardround",
            ) from error

    @property
    def keeps_a_model(self) -> bool:
        """Whether each site has weights of its own, with which it evaluates and draws."""
        return self.personal != "none" or bool(self.local_keys)

    @property
    def asked_for(self) -> Prompts:
        """What the annotator is asked for step by step; under dense supervision slices, which decide the weights."""
        return "slices" if self.supervision == "dense" else self.prompts

    def for_labels(self, kind: LabelKind | None) -> "RoundPlan":
        """The plan as a site takes part in it whose people give another kind of label; None leaves it as it is."""
        if kind is None:
            return self
        if kind == "dense":
            return self.model_copy(update={"supervision": "dense", "prompts": "slices"})
        return self.model_copy(update={"prompts": kind})

    def to_record(self) -> ConfigRecord:
        """The plan as it travels: names with dashes, a list for a tuple, an empty list for None."""
        return ConfigRecord({name.replace("_", "-"): _wire(value) for name, value in self})

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> "RoundPlan":
        """Read a plan that travelled; what Flower's strategies add to the record is dropped.

        Raises
        ------
        PlanError
            If it is not a plan of this version.
        """
        return plan_from_flat({name: value for name, value in record.items() if name not in _FLOWERS_OWN})

    def digest(self) -> str:
        """SHA-256 of the plan's fields, in hexadecimal: equal plans and only those share it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def plan_from_flat(values: Mapping[str, object]) -> RoundPlan:
    """Build a plan from names with dashes.

    Raises
    ------
    PlanError
        As :class:`RoundPlan`, and for a name with an underscore.
    """
    wrong = sorted(name for name in values if not re.fullmatch(r"[a-z]+(-[a-z]+)*", name))
    if wrong:
        raise PlanError(f"the plan holds an unknown field {wrong[0]!r}", "names are written with dashes", "correct it")
    return RoundPlan.model_validate({name.replace("-", "_"): value for name, value in values.items()})


def _wire(value: Any) -> Any:
    if value is None:
        return []
    return list(value) if isinstance(value, tuple) else value
