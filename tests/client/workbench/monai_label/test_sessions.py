"""Images that are no cases: whose they are, and how long they stay."""

from pathlib import Path

import numpy as np
import pytest
from played_studio import oblique

from wardround.client.workbench.monai_label import sessions
from wardround.client.workbench.monai_label.replies import Refused
from wardround.client.workbench.monai_label.sessions import EXPIRY, LONGEST, MOST, Sessions


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kept(tmp_path: Path, clock: Clock) -> Sessions:
    return Sessions(tmp_path / "sessions", clock)


def test_an_image_comes_back_as_it_was(kept: Sessions, tmp_path: Path) -> None:
    session = kept.create("ann", oblique(0))
    found = kept.image(kept.get(session.id, "ann"))
    assert found.same_grid(oblique(0))
    assert np.array_equal(found.array, oblique(0).array)
    assert (tmp_path / "sessions" / session.id).stat().st_mode & 0o077 == 0


def test_a_session_ends_when_nobody_uses_it(kept: Sessions, clock: Clock, tmp_path: Path) -> None:
    session = kept.create("ann", oblique(0))
    clock.now += EXPIRY - 1
    kept.get(session.id, "ann")
    clock.now += EXPIRY - 1
    kept.get(session.id, "ann", touch=False)
    clock.now += 2
    with pytest.raises(Refused):
        kept.get(session.id, "ann")
    assert list((tmp_path / "sessions").iterdir()) == []


def test_nobody_keeps_an_image_for_ever(kept: Sessions) -> None:
    assert kept.create("ann", oblique(0), 10**9).expiry == LONGEST
    assert kept.create("ann", oblique(0), -1).expiry == EXPIRY
    assert kept.create("ann", oblique(0), 5).expiry == 5


def test_the_oldest_makes_room_for_the_same_person_only(kept: Sessions, clock: Clock) -> None:
    others = kept.create("ben", oblique(0))
    mine = []
    for _ in range(MOST + 1):
        clock.now += 1
        mine.append(kept.create("ann", oblique(0)).id)
    with pytest.raises(Refused):
        kept.get(mine[0], "ann")
    assert kept.get(mine[1], "ann")
    assert kept.get(others.id, "ben")


def test_what_an_earlier_process_kept_is_gone(tmp_path: Path) -> None:
    session = Sessions(tmp_path / "sessions").create("ann", oblique(0))
    later = Sessions(tmp_path / "sessions")
    assert not (tmp_path / "sessions" / session.id).exists()
    with pytest.raises(Refused):
        later.get(session.id, "ann")


def test_a_session_that_cannot_be_written_leaves_nothing(
    kept: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "disk full")

    monkeypatch.setattr(sessions.files, "write_bytes", full)
    with pytest.raises(OSError, match="full"):
        kept.create("ann", oblique(0))
    assert list((tmp_path / "sessions").iterdir()) == []
