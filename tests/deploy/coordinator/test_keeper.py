"""What the keeper does, fault by fault, with a Flower that is played and a clock that the test moves."""

import datetime
import itertools
import json

import pytest
from coordinating import NOW, SETTINGS, Clock, FlowerStub, close_rounds

from wardround.deploy.coordinator import runs
from wardround.deploy.coordinator.keeper import MOST_FRUITLESS, Patience, RunKeeper
from wardround.errors import ConnectionFailed
from wardround.server.home import CoordinatorHome
from wardround.server.journal import Journal


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keeper(home: CoordinatorHome, flower: FlowerStub, clock: Clock) -> RunKeeper:
    return make(home, flower, clock)


def make(home: CoordinatorHome, flower: FlowerStub, clock: Clock) -> RunKeeper:
    return RunKeeper(
        home, flower, b"bundle", patience=Patience(first=1, longest=8, abandoned=5), now=lambda: NOW, clock=clock
    )


def state(home: CoordinatorHome, name: str = "study") -> runs.State:
    return runs.find(home, name).state


def test_a_run_is_started_once(keeper: RunKeeper, flower: FlowerStub, home: CoordinatorHome, run: runs.Run) -> None:
    keeper.step()
    keeper.step()
    assert flower.at_work == [1]
    assert flower.known[1].folder == str(run.folder)
    assert (state(home).phase, state(home).flower_run, state(home).attempts) == ("running", 1, 1)


def test_a_run_whose_files_are_damaged_holds_up_no_other(
    keeper: RunKeeper,
    flower: FlowerStub,
    home: CoordinatorHome,
    run: runs.Run,
    caplog: pytest.LogCaptureFixture,
) -> None:
    damaged = runs.create(home, "damaged", {**SETTINGS, "run": "damaged"}, NOW - datetime.timedelta(days=1))
    (damaged.folder / "request.json").write_text("{}")
    keeper.step()
    keeper.step()
    assert flower.at_work == [1]
    assert flower.known[1].folder == str(run.folder)
    # It is said once, not every second.
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [caplog.records[0].message]
    assert str(damaged.folder) in caplog.records[0].message


def test_a_complete_journal_ends_it(
    keeper: RunKeeper, flower: FlowerStub, home: CoordinatorHome, run: runs.Run
) -> None:
    keeper.step()
    close_rounds(run, 3)
    flower.end(1, "completed")
    keeper.step()
    keeper.step()
    assert state(home).phase == "finished"
    assert list(flower.known) == [1]


@pytest.mark.parametrize("outcome", ["failed", "stopped", "completed"])
def test_a_fault_is_followed_by_another_attempt(  # noqa: PLR0917
    keeper: RunKeeper, flower: FlowerStub, home: CoordinatorHome, run: runs.Run, clock: Clock, outcome: str
) -> None:
    keeper.step()
    close_rounds(run, 1)
    flower.end(1, outcome, "no heartbeat")
    keeper.step()
    assert flower.at_work == []
    assert state(home).reason == ("no heartbeat")
    clock.time += 1
    keeper.step()
    assert flower.at_work == [2]
    assert state(home).attempts == 2


def test_an_error_of_its_own_ends_it(
    keeper: RunKeeper, flower: FlowerStub, home: CoordinatorHome, run: runs.Run, clock: Clock
) -> None:
    keeper.step()
    content = {"error": "RoundError", "exit-code": 6, "problem": "no quorum", "cause": "", "fix": ""}
    (run.folder / "error.json").write_text(json.dumps(content))
    flower.end(1, "failed", "ServerApp failed")
    clock.time += 100
    keeper.step()
    keeper.step()
    assert (state(home).phase, state(home).reason) == ("failed", "no quorum")
    assert flower.at_work == []
    # Until the operator wants it again: then the old error is none any more.
    runs.find(home, "study").ask(wanted=True)
    keeper.step()
    assert flower.at_work == [2]
    assert runs.find(home, "study").own_error() is None


def test_pauses_grow_while_no_round_is_closed(
    keeper: RunKeeper, flower: FlowerStub, run: runs.Run, clock: Clock
) -> None:
    began = []
    while len(began) < 6:
        keeper.step()
        if flower.at_work:
            began.append(clock.time)
            flower.end(flower.at_work[0], "failed")
        clock.time += 0.5
    pauses = [round(after - before) for before, after in itertools.pairwise(began)]
    assert pauses == sorted(pauses)
    assert pauses[0] <= 2
    assert pauses[-1] >= 8
    # A round that was closed in the meantime makes the next pause a short one.
    close_rounds(run, 1)
    keeper.step()
    clock.time += 1
    keeper.step()
    assert flower.at_work


def test_it_gives_up_where_nothing_helps(
    keeper: RunKeeper, flower: FlowerStub, home: CoordinatorHome, run: runs.Run, clock: Clock
) -> None:
    for _ in range(3 * MOST_FRUITLESS):
        keeper.step()
        for number in flower.at_work:
            flower.end(number, "failed", "exit code 1")
        clock.time += 100
    assert len(flower.known) == MOST_FRUITLESS
    assert state(home).phase == "failed"
    assert "exit code 1" in state(home).reason


def test_a_keeper_that_was_killed_takes_over_what_it_had_started(
    flower: FlowerStub, home: CoordinatorHome, run: runs.Run, clock: Clock
) -> None:
    flower.start_run(b"bundle", str(run.folder))
    # Nothing was written down: the kill came in between.
    make(home, flower, clock).step()
    assert flower.at_work == [1]
    assert state(home).flower_run == 1
    make(home, flower, clock).step()
    assert flower.at_work == [1]


def test_a_run_that_the_superlink_forgot_is_started_again(
    keeper: RunKeeper, flower: FlowerStub, run: runs.Run, clock: Clock
) -> None:
    keeper.step()
    flower.known.clear()
    keeper.step()
    clock.time += 1
    keeper.step()
    assert flower.at_work == [1]


def test_while_the_superlink_is_down_nothing_changes(
    keeper: RunKeeper, flower: FlowerStub, home: CoordinatorHome, run: runs.Run
) -> None:
    keeper.step()
    before = state(home)
    flower.down = True
    with pytest.raises(ConnectionFailed):
        keeper.step()
    assert state(home) == before
    flower.down = False
    keeper.step()
    assert state(home) == before


def test_nobody_starts_while_the_old_process_holds_the_journal(
    keeper: RunKeeper, flower: FlowerStub, run: runs.Run, clock: Clock
) -> None:
    keeper.step()
    with Journal(run.folder):
        flower.end(1, "failed", "no heartbeat")
        clock.time += 100
        keeper.step()
        keeper.step()
        assert flower.at_work == []
    keeper.step()
    clock.time += 1
    keeper.step()
    assert flower.at_work == [2]


def test_a_killed_server_is_noticed_by_its_journal(
    keeper: RunKeeper, flower: FlowerStub, run: runs.Run, clock: Clock
) -> None:
    keeper.step()
    with Journal(run.folder):
        keeper.step()
    clock.time += 4
    keeper.step()
    # It may just be ending.
    assert flower.at_work == [1]
    clock.time += 2
    keeper.step()
    assert flower.known[1].outcome == "stopped"
    keeper.step()
    clock.time += 1
    keeper.step()
    assert flower.at_work == [2]


def test_a_server_that_has_not_begun_is_given_its_time(
    keeper: RunKeeper, flower: FlowerStub, run: runs.Run, clock: Clock
) -> None:
    keeper.step()
    clock.time += 1000
    keeper.step()
    assert flower.at_work == [1]


def test_the_operator_stops_it(keeper: RunKeeper, flower: FlowerStub, home: CoordinatorHome, run: runs.Run) -> None:
    keeper.step()
    asked = runs.find(home, "study").ask(wanted=False)
    flower.stopping_takes_long = True
    with Journal(run.folder):
        keeper.step()
        assert state(home).wish < asked.request.wish
        flower.end(1, "stopped")
        keeper.step()
        # Its process still closes the journal.
        assert state(home).wish < asked.request.wish
    keeper.step()
    assert (state(home).phase, state(home).wish) == ("stopped", asked.request.wish)
    keeper.step()
    assert flower.at_work == []


def test_the_operator_stops_it_before_it_began(keeper: RunKeeper, flower: FlowerStub, home: CoordinatorHome) -> None:
    runs.create(home, "study", SETTINGS, NOW).ask(wanted=False)
    keeper.step()
    assert state(home).phase == "stopped"
    assert flower.known == {}


def test_a_stopped_run_goes_on_when_it_is_wanted_again(
    keeper: RunKeeper, flower: FlowerStub, home: CoordinatorHome, run: runs.Run
) -> None:
    keeper.step()
    runs.find(home, "study").ask(wanted=False)
    keeper.step()
    runs.find(home, "study").ask(wanted=True)
    keeper.step()
    assert flower.at_work == [2]


def test_who_stops_and_thinks_again_at_once_loses_nothing(
    keeper: RunKeeper, flower: FlowerStub, home: CoordinatorHome, run: runs.Run, clock: Clock
) -> None:
    keeper.step()
    runs.find(home, "study").ask(wanted=False)
    content = {"error": "Interrupted", "exit-code": 130, "problem": "stopped", "cause": "", "fix": ""}
    (run.folder / "error.json").write_text(json.dumps(content))
    flower.end(1, "failed")
    runs.find(home, "study").ask(wanted=True)
    keeper.step()
    clock.time += 1
    keeper.step()
    assert flower.at_work == [2]


def test_a_full_disk_is_no_reason_to_give_up(
    keeper: RunKeeper, flower: FlowerStub, home: CoordinatorHome, run: runs.Run, clock: Clock
) -> None:
    keeper.step()
    content = {"error": "StorageError", "exit-code": 4, "problem": "cannot write it", "cause": "", "fix": ""}
    (run.folder / "error.json").write_text(json.dumps(content))
    flower.end(1, "failed")
    keeper.step()
    found = runs.find(home, "study")
    assert (found.phase, found.state.reason) == ("queued", "cannot write it")
    clock.time += 1
    keeper.step()
    assert flower.at_work == [2]


def test_one_run_after_the_other(
    keeper: RunKeeper, flower: FlowerStub, home: CoordinatorHome, run: runs.Run, clock: Clock
) -> None:
    second = runs.create(home, "second", {**SETTINGS, "run": "second"}, NOW + datetime.timedelta(seconds=1))
    keeper.step()
    assert [flower.known[number].folder for number in flower.at_work] == [str(run.folder)]
    # Also while the first one waits for its next attempt.
    flower.end(1, "failed")
    keeper.step()
    assert flower.at_work == []
    clock.time += 1
    keeper.step()
    close_rounds(run, 3)
    flower.end(2, "completed")
    keeper.step()
    keeper.step()
    assert [flower.known[number].folder for number in flower.at_work] == [str(second.folder)]


def test_what_is_complete_already_is_not_started(
    keeper: RunKeeper, flower: FlowerStub, home: CoordinatorHome, run: runs.Run
) -> None:
    close_rounds(run, 3)
    keeper.step()
    assert state(home).phase == "finished"
    assert flower.known == {}
