"""Weights on disk."""

from pathlib import Path

import numpy as np
import pytest

from wardround.errors import StorageError
from wardround.models.weights import load_arrays, save_arrays


def test_arrays_of_any_shape_come_back_with_their_bits(tmp_path: Path) -> None:
    arrays = {
        "counter": np.array(7),
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "none": np.zeros((0, 2)),
    }
    save_arrays(tmp_path / "a.safetensors", arrays)
    back = load_arrays(tmp_path / "a.safetensors")
    for name, array in arrays.items():
        assert (back[name].shape, back[name].dtype) == (array.shape, array.dtype)
        assert back[name].tobytes() == array.tobytes()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"no weights")
    with pytest.raises(StorageError, match=r"a\.safetensors"):
        load_arrays(tmp_path / "a.safetensors")
