"""What a codec left out of a site's update, kept for its next one.

Error feedback (Seide et al. 2014, 1-bit SGD; Karimireddy et al. 2019, arXiv 1901.09847, algorithm 2): the site sends
``C(Δ + e)`` in place of its change ``Δ`` and keeps ``e ← Δ + e − C(Δ + e)``. What is small is not lost but late, and
the mean of what is sent over the rounds is that of what was learnt. ``e`` is an array of the site's snapshot: a round
that is asked for again begins with the same, and answers the same.

``e`` counts what was sent as received. An update that got lost on the way is lost with a codec as without one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord

from wardround.strategies.codecs.record import read_array, up_formats, write_up
from wardround.strategies.contract import Weights
from wardround.strategies.plan import RoundPlan

LEFT = "codec-left/"
"""What the names of arrays begin with, in a site's snapshot, that a codec left out."""

_FED_BACK = ("int8", "topk")


@dataclass(frozen=True, eq=False)
class Written:
    """An update as it leaves.

    Parameters
    ----------
    weights
        What is read of it: what counts.
    record
        What travels; None where weights travel as they are.
    left
        What was left out, for the site's snapshot, with :data:`LEFT` before the names.
    """

    weights: Weights
    record: ArrayRecord | None = None
    left: Weights = field(default_factory=dict)


def written(weights: Weights, given: Weights, plan: RoundPlan, local: Mapping[str, npt.NDArray[Any]]) -> Written:
    """Write a site's update by the plan's codec.

    Parameters
    ----------
    weights, given
        After and before the round, with the same names, shapes and dtypes.
    plan
        See its `codec` and `codec_share`.
    local
        Arrays of the site's snapshot before the round, those of an earlier round's :attr:`Written.left` among them.

    Returns
    -------
    Written
        The same bits for the same arrays.
    """
    if plan.codec == "none":
        return Written(weights)
    codec, is_fed_back = plan.codec, plan.codec in _FED_BACK
    wanted = weights if not is_fed_back else {name: _with(array, local, name) for name, array in weights.items()}
    record = write_up(wanted, given, codec, plan.codec_share)
    allowed = up_formats(codec)
    read = {name: read_array(record[name], allowed, given[name]) for name in weights}
    left = {}
    if is_fed_back:
        with np.errstate(all="ignore"):
            missing = {name: wanted[name] - array for name, array in read.items() if array.dtype.kind == "f"}
        left = {LEFT + name: array for name, array in missing.items() if array.any() and np.isfinite(array).all()}
    return Written(read, record, left)


def _with(array: npt.NDArray[Any], local: Mapping[str, npt.NDArray[Any]], name: str) -> npt.NDArray[Any]:
    """An array and what an earlier round left out of it; of another network nothing is taken."""
    left = local.get(LEFT + name)
    if left is None or left.shape != array.shape or left.dtype != array.dtype:
        return array
    with np.errstate(all="ignore"):  # What overflows is found by the gate, and named.
        return np.asarray(array + left, dtype=array.dtype)
