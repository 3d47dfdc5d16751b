"""The checks of what comes in and what leaves: arrays and scalars, and nothing that could hide in either.

Texts of refusals are made here and hold counts and limits only; no name or value that was refused is repeated.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from wardround.client.gate.policy import Policy
from wardround.errors import GateRefused
from wardround.strategies.codecs.formats import is_plain
from wardround.strategies.codecs.record import PLAIN, read_array
from wardround.strategies.contract import (
    ARRAYS,
    CASES,
    EVALUATE_METRICS,
    METRICS,
    NUM_EXAMPLES,
    NUMPY,
    TRAIN_METRICS,
    Weights,
)
from wardround.strategies.validation import Kind, RefusedReply, ReplyLimits, check_content

STATUS_METRICS = frozenset({CASES, "seen", "round"})
"""The counts with which a site answers how it is."""

Reference = Mapping[str, tuple[Sequence[int], str]]
"""Shape and dtype by name: what the site's own network of that name looks like."""

_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_LABEL = re.compile(r"-[0-9]{1,2}$")
_LONGEST_NAME = 200
_MOST_ARRAYS = 10_000
_ITEM_SIZES = {
    str(np.dtype(name)): np.dtype(name).itemsize
    for name in ("bool", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
}
_LARGEST_STEP = 10**9


def check_incoming(
    arrays: ArrayRecord, policy: Policy, reference: Reference | None, formats: frozenset[str] = PLAIN
) -> None:
    """Refuse weights that are not those of a network: by name, size, shape, dtype, encoding, and not finite.

    Sizes are known before anything is decoded, and no more than one array is decoded at a time.

    Parameters
    ----------
    arrays
        As they came.
    policy
        See `max_parameters_bytes`.
    reference
        What the network looks like; None where the site does not know it.
    formats
        Encodings that the plan's codec has.

    Raises
    ------
    GateRefused
        With the code of the first check that failed.
    """
    if not 0 < len(arrays) <= _MOST_ARRAYS:
        raise _refused("names", f"{len(arrays)} arrays")
    if not all(_NAME.fullmatch(name) and len(name) <= _LONGEST_NAME for name in arrays):
        raise _refused("names", "an array has an odd name")
    if reference is not None and arrays.keys() != reference.keys():
        raise _refused("names", f"{len(arrays.keys() ^ reference.keys())} arrays are missing or unknown")
    declared = sum(_declared_size(array) for array in arrays.values())
    if declared > policy.max_parameters_bytes:
        raise _refused("too-large", f"{declared} bytes, where max-parameters-bytes is {policy.max_parameters_bytes}")
    if reference is not None:
        for name, (shape, dtype) in reference.items():
            if tuple(arrays[name].shape) != tuple(shape):
                raise _refused("shape", "an array has another shape than in this site's network")
            if arrays[name].dtype != dtype:
                raise _refused("dtype", "an array has another dtype than in this site's network")
    for array in arrays.values():
        decoded = _decoded(array, formats)
        if decoded.dtype.kind == "f" and not np.isfinite(decoded).all():
            raise _refused("not-finite", "an array holds NaN or infinity")


def check_outgoing(  # noqa: PLR0917
    kind: Kind, content: RecordDict, policy: Policy, given: Weights, cases: int, formats: frozenset[str] = PLAIN
) -> None:
    """Refuse an answer that holds more than the agreed arrays and the agreed scalars, or says too much about too few.

    Parameters
    ----------
    kind
        ``train``: weights and metrics; ``evaluate``: metrics.
    content
        The answer.
    policy
        See :class:`~wardround.client.gate.policy.Policy`.
    given
        The weights that came in.
    cases
        How many cases stand behind the answer, by the site's own count; the answer may claim no more.
    formats
        Encodings that the plan's codec has. What is read of an array is what is checked.

    Raises
    ------
    GateRefused
        With the code of the first check that failed.
    """
    if cases < policy.min_cases:
        raise GateRefused(
            "too few cases stand behind this answer",
            f"{cases}, where min-cases is {policy.min_cases}",
            "wait until the site has more cases",
            code="too-few-cases",
        )
    check_metrics(_metrics(content), policy.max_metric)
    limits = ReplyLimits(
        max_examples=cases,
        max_norm=policy.max_update_norm,
        train_metrics=policy.train_metrics,
        evaluate_metrics=policy.evaluate_metrics,
        max_values=1,
        formats=formats,
    )
    try:
        check_content(content, given, limits, kind)
    except RefusedReply as error:
        raise _refused(error.code, "it does not keep the contract of the round") from None
    arrays = content.get(ARRAYS)
    if isinstance(arrays, ArrayRecord):
        for name, array in arrays.items():
            _check_nothing_hides(array, given[name], formats)


def without_withheld(kind: Kind, content: RecordDict, policy: Policy) -> RecordDict:
    """`content` without the agreed scalars that the policy has taken out, so that an update can leave without them.

    ``num-examples`` stays: no answer counts without it. Whatever nobody agreed on stays too, and is refused.
    """
    agreed, allowed = (
        (TRAIN_METRICS, policy.train_metrics) if kind == "train" else (EVALUATE_METRICS, policy.evaluate_metrics)
    )
    metrics = content.get(METRICS)
    withheld = agreed - allowed - {NUM_EXAMPLES}
    if not isinstance(metrics, MetricRecord) or not withheld:
        return content
    kept = {name: value for name, value in metrics.items() if withheld.isdisjoint((name, _LABEL.sub("", name)))}
    return RecordDict({**content, METRICS: MetricRecord(kept)})


def check_status(content: RecordDict, policy: Policy) -> None:
    """Refuse an answer to the question how the site is that holds more than counts.

    Raises
    ------
    GateRefused
        With the code of the first check that failed.
    """
    if not policy.allow_status:
        raise _refused("kind-not-allowed", "allow-status is false")
    metrics = _metrics(content)
    if len(content) != 1:
        raise _refused("extra-record", f"there are {len(content)} records")
    check_metrics(metrics, policy.max_metric)
    if not metrics.keys() <= STATUS_METRICS:
        raise _refused("metric", "a name is not on the list")
    if not all(value >= 0 and value == int(value) for value in metrics.values() if not isinstance(value, list)):
        raise _refused("metric", "a value is no count")


def check_metrics(metrics: MetricRecord, largest: float) -> None:
    """Refuse metrics that are not single, finite numbers of plausible size.

    Raises
    ------
    GateRefused
        With code ``metric``.
    """
    for value in metrics.values():
        # By exact type: a subclass of a number may carry anything.
        if type(value) not in (int, float):
            raise _refused("metric", "a value is not one number")
        # Compared as it is: an integer may be too large to become a float.
        if not -largest <= value <= largest:  # type: ignore[operator]
            raise _refused("metric", f"a value is not finite, or larger than max-metric, which is {largest:g}")


def size_of(content: RecordDict) -> int:
    """Bytes of a content: those of its arrays, and eight for each number or the length of each text."""
    total = 0
    for record in content.values():
        if isinstance(record, ArrayRecord):
            total += sum(len(array.data) for array in record.values())
        elif isinstance(record, (MetricRecord, ConfigRecord)):
            total += sum(_size(value) for value in record.values())
    return total


def _size(value: object) -> int:
    if isinstance(value, list):
        return sum(_size(item) for item in value)
    return len(value) if isinstance(value, (str, bytes)) else 8


def _metrics(content: RecordDict) -> MetricRecord:
    # Not by Flower's `metric_records`: that view refers to itself and would keep the whole content in memory for long.
    metrics = content.get(METRICS)
    if not isinstance(metrics, MetricRecord):
        raise _refused("missing-record", "there is no record of metrics")
    return metrics


def _refused(code: str, cause: str) -> GateRefused:
    return GateRefused("the gate refused a message", cause, "the site's ledger holds the refusal", code=code)


def _declared_size(array: Array) -> int:
    """Bytes that an array declares or brings, whichever is more."""
    if array.dtype not in _ITEM_SIZES:
        raise _refused("dtype", "an array has a dtype that no network has")
    if not all(type(side) is int and side >= 0 for side in array.shape):
        raise _refused("shape", "an array has a side that is no count")
    return max(_ITEM_SIZES[array.dtype] * math.prod(array.shape), len(array.data))


def _decoded(array: Array, formats: frozenset[str], given: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
    try:
        return read_array(array, formats, given)
    except ValueError:
        raise _refused("encoding", "an array's bytes are not what it declares") from None


def _check_nothing_hides(array: Array, given: npt.NDArray[Any], formats: frozenset[str]) -> None:
    """The bytes must be the only ones there are for such an array, and integers must not carry anything.

    A counter, one integer alone, may go up; a larger array of integers is a table that training leaves alone.
    """
    if not (_has_usual_header(array, given) if array.stype == NUMPY else is_plain(array)):
        raise _refused("encoding", "an array is not written in the usual way")
    if given.dtype.kind == "f":
        return
    decoded = _decoded(array, formats, given)
    if given.dtype.kind in "iu" and given.size == 1:
        if not 0 <= int(decoded.item()) - int(given.item()) <= _LARGEST_STEP:
            raise _refused("integer-changed", "a counter went back, or far ahead")
    elif not np.array_equal(decoded, given):
        raise _refused("integer-changed", "an array of integers changed")


def _has_usual_header(array: Array, given: npt.NDArray[Any]) -> bool:
    # Only shape and dtype make the header, and an array of that shape that owns no memory has them as well.
    usual = np.broadcast_to(np.zeros((), given.dtype), given.shape)
    header = io.BytesIO()
    fields = np.lib.format.header_data_from_array_1_0(usual) | {"fortran_order": False}
    np.lib.format.write_array_header_1_0(header, fields)
    return array.data.startswith(header.getvalue())
