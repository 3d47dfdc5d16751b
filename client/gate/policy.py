"""What a site lets in and out: its administrator's limits, read from ``policy.toml``.

A limit that the file does not name has the value below; a name that is not known is refused, so that a slip of the pen
does not leave a door open.
"""

import math
import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from wardround.client.gate.budget import Method
from wardround.errors import GateRefused, UsageError
from wardround.strategies.contract import EVALUATE_METRICS, TRAIN_METRICS
from wardround.strategies.plan import FORMERLY_PARTIAL, RoundPlan, Supervision

ANY = "*"
"""In `models`: every model that the installed catalogue knows."""

_MEBIBYTE = 2**20


def _dashed(name: str) -> str:
    return name.replace("_", "-")


class Policy(BaseModel):
    """The limits of one site. In ``policy.toml`` the names are written with dashes.

    Parameters
    ----------
    models
        Models that a plan may name; ``*`` for any that is installed.
    supervision
        What a plan may ask people to draw; ``dense`` means every slice of every case.
    max_rounds
        Rounds of a run.
    max_updates_per_case
        Optimiser steps a case, with the plan's adaptivity at its most; those of a network that the site trains for
        itself beside the federation's count as well.
    max_slices_per_case, max_annotation_rounds
        What a plan may ask an annotator to do for one case.
    max_batch_size
        Samples a step.
    max_replay_capacity
        Cases kept to rehearse.
    max_synthesis_updates
        Steps that a generator of training pairs takes in a round.
    max_synthesis_side
        Longest side of what it makes, in voxels; memory and time rise with its cube.
    share_knobs
        Whether the weights of a generator's searched operators may travel with the network. A generator itself, and
        what it makes, never does.
    share_control
        Whether mean gradients of a round (control variates) may travel with the network. They tell more directly than
        weights what a site learnt from.
    max_deadline_s
        Seconds that a plan may wait for an answer.
    max_parameters_bytes
        Size of a model, as it comes in.
    min_cases
        Cases that must stand behind whatever leaves: learnt from for an update, evaluated on for a score.
    max_update_norm
        Largest Euclidean norm of (weights − weights given), over all floating-point arrays together.
    max_metric
        Largest absolute value of a metric.
    train_metrics, evaluate_metrics
        Scalars that may leave; at most those of :mod:`wardround.strategies.contract`.
    require_secure
        Whether updates leave only under secure aggregation.
    min_secure_sites
        So many sites must be in the sum of a secure aggregation.
    secure_peers
        Site → fingerprint of its key: who may take part in a secure aggregation with this one. Empty for whoever comes
        first under a name, which is refused where `require_secure` is set; a key that changes later is refused either
        way.
    max_epsilon
        ε that the cases of this site may spend, over all runs together; where it is set, plans that do not keep cases
        private are refused. Infinite for no bound, and no such demand.
    delta
        At which ε is worked out.
    accountant
        ``rdp``: an upper bound at once; ``prv``: a tighter one, which takes seconds.
    allow_evaluate
        Whether the site scores models on its held-back cases.
    allow_status
        Whether the site says how many cases it holds.
    approval_days
        Days after which an approval of a bundle ends.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, alias_generator=_dashed, populate_by_name=True
    )

    models: tuple[Annotated[str, Field(pattern=r"^(\*|[A-Za-z0-9][A-Za-z0-9._=+:@-]{0,127})$")], ...] = (
        "unet3d-small",
        "unet3d",
    )
    supervision: tuple[Supervision, ...] = ("proxy", "partial")
    max_rounds: Annotated[int, Field(ge=1)] = 1000
    max_updates_per_case: Annotated[int, Field(ge=0)] = 1000
    max_slices_per_case: Annotated[int, Field(ge=1)] = 64
    max_annotation_rounds: Annotated[int, Field(ge=1)] = 8
    max_batch_size: Annotated[int, Field(ge=1)] = 16
    max_replay_capacity: Annotated[int, Field(ge=0)] = 4096
    max_synthesis_updates: Annotated[int, Field(ge=0)] = 10_000
    max_synthesis_side: Annotated[int, Field(ge=1)] = 128
    share_knobs: bool = False
    share_control: bool = False
    max_deadline_s: Annotated[float, Field(gt=0)] = 7 * 24 * 3600.0
    max_parameters_bytes: Annotated[int, Field(ge=1)] = 512 * _MEBIBYTE
    min_cases: Annotated[int, Field(ge=1)] = 5
    max_update_norm: Annotated[float, Field(gt=0)] = 1000.0
    max_metric: Annotated[float, Field(gt=0)] = 1e9
    train_metrics: frozenset[str] = TRAIN_METRICS
    evaluate_metrics: frozenset[str] = EVALUATE_METRICS
    require_secure: bool = False
    min_secure_sites: Annotated[int, Field(ge=2, le=1000)] = 3
    secure_peers: dict[str, Annotated[str, Field(pattern=r"^SHA256:[A-Za-z0-9+/]{43}$")]] = Field(default_factory=dict)
    max_epsilon: Annotated[float, Field(gt=0, allow_inf_nan=True)] = math.inf
    delta: Annotated[float, Field(gt=0, le=0.1)] = 1e-5
    accountant: Method = "rdp"
    allow_evaluate: bool = True
    allow_status: bool = True
    approval_days: Annotated[int, Field(ge=1, le=3660)] = 180

    @field_validator("models", mode="before")
    @classmethod
    def _tuple(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("supervision", mode="before")
    @classmethod
    def _kinds(cls, value: object) -> object:
        """A list of the file; it may be of a version that knew `partial` as `slices`."""
        if isinstance(value, list):
            return tuple("partial" if name == FORMERLY_PARTIAL else name for name in value)
        return value

    @field_validator("train_metrics", "evaluate_metrics", mode="before")
    @classmethod
    def _set(cls, value: object) -> object:
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return frozenset(value)
        return value

    @field_validator("train_metrics")
    @classmethod
    def _agreed_in_training(cls, value: frozenset[str]) -> frozenset[str]:
        return _within(value, TRAIN_METRICS)

    @field_validator("evaluate_metrics")
    @classmethod
    def _agreed_in_evaluation(cls, value: frozenset[str]) -> frozenset[str]:
        return _within(value, EVALUATE_METRICS)


def _within(names: frozenset[str], agreed: frozenset[str]) -> frozenset[str]:
    """A policy narrows what was agreed; it cannot widen it."""
    if not names <= agreed:
        raise ValueError(f"only these were agreed: {', '.join(sorted(agreed))}")
    return names


def load_policy(path: Path) -> Policy:
    """Read a site's policy.

    Raises
    ------
    UsageError
        If the file is missing, is no TOML, or holds an unknown name or a value out of range; the message names it.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # tomllib's and UTF-8's own errors are ValueErrors.
        raise UsageError(
            f"the policy {path} cannot be read",
            error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error),
            "write it again; without a policy nothing comes in and nothing leaves",
        ) from error
    odd = sorted(name for name in values if "_" in name)
    if odd:
        raise UsageError(f"the policy {path} holds an unknown name", odd[0], "names are written with dashes")
    try:
        policy = Policy.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = str(first["loc"][0]) if first["loc"] else "policy"
        raise UsageError(
            f"{field} in the policy {path} cannot be used", first["msg"].removeprefix("Value error, "), "correct it"
        ) from error
    return policy


def check_usable(policy: Policy, path: Path) -> None:
    """Refuse a policy that nothing can be let in or out by, since it contradicts itself.

    Raises
    ------
    UsageError
        Saying what to change.
    """
    if policy.require_secure and not policy.secure_peers:
        raise UsageError(
            f"the policy {path} insists on secure aggregation, and anybody may take part in it",
            "secure-peers names nobody: the coordinator can surround this site by sites of its own, and subtract them",
            "compare fingerprints with the other sites by telephone, and name them; or set require-secure to false",
        )


def check_plan(plan: RoundPlan, policy: Policy) -> None:
    """Refuse a plan that asks for more than the site allows.

    Raises
    ------
    GateRefused
        With the code of the first limit that is passed. No text of the plan is repeated.
    """
    if ANY not in policy.models and plan.model not in policy.models:
        raise GateRefused(
            "the plan names a model that this site does not allow",
            f"allowed are {', '.join(policy.models) or 'none'}",
            "add it to models in policy.toml, or ask for another plan",
            code="plan-model",
        )
    if plan.supervision not in policy.supervision:
        raise GateRefused(
            "the plan asks for a kind of supervision that this site does not allow",
            f"{plan.supervision}; allowed are {', '.join(policy.supervision) or 'none'}",
            "add it to supervision in policy.toml, or ask for another plan",
            code="plan-supervision",
        )
    if plan.share_knobs and not policy.share_knobs:
        raise GateRefused(
            "the plan has a generator's settings travel",
            "this site lets nothing of a generator out",
            "set share-knobs in policy.toml, or ask for another plan",
            code="plan-knobs",
        )
    if plan.control_variates and not policy.share_control:
        raise GateRefused(
            "the plan has mean gradients travel",
            "this site lets weights out, and no gradients",
            "set share-control in policy.toml, or ask for another plan",
            code="plan-control",
        )
    if policy.require_secure and not plan.secure:
        raise GateRefused(
            "the plan has updates leave one by one",
            "this site lets them out under secure aggregation only",
            "set secure in the plan, or require-secure in policy.toml to false",
            code="plan-secure",
        )
    if policy.max_epsilon < math.inf and plan.privacy != "record":
        raise GateRefused(
            "the plan does not keep cases private",
            "this site has a privacy budget, and lets nothing out that is not charged to it",
            "ask for a plan with privacy record, or set max-epsilon in policy.toml to inf",
            code="plan-privacy",
        )
    slices = max(plan.slices_per_case, sum(plan.allocation or ()))
    making = plan.synthesis != "off" or plan.memory != "reservoir"  # What a generator would cost counts where one is.
    limits: tuple[tuple[str, float, float, str], ...] = (
        ("plan-rounds", plan.rounds, policy.max_rounds, "max-rounds"),
        (
            "plan-updates",
            plan.updates_per_case * (1 + plan.adaptivity) * (2 if plan.personal != "none" else 1),
            policy.max_updates_per_case,
            "max-updates-per-case",
        ),
        ("plan-slices", slices, policy.max_slices_per_case, "max-slices-per-case"),
        ("plan-annotation-rounds", plan.annotation_rounds, policy.max_annotation_rounds, "max-annotation-rounds"),
        ("plan-batch", plan.batch_size, policy.max_batch_size, "max-batch-size"),
        ("plan-replay", plan.replay_capacity, policy.max_replay_capacity, "max-replay-capacity"),
        ("plan-synthesis", making * plan.synthesis_updates, policy.max_synthesis_updates, "max-synthesis-updates"),
        ("plan-synthesis-side", making * plan.synthesis_side, policy.max_synthesis_side, "max-synthesis-side"),
        ("plan-deadline", plan.deadline_s, policy.max_deadline_s, "max-deadline-s"),
    )
    for code, asked, allowed, name in limits:
        if not asked <= allowed:
            raise GateRefused(
                "the plan asks for more than this site allows",
                f"{asked:g}, where {name} is {allowed:g}",
                f"raise {name} in policy.toml, or ask for another plan",
                code=code,
            )


POLICY_TEMPLATE = """\
# What this site lets in and out. Whatever is not allowed here is refused, and the refusal stands in the ledger.
# A limit that is missing here has the value that is shown. Changes count from the next message on.

# What may come in: plans

# Models that a plan may name; "*" for any that is installed.
models = ["unet3d-small", "unet3d"]
# What a plan may ask people to draw: "partial" (a little of a case), "proxy" (the same, and the rest is inferred),
# "dense" (every slice of every case).
supervision = ["proxy", "partial"]
# Rounds of a run.
max-rounds = 1000
# Optimiser steps a case.
max-updates-per-case = 1000
# What may be asked of an annotator for one case.
max-slices-per-case = 64
max-annotation-rounds = 8
# Samples a step, and cases that are kept to rehearse.
max-batch-size = 16
max-replay-capacity = 4096
# Steps that a generator of training pairs takes in a round, and the longest side of what it makes, in voxels. Both the
# generator and what it makes stay here.
max-synthesis-updates = 10000
max-synthesis-side = 128
# Seconds that a plan may wait for an answer.
max-deadline-s = 604800
# Bytes of a model's weights.
max-parameters-bytes = 536870912

# What may come in: bundles

# Days after which an approval ends and somebody has to look again.
approval-days = 180

# What may leave

# Cases that must stand behind an update (learnt from) or a score (evaluated on). A smaller number says more about each
# of them.
min-cases = 5
# How far weights may move in a round: Euclidean norm over all arrays together.
max-update-norm = 1000.0
# Largest absolute value of a metric.
max-metric = 1e9
# Whether the weights of a generator's searched operators, a few dozen numbers, may travel with the network.
share-knobs = false
# Whether mean gradients of a round (control variates of SCAFFOLD) may travel with the network.
share-control = false
# Whether updates leave only inside a sum of several sites (secure aggregation), and how many these must be.
require-secure = false
min-secure-sites = 3
# Whose keys are trusted there, as `ssh-keygen -lf keys/node.pub` shows them at each site: { north = "SHA256:…" }.
# Where none is named, whoever comes first under a name; with require-secure they must be named.
secure-peers = {}
# How much ε the cases of this site may spend, over all runs together, at which δ, and whether it is worked out by
# Rényi divergences ("rdp") or more tightly by the distribution of the loss ("prv"). With a number, such as 8.0, plans
# without record-level privacy are refused; with inf they are not, and what is spent is counted all the same.
max-epsilon = inf
delta = 1e-5
accountant = "rdp"
# Whether this site scores models on held-back cases, and whether it says how many cases it holds.
allow-evaluate = true
allow-status = true
# Scalars that may leave with an update and with a score. Names can be removed, but none added.
train-metrics = [
TRAIN]
evaluate-metrics = [
EVALUATE]
""".replace("TRAIN", "".join(f'  "{name}",\n' for name in sorted(TRAIN_METRICS))).replace(
    "EVALUATE", "".join(f'  "{name}",\n' for name in sorted(EVALUATE_METRICS))
)
"""A commented ``policy.toml`` that says what :class:`Policy` says anyway."""
