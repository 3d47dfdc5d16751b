"""The round loop with a codec: what travels is small, what counts is what is read, and a resume ends the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from wardround.errors import Interrupted
from wardround.server.journal import Journal
from wardround.server.rounds import LoopSettings, RunResult, run_rounds
from wardround.strategies.catalogue import make_strategy
from wardround.strategies.codecs.feedback import written
from wardround.strategies.codecs.record import read_down
from wardround.strategies.contract import ARRAYS, METRICS, PLAN, Weights, arrays_in, weights_to_record
from wardround.strategies.plan import RoundPlan

ROUNDS = 4
BOTH = [("int8", "bf16"), ("topk", "none"), ("none", "bf16"), ("fp16", "fp16"), ("lossless", "lossless")]


class Site:
    """Moves weights half of the way to a target and keeps what the codec left out, for every round, as a snapshot."""

    def __init__(self, target: float, examples: float) -> None:
        self.target, self.examples = target, examples
        self.left: dict[int, Weights] = {0: {}}
        self.given: dict[int, Weights] = {}
        self.moves = True

    def __call__(self, message: Message) -> Message:
        plan = RoundPlan.from_record(message.content.config_records[PLAN])
        given = read_down(arrays_in(message.content), plan.codec_down)
        content = RecordDict({METRICS: MetricRecord({"num-examples": self.examples, "loss": 0.5})})
        if message.metadata.message_type == "evaluate":
            content[METRICS] = MetricRecord({"num-examples": self.examples, "dice": float(given["w"].mean())})
            return Message(content, reply_to=message)
        self.given[plan.round] = given
        after = {**given, "steps": given["steps"] + 1} if self.moves else given
        if self.moves:
            after["w"] = (given["w"] + np.float32(0.5) * (np.float32(self.target) - given["w"])).astype(np.float32)
        leaving = written(after, given, plan, self.left[plan.round - 1])
        self.left[plan.round] = leaving.left
        content[ARRAYS] = leaving.record or weights_to_record(leaving.weights)
        return Message(content, reply_to=message)


class Scene:
    def __init__(self, toy_grid: Any, clock: Any, folder: Path) -> None:
        self.sites: dict[str, Any] = {"north": Site(1.0, 1), "south": Site(4.0, 2)}
        self.grid = toy_grid(self.sites)
        self.clock, self.folder = clock, folder
        self.settings = LoopSettings(rounds=ROUNDS, quorum=1, deadline_s=60.0, retries=0)
        self.initial: Weights = {
            "w": np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32),
            "steps": np.array(0),
        }

    def run(self, codec: str, down: str, **more: Any) -> RunResult:
        settings = more.pop("settings", self.settings)

        def plans(number: int) -> RoundPlan:
            return RoundPlan(
                run="toy", round=number, rounds=settings.rounds, seed=0, model="toy", labels=2,
                codec=codec, codec_down=down,
            )  # type: ignore[arg-type]  # fmt: skip

        with Journal(self.folder / "journal") as journal:
            return run_rounds(
                self.grid,
                make_strategy("fedavg"),
                plans,
                self.initial,
                journal,
                settings,
                site_name=self.grid.name_of,
                pace=self.clock.pace(),
                **more,
            )


@pytest.fixture
def scene(toy_grid: Any, clock: Any, tmp_path: Path) -> Scene:
    return Scene(toy_grid, clock, tmp_path)


def same(one: Weights, other: Weights) -> bool:
    return all(one[n].dtype == other[n].dtype and one[n].tobytes() == other[n].tobytes() for n in one)


@pytest.mark.parametrize(("codec", "down"), BOTH)
def test_it_learns_as_without(scene: Scene, codec: str, down: str) -> None:
    result = scene.run(codec, down)
    # Half of the way to the mean target, (1 + 2·4) / 3 = 3, in each round; a tenth of it is what top-k has to drop.
    expected = 3 + (scene.initial["w"] - 3) / 2**ROUNDS
    assert np.abs(result.weights["w"] - expected).mean() < {"topk": 2.5, "lossless": 1e-6}.get(codec, 0.01)
    assert result.weights["steps"] == ROUNDS
    assert not any(record.refused for record in result.rounds)


def test_what_is_said_of_bytes_is_what_travelled(scene: Scene) -> None:
    plain = scene.run("none", "none").rounds[1].sites["north"]
    scene.folder = scene.folder / "other"
    coded = scene.run("int8", "bf16").rounds[1].sites["north"]
    assert coded.bytes_up < 0.3 * plain.bytes_up
    # The plan goes down as well, and this network is smaller than its plan is long.
    assert plain.bytes_down - coded.bytes_down > 0.5 * scene.initial["w"].nbytes
    assert coded.weights_digest != plain.weights_digest


def test_what_was_not_sent_down_is_not_lost(scene: Scene) -> None:
    """A site that changes nothing leaves the coordinator's weights as they are, though it never saw them whole."""
    for site in scene.sites.values():
        site.moves = False
    result = scene.run("int8", "bf16")
    assert result.weights["w"] == pytest.approx(scene.initial["w"], abs=1e-6)
    assert not np.array_equal(scene.sites["north"].given[1]["w"], scene.initial["w"])


@pytest.mark.parametrize(("codec", "down"), [("int8", "none"), ("none", "bf16"), ("none", "fp16")])
def test_who_has_learnt_nothing_may_say_so_twice(scene: Scene, codec: str, down: str) -> None:
    """A change of nothing is the same bytes in every round, and so is what was given in half precision: no replay."""
    for site in scene.sites.values():
        site.moves = False
    result = scene.run(codec, down)
    digests = {record.sites["north"].weights_digest for record in result.rounds}
    assert len(digests) == 1
    assert not any(record.refused for record in result.rounds)


def test_a_change_that_was_sent_before_is_refused(scene: Scene) -> None:
    first = scene.sites["north"]
    kept: list[RecordDict] = []

    def replaying(message: Message) -> Message:
        reply = first(message)
        if message.metadata.message_type != "train":
            return reply
        kept.append(reply.content)
        return Message(kept[0], reply_to=message)

    scene.grid.sites["north"] = replaying
    assert [record.refused for record in scene.run("int8", "none").rounds[:2]] == [{}, {"north": "replayed"}]


@pytest.mark.parametrize(("codec", "down"), BOTH[:2])
def test_stopped_anywhere_and_resumed_gives_the_same_bits(scene: Scene, codec: str, down: str) -> None:
    whole = scene.run(codec, down)
    messages = len(scene.grid.sent)
    for after in range(1, messages, 2):
        scene.folder = scene.folder / "again"
        sent = len(scene.grid.sent)
        with pytest.raises(Interrupted):
            scene.run(codec, down, stop=lambda sent=sent, after=after: len(scene.grid.sent) >= sent + after)
        resumed = scene.run(codec, down)
        assert same(resumed.weights, whole.weights)
        assert [r.sites["north"].digest for r in resumed.rounds] == [r.sites["north"].digest for r in whole.rounds]


def test_a_late_change_is_added_to_what_it_was_made_from(scene: Scene) -> None:
    """South answers round 1 in round 2. Its change is measured from the weights of round 1, which it was given."""
    begun: dict[int, float] = {}

    def slow(site: Site, seconds: float) -> Callable[[Message], Message | None]:
        def answer(message: Message) -> Message | None:
            ready = begun.setdefault(id(message), scene.clock.seconds) + seconds
            return site(message) if scene.clock.seconds >= ready or message.metadata.message_type != "train" else None

        return answer

    scene.grid.sites["south"] = slow(scene.sites["south"], 65)
    scene.grid.sites["north"] = slow(scene.sites["north"], 10)
    settings = LoopSettings(rounds=2, quorum=1, deadline_s=60.0, retries=0, late="use", staleness_exponent=0.0)
    one = scene.run("fp16", "bf16", settings=settings)
    assert list(one.rounds[1].late) == ["south"]
    first = scene.initial["w"] + (1.0 - scene.initial["w"]) / 2
    second = first + (1.0 - first) / 2
    late = scene.initial["w"] + (4.0 - scene.initial["w"]) / 2
    assert one.weights["w"] == pytest.approx((second + 2 * late) / 3, abs=0.02)


def swapped(change: Callable[[Site, RoundPlan, Weights], ArrayRecord]) -> Callable[[Site, Message], Message]:
    def answer(site: Site, message: Message) -> Message:
        reply = site(message)
        if message.metadata.message_type == "train":
            plan = RoundPlan.from_record(message.content.config_records[PLAN])
            reply.content[ARRAYS] = change(site, plan, site.given[plan.round])
        return reply

    return answer


def other_codec(codec: str) -> Callable[[Site, RoundPlan, Weights], ArrayRecord]:
    def change(site: Site, plan: RoundPlan, given: Weights) -> ArrayRecord:
        other = plan.model_copy(update={"codec": codec})
        return written(given, given, other, {}).record or weights_to_record(given)

    return change


def hostile(**changes: Any) -> Callable[[Site, RoundPlan, Weights], ArrayRecord]:
    def change(site: Site, plan: RoundPlan, given: Weights) -> ArrayRecord:
        record = written(given, given, plan, {}).record
        assert record is not None
        for field, value in changes.items():
            setattr(record["w"], field, value)
        return record

    return change


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (other_codec("none"), "encoding"),
        (other_codec("topk"), "encoding"),
        (hostile(data=b"\x80\x04N."), "encoding"),
        (hostile(data=b"\0" * 4 + (2**60).to_bytes(8, "big")), "encoding"),
        (hostile(stype="pickle"), "encoding"),
        (hostile(shape=(2**20, 2**20)), "shape"),
        (hostile(dtype="float64"), "dtype"),
        (lambda site, plan, given: written({**given, "w": given["w"] * np.nan}, given, plan, {}).record, "not-finite"),
        (lambda site, plan, given: written({**given, "w": given["w"] + 9999}, given, plan, {}).record, "norm"),
    ],
)
def test_a_bad_answer_is_dropped_and_named(scene: Scene, change: Any, code: str) -> None:
    north, answer = scene.sites["north"], swapped(change)
    scene.grid.sites["north"] = lambda message: answer(north, message)
    result = scene.run("int8", "bf16", settings=LoopSettings(rounds=1, quorum=1, deadline_s=60.0, retries=0))
    assert result.rounds[0].refused == {"north": code}
    assert list(result.rounds[0].sites) == ["south"]
