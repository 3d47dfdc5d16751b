"""An update as whole numbers in a ring, so that masks cancel exactly and sums of sites are sums of numbers.

What is summed is *n·Δ*, a site's change of every weight times its ``num-examples``, together with *n* itself and the
agreed scalars. A real number is rounded to a multiple of 2⁻ᵇ. The mean that comes out, Σ n·Δ / Σ n, is then off by at
most half a step 2⁻ᵇ⁻¹, since every site is off by that much at most and Σ n is at least the number of sites. With 20
bits this is 4.8·10⁻⁷. Integers and booleans are exact.

The ring is that of the integers modulo 2⁸ʷ. Its width of *w* bytes is the smallest in which the sum of so many sites
cannot run over, if each keeps the bounds: no weight changes by more than *clip*, no integer by more than *clip* · 2ᵇ,
and no site has more examples than agreed. A site whose update does not keep them says so; nothing is cut off.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wardround.errors import GateRefused, PlanError
from wardround.strategies.contract import NUM_EXAMPLES, TRAIN_METRICS, Metrics, Weights

Words = npt.NDArray[np.uint64]
"""Numbers of the ring, one a word of 64 bits, (n,). Bits above its width mean nothing."""

SCALARS = tuple(sorted(TRAIN_METRICS - {NUM_EXAMPLES}))
"""What is summed beside the weights. Each has two numbers: its value, and 1 where the site gave one."""

_WIDEST = 8


@dataclass(frozen=True)
class Scale:
    """How numbers are written.

    Parameters
    ----------
    bits
        Binary places of a real number.
    clip
        Largest change of one weight, in absolute value.
    examples
        Largest ``num-examples``.
    """

    bits: int
    clip: float
    examples: int

    @property
    def largest_whole(self) -> int:
        """Largest change of an integer, in absolute value."""
        return math.ceil(self.clip) << self.bits

    @property
    def largest_scalar(self) -> float:
        """Largest absolute value of a scalar; one beyond is left out of the sum."""
        return self.examples * self.clip

    def width(self, sites: int) -> int:
        """Bytes of a number, so that the sum of so many sites cannot run over.

        Raises
        ------
        PlanError
            If 8 bytes are too few.
        """
        largest = sites * (self.examples * self.largest_whole + 1)
        width = (largest.bit_length() + 1 + 7) // 8
        if width > _WIDEST:
            raise PlanError(
                "the numbers of secure aggregation do not fit into 8 bytes",
                f"{sites} sites, {self.bits} bits, changes up to {self.clip:g}, {self.examples} examples",
                "lower secure-bits, secure-clip or secure-examples",
            )
        return width


@dataclass(frozen=True)
class Sum:
    """What a sum says.

    Parameters
    ----------
    mean
        Σ nᵢwᵢ / Σ nᵢ as float64, also of integers and booleans.
    examples
        Σ nᵢ.
    totals
        Of each scalar that somebody gave, the sum over those who did, and how many these were.
    """

    mean: Weights
    examples: int
    totals: Mapping[str, tuple[float, int]]


def given_digest(given: Weights) -> bytes:
    """SHA-256 of the weights that a round begins with, by name, dtype, shape and value, and of what stands beside them.

    Both ends must agree on it. Sites that were given other values must not be added up: with weights made for the
    purpose, all of them but one can be kept from learning, and the sum is that one's update (Pasquini et al. 2022,
    "Eluding secure aggregation in federated learning via model inconsistency").
    """
    rows = [[name, str(array.dtype), list(array.shape)] for name, array in given.items()]
    whole = hashlib.sha256(json.dumps([rows, SCALARS]).encode())
    for array in given.values():
        whole.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).view(np.uint8).data)
    return whole.digest()


def length(given: Weights) -> int:
    """How many numbers an update has."""
    return sum(array.size for array in given.values()) + 1 + 2 * len(SCALARS)


def encode(weights: Weights, given: Weights, metrics: Metrics, scale: Scale) -> Words:
    """An update as numbers of the ring.

    Parameters
    ----------
    weights
        After learning; names, shapes and dtypes of `given`, in any order.
    given
        Before it.
    metrics
        With ``num-examples``.

    Raises
    ------
    GateRefused
        ``secure-range`` if a change, or ``num-examples``, does not keep the bounds of `scale`.
    """
    examples = metrics[NUM_EXAMPLES]
    if isinstance(examples, list) or examples != int(examples) or not 1 <= examples <= scale.examples:
        raise _out_of_range(f"num-examples must be a whole number from 1 to {scale.examples}", "secure-examples")
    count = int(examples)
    numbers = np.empty(length(given), np.int64)
    start = 0
    for name, before in given.items():
        part = numbers[start : start + before.size]
        if before.dtype.kind == "f":
            change = np.subtract(weights[name], before, dtype=np.float64).ravel()
            if not np.all(np.abs(change) <= scale.clip):  # NaN is not, either.
                raise _out_of_range(f"a weight changed by more than {scale.clip:g}", "secure-clip")
            np.rint(np.multiply(change, count * 2.0**scale.bits, out=change), out=change)
            part[:] = change
        else:
            whole = weights[name].astype(np.int64).ravel() - before.astype(np.int64).ravel()
            if np.any((whole > scale.largest_whole) | (whole < -scale.largest_whole)):
                raise _out_of_range(f"an integer changed by more than {scale.largest_whole}", "secure-clip")
            part[:] = whole * count
        start += before.size
    numbers[start:] = [count, *_scalars(metrics, scale)]
    return numbers.view(np.uint64)


def decode(words: Words, given: Weights, scale: Scale, sites: int, width: int) -> Sum:
    """What the sum of `sites` updates says; `width` is that of the numbers as they were sent.

    Raises
    ------
    ValueError
        If it cannot be the sum of updates that kept the bounds.
    """
    if words.shape != (length(given),):
        raise ValueError("the sum has another length than the network")
    unused = 64 - 8 * width
    numbers = (words << np.uint64(unused)).view(np.int64) >> unused  # The sign bit is that of the ring.
    start = sum(array.size for array in given.values())
    examples = int(numbers[start])
    if not sites <= examples <= sites * scale.examples:
        raise ValueError("the number of examples is not that of so many sites")
    totals: dict[str, tuple[float, int]] = {}
    for place, name in enumerate(SCALARS):
        value, present = (int(number) for number in numbers[start + 1 + 2 * place : start + 3 + 2 * place])
        if not 0 <= present <= sites:
            raise ValueError("a scalar was given by more sites than there are")
        if present:
            totals[name] = (value / 2**scale.bits, present)
    mean: Weights = {}
    start = 0
    for name, before in given.items():
        part = numbers[start : start + before.size].reshape(before.shape)
        start += before.size
        if before.dtype.kind == "f":
            change = part / (examples * 2.0**scale.bits)
            if np.any(np.abs(change) > scale.clip + 2.0**-scale.bits):
                raise ValueError("a weight changed further on average than any site may change it")
            mean[name] = np.asarray(before.astype(np.float64) + change)
        else:
            mean[name] = np.asarray(before.astype(np.float64) + part / examples)
    return Sum(mean, examples, totals)


def _scalars(metrics: Metrics, scale: Scale) -> list[int]:
    numbers: list[int] = []
    for name in SCALARS:
        value = metrics.get(name)
        given = isinstance(value, (int, float)) and abs(value) <= scale.largest_scalar
        numbers += [round(value * 2**scale.bits), 1] if given and isinstance(value, (int, float)) else [0, 0]
    return numbers


def _out_of_range(cause: str, field: str) -> GateRefused:
    return GateRefused(
        "the update does not fit into the numbers of secure aggregation",
        cause,
        f"raise the plan's {field}, or lower its learning rate",
        code="secure-range",
    )
