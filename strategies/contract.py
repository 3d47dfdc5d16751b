"""What travels between a site and the coordinator: the names of records and metrics, and weights as named arrays.

Only numpy and Flower are imported here, so that the courier at a site starts fast. Decoding never unpickles and never
allocates more than the bytes that arrived.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord

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
    }
)
"""The scalars that a site may send after training."""
EVALUATE_METRICS = frozenset({NUM_EXAMPLES, LOSS, CASES, DICE, "hd95-mm", "assd-mm"})
"""The scalars that a site may send after evaluating; each also with a label's number behind it, as in ``dice-2``."""

Weights = dict[str, npt.NDArray[Any]]
"""Named arrays of booleans, integers or floats: a network's parameters and buffers."""

Metrics = Mapping[str, float | list[float]]
"""Named scalars."""

_NUMPY = "numpy.ndarray"
_NUMBERS = "biuf"


@dataclass(frozen=True, eq=False)
class Update:
    """What a site brings back from a round.

    Parameters
    ----------
    weights
        Names, shapes and dtypes of the weights that it was given.
    metrics
        Names of :data:`TRAIN_METRICS`; ``num-examples`` is the site's weight in the average.
    """

    weights: Weights
    metrics: Metrics


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


def weights_from_record(record: ArrayRecord) -> Weights:
    """Copy the weights out of a record, in its order.

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
            weights[name] = decode(array)
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
    if array.stype != _NUMPY:
        raise ValueError("it is not a NumPy array")
    stream = io.BytesIO(array.data)
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
        else:
            raise ValueError("its format version is unknown")
    # The header is a Python literal from outside: besides ValueError its parser lets these through.
    except (SyntaxError, TypeError, KeyError, RecursionError, MemoryError, EOFError) as error:
        raise ValueError("its header cannot be read") from error
    if dtype.kind not in _NUMBERS:
        raise ValueError(f"its dtype {dtype} holds no numbers")
    if tuple(shape) != tuple(array.shape) or str(dtype) != array.dtype:
        raise ValueError("its header contradicts the declared shape or dtype")
    size = 1
    for side in shape:
        size *= side
    if min(shape, default=0) < 0 or len(array.data) - stream.tell() != size * dtype.itemsize:
        raise ValueError("it does not hold as many bytes as its shape needs")
    flat = np.frombuffer(array.data, dtype=dtype, count=size, offset=stream.tell())
    return flat.reshape(shape, order="F" if fortran else "C").copy()
