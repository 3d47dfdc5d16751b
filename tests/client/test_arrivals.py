"""Which cases a round takes at a site where they arrive over time."""

from pathlib import Path

import pytest

from wardround.client.arrivals import Arrivals
from wardround.errors import DataError, StorageError


def test_a_round_takes_what_arrived_since_the_last_one(tmp_path: Path) -> None:
    arrivals = Arrivals(tmp_path / "rounds.json")
    assert arrivals.take("run", 1, 0, ["a", "b"], 20) == ["a", "b"]
    assert arrivals.take("run", 2, 1, ["a", "b", "c"], 20) == ["c"]
    assert arrivals.take("run", 3, 2, ["a", "b", "c"], 20) == []


def test_a_round_that_is_asked_for_again_takes_the_same(tmp_path: Path) -> None:
    assert Arrivals(tmp_path / "rounds.json").take("run", 1, 0, ["a"], 20) == ["a"]
    again = Arrivals(tmp_path / "rounds.json")
    assert again.take("run", 1, 0, ["a", "b"], 20) == ["a"]
    assert again.take("run", 2, 1, ["a", "b"], 20) == ["b"]
    assert again.take("run", 1, 0, ["a", "b", "c"], 20) == ["a"]


def test_a_round_takes_no_more_than_it_may(tmp_path: Path) -> None:
    arrivals = Arrivals(tmp_path / "rounds.json")
    assert arrivals.take("run", 1, 0, ["a", "b", "c"], 2) == ["a", "b"]
    assert arrivals.take("run", 2, 1, ["a", "b", "c"], 2) == ["c"]


def test_what_a_round_took_that_never_ended_waits_again(tmp_path: Path) -> None:
    arrivals = Arrivals(tmp_path / "rounds.json")
    assert arrivals.take("run", 1, 0, ["a"], 20) == ["a"]
    assert arrivals.take("run", 2, 1, ["a", "b"], 20) == ["b"]
    # Round 2 was cut off; the coordinator went on without this site.
    assert arrivals.take("run", 3, 1, ["a", "b", "c"], 20) == ["b", "c"]
    assert Arrivals(tmp_path / "rounds.json").take("run", 3, 1, ["a", "b", "c", "d"], 20) == ["b", "c"]


def test_a_round_that_comes_after_later_ones_takes_nothing_of_theirs(tmp_path: Path) -> None:
    arrivals = Arrivals(tmp_path / "rounds.json")
    arrivals.take("run", 3, 0, ["a"], 20)
    assert arrivals.take("run", 2, 0, ["a", "b"], 20) == ["b"]
    assert arrivals.take("run", 3, 2, ["a", "b"], 20) == ["a"]


def test_what_a_round_is_left_without_waits_again(tmp_path: Path) -> None:
    arrivals = Arrivals(tmp_path / "rounds.json")
    arrivals.take("run", 1, 0, ["a", "b"], 20)
    arrivals.take("other", 1, 0, ["a", "b"], 20)
    arrivals.leave("run", 1, ["b"])
    arrivals = Arrivals(tmp_path / "rounds.json")
    assert arrivals.latest == "other"
    assert arrivals.take("run", 1, 0, ["a", "b"], 20) == ["b"]
    assert arrivals.take("run", 2, 1, ["a", "b"], 20) == ["a"]
    assert arrivals.take("other", 1, 0, [], 20) == ["a", "b"]


def test_each_run_begins_anew(tmp_path: Path) -> None:
    arrivals = Arrivals(tmp_path / "rounds.json")
    arrivals.take("one", 1, 0, ["a"], 20)
    assert arrivals.take("two", 1, 0, ["a", "b"], 20) == ["a", "b"]
    assert arrivals.latest == "two"
    arrivals.take("one", 2, 1, ["a", "b"], 20)
    assert Arrivals(tmp_path / "rounds.json").latest == "one"


def test_only_the_last_runs_can_go_on(tmp_path: Path) -> None:
    arrivals = Arrivals(tmp_path / "rounds.json")
    for run in ("one", "two", "three"):
        arrivals.take(run, 1, 0, ["a"], 20)
    again = Arrivals(tmp_path / "rounds.json")
    assert again.runs == ("two", "three")
    with pytest.raises(DataError, match="over at this site"):
        again.take("one", 2, 1, ["a"], 20)
    assert again.take("two", 1, 0, ["a", "b"], 20) == ["a"]


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"format": 2, "runs": [], "over": []}', '{"format": 1, "runs": [1]}']
)
def test_a_damaged_file_is_never_taken_for_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "rounds.json").write_text(text)
    with pytest.raises(StorageError, match=r"rounds\.json"):
        Arrivals(tmp_path / "rounds.json")
