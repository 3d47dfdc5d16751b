"""Weights on the wire."""

import io
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wardround.errors import PlanError
from wardround.strategies.contract import decode, digest, weights_from_record, weights_to_record

arrays = st.sampled_from(["float32", "float64", "float16", "int64", "uint8", "bool"]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)


def npy(array: Any, **keywords: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **keywords)
    return stream.getvalue()


@given(arrays)
def test_any_array_survives_with_its_bits(array: np.ndarray[Any, Any]) -> None:
    record = weights_to_record({"a": array, "transposed": array.T})
    back = weights_from_record(record)
    assert list(back) == ["a", "transposed"]
    for name, expected in (("a", array), ("transposed", array.T)):
        assert back[name].dtype == expected.dtype
        assert back[name].shape == expected.shape
        assert back[name].tobytes() == expected.tobytes()


def test_column_major_bytes_are_read_in_their_order() -> None:
    array = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert np.array_equal(decode(Array("float32", (2, 3), "numpy.ndarray", npy(array))), array)


def test_what_comes_out_is_ones_own() -> None:
    source = {"a": np.zeros(3, np.float32)}
    record = weights_to_record(source)
    first, second = weights_from_record(record), weights_from_record(record)
    first["a"][:] = 1
    assert not second["a"].any()
    assert not source["a"].any()
    assert not record["a"].numpy().any()


class Bomb:
    """Unpickling this would be seen."""

    went_off = False

    def __reduce__(self) -> Any:
        return (setattr, (Bomb, "went_off", True))


@pytest.mark.parametrize(
    "data",
    [
        npy(np.array([Bomb()], dtype=object), allow_pickle=True),
        pickle.dumps(Bomb()),
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x09\x00\x10\x00",
        b"\x93NUMPY\x01\x00\xff\xff{",
        npy(np.zeros(2, np.float32))[:-1],
        npy(np.zeros(2, np.float32)) + b"\x00",
        npy(np.zeros(3, np.float32)),
        npy(np.zeros(2, np.float64)),
        npy(np.zeros(2, np.float32)).replace(b"(2,), }", b"(2**9,)"),
        npy(np.zeros(2, np.float32)).replace(b"'<f4'", b"'>f4'"),
    ],
)
def test_bytes_that_are_not_what_they_declare_are_refused(data: bytes) -> None:
    with pytest.raises(PlanError, match="'a'"):
        weights_from_record(ArrayRecord({"a": Array("float32", (2,), "numpy.ndarray", data)}))
    assert not Bomb.went_off


def test_a_huge_declared_shape_allocates_nothing() -> None:
    side = 10**7
    data = npy(np.zeros((2, 2), np.float32)).replace(b"(2, 2), }" + b" " * 14, b"(10000000, 10000000), }")
    assert b"10000000" in data
    with pytest.raises(ValueError, match="bytes"):
        decode(Array("float32", (side, side), "numpy.ndarray", data))


def test_other_encodings_and_objects_are_refused() -> None:
    with pytest.raises(ValueError, match="NumPy"):
        decode(Array("float32", (2,), "pickle", npy(np.zeros(2, np.float32))))
    with pytest.raises(PlanError, match="cannot travel"):
        weights_to_record({"a": np.array(["x"])})


def test_the_courier_needs_no_torch() -> None:
    code = "import sys, wardround.strategies.contract, wardround.strategies.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def content(**changes: Any) -> RecordDict:
    """Content of a message; a record can be replaced, or left out by None."""
    records: dict[str, Any] = {
        "arrays": weights_to_record({"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(3)}),
        "metrics": MetricRecord({"num-examples": 4, "loss": 0.25, "dice": [0.5, 1.0]}),
        "plan": ConfigRecord({"run": "r", "extent": True, "blob": b"\x00", "rounds": [1, 2]}),
    }
    return RecordDict({name: record for name, record in {**records, **changes}.items() if record is not None})


def test_a_digest_is_the_same_on_every_machine() -> None:
    assert digest(content()) == "41ce6073513325524bc848839e38f77d865d19df1b9436d4cf8654939fd38968"


def test_a_digest_survives_the_wire() -> None:
    sent = Message(content(), 5, "train")
    objects = {name: part.deflate() for name, part in get_all_nested_objects(sent).items()}
    arrived = inflate_object_from_contents(sent.object_id, objects)
    assert isinstance(arrived, Message)
    assert digest(arrived.content) == digest(content())


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": None},
        {"more": MetricRecord()},
        {"metrics": ConfigRecord({"num-examples": 4, "loss": 0.25, "dice": [0.5, 1.0]})},
        {"metrics": MetricRecord({"num-examples": 4.0, "loss": 0.25, "dice": [0.5, 1.0]})},
        {"metrics": MetricRecord({"num-examples": 4, "loss": 0.25, "dice": [0.5, float("nan")]})},
        {"metrics": MetricRecord({"num-examples": 4, "loss": 0.25000000000000006, "dice": [0.5, 1.0]})},
        {"metrics": MetricRecord({"loss": 0.25, "num-examples": 4, "dice": [0.5, 1.0]})},
        {"plan": ConfigRecord({"run": "r", "extent": 1, "blob": b"\x00", "rounds": [1, 2]})},
        {"plan": ConfigRecord({"run": "r", "extent": True, "blob": "00", "rounds": [1, 2]})},
        {"plan": ConfigRecord({"run": "r", "extent": True, "blob": b"\x00", "rounds": [1]})},
        {"arrays": weights_to_record({"w": np.arange(6, dtype=np.float32).reshape(3, 2), "n": np.array(3)})},
        {"arrays": weights_to_record({"n": np.array(3), "w": np.arange(6, dtype=np.float32).reshape(2, 3)})},
        {"arrays": weights_to_record({"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(4)})},
        {"arrays": weights_to_record({"w": np.zeros((2, 3), np.float32), "n": np.array(3)})},
    ],
)
def test_a_digest_tells_contents_apart(change: dict[str, Any]) -> None:
    assert digest(content(**change)) != digest(content())
