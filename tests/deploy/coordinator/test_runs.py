import datetime
import json
from pathlib import Path

import pytest
from coordinating import NOW, SETTINGS, close_rounds

from wardround.deploy.coordinator import runs
from wardround.errors import StorageError, UsageError
from wardround.server.home import CoordinatorHome
from wardround.server.journal import Journal


def test_a_run_is_read_as_it_was_written(home: CoordinatorHome, run: runs.Run) -> None:
    found = runs.find(home, "study")
    assert found == run
    assert (found.phase, found.request.rounds, found.rounds()) == ("queued", 3, [])
    running = found.save_state(NOW, phase="running", wish=1, flower_run=2**64 - 1, attempts=2, reason="why")
    assert runs.find(home, "study") == running


def test_a_run_is_never_overwritten(home: CoordinatorHome, run: runs.Run) -> None:
    with pytest.raises(UsageError, match="--resume"):
        runs.create(home, "study", SETTINGS, NOW)


def test_runs_stand_in_the_order_in_which_they_were_asked_for(home: CoordinatorHome, run: runs.Run) -> None:
    runs.create(home, "before", SETTINGS, NOW - datetime.timedelta(seconds=1))
    runs.create(home, "after", SETTINGS, NOW + datetime.timedelta(seconds=1))
    assert [found.name for found in runs.all_runs(home)] == ["before", "study", "after"]


def test_an_unknown_run_is_named(home: CoordinatorHome, run: runs.Run) -> None:
    with pytest.raises(UsageError, match="study"):
        runs.find(home, "other")


def test_a_coordinator_without_runs_has_none(home: CoordinatorHome) -> None:
    assert runs.all_runs(home) == []


@pytest.mark.parametrize("name", ["request.json", "state.json"])
@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 9}'])
def test_a_damaged_file_is_named(home: CoordinatorHome, run: runs.Run, name: str, content: str) -> None:
    run.save_state(NOW)
    (run.folder / name).write_text(content)
    with pytest.raises(StorageError, match=name):
        runs.find(home, "study")


def test_a_new_wish_makes_a_run_that_is_over_wait_again(home: CoordinatorHome, run: runs.Run) -> None:
    failed = run.save_state(NOW, phase="failed", wish=1)
    assert failed.phase == "failed"
    failed.ask(wanted=True)
    assert runs.find(home, "study").phase == "queued"


def test_a_run_is_complete_with_its_last_evaluation(home: CoordinatorHome, run: runs.Run) -> None:
    assert not run.complete
    close_rounds(run, 2)
    assert not run.complete
    close_rounds(run, 3, evaluated=False)
    assert not run.complete


def test_a_run_with_every_round_is_complete(run: runs.Run) -> None:
    close_rounds(run, 3)
    assert run.complete


def test_who_holds_the_journal_is_at_work(run: runs.Run) -> None:
    assert not run.at_work
    journal = Journal(run.folder)
    assert run.at_work
    journal.close()
    assert not run.at_work


def test_the_servers_own_error_is_read(run: runs.Run) -> None:
    assert run.own_error() is None
    content = {"error": "RoundError", "exit-code": 6, "problem": "no quorum", "cause": "late", "fix": "wait"}
    (run.folder / "error.json").write_text(json.dumps(content))
    assert run.own_error() == runs.OwnError("RoundError", "no quorum", "late", "wait")
    run.forget_error()
    run.forget_error()
    assert run.own_error() is None


def test_a_damaged_error_is_named(run: runs.Run) -> None:
    Path(run.folder / "error.json").write_text("{}")
    with pytest.raises(StorageError):
        run.own_error()
