"""Learning a case without unlearning those before it: the answers and features of a network that learns no more.

Multi-scale multi-task distillation (Tian et al. 2022). The teacher is the network as it was when a case was opened, or
the federation's, whose global weights a round began with. Two things are asked of the network that learns, beside what
was drawn: to answer as the teacher does, where that is certain
(:func:`~wardround.client.supervision.distillation.certain_distillation`), and to keep the features of a structure
together, new ones and the teacher's, at several scales
(:func:`~wardround.client.supervision.contrastive.contrastive_loss`).

============== ======================================================= =================
scale          features                                                resolution
============== ======================================================= =================
``encoder``    of the first encoder stage                              1/2
``bottleneck`` of the deepest stage                                    1/8 with 4 levels
``branch``     of a copy of the deepest stage, for the contrast alone  as ``bottleneck``
``decoder``    of the last decoder stage but one                       1/2
============== ======================================================= =================
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from wardround.client.learning.terms import Pass, Term, frozen_copy
from wardround.client.supervision.contrastive import ContrastSettings, contrastive_loss
from wardround.client.supervision.distillation import certain_distillation
from wardround.models.catalogue import Features, feature_modules
from wardround.strategies.plan import RoundPlan, Scale

SCALES: tuple[Scale, ...] = ("encoder", "bottleneck", "branch", "decoder")

# The stages of the catalogue that the scales are found at.
DEEPEST, LAST = "bottleneck", "decoder.0"
_STAGES = {"encoder": "encoder.0", "bottleneck": DEEPEST, "branch": DEEPEST, "decoder": "decoder.1"}


@dataclass(frozen=True)
class Distillation:
    """What is learnt from teachers, and from which.

    Parameters
    ----------
    weight
        Of their answers; 0 leaves them out.
    temperature
        By which answers are softened.
    certainty
        Whether a voxel counts as much as the teacher is certain of it.
    head
        Whether a second head answers the teacher: a copy of the last decoder stage, trained by nothing else.
    contrast
        Weight of the contrast at each scale; 0 leaves it out.
    contrast_temperature, anchors, contrasts
        As of :class:`~wardround.client.supervision.contrastive.ContrastSettings`.
    scales
        Where features are contrasted.
    edges
        Scales of which only voxels at a structure's border are.
    case
        Whether the network teaches as it was when a case was opened.
    federation
        Whether the network of the global weights does. Where there are both, each has half of the weight.
    """

    weight: float = 0.0
    temperature: float = 1.0
    certainty: bool = True
    head: bool = False
    contrast: float = 0.0
    contrast_temperature: float = 1.0
    scales: tuple[Scale, ...] = SCALES
    edges: tuple[Scale, ...] = ()
    case: bool = True
    federation: bool = False
    anchors: int = ContrastSettings.anchors
    contrasts: int = ContrastSettings.contrasts

    @property
    def active(self) -> bool:
        """Whether anything is asked for."""
        return self.weight > 0 or (self.contrast > 0 and len(self.scales) > 0)

    @classmethod
    def of(cls, plan: RoundPlan) -> "Distillation":
        """What a plan says of it. In the first round the federation has learnt nothing yet."""
        return cls(
            weight=plan.distill_weight,
            temperature=plan.distill_temperature,
            certainty=plan.distill_certainty,
            head=plan.distill_head,
            contrast=plan.contrast_weight,
            contrast_temperature=plan.contrast_temperature,
            scales=plan.contrast_scales,
            edges=plan.contrast_edges,
            case=plan.teachers != "federation",
            federation=plan.teachers != "case" and plan.round > 1,
        )


@dataclass(frozen=True, eq=False)
class Teacher:
    """A network that learns no more, and what it says of a batch.

    Parameters
    ----------
    network
        In evaluation mode, without gradients, of the learner's architecture.
    branch
        Its own copy of the branch; None where nothing asks for one.
    """

    network: nn.Module
    branch: nn.Module | None

    @classmethod
    def of(cls, network: nn.Module, own: nn.ModuleDict) -> "Teacher":
        """A copy of `network` as it is now, and of the branch in `own`."""
        branch = _branch(own)
        return cls(frozen_copy(network), None if branch is None else frozen_copy(branch))

    @torch.no_grad()
    def answer(self, image: Tensor, scales: tuple[Scale, ...], mixed: bool) -> tuple[Tensor, dict[Scale, Tensor]]:
        """Logits ``[N, C, *spatial]``, float32, and the features ``[N, D, *grid]`` of `scales`.

        Parameters
        ----------
        image
            ``[N, 1, *spatial]``, as the learner sees it.
        scales
            Wanted.
        mixed
            Whether to compute in mixed precision.
        """
        with torch.autocast(image.device.type, enabled=mixed):
            if not scales:
                return self.network(image).float(), {}
            with Features(self.network, *_stages(scales)) as features:
                logits = self.network(image).float()
            return logits, _at(scales, features, self.branch)


class Distiller(Term):
    """What a learner is told by its teachers.

    A teacher of the case is taken whenever a case is opened, once the site has learnt from one: until then there is
    nothing to forget, and the loss is what it is without. It stays until the next case is opened, also while memory is
    rehearsed. The federation's is taken with the global weights.

    The second head and the branch are copies of the network's stages as they are when the first teacher comes: nothing
    trains them before. What teaches beside the drawing is asked of voxels of the image only, and contrasted are those
    that count in the loss.

    Parameters
    ----------
    settings
        What is learnt from whom.
    network
        That of the learner.
    """

    name = "distiller"

    def __init__(self, settings: Distillation, network: nn.Module) -> None:
        super().__init__()
        self.settings = settings
        self._scales = settings.scales if settings.contrast else ()
        stages = feature_modules(network)
        if settings.weight and settings.head:
            self.own["head"] = _trainable_copy(stages[LAST])
        if "branch" in self._scales:
            self.own["branch"] = _trainable_copy(stages[DEEPEST])
        self._begun: frozenset[str] = frozenset()
        # By scale: whether the contrast was above 0 in any update of the round.
        self._contrasted: dict[Scale, Tensor] = {}
        self._case: Teacher | None = None
        self._federation: Teacher | None = None

    @property
    def teachers(self) -> tuple[Teacher, ...]:
        """Those that there are now."""
        return tuple(teacher for teacher in (self._case, self._federation) if teacher is not None)

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages whose features it wants; none without a teacher."""
        if not self.teachers:
            return ()
        return (*_stages(self._scales), *((LAST,) if "head" in self.own else ()))

    def __call__(self, seen: Pass) -> Tensor | float:
        """The sum over teachers of distillation and contrast, each teacher by its share of the weights."""
        teachers, settings = self.teachers, self.settings
        if not teachers:
            return 0.0
        batch, own, total = seen.batch, seen.logits, seen.logits.new_zeros(())
        with torch.autocast(batch.image.device.type, enabled=seen.mixed):
            if "head" in self.own:
                assert seen.features is not None, "a pass without the stages that were asked for"
                own = self.own["head"](seen.features.entered(LAST)).float()
            features = _at(self._scales, seen.features, _branch(self.own))
        inside = batch.inside.to(own.dtype)
        for teacher in teachers:
            logits, old_features = teacher.answer(batch.image, self._scales, seen.mixed)
            if settings.weight:
                told = certain_distillation(own, logits, settings.temperature, settings.certainty, inside)
                total = total + settings.weight * told
            for scale in self._scales:
                apart = contrastive_loss(
                    features[scale],
                    old_features[scale],
                    batch.target,
                    torch.softmax(logits, dim=1),
                    batch.weight * inside,
                    self._contrast(scale),
                    seen.rng,
                )
                total = total + settings.contrast * apart
                found = apart.detach() > 0
                self._contrasted[scale] = self._contrasted.get(scale, found) | found
        return total / len(teachers)

    def loaded(self, network: nn.Module) -> None:
        """Begin a round: the federation's teacher has the weights that `network` was just given."""
        self._begun, self._case, self._federation = frozenset(), None, None
        self._contrasted = {}
        if self.settings.federation:
            self._begin(network)
            self._federation = Teacher.of(network, self.own)

    def opened(self, network: nn.Module, learnt: bool) -> None:
        """Take the teacher of the case that is opened, unless the site has learnt from none before."""
        if self.settings.case and learnt:
            self._begin(network)
            self._case = Teacher.of(network, self.own)

    def remarks(self) -> tuple[str, ...]:
        """Scales at which the contrast found nothing to compare, in a round in which it looked."""
        silent = [scale for scale, found in self._contrasted.items() if not found]
        if not silent:
            return ()
        return (
            f"the contrast of features had no effect at {', '.join(silent)}: no voxel of its grid lay wholly in "
            "what is known of one structure; have more of a case drawn or inferred, or leave these scales out",
        )

    def state(self) -> Mapping[str, Any]:
        """Own modules, and who teaches; teachers never change and are not copied."""
        return {**super().state(), "begun": self._begun, "case": self._case, "federation": self._federation}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to `state`."""
        super().restore(state)
        self._begun, self._case, self._federation = state["begun"], state["case"], state["federation"]

    def kept(self) -> dict[str, Tensor]:
        """Own modules, once a teacher has come: before, they are what the network has."""
        return {name: tensor for name, tensor in super().kept().items() if _module_of(name) in self._begun}

    def keep(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over own modules of an earlier round; the federation's teacher gets their branch.

        One that the earlier round's plan did not ask for begins with the next teacher.
        """
        if not tensors:
            return
        super().keep(tensors)
        self._begun |= {name for name in self.own if name in map(_module_of, tensors)}
        if self._federation is not None and "branch" in self.own:
            self._federation = replace(self._federation, branch=frozen_copy(self.own["branch"]))

    def _begin(self, network: nn.Module) -> None:
        """Take own modules from the network as it is, where none was kept and no teacher has come before."""
        stages = feature_modules(network)
        for name, stage in (("head", LAST), ("branch", DEEPEST)):
            if name in self.own and name not in self._begun:
                self.own[name].load_state_dict(stages[stage].state_dict())
                self._begun |= {name}

    def _contrast(self, scale: Scale) -> ContrastSettings:
        settings = self.settings
        edges = scale in settings.edges
        return ContrastSettings(settings.contrast_temperature, edges, settings.anchors, settings.contrasts)


def _trainable_copy(module: nn.Module) -> nn.Module:
    return frozen_copy(module).train().requires_grad_(True)


def _module_of(name: str) -> str:
    """Which own module a tensor of this name belongs to."""
    return name.partition(".")[0]


def _branch(own: nn.ModuleDict) -> nn.Module | None:
    return own["branch"] if "branch" in own else None  # noqa: SIM401 - it has no get


def _stages(scales: tuple[Scale, ...]) -> tuple[str, ...]:
    return tuple(_STAGES[scale] for scale in scales)


def _at(scales: tuple[Scale, ...], features: Features | None, branch: nn.Module | None) -> dict[Scale, Tensor]:
    """Features at `scales`; those of the branch are computed from what the deepest stage was given."""
    found: dict[Scale, Tensor] = {}
    for scale in scales:
        assert features is not None, "a pass without the stages that were asked for"
        if scale == "branch":
            assert branch is not None
            found[scale] = branch(features.entered(DEEPEST))
        else:
            found[scale] = features[_STAGES[scale]]
    return found
