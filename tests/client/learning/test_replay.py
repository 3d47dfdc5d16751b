"""The replay memory is a reservoir, and it holds targets."""

from pathlib import Path

import numpy as np
import pytest

from wardround.client.learning import replay
from wardround.client.learning.replay import ReplayMemory, Reservoir, Sample


def sample(name: str, value: float = 0.5) -> Sample:
    shape = (2, 3, 4)
    target = np.stack([np.full(shape, 1 - value), np.full(shape, value)]).astype(np.float16)
    return Sample(name, np.full(shape, value, np.float32), target, np.ones(shape, np.float16))


def test_every_case_of_a_long_stream_is_equally_likely_to_be_remembered() -> None:
    stream, capacity, runs = 40, 8, 600
    counts = np.zeros(stream)
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        memory = Reservoir(capacity)
        for case in range(stream):
            memory = memory.offer(str(case), rng)
        assert len(memory.kept) == capacity
        counts[[int(name) for name in memory.kept]] += 1
    expected = runs * capacity / stream
    chi_square = ((counts - expected) ** 2 / (expected * (1 - capacity / stream))).sum()
    assert chi_square < 70  # 39 degrees of freedom: p = 0.002; exponential forgetting gives thousands
    assert abs(counts[:20].sum() - counts[20:].sum()) < 0.1 * counts.sum()


def test_a_case_offered_twice_counts_once() -> None:
    memory = Reservoir(3).offer("a", np.random.default_rng(0)).offer("a", np.random.default_rng(0))
    assert memory == Reservoir(3, 1, ("a",))


def test_capacity_zero_remembers_nothing(tmp_path: Path) -> None:
    memory = ReplayMemory(tmp_path, Reservoir(0))
    memory.offer(sample("a"), np.random.default_rng(0))
    assert len(memory) == 0
    assert memory.draw(3, np.random.default_rng(0)) == []
    assert list(tmp_path.iterdir()) == []


def test_a_reopened_memory_draws_the_same_bits(tmp_path: Path) -> None:
    memory = ReplayMemory(tmp_path, Reservoir(4))
    for number in range(4):
        memory.offer(sample(f"case {number}", number / 7), np.random.default_rng(number))
    again = ReplayMemory(tmp_path, memory.reservoir)
    for one, other in zip(
        memory.draw(9, np.random.default_rng(1)), again.draw(9, np.random.default_rng(1)), strict=True
    ):
        assert one.case_id == other.case_id
        for name in ("image", "target", "weight"):
            a, b = getattr(one, name), getattr(other, name)
            assert a.dtype == b.dtype
            assert np.array_equal(a, b)


def test_what_does_not_fit_in_ram_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "LOADED_BYTES", 1)
    memory = ReplayMemory(tmp_path, Reservoir(3))
    for number in range(3):
        memory.offer(sample(str(number), number / 7), np.random.default_rng(0))
    assert len(memory._loaded) == 1
    drawn = memory.draw(20, np.random.default_rng(1))
    assert {one.case_id for one in drawn} == {"0", "1", "2"}
    assert all(np.array_equal(one.image, sample(one.case_id, int(one.case_id) / 7).image) for one in drawn)


def test_files_that_nobody_names_go_and_those_of_the_last_snapshot_stay(tmp_path: Path) -> None:
    memory = ReplayMemory(tmp_path, Reservoir(3))
    for name in ("a", "b", "c"):
        memory.offer(sample(name), np.random.default_rng(0))
    memory.reservoir = Reservoir(3, 3, ("a",))
    memory.discard_unnamed("b")
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert ReplayMemory(tmp_path, Reservoir(3, 2, ("b",))).draw(1, np.random.default_rng(0))[0].case_id == "b"


def test_file_names_tell_nothing_of_the_case(tmp_path: Path) -> None:
    ReplayMemory(tmp_path, Reservoir(1)).offer(sample("DOE^JANE"), np.random.default_rng(0))
    assert "doe" not in "".join(path.name for path in tmp_path.iterdir()).lower()
