"""What travels between a site and the coordinator: the names of records and metrics, and weights as named arrays.

Only numpy and Flower are imported here, so that the courier at a site starts fast. Decoding never unpickles and never
allocates more than the bytes that arrived.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from tokenize import TokenError
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from wardround.errors import PlanError

ARRAYS = "arrays"
"""Name of the record that holds the weights."""
PLAN = "plan"
"""Name of the record that holds the plan."""
METRICS = "metrics"
"""Name of the record that holds a site's scalars."""

NUM_EXAMPLES = "num-examples"
LOSS = "loss"
EFFORT_CONTOUR = "effort-contour"
EFFORT_STRICT = "effort-strict"
SECONDS_PREDICT = "seconds-predict"
SECONDS_ANNOTATE = "seconds-annotate"
SECONDS_PROPAGATE = "seconds-propagate"
SECONDS_UPDATE = "seconds-update"
UPDATES = "updates"
CASES = "cases"
REJECTED = "rejected"
TRUST = "trust"
KERNEL_MEAN = "kernel-mean"
KERNEL_RATIO = "kernel-ratio"
MADE = "made"
MADE_NEARER = "made-nearer"
MADE_FAITHFUL = "made-faithful"
DICE = "dice"

TRAIN_METRICS = frozenset(
    {
        NUM_EXAMPLES,
        LOSS,
        EFFORT_CONTOUR,
        EFFORT_STRICT,
        SECONDS_PREDICT,
        SECONDS_ANNOTATE,
        SECONDS_PROPAGATE,
        SECONDS_UPDATE,
        UPDATES,
        CASES,
        REJECTED,
        TRUST,
        KERNEL_MEAN,
        KERNEL_RATIO,
        MADE,
        MADE_NEARER,
        MADE_FAITHFUL,
    }
)
"""The scalars that a site may send after training.

``rejected`` counts the round's cases whose updates were taken back, because the model got worse on remembered ones;
``trust``, 0 … 1, says how far the site's annotators have agreed with the model.

Where the plan has an attentive weight, ``kernel-mean``, 0 … 1, is the mean affinity of two voxels by the network's
attention, and ``kernel-ratio``, at least 0, that of drawn voxels of one label over that of drawn voxels of two. They
are left out where nothing drawn tells.

Where a site has a generator that was tested in the round, ``made`` is the number of pairs that may be learnt from,
``made-nearer``, 0 … 1, the probability that one is nearer to the generator's cases than an unseen case is, and
``made-faithful``, 0 … 1, the Dice of what the network finds in them with what they were made of."""
EVALUATE_METRICS = frozenset({NUM_EXAMPLES, LOSS, CASES, DICE, "hd95-mm", "assd-mm"})
"""The scalars that a site may send after evaluating; each also with a label's number behind it, as in ``dice-2``."""

Weights = dict[str, npt.NDArray[Any]]
"""Named arrays of booleans, integers or floats: a network's parameters and buffers."""

_Kind = TypeVar("_Kind", ArrayRecord, MetricRecord, ConfigRecord)

Metrics = Mapping[str, float | list[float]]
"""Named scalars."""

NUMPY = "numpy.ndarray"
"""Encoding of an array that travels as it is."""

_NUMBERS = "biuf"
_LONGEST_HEADER = 10_000
# As NumPy writes it, and no more: a comment in a header would be room for a text.
_PLAIN_HEADER = re.compile(
    rb"\{'descr': '[<>|=]?[a-z?][0-9]*', 'fortran_order': (True|False), 'shape': \([0-9, ]*\), \} *\n"
)


@dataclass(frozen=True, eq=False)
class Update:
    """What a site brings back from a round.

    Parameters
    ----------
    weights
        Names, shapes and dtypes of the weights that it was given.
    metrics
        Names of :data:`TRAIN_METRICS`; ``num-examples`` is the site's weight in the average.
    encoded
        How the weights travel, where the plan has a codec: `weights` are what is read of it.
    """

    weights: Weights
    metrics: Metrics
    encoded: ArrayRecord | None = None

    def record(self) -> ArrayRecord:
        """What travels of the weights."""
        return weights_to_record(self.weights) if self.encoded is None else self.encoded


def weights_to_record(weights: Mapping[str, npt.NDArray[Any]]) -> ArrayRecord:
    """Copy weights into a record, in their order.

    Raises
    ------
    PlanError
        If an array does not hold numbers.
    """
    for name, array in weights.items():
        if array.dtype.kind not in _NUMBERS:
            raise PlanError(f"array {name!r} cannot travel", f"its dtype is {array.dtype}", "send numbers only")
    return ArrayRecord({name: Array(np.asarray(array, order="C")) for name, array in weights.items()})


def weights_from_record(record: ArrayRecord, read: Callable[[Array], npt.NDArray[Any]] | None = None) -> Weights:
    """Copy the weights out of a record, in its order; `read` is :func:`decode` unless they are written otherwise.

    Returns
    -------
    Weights
        Writable arrays that share no memory with the record.

    Raises
    ------
    PlanError
        If an array's bytes are not what it declares.
    """
    weights: Weights = {}
    for name, array in record.items():
        try:
            weights[name] = (read or decode)(array)
        except ValueError as error:
            raise PlanError(
                f"array {name!r} cannot be read", str(error), "both ends must run the same version of Wardround"
            ) from error
    return weights


def decode(array: Array) -> npt.NDArray[Any]:
    """Decode one array that travelled, into memory of its own.

    The header inside the bytes must agree with the shape and dtype declared beside them, and the bytes must be exactly
    as many as these need. This is checked before anything is allocated.

    Raises
    ------
    ValueError
        If they do not, or if the array would hold anything but numbers.
    """
    if array.stype != NUMPY:
        raise ValueError("it is not a NumPy array")
    start = _data_start(array.data)
    shape, fortran, dtype = _header(array.data[:start])
    if dtype.kind not in _NUMBERS:
        raise ValueError(f"its dtype {dtype} holds no numbers")
    if tuple(shape) != tuple(array.shape) or str(dtype) != array.dtype:
        raise ValueError("its header contradicts the declared shape or dtype")
    size = 1
    for side in shape:
        size *= side
    if min(shape, default=0) < 0 or len(array.data) - start != size * dtype.itemsize:
        raise ValueError("it does not hold as many bytes as its shape needs")
    flat = np.frombuffer(array.data, dtype=dtype, count=size, offset=start)
    return flat.reshape(shape, order="F" if fortran else "C").copy()


def arrays_in(content: RecordDict) -> ArrayRecord:
    """The weights in the content of a message.

    Flower's own ``content.array_records`` makes a view that refers to itself, so that a whole model stays in memory
    until Python looks for such circles.

    Raises
    ------
    KeyError
        If there are none.
    """
    return _record(content, ARRAYS, ArrayRecord)


def metrics_in(content: RecordDict) -> MetricRecord:
    """The scalars in the content of a message; see :func:`arrays_in`.

    Raises
    ------
    KeyError
        If there are none.
    """
    return _record(content, METRICS, MetricRecord)


def plan_in(content: RecordDict) -> ConfigRecord:
    """The plan in the content of a message; see :func:`arrays_in`.

    Raises
    ------
    KeyError
        If there is none.
    """
    return _record(content, PLAN, ConfigRecord)


def _record(content: RecordDict, name: str, kind: type[_Kind]) -> _Kind:
    record = content.get(name)
    if not isinstance(record, kind):
        raise KeyError(name)
    return record


def digest(content: RecordDict) -> str:
    """SHA-256 of all that a message's content says, in hexadecimal.

    It covers, in their order, the names and kinds of the records, the names, dtypes, shapes, encodings and bytes of
    arrays, and the names, types and values of scalars. Two contents share a digest only if they are the same to the
    last bit, and a content keeps its digest on its way through Flower. A site writes it into its ledger, the
    coordinator into its journal.
    """
    whole = hashlib.sha256()
    for name, record in content.items():
        _put(whole, type(record).__name__, name, record_digest(record))
    return whole.hexdigest()


def record_digest(record: ArrayRecord | MetricRecord | ConfigRecord) -> str:
    """SHA-256 of one record, in hexadecimal; see :func:`digest`."""
    whole = hashlib.sha256()
    if isinstance(record, ArrayRecord):
        for name, array in record.items():
            _put(whole, name, array.dtype, list(array.shape), array.stype, len(array.data))
            whole.update(array.data)
    else:
        for name, value in record.items():
            many = isinstance(value, list)
            _put(whole, name, many, [_exact(item) for item in (value if isinstance(value, list) else [value])])
    return whole.hexdigest()


def _put(whole: "hashlib._Hash", *parts: object) -> None:
    """Add parts so that no two sequences of parts give the same bytes: JSON, its length before it."""
    text = json.dumps(parts).encode()
    whole.update(len(text).to_bytes(8, "big") + text)


def _exact(value: bool | int | float | str | bytes) -> list[str]:
    """Type and value of a scalar as text, without loss."""
    if isinstance(value, float):
        return ["float", value.hex()]
    return [type(value).__name__, value.hex() if isinstance(value, bytes) else str(value)]


def _data_start(data: bytes) -> int:
    """Where the numbers begin in an array of the .npy format, version 1.0 or 2.0."""
    lengths = {b"\x01\x00": 2, b"\x02\x00": 4}
    if data[:6] != np.lib.format.MAGIC_PREFIX or data[6:8] not in lengths:
        raise ValueError("it is not in the .npy format, version 1.0 or 2.0")
    first = 8 + lengths[data[6:8]]
    start = first + int.from_bytes(data[8:first], "little")
    if start > min(len(data), _LONGEST_HEADER):
        raise ValueError("its header cannot be read")
    return start


@lru_cache(maxsize=4096)  # The same few headers come back in every round, and parsing one is slow.
def _header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, column-major order and dtype."""
    if not _PLAIN_HEADER.fullmatch(data[10 if data[6:7] == b"\x01" else 12 :]):
        raise ValueError("its header cannot be read")
    stream = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(stream) == (1, 0):
            return np.lib.format.read_array_header_1_0(stream)
        return np.lib.format.read_array_header_2_0(stream)
    # The header is a Python literal from outside: besides ValueError its parser lets these through.
    except (SyntaxError, TokenError, TypeError, KeyError, RecursionError, MemoryError, EOFError) as error:
        raise ValueError("its header cannot be read") from error
