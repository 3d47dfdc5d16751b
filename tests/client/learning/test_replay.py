"""The replay memory keeps and recalls by the law its policy names, and it holds targets."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from wardround.client.learning import replay
from wardround.client.learning.learner import LearningSettings, OnlineLearner
from wardround.client.learning.replay import ReplayMemory, Reservoir, Sample, remove_remembered
from wardround.errors import StorageError
from wardround.models.weights import load_arrays, save_arrays
from wardround.strategies.plan import Replay


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


def ages(offer: str, capacity: int, stream: int, runs: int) -> np.ndarray:
    """How often a case of each age (0 is the newest) is still remembered after a stream."""
    counts = np.zeros(stream)
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        memory = Reservoir(capacity)
        for case in range(stream):
            memory = getattr(memory, offer)(str(case), rng)
            assert len(memory.kept) == min(case + 1, capacity)
        counts[[stream - 1 - int(name) for name in memory.kept]] += 1
    return counts


def test_after_a_thousand_cases_a_reservoir_holds_all_ages_alike() -> None:
    counts = ages("offer", capacity=16, stream=1000, runs=60)
    decades = counts.reshape(10, 100).sum(axis=1)
    expected = 16 * 60 / 10
    assert ((decades - expected) ** 2 / expected).sum() < 27.9  # 9 degrees of freedom: p = 0.001


def test_after_a_thousand_cases_a_random_subset_forgets_exponentially() -> None:
    capacity, runs = 16, 60
    counts = ages("offer_subset", capacity, stream=1000, runs=runs)
    survival = capacity / (capacity + 1)
    bounds = [0, 4, 8, 12, 17, 23, 30, 40, 55, 1000]
    for low, high in pairwise(bounds):
        expected = runs * sum(survival ** (age + 1) for age in range(low, high))
        # Each case is in or out with its own chance; cases of one run displace one another, which lowers the variance.
        assert abs(counts[low:high].sum() - expected) < 3.5 * np.sqrt(expected)
    assert (counts * np.arange(1000)).sum() / counts.sum() == pytest.approx(capacity, rel=0.1)


def holding(*labels: int) -> np.ndarray:
    return np.isin(np.arange(4), (0, *labels))


def test_cases_with_a_rare_structure_stay_and_the_common_ones_make_room() -> None:
    """One case in 25 holds structure 2: a memory of 16 out of 400 would hold 0.6 of them by chance."""
    rare, common = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        memory = Reservoir(16)
        for case in range(400):
            memory = memory.offer_balanced(f"{case}", holding(1, 2) if case % 25 == 24 else holding(1), rng)
            assert len(memory.kept) == len(set(memory.kept)) == len(memory.groups) == min(case + 1, 16)
        kept = [int(name) for name in memory.kept]
        assert all((group == 2) == (case % 25 == 24) for case, group in zip(kept, memory.groups, strict=True))
        rare.append(sum(case % 25 == 24 for case in kept))
        common += [case for case in kept if case % 25 != 24]
    assert set(rare) == {8}
    halves = sum(case < 200 for case in common) / len(common)
    assert abs(halves - 0.5) < 0.15  # within the group all ages are alike, also of those that made room


def test_a_group_that_made_room_does_not_grow_back_at_the_cost_of_others() -> None:
    """Group 1 was the largest once and met 1000 cases: one more comes in by chance 1 / 1001, in place of its own."""
    before = Reservoir(4, 2001, ("a", "b", "c", "d"), (1, 2, 2, 3), (0, 1000, 1000, 1), (0, 1000, 1000, 1), (1, 2))
    came_in = 0
    for seed in range(200):
        after = before.offer_balanced("new", holding(1), np.random.default_rng(seed))
        assert after.groups == before.groups
        came_in += "new" in after.kept
    assert came_in <= 3


def test_cases_that_hold_the_same_structures_are_a_plain_reservoir() -> None:
    counts = np.zeros(40)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        memory = Reservoir(8)
        for case in range(40):
            memory = memory.offer_balanced(str(case), holding(1, 2, 3), rng)
        counts[[int(name) for name in memory.kept]] += 1
    expected = 200 * 8 / 40
    assert ((counts - expected) ** 2 / (expected * 0.8)).sum() < 70


def test_a_case_without_any_structure_is_a_group_of_its_own() -> None:
    rng = np.random.default_rng(0)
    memory = Reservoir(2).offer_balanced("empty", holding(), rng).offer_balanced("one", holding(1), rng)
    assert memory.groups == (0, 1)
    assert memory.holders == (0, 1, 0, 0)


def test_a_balanced_memory_looks_at_the_targets(tmp_path: Path) -> None:
    memory = ReplayMemory(tmp_path, Reservoir(4), "class-balanced")
    memory.offer(sample("holds it", 0.9), np.random.default_rng(0))
    memory.offer(sample("does not", 0.1), np.random.default_rng(0))
    assert memory.reservoir.groups == (1, 0)
    assert memory.reservoir.seen == 2


@pytest.mark.parametrize("policy", get_args(Replay))
def test_no_policy_keeps_more_than_it_may(tmp_path: Path, policy: Replay) -> None:
    for capacity in (0, 3):
        memory = ReplayMemory(tmp_path / str(capacity), Reservoir(capacity), policy)
        memory._folder.mkdir()
        for number in range(12):
            memory.offer(sample(str(number), number / 12), np.random.default_rng(number))
            assert len(memory) <= capacity
        memory.discard_unnamed()
        assert len(list(memory._folder.iterdir())) == len(memory) == capacity
        assert memory.reservoir.seen == 12


class Harmed:
    """A learner whose next step harms a case by the number that it is called."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def interference(self, incoming: Sample, candidates: Sequence[Sample], rng: np.random.Generator) -> list[float]:
        assert incoming.case_id == "new"
        self.asked.append([one.case_id for one in candidates])
        return [float(one.case_id) for one in candidates]


def test_the_most_interfered_of_the_candidates_are_recalled(tmp_path: Path) -> None:
    memory = ReplayMemory(tmp_path, Reservoir(20), "most-interfered")
    for number in range(20):
        memory.offer(sample(str(number)), np.random.default_rng(0))
    learner = Harmed()
    for seed in range(5):
        drawn = memory.draw(2, np.random.default_rng(seed), learner, sample("new"))
        asked = learner.asked[-1]
        assert len(set(asked)) == 2 * replay.CANDIDATES
        assert [one.case_id for one in drawn] == sorted(asked, key=int)[:-3:-1]
    assert len({tuple(asked) for asked in learner.asked}) == 5
    assert len(memory.draw(2, np.random.default_rng(0))) == 2
    assert len(learner.asked) == 5


def test_a_real_learner_recalls_the_case_that_the_new_one_contradicts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shape = (16, 16, 16)
    bright = np.zeros(shape, np.float32)
    bright[4:12, 4:12, 4:12] = 2
    labels = bright > 0
    bright += rng.normal(0, 0.1, shape).astype(np.float32)
    noise = rng.normal(0, 0.1, shape).astype(np.float32)

    def case(name: str, image: np.ndarray, mask: np.ndarray) -> Sample:
        return Sample(name, image, np.stack([~mask, mask]).astype(np.float16), np.ones(shape, np.float16))

    memory = ReplayMemory(tmp_path, Reservoir(4), "most-interfered")
    for name, image, mask in (
        ("contradicted", bright, labels),
        ("empty", noise, labels & False),
        ("the same", bright, ~labels),
    ):
        memory.offer(case(name, image, mask), rng)
    settings = LearningSettings("unet3d-small", 2, 0, augmentation=None)
    learner = OnlineLearner(settings, torch.device("cpu"))
    learner.update(lambda: [memory.sample("contradicted"), memory.sample("empty")], 10, 4e-3, rng)
    weights, moments = learner.weights(), learner.optimiser_state()
    drawn = memory.draw(1, rng, learner, case("new", bright, ~labels))
    assert [one.case_id for one in drawn] == ["contradicted"]
    assert all(np.array_equal(array, learner.weights()[name]) for name, array in weights.items())
    assert all(np.array_equal(array, learner.optimiser_state()[name]) for name, array in moments.items())


def test_what_is_stored_is_the_target_that_was_offered_last(tmp_path: Path) -> None:
    memory = ReplayMemory(tmp_path, Reservoir(2))
    memory.offer(sample("a", 0.25), np.random.default_rng(0))
    memory.offer(sample("a", 0.75), np.random.default_rng(0))
    stored = ReplayMemory(tmp_path, memory.reservoir).sample("a")
    assert (stored.target[1] == 0.75).all()
    assert memory.reservoir.seen == 1


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


def test_a_memory_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """Its files know neither what was drawn nor the spacing, and padding counted in full."""
    memory = ReplayMemory(tmp_path, Reservoir(4))
    memory.offer(sample("old"), np.random.default_rng(0))
    (file,) = tmp_path.glob("*.safetensors")
    kept = load_arrays(file)
    save_arrays(file, {name: kept[name] for name in ("image", "target", "weight")})
    read = ReplayMemory(tmp_path, memory.reservoir).sample("old")
    assert (read.drawn, read.spacing, read.padding) == (None, (1.0, 1.0, 1.0), 1.0)
    learner = OnlineLearner(LearningSettings("unet3d-small", len(read.target), 0), torch.device("cpu"))
    assert np.isfinite(learner.update(lambda: [read, sample("new")], 1, 1e-3, np.random.default_rng(0)))


def test_what_was_drawn_and_how_far_voxels_are_apart_is_kept(tmp_path: Path) -> None:
    plain = sample("a")
    drawn = np.random.default_rng(0).random(plain.image.shape) < 0.1
    memory = ReplayMemory(tmp_path, Reservoir(4))
    memory.offer(replace(plain, drawn=drawn, spacing=(1.5, 1.5, 10.0), padding=0.25), np.random.default_rng(0))
    read = ReplayMemory(tmp_path, memory.reservoir).sample("a")
    assert read.drawn is not None
    assert np.array_equal(read.drawn, drawn)
    assert (read.spacing, read.padding) == ((1.5, 1.5, 10.0), 0.25)


def test_a_case_that_was_removed_is_left_out_and_a_file_that_is_lost_or_damaged_is_an_error(tmp_path: Path) -> None:
    memory = ReplayMemory(tmp_path, Reservoir(4), "class-balanced")
    for name in "abc":
        memory.offer(sample(name), np.random.default_rng(0))
    remove_remembered(tmp_path, "b")
    remove_remembered(tmp_path, "never there")
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    after = ReplayMemory(tmp_path, memory.reservoir, "class-balanced")
    assert after.reservoir.kept == ("a", "c")
    assert len(after.reservoir.groups) == 2
    assert after.reservoir.seen == 3
    assert {drawn.case_id for drawn in after.draw(40, np.random.default_rng(0))} == {"a", "c"}
    after.discard_unnamed("b")
    assert ReplayMemory(tmp_path, memory.reservoir).reservoir.kept == ("a", "c"), "an earlier snapshot names it still"
    # What comes again is remembered again.
    after.offer(sample("b"), np.random.default_rng(0))
    assert ReplayMemory(tmp_path, after.reservoir).sample("b").case_id == "b"
    after.forget(["b"])
    after.discard_unnamed()
    assert len(list(tmp_path.iterdir())) == 2
    (file,) = {memory._file("c")} & set(tmp_path.iterdir())
    file.write_bytes(b"no sample")
    damaged = ReplayMemory(tmp_path, after.reservoir)
    assert damaged.reservoir.kept == ("a", "c")
    with pytest.raises(StorageError):
        damaged.sample("c")
    file.unlink()
    lost = ReplayMemory(tmp_path, after.reservoir)
    assert lost.reservoir.kept == ("a", "c")
    with pytest.raises(StorageError):
        lost.sample("c")
