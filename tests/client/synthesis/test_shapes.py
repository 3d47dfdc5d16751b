"""The model of shapes: draws are of the kind that it saw, and no mask can be read from it."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from wardround.client.learning.metrics import mean_dice
from wardround.client.synthesis.masks import LabelArray
from wardround.client.synthesis.shapes import FEWEST, ShapeKind, ShapeModel
from wardround.errors import DataError, GeometryError


def ellipse(rng: np.random.Generator, sides: tuple[int, ...] = (32, 28), parts: tuple[int, ...] = (1, 2)) -> LabelArray:
    """Of random radii and place; the first part to the left, the second to the right."""
    middle = np.array(sides) / 2 + rng.normal(0, 1.5, len(sides))
    radii = np.array(sides) * rng.uniform(0.15, 0.3, len(sides))
    away = (np.indices(sides).reshape(len(sides), -1).T - middle) / radii
    inside = (np.square(away).sum(axis=1) < 1).reshape(sides)
    labels = np.where(inside, parts[-1], 0).astype(np.uint8)
    left = int(middle[0])
    labels[:left][inside[:left]] = parts[0]
    return labels


def masks(count: int, **kind: object) -> list[LabelArray]:
    rng = np.random.default_rng(0)
    return [ellipse(rng, **kind) for _ in range(count)]  # type: ignore[arg-type]


@pytest.mark.parametrize("sides", [(32, 28), (20, 18, 16)])
def test_draws_are_as_large_as_varied_and_as_far_apart_as_what_was_seen(sides: tuple[int, ...]) -> None:
    seen = masks(40, sides=sides)
    model, rng = ShapeModel.fit(seen, 6), np.random.default_rng(1)
    drawn = [model.sample(rng) for _ in range(60)]
    assert {mask.shape for mask in drawn} == {sides}
    assert all(np.unique(mask).tolist() == [0, 1, 2] for mask in drawn)
    for label in (1, 2):
        ours, theirs = ([float((mask == label).sum()) for mask in part] for part in (drawn, seen))
        assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=0.15)
        assert 0.5 < np.std(ours) / np.std(theirs) < 1.5
    places = [np.std([np.argwhere(mask).mean(axis=0)[0] for mask in part]) for part in (drawn, seen)]
    assert 0.5 < places[0] / places[1] < 1.5
    rng = np.random.default_rng(2)
    others = [ellipse(rng, sides) for _ in range(30)]
    ours, theirs = ([max(mean_dice(mask, one, 3) for one in seen) for mask in part] for part in (drawn, others))
    assert np.mean(ours) > np.mean(theirs) - 0.1


def test_no_mask_can_be_read_from_it() -> None:
    """Neither is one kept, nor can one be put together again: no coordinates lead to it."""
    seen = masks(6)
    model = ShapeModel.fit(seen, 100)
    kind = model.kinds[0]
    assert len(kind.directions) == 3
    assert all(array.dtype != np.uint8 or array.size < 3 for array in model.arrays().values())
    rng = np.random.default_rng(0)
    draws = [kind.mask(rng.normal(0, 1, 3)) for _ in range(300)]
    assert not any(np.array_equal(draw, one) for draw in draws for one in seen)


def test_directions_are_one_standard_deviation() -> None:
    """Shapes that differ in one way only: the model has that way, as wide as it was seen."""
    grid = np.indices((24, 24)) - 11.5
    radii = np.array([4.0, 5.0, 6.0, 7.0, 8.0, 9.0])
    seen = [(np.hypot(*grid) < radius).astype(np.uint8) for radius in radii]
    kind = ShapeKind.fit(seen, 1, np.ones(2))
    # In the middle the distances are the radii, cut off at a quarter of the side; so look at the border of the mean.
    border = kind.directions[0, 0, 11, 18]
    assert abs(float(border)) == pytest.approx(radii.std(ddof=1), rel=0.25)
    assert np.abs(kind.moves).max() < 1e-3


def test_kinds_stay_apart_and_are_as_frequent_as_seen() -> None:
    """Slices of either part alone, never of what lies between."""
    model = ShapeModel.fit(masks(30, parts=(1,)) + masks(10, parts=(4,)), 4)
    assert [kind.structures.tolist() for kind in model.kinds] == [[1], [4]]
    rng = np.random.default_rng(0)
    shown = [tuple(np.unique(model.sample(rng)).tolist()) for _ in range(200)]
    assert set(shown) == {(0, 1), (0, 4)}
    assert shown.count((0, 1)) == pytest.approx(150, abs=20)


def test_what_is_rare_is_not_learnt() -> None:
    model = ShapeModel.fit(masks(8, parts=(1,)) + masks(FEWEST - 1, parts=(4,)), 4)
    assert [kind.structures.tolist() for kind in model.kinds] == [[1]]


def test_it_is_the_same_from_disk_and_from_the_same_seed(tmp_path: Path) -> None:
    model = ShapeModel.fit(masks(12) + masks(5, parts=(3,)), 4)
    save_file(model.arrays(), tmp_path / "shapes.safetensors")
    again = ShapeModel.of(load_file(tmp_path / "shapes.safetensors"))
    first, second = ([one.sample(rng) for _ in range(10)] for one, rng in ((model, _rng()), (again, _rng())))
    assert all(np.array_equal(*both) for both in zip(first, second, strict=True))
    assert len({mask.tobytes() for mask in first}) > 5


def _rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_distances_are_in_the_unit_of_the_spacing() -> None:
    fine, coarse = (ShapeModel.fit(masks(8), 2, spacing=(step, step)) for step in (1.0, 2.0))
    assert np.allclose(2 * fine.kinds[0].mean, coarse.kinds[0].mean)


def test_the_same_mask_many_times_has_no_directions() -> None:
    one = masks(1)[0]
    model = ShapeModel.fit([one] * 5, 4)
    assert model.kinds[0].directions.shape == (0, 2, 32, 28)
    assert model.sample(_rng()).any()


def test_too_few_masks_are_refused() -> None:
    empty = np.zeros((32, 28), dtype=np.uint8)
    with pytest.raises(DataError, match="too few"):
        ShapeModel.fit([*masks(FEWEST - 1), *[empty] * 5], 2)


def test_masks_on_two_grids_are_refused() -> None:
    with pytest.raises(GeometryError, match="one grid"):
        ShapeModel.fit(masks(4) + masks(4, sides=(20, 20)), 2)


def test_a_model_that_shows_nothing_says_so() -> None:
    kind = ShapeModel.fit(masks(8), 2).kinds[0]
    nothing = ShapeKind(
        kind.structures, 8, kind.mean, np.full(2, 1e6, np.float32), kind.directions, kind.place, kind.moves
    )
    with pytest.raises(DataError, match="lack a structure"):
        ShapeModel((nothing,)).sample(_rng())
