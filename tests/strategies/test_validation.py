"""Every way in which a reply can break the contract, and that each is named."""

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord

from wardround.errors import ReplyRefused
from wardround.models.catalogue import build
from wardround.models.weights import weights_of
from wardround.strategies.combine import conform
from wardround.strategies.contract import METRICS, Weights, arrays_in, weights_from_record, weights_to_record
from wardround.strategies.validation import RefusedReply, ReplyLimits, check_reply

Reply = Callable[..., Message]


def code_of(message: Message, weights: Weights, kind: Any = "train", limits: ReplyLimits | None = None) -> str:
    with pytest.raises(RefusedReply) as refused:
        check_reply(message, weights, limits or ReplyLimits(), kind)
    assert isinstance(refused.value, ReplyRefused)
    assert refused.value.problem
    return refused.value.code


def test_a_good_reply_passes_and_is_left_alone(reply: Reply, weights: Weights) -> None:
    changed = {**weights, "conv": weights["conv"] + 1}
    metrics = {"num-examples": 4, "loss": 0.1, "seconds-update": 1.0, "trust": 1.0, "rejected": 2.0}
    message = reply(changed, metrics | {"kernel-mean": 0.01, "kernel-ratio": 1.7})
    check_reply(message, weights, ReplyLimits())
    assert {name: array.numpy().tolist() for name, array in message.content["arrays"].items()} == {
        name: array.tolist() for name, array in changed.items()
    }


@pytest.mark.parametrize("name", ["unet3d-small", "unet2d-small-attention", "unet3d-small-attention"])
def test_weights_of_the_networks_pass_and_come_back_bit_by_bit(reply: Reply, name: str) -> None:
    given, changed = (weights_of(build(name, 3, seed)) for seed in (0, 1))
    message = reply(changed)
    check_reply(message, given, ReplyLimits())
    found = weights_from_record(arrays_in(message.content))
    assert list(found) == list(given)
    assert all(np.array_equal(array, changed[key]) for key, array in conform(found, given).items())


def test_the_order_of_arrays_is_free(reply: Reply, weights: Weights) -> None:
    check_reply(reply(dict(reversed(weights.items()))), weights, ReplyLimits())


def test_error(reply: Reply, weights: Weights) -> None:
    assert code_of(reply(error=Error(100, "DataError")), weights) == "error-reply"


def test_an_errors_text_is_not_repeated(reply: Reply, weights: Weights) -> None:
    with pytest.raises(RefusedReply) as refused:
        check_reply(reply(error=Error(2, "no such file /patients/JOHN_DOE.nii")), weights, ReplyLimits())
    assert "JOHN" not in str(refused.value)
    with pytest.raises(RefusedReply, match="DataError"):
        check_reply(reply(error=Error(100, "DataError")), weights, ReplyLimits())


@pytest.mark.parametrize("missing", ["arrays", "metrics"])
def test_missing_record(reply: Reply, weights: Weights, missing: str) -> None:
    assert code_of(reply(records={missing: None}), weights) == "missing-record"


def test_record_of_another_type(reply: Reply, weights: Weights) -> None:
    assert code_of(reply(records={"metrics": ConfigRecord({"num-examples": 1.0})}), weights) == "missing-record"


def test_extra_record(reply: Reply, weights: Weights) -> None:
    extra = {"images": weights_to_record({"voxels": np.zeros(3, np.float32)})}
    assert code_of(reply(records=extra), weights) == "extra-record"


def test_weights_in_an_evaluation_are_extra(reply: Reply, weights: Weights) -> None:
    assert code_of(reply(), weights, "evaluate") == "extra-record"


def test_names(reply: Reply, weights: Weights) -> None:
    assert code_of(reply({"conv": weights["conv"]}), weights) == "names"
    assert code_of(reply({**weights, "more": weights["bias"]}), weights) == "names"
    assert (
        code_of(reply({**{n: a for n, a in weights.items() if n != "bias"}, "Bias": weights["bias"]}), weights)
        == "names"
    )


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 1), ()])
def test_shape_even_where_it_would_broadcast(reply: Reply, weights: Weights, shape: tuple[int, ...]) -> None:
    assert code_of(reply({**weights, "bias": np.zeros(shape, np.float32)}), weights) == "shape"


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", ">f4"])
def test_dtype(reply: Reply, weights: Weights, dtype: str) -> None:
    assert code_of(reply({**weights, "bias": np.zeros(2, dtype)}), weights) == "dtype"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite(reply: Reply, weights: Weights, value: float) -> None:
    conv = weights["conv"].copy()
    conv[1, 1] = value
    assert code_of(reply({**weights, "conv": conv}), weights) == "not-finite"


def test_finite_but_absurd_is_a_matter_of_norm(reply: Reply, weights: Weights) -> None:
    assert code_of(reply({**weights, "conv": np.full((2, 2), 3e38, np.float32)}), weights) == "norm"
    wide = {"w": np.zeros(2)}
    assert code_of(reply({"w": np.full(2, 1e300)}), wide) == "norm"


def test_norm_is_that_of_the_change_over_all_float_arrays(reply: Reply, weights: Weights) -> None:
    # A change of 3 in one array and of 4 in another has norm 5; the counter does not count.
    moved = {
        "conv": weights["conv"] + np.array([[3, 0], [0, 0]], np.float32),
        "bias": weights["bias"] + np.array([0, 4], np.float32),
        "steps": np.array(1000, np.int64),
    }
    check_reply(reply(moved), weights, ReplyLimits(max_norm=5.0))
    assert code_of(reply(moved), weights, limits=ReplyLimits(max_norm=4.999)) == "norm"


@pytest.mark.parametrize("examples", [0.0, -1.0, math.nan, math.inf, 1e12, [4.0]])
def test_num_examples(reply: Reply, weights: Weights, examples: Any) -> None:
    assert code_of(reply(metrics={"num-examples": examples}), weights) == "num-examples"


def test_num_examples_missing(reply: Reply, weights: Weights) -> None:
    assert code_of(reply(metrics={"loss": 1.0}), weights) == "num-examples"


@pytest.mark.parametrize(
    "metrics",
    [
        {"loss": math.nan},
        {"loss": [0.1, math.inf]},
        {"loss": [0.0] * 65},
        {"patient-age": 71.0},
        {"dice": 0.9},
        {"loss-123": 1.0},
        {"trust": 1.01},
        {"trust": [0.5, -0.1]},
        {"trust-2": 7.0},
        {"rejected": -1.0},
        {"kernel-mean": 1.1},
        {"kernel-mean": -0.1},
        {"kernel-ratio": -0.1},
        {"kernel-ratio": math.nan},
        {"kernel-same": 0.1},
    ],
)
def test_metric(reply: Reply, weights: Weights, metrics: dict[str, Any]) -> None:
    assert code_of(reply(metrics={"num-examples": 1.0, **metrics}), weights) == "metric"


def test_a_foreign_metrics_name_is_not_repeated(reply: Reply, weights: Weights) -> None:
    with pytest.raises(RefusedReply) as refused:
        check_reply(reply(metrics={"num-examples": 1.0, "JOHN_DOE": 1.0}), weights, ReplyLimits())
    assert "JOHN" not in str(refused.value)


def test_evaluation_knows_labels_and_may_have_no_case(reply: Reply, weights: Weights) -> None:
    metrics = {"num-examples": 0.0, "dice": 0.0, "dice-1": 0.9, "dice-12": 0.1}
    check_reply(reply(metrics=metrics, records={"arrays": None}), weights, ReplyLimits(), "evaluate")
    assert (
        code_of(reply(metrics={"num-examples": -1.0}, records={"arrays": None}), weights, "evaluate") == "num-examples"
    )


class Bomb:
    """Unpickling this would be seen."""

    went_off = False

    def __reduce__(self) -> Any:
        return (setattr, (Bomb, "went_off", True))


def test_pickle_is_refused_and_not_executed(reply: Reply, weights: Weights) -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([Bomb(), Bomb()], dtype=object), allow_pickle=True)
    record = weights_to_record(weights)
    record["bias"] = Array("float32", (2,), "numpy.ndarray", stream.getvalue())
    assert code_of(reply(records={"arrays": record}), weights) == "encoding"
    assert not Bomb.went_off


def test_more_bytes_than_the_shape_needs_are_refused_undecoded(
    reply: Reply, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(array: Array) -> None:
        pytest.fail("decoded")

    monkeypatch.setattr("wardround.strategies.validation.read_array", never)
    record = weights_to_record(weights)
    record["bias"] = Array("float32", (2,), "numpy.ndarray", bytes(10**6))
    assert code_of(reply(records={"arrays": record}), weights) == "encoding"


def test_garbage_bytes(reply: Reply, weights: Weights) -> None:
    record = ArrayRecord({n: Array(str(a.dtype), a.shape, "numpy.ndarray", b"garbage") for n, a in weights.items()})
    assert code_of(reply(records={"arrays": record}), weights) == "encoding"


def test_metrics_are_checked_before_weights(reply: Reply, weights: Weights) -> None:
    message = reply({"other": np.zeros(1)}, records={METRICS: MetricRecord({"num-examples": -1})})
    assert code_of(message, weights) == "num-examples"
