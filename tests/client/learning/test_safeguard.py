"""Who judges a new case, what they see, and when nobody does."""

from pathlib import Path

import numpy as np
import pytest

from wardround.client.learning.replay import ReplayMemory, Reservoir, Sample
from wardround.client.learning.safeguard import WORKING, Safeguard, stored_dice

SHAPE = (4, 4, 4)


def labels_of(name: str) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[: 1 + int(name) % 3] = 1
    return labels


def sample(name: str) -> Sample:
    labels = labels_of(name)
    target = np.stack([1 - labels, labels]).astype(np.float16)
    return Sample(name, np.full(SHAPE, int(name), np.float32), target, np.ones(SHAPE, np.float16))


class Model:
    """Knows every case by its intensity; `wrong` of the predicted rows along axis 0 are turned round."""

    def __init__(self, wrong: int = 0) -> None:
        self.wrong = wrong
        self.seen: list[int] = []

    def predict(self, image: np.ndarray) -> np.ndarray:
        number = int(image.flat[0])
        self.seen.append(number)
        labels = labels_of(str(number)).copy()
        labels[: self.wrong] = 1 - labels[: self.wrong]
        return np.stack([1 - labels, labels]).astype(np.float32)


def memory(folder: Path, count: int, capacity: int = 99) -> ReplayMemory:
    held = ReplayMemory(folder, Reservoir(capacity))
    for number in range(count):
        held.offer(sample(str(number)), np.random.default_rng(0))
    return held


def guard(held: ReplayMemory, model: Model, count: int = 3, case: str = "new", seed: int = 0) -> Safeguard:
    rng = np.random.default_rng(seed)
    return Safeguard.before_case(case, model, held, count=count, labels=2, rng=rng)  # type: ignore[arg-type]


def test_distinct_remembered_cases_judge_and_chance_chooses_them(tmp_path: Path) -> None:
    held = memory(tmp_path, 8)
    chosen = [{one.case_id for one in guard(held, Model(), seed=seed).samples} for seed in range(20)]
    assert all(len(names) == 3 for names in chosen)
    assert set.union(*chosen) == {str(number) for number in range(8)}


def test_a_case_does_not_judge_itself(tmp_path: Path) -> None:
    held = memory(tmp_path, 4)
    for seed in range(10):
        assert "2" not in {one.case_id for one in guard(held, Model(), case="2", seed=seed).samples}


@pytest.mark.parametrize(("held", "count", "capacity"), [(2, 3, 99), (5, 0, 99), (0, 3, 0), (0, 3, 99)])
def test_without_enough_remembered_cases_nobody_judges(tmp_path: Path, held: int, count: int, capacity: int) -> None:
    model = Model()
    found = guard(memory(tmp_path, held, capacity), model, count)
    assert not found.judges
    assert found.fall(Model(wrong=4)) == 0.0  # type: ignore[arg-type]
    assert model.seen == []


def test_a_memory_that_is_smaller_than_the_plan_asks_judges_with_all_it_holds(tmp_path: Path) -> None:
    assert len(guard(memory(tmp_path, 2, capacity=2), Model()).samples) == 2


def test_a_model_that_never_worked_has_nothing_to_lose(tmp_path: Path) -> None:
    held = memory(tmp_path, 5)
    found = guard(held, Model(wrong=4))
    assert found.before.mean() < WORKING
    assert not found.judges
    assert found.fall(Model(wrong=4)) == 0.0  # type: ignore[arg-type]


def test_the_fall_is_that_of_the_mean_dice(tmp_path: Path) -> None:
    found = guard(memory(tmp_path, 5), Model())
    assert found.judges
    assert (found.before == 1).all()
    assert found.fall(Model()) == 0.0  # type: ignore[arg-type]
    worse = stored_dice(Model(wrong=1), found.samples, 2)  # type: ignore[arg-type]
    assert found.fall(Model(wrong=1)) == pytest.approx(1 - worse.mean())  # type: ignore[arg-type]
    assert found.fall(Model(wrong=4)) == pytest.approx(1.0)  # type: ignore[arg-type]


def test_only_voxels_that_count_are_compared() -> None:
    one = sample("1")
    weight = np.ones(SHAPE, np.float16)
    weight[0] = 0
    partial = Sample(one.case_id, one.image, one.target, weight)
    model = Model(wrong=1)
    assert stored_dice(model, [one], 2)[0] == pytest.approx(2 / 3)  # type: ignore[arg-type]
    assert stored_dice(model, [partial], 2)[0] == 1.0  # type: ignore[arg-type]


def test_a_case_without_an_object_counts_until_one_is_seen_in_it() -> None:
    empty = np.stack([np.ones(SHAPE), np.zeros(SHAPE)]).astype(np.float16)
    nothing = Sample("9", np.zeros(SHAPE, np.float32), empty, np.ones(SHAPE, np.float16))

    class Seeing(Model):
        def predict(self, image: np.ndarray) -> np.ndarray:
            return empty[::-1].astype(np.float32)

    class Blind(Model):
        def predict(self, image: np.ndarray) -> np.ndarray:
            return empty.astype(np.float32)

    assert stored_dice(Blind(), [nothing], 2)[0] == 1.0  # type: ignore[arg-type]
    assert stored_dice(Seeing(), [nothing], 2)[0] == 0.0  # type: ignore[arg-type]
