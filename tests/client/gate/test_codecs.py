"""What a codec wrote is judged by what is read of it, and may hold nothing else."""

import zlib
from typing import get_args

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from wardround.client.gate.policy import Policy
from wardround.client.gate.update import check_incoming, check_outgoing
from wardround.errors import GateRefused
from wardround.strategies.codecs import formats
from wardround.strategies.codecs.planes import pack
from wardround.strategies.codecs.record import down_formats, up_formats, write_down, write_up
from wardround.strategies.contract import ARRAYS, METRICS, Weights
from wardround.strategies.plan import Codec, CodecDown

POLICY = Policy(min_cases=1, max_update_norm=100.0)


@pytest.fixture
def given() -> Weights:
    return {
        "conv": np.random.default_rng(0).normal(size=(20, 20)).astype(np.float32),
        "bias": np.zeros(4, np.float32),
        "steps": np.array(10, np.int64),
    }


def looks(weights: Weights) -> dict[str, tuple[tuple[int, ...], str]]:
    return {name: (array.shape, str(array.dtype)) for name, array in weights.items()}


def moved(given: Weights, by: float = 0.1) -> Weights:
    return {
        "conv": given["conv"] + np.float32(by),
        "bias": given["bias"] + np.float32(by),
        "steps": np.array(11, np.int64),
    }


def code_of(given: Weights, arrays: ArrayRecord, codec: Codec = "int8") -> str:
    content = RecordDict({ARRAYS: arrays, METRICS: MetricRecord({"num-examples": 6.0})})
    try:
        check_outgoing("train", content, POLICY, given, 6, up_formats(codec))
    except GateRefused as refused:
        return refused.code
    return ""


def with_data(arrays: ArrayRecord, name: str, data: bytes) -> ArrayRecord:
    old = arrays[name]
    return ArrayRecord({**arrays, name: Array(old.dtype, tuple(old.shape), old.stype, data)})


@pytest.mark.parametrize("codec", get_args(Codec))
def test_a_good_update_leaves(given: Weights, codec: Codec) -> None:
    assert code_of(given, write_up(moved(given), given, codec, 0.1), codec) == ""


@pytest.mark.parametrize("codec", get_args(CodecDown))
def test_good_weights_come_in(given: Weights, codec: CodecDown) -> None:
    for reference in (looks(given), None):
        check_incoming(write_down(given, codec), POLICY, reference, down_formats(codec))


@pytest.mark.parametrize("codec", ["none", "lossless", "int8"])
def test_another_codec_than_the_plans_does_not_leave(given: Weights, codec: Codec) -> None:
    assert code_of(given, write_up(moved(given), given, "topk", 0.1), codec) == "encoding"


def test_a_change_does_not_come_in(given: Weights) -> None:
    with pytest.raises(GateRefused) as refused:
        check_incoming(write_up(moved(given), given, "int8", 0.1), POLICY, looks(given), down_formats("bf16"))
    assert refused.value.code == "encoding"


def test_weights_that_were_coded_are_as_large_as_they_say(given: Weights) -> None:
    """A few bytes that say to be a large model are refused before anything of it is made."""
    record = ArrayRecord({"conv": Array("float32", (2**16, 2**16), formats.EXACT, pack(bytes(100)) * 4)})
    with pytest.raises(GateRefused) as refused:
        check_incoming(record, POLICY, None, down_formats("lossless"))
    assert refused.value.code == "too-large"


@pytest.mark.parametrize(("by", "code"), [(0.1, ""), (10.0, "norm"), (np.nan, "not-finite"), (np.inf, "not-finite")])
def test_the_norm_is_that_of_what_is_read(given: Weights, by: float, code: str) -> None:
    assert code_of(given, write_up(moved(given, by), given, "int8", 0.1)) == code


def test_a_scale_that_a_site_did_not_find_moves_the_norm(given: Weights) -> None:
    arrays = write_up(moved(given), given, "int8", 0.1)
    larger = np.float32(1e3).tobytes() + arrays["conv"].data[4:]
    assert code_of(given, with_data(arrays, "conv", larger)) == "norm"


def test_counters_go_up_and_nothing_hides_in_them(given: Weights) -> None:
    for steps, code in ((11, ""), (9, "integer-changed"), (10**15, "integer-changed")):
        after = {**moved(given), "steps": np.array(steps, np.int64)}
        assert code_of(given, write_up(after, given, "int8", 0.1)) == code


def recoded(plane: bytes) -> bytes:
    """The same bytes by another search for repetitions."""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    coded = coder.compress(plane) + coder.flush()
    return len(coded).to_bytes(8, "big") + coded


def test_the_same_numbers_written_otherwise_do_not_leave(given: Weights) -> None:
    """There would be room for what nobody sees in the choice between two ways to write a number."""
    arrays = write_up({**given, "conv": given["conv"] + np.float32(0.1)}, given, "int8", 0.1)
    assert code_of(given, arrays) == ""
    scale, steps = arrays["conv"].data[:4], formats.read(arrays["conv"], np.zeros_like(given["conv"]))
    plane = np.rint(steps / np.frombuffer(scale, np.float32)).astype(np.int8).tobytes()
    assert scale + pack(plane) == arrays["conv"].data
    for written in (recoded(plane), len(plane).to_bytes(8, "big") + plane, pack(plane) + b"x"):
        assert code_of(given, with_data(arrays, "conv", scale + written)) == "encoding"
