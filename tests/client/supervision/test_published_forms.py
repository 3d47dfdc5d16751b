"""Our losses against the published forms that the benchmark measures them by: the same, but for memory and time."""

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "supervision.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("supervision_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_forms_that_are_said_to_compute_the_same_do(script: ModuleType) -> None:
    compared = 0
    for make, same in script.tasks(small=True).values():
        forms = make()
        for published, ours in same.items():
            (one, seen), (other, also) = forms[published](), forms[ours]()
            assert math.isclose(one.item(), other.item(), rel_tol=1e-4)
            pair = [torch.autograd.grad(loss, part)[0] for loss, part in ((one, seen), (other, also))]
            assert script.difference(*(gradient.flatten().tolist() for gradient in pair)) < 1e-4
            compared += 1
    assert compared == 3


def test_a_form_is_measured(script: ModuleType) -> None:
    for task, (make, _) in script.tasks(small=True).items():
        for form in make():
            found = script.measure(task, form, 1, small=True)
            assert found["memory"] >= 0
            assert found["seconds"] > 0
            assert math.isfinite(found["loss"])
