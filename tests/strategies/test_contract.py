"""Weights on the wire."""

import io
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wardround.errors import PlanError
from wardround.strategies.contract import decode, weights_from_record, weights_to_record

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
