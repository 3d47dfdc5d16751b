"""Gradient inversion against one update: an image comes out of what travels in the clear, and out of nothing else.

The attack is that of `benchmarks/inversion.py`, on fewer pixels.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def inversion(checkout: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("inversion_benchmark", checkout / "benchmarks" / "inversion.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_what_is_left_of_an_image(inversion: ModuleType) -> None:
    scores = inversion.attack(seed=0, side=8, steps=60)
    own = {arm: like for arm, (like, _) in scores.items()}
    # Pixel by pixel, where a step on one slice travels in the clear: this is what the others are held against.
    assert own["in the clear"] > 0.95
    assert own["in the clear"] > scores["in the clear"][1] + 0.3
    for arm in ("one masked update", "the sum", "noise"):
        assert own[arm] < 0.6, arm
    assert abs(own["one masked update"]) < 0.5
    assert abs(own["noise"]) < 0.5
