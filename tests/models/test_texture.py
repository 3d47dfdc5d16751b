"""The style encoder: what it reads off an image, and that it cannot tell where anything lies."""

import numpy as np
import pytest
import torch
from torch import Tensor

from wardround.models.denoiser import DenoiserSettings
from wardround.models.texture import StyleEncoder, statistics

SETTINGS = DenoiserSettings(2, 3, channels=(8, 16), style=12)
SOLID = DenoiserSettings(3, 3, channels=(8, 16), style=12)


def encoder(settings: DenoiserSettings = SETTINGS) -> StyleEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return StyleEncoder(settings).eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_statistics_are_mean_deviation_and_gram_matrix_of_all_voxels() -> None:
    feature = noise(2, 3, 4, 5).double()
    found = statistics(feature).numpy()
    for sample in range(2):
        voxels = feature[sample].flatten(1).T.numpy()
        gram = np.mean([np.outer(voxel, voxel) for voxel in voxels], axis=0)
        expected = [
            *voxels.mean(0),
            *voxels.std(0),
            *(gram[row, column] for row in range(3) for column in range(row, 3)),
        ]
        assert found[sample] == pytest.approx(expected, abs=1e-6)


def test_what_all_references_have_in_common_does_not_drown_what_tells_them_apart() -> None:
    """Slices of one scanner differ by a few per cent in brightness and spread."""
    own = encoder().train()
    images = noise(64, 1, 16, 16) * (1 + 0.02 * noise(64, 1, 1, 1, seed=1)) + 0.02 * noise(64, 1, 1, 1, seed=2)
    before = own.eval()(images)
    own.train()
    for _ in range(4):
        own(images)
    after = own.eval()(images)

    def told_apart(styles: Tensor) -> float:
        return (styles.std(dim=0).norm() / styles.mean(dim=0).norm()).item()

    assert told_apart(after) > 3 * told_apart(before)


def test_a_batch_counts_from_the_next_one_on_and_only_if_it_is_finite() -> None:
    own, images = encoder().train(), noise(4, 1, 16, 16)
    first = own(images)
    assert torch.equal(encoder()(images), first), "nothing was seen before"
    assert not torch.equal(own(images), first)
    kept = {name: buffer.clone() for name, buffer in own.named_buffers()}
    own(torch.full_like(images, torch.nan))
    assert all(torch.equal(buffer, kept[name]) for name, buffer in own.named_buffers())


def test_a_flat_image_has_finite_gradients() -> None:
    own, image = encoder(), torch.zeros(1, 1, 8, 8, requires_grad=True)
    own(image).square().sum().backward()
    assert image.grad is not None
    assert torch.isfinite(image.grad).all()
    assert all(part.grad is not None and torch.isfinite(part.grad).all() for part in own.parameters())


@pytest.mark.parametrize(("settings", "sides"), [(SETTINGS, (16, 24)), (SOLID, (8, 16, 12))])
def test_an_image_shifted_round_has_the_same_style(settings: DenoiserSettings, sides: tuple[int, ...]) -> None:
    own, image = encoder(settings), noise(2, 1, *sides)
    style = own(image)
    assert style.shape == (2, 12)
    axes = tuple(range(2, image.dim()))
    for number in (1, 2, 3):
        shift = tuple(own.stride * (number + axis) for axis in range(len(axes)))
        assert torch.allclose(own(image.roll(shift, axes)), style, atol=1e-5)
    assert not torch.allclose(own(noise(2, 1, *sides, seed=1) * 2), style, atol=1e-2)


def test_what_passes_is_the_texture_and_not_the_place() -> None:
    """A bright patch anywhere is one style; a patch of another contrast or grain is another."""
    own = encoder()

    def patched(row: int, column: int, strength: float = 1.0, step: int = 1) -> Tensor:
        image = torch.zeros(1, 1, 32, 32)
        image[..., row : row + 8 : step, column : column + 8] = strength
        return own(image)

    here = patched(4, 4)
    moved = (patched(19, 14) - here).norm()
    assert (patched(4, 4, strength=2) - here).norm() > 5 * moved
    assert (patched(4, 4, step=2) - here).norm() > 5 * moved


def test_images_of_a_batch_do_not_see_each_other() -> None:
    own, images = encoder(), noise(3, 1, 16, 16)
    assert torch.allclose(own(images)[1:2], own(images[1:2]), atol=1e-6)


def test_it_refuses_a_style_without_length_and_an_image_of_other_axes() -> None:
    with pytest.raises(ValueError, match="length 0"):
        StyleEncoder(DenoiserSettings(2, 3, style=0))
    with pytest.raises(ValueError, match="2 sides"):
        encoder()(torch.zeros(1, 1, 8, 8, 8))
