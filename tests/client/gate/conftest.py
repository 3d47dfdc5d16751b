"""A site's home with a policy, weights, answers and bundles to bring to its gate."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import PROJECT, Clock
from flwr.app import MetricRecord, RecordDict
from flwr.cli.build import build_fab_from_files

from wardround.client.gate.gate import Gate
from wardround.client.gate.policy import POLICY_TEMPLATE
from wardround.strategies.contract import ARRAYS, METRICS, Weights, weights_to_record
from wardround.strategies.plan import RoundPlan

Answer = Callable[..., RecordDict]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    (folder / "policy.toml").write_text(POLICY_TEMPLATE)
    return folder


@pytest.fixture
def gate(home: Path, clock: Clock) -> Gate:
    return Gate(home, clock)


@pytest.fixture
def plan() -> RoundPlan:
    return RoundPlan(run="demo", round=2, rounds=3, seed=7, model="unet3d-small", labels=3)


@pytest.fixture
def weights() -> Weights:
    """Two float arrays, a counter, a table of integers."""
    return {
        "conv.weight": np.array([[1.0, 2.0], [3.0, 4.0]], np.float32),
        "conv.bias": np.array([0.5, -0.5], np.float32),
        "steps": np.array(10, np.int64),
        "table": np.arange(3, dtype=np.int32),
    }


@pytest.fixture
def answer(weights: Weights) -> Answer:
    """Build what a site would answer; every part can be replaced."""

    def build(
        arrays: Mapping[str, Any] | None = None, metrics: Mapping[str, Any] | None = None, **records: Any
    ) -> RecordDict:
        learnt = {name: value + 0.5 if value.dtype.kind == "f" else value for name, value in weights.items()}
        whole: dict[str, Any] = {
            ARRAYS: weights_to_record(learnt if arrays is None else arrays),
            METRICS: MetricRecord(dict({"num-examples": 6.0, "loss": 0.5} if metrics is None else metrics)),
        }
        return RecordDict({name: record for name, record in {**whole, **records}.items() if record is not None})

    return build


@pytest.fixture
def flowers_bundle() -> bytes:
    """A bundle as Flower itself builds it."""
    return build_fab_from_files({"pyproject.toml": PROJECT})[0]


@pytest.fixture
def release(gate: Gate, plan: RoundPlan, answer: Answer, weights: Weights) -> Callable[..., str]:
    """Release a good update; every part can be replaced."""

    def act(**changes: Any) -> str:
        content = changes.pop("content", None) or answer()
        usual: dict[str, Any] = {"kind": "train", "plan": plan, "given": weights, "cases": 6} | changes
        return gate.release(usual.pop("kind"), usual.pop("plan"), content, **usual)

    return act
