"""From the options of `run` to the settings that the ServerApp reads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wardround.errors import UsageError
from wardround.server.app import read_settings

_SET_BY_US = frozenset({"run", "output", "round"})


def run_settings(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    plan: Mapping[str, Any],
    loop: Mapping[str, Any],
    strategy: Mapping[str, Any],
    weighting: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Put the settings of a run together, and check them as the ServerApp will.

    Parameters
    ----------
    folder
        Of the run.
    settings
        What has an option of its own; names with dashes.
    plan, loop
        Further fields of the plan, and settings of the round loop; they win.
    strategy, weighting
        Options of the strategy, and of the rule of weighting.

    Returns
    -------
    dict
        A flat mapping of plain values: names with dashes.

    Raises
    ------
    UsageError, PlanError
        If a value is unknown or cannot work; the message names it.
    """
    given = {**_dashed(plan), **_dashed(loop)}
    given |= {f"strategy-options.{name}": value for name, value in _dashed(strategy).items()}
    given |= {f"weighting-options.{name}": value for name, value in _dashed(weighting or {}).items()}
    if ours := sorted(given.keys() & _SET_BY_US):
        raise UsageError(f"{ours[0]} cannot be set", "the coordinator sets it", "leave it out")
    # As it will be read again: JSON knows lists and no tuples.
    merged: dict[str, Any] = json.loads(json.dumps({**settings, **given}))
    settings_read = read_settings({**merged, "output": str(folder)})
    # Imported here: torch takes seconds, and most mistakes are found before.
    from wardround.models.catalogue import architecture

    architecture(settings_read.plan.model)
    return merged


def _dashed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "-"): value for name, value in values.items()}
