"""The open round on disk."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround.errors import StorageError
from wardround.server.journal import Journal, RoundRecord, SiteReport, read_open
from wardround.server.spool import OpenRound
from wardround.strategies.contract import Weights, weights_to_record

REPORT = SiteReport({"num-examples": 3.0, "loss": [0.5, 0.25]}, 10, 20, 1.5, "d", "w")


def weights(value: float) -> Weights:
    return {
        "w/odd name.1": np.asfortranarray(np.full((2, 3), value, np.float32)),
        "n": np.array(7, np.int64),
        "empty": np.zeros((0, 2), np.float16),
    }


def accept(spool: OpenRound, site: str, value: float, round: int = 3, examples: float = 3) -> bool:
    return spool.accept(site, round, examples, weights_to_record(weights(value)), weights(0), REPORT)


def values(spool: OpenRound) -> list[tuple[str, int, float, float]]:
    return [
        (one.site, one.round, one.examples, float(dict(one.arrays(["w/odd name.1"]))["w/odd name.1"][0, 0]))
        for one in spool.updates()
    ]


def test_updates_come_back_in_the_order_of_names_with_their_bits(tmp_path: Path) -> None:
    spool = OpenRound(tmp_path, 3, "start")
    assert accept(spool, "south/../x", 2.5)
    assert accept(spool, "north", -1.0, examples=0.1 + 0.2)
    again = OpenRound(tmp_path, 3, "start")
    assert values(again) == values(spool) == [("north", 3, 0.1 + 0.2, -1.0), ("south/../x", 3, 3, 2.5)]
    assert again.updates()[0].report == REPORT
    for one in again.updates():
        for name, array in one.arrays(weights(0)):
            expected = weights(-1.0 if one.site == "north" else 2.5)[name]
            assert (array.dtype, array.shape, array.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())
    assert {path.parent for path in tmp_path.rglob("*.npz")} == {tmp_path / "open" / "00003"}


def test_one_update_of_a_site_and_round_counts_once(tmp_path: Path) -> None:
    spool = OpenRound(tmp_path, 3, "start")
    assert accept(spool, "north", 1.0)
    assert not accept(spool, "north", 2.0)
    assert accept(spool, "north", 4.0, round=2)
    assert not accept(OpenRound(tmp_path, 3, "start"), "north", 9.0)
    assert [(site, number, value) for site, number, _, value in values(spool)] == [("north", 2, 4.0), ("north", 3, 1.0)]


@pytest.mark.parametrize(("number", "start"), [(3, "elsewhere"), (4, "start")])
def test_updates_that_started_elsewhere_are_dropped(tmp_path: Path, number: int, start: str) -> None:
    accept(OpenRound(tmp_path, 3, "start"), "north", 1.0)
    assert OpenRound(tmp_path, number, start).updates() == []
    assert not list(tmp_path.rglob("*.npz"))


@pytest.mark.parametrize("place", [30, -30, None])
def test_a_damaged_update_is_asked_for_again(tmp_path: Path, place: int | None) -> None:
    spool = OpenRound(tmp_path, 3, "start")
    accept(spool, "north", 1.0)
    accept(spool, "south", 2.0)
    path = spool.updates()[0].path
    data = bytearray(path.read_bytes())
    if place is None:
        del data[100:]
    else:
        # In the middle, where the numbers lie, or in the table of contents.
        data[place if place < 0 else data.index(b"\x93NUMPY") + 130] ^= 0xFF
    path.write_bytes(bytes(data))
    assert [one.site for one in OpenRound(tmp_path, 3, "start").updates()] == ["south"]
    assert not path.exists()


def test_damage_that_comes_later_is_an_error(tmp_path: Path) -> None:
    spool = OpenRound(tmp_path, 3, "start")
    accept(spool, "north", 1.0)
    spool.updates()[0].path.write_bytes(b"nothing")
    with pytest.raises(StorageError, match="damaged"):
        values(spool)


def test_a_full_disk_leaves_no_half_of_an_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = OpenRound(tmp_path, 3, "start")

    def full(*args: Any, **keywords: Any) -> None:
        raise OSError(28, "No space left on device")

    arrays = weights_to_record(weights(1.0))
    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(StorageError, match="disk is full"):
        spool.accept("north", 3, 1.0, arrays, weights(0), REPORT)
    assert spool.updates() == []
    assert not list(tmp_path.rglob("*.npz"))
    assert not list(tmp_path.rglob(".tmp-*"))


def test_attempts(tmp_path: Path) -> None:
    spool = OpenRound(tmp_path, 3, "start")
    assert (spool.asked, spool.failed) == (None, 0)
    spool.begin_attempt(["south", "north"])
    assert OpenRound(tmp_path, 3, "start").asked == {"north", "south"}
    spool.give_up_attempt({"north": "shape"}, {"south": "late"})
    assert (spool.asked, spool.failed) == (None, 1)
    spool.begin_attempt(["south"])
    again = OpenRound(tmp_path, 3, "start")
    assert (again.asked, again.failed) == ({"south"}, 1)


def test_a_look_from_outside(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        assert read_open(tmp_path) is None
        spool = journal.open_round(1, "start")
        spool.begin_attempt(["north", "south"])
        accept(spool, "north", 1.0, round=1)
        view = read_open(tmp_path)
        assert view is not None
        assert (view.round, view.asked, view.answered, view.attempts) == (1, ("north", "south"), ("north",), 0)
        assert (view.waiting, view.left_out) == (("south",), {})
        spool.give_up_attempt({"south": "shape"}, {"east": "late"})
        view = read_open(tmp_path)
        assert view is not None
        assert (view.asked, view.waiting, view.attempts) == ((), (), 1)
        assert view.left_out == {"south": "shape", "east": "late"}
        journal.write(RoundRecord(1, "plan", {"north": REPORT}), weights(1), {})
        assert read_open(tmp_path) is None
        assert not list(tmp_path.rglob("*.npz"))


def test_what_a_crash_left_of_a_closed_round_goes_at_the_next_start(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.write(RoundRecord(1, "plan", {}), weights(1), {})
    accept(OpenRound(tmp_path, 1, "start"), "north", 1.0, round=1)
    Journal(tmp_path).close()
    assert read_open(tmp_path) is None
    accept(OpenRound(tmp_path, 2, "start"), "north", 1.0, round=2)
    Journal(tmp_path).close()
    assert read_open(tmp_path) is not None
