"""All arrays of a message by the plan's codec, and what answers are measured from."""

from typing import Any, get_args

import numpy as np
import pytest
from flwr.app import ArrayRecord

from wardround.errors import PlanError
from wardround.strategies.codecs.formats import BF16, DELTA_INT8, EXACT
from wardround.strategies.codecs.record import (
    PLAIN,
    Baseline,
    down_formats,
    read_array,
    read_down,
    up_formats,
    write_down,
    write_up,
)
from wardround.strategies.contract import NUMPY, Weights, record_digest, weights_to_record
from wardround.strategies.plan import Codec, CodecDown


@pytest.fixture
def network() -> Weights:
    rng = np.random.default_rng(0)
    return {
        "conv": rng.normal(size=(8, 8, 3, 3)).astype(np.float32),
        "bias": rng.normal(size=8).astype(np.float32),
        "steps": np.array(10, np.int64),
        "table": np.arange(300, dtype=np.int32),
    }


def same(one: Weights, other: Weights) -> bool:
    return list(one) == list(other) and all(
        one[n].dtype == other[n].dtype and one[n].tobytes() == other[n].tobytes() for n in one
    )


def size(record: ArrayRecord) -> int:
    return sum(len(array.data) for array in record.values())


def test_without_a_codec_nothing_changes(network: Weights) -> None:
    plain = record_digest(weights_to_record(network))
    assert record_digest(write_down(network, "none")) == plain
    assert record_digest(write_up(network, network, "none", 0.1)) == plain
    assert down_formats("none") == up_formats("none") == PLAIN == {NUMPY}


@pytest.mark.parametrize("codec", get_args(CodecDown))
def test_down_and_back(network: Weights, codec: CodecDown) -> None:
    sent = write_down(network, codec)
    found = read_down(sent, codec)
    exactly = {n for n in network if found[n].tobytes() == network[n].tobytes()}
    assert exactly == set(network) - (set() if codec in ("none", "lossless") else {"conv"})
    assert np.abs(found["conv"] - network["conv"]).max() < 0.02
    assert {array.stype for array in sent.values()} <= down_formats(codec)
    # Of a lossy codec the sites' weights do not change when they are sent once more.
    assert same(read_down(write_down(found, codec), codec), found)


@pytest.mark.parametrize(
    ("codec", "most"), [("lossless", 0.9), ("fp16", 0.5), ("bf16", 0.42), ("int8", 0.3), ("topk", 0.1)]
)
def test_up_and_back(network: Weights, codec: Codec, most: float) -> None:
    given = {"conv": network["conv"], "bias": network["bias"], "steps": np.array(9), "table": network["table"]}
    rng = np.random.default_rng(1)
    after = {**network, "conv": network["conv"] + (rng.normal(size=(8, 8, 3, 3)) * 0.01).astype(np.float32)}
    sent = write_up(after, given, codec, 0.1)
    found = {name: read_array(sent[name], up_formats(codec), given[name]) for name in given}
    assert np.abs(found["conv"] - after["conv"]).max() < (0.05 if codec == "topk" else 4e-4)
    assert {n: found[n].tolist() for n in ("bias", "steps")} == {n: after[n].tolist() for n in ("bias", "steps")}
    assert len(sent["conv"].data) < most * network["conv"].nbytes + 100


@pytest.mark.parametrize("codec", get_args(Codec))
@pytest.mark.parametrize("other", get_args(Codec))
def test_another_codec_than_the_plans_is_refused(network: Weights, codec: Codec, other: Codec) -> None:
    sent = write_up(network, network, other, 0.1)["conv"]
    if codec == other or other == "lossless" != codec != "none":
        assert read_array(sent, up_formats(codec), network["conv"]).shape == sent.shape
        return
    with pytest.raises(ValueError, match="not encoded as the plan says"):
        read_array(sent, up_formats(codec), network["conv"])


def test_a_change_never_comes_down(network: Weights) -> None:
    sent = write_up(network, network, "int8", 0.1)
    assert sent["conv"].stype == DELTA_INT8
    for codec in get_args(CodecDown):
        with pytest.raises(PlanError, match="cannot be read"):
            read_down(sent, codec)


class TestBaseline:
    def test_what_was_not_sent_is_not_lost(self) -> None:
        """Bf16 has 1 + 2⁻⁹ as 1. A site that moves by 0.5 brings the coordinator to 1.5 + 2⁻⁹."""
        full: Weights = {"w": np.full(300, 1 + 2**-9, np.float32), "n": np.array(3)}
        down = write_down(full, "bf16")
        baseline = Baseline.of(full, down, "int8", "bf16")
        assert down["w"].stype == BF16
        assert baseline.given["w"].tolist() == [1.0] * 300
        up = write_up({"w": baseline.given["w"] + np.float32(0.5), "n": np.array(4)}, baseline.given, "int8", 0.1)
        assert baseline.read("w", up["w"]) == pytest.approx(np.full(300, 1.5 + 2**-9), abs=1e-6)
        assert baseline.read("n", up["n"]).item() == 4
        assert baseline.read("w", up["w"]).dtype == np.float32

    @pytest.mark.parametrize("codec_down", ["none", "lossless"])
    def test_where_all_was_sent_the_numbers_are_the_sites(self, network: Weights, codec_down: Any) -> None:
        baseline = Baseline.of(network, write_down(network, codec_down), "fp16", codec_down)
        assert baseline.given is network
        up = write_up({**network, "conv": network["conv"] * 2}, network, "fp16", 0.1)
        expected = read_array(up["conv"], up_formats("fp16"), network["conv"])
        assert baseline.read("conv", up["conv"]).tobytes() == expected.tobytes()

    @pytest.mark.parametrize("codec", get_args(Codec))
    def test_who_has_learnt_nothing_is_known(self, network: Weights, codec: Codec) -> None:
        baseline = Baseline.of(network, write_down(network, "bf16"), codec, "bf16")
        assert baseline.is_unchanged(write_up(baseline.given, baseline.given, codec, 0.1))
        moved = {**baseline.given, "bias": baseline.given["bias"] + 1}
        assert not baseline.is_unchanged(write_up(moved, baseline.given, codec, 0.1))

    def test_another_encoding_is_refused(self, network: Weights) -> None:
        baseline = Baseline(network, network, frozenset({EXACT}))
        with pytest.raises(ValueError, match="as the plan says"):
            baseline.read("conv", weights_to_record(network)["conv"])
