"""Names that stand for several fields of a plan: how a site augments, what it rehearses, and what it holds on to."""

from collections.abc import Mapping
from typing import Any

from wardround.errors import UsageError

AUGMENT: Mapping[str, Mapping[str, Any]] = {
    "none": {"augmentation": "none"},
    "strong": {"augmentation": "strong"},
    "medsad": {"augmentation": "strong", "synthesis": "medsad"},
    "genseg": {"augmentation": "strong", "synthesis": "genseg"},
}
"""What is done to real cases, and what makes further ones."""

MEMORY: Mapping[str, Mapping[str, Any]] = {
    "reservoir": {"memory": "reservoir"},
    "generative": {"memory": "generative"},
    "both": {"memory": "both"},
}
"""What is rehearsed."""

DISTILL: Mapping[str, Mapping[str, Any]] = {
    "off": {},
    "lwf": {"distill_weight": 0.4, "distill_temperature": 2.0, "distill_certainty": False},
    "certain": {"distill_weight": 0.4},
    "msmt": {"distill_weight": 0.4, "distill_head": True, "contrast_weight": 0.1, "teachers": "both"},
}
"""What keeps a network from forgetting: nothing, learning without forgetting, or multi-scale multi-task distillation
with the settings of its authors (Tian et al. 2022) and the federation's network as a second teacher; ``certain`` is
distillation by certainty alone, the part of it that costs little."""

CODEC: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "lossless": {"codec": "lossless", "codec_down": "lossless"},
    "fp16": {"codec": "fp16", "codec_down": "fp16"},
    "bf16": {"codec": "bf16", "codec_down": "bf16"},
    "int8": {"codec": "int8", "codec_down": "bf16"},
    "topk": {"codec": "topk", "codec_down": "bf16"},
}
"""How weights travel, both ways."""


PRIVACY: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "record": {"privacy": "record", "validation_cases": 0, "model_vote": 0.0},
    "central": {},
}
"""Whom noise protects: nobody, every case of a site, or every site as a whole, which is the strategy ``dpfedavg``."""


def preset(table: Mapping[str, Mapping[str, Any]], name: str | None, option: str) -> dict[str, Any]:
    """Fields of the plan for a name; none for None.

    Raises
    ------
    UsageError
        If the table does not have it.
    """
    if name is None:
        return {}
    if name not in table:
        raise UsageError(
            f"{option} {name} is not understood", "it has no such value", f"choose one of {', '.join(table)}"
        )
    return dict(table[name])


def strategy_under(privacy: str | None, strategy: str) -> str:
    """The strategy that a kind of privacy asks for; the one that was chosen where it asks for none.

    Raises
    ------
    UsageError
        If another one was chosen.
    """
    if privacy != "central":
        return strategy
    if strategy not in ("fedavg", "dpfedavg"):
        raise UsageError(
            "--privacy central does not go with this strategy", "its mean is one of its own", "leave --strategy out"
        )
    return "dpfedavg"
