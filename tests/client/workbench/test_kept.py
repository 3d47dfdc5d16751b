"""What a bench keeps is read again, whatever else lies in its folder."""

from pathlib import Path

import numpy as np

from wardround.client.learning.replay import Reservoir
from wardround.client.learning.state import Standing
from wardround.client.workbench.kept import Kept, load_kept, save_kept


def kept(value: float) -> Kept:
    arrays = {"a": np.full(3, value, np.float32)}
    return Kept("net", 2, "base", Reservoir(3, 1, ("case",)), Standing(), arrays, arrays)


def test_stray_names_are_none_of_ours(tmp_path: Path) -> None:
    save_kept(tmp_path, kept(1))
    for stray in ("kept-1 copy", "kept-000009.bak", "kept-x"):
        (tmp_path / stray).mkdir()
    save_kept(tmp_path, kept(2))
    found = load_kept(tmp_path)
    assert found is not None
    assert found.weights["a"][0] == 2
    assert (tmp_path / "kept-1 copy").exists()
    assert not (tmp_path / "kept-000001").exists()
