"""Augmentation: targets stay probabilities, everything moves together, and the generator decides all of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from wardround.client.learning.augmentation import (
    Augmentation,
    Augmenter,
    StrongAugmentation,
    augmentation_named,
)

LIGHT, STRONG = Augmentation(), StrongAugmentation(moved=1.0, intensities=3.0)
STILL = replace(STRONG, rotation=0, shift=0, scale=(1.0, 1.0), intensities=0)
BOTH = pytest.mark.parametrize("augmentation", [LIGHT, STRONG], ids=["light", "strong"])
SIDES = pytest.mark.parametrize("sides", [(32, 24), (16, 24, 16), (24, 24, 8)])


def batch(sides: tuple[int, ...], count: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Images, soft targets of three classes, and three maps: of ones, of drawn voxels, of numbers 0, 1, 2."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(count, 1, *sides, generator=generator)
    target = torch.softmax(2 * torch.randn(count, 3, *sides, generator=generator), 1)
    drawn = (torch.rand(count, 1, *sides, generator=generator) < 0.3).float()
    levels = torch.randint(0, 3, (count, 1, *sides), generator=generator).float()
    return image, target, torch.cat([torch.ones_like(image), drawn, levels], dim=1)


@BOTH
@SIDES
def test_targets_stay_probabilities_and_maps_keep_their_values(augmentation: Augmenter, sides: tuple[int, ...]) -> None:
    for seed in range(5):
        given = batch(sides)
        image, target, maps = augmentation(*given, np.random.default_rng(seed))
        assert [part.shape for part in (image, target, maps)] == [part.shape for part in given]
        assert {type(part) for part in (image, target, maps)} == {Tensor}
        assert {part.dtype for part in (image, target, maps)} == {torch.float32}
        assert image.isfinite().all()
        assert torch.allclose(target.sum(1), torch.ones_like(target[:, 0]), atol=1e-5)
        assert target.min() > -1e-5
        assert set(maps[:, 0].unique().tolist()) <= {0.0, 1.0}
        assert set(maps[:, 2].unique().tolist()) <= {0.0, 1.0, 2.0}


@BOTH
@SIDES
def test_what_moves_in_from_outside_is_background_and_counts_nothing(
    augmentation: Augmenter, sides: tuple[int, ...]
) -> None:
    image, target, maps = batch(sides)
    target[:, 1], target[:, [0, 2]] = 1, 0
    rng, outside = np.random.default_rng(0), 0
    for _ in range(6):
        _, found, counts = augmentation(image, target, maps, rng)
        gone = counts[:, 0] == 0
        outside += int(gone.sum())
        # A voxel that counts nothing lies at least half outside, but for some at the edge that moved twice.
        assert (found[:, 0][gone] >= 0.49).float().mean() > 0.95
        assert torch.allclose(found[:, 0] + found[:, 1], torch.ones_like(found[:, 0]), atol=1e-5)
        assert (counts[:, 1:].movedim(1, -1)[gone] == 0).all()
    assert outside > 0


@BOTH
@SIDES
def test_the_generator_decides_everything_and_torch_and_numpy_keep_their_state(
    augmentation: Augmenter, sides: tuple[int, ...]
) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    one, same, other = (augmentation(*batch(sides), np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert all(torch.equal(mine, again) for mine, again in zip(one, same, strict=True))
    assert not torch.equal(one[0], other[0])


@BOTH
def test_what_is_given_is_not_written_to(augmentation: Augmenter) -> None:
    given = batch((16, 16))
    kept = [part.clone() for part in given]
    for seed in range(4):
        augmentation(*given, np.random.default_rng(seed))
    assert all(torch.equal(part, copy) for part, copy in zip(given, kept, strict=True))


@SIDES
def test_image_target_and_maps_move_together(sides: tuple[int, ...]) -> None:
    """An image that is its own label: wherever it goes, the label and the map of drawn voxels are there too."""
    moving = replace(STRONG, intensities=0, mirror=(0, 1))
    inside = torch.zeros(1, 1, *sides)
    inside[..., sides[-2] // 4 : sides[-2] // 2, 2 : sides[-1] // 2] = 1
    changed = 0
    for seed in range(6):
        target = torch.cat([1 - inside, inside], 1)
        image, target, maps = moving(inside, target, inside, np.random.default_rng(seed))
        assert torch.allclose(image, target[:, 1:], atol=1e-5)
        agreement = ((image > 0.5) == (maps > 0.5)).float().mean()
        assert agreement > 0.93
        changed += int(not torch.equal(image, inside))
    assert changed >= 5


@SIDES
def test_each_sample_of_a_batch_goes_its_own_way(sides: tuple[int, ...]) -> None:
    image, target, maps = (part[:1].repeat(3, *[1] * (part.ndim - 1)) for part in batch(sides))
    found, _, _ = STRONG(image, target, maps, np.random.default_rng(0))
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_with_nothing_asked_nothing_is_changed() -> None:
    given = batch((16, 16))
    found = replace(STILL, moved=0)(*given, np.random.default_rng(0))
    assert all(torch.allclose(part, mine, atol=1e-6) for part, mine in zip(given, found, strict=True))


def test_intensities_change_the_image_alone_each_in_its_turn() -> None:
    given = batch((16, 16), count=40)
    image, target, maps = replace(STILL, moved=0, intensities=1)(*given, np.random.default_rng(0))
    assert torch.allclose(target, given[1], atol=1e-6)
    assert torch.equal(maps, given[2])
    changed = [(one - other).abs().max() > 1e-6 for one, other in zip(image, given[0], strict=True)]
    assert 20 <= sum(map(bool, changed)) < 40  # 1 − 0.9 · 0.8 · 0.85² · 0.75 · 0.9 · 0.7 = 0.75 of them
    lasting = [one.std().item() for one in image]
    assert min(lasting) > 0.2
    assert max(lasting) < 2


def test_sides_are_kept_unless_mirroring_is_asked_for() -> None:
    """What is on the left stays on the left: no rotation reaches that far, and nothing is mirrored by default."""
    left = torch.zeros(1, 1, 32, 32)
    left[..., 4:10, 12:20] = 1
    target = torch.cat([1 - left, left], 1)

    def sides(augmentation: StrongAugmentation) -> list[bool]:
        rng = np.random.default_rng(0)
        found = [augmentation(left, target, left, rng)[1][0, 1] for _ in range(30)]
        return [bool(one[:16].sum() > one[16:].sum()) for one in found if one.sum() > 1]

    assert StrongAugmentation().mirror == ()
    assert all(sides(replace(STRONG, intensities=0)))
    mirrored = sides(replace(STRONG, intensities=0, mirror=(0,)))
    assert 5 < sum(mirrored) < 25
    assert all(sides(replace(STRONG, intensities=0, mirror=(1,))))


def test_thick_slices_are_turned_within_themselves_only() -> None:
    image = torch.zeros(1, 1, 32, 32, 8)
    image[..., 8:14, 8:24, 3] = 1
    target = torch.cat([1 - image, image], 1)
    turning = replace(STRONG, shift=0, scale=(1.0, 1.0), intensities=0)
    for seed in range(5):
        found = turning(image, target, image, np.random.default_rng(seed))[0][0, 0]
        assert found[..., 3].sum() > 50
        assert found[..., [0, 1, 2, 4, 5, 6, 7]].abs().max() < 1e-5
        assert not torch.allclose(found, image[0, 0])


def test_an_image_of_one_value_stays_finite() -> None:
    given = batch((16, 16))
    for seed in range(10):
        image, _, _ = STRONG(torch.zeros_like(given[0]), *given[1:], np.random.default_rng(seed))
        assert image.isfinite().all()


def test_the_plan_names_them() -> None:
    assert augmentation_named("light") == Augmentation()
    assert augmentation_named("strong") == StrongAugmentation()
