"""What record-level differential privacy asks of a plan.

The guarantee is about the weights that leave, and holds if a case touches them through its own clipped gradient and in
no other way. Whatever else lets one case change what is learnt from another, or what is said of it, is refused here,
each with its reason, or is the same for all cases where the site learns (see
:meth:`wardround.client.learning.round.OnlineRound.learn_privately`).
"""

from collections.abc import Callable, Mapping
from typing import Any

from wardround.strategies.contract import CASES, NUM_EXAMPLES, UPDATES

PRIVATE_METRICS = frozenset({NUM_EXAMPLES, CASES, UPDATES})
"""The scalars of training that may leave: they follow from how many cases arrived when, which is not protected."""

_Test = Callable[[Any], bool]


def _is(*allowed: object) -> _Test:
    return lambda value: value in allowed


_ASKED: Mapping[str, tuple[_Test, str]] = {
    "validation_cases": (_is(0), "must be 0: other cases would decide whether one is learnt from"),
    "model_vote": (_is(0), "must be 0: it is weighed by the trust that other cases earned"),
    "adaptivity": (_is(0), "must be 0: how long is learnt would follow from what a case holds"),
    "fusion_schedule": (lambda value: value != "trust", "cannot be trust, which other cases earned"),
    "replay": (
        _is("reservoir", "random-subset"),
        "must be reservoir or random-subset: which cases are kept must not follow from what they hold",
    ),
    "replay_capacity": (lambda value: value >= 1, "must be 1 at least: steps are sampled from what is remembered"),
    "memory": (_is("reservoir"), "must be reservoir: a generator learns from cases without noise"),
    "personal": (_is("none"), "must be none: a network apart would share the bound on what a case may say"),
    "head_share": (_is(0), "must be 0: which weights a step leaves out was not tried under noise"),
    "control_variates": (_is(False), "must be off: what a site says of its gradients was not tried under noise"),
    "moon_weight": (_is(0), "must be 0: it was not tried under noise"),
    "synthesis": (_is("off"), "must be off: a generator learns from cases without noise"),
}


def check_record_privacy(plan: Mapping[str, Any]) -> None:
    """Refuse what a plan with ``privacy record`` cannot have.

    Parameters
    ----------
    plan
        Fields by name.

    Raises
    ------
    ValueError
        Naming the first field, and why.
    """
    for name, (fits, why) in _ASKED.items():
        if name in plan and not fits(plan[name]):
            raise ValueError(f"privacy record: {name.replace('_', '-')} {why}")
