"""Snapshots: whole or not at all, and the right one for every round."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wardround.client.learning.replay import Reservoir
from wardround.client.learning.state import SiteState, Snapshots, Standing
from wardround.errors import StorageError


def state(round_: int) -> SiteState:
    moments = {"layer.weight/exp_avg": np.full(3, round_, np.float32)}
    standing = Standing(round_ / 8, 0.25)
    return SiteState(round_, Reservoir(4, round_, ("a",)), moments, ({"case": "a"},), {"contour": 1.0}, standing)


def test_a_round_starts_from_the_latest_snapshot_before_it(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    assert snapshots.before(1, capacity=7).reservoir == Reservoir(7)
    for number in (1, 2, 3):
        snapshots.save(state(number))
    found = Snapshots(tmp_path).before(3, capacity=4)
    assert found.round == 2
    assert found.reservoir == Reservoir(4, 2, ("a",))
    assert found.history == ({"case": "a"},)
    assert found.standing == Standing(0.25, 0.25)
    assert np.array_equal(found.optimiser["layer.weight/exp_avg"], np.full(3, 2, np.float32))


def test_a_round_that_is_asked_for_again_replaces_its_snapshot_and_later_ones(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    for number in (1, 2, 3):
        snapshots.save(state(number))
    snapshots.save(state(2))
    latest = snapshots.latest()
    assert latest is not None
    assert latest.round == 2


def test_only_what_a_resume_can_ask_for_is_kept(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    for number in range(1, 6):
        snapshots.save(state(number))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-00004", "round-00005"]


def test_what_a_crash_left_half_written_is_swept(tmp_path: Path) -> None:
    Snapshots(tmp_path).save(state(1))
    (tmp_path / ".tmp-crash").mkdir()
    (tmp_path / ".tmp-crash" / "state.json").write_text("{")
    latest = Snapshots(tmp_path).latest()
    assert latest is not None
    assert latest.round == 1
    assert not (tmp_path / ".tmp-crash").exists()


def test_a_site_never_begins_anew_behind_its_own_back(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    for number in (5, 6, 7):
        snapshots.save(state(number))
    with pytest.raises(StorageError, match="no state from before round 6"):
        snapshots.before(6, capacity=4)
    assert snapshots.before(1, capacity=4).round == 0


def test_the_round_in_which_a_site_began_can_be_asked_for_again(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    for _ in range(2):
        snapshots.save(state(3))
        assert snapshots.before(3, capacity=7).reservoir == Reservoir(7)
        assert snapshots.before(2, capacity=7).round == 0
    snapshots.save(state(5))
    assert snapshots.before(5, capacity=7).round == 3
    assert snapshots.before(3, capacity=7).round == 0
    snapshots.save(state(6))
    with pytest.raises(StorageError, match="no state from before round 5"):
        snapshots.before(5, capacity=7)


def test_an_older_version_did_not_write_down_where_a_site_began(tmp_path: Path) -> None:
    Snapshots(tmp_path).save(state(3))
    file = tmp_path / "round-00003" / "state.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "first"}))
    with pytest.raises(StorageError, match="no state from before round 3"):
        Snapshots(tmp_path).before(3, capacity=4)


def test_a_damaged_snapshot_is_named_with_its_remedy(tmp_path: Path) -> None:
    Snapshots(tmp_path).save(state(1))
    (tmp_path / "round-00001" / "state.json").write_text("{")
    with pytest.raises(StorageError, match=r"round-00001.*bring that folder back"):
        Snapshots(tmp_path).latest()


def test_every_count_of_the_reservoir_comes_back(tmp_path: Path) -> None:
    reservoir = Reservoir(2)
    for number in range(3):
        reservoir = reservoir.offer_balanced(str(number), np.array([True, True, False]), np.random.default_rng(0))
    Snapshots(tmp_path).save(SiteState(1, reservoir))
    latest = Snapshots(tmp_path).latest()
    assert latest is not None
    assert latest.reservoir == reservoir


def test_a_snapshot_of_an_older_version_knows_no_trust(tmp_path: Path) -> None:
    Snapshots(tmp_path).save(state(1))
    file = tmp_path / "round-00001" / "state.json"
    old = {"round", "capacity", "seen", "kept", "history", "effort"}
    file.write_text(json.dumps({name: value for name, value in json.loads(file.read_text()).items() if name in old}))
    latest = Snapshots(tmp_path).latest()
    assert latest is not None
    assert latest.standing == Standing(0.0, None)
    assert latest.reservoir == Reservoir(4, 1, ("a",))


def test_the_count_of_refusals_comes_back_and_is_nothing_in_an_older_version(tmp_path: Path) -> None:
    standing = Standing(0.5, 0.25).refusing().refusing()
    assert standing == Standing(0.5, 0.25, 2)
    Snapshots(tmp_path).save(SiteState(1, Reservoir(4), standing=standing))
    assert Snapshots(tmp_path).before(2, capacity=4).standing == standing
    file = tmp_path / "round-00001" / "state.json"
    content = json.loads(file.read_text())
    del content["refused"]
    file.write_text(json.dumps(content))
    assert Snapshots(tmp_path).before(2, capacity=4).standing == Standing(0.5, 0.25)
    assert standing.accepting(0.5, 0.25).refused == 0


def test_trust_starts_at_nothing_grows_with_agreement_and_falls_without() -> None:
    standing = Standing()
    trusts = [standing.trust]
    for agreement in 20 * [0.9]:
        standing = standing.accepting(agreement, 0.1)
        trusts.append(standing.trust)
    assert trusts[0] == 0
    assert trusts[1] == pytest.approx(0.2 * 0.9)
    assert trusts == sorted(trusts)
    assert 0.88 < trusts[-1] <= 0.9
    assert standing.accepting(0.0, 0.1).trust == pytest.approx(0.8 * trusts[-1])
    assert standing.accepting(math.nan, 0.1).trust == trusts[-1]


def test_disagreement_is_measured_against_recent_cases() -> None:
    assert Standing().ratio(0.3) == 1.0
    first = Standing().accepting(0.5, 0.4)
    assert first.disagreement == pytest.approx(0.4)
    assert first.ratio(0.2) == pytest.approx(0.5)
    assert first.accepting(0.5, 0.2).disagreement == pytest.approx(0.8 * 0.4 + 0.2 * 0.2)
    assert Standing(0.5, 0.0).ratio(0.3) == 1.0


def test_what_is_local_is_there_again_and_has_a_file_only_where_there_is_any(tmp_path: Path) -> None:
    local = {"distiller/head.weight": np.arange(3, dtype=np.float32)}
    snapshots = Snapshots(tmp_path)
    snapshots.save(state(1))
    snapshots.save(replace(state(2), local=local))
    found = [Snapshots(tmp_path).before(number, capacity=4).local for number in (2, 3)]
    assert found[0] == {}
    assert found[1].keys() == local.keys()
    assert np.array_equal(found[1]["distiller/head.weight"], local["distiller/head.weight"])
    assert sorted(path.name for path in (tmp_path / "round-00001").iterdir()) == ["optimiser.safetensors", "state.json"]
