"""Rounds under secure aggregation: the same mean as in the open, whoever drops out, and after any crash."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict

from wardround.client import door
from wardround.client.app import app
from wardround.errors import PlanError, RoundError, StorageError
from wardround.server.journal import Journal
from wardround.server.rounds import Event, LoopSettings, RunResult, run_rounds
from wardround.strategies.catalogue import make_strategy
from wardround.strategies.codecs.record import write_down
from wardround.strategies.contract import Update, Weights, arrays_in
from wardround.strategies.plan import CodecDown, RoundPlan
from wardround.strategies.secure.messages import arrays_with, message_in
from wardround.strategies.weighting import make_weighting

EXCHANGES = ("train", "train.shares", "train.masked", "train.confirm", "train.unmask")


class Killed(BaseException):
    """Ends the coordinator at any place."""


@dataclass
class Member:
    """A site that moves the weights towards `target`, behind the real ClientApp."""

    name: str
    target: float
    examples: int
    silent: set[str] = field(default_factory=set)
    trained: int = 0
    said: list[Message] = field(default_factory=list)
    forge: Callable[[Message, Message], Message] = lambda message, reply: reply

    def train(self, plan: RoundPlan, weights: Weights) -> Update:
        self.trained += 1
        share = np.float32(1 / (2 + plan.round))
        moved = {n: (a + share * (np.float32(self.target) - a)).astype(a.dtype) for n, a in weights.items()}
        return Update(moved | {"count": weights["count"] + 2}, {"num-examples": float(self.examples), "loss": 0.25})

    def evaluate(self, plan: RoundPlan, weights: Weights) -> dict[str, float | list[float]]:
        return {"num-examples": 1.0, "dice": 0.5}

    def status(self) -> dict[str, float]:
        return {}

    def __call__(self, message: Message) -> Message | None:
        if message.metadata.message_type in self.silent:
            return None
        context = Context(1, 1, {"site": self.name}, RecordDict(), {})
        own = RecordDict()
        for name, record in message.content.items():
            kind = next(k for k in (ArrayRecord, MetricRecord, ConfigRecord) if isinstance(record, k))
            own[name] = kind(dict(record))  # type: ignore[arg-type]
        copy = Message(own, metadata=message.metadata)  # type: ignore[call-overload]
        reply = self.forge(message, app(copy, context))
        self.said.append(reply)
        return reply


class Scene:
    """A coordinator and five sites, of which four are needed."""

    def __init__(self, toy_grid: Any, clock: Any, initial: Weights, folder: Path) -> None:
        names = ("ash", "birch", "cedar", "elm", "fir")
        self.members = {name: Member(name, 3.0 - place, 1 + 2 * place) for place, name in enumerate(names)}
        self.grid = toy_grid(self.members)
        self.clock, self.initial, self.folder = clock, initial, folder / "journal"
        self.settings = LoopSettings(rounds=2, quorum=3, deadline_s=60.0)
        self.events: list[Event] = []
        self.secure = True
        self.codec_down: CodecDown = "none"
        for name, member in self.members.items():
            door.attach(name, member)

    def plan(self, number: int) -> RoundPlan:
        more = {"secure": self.secure, "codec_down": self.codec_down}
        return RoundPlan.model_validate(
            {"run": "toy", "round": number, "rounds": 2, "seed": 1, "model": "toy", "labels": 2, **more}
        )

    def run(self, strategy: str = "fedavg", **changes: Any) -> RunResult:
        with Journal(self.folder) as journal:
            return run_rounds(
                self.grid,
                make_strategy(strategy),
                self.plan,
                self.initial,
                journal,
                changes.pop("settings", self.settings),
                site_name=self.grid.name_of,
                on_event=self.events.append,
                pace=self.clock.pace(),
                **changes,
            )

    def restart_site(self, name: str) -> None:
        """It forgets what it held in memory."""
        door._PARTIES[id(self.members[name])]._held.clear()

    def in_the_open(self, sites: Collection[str], folder: Path) -> Weights:
        """What these sites learn without secure aggregation."""
        folder_before, online = self.folder, self.grid.online
        self.folder, self.grid.online, self.secure = folder, list(sites), False
        weights = self.run().weights
        self.folder, self.grid.online, self.secure = folder_before, online, True
        return weights


@pytest.fixture
def scene(toy_grid: Any, clock: Any, initial: Weights, tmp_path: Path) -> Iterator[Scene]:
    yield Scene(toy_grid, clock, initial, tmp_path)
    door.detach_all()


def close(one: Weights, other: Weights) -> bool:
    return list(one) == list(other) and all(
        one[n].dtype == other[n].dtype and np.abs(one[n].astype(np.float64) - other[n]).max() < 1e-6 for n in one
    )


def test_the_same_mean_as_in_the_open(scene: Scene, tmp_path: Path) -> None:
    result = scene.run()
    assert close(result.weights, scene.in_the_open(scene.members, tmp_path / "open"))
    record = result.rounds[0]
    assert list(record.sites) == list(scene.members)
    assert record.summed == {"num-examples": 25.0, "loss": [1.25, 5.0]}
    assert not any(report.metrics for report in record.sites.values())
    with Journal(scene.folder) as journal:
        assert journal.rounds() == result.rounds
    assert [event.site for event in scene.events if event.kind == "reply"][:5] == list(scene.members)


def test_nothing_that_leaves_a_site_tells_its_update(scene: Scene) -> None:
    on_disk: set[str] = set()
    scene.grid.sites["fir"] = spying(scene, on_disk)
    scene.run()
    assert on_disk == {"round.json", "attempt-0001.json", "state.json", "sum.npy"}
    for member in scene.members.values():
        update = member.train(scene.plan(1), scene.initial).weights
        for reply in member.said:
            if reply.metadata.message_type == "evaluate":
                continue
            assert list(reply.content) == ["arrays"]
            sent = b"".join(array.data for array in arrays_in(reply.content).values())
            # Neither its weights nor its examples, also where only one of them changed.
            assert update["w"].tobytes()[:8] not in sent
            assert b"num-examples" not in sent


@pytest.mark.parametrize("codec", ["none", "lossless", "fp16", "bf16"])
def test_a_site_that_was_given_other_weights_is_left_out(scene: Scene, codec: CodecDown) -> None:
    """Keys are made for the weights as sites read them, also where they were made coarser on the way."""

    def other(message: Message) -> Message | None:
        if message.metadata.message_type == "train":
            given = {name: array + 1 for name, array in scene.initial.items()}
            content = RecordDict({"arrays": write_down(given, codec), "plan": message.content["plan"]})
            message = Message(content, metadata=message.metadata)  # type: ignore[call-overload]
        return scene.members["birch"](message)

    scene.codec_down = codec
    scene.grid.sites["birch"] = other
    record = scene.run().rounds[0]
    assert record.refused == {"birch": "secure"}
    assert list(record.sites) == ["ash", "cedar", "elm", "fir"]


def spying(scene: Scene, seen: set[str]) -> Callable[[Message], Message | None]:
    member = scene.members["fir"]

    def answer(message: Message) -> Message | None:
        seen.update(path.name for path in (scene.folder / "open").rglob("*") if path.is_file())
        return member(message)

    return answer


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_one_in_five_drops_out(scene: Scene, tmp_path: Path, exchange: str) -> None:
    scene.members["cedar"].silent = {exchange}
    result = scene.run()
    left = [name for name in scene.members if name != "cedar"]
    is_in = exchange in ("train.confirm", "train.unmask")
    for record in result.rounds:
        assert ("cedar" in record.sites) == is_in
        assert record.missing == ({} if is_in else {"cedar": "late"})
    assert close(result.weights, scene.in_the_open(scene.members if is_in else left, tmp_path / "open"))


@pytest.mark.parametrize("exchange", EXCHANGES[1:])
def test_below_the_threshold_nothing_comes_out(scene: Scene, exchange: str) -> None:
    for name in ("cedar", "elm"):
        scene.members[name].silent = {exchange}
    with pytest.raises(RoundError, match="4 are needed"):
        scene.run()
    with Journal(scene.folder) as journal:
        assert journal.rounds() == []
    assert not [event for event in scene.events if event.kind == "round-end"]


def test_a_lost_answer_is_asked_for_again(scene: Scene) -> None:
    lost: list[str] = []

    def lose(message: Message, reply: Message) -> Message:
        kind = message.metadata.message_type
        if message.metadata.group_id == "1" and kind != "evaluate" and kind not in lost:
            lost.append(kind)
            return Message(Error(8, "agent-unreachable"), reply_to=message)
        return reply

    scene.members["birch"].forge = lose
    result = scene.run(settings=LoopSettings(rounds=2, quorum=5, deadline_s=60.0, retries=1, retry_wait_s=1))
    assert lost == list(EXCHANGES)
    assert list(result.rounds[0].sites) == list(scene.members)
    assert result.rounds[0].attempts == 1


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_crash_of_the_coordinator_changes_nothing(scene: Scene, tmp_path: Path, exchange: str) -> None:
    reference = Scene(type(scene.grid), scene.clock, scene.initial, tmp_path / "reference")
    expected = reference.run().weights
    for name, member in scene.members.items():
        door.attach(name, member)

    def kill(message: Message) -> Message:
        if message.metadata.message_type == exchange:
            raise Killed
        reply = scene.members["elm"](message)
        assert reply is not None
        return reply

    scene.grid.sites["elm"] = kill
    with pytest.raises(Killed):
        scene.run()
    scene.grid.sites["elm"] = scene.members["elm"]
    scene.grid.renumber(500)
    before = scene.members["ash"].trained
    result = scene.run()
    assert all(np.array_equal(result.weights[name], expected[name]) for name in expected)
    # What was signed is not asked for again; else everybody learns the same once more, and gives new keys.
    assert scene.members["ash"].trained - before == (1 if exchange == "train.unmask" else 2)
    assert result.rounds[0].sites["ash"].bytes_up > 0


def test_sites_that_forgot_after_all_was_signed(scene: Scene) -> None:
    """Too few are left to take the masks away: a new attempt begins, and is allowed over the same sites only."""

    def forgetting(message: Message) -> Message | None:
        if message.metadata.message_type == "train.unmask" and message.metadata.group_id == "1" and not forgotten:
            forgotten.extend(["elm", "fir"])
            for name in forgotten:
                scene.restart_site(name)
        return scene.members["ash"](message)

    forgotten: list[str] = []
    scene.grid.sites["ash"] = forgetting
    result = scene.run(settings=LoopSettings(rounds=2, quorum=5, deadline_s=60.0, retries=1, retry_wait_s=1))
    assert forgotten
    assert result.rounds[0].attempts == 2
    assert list(result.rounds[0].sites) == list(scene.members)


def test_no_second_sum_over_fewer_sites(scene: Scene) -> None:
    scene.run()
    # The operator goes back to before the first round and leaves one site out: the difference would be its update.
    with Journal(scene.folder) as journal:
        journal.roll_back(0)
    scene.grid.online = ["ash", "birch", "cedar", "elm"]
    with pytest.raises(RoundError, match="secure-set"):
        scene.run()
    scene.grid.online = list(scene.members)
    scene.run()


def test_a_site_that_does_not_keep_the_protocol_is_left_out(scene: Scene) -> None:
    def forged(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "train.shares":
            return Message(RecordDict({"arrays": arrays_with(b"{}")}), reply_to=message)
        return reply

    scene.members["birch"].forge = forged
    result = scene.run(settings=LoopSettings(rounds=2, quorum=3, deadline_s=60.0, quarantine_after=2))
    assert [record.refused for record in result.rounds] == [{"birch": "secure"}] * 2
    assert result.rounds[1].standing["birch"].until == 4


def test_keys_that_somebody_else_signed(scene: Scene) -> None:
    """A site that gives another's keys for its own is left out before anybody sees them."""
    stolen: list[RecordDict] = []

    def keep(message: Message, reply: Message) -> Message:
        stolen.append(reply.content)
        return reply

    def replay(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "train":
            return Message(RecordDict(dict(stolen[0])), reply_to=message)  # type: ignore[arg-type]
        return reply

    scene.members["ash"].forge, scene.members["birch"].forge = keep, replay
    assert scene.run().rounds[0].refused == {"birch": "secure"}


def test_a_sum_that_cannot_be_is_refused(scene: Scene) -> None:
    """One site sends noise for its masked update: nothing of the sum can be used, and nobody learns from it."""

    def noise(message: Message, reply: Message) -> Message:
        if message.metadata.message_type != "train.masked":
            return reply
        _, data = message_in(arrays_in(reply.content), masked=True)
        other = np.random.default_rng(0).bytes(len(data))
        return Message(RecordDict({"arrays": arrays_with(b"", other)}), reply_to=message)

    scene.members["birch"].forge = noise
    with pytest.raises(RoundError, match="do not add up"):
        scene.run()
    assert not (scene.folder / "open" / "00001" / "secure").exists()


def test_a_damaged_state_is_named(scene: Scene) -> None:
    scene.grid.sites["elm"] = lambda message: (
        (_ for _ in ()).throw(Killed)
        if "unmask" in str(message.metadata.message_type)
        else scene.members["elm"](message)
    )
    with pytest.raises(Killed):
        scene.run()
    state = scene.folder / "open" / "00001" / "secure" / "state.json"
    state.write_text(state.read_text()[:-40])
    with pytest.raises(StorageError, match="damaged"):
        scene.run()


@pytest.mark.parametrize("strategy", ["fedmedian", "fedtrimmedavg", "krum"])
def test_strategies_that_compare_single_updates(scene: Scene, strategy: str) -> None:
    with pytest.raises(PlanError, match=r"single sites.*fedavg"):
        scene.run(strategy)
    assert not scene.grid.sent


@pytest.mark.parametrize("strategy", ["fedprox", "fedavgm", "fedadam", "fedyogi"])
def test_strategies_that_go_on_from_a_mean(scene: Scene, tmp_path: Path, strategy: str) -> None:
    weights = scene.run(strategy).weights
    scene.secure, scene.folder = False, tmp_path / "open"
    plain = scene.run(strategy).weights
    # An adaptive step divides by the square root of what it has seen: a small error grows there.
    assert all(np.abs(weights[n].astype(np.float64) - plain[n]).max() < 1e-4 for n in plain)


def test_weightings_and_late_updates_do_not_go_with_it(scene: Scene) -> None:
    with pytest.raises(PlanError, match="weight by examples"):
        scene.run(weighting=make_weighting("trust"))
    with pytest.raises(PlanError, match="set late to refuse"):
        scene.run(settings=LoopSettings(rounds=2, quorum=3, late="use"))


def test_an_update_that_does_not_fit_is_told_of(scene: Scene) -> None:
    scene.members["birch"].target = 1e6
    assert scene.run().rounds[0].refused == {"birch": "secure-range"}
