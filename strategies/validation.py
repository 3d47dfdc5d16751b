"""The checks that every reply passes before its numbers touch the global model.

Flower's strategies average what they are given: a NaN, a shape that broadcasts or a site that claims 10¹² examples goes
straight into the model, and a missing key ends the run. Here the site is named with a code and its reply dropped.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode

from wardround.errors import ReplyRefused
from wardround.strategies.codecs.record import PLAIN, read_array
from wardround.strategies.codes import ABSENT_CODES, BLAMED_CODES, SITE_CODES, known
from wardround.strategies.contract import (
    ARRAYS,
    EVALUATE_METRICS,
    KERNEL_MEAN,
    KERNEL_RATIO,
    METRICS,
    NUM_EXAMPLES,
    REJECTED,
    TRAIN_METRICS,
    TRUST,
    arrays_in,
    metrics_in,
)

Kind = Literal["train", "evaluate"]
Code = Literal[
    "error-reply",
    "undecodable",
    "missing-record",
    "extra-record",
    "names",
    "shape",
    "dtype",
    "encoding",
    "not-finite",
    "num-examples",
    "norm",
    "metric",
    "other-round",
    "other-type",
    "replayed",
    "secure",
]

# Flower, or the site's launcher, knows no more than that the site is gone, or its answer.
_LOST = (
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.CLIENT_APP_CRASHED,
)

_LABEL = re.compile(r"-[0-9]{1,2}$")
_RANGES = {
    TRUST: (0.0, 1.0),
    REJECTED: (0.0, math.inf),
    KERNEL_MEAN: (0.0, 1.0),
    KERNEL_RATIO: (0.0, math.inf),
}


class RefusedReply(ReplyRefused):
    """A reply was refused; :attr:`code` says by which check.

    Parameters
    ----------
    code
        One of :data:`Code`. Unlike the text it is fit for a journal: it holds nothing that a site wrote.
    problem, cause, fix
        As in every error.
    site_code
        The site's own code behind an ``error-reply``, one of :data:`wardround.strategies.codes.SITE_CODES`, or nothing.
    blameless
        Whether the site did nothing wrong: it was out of reach, or said no on purpose.
    """

    def __init__(
        self, code: Code, problem: str, cause: str = "", fix: str = "", *, site_code: str = "", blameless: bool = False
    ) -> None:
        super().__init__(problem, cause, fix)
        self.code: Code = code
        self.site_code = site_code
        self.blameless = blameless


@dataclass(frozen=True)
class ReplyLimits:
    """How far a reply may go.

    Parameters
    ----------
    max_examples
        Largest ``num-examples``: the weight of a site in the average.
    max_norm
        Largest Euclidean norm of (weights − global weights), over all floating-point arrays together.
    train_metrics, evaluate_metrics
        Names that a site may send; each also with a label's number behind it (``dice-2``).
    max_values
        Longest list that a metric may be.
    formats
        Encodings that an array may have, by the plan's codec.
    """

    max_examples: float = 1e6
    max_norm: float = 1e4
    train_metrics: frozenset[str] = TRAIN_METRICS
    evaluate_metrics: frozenset[str] = EVALUATE_METRICS
    max_values: int = 64
    formats: frozenset[str] = PLAIN

    def metrics(self, kind: Kind) -> frozenset[str]:
        """The names allowed in a reply of this kind."""
        return self.train_metrics if kind == "train" else self.evaluate_metrics


def check_reply(
    reply: Message, reference: Mapping[str, npt.NDArray[Any]], limits: ReplyLimits, kind: Kind = "train"
) -> None:
    """Refuse a reply that does not keep the contract; nothing in it is changed.

    What is cheap is checked first: sizes are known before an array is decoded, and no byte is ever unpickled.

    Parameters
    ----------
    reply
        From a site.
    reference
        The weights that the site was given: names, shapes, dtypes and the point from which its change is measured.
    limits
        See :class:`ReplyLimits`.
    kind
        ``train``: one record of arrays, one of metrics; ``evaluate``: one of metrics, where ``num-examples`` may be 0.

    Raises
    ------
    RefusedReply
        With the first check that failed.
    """
    refuse_error(reply)
    check_content(reply.content, reference, limits, kind)


def refuse_error(reply: Message) -> None:
    """Refuse a reply that is an error.

    Raises
    ------
    RefusedReply
        With the site's code, where it gave one that is known.
    """
    if reply.has_error():
        raise _error_reply(reply)


def check_content(
    content: RecordDict, reference: Mapping[str, npt.NDArray[Any]], limits: ReplyLimits, kind: Kind = "train"
) -> None:
    """Refuse the content of an answer that does not keep the contract, as :func:`check_reply` does with a reply.

    Raises
    ------
    RefusedReply
        With the first check that failed.
    """
    expected: dict[str, type] = {METRICS: MetricRecord}
    if kind == "train":
        expected[ARRAYS] = ArrayRecord
    for name, record_type in expected.items():
        if not isinstance(content.get(name), record_type):
            raise RefusedReply("missing-record", f"the reply has no record {name!r}", "", "update the site's software")
    if len(content) != len(expected):
        raise RefusedReply("extra-record", "the reply holds records that nobody asked for", f"it has {len(content)}")
    _check_metrics(metrics_in(content), limits, kind)
    if kind == "train":
        _check_arrays(arrays_in(content), reference, limits)


def check_origin(reply: Message, group: str, message_type: str) -> None:
    """Refuse a reply that was written for another message than the one it is said to answer.

    Parameters
    ----------
    reply
        From a site.
    group, message_type
        Of the message that was sent; a reply copies both. Where Flower's server answers for a site, it copies neither.

    Raises
    ------
    RefusedReply
        ``other-round`` or ``other-type``.
    """
    if reply.has_error():
        return
    if reply.metadata.group_id != group:
        raise RefusedReply("other-round", "the reply was written for another round")
    if reply.metadata.message_type != message_type:
        raise RefusedReply("other-type", "the reply was written for a message of another type")


def absence(reply: Message) -> str:
    """Why a site that answered did not take part, as a word such as ``paused``; nothing where it did."""
    if not reply.has_error() or reply.error.reason not in ABSENT_CODES:
        return ""
    return str(reply.error.reason)


def is_lost(reply: Message) -> bool:
    """Whether a message or its answer got lost on the way, as where a process was killed: it is worth to ask again."""
    return reply.has_error() and reply.error.code in _LOST


def _error_reply(reply: Message) -> RefusedReply:
    """An error's text is shown only where it is a known word: it may quote a patient."""
    reason = known(reply.error.reason)
    site_code = reason if reason in SITE_CODES else ""
    return RefusedReply(
        "error-reply",
        "the site answered with an error",
        f"code {reply.error.code}, {reason or 'its text is not shown here'}",
        "look into the site's own log",
        site_code=site_code,
        blameless=is_lost(reply) or (site_code != "" and site_code not in BLAMED_CODES),
    )


def _check_metrics(metrics: MetricRecord, limits: ReplyLimits, kind: Kind) -> None:
    allowed = limits.metrics(kind)
    for name, value in metrics.items():
        if name not in allowed and _LABEL.sub("", name) not in allowed:
            raise RefusedReply("metric", "the reply holds a metric that is not in the contract", "", "update the site")
        values = value if isinstance(value, list) else [value]
        if len(values) > limits.max_values:
            raise RefusedReply(
                "metric", f"metric {name} is too long", f"{len(values)} values, {limits.max_values} allowed"
            )
        if name != NUM_EXAMPLES and not all(math.isfinite(number) for number in values):
            raise RefusedReply("metric", f"metric {name} is not finite", "", "look into the site's own log")
        bounds = _RANGES.get(_LABEL.sub("", name))
        if bounds is not None and not all(bounds[0] <= number <= bounds[1] for number in values):
            raise RefusedReply(
                "metric", f"metric {name} is out of range", "it lies between {:g} and {:g}".format(*bounds)
            )
    examples = metrics.get(NUM_EXAMPLES)
    if not isinstance(examples, (int, float)):
        raise RefusedReply("num-examples", "num-examples is missing or is not one number")
    enough = examples > 0 if kind == "train" else examples >= 0
    if not (math.isfinite(examples) and enough and examples <= limits.max_examples):
        raise RefusedReply(
            "num-examples", f"num-examples is {examples:g}", f"allowed is more than 0, at most {limits.max_examples:g}"
        )


def _check_arrays(arrays: ArrayRecord, reference: Mapping[str, npt.NDArray[Any]], limits: ReplyLimits) -> None:
    if arrays.keys() != reference.keys():
        wrong = len(arrays.keys() ^ reference.keys())
        raise RefusedReply("names", f"{wrong} arrays are missing or unknown", "the site trained another network")
    for name, expected in reference.items():
        _check_declaration(name, arrays[name], expected)
    square = 0.0
    for name, expected in reference.items():
        try:
            array = read_array(arrays[name], limits.formats, expected)
        except ValueError as error:
            raise RefusedReply("encoding", f"array {name} cannot be read", str(error)) from error
        if array.dtype.kind != "f":
            continue
        with np.errstate(all="ignore"):
            change = np.subtract(array, expected, dtype=np.float64).ravel()
            distance = float(change @ change)
        # One pass is enough where the sum is finite; an infinite sum may also come from finite numbers that are huge.
        if not math.isfinite(distance) and not np.isfinite(array).all():
            raise RefusedReply(
                "not-finite", f"array {name} holds NaN or infinity", "training diverged", "lower the learning rate"
            )
        square += distance
    if not math.sqrt(square) <= limits.max_norm:
        raise RefusedReply(
            "norm", f"the weights moved by {math.sqrt(square):.3g}", f"at most {limits.max_norm:g} is plausible"
        )


def _check_declaration(name: str, array: Array, expected: npt.NDArray[Any]) -> None:
    if tuple(array.shape) != expected.shape:
        raise RefusedReply("shape", f"array {name} has another shape", f"{tuple(array.shape)} for {expected.shape}")
    if array.dtype != str(expected.dtype):
        raise RefusedReply("dtype", f"array {name} has another dtype", f"not {expected.dtype}")
    header = 12 + 65535
    if len(array.data) > expected.nbytes + header:
        raise RefusedReply(
            "encoding", f"array {name} holds more bytes than its shape needs", f"{len(array.data)} bytes"
        )
