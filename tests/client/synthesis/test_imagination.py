"""A generator through the rounds of a site, with a maker that can be looked into and is known to be honest or not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wardround.client.cases.phantoms import draw_phantom
from wardround.client.learning.inference import normalise
from wardround.client.learning.learner import LearningSettings, OnlineLearner
from wardround.client.learning.replay import ReplayMemory, Reservoir, Sample
from wardround.client.synthesis import imagination as module
from wardround.client.synthesis.imagination import Imagination
from wardround.client.synthesis.optimiser_state import names_array, names_of
from wardround.client.synthesis.pairs import Pair, is_synthetic
from wardround.errors import PlanError
from wardround.models.weights import OPERATORS
from wardround.strategies.plan import RoundPlan

CPU = torch.device("cpu")
SIDE = 16


def plan(**fields: Any) -> RoundPlan:
    settings = {
        "run": "test", "round": 1, "rounds": 3, "seed": 3, "model": "unet3d-small", "labels": 3,
        "synthesis": "medsad", "synthesis_updates": 2, "synthesis_side": SIDE,
    }  # fmt: skip
    return RoundPlan.model_validate(settings | fields)


def sample(number: int) -> Sample:
    image, labels = draw_phantom(np.random.default_rng(number), shape=(SIDE, SIDE, SIDE))
    target = np.stack([labels.array == label for label in range(3)]).astype(np.float16)
    weight = np.ones(image.shape, dtype=np.float16)
    return Sample(f"case-{number}", normalise(image.array), target, weight, None, (1.0, 1.0, 2.0))


def memory_of(folder: Path, *numbers: int, seen: int = 0) -> ReplayMemory:
    memory = ReplayMemory(folder, Reservoir(capacity=64, seen=seen))
    for number in numbers:
        memory.offer(sample(number), np.random.default_rng(0))
    return memory


class Honest:
    """Draws what it is asked for, in intensities of its own."""

    def __init__(self, *_: Any) -> None:
        self.seen: frozenset[str] = frozenset()
        self.asked: list[np.ndarray] = []
        self.given: list[Pair] = []

    def learn(self, pairs: list[Pair], updates: int, rng: np.random.Generator, between: Callable[[], None]) -> float:
        self.given = list(pairs)
        self.seen |= {pair.case_id for pair in pairs}
        between()
        return 0.0

    def styles(self, images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1).mean(axis=1, keepdims=True).astype(np.float32)

    def make(self, labels: np.ndarray, styles: np.ndarray | None, rng: np.random.Generator, _: object) -> np.ndarray:
        self.asked += list(labels)
        return np.asarray(labels + rng.normal(0, 0.5, labels.shape), dtype=np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        return {"seen": names_array(self.seen)}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        self.seen = names_of(arrays["seen"])


class Noisy(Honest):
    """Makes nothing of what it is asked for."""

    def make(self, labels: np.ndarray, styles: np.ndarray | None, rng: np.random.Generator, _: object) -> np.ndarray:
        return np.asarray(rng.normal(0, 1, labels.shape), dtype=np.float32)


class Later(Honest):
    """Honest until it has seen seven cases, and from then on a copier."""

    def make(self, labels: np.ndarray, styles: np.ndarray | None, rng: np.random.Generator, _: object) -> np.ndarray:
        if len(self.seen) < 7:
            return super().make(labels, styles, rng, _)
        return Copying.make(self, labels, styles, rng, _)  # type: ignore[arg-type]


class Copying(Honest):
    """Hands out what it has learnt."""

    def make(self, labels: np.ndarray, styles: np.ndarray | None, rng: np.random.Generator, _: object) -> np.ndarray:
        chosen = [pair.image for pair in self.given if not pair.case_id.startswith("made")]
        return np.stack([chosen[number % len(chosen)] for number in range(len(labels))])


def imagined(
    monkeypatch: pytest.MonkeyPatch,
    maker: type[Honest] = Honest,
    kept: dict[str, np.ndarray] | None = None,
    **fields: Any,
) -> tuple[Imagination, Honest]:
    made: list[Honest] = []

    def factory(*_: Any) -> Honest:
        made.append(maker())
        return made[-1]

    monkeypatch.setattr(module, "maker_named", factory)
    # A network that sees what an honest maker shows, and something in real images.
    monkeypatch.setattr(module, "_labels", lambda _, images: np.clip(np.rint(images), 0, 2).astype(np.uint8))
    monkeypatch.setattr(module, "JUDGES_FROM", 0.0)
    return Imagination(plan(**fields), CPU, kept or {}, np.random.default_rng(0)), made[-1]


def learner() -> OnlineLearner:
    return OnlineLearner(LearningSettings("unet3d-small", 3, 0), CPU)


def through(dreams: Imagination, memory: ReplayMemory) -> list[int]:
    """A round's end; returns how many updates were taken from memory each time."""
    taken: list[int] = []
    dreams.learn(memory, lambda: None)
    dreams.rehearse(learner(), memory, 7, taken.append)
    return taken


def test_a_case_is_kept_from_the_generator_and_made_pairs_pass_their_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = memory_of(tmp_path, *range(5))
    dreams, maker = imagined(monkeypatch, synthesis_weight=0.25)
    assert through(dreams, memory) == [7]
    assert len(maker.seen) == 4
    assert maker.seen < set(memory.reservoir.kept)
    assert dreams.verdict is not None
    assert dreams.verdict.passed
    assert dreams.verdict.faithful.dice > dreams.verdict.faithful.shuffled
    drawn = dreams.draw(5, np.random.default_rng(0))
    assert all(is_synthetic(one) for one in drawn)
    assert all(one.image.shape == (SIDE, SIDE, SIDE) for one in drawn)
    assert all(one.factor == 0.25 for one in drawn)
    assert drawn[0].spacing == (1.0, 1.0, 2.0)
    # What is handed to the generator is no mask of anybody.
    real = [sample(number).target.argmax(axis=0) for number in range(5)]
    assert not any(np.array_equal(mask, truth) for mask in maker.asked for truth in real)


def test_nothing_of_a_generator_that_copies_is_learnt_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    memory = memory_of(tmp_path, *range(5))
    dreams, _ = imagined(monkeypatch, Copying, memory="generative")
    assert through(dreams, memory) == [7]
    assert dreams.verdict is not None
    assert not dreams.verdict.passed
    assert dreams.verdict.copies.copies > 0
    assert dreams.pool == []
    assert dreams.share(memory) == 0
    assert "by heart" in caplog.text
    assert len(memory) == 5, "what the generator cannot stand for stays"
    again, _ = imagined(monkeypatch, Copying, kept=dreams.arrays(), memory="generative")
    again.wake(memory)
    assert again.pool == []


def test_a_generator_that_shows_nothing_takes_no_case_s_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = memory_of(tmp_path, *range(6))
    dreams, _ = imagined(monkeypatch, Noisy, synthesis="off", memory="generative")
    through(dreams, memory)
    assert dreams.verdict is not None
    assert dreams.verdict.copies.passed
    assert not dreams.verdict.passed
    assert (dreams.pool, len(memory)) == ([], 6)


def test_a_network_that_knows_nothing_judges_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = memory_of(tmp_path, *range(6))
    dreams, _ = imagined(monkeypatch, memory="generative")
    monkeypatch.setattr(module, "JUDGES_FROM", 1.1)
    through(dreams, memory)
    assert (dreams.pool, len(memory)) == ([], 6)


def test_a_generator_that_begins_to_copy_goes_back_and_goes_on_standing_for_old_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = memory_of(tmp_path, *range(6))
    dreams, _ = imagined(monkeypatch, Later, synthesis="off", memory="generative")
    through(dreams, memory)
    assert len(memory) == 0
    for number in range(6, 10):
        memory.offer(sample(number), np.random.default_rng(0))
    again, maker = imagined(monkeypatch, Later, kept=dreams.arrays(), synthesis="off", memory="generative")
    assert again.stands_for_cases
    again.wake(memory)
    pool = again.pool
    through(again, memory)
    assert again.verdict is not None
    assert again.verdict.copies.copies > 0
    assert again.pool is pool, "what it had passed with goes on"
    assert again.stands_for_cases
    assert len(maker.seen) == 5, "as before the round"
    assert len(memory) == 4, "new cases stay until it can stand for them"


def test_with_two_cases_nothing_is_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None could be kept apart, and what came out could not be tested."""
    dreams, maker = imagined(monkeypatch)
    assert through(dreams, memory_of(tmp_path, 0, 1)) == [7]
    assert maker.seen == frozenset()
    assert dreams.pool == []
    assert dreams.verdict is None


def test_who_is_kept_apart_stays_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = memory_of(tmp_path, 0, 1, 2)
    dreams, maker = imagined(monkeypatch)
    through(dreams, memory)
    apart = set(memory.reservoir.kept) - maker.seen
    assert len(apart) == 1
    for number in range(3, 12):
        memory.offer(sample(number), np.random.default_rng(0))
    dreams, maker = imagined(monkeypatch, kept=dreams.arrays())
    through(dreams, memory)
    assert apart.isdisjoint(maker.seen)
    assert len(set(memory.reservoir.kept) - maker.seen) == 3


def test_old_cases_are_taken_over_and_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = memory_of(tmp_path, *range(6))
    dreams, maker = imagined(monkeypatch, synthesis="off", memory="generative")
    through(dreams, memory)
    assert len(memory) == 0
    assert memory.reservoir.seen == 6
    kept = dreams.arrays()
    known = {array.tobytes() for number in range(6) for array in (sample(number).image, sample(number).target)}
    assert not any(array.tobytes() in known for array in kept.values())
    assert sum(array.nbytes for name, array in kept.items() if "texture" in name) < 1000

    # The next round: old ones are drawn of the model of shapes, and learnt from beside the new ones.
    for number in (6, 7, 8):
        memory.offer(sample(number), np.random.default_rng(0))
    again, maker = imagined(monkeypatch, kept=kept, synthesis="off", memory="generative")
    again.wake(memory)
    assert len(again.pool) == module.POOL[3]
    assert again.share(memory) == pytest.approx(6 / 9)
    through(again, memory)
    made = [pair for pair in maker.given if pair.case_id.startswith("made/")]
    assert len(made) == 3, "it learns two of the three new ones, and stands for five old ones"
    assert {pair.case_id for pair in maker.given if pair not in made} < {"case-6", "case-7", "case-8"}
    assert len(memory) == 0


def test_a_case_that_shows_what_cannot_be_drawn_yet_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A structure that is new, or rare, is not forgotten because a generator stands for the others."""
    memory = memory_of(tmp_path, *range(6))
    one = sample(9)
    head = np.where(one.target.argmax(axis=0) == 1, 1, 0)
    alone = np.stack([head == label for label in range(3)]).astype(np.float16)
    memory.offer(Sample("rare", one.image, alone, one.weight), np.random.default_rng(0))
    for number in (7, 8):
        memory.offer(sample(number), np.random.default_rng(0))
    dreams, maker = imagined(monkeypatch, synthesis="off", memory="generative")
    through(dreams, memory)
    assert "rare" in maker.seen
    assert memory.reservoir.kept == ("rare",)
    again, _ = imagined(monkeypatch, kept=dreams.arrays(), synthesis="off", memory="generative")
    again.wake(memory)
    assert all({1, 2} <= set(np.unique(made.labels)) for made in again.pool)


def test_lesions_of_one_voxel_end_no_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have no shape in common: no mask can be drawn of them, and so they stay."""
    memory = ReplayMemory(tmp_path, Reservoir(capacity=64))
    for number in range(8):
        one, labels = sample(number), np.zeros((SIDE,) * 3, dtype=np.uint8)
        labels[tuple(np.random.default_rng(number).integers(1, SIDE - 1, 3))] = 1
        target = np.stack([labels == label for label in range(3)]).astype(np.float16)
        memory.offer(Sample(one.case_id, one.image, target, one.weight), np.random.default_rng(0))
    dreams, _ = imagined(monkeypatch, synthesis="off", memory="generative")
    through(dreams, memory)
    kept = dreams.arrays()
    again, _ = imagined(monkeypatch, kept=kept, synthesis="off", memory="generative")
    again.wake(memory)
    assert through(again, memory) == [7]
    assert len(memory) in {0, 8}
    assert len(memory) == 8 or again.pool, "who was forgotten can be drawn"


def test_a_generator_that_has_diverged_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Diverged(Honest):
        def make(self, labels: np.ndarray, *_: object) -> np.ndarray:
            return np.full(labels.shape, np.nan, dtype=np.float32)

    memory = memory_of(tmp_path, *range(6))
    dreams, _ = imagined(monkeypatch, Diverged, memory="generative")
    assert through(dreams, memory) == [7]
    assert (dreams.pool, len(memory), dreams.verdict) == ([], 6, None)


def test_another_generator_than_in_the_round_before_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    memory = memory_of(tmp_path, *range(5))
    dreams, _ = imagined(monkeypatch)
    through(dreams, memory)
    _, maker = imagined(monkeypatch, kept=dreams.arrays(), synthesis_side=32)
    assert maker.seen == frozenset()
    assert "begins anew" in caplog.text


def test_a_few_made_pairs_are_kept_to_be_looked_at_also_after_a_round_that_makes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dreams, _ = imagined(monkeypatch)
    through(dreams, memory_of(tmp_path, *range(5)))
    kept = dreams.arrays()
    chosen = [dreams.pool[place] for place in (0, 5, 10, 15)]
    assert np.array_equal(kept["shown/images"], [made.image for made in chosen])
    assert np.array_equal(kept["shown/labels"], [made.labels for made in chosen])
    assert (kept["shown/images"].dtype, kept["shown/labels"].dtype) == (np.float32, np.uint8)
    assert kept["shown/spacing"].tolist() == [[1, 1, 2]] * 4
    again, _ = imagined(monkeypatch, kept=kept)
    again.wake(memory_of(tmp_path / "empty"))
    assert again.pool == []
    later = again.arrays()
    assert all(np.array_equal(later[name], array) for name, array in kept.items() if name.startswith("shown/"))
    # And what the next one makes takes their place.
    again.wake(memory_of(tmp_path / "other", 6, 7, 8))
    assert np.array_equal(again.arrays()["shown/images"][3], again.pool[15].image)
    assert not np.array_equal(again.arrays()["shown/images"], kept["shown/images"])


def test_nothing_is_shown_of_a_generator_that_has_failed_its_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, maker in enumerate((Copying, Noisy)):
        dreams, _ = imagined(monkeypatch, maker)
        through(dreams, memory_of(tmp_path / str(number), *range(5)))
        assert dreams.verdict is not None
        assert not any(name.startswith("shown") for name in dreams.arrays())


def test_a_case_that_validates_a_search_is_learnt_from_by_nobody(tmp_path: Path) -> None:
    memory = ReplayMemory(tmp_path, Reservoir(capacity=64))
    dreams = Imagination(plan(synthesis="genseg"), CPU, {}, np.random.default_rng(0))
    for number in range(8):
        dreams.opened(f"case-{number}", memory)
        memory.offer(sample(number), np.random.default_rng(0))
    assert memory.withheld == {"case-2", "case-6"}
    drawn = {one.case_id for one in memory.draw(300, np.random.default_rng(0))}
    assert drawn == set(memory.reservoir.kept) - memory.withheld
    dreams.learn(memory)
    assert dreams.seen == drawn
    # Also in the next round, whose memory knows nothing of it at first.
    fresh = ReplayMemory(tmp_path, memory.reservoir)
    Imagination(plan(synthesis="genseg"), CPU, dreams.arrays(), np.random.default_rng(0)).wake(fresh)
    assert fresh.withheld == memory.withheld


def test_as_augmentation_the_plan_says_how_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = memory_of(tmp_path, *range(5))
    dreams, _ = imagined(monkeypatch, synthesis_share=0.3)
    assert dreams.share(memory) == 0, "nothing was made yet"
    through(dreams, memory)
    assert dreams.share(memory) == 0.3
    both, _ = imagined(monkeypatch, memory="both")
    through(both, memory)
    assert both.share(memory) == 0.5
    assert len(memory) == 5


@pytest.mark.parametrize("fields", [{}, {"synthesis": "genseg"}, {"synthesis": "off", "memory": "generative"}])
def test_a_round_that_is_asked_for_again_makes_the_same(tmp_path: Path, fields: dict[str, Any]) -> None:
    """With the real makers, from what was kept."""
    results = []
    first = Imagination(plan(**fields), CPU, {}, np.random.default_rng(0))
    through(first, memory_of(tmp_path / "first", *range(6)))
    for number in range(2):
        memory = memory_of(tmp_path / str(number), 6, 7, 8, seen=6)
        dreams = Imagination(plan(**fields), CPU, first.arrays(), np.random.default_rng(1))
        dreams.wake(memory)
        through(dreams, memory)
        results.append((dreams.arrays(), [one.image for one in dreams.pool]))
    (one, pool), (other, pool_again) = results
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert all(np.array_equal(a, b) for a, b in zip(pool, pool_again, strict=True))
    assert any(not np.array_equal(one[name], first.arrays().get(name)) for name in one)


def test_a_search_moves_its_operators_by_turns_with_the_network(tmp_path: Path) -> None:
    memory = memory_of(tmp_path, *range(5))
    dreams = Imagination(plan(synthesis="genseg", synthesis_updates=64), CPU, {}, np.random.default_rng(0))
    before = dreams.operators.copy()
    network = learner()
    weights = network.weights()
    taken: list[int] = []
    dreams.rehearse(network, memory, 7, taken.append)
    assert taken == [7], "nothing is kept apart before it has learnt"
    dreams.learn(memory, lambda: None)
    taken.clear()
    dreams.rehearse(network, memory, 7, taken.append)
    assert taken == [3, 4]
    assert not np.array_equal(before, dreams.operators)
    assert all(np.array_equal(array, network.weights()[name]) for name, array in weights.items())


def test_operators_that_travel_must_fit() -> None:
    dreams = Imagination(plan(synthesis="genseg", share_knobs=True), CPU, {}, np.random.default_rng(0))
    given = np.full_like(dreams.operators, 0.5)
    dreams.take_operators({OPERATORS: given})
    assert np.array_equal(dreams.operators, given)
    for wrong in ({}, {OPERATORS: given[:1]}, {OPERATORS: given.astype(np.float64)}):
        with pytest.raises(PlanError, match="operators"):
            dreams.take_operators(wrong)
