"""The arms of a stream: a name and the fields of the plan in which it differs from the others."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from wardround.deploy.presets import AUGMENT, DISTILL, MEMORY
from wardround.errors import UsageError

DENSE, SLICES_ONLY = "dense", "slices-only"

KNOWN: Mapping[str, Mapping[str, Any]] = {
    "proxy": {"supervision": "proxy"},
    DENSE: {"supervision": "dense"},
    SLICES_ONLY: {"supervision": "partial"},
    "scribbles": {"prompts": "scribbles"},
    "points": {"prompts": "points"},
    "crf": {"crf_weight": 0.1},
    "attentive": {"attentive_weight": 0.1},
    "lwf": DISTILL["lwf"],
    "certain": DISTILL["certain"],
    "msmt": DISTILL["msmt"],
    "strong": AUGMENT["strong"],
    "medsad": AUGMENT["medsad"],
    "genseg": AUGMENT["genseg"],
    "generative": MEMORY["generative"],
    "random": {"suggestion": "random"},
    "even": {"suggestion": "even"},
    "information": {"suggestion": "information"},
    "residual": {"suggestion": "residual"},
    "residual-sampled": {"suggestion": "residual-sampled"},
    "no-replay": {"replay_capacity": 0},
    "random-subset": {"replay": "random-subset"},
    "reservoir": {"replay": "reservoir"},
    "class-balanced": {"replay": "class-balanced"},
    "most-interfered": {"replay": "most-interfered"},
}
"""Arms that can be asked for by name. What an arm does not name is as the plan says."""

SHARED = frozenset({"model", "updates_per_case", "batch_size"})
"""What all arms of a stream have in common, so that they start from the same weights and are trained as much."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,47}")


def named_arms(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Arms by their known names, in the order given.

    Raises
    ------
    UsageError
        If a name is not known.
    """
    for name in names:
        if name not in KNOWN:
            raise UsageError(
                f"arms: there is no arm {name!r}",
                f"known are {', '.join(KNOWN)}",
                "choose among them, or make one of your own with --arm NAME:field=value",
            )
    return {name: dict(KNOWN[name]) for name in names}


def split_definition(text: str) -> tuple[str, list[str]]:
    """Take ``NAME:field=value,field=value`` apart; a comma inside a value (``allocation=2,6,0``) stays in it.

    Returns
    -------
    tuple
        The name, and each ``field=value``.

    Raises
    ------
    UsageError
        If it is written otherwise.
    """
    name, colon, rest = text.partition(":")
    if not colon or not _NAME.fullmatch(name.strip()) or not rest.strip():
        raise UsageError(
            f"--arm {text} is not understood",
            "an arm has a name, a colon and the fields in which it differs",
            "for example --arm small-memory:replay_capacity=8,replay=random-subset",
        )
    return name.strip(), re.split(r",(?=\s*[A-Za-z_-]+\s*=)", rest)
