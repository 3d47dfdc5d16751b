"""Combine the checked replies of a round by one of Flower's strategies, and cast back to the network's types."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.app.exception import AppExitException
from flwr.serverapp.strategy import Strategy

from wardround.errors import RoundError
from wardround.strategies.contract import (
    ARRAYS,
    METRICS,
    NUM_EXAMPLES,
    Weights,
    arrays_in,
    metrics_in,
    weights_from_record,
)


def combine(strategy: Strategy, round: int, replies: Iterable[Message], weights: Weights) -> Weights:
    """Combine replies into the next global weights.

    Parameters
    ----------
    strategy
        Was asked to configure this round before.
    round
        Its number over the whole run: fedadam corrects its bias by it.
    replies
        That kept the contract, in a fixed order, on which the last bits of the sums depend. They are not changed.
    weights
        The global weights that the replies started from.

    Returns
    -------
    Weights
        Names, order, shapes and dtypes of `weights`.

    Raises
    ------
    RoundError
        If the strategy cannot combine them, or the result is not finite.
    """
    try:
        with np.errstate(all="ignore"):  # What overflows is found below, and named.
            arrays, _ = strategy.aggregate_train(round, [_for_strategy(reply, weights) for reply in replies])
    except AppExitException as error:
        raise RoundError(
            f"round {round} was not closed: the strategy could not combine the replies",
            str(error),
            "choose options that fit the number of sites",
        ) from error
    if arrays is None:
        raise RoundError(f"round {round} was not closed", "the strategy combined nothing", "choose another one")
    return conform(weights_from_record(arrays), weights)


def conform(arrays: Mapping[str, npt.NDArray[Any]], reference: Weights) -> Weights:
    """Cast arrays to the dtypes of the network, rounding where these are integers; strategies compute in other types.

    Raises
    ------
    RoundError
        If names or shapes are not those of the network, or a number is not finite.
    """
    try:
        if arrays.keys() != reference.keys():
            raise ValueError("names differ from those of the network")
        return {name: _cast(name, arrays[name], expected) for name, expected in reference.items()}
    except ValueError as error:
        raise RoundError(
            "the combined weights cannot be used", str(error), "lower the learning rates of sites and strategy"
        ) from error


def _cast(name: str, array: npt.NDArray[Any], expected: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if array.shape != expected.shape:
        raise ValueError(f"array {name} has another shape")
    if not np.isfinite(array).all():
        raise ValueError(f"array {name} holds NaN or infinity")
    if expected.dtype.kind == "f":
        with np.errstate(over="ignore"):
            cast = array.astype(expected.dtype, copy=False)
        if not np.isfinite(cast).all():
            raise ValueError(f"array {name} is too large for {expected.dtype}")
        return cast
    # NumPy turns an array without axes into a scalar here.
    return np.asarray(np.rint(array)).astype(expected.dtype)


def _for_strategy(reply: Message, weights: Weights) -> Message:
    """A reply as a strategy needs it, sharing no record with the one that arrived.

    Some strategies take arrays out of the records they are given, one pairs arrays by their position, and all end the
    run where two sites do not send the same metrics.
    """
    arrays = arrays_in(reply.content)
    examples = metrics_in(reply.content)[NUM_EXAMPLES]
    content = RecordDict(
        {ARRAYS: ArrayRecord({name: arrays[name] for name in weights}), METRICS: MetricRecord({NUM_EXAMPLES: examples})}
    )
    return Message(content, metadata=reply.metadata)  # type: ignore[call-overload, no-any-return]
