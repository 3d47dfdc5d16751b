"""What stands for cases that are no longer kept, over several rounds."""

import numpy as np
import pytest

from wardround.client.synthesis.substitute import TEXTURES, Substitute, substituted

GRID = (24, 24)


def disc(label: int, rng: np.random.Generator) -> np.ndarray:
    first, second = np.indices(GRID)
    middle = rng.uniform(10, 13, 2)
    return np.where(np.hypot(first - middle[0], second - middle[1]) < rng.uniform(4, 6), label, 0).astype(np.uint8)


def discs(label: int, count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [disc(label, rng) for _ in range(count)]


def textures(value: float, count: int) -> np.ndarray:
    return np.full((count, 3), value, dtype=np.float32)


def shown(found: Substitute, draws: int = 400) -> dict[int, float]:
    rng = np.random.default_rng(1)
    labels = [int(found.draw(rng)[0].max()) for _ in range(draws)]
    return {label: labels.count(label) / draws for label in set(labels)}


def test_an_old_kind_stays_as_frequent_as_it_was() -> None:
    rng = np.random.default_rng(0)
    old = substituted(None, discs(1, 20), textures(1, 20), 10, rng)
    assert old is not None
    new = substituted(old, discs(2, 20), textures(2, 20), 10, rng)
    assert new is not None
    assert new.cases == 20
    assert shown(new)[1] == pytest.approx(0.5, abs=0.1)
    for _ in range(5):
        new = substituted(new, discs(2, 4), textures(2, 4), 2, rng)
        assert new is not None
    assert shown(new)[1] == pytest.approx(20 / 60, abs=0.1)
    assert new.textures is not None
    assert len(new.textures) <= TEXTURES


def test_textures_are_mixed_by_the_cases_behind_them() -> None:
    rng = np.random.default_rng(0)
    old = substituted(None, discs(1, 8), textures(1, 100), 30, rng)
    new = substituted(old, discs(1, 8), textures(2, 100), 10, rng)
    assert new is not None
    assert new.textures is not None
    assert (new.textures == 1).all(axis=1).sum() == 48
    assert (new.textures == 2).all(axis=1).sum() == 16


def test_a_new_kind_with_few_masks_is_not_covered() -> None:
    rng = np.random.default_rng(0)
    found = substituted(None, discs(1, 6) + discs(2, 3), None, 9, rng)
    assert found is not None
    assert found.covers(discs(1, 2))
    assert found.covers([np.zeros(GRID, dtype=np.uint8)])
    assert not found.covers(discs(2, 1))
    assert set(shown(found)) == {1}


def test_nothing_stands_for_what_is_too_rare_or_has_no_shape() -> None:
    rng = np.random.default_rng(0)
    assert substituted(None, discs(1, 3), None, 3, rng) is None
    points = []
    for _ in range(8):
        mask = np.zeros(GRID, dtype=np.uint8)
        mask[tuple(rng.integers(1, 23, 2))] = 1
        points.append(mask)
    found = substituted(None, points, None, 8, rng)
    assert found is None or shown(found) == {1: 1.0}


def test_it_comes_back_from_its_arrays() -> None:
    found = substituted(None, discs(1, 6), textures(3, 6), 6, np.random.default_rng(0))
    assert found is not None
    again = Substitute.of(found.arrays())
    assert again.cases == 6
    one, other = (part.draw(np.random.default_rng(2)) for part in (found, again))
    assert np.array_equal(one[0], other[0])
    assert np.array_equal(one[1], other[1])
