"""Buffered rounds: nobody waits for the slowest, nothing that was sent is lost, and bad replies go no further."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from wardround.errors import Interrupted, PlanError, RoundError
from wardround.server.bases import BASES, Bases
from wardround.server.grids import ParcelGrid
from wardround.server.journal import Journal, read_open, read_rounds
from wardround.server.rounds import Event, LoopSettings, RunResult, run_rounds
from wardround.strategies.catalogue import make_strategy
from wardround.strategies.codecs.record import read_down, write_up
from wardround.strategies.contract import PLAN, Weights, arrays_in, weights_from_record, weights_to_record
from wardround.strategies.plan import RoundPlan

ROUNDS = 8
Site = Callable[[Message], Message | None]


class Slow:
    """A site that answers so many seconds after it was asked."""

    def __init__(self, site: Any, clock: Any, seconds: float, ready: dict[tuple[int, int], float]) -> None:
        self.site, self.clock, self.seconds, self.ready = site, clock, seconds, ready

    def __call__(self, message: Message) -> Message | None:
        if message.metadata.message_type == "evaluate":
            return self.site(message)
        round = RoundPlan.from_record(message.content.config_records[PLAN]).round
        # A coordinator that is started again finds its sites at work, as they were.
        ready = self.ready.setdefault((id(self.site), round), self.clock.seconds + self.seconds)
        return self.site(message) if self.clock.seconds >= ready else None


class Scene:
    """Three sites that answer within a second, and one that takes four times as long."""

    def __init__(self, toy_grid: Any, learner: Any, clock: Any, initial: Weights, folder: Path) -> None:
        self.toy_grid, self.clock, self.initial, self.folder = toy_grid, clock, initial, folder / "journal"
        self.ready: dict[tuple[int, int], float] = {}
        self.learners = {name: learner(target) for name, target in zip("abcd", (1.0, 2.0, 3.0, 8.0), strict=True)}
        self.sites: dict[str, Site] = {
            name: Slow(site, clock, 4.0 if name == "d" else 1.0, self.ready) for name, site in self.learners.items()
        }
        self.settings = LoopSettings(rounds=ROUNDS, quorum=2, deadline_s=300.0)
        self.options: dict[str, float] = {"buffer": 3}
        self.events: list[Event] = []

    def plan(self, number: int) -> RoundPlan:
        return RoundPlan(run="toy", round=number, rounds=ROUNDS, seed=11, model="toy", labels=2)

    def run(self, strategy: str = "fedbuff", **changes: Any) -> RunResult:
        self.grid = self.toy_grid(self.sites)
        pace = replace(self.clock.pace(), first=0.25, longest=0.25)
        with Journal(self.folder) as journal:
            return run_rounds(
                changes.pop("front", lambda grid: grid)(self.grid),
                make_strategy(strategy, **(self.options if strategy == "fedbuff" else {})),
                changes.pop("plans", self.plan),
                self.initial,
                journal,
                changes.pop("settings", self.settings),
                site_name=self.grid.name_of,
                on_event=changes.pop("on_event", self.events.append),
                pace=pace,
                **changes,
            )

    def rounds_of(self, name: str) -> list[int]:
        return [plan.round for plan in self.learners[name].plans]


@pytest.fixture
def scene(toy_grid: Any, learner: Any, clock: Any, initial: Weights, tmp_path: Path) -> Scene:
    return Scene(toy_grid, learner, clock, initial, tmp_path)


def same(one: Weights, other: Weights) -> bool:
    return list(one) == list(other) and all(one[n].tobytes() == other[n].tobytes() for n in one)


def test_nobody_waits_for_the_slowest(scene: Scene) -> None:
    result = scene.run()
    assert scene.clock.seconds < ROUNDS * 1.5
    assert [record.round for record in result.rounds] == list(range(1, ROUNDS + 1))
    # Asked in round 1, the slow site worked while others closed rounds; its update then counted as late.
    late = {record.round: record.late["d"] for record in result.rounds if "d" in record.late}
    number, report = min(late.items())
    assert number > 2
    assert report.round == 1
    assert report.report is not None
    assert result.rounds[0].outstanding == {"d": 1}
    assert set(result.evaluation) == set("abcd")


def test_weights_in_pieces_make_no_difference(scene: Scene) -> None:
    whole = scene.run()
    scene.folder, scene.clock.seconds = scene.folder.parent / "pieces", 0.0
    scene.ready.clear()
    pieces = scene.run(front=ParcelGrid)
    assert same(pieces.weights, whole.weights)
    assert [record.sites.keys() for record in pieces.rounds] == [record.sites.keys() for record in whole.rounds]


def test_synchronous_rounds_do(scene: Scene) -> None:
    scene.run("fedavg", settings=replace(scene.settings, quorum=4))
    assert scene.clock.seconds >= ROUNDS * 4


def test_every_site_is_asked_once_a_round(scene: Scene) -> None:
    scene.run()
    for name in "abcd":
        trained = scene.rounds_of(name)[:-1]  # the last is the evaluation
        assert trained == sorted(set(trained))


def test_the_step_is_the_papers(scene: Scene) -> None:
    zero = {name: np.zeros_like(array) for name, array in scene.initial.items()}
    scene.initial = zero
    closed: list[int] = []
    with pytest.raises(Interrupted):
        scene.run(
            on_event=lambda event: closed.append(event.round) if event.kind == "round-end" else None,
            stop=lambda: 1 in closed,
        )
    with Journal(scene.folder) as journal:
        # A third of the way to 1, 2 and 3, each with a share of a third.
        assert journal.weights(1)["w"] == pytest.approx(2 / 3, rel=1e-6)


def test_a_late_update_is_measured_from_what_its_site_was_given(scene: Scene) -> None:
    scene.initial = {name: np.zeros_like(array) for name, array in scene.initial.items()}
    scene.options = {"buffer": 1}
    scene.sites = {"a": scene.sites["a"], "d": Slow(scene.learners["d"], scene.clock, 1.5, scene.ready)}
    scene.settings = replace(scene.settings, quorum=1)
    closed: list[int] = []
    with pytest.raises(Interrupted):
        scene.run(
            on_event=lambda event: closed.append(event.round) if event.kind == "round-end" else None,
            stop=lambda: 2 in closed,
        )
    with Journal(scene.folder) as journal:
        first, second = (float(journal.weights(number)["w"].flat[0]) for number in (1, 2))
    assert first == pytest.approx(1 / 3)
    # d went from 0 a third of the way to 8, one round ago: 8/3 · (1 + 1)^-½, on top of what a did.
    assert second == pytest.approx(1 / 3 + 8 / 3 / np.sqrt(2), rel=1e-6)


@pytest.mark.parametrize("looks", [15, 40, 77, 120, 171])
def test_a_run_that_is_stopped_anywhere_ends_with_the_same_bits(scene: Scene, tmp_path: Path, looks: int) -> None:
    whole = scene.run()
    scene.folder, scene.clock.seconds = tmp_path / "cut", 0.0
    scene.ready.clear()
    left = iter(range(looks))
    with pytest.raises(Interrupted):
        scene.run(stop=lambda: next(left, None) is None)
    again = scene.run()
    assert same(again.weights, whole.weights)
    for one, other in zip(again.rounds, whole.rounds, strict=True):
        assert (one.sites.keys(), one.late.keys(), one.shares) == (other.sites.keys(), other.late.keys(), other.shares)
        assert one.outstanding == other.outstanding


def test_who_was_at_work_is_asked_again_for_the_same_round_from_the_same_weights(scene: Scene) -> None:
    closed: list[int] = []
    with pytest.raises(Interrupted):
        scene.run(
            on_event=lambda event: closed.append(event.round) if event.kind == "round-end" else None,
            stop=lambda: 3 in closed,
        )
    asked_before = next(m for m in scene.grid.sent if scene.grid.name_of(m.metadata.dst_node_id) == "d")
    scene.run()
    asked_after = next(m for m in scene.grid.sent if scene.grid.name_of(m.metadata.dst_node_id) == "d")
    assert asked_after.metadata.group_id == asked_before.metadata.group_id == "1"
    one, other = (m.content["arrays"] for m in (asked_before, asked_after))
    assert {name: array.data for name, array in one.items()} == {name: array.data for name, array in other.items()}


def test_what_sites_were_given_is_kept_no_longer_than_somebody_works_on_it(scene: Scene) -> None:
    kept: list[int] = []

    def look(event: Event) -> None:
        if event.kind == "round-end":
            kept.append(len(list((scene.folder / BASES).glob("*.safetensors"))))

    result = scene.run(on_event=look)
    assert kept == [len(set(record.outstanding.values())) for record in result.rounds]
    assert min(kept) == 1


def test_what_was_given_is_damaged_and_its_site_is_asked_anew(scene: Scene) -> None:
    closed: list[int] = []
    with pytest.raises(Interrupted):
        scene.run(
            on_event=lambda event: closed.append(event.round) if event.kind == "round-end" else None,
            stop=lambda: 3 in closed,
        )
    (path,) = (scene.folder / BASES).glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    result = scene.run()
    assert len(result.rounds) == ROUNDS
    first = next(m for m in scene.grid.sent if scene.grid.name_of(m.metadata.dst_node_id) == "d")
    assert first.metadata.group_id == "4"


@pytest.mark.parametrize("moment", ["before the answer", "after it"])
def test_what_was_given_is_damaged_while_somebody_works_on_it(scene: Scene, moment: str) -> None:
    """Nobody can tell from where that update moved: its site is asked anew, and the run goes on."""
    expected = "round-end" if moment == "before the answer" else "late"
    damaged: list[int] = []

    def spoil(event: Event) -> None:
        paths = list((scene.folder / BASES).glob("*.safetensors"))
        if event.kind == expected and paths and not damaged:
            damaged.append(int(paths[0].name.partition("-")[0]))
            paths[0].write_bytes(b"damaged")

    result = scene.run(on_event=spoil)
    assert damaged
    assert len(result.rounds) == ROUNDS
    assert ("d", damaged[0]) not in {
        (site, late.round) for record in result.rounds for site, late in record.late.items()
    }
    assert scene.rounds_of("d")[0] == damaged[0]
    assert len(scene.rounds_of("d")) > 1
    assert "base-damaged" in {record.missing.get("d") for record in result.rounds}


def test_an_error_is_told_as_that_where_what_was_given_is_damaged(scene: Scene) -> None:
    honest = scene.learners["d"]

    def failing(message: Message) -> Message | None:
        if message.metadata.message_type == "evaluate":
            return honest(message)
        return Message(Error(code=0, reason="plan-model"), reply_to=message)

    scene.sites["d"] = Slow(failing, scene.clock, 4.0, scene.ready)

    def spoil(event: Event) -> None:
        for path in (scene.folder / BASES).glob("*.safetensors") if event.kind == "round-end" else ():
            path.write_bytes(b"damaged")

    result = scene.run(on_event=spoil)
    told = {record.refused.get("d") or record.missing.get("d") for record in result.rounds}
    assert told <= {"plan-model", None}
    assert "plan-model" in told


def test_a_bad_reply_is_refused_and_its_site_waits_for_the_next_round(scene: Scene, initial: Weights) -> None:
    honest = scene.learners["a"]

    def broken(message: Message) -> Message | None:
        if message.metadata.message_type == "evaluate":
            return honest(message)
        return honest.answer(
            message,
            {n: np.full_like(a, np.nan) if a.dtype.kind == "f" else a for n, a in initial.items()},
            {"num-examples": 1.0},
        )

    scene.sites["a"] = broken
    result = scene.run(settings=replace(scene.settings, quarantine_after=2, quarantine_rounds=2))
    assert {record.refused.get("a") for record in result.rounds} == {"not-finite", None}
    assert "a" not in {site for record in result.rounds for site in (*record.sites, *record.late)}
    assert result.rounds[1].standing["a"].until == 4
    assert "a" not in result.rounds[2].refused


def test_the_same_weights_a_second_time_are_refused(scene: Scene) -> None:
    honest, memory = scene.learners["b"], {}

    def lazy(message: Message) -> Message:
        if message.metadata.message_type == "evaluate":
            return honest(message)
        memory.setdefault("weights", honest(message))
        return Message(memory["weights"].content, reply_to=message)

    scene.sites["b"] = lazy
    result = scene.run()
    assert [record.refused.get("b") for record in result.rounds][1:4] == ["replayed"] * 3


def test_an_answer_that_got_lost_is_asked_for_again(scene: Scene) -> None:
    honest, lost = scene.sites["a"], [1, 1]

    def killed(message: Message) -> Message | None:
        if lost and message.metadata.message_type == "train":
            lost.pop()
            return Message(Error(ErrorCode.CLIENT_APP_CRASHED, "gone"), reply_to=message)
        return honest(message)

    scene.sites["a"] = killed
    result = scene.run(settings=replace(scene.settings, retries=2, retry_wait_s=0.5))
    assert "a" in {*result.rounds[0].sites, *result.rounds[1].sites}
    assert not lost


def test_a_round_closes_at_its_deadline_with_a_quorum_and_not_below(scene: Scene) -> None:
    scene.sites = {
        name: Slow(site, scene.clock, 1.0 if name in "ab" else 1e6, scene.ready)
        for name, site in scene.learners.items()
    }
    result = scene.run(settings=replace(scene.settings, deadline_s=20.0))
    assert all(set(record.sites) == {"a", "b"} for record in result.rounds)
    scene.folder = scene.folder.parent / "more"
    scene.ready.clear()
    with pytest.raises(RoundError, match="3 are needed"):
        scene.run(settings=replace(scene.settings, deadline_s=20.0, quorum=3))
    view = read_open(scene.folder)
    assert view is not None
    assert set(view.answered) == {"a", "b"}
    assert read_rounds(scene.folder) == []


def test_who_is_too_late_is_asked_anew(scene: Scene) -> None:
    scene.options = {"buffer": 3, "max_staleness": 2}
    result = scene.run()
    assert all("d" not in record.late for record in result.rounds)
    asked = [m.metadata.group_id for m in scene.grid.sent if scene.grid.name_of(m.metadata.dst_node_id) == "d"]
    assert asked[:3] == ["1", "4", "7"]


def test_no_more_sites_work_at_a_time_than_asked_for(scene: Scene) -> None:
    scene.options = {"buffer": 1, "concurrency": 2}
    at_work: list[int] = []

    def look(event: Event) -> None:
        if event.kind == "round-end":
            at_work.append(len(scene.grid._waiting))

    result = scene.run(on_event=look, settings=replace(scene.settings, quorum=1))
    assert max(at_work) <= 2
    # Nobody is left out for good.
    assert {site for record in result.rounds for site in (*record.sites, *record.late)} >= {"a", "b", "c"}


def test_a_late_answer_under_a_codec_is_read_by_what_its_site_was_given(scene: Scene, tmp_path: Path) -> None:
    """Written as changes without loss, nothing differs; also after a start in the middle."""
    whole = scene.run()

    class Coded:
        def __init__(self, site: Any) -> None:
            self.site = site

        def __call__(self, message: Message) -> Message:
            given = read_down(arrays_in(message.content), "lossless")
            # One content is sent to many: it is not changed.
            content = RecordDict({PLAN: message.content[PLAN], "arrays": weights_to_record(given)})
            reply = self.site(Message(content, metadata=message.metadata))
            if message.metadata.message_type == "train":
                moved = weights_from_record(arrays_in(reply.content))
                reply.content["arrays"] = write_up(moved, given, "lossless", 1.0)
            return reply

    scene.folder, scene.clock.seconds = tmp_path / "coded", 0.0
    scene.ready.clear()
    for slow in scene.sites.values():
        assert isinstance(slow, Slow)
        slow.site = Coded(slow.site)

    def plans(number: int) -> RoundPlan:
        return scene.plan(number).model_copy(update={"codec": "lossless", "codec_down": "lossless"})

    left = iter(range(90))
    with pytest.raises(Interrupted):
        scene.run(plans=plans, stop=lambda: next(left, None) is None)
    assert same(scene.run(plans=plans).weights, whole.weights)


def test_masked_updates_cannot_be_buffered(scene: Scene) -> None:
    def secure(number: int) -> RoundPlan:
        return scene.plan(number).model_copy(update={"secure": True})

    with pytest.raises(PlanError, match="secure"):
        scene.run(plans=secure)


def test_bases_are_read_as_they_were_written(tmp_path: Path, initial: Weights) -> None:
    bases = Bases(tmp_path)
    bases.keep(3, initial)
    bases.keep(4, initial)
    found = Bases(tmp_path).weights(3)
    assert found is not None
    assert same({name: found[name] for name in initial}, initial)
    assert bases.weights(5) is None
    bases.drop_all_but({4})
    assert bases.weights(3) is None
    assert bases.weights(4) is not None
