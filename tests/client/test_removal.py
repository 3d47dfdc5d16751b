"""Cases are removed as a whole, also by somebody who is interrupted."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from wardround.client.cases.dicom.register import FOLDER, Register
from wardround.client.cases.store import CaseStore
from wardround.client.cases.volume import Volume
from wardround.client.home import SiteHome
from wardround.client.learning.replay import ReplayMemory, Reservoir, Sample
from wardround.client.removal import finish_removal, remove_case
from wardround.errors import DataError


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    return SiteHome(tmp_path)


@pytest.fixture
def store(home: SiteHome) -> Iterator[CaseStore]:
    with CaseStore(home.site / "store") as opened:
        for number, case in enumerate("ab"):
            opened.add_case(case, Volume(np.full((3, 4, 5), number, np.float32), np.eye(4)))
        yield opened


def test_a_case_goes_and_the_others_stay(home: SiteHome, store: CaseStore) -> None:
    remove_case(home, store, "a")
    assert store.cases() == ("b",)
    assert not list(home.site.glob("removing*"))
    with pytest.raises(DataError, match="no case"):
        remove_case(home, store, "a")
    finish_removal(home, store)
    assert store.cases() == ("b",)


def remember(home: SiteHome, *runs: str, kind: str = "runs") -> list[ReplayMemory]:
    found = []
    for run in runs:
        memory = ReplayMemory(home.site / kind / run / "memory", Reservoir(4))
        found.append(memory)
        for case in "ab":
            image = np.ones((2, 3, 4), np.float32)
            target = np.stack([image, 0 * image]).astype(np.float16)
            memory.offer(Sample(case, image, target, image.astype(np.float16)), np.random.default_rng(0))
    return found


def remembered(home: SiteHome, run: str) -> tuple[str, ...]:
    folder = home.site / "runs" / run / "memory"
    memory = ReplayMemory(folder, Reservoir(4, 2, ("a", "b")))
    assert len(list(folder.glob("*.safetensors"))) == len(memory)
    assert all(memory.sample(name).case_id == name for name in memory.recalled)
    return memory.recalled


def test_it_goes_from_the_memory_of_every_run_as_well(home: SiteHome, store: CaseStore) -> None:
    remember(home, "one", "two")
    remove_case(home, store, "a")
    assert remembered(home, "one") == remembered(home, "two") == ("b",)


def test_a_bench_at_work_rehearses_it_no_more(home: SiteHome, store: CaseStore) -> None:
    (memory,) = remember(home, "anna", kind="benches")
    remove_case(home, store, "a")
    assert len(list((home.site / "benches" / "anna" / "memory").glob("*.safetensors"))) == 1
    memory.forget_removed()
    assert memory.recalled == ("b",)
    assert {sample.case_id for sample in memory.draw(8, np.random.default_rng(0))} == {"b"}


@pytest.mark.parametrize("where", ["marked", "one run"])
def test_an_interruption_on_the_way_through_memories_leaves_none_out(
    home: SiteHome, store: CaseStore, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    remember(home, "one", "two")
    with monkeypatch.context() as patch:
        known, times = Path.unlink, []

        def die(path: Path, missing_ok: bool = False) -> None:
            if path.suffix == ".safetensors":
                times.append(path)
                if len(times) == (1 if where == "marked" else 2):
                    raise KeyboardInterrupt
            known(path, missing_ok)

        patch.setattr(Path, "unlink", die)
        with pytest.raises(KeyboardInterrupt):
            remove_case(home, store, "a")
    finish_removal(home, store)
    assert remembered(home, "one") == remembered(home, "two") == ("b",)
    assert not list(home.site.glob("removing*"))


@pytest.mark.parametrize("where", ["before", "between"])
def test_an_interrupted_removal_is_brought_to_its_end(
    home: SiteHome, store: CaseStore, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    forgotten = []
    monkeypatch.setattr(Register, "forget", lambda _, case: forgotten.append(case))
    with Register(home.site / FOLDER):
        pass
    with monkeypatch.context() as patch:

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        if where == "before":
            patch.setattr(CaseStore, "remove", die)
        else:
            patch.setattr(Register, "forget", die)
        with pytest.raises(KeyboardInterrupt):
            remove_case(home, store, "a")
    assert forgotten == []
    finish_removal(home, store)
    assert store.cases() == ("b",)
    assert forgotten == ["a"]
    finish_removal(home, store)
    assert forgotten == ["a"]


def test_a_note_that_cannot_be_read_stops_nobody(home: SiteHome, store: CaseStore) -> None:
    (home.site / "removing.json").write_text("{")
    finish_removal(home, store)
    assert store.cases() == ("a", "b")
    remove_case(home, store, "b")
    assert store.cases() == ("a",)
