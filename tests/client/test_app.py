"""The ClientApp is a courier: it finds its site, carries arrays and scalars, and lets no text out."""

import subprocess
import sys

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from wardround.client import door
from wardround.client.app import SITE_ERROR, app
from wardround.deploy.grid import InProcessGrid
from wardround.errors import DataError, UsageError
from wardround.strategies.contract import (
    ARRAYS,
    METRICS,
    PLAN,
    Update,
    Weights,
    weights_from_record,
    weights_to_record,
)
from wardround.strategies.parcel import PARCEL, is_wrapped, unwrap, wrap
from wardround.strategies.plan import RoundPlan

WEIGHTS = {"layer": np.arange(6, dtype=np.float32).reshape(2, 3)}
ROUND = RoundPlan(run="test", round=1, rounds=2, seed=0, model="unet3d-small", labels=3)


class FakeSite:
    """Adds one to every weight, or fails with a patient's name in the text."""

    def __init__(self, failing: Exception | None = None) -> None:
        self.failing = failing
        self.plans: list[RoundPlan] = []

    def train(self, plan: RoundPlan, weights: Weights) -> Update:
        self.plans.append(plan)
        if self.failing:
            raise self.failing
        return Update({name: array + 1 for name, array in weights.items()}, {"num-examples": 2.0})

    def evaluate(self, plan: RoundPlan, weights: Weights) -> dict[str, float | list[float]]:
        return {"num-examples": 1.0, "dice": float(weights["layer"].sum())}

    def status(self) -> dict[str, float]:
        return {"cases": 5.0}


@pytest.fixture(autouse=True)
def _no_sites() -> None:
    door.detach_all()


def context(**node_config: str | int) -> Context:
    return Context(run_id=1, node_id=7, node_config=dict(node_config), state=RecordDict(), run_config={})


def ask(kind: str, record: ConfigRecord | None = None) -> Message:
    grid = InProcessGrid(app, ["north"])
    content = RecordDict({ARRAYS: weights_to_record(WEIGHTS), PLAN: record or ROUND.to_record()})
    sent = grid.push_messages([Message(content, grid.get_node_ids()[0], kind)])
    return next(iter(grid.pull_messages(sent)))


def test_train_carries_plan_and_weights_there_and_the_update_back() -> None:
    site = FakeSite()
    door.attach("north", site)
    reply = ask("train").content
    assert site.plans == [ROUND]
    assert np.array_equal(weights_from_record(reply.array_records[ARRAYS])["layer"], WEIGHTS["layer"] + 1)
    assert dict(reply.metric_records[METRICS]) == {"num-examples": 2.0}
    assert set(reply) == {ARRAYS, METRICS}


def test_weights_in_pieces_are_answered_in_pieces() -> None:
    door.attach("north", FakeSite())
    grid = InProcessGrid(app, ["north"])
    content = wrap(RecordDict({ARRAYS: weights_to_record(WEIGHTS), PLAN: ROUND.to_record()}))
    sent = grid.push_messages([Message(content, grid.get_node_ids()[0], "train")])
    reply = next(iter(grid.pull_messages(sent))).content
    assert is_wrapped(reply)
    assert np.array_equal(weights_from_record(unwrap(reply)[ARRAYS])["layer"], WEIGHTS["layer"] + 1)


def test_a_piece_that_cannot_be_read_is_answered_by_name() -> None:
    door.attach("north", FakeSite())
    grid = InProcessGrid(app, ["north"])
    piece = ArrayRecord({f"{PARCEL}.0": Array("uint8", (3,), PARCEL, b"abc")})
    content = RecordDict({ARRAYS: piece, PLAN: ROUND.to_record()})
    sent = grid.push_messages([Message(content, grid.get_node_ids()[0], "train")])
    assert next(iter(grid.pull_messages(sent))).error.reason == "PlanError"


def test_evaluate_and_status_answer_scalars_only() -> None:
    door.attach("north", FakeSite())
    assert dict(ask("evaluate").content.metric_records[METRICS]) == {"num-examples": 1.0, "dice": 15.0}
    assert set(ask("query.status").content) == {METRICS}


@pytest.mark.parametrize(
    "error",
    [
        DataError("cannot read H-DOE-JANE-1951", "/data/H-DOE-JANE-1951/site is damaged"),
        OSError("/data/DOE^JANE/ct.nii.gz"),
        KeyError("DOE^JANE"),
    ],
)
def test_an_error_leaves_as_the_name_of_its_class(error: Exception) -> None:
    door.attach("north", FakeSite(error))
    reply = ask("train")
    assert reply.error.code == SITE_ERROR
    assert reply.error.reason == type(error).__name__


def test_a_message_without_a_plan_is_answered_by_name_too() -> None:
    grid = InProcessGrid(app, ["north"])
    sent = grid.push_messages([Message(RecordDict(), grid.get_node_ids()[0], "train")])
    assert next(iter(grid.pull_messages(sent))).error.code == SITE_ERROR


def test_a_broken_plan_is_refused_before_the_site_sees_it() -> None:
    site = FakeSite()
    door.attach("north", site)
    record = ROUND.to_record()
    record["updates-per-case"] = -1
    reply = ask("train", record)
    assert reply.error.reason == "PlanError"
    assert site.plans == []


def test_a_node_without_a_site_says_so() -> None:
    with pytest.raises(UsageError, match="no site"):
        door.open_site(context(site="nowhere"))


def test_the_courier_imports_no_torch() -> None:
    code = "import sys, wardround.client.app; sys.exit('torch' in sys.modules or 'monai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
