"""What the round loop makes of sites that fail, come late, misbehave or repeat themselves, and of its own death."""

import gc
import os
import signal
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message
from flwr.serverapp.strategy import FedAvg

from wardround.errors import Interrupted, RoundError
from wardround.server.journal import Journal, LateReport, Standing, read_open, read_rounds
from wardround.server.rounds import Event, LoopSettings, RunResult, run_rounds
from wardround.strategies.catalogue import make_strategy
from wardround.strategies.contract import ARRAYS, PLAN, Weights, digest, weights_from_record
from wardround.strategies.plan import RoundPlan

Plans = Callable[[int], RoundPlan]
Act = Callable[[Message], Message | None]


class Scene:
    """Three sites that learn, and a run over them."""

    def __init__(  # noqa: PLR0917
        self, toy_grid: Any, learner: Any, clock: Any, initial: Weights, plans: Plans, folder: Path
    ) -> None:
        self.learners = {"east": learner(5.0, 2), "north": learner(-2.0, 3), "south": learner(1.0, 1)}
        self.grid = toy_grid(self.learners)
        self.clock, self.initial, self.plans = clock, initial, plans
        self.folder = folder / "journal"
        self.settings = LoopSettings(rounds=4, quorum=2, deadline_s=60.0)
        self.events: list[Event] = []

    def run(self, strategy: str = "fedavg", **changes: Any) -> RunResult:
        with Journal(self.folder) as journal:
            return run_rounds(
                self.grid,
                make_strategy(strategy),
                self.plans,
                self.initial,
                journal,
                replace(self.settings, **changes),
                site_name=self.grid.name_of,
                on_event=self.events.append,
                pace=self.clock.pace(),
            )

    def asked(self, site: str, since: int = 0) -> list[int]:
        """The rounds in which a site was asked to train."""
        return [
            round_of(message)
            for message in self.grid.sent[since:]
            if message.metadata.message_type == "train" and message.metadata.dst_node_id == self.grid.id_of(site)
        ]


@pytest.fixture
def scene(  # noqa: PLR0917
    toy_grid: Any, learner: Any, clock: Any, initial: Weights, plans: Plans, tmp_path: Path
) -> Scene:
    return Scene(toy_grid, learner, clock, initial, plans, tmp_path)


def round_of(message: Message) -> int:
    return RoundPlan.from_record(message.content.config_records[PLAN]).round


def same(one: Weights, other: Weights) -> bool:
    return all(one[n].dtype == other[n].dtype and one[n].tobytes() == other[n].tobytes() for n in one | other)


def failing(act: Act, when: Callable[[int], bool], error: Error) -> Act:
    """A site that answers with an error instead of learning, in some rounds or some of its turns."""
    turns = iter(range(1, 10_000))

    def site(message: Message) -> Message | None:
        if message.metadata.message_type == "train" and when(next(turns)):
            return Message(error, reply_to=message)
        return act(message)

    return site


def slow(act: Act, clock: Any, seconds: Callable[[int], float]) -> Act:
    """A site that takes so many seconds to train in a round."""
    began: dict[str, float] = {}

    def site(message: Message) -> Message | None:
        if message.metadata.message_type == "train":
            since = began.setdefault(message.metadata.message_id, clock.seconds)
            if clock.seconds < since + seconds(round_of(message)):
                return None
        return act(message)

    return site


# A round that is not closed is tried again.


def test_a_round_is_tried_again_and_only_who_failed_is_asked_again(scene: Scene) -> None:
    whole = scene.run()
    scene.folder = scene.folder.with_name("failing")
    sent = len(scene.grid.sent)
    scene.grid.sites["east"] = failing(scene.learners["east"], lambda turn: turn in (2, 3), Error(2, "x"))
    result = scene.run(quorum=3, retries=2)
    assert same(result.weights, whole.weights)
    assert scene.asked("east", sent) == [1, 2, 2, 2, 3, 4]
    assert scene.asked("north", sent) == [1, 2, 3, 4]
    assert [record.attempts for record in result.rounds] == [1, 3, 1, 1]
    assert [(event.round, event.metrics["left"]) for event in scene.events if event.kind == "retry"] == [(2, 2), (2, 1)]
    assert scene.clock.seconds == pytest.approx(2 * 30)


def test_all_failed_is_not_completed_however_often(scene: Scene) -> None:
    for name in scene.learners:
        scene.grid.sites[name] = failing(scene.learners[name], lambda turn: True, Error(2, "x"))
    with pytest.raises(RoundError, match="0 of 3 replies"):
        scene.run(retries=3)
    assert read_rounds(scene.folder) == []
    assert scene.asked("east") == [1, 1, 1, 1]
    view = read_open(scene.folder)
    assert view is not None
    assert (view.round, view.answered, view.attempts) == (1, (), 4)


def test_sites_that_come_back_between_two_attempts(scene: Scene) -> None:
    scene.grid.online = ["north"]
    ids = scene.grid.get_node_ids
    scene.grid.get_node_ids = lambda: (
        (setattr(scene.grid, "online", list(scene.learners)) if scene.clock.seconds > 70 else None) or ids()
    )
    assert len(scene.run(retries=1).rounds) == 4
    assert [event.kind for event in scene.events][:2] == ["retry", "round-start"]


def test_a_reply_to_the_first_attempt_counts_in_the_second(scene: Scene) -> None:
    whole = scene.run()
    scene.folder = scene.folder.with_name("slow")
    sent = len(scene.grid.sent)
    scene.grid.sites["east"] = slow(scene.learners["east"], scene.clock, lambda number: 100.0 if number == 2 else 0.0)
    result = scene.run(quorum=3, retries=3)
    assert same(result.weights, whole.weights)
    assert scene.asked("east", sent) == [1, 2, 3, 4]
    assert [record.attempts for record in result.rounds] == [1, 2, 1, 1]


def test_an_evaluation_that_fails_is_tried_again(scene: Scene) -> None:
    turns = iter(range(100))

    def no_scores(message: Message) -> Message:
        if message.metadata.message_type == "evaluate" and next(turns) < 3:
            return Message(Error(2, "x"), reply_to=message)
        return scene.learners[scene.grid.name_of(message.metadata.dst_node_id)](message)  # type: ignore[no-any-return]

    for name in scene.learners:
        scene.grid.sites[name] = no_scores
    assert set(scene.run(retries=1).evaluation) == {"east", "north", "south"}


def test_nobody_is_there_to_evaluate_a_round_on_the_way(scene: Scene) -> None:
    """The round is closed and the run goes on; only the last scores are needed."""
    ids = scene.grid.get_node_ids
    closed = lambda: len(read_rounds(scene.folder)) if (scene.folder / "rounds").exists() else 0  # noqa: E731
    left = 0.0

    def away_after_the_second() -> list[int]:
        nonlocal left
        if closed() == 2:
            left = left or scene.clock.seconds + 70.0
        return [] if closed() == 2 and scene.clock.seconds < left else ids()  # type: ignore[no-any-return]

    scene.grid.get_node_ids = away_after_the_second
    result = scene.run(evaluate_every=1, retries=1)
    assert [record.evaluation is not None for record in result.rounds] == [True, False, True, True]


def test_the_last_scores_wait_for_somebody_who_may_give_them(scene: Scene) -> None:
    """That others are online, whose updates were refused, does not help."""
    scene.grid.sites["east"] = failing(scene.learners["east"], lambda turn: True, Error(2, "x"))
    ids = scene.grid.get_node_ids
    left = 0.0

    def only_east_for_a_while() -> list[int]:
        nonlocal left
        if len(read_rounds(scene.folder)) < 4:
            return ids()  # type: ignore[no-any-return]
        left = left or scene.clock.seconds + 50.0
        return ids() if scene.clock.seconds >= left else [scene.grid.id_of("east")]  # type: ignore[no-any-return]

    scene.grid.get_node_ids = only_east_for_a_while
    assert set(scene.run().evaluation) == {"north", "south"}


# Absence is no misbehaviour.


@pytest.mark.parametrize("reason", ["paused", "leaving", "agent-unreachable"])
def test_a_site_that_does_not_take_part_is_missing(scene: Scene, reason: str) -> None:
    scene.grid.sites["east"] = failing(scene.learners["east"], lambda turn: turn < 4, Error(100, reason))
    records = scene.run(quarantine_after=1).rounds
    assert [dict(record.missing) for record in records] == [{"east": reason}] * 3 + [{}]
    assert [dict(record.refused) for record in records] == [{}] * 4
    assert all(record.standing == {} for record in records)


def test_what_a_sites_gate_says_is_in_the_journal_and_is_its_right(scene: Scene) -> None:
    scene.grid.sites["east"] = failing(scene.learners["east"], lambda turn: True, Error(100, "plan-updates"))
    records = scene.run(quarantine_after=1).rounds
    assert [dict(record.refused) for record in records] == [{"east": "plan-updates"}] * 4
    assert all(record.standing == {} for record in records)


# Quarantine.


def test_quarantine_and_the_way_back(scene: Scene) -> None:
    plans = scene.plans
    scene.plans = lambda n: plans(min(n, 4)).model_copy(update={"round": n, "rounds": 8})
    scene.grid.sites["east"] = failing(scene.learners["east"], lambda turn: turn in (2, 3, 4), Error(2, "x"))
    result = scene.run(rounds=8, quarantine_after=2, quarantine_rounds=1)
    # Asked and refused in 2 and 3, out in 4, on probation and refused in 5, out in 6, good from 7 on.
    assert scene.asked("east") == [1, 2, 3, 5, 7, 8]
    assert [record.standing.get("east") for record in result.rounds] == [
        None,
        Standing(1, 0),
        Standing(0, 4),
        Standing(0, 4),
        Standing(0, 6),
        Standing(0, 6),
        None,
        None,
    ]
    assert "east" in result.evaluation


def test_quarantine_survives_a_restart(scene: Scene) -> None:
    scene.grid.sites["east"] = failing(scene.learners["east"], lambda turn: True, Error(2, "x"))
    scene.grid.sites["north"] = failing(scene.learners["north"], lambda turn: turn == 2, Error(2, "x"))
    with pytest.raises(RoundError):
        scene.run(quarantine_after=1, quarantine_rounds=5)
    assert read_rounds(scene.folder)[-1].standing == {"east": Standing(0, 6)}
    result = scene.run(quarantine_after=1, quarantine_rounds=5)
    assert scene.asked("east") == [1]
    assert set(result.evaluation) == {"north", "south"}
    # Who switches it off asks everybody again.
    assert [record.round for record in result.rounds] == [1, 2, 3, 4]


def test_a_site_in_quarantine_is_not_counted_for_the_quorum(scene: Scene) -> None:
    scene.grid.sites["east"] = failing(scene.learners["east"], lambda turn: True, Error(2, "x"))
    scene.grid.sites["north"] = lambda message: None if round_of(message) == 2 else scene.learners["north"](message)
    scene.settings = replace(scene.settings, quarantine_after=1, quarantine_rounds=3)
    with pytest.raises(RoundError, match="1 of 2 replies"):
        scene.run()
    scene.grid.online = ["east", "south"]
    with pytest.raises(RoundError, match="quarantine"):
        scene.run()


# Late replies.


def test_by_default_nobody_looks_for_a_late_reply(scene: Scene) -> None:
    scene.grid.sites["east"] = slow(scene.learners["east"], scene.clock, lambda number: 70.0 if number == 1 else 0.0)
    records = scene.run().rounds
    assert [dict(record.missing) for record in records] == [{"east": "late"}, {}, {}, {}]
    assert all(record.late == {} for record in records)
    assert scene.asked("east") == [1, 2, 3, 4]


@pytest.fixture
def late(scene: Scene) -> Scene:
    """East needs 75 s in round 1, south 10 s in every round: with 60 s a round, east's update comes in round 3."""
    scene.grid.sites["east"] = slow(scene.learners["east"], scene.clock, lambda number: 75.0 if number == 1 else 0.0)
    scene.grid.sites["south"] = slow(scene.learners["south"], scene.clock, lambda number: 10.0)
    return scene


def test_a_late_reply_counts_once_with_the_weight_of_its_staleness(late: Scene) -> None:
    result = late.run(late="use", staleness_exponent=1.0)
    assert [dict(record.missing) for record in result.rounds] == [
        {"east": "late"},
        {"east": "busy"},
        {"east": "busy"},
        {},
    ]
    assert [set(record.late) for record in result.rounds] == [set(), set(), {"east"}, set()]
    entry = result.rounds[2].late["east"]
    # Two rounds late: its 2 examples weigh 2 · (1 + 2)⁻¹.
    assert (entry.round, entry.code) == (1, "")
    assert entry.weight == pytest.approx(2 / 3)
    assert late.asked("east") == [1, 4]
    assert [(event.round, event.site) for event in late.events if event.kind == "late"] == [(3, "east")]


def test_the_mean_with_a_late_update_by_hand(late: Scene) -> None:
    late.initial = {"w": np.array([0.0], np.float32)}
    result = late.run(late="use", staleness_exponent=0.5)
    with Journal(late.folder, keep=4) as journal:
        w2, w3 = journal.weights(2)["w"][0], journal.weights(3)["w"][0]
    # In round 3 a site moves a fifth of the way: north to -2, south to 1. East moved a third of the way from 0 to 5.
    north, south, east = w2 + (-2 - w2) / 5, w2 + (1 - w2) / 5, 5 / 3
    n_east = 2 * 3**-0.5
    assert w3 == pytest.approx((3 * north + south + n_east * east) / (4 + n_east), rel=1e-5)
    assert result.rounds[2].late["east"].weight == pytest.approx(n_east)


def test_a_late_reply_that_breaks_the_contract_is_refused(late: Scene, learner: Any) -> None:
    clean = late.run(late="use", quorum=2)
    act = late.grid.sites["east"]

    def spoilt(message: Message) -> Message | None:
        reply = act(message)
        if reply is None or message.metadata.message_type == "evaluate" or round_of(message) > 1:
            return reply
        return learner.answer(message, {"w": np.zeros(1)}, {"num-examples": 1.0})  # type: ignore[no-any-return]

    late.folder = late.folder.with_name("spoilt")
    late.clock.seconds = 0.0
    late.grid.sites["east"] = spoilt
    result = late.run(late="use", quarantine_after=5)
    assert result.rounds[2].late == {"east": LateReport(1, 0.0, "names")}
    assert result.rounds[2].standing == {"east": Standing(1, 0)}
    assert not same(result.weights, clean.weights)


def test_a_site_that_is_too_late_is_asked_anew(late: Scene) -> None:
    result = late.run(late="use", max_staleness=1)
    assert late.asked("east") == [1, 3, 4]
    assert all(record.late == {} for record in result.rounds)


def test_too_few_free_sites_ask_the_busy_ones_as_well(late: Scene) -> None:
    # With a quorum of one, north alone is enough, and east is left in peace.
    late.grid.sites["east"] = slow(late.learners["east"], late.clock, lambda number: 500.0 if number == 1 else 0.0)
    late.grid.online = ["east", "north"]
    result = late.run(late="use", quorum=1)
    assert late.asked("east") == [1]
    late.folder = late.folder.with_name("both")
    sent = len(late.grid.sent)
    late.grid.sites["south"] = late.learners["south"]
    late.grid.online = ["east", "north", "south"]
    ids = late.grid.get_node_ids

    def leaving() -> list[int]:
        late.grid.online = ["east", "north", "south"] if len(read_rounds(late.folder)) < 1 else ["east", "north"]
        return ids()  # type: ignore[no-any-return]

    late.grid.get_node_ids = leaving
    result = late.run(late="use", quorum=2)
    # South has gone: round 2 needs east, whose update of round 1 is forgone.
    assert late.asked("east", sent) == [1, 2, 3, 4]
    assert all(record.late == {} for record in result.rounds)


# Going back, and going on.


def test_after_rolling_back_a_run_goes_on_to_the_same_end(scene: Scene) -> None:
    whole = scene.run("fedadam")
    with Journal(scene.folder) as journal:
        journal.roll_back(2)
    sent = len(scene.grid.sent)
    again = scene.run("fedadam")
    assert scene.asked("east", sent) == [3, 4]
    assert same(again.weights, whole.weights)


def test_who_was_chosen_before_a_stop_is_chosen_after_it(scene: Scene) -> None:
    def run(stop: Callable[[], bool] = lambda: False) -> RunResult:
        with Journal(scene.folder) as journal:
            return run_rounds(
                scene.grid,
                FedAvg(fraction_train=0.7, min_train_nodes=2, min_available_nodes=2, configrecord_key=PLAN),
                scene.plans,
                scene.initial,
                journal,
                scene.settings,
                site_name=scene.grid.name_of,
                on_event=scene.events.append,
                stop=stop,
                pace=scene.clock.pace(),
            )

    whole = run()
    chosen = [set(record.sites) for record in whole.rounds]
    for replies in range(1, 8):
        scene.folder = scene.folder.with_name(f"stopped-{replies}")
        scene.events.clear()
        with pytest.raises(Interrupted):
            run(lambda replies=replies: sum(event.kind == "reply" for event in scene.events) >= replies)
        scene.grid.renumber(900 - 10 * replies)
        resumed = run()
        assert [set(record.sites) for record in resumed.rounds] == chosen
        assert same(resumed.weights, whole.weights)


# The same update twice.


def test_a_replayed_update_is_refused(scene: Scene, learner: Any) -> None:
    kept: list[Weights] = []

    def replaying(message: Message) -> Message:
        reply = scene.learners["east"](message)
        if message.metadata.message_type == "evaluate":
            return reply  # type: ignore[no-any-return]
        kept.append(weights_from_record(reply.content.array_records[ARRAYS]))
        # Other scalars beside the same weights make no other update of it.
        return learner.answer(message, kept[0], {"num-examples": float(len(kept))})  # type: ignore[no-any-return]

    scene.grid.sites["east"] = replaying
    records = scene.run().rounds
    assert [dict(record.refused) for record in records] == [{}] + [{"east": "replayed"}] * 3


def test_who_has_learnt_nothing_replays_nothing(scene: Scene, learner: Any) -> None:
    for name in scene.learners:
        scene.grid.sites[name] = lambda message: learner.answer(
            message,
            weights_from_record(message.content.array_records[ARRAYS])
            if message.metadata.message_type == "train"
            else None,
            {"num-examples": 1.0},
        )
    assert all(set(record.sites) == set(scene.learners) for record in scene.run().rounds)


def test_who_has_learnt_nothing_and_is_late_replays_nothing(late: Scene, learner: Any) -> None:
    def idle(message: Message) -> Message:
        is_train = message.metadata.message_type == "train"
        weights = weights_from_record(message.content.array_records[ARRAYS]) if is_train else None
        return learner.answer(message, weights, {"num-examples": 1.0})  # type: ignore[no-any-return]

    late.grid.sites["south"] = slow(idle, late.clock, lambda number: 10.0)
    late.grid.sites["east"] = slow(idle, late.clock, lambda number: 75.0 if number == 1 else 0.0)
    result = late.run(late="use", quarantine_after=1)
    codes = [entry.code for record in result.rounds for entry in record.late.values()]
    assert codes == [""]
    assert all(record.standing == {} for record in result.rounds)


@pytest.mark.parametrize(
    ("field", "value", "code"), [("group_id", "1", "other-round"), ("message_type", "query", "other-type")]
)
def test_a_reply_that_was_written_for_another_message(scene: Scene, field: str, value: str, code: str) -> None:
    def mixed_up(message: Message) -> Message:
        reply = scene.learners["east"](message)
        if message.metadata.message_type == "train":
            reply.metadata.__dict__[f"_{field}"] = value
        return reply  # type: ignore[no-any-return]

    scene.grid.sites["east"] = mixed_up
    refused = [dict(record.refused) for record in scene.run().rounds]
    assert refused[1:] == [{"east": code}] * 3


def test_the_digest_in_the_journal_is_that_of_the_sites_ledger(scene: Scene) -> None:
    sent: list[str] = []

    def noting(message: Message) -> Message:
        reply = scene.learners["east"](message)
        sent.append(digest(reply.content))
        return reply  # type: ignore[no-any-return]

    scene.grid.sites["east"] = noting
    assert [record.sites["east"].digest for record in scene.run().rounds] == sent[:4]


# Memory.


def test_one_reply_is_in_memory_at_a_time(scene: Scene) -> None:
    replies: list[weakref.ref[Any]] = []
    most = 0

    def watched(message: Message) -> Message:
        nonlocal most
        most = max(most, sum(1 for part in replies if part() is not None))
        reply = scene.learners[scene.grid.name_of(message.metadata.dst_node_id)](message)
        parts = [reply, *reply.content.values(), *reply.content.get(ARRAYS, {}).values()]
        replies.extend(weakref.ref(part) for part in parts)
        return reply  # type: ignore[no-any-return]

    for name in scene.learners:
        scene.grid.sites[name] = watched
    # Nothing may wait for Python to look for circles of references: models are large and few.
    gc.disable()
    try:
        scene.run("fedadam")
    finally:
        gc.enable()
    assert most == 0


# Killed at any step.


def die_at(event: int) -> None:
    """Let this process be killed at its `event`-th step that changes something on the disk."""
    left = event

    def watch(name: str, arguments: Any) -> None:
        nonlocal left
        writes = name in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree") or (
            name == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if writes:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def run_in_child(scene: Scene, event: int, log: Path) -> bool:
    """Run in a process of its own that is killed at some step; whether it was. Who is asked is logged."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    child = os.fork()
    if child == 0:
        for name, act in scene.learners.items():

            def logging(message: Message, name: str = name, act: Act = act) -> Message | None:
                if message.metadata.message_type == "train":
                    os.write(handle, f"{name} {round_of(message)}\n".encode())
                return act(message)

            scene.grid.sites[name] = logging
        if event:
            die_at(event)
        try:
            scene.run("fedadam")
        finally:
            os._exit(0)
    os.close(handle)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def test_killed_at_any_step_a_run_ends_with_the_same_bits(scene: Scene, tmp_path: Path) -> None:
    plans = scene.plans
    scene.plans = lambda n: plans(n).model_copy(update={"rounds": 2})
    scene.settings = replace(scene.settings, rounds=2, quorum=3)
    whole = scene.run("fedadam")
    reused = 0
    for event in range(1, 1000):
        scene.folder = tmp_path / f"killed-{event}"
        log = tmp_path / f"log-{event}"
        died = run_in_child(scene, event, log)
        open_round = read_open(scene.folder) if scene.folder.exists() else None
        before = len(log.read_text().splitlines())
        sent = len(scene.grid.sent)
        result = scene.run("fedadam")
        assert same(result.weights, whole.weights), event
        assert result.evaluation == whole.evaluation
        assert [record.round for record in result.rounds] == [1, 2]
        assert not list(scene.folder.rglob(".tmp-*"))
        assert not list(scene.folder.rglob("*.npz"))
        if open_round is not None:
            reused += len(open_round.answered)
            again = {name for name in scene.learners if open_round.round in scene.asked(name, sent)}
            assert not again & set(open_round.answered), event
        if not died:
            assert before == 6
            break
    assert not died
    assert event > 40
    assert reused > 20
