"""What a codec left out of an update goes with the next one."""

from typing import Any

import numpy as np
import pytest

from wardround.strategies.codecs.feedback import LEFT, written
from wardround.strategies.codecs.record import read_array, up_formats
from wardround.strategies.contract import Weights, record_digest
from wardround.strategies.plan import RoundPlan


def plan(codec: Any, share: float = 0.1) -> RoundPlan:
    return RoundPlan(
        run="demo", round=1, rounds=9, seed=0, model="toy", labels=2, codec=codec, codec_share=share
    )  # fmt: skip


def test_without_a_codec_weights_travel_as_they_are() -> None:
    weights: Weights = {"w": np.ones(300, np.float32)}
    leaving = written(weights, weights, plan("none"), {LEFT + "w": np.ones(300, np.float32)})
    assert leaving.weights is weights
    assert leaving.record is None
    assert leaving.left == {}


def test_by_hand() -> None:
    given: Weights = {"w": np.zeros(300, np.float32)}
    after: Weights = {"w": np.zeros(300, np.float32)}
    after["w"][:3] = [127.0, 0.4, 0.3]
    first = written(after, given, plan("int8"), {})
    assert first.weights["w"][:3].tolist() == [127, 0, 0]
    assert first.left[LEFT + "w"][:4] == pytest.approx([0, 0.4, 0.3, 0])
    # 0.4 + 0.4 is one step, and 0.2 too much; 0.3 + 0.3 is one as well.
    second = written(after, given, plan("int8"), first.left)
    assert second.weights["w"][:3].tolist() == [127, 1, 1]
    assert second.left[LEFT + "w"][:3] == pytest.approx([0, -0.2, -0.4])


@pytest.mark.parametrize("codec", ["int8", "topk"])
def test_nothing_is_lost_over_the_rounds(codec: str) -> None:
    rng = np.random.default_rng(0)
    given: Weights = {"w": rng.normal(size=(20, 20)).astype(np.float32), "n": np.array(3)}
    local: Weights = {}
    wanted, sent = np.zeros((20, 20)), np.zeros((20, 20))
    for _ in range(30):
        change = rng.normal(size=(20, 20)).astype(np.float32)
        leaving = written({"w": given["w"] + change, "n": np.array(4)}, given, plan(codec, 0.2), local)
        wanted, sent, local = wanted + change, sent + leaving.weights["w"] - given["w"], leaving.left
        assert leaving.weights["n"] == 4
        assert list(local) == [LEFT + "w"]
        assert sent + local[LEFT + "w"] == pytest.approx(wanted, abs=1e-4)
    assert np.abs(local[LEFT + "w"]).max() < 15


@pytest.mark.parametrize("codec", ["lossless", "fp16", "bf16", "int8", "topk"])
def test_what_counts_is_what_is_read(codec: str) -> None:
    rng = np.random.default_rng(0)
    given: Weights = {"w": rng.normal(size=(20, 20)).astype(np.float32), "b": np.zeros(3, np.float32)}
    after: Weights = {"w": given["w"] + np.float32(0.1), "b": np.ones(3, np.float32)}
    local = {LEFT + "w": rng.normal(size=(20, 20)).astype(np.float32) / 100, "heads/w": np.ones(3)}
    leaving = written(after, given, plan(codec), local)
    assert leaving.record is not None
    for name, array in leaving.weights.items():
        assert read_array(leaving.record[name], up_formats(plan(codec).codec), given[name]).tobytes() == array.tobytes()
    again = written(after, given, plan(codec), local)
    assert again.record is not None
    assert record_digest(again.record) == record_digest(leaving.record)
    assert (leaving.left == {}) == (codec in ("lossless", "fp16", "bf16"))


def test_of_another_network_nothing_is_taken() -> None:
    weights: Weights = {"w": np.ones(300, np.float32)}
    for left in (np.ones(301, np.float32), np.ones(300, np.float64)):
        assert written(weights, weights, plan("int8"), {LEFT + "w": left}).weights["w"].tolist() == [1.0] * 300


def test_a_round_that_diverged_leaves_nothing_behind() -> None:
    given: Weights = {"w": np.zeros(300, np.float32)}
    after: Weights = {"w": np.full(300, np.nan, np.float32)}
    leaving = written(after, given, plan("int8"), {})
    assert np.isnan(leaving.weights["w"]).all()
    assert leaving.left == {}
