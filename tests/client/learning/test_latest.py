"""The latest global weights: whole, of the latest round, and readable while they are replaced."""

import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from wardround.client.learning.latest import LatestModel, weights_digest
from wardround.errors import StorageError
from wardround.models.weights import OPERATORS
from wardround.strategies.contract import Weights
from wardround.strategies.plan import RoundPlan


def plan(round_: int = 1, run: str = "one", **fields: object) -> RoundPlan:
    settings = {"run": run, "round": round_, "rounds": 9, "seed": 0, "model": "unet3d-small", "labels": 3}
    return RoundPlan.model_validate(settings | fields)


def weights(value: float = 1.0) -> Weights:
    # A buffer without axes and one that is not contiguous, as networks have them.
    return {"b": np.full((3, 4), value, np.float32).T, "a": np.array(7, np.int64), "c": np.zeros(0, np.float32)}


def same(one: Weights, other: Weights) -> bool:
    return set(one) == set(other) and all(
        np.array_equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one
    )


def test_plan_and_weights_come_back_to_the_bit(tmp_path: Path) -> None:
    model = LatestModel(tmp_path / "model")
    assert model.read() is None
    assert model.digest() == ""
    asked = plan(3, allocation=(1, 2, 3), learning_rate=0.1 + 0.2)
    model.save(asked, weights())
    found = LatestModel(tmp_path / "model").read()
    assert found is not None
    assert found[0] == asked
    assert same(found[1], weights())
    assert model.digest() == weights_digest(weights())


def test_what_travels_beside_a_network_is_not_kept(tmp_path: Path) -> None:
    model = LatestModel(tmp_path)
    model.save(plan(), weights() | {OPERATORS: np.zeros((3, 3), np.float32)})
    found = model.read()
    assert found is not None
    assert same(found[1], weights())
    assert model.digest() == weights_digest(weights())


def test_the_digest_is_of_names_types_shapes_and_values_and_not_of_their_order() -> None:
    known = weights_digest(weights())
    assert weights_digest(dict(reversed(weights().items()))) == known
    others = (
        weights(2.0),
        weights() | {"d": np.zeros(1, np.float32)},
        weights() | {"a": np.array(7, np.int32)},
        weights() | {"c": np.zeros((0, 2), np.float32)},
    )
    assert known not in map(weights_digest, others)


def test_a_later_round_replaces_and_an_earlier_one_that_is_asked_again_does_not(tmp_path: Path) -> None:
    model = LatestModel(tmp_path)
    for number, kept in ((1, 1), (2, 2), (2, 2), (1, 2), (3, 3)):
        model.save(plan(number), weights(number))
        found = model.read()
        assert found is not None
        assert found[0].round == kept
        assert same(found[1], weights(kept))
    model.save(plan(3), weights(3.5))  # Evaluated: the weights after the round that the site has learnt for.
    assert model.digest() == weights_digest(weights(3.5))
    model.save(plan(1, run="two"), weights(9))
    assert model.digest() == weights_digest(weights(9))


def test_the_same_again_is_not_written_again(tmp_path: Path) -> None:
    model = LatestModel(tmp_path)
    model.save(plan(), weights())
    before = next(tmp_path.iterdir()).stat()
    model.save(plan(), weights())
    after = next(tmp_path.iterdir()).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign", "plan"])
def test_a_damaged_file_is_never_read_and_the_next_round_replaces_it(tmp_path: Path, damage: str) -> None:
    model = LatestModel(tmp_path)
    model.save(plan(), weights())
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
    elif damage == "cut":
        content = content[:-5]
    elif damage == "plan":
        content = bytearray(bytes(content).replace(b"unet3d-small", b"unet3d\\\\small"))
    path.write_bytes({"empty": b"", "foreign": b"x" * 400}.get(damage, bytes(content)))
    with pytest.raises(StorageError, match="next round"):
        model.read()
    model.save(plan(2), weights(2))
    found = model.read()
    assert found is not None
    assert found[0].round == 2


def test_a_full_disk_leaves_the_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LatestModel(tmp_path)
    model.save(plan(), weights())

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="full"):
            model.save(plan(2), weights(2))
    found = model.read()
    assert found is not None
    assert found[0].round == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_crash_left_is_removed(tmp_path: Path) -> None:
    LatestModel(tmp_path).save(plan(), weights())
    (tmp_path / ".tmp-half").write_bytes(b"half")
    LatestModel(tmp_path).repair()
    assert len(list(tmp_path.iterdir())) == 1
    assert LatestModel(tmp_path).read() is not None


def test_whoever_reads_while_it_is_replaced_sees_one_round_whole(tmp_path: Path) -> None:
    model = LatestModel(tmp_path)
    model.save(plan(1), weights(1))
    done = threading.Event()
    torn: list[object] = []

    def read() -> None:
        while not done.is_set():
            try:
                found = LatestModel(tmp_path).read()
            except StorageError as error:
                torn.append(error)
                return
            if found is None or not same(found[1], weights(found[0].round)):
                torn.append(found)

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(2, 10):
        model.save(plan(number), weights(number))
    done.set()
    thread.join(60)
    assert torn == []
