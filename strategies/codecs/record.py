"""All arrays of a message, by the codec that the plan names: what is sent down, what comes up, and what is read of it.

What a site is given may be less precise than what the coordinator has. A site trains from what it was given, both ends
check its answer against that, and the coordinator adds what it had not sent to what comes back (:class:`Baseline`), so
that nothing of the global weights is lost by sending them in half precision, round after round.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord

from wardround.strategies.codecs import formats
from wardround.strategies.contract import NUMPY, Weights, decode, weights_from_record, weights_to_record
from wardround.strategies.plan import Codec, CodecDown

PLAIN = frozenset({NUMPY})
"""Encodings of arrays where the plan has no codec."""

_DOWN: Mapping[CodecDown, str] = {
    "none": NUMPY,
    "lossless": formats.EXACT,
    "fp16": formats.FP16,
    "bf16": formats.BF16,
}
_UP: Mapping[Codec, str] = {
    "none": NUMPY,
    "lossless": formats.EXACT,
    "fp16": formats.DELTA_FP16,
    "bf16": formats.DELTA_BF16,
    "int8": formats.DELTA_INT8,
    "topk": formats.SPARSE,
}


def down_formats(codec: CodecDown) -> frozenset[str]:
    """Encodings that arrays may have on their way to a site."""
    return PLAIN if codec == "none" else frozenset({_DOWN[codec], formats.EXACT})


def up_formats(codec: Codec) -> frozenset[str]:
    """Encodings that arrays may have on their way to the coordinator."""
    return PLAIN if codec == "none" else frozenset({_UP[codec], formats.EXACT})


def write_down(weights: Weights, codec: CodecDown) -> ArrayRecord:
    """Global weights as they travel to the sites.

    Raises
    ------
    PlanError
        If an array does not hold numbers.
    """
    if codec == "none":
        return weights_to_record(weights)
    return ArrayRecord({name: formats.write(array, _DOWN[codec]) for name, array in weights.items()})


def write_up(weights: Weights, given: Weights, codec: Codec, share: float) -> ArrayRecord:
    """A site's weights as they travel to the coordinator; see :func:`wardround.strategies.codecs.feedback.written`."""
    if codec == "none":
        return weights_to_record(weights)
    stype = _UP[codec]
    return ArrayRecord({name: formats.write(array, stype, given[name], share) for name, array in weights.items()})


def read_array(array: Array, allowed: frozenset[str], given: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
    """Read one array that travelled, into memory of its own.

    Parameters
    ----------
    array
        As it arrived; its shape was compared with the network's, or is within what the reader can hold.
    allowed
        Encodings that the plan has.
    given
        What a change is added to.

    Raises
    ------
    ValueError
        If it has another encoding, or could not have been written so.
    """
    if array.stype not in allowed:
        raise ValueError("it is not encoded as the plan says")
    return decode(array) if array.stype == NUMPY else formats.read(array, given)


def read_down(record: ArrayRecord, codec: CodecDown) -> Weights:
    """Global weights as a site is given them, in the order of the record.

    Raises
    ------
    PlanError
        If an array cannot be read.
    """
    allowed = down_formats(codec)
    return weights_from_record(record, lambda array: read_array(array, allowed))


@dataclass(frozen=True, eq=False)
class Baseline:
    """What the answers to one round are measured from.

    Parameters
    ----------
    full
        Global weights before the round, as the coordinator has them.
    given
        The same as the sites read them; `full` itself where nothing is lost on the way.
    allowed
        Encodings that arrays of an answer may have.
    """

    full: Weights
    given: Weights
    allowed: frozenset[str]

    @classmethod
    def of(cls, weights: Weights, sent: ArrayRecord, codec: Codec, codec_down: CodecDown) -> "Baseline":
        """Of weights, and what :func:`write_down` made of them."""
        is_kept = codec_down in ("none", "lossless")
        return cls(weights, weights if is_kept else read_down(sent, codec_down), up_formats(codec))

    def read(self, name: str, array: Array) -> npt.NDArray[Any]:
        """An array of a checked answer, with what the coordinator had not sent added to it.

        Raises
        ------
        ValueError
            If it cannot be read.
        """
        given, full = self.given[name], self.full[name]
        found = read_array(array, self.allowed, given)
        if given is full or found.dtype.kind != "f":
            return found
        with np.errstate(all="ignore"):  # What overflows is found where the round is combined, and named.
            return np.asarray(found + (full - given), dtype=found.dtype)

    def is_unchanged(self, arrays: Mapping[str, Array]) -> bool:
        """Whether a checked answer is what was given: who has learnt nothing may say the same twice."""
        return all(
            np.array_equal(read_array(arrays[name], self.allowed, given), given) for name, given in self.given.items()
        )
