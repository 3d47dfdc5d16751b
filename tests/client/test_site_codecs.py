"""A live site and its gate under a plan with a codec: what leaves, what is written down, and what is asked again."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from living import START, make_home, plan

from wardround.client import wire
from wardround.client.agent import Agent
from wardround.client.gate.gate import Gate
from wardround.client.gate.ledger import Ledger, LedgerEntry
from wardround.client.home import SiteHome, only_agent
from wardround.client.live import open_live_site
from wardround.errors import GateRefused
from wardround.models.weights import load_arrays
from wardround.strategies.codecs.feedback import LEFT, written
from wardround.strategies.codecs.record import Baseline, read_down, up_formats, write_down
from wardround.strategies.contract import (
    ARRAYS,
    METRICS,
    Update,
    Weights,
    digest,
    record_digest,
    weights_from_record,
    weights_to_record,
)
from wardround.strategies.plan import RoundPlan


def answered(home: SiteHome, settings: RoundPlan, weights: Weights) -> RecordDict:
    """A round as the agent has it, by a process that knows nothing but what is on the disk."""
    arrays = write_down(weights, settings.codec_down)
    gate = Gate(home.path)
    with open_live_site(home) as site:
        gate.admit("train", settings, arrays)
        given = read_down(arrays, settings.codec_down)
        update = site.train(settings, given)
        content = RecordDict({ARRAYS: update.record(), METRICS: MetricRecord(dict(update.metrics))})
        gate.release("train", settings, content, given=given, cases=int(update.metrics["num-examples"]))  # type: ignore[arg-type]
    return content


def asked(home: SiteHome, settings: RoundPlan, weights: Weights) -> ArrayRecord:
    """The arrays that a courier brings back."""
    header = {"op": "train", "plan": dict(settings.to_record())}
    return ArrayRecord(wire.ask(home.socket, header, dict(write_down(weights, settings.codec_down)), timeout=300)[1])


def read(content: RecordDict, settings: RoundPlan, weights: Weights) -> Weights:
    """The answer as a coordinator has it."""
    sent = write_down(weights, settings.codec_down)
    baseline = Baseline.of(weights, sent, settings.codec, settings.codec_down)
    return {name: baseline.read(name, array) for name, array in content[ARRAYS].items()}  # type: ignore[union-attr]


def released(home: SiteHome) -> list[LedgerEntry]:
    return [line for line in Ledger(home.ledger).entries() if (line.direction, line.verdict) == ("out", "allowed")]


def size(record: object) -> int:
    assert isinstance(record, ArrayRecord)
    return sum(len(array.data) for array in record.values())


def test_two_rounds_with_error_feedback_and_asked_again_after_a_restart(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", cases=2, tests=0, most=1)
    usual = {"codec": "int8", "codec_down": "bf16", "updates_per_case": 2, "validation_cases": 0}
    one, two = (plan(number, **usual) for number in (1, 2))
    first = answered(home, one, START)
    middle = read(first, one, START)
    second = answered(home, two, middle)
    assert {array.stype for array in first[ARRAYS].values()} == up_formats("int8")  # type: ignore[union-attr]
    whole = sum(array.nbytes for array in START.values())
    assert size(first[ARRAYS]) + size(write_down(START, "bf16")) < 0.6 * whole
    lines = released(home)
    assert [line.sha256 for line in lines] == [digest(first), digest(second)]
    assert size(first[ARRAYS]) <= lines[0].bytes < size(first[ARRAYS]) + 500
    assert any(not np.array_equal(middle[name], START[name]) for name in START)

    kept = home.site / "runs" / "test" / "state" / "round-00001" / "local.safetensors"
    left = load_arrays(kept)
    assert {name.removeprefix(LEFT) for name in left} <= START.keys()
    assert any(array.any() for array in left.values())
    again = answered(home, two, middle)
    assert record_digest(again[ARRAYS]) == record_digest(second[ARRAYS])  # type: ignore[arg-type]
    # Without what the first round left out, the second would not be the same.
    kept.unlink()
    forgetful = answered(home, two, middle)
    assert record_digest(forgetful[ARRAYS]) != record_digest(second[ARRAYS])  # type: ignore[arg-type]


class Moving:
    """Moves every weight a little, and writes it by the plan's codec; or by none, whatever the plan says."""

    name = "north"
    obeys = True

    def train(self, plan: RoundPlan, weights: Weights, between: object) -> Update:
        after = {name: array + np.float32(1e-3) for name, array in weights.items()}
        leaving = written(after, weights, plan, {})
        return Update(leaving.weights, {"num-examples": 2.0}, leaving.record if self.obeys else None)

    def evaluate(self, plan: RoundPlan, weights: Weights, between: object) -> dict[str, float | list[float]]:
        return {"num-examples": 1.0}

    def status(self) -> dict[str, float]:
        return {}


def test_an_agent_lets_out_what_is_written_as_the_plan_says_and_nothing_else(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", cases=0, tests=0)
    site = Moving()
    with only_agent(home), ExitStack() as stack:
        agent = Agent(home, site, Gate(home.path))  # type: ignore[arg-type]
        stack.callback(agent.close)
        agent.open()
        settings = plan(codec="topk", codec_down="bf16")
        first = asked(home, settings, START)
        assert {array.stype for array in first.values()} == up_formats("topk")
        assert record_digest(asked(home, settings, START)) == record_digest(first)
        assert size(first) < 0.1 * sum(array.nbytes for array in START.values())
        site.obeys = False
        with pytest.raises(GateRefused) as refused:
            asked(home, plan(codec="int8"), START)
        assert refused.value.code == "encoding"
        assert len(released(home)) == 2
        # What travels as it is, is what it always was.
        plain = asked(home, plan(), START)
        assert record_digest(plain) == record_digest(weights_to_record(weights_from_record(plain)))
