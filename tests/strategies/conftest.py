"""Crafted replies: what a site may send, and what it must not."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from wardround.strategies.contract import ARRAYS, METRICS, PLAN, Weights, weights_to_record
from wardround.strategies.plan import RoundPlan

Reply = Callable[..., Message]


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages ask the process who it is."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture
def plan() -> RoundPlan:
    return RoundPlan(run="demo", round=1, rounds=3, seed=7, model="unet3d-small", labels=3)


@pytest.fixture
def weights() -> Weights:
    """Two float arrays, a scalar counter."""
    return {
        "conv": np.array([[1.0, 2.0], [3.0, 4.0]], np.float32),
        "bias": np.array([0.5, -0.5], np.float32),
        "steps": np.array(10, np.int64),
    }


@pytest.fixture
def reply(plan: RoundPlan, weights: Weights) -> Reply:
    """Build the reply of a site; every part can be replaced."""

    def build(
        arrays: Mapping[str, npt.NDArray[Any]] | None = None,
        metrics: Mapping[str, float | list[float]] | None = None,
        *,
        records: Mapping[str, Any] | None = None,
        error: Error | None = None,
        node: int = 5,
    ) -> Message:
        asked = Message(RecordDict({ARRAYS: weights_to_record(weights), PLAN: plan.to_record()}), node, "train")
        asked.metadata.__dict__["_message_id"] = f"to-{node}"
        if error is not None:
            return Message(error, reply_to=asked)
        content = RecordDict()
        content[ARRAYS] = weights_to_record(weights if arrays is None else arrays)
        content[METRICS] = MetricRecord(dict({"num-examples": 4.0, "loss": 0.5} if metrics is None else metrics))
        for name, record in (records or {}).items():
            if record is None:
                del content[name]
            else:
                content[name] = record
        return Message(content, reply_to=asked)

    return build
