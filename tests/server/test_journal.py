"""What the coordinator has on disk."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wardround.errors import PlanError, StorageError, UsageError
from wardround.files import new_file
from wardround.server.journal import (
    Evaluation,
    Journal,
    LateReport,
    RoundRecord,
    SiteReport,
    Standing,
    read_open,
    read_rounds,
    read_weights,
)
from wardround.strategies.contract import Weights


def record(number: int) -> RoundRecord:
    return RoundRecord(
        round=number,
        plan="abc",
        sites={"north": SiteReport({"num-examples": 3.0, "loss": [0.5, 0.25]}, 10, 20, 1.5)},
        refused={"south": "not-finite"},
        missing={"east": "late"},
        seconds={"sites": 2.0},
    )


def weights(number: int) -> Weights:
    return {
        "w": np.full((2, 3), number, np.float32).T,
        "steps": np.array(number, np.int64),
        "empty": np.zeros((0, 2), np.float16),
    }


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and np.array_equal(one[n], other[n]) for n in one
    )


def test_empty(tmp_path: Path) -> None:
    with Journal(tmp_path / "deep" / "journal") as journal:
        assert journal.latest() is None
        assert journal.rounds() == []


def test_a_round_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    state = {"m_t/w": np.ones(2), "momentum/00000": np.array(1.0)}
    with Journal(tmp_path) as journal:
        journal.write(record(1), weights(1), {})
        journal.write(record(2), weights(2), state)
    with Journal(tmp_path) as journal:
        assert journal.latest() == record(2)
        assert journal.rounds() == [record(1), record(2)]
        assert same(journal.weights(2), weights(2))
        assert same(journal.strategy_state(2), state)
        assert journal.strategy_state(1) == {}


def test_only_the_last_weights_are_kept_and_every_record(tmp_path: Path) -> None:
    with Journal(tmp_path, keep=2) as journal:
        for number in range(1, 6):
            journal.write(record(number), weights(number), {"m_t/w": np.ones(1)})
        kept = sorted(str(path.relative_to(tmp_path / "rounds")) for path in tmp_path.rglob("*.safetensors"))
        assert kept == [f"0000{n}/{name}.safetensors" for n in (4, 5) for name in ("global", "strategy")]
        assert [entry.round for entry in journal.rounds()] == [1, 2, 3, 4, 5]
        with pytest.raises(StorageError, match="00003"):
            journal.weights(3)


def test_weights_that_a_crash_kept_are_removed_at_the_next_start(tmp_path: Path) -> None:
    with Journal(tmp_path, keep=3) as journal:
        for number in range(1, 4):
            journal.write(record(number), weights(number), {})
    Journal(tmp_path, keep=1).close()
    assert [path.parent.name for path in tmp_path.rglob("*.safetensors")] == ["00003"]


def test_evaluation_is_added_to_a_closed_round(tmp_path: Path) -> None:
    evaluation = Evaluation({"north": {"dice": 0.9, "num-examples": 2.0}}, {"south": "metric"}, {"east": "late"})
    with Journal(tmp_path) as journal:
        journal.write(record(1), weights(1), {})
        journal.write_evaluation(1, evaluation)
        latest = journal.latest()
    assert latest is not None
    assert latest.evaluation == evaluation


def test_json_has_no_nan(tmp_path: Path) -> None:
    odd = RoundRecord(1, "abc", {"north": SiteReport({"loss": math.nan, "dice": [math.inf, 1.0]}, 0, 0, 0.0)})
    with Journal(tmp_path) as journal:
        journal.write(odd, weights(1), {})
    text = (tmp_path / "rounds" / "00001" / "round.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert json.loads(text)["sites"]["north"]["metrics"] == {"loss": None, "dice": [None, 1.0]}
    loss = read_rounds(tmp_path)[0].sites["north"].metrics["loss"]
    assert isinstance(loss, float)
    assert math.isnan(loss)


def test_a_run_goes_on_with_the_same_settings_only(tmp_path: Path) -> None:
    settings = {"plan": {"seed": 1, "patch": (8, 8, 8), "rate": 0.1}, "strategy": {"class": "FedAvg"}}
    with Journal(tmp_path) as journal:
        journal.begin(settings)
        journal.begin(json.loads(json.dumps(settings)))
        with pytest.raises(PlanError) as refused:
            journal.begin({"plan": {"seed": 2, "patch": None, "rate": 0.1}, "strategy": {"class": "FedAvg"}})
    assert refused.value.cause == "plan.patch was [8, 8, 8], is None; plan.seed was 1, is 2"


@pytest.mark.parametrize("value", [None, 3])
def test_a_setting_that_only_one_of_two_versions_knows_is_a_difference(tmp_path: Path, value: int | None) -> None:
    with Journal(tmp_path) as journal:
        journal.begin({"seed": 1, "plan": {"horizon": value}})
        with pytest.raises(PlanError) as refused:
            journal.begin({"seed": 1, "plan": {"depth": value}})
    assert refused.value.cause == f"plan.depth was unknown, is {value}; plan.horizon was {value}, is unknown"


def test_what_an_earlier_version_stored_may_be_read_as_this_one_has_it(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.begin({"seed": 1})
        journal.begin({"seed": 1, "codec": "none"}, lambda stored: {"codec": "none", **stored})
        with pytest.raises(PlanError, match="codec was 'none', is 'int8'"):
            journal.begin({"seed": 1, "codec": "int8"}, lambda stored: {"codec": "none", **stored})


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    code = f"from pathlib import Path; from wardround.server.journal import Journal; Journal(Path({str(tmp_path)!r}))"
    with Journal(tmp_path):
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "is in use" in other.stderr
        assert read_rounds(tmp_path) == []
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_same_process_may_open_it_again(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    first.write(record(1), weights(1), {})
    assert Journal(tmp_path).latest() == record(1)


def test_what_a_crash_left_is_removed(tmp_path: Path) -> None:
    Journal(tmp_path).close()
    half = tmp_path / "rounds" / ".tmp-half"
    half.mkdir()
    (half / "global.safetensors").write_bytes(b"half")
    with Journal(tmp_path) as journal:
        assert journal.latest() is None
    assert not half.exists()


def test_what_others_are_writing_beside_the_journal_is_left_alone(tmp_path: Path) -> None:
    """The process that keeps runs going, or a command of the operator, in the very moment in which a run starts."""
    with new_file(tmp_path / "state.json") as stream:
        stream.write(b"{}")
        Journal(tmp_path).close()
    assert (tmp_path / "state.json").read_text() == "{}"


@pytest.mark.parametrize("name", ["global.safetensors", "round.json"])
def test_damage_is_seen(tmp_path: Path, name: str) -> None:
    with Journal(tmp_path) as journal:
        journal.write(record(1), weights(1), {})
        path = tmp_path / "rounds" / "00001" / name
        data = bytearray(path.read_bytes())
        data[-1] ^= 0xFF
        path.write_bytes(bytes(data))
        with pytest.raises(StorageError, match="damaged"):
            journal.weights(1)


def test_a_record_of_another_shape_is_damage(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.write(record(1), weights(1), {})
        (tmp_path / "rounds" / "00001" / "round.json").write_text("{}")
        with pytest.raises(StorageError, match="damaged"):
            journal.latest()


def test_a_round_is_never_written_twice(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.write(record(1), weights(1), {})
        with pytest.raises(StorageError):
            journal.write(record(1), weights(2), {})
        assert same(journal.weights(1), weights(1))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        Journal(tmp_path / "file")


def killed_during_write(folder: Path, event: int) -> bool:
    """Write round 2 in a child that dies at its `event`-th access to the file system; whether it died."""
    child = os.fork()
    if child == 0:
        journal = Journal(folder, keep=1)
        left = event

        def die(name: str, _: object) -> None:
            nonlocal left
            if name.startswith(("open", "os.", "shutil.")):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(die)
        journal.write(record(2), weights(2), {"m_t/w": np.full(3, 2.0)})
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def test_killed_at_any_access_to_the_disk_a_round_is_whole_or_absent(tmp_path: Path) -> None:
    seen = set()
    for event in range(1, 200):
        folder = tmp_path / str(event)
        with Journal(folder, keep=1) as journal:
            journal.write(record(1), weights(1), {"m_t/w": np.full(3, 1.0)})
        died = killed_during_write(folder, event)
        with Journal(folder, keep=1) as journal:
            latest = journal.latest()
            assert latest is not None
            number = latest.round
            assert latest == record(number)
            assert same(journal.weights(number), weights(number))
            assert same(journal.strategy_state(number), {"m_t/w": np.full(3, float(number))})
            if number == 1:
                journal.write(record(2), weights(2), {})
        assert not list(folder.rglob(".tmp-*"))
        seen.add(number)
        if not died:
            break
    assert not died
    assert event > 8
    assert seen == {1, 2}


def test_what_is_known_of_late_replies_and_standings_is_read_back(tmp_path: Path) -> None:
    report = SiteReport({"num-examples": 3.0}, 10, 20, 1.5, "digest", "weights")
    rich = RoundRecord(
        round=1,
        plan="abc",
        sites={"north": report},
        late={"south": LateReport(1, 1.5, "", report), "east": LateReport(1, 0.0, "shape")},
        standing={"east": Standing(2, 0), "west": Standing(0, 5)},
        attempts=3,
    )
    with Journal(tmp_path) as journal:
        journal.write(rich, weights(1), {})
        assert journal.latest() == rich


def test_a_journal_of_an_older_version_is_read(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.write(record(1), weights(1), {})
        path = tmp_path / "rounds" / "00001" / "round.json"
        body = json.loads(path.read_text())
        for name in ("late", "standing", "attempts"):
            del body[name]
        for name in ("digest", "weights_digest"):
            del body["sites"]["north"][name]
        path.write_text(json.dumps(body))
        assert journal.latest() == record(1)


def test_rolling_back_moves_later_rounds_to_a_generation(tmp_path: Path) -> None:
    with Journal(tmp_path, keep=3) as journal:
        for number in range(1, 6):
            journal.write(record(number), weights(number), {"m_t/w": np.full(1, number)})
        journal.open_round(6, "start")
        with pytest.raises(UsageError, match="no round 9"):
            journal.roll_back(9)
        with pytest.raises(StorageError, match="00002"):
            journal.roll_back(2)
        assert len(journal.rounds()) == 5
        journal.roll_back(3)
        assert [entry.round for entry in journal.rounds()] == [1, 2, 3]
        assert same(journal.weights(3), weights(3))
        assert read_open(tmp_path) is None
        journal.write(record(4), weights(40), {})
        journal.roll_back(3)
    assert sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "generations").glob("*/rounds/*")) == [
        "generations/1/rounds/00004",
        "generations/1/rounds/00005",
        "generations/2/rounds/00004",
    ]
    assert same(read_weights(tmp_path, 3), weights(3))


def test_rolling_back_to_the_beginning(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.write(record(1), weights(1), {})
        journal.roll_back(0)
        assert journal.rounds() == []
        journal.roll_back(0)
