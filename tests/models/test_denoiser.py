"""The denoiser: where mask, style and time enter, where they do not, and that it learns to heed them."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from wardround.models.denoiser import Denoiser, DenoiserSettings

FLAT = DenoiserSettings(2, 3, channels=(8, 16), style=6)
SOLID = DenoiserSettings(3, 2, channels=(8, 12, 16), style=6)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return torch.nn.functional.one_hot(labels, classes).movedim(-1, 1).float()


def masks(count: int, classes: int, *sides: int, seed: int = 0) -> Tensor:
    return one_hot(torch.randint(0, classes, (count, *sides), generator=torch.Generator().manual_seed(seed)), classes)


def denoiser(settings: DenoiserSettings = FLAT, spoken: bool = True, styled: bool = False) -> Denoiser:
    """One with weights of seed 0; `spoken` gives its last layer weights, `styled` those of the styles."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Denoiser(settings)
        if spoken:
            nn.init.normal_(network.head.weight, std=0.2)
        if styled:
            for name, parameter in network.named_parameters():
                if name.endswith("style.weight"):
                    nn.init.normal_(parameter, std=0.5)
    return network


@pytest.mark.parametrize(("settings", "sides"), [(FLAT, (6, 10)), (SOLID, (8, 4, 12))])
def test_it_keeps_the_shape_and_every_weight_learns(settings: DenoiserSettings, sides: tuple[int, ...]) -> None:
    network = denoiser(settings, styled=True)
    assert network.null_style is not None
    with torch.no_grad():
        network.null_style += 1
    mask = masks(2, settings.labels, *sides)
    found = network(noise(2, 1, *sides), torch.tensor([3, 900]), mask)
    assert found.shape == (2, 1, *sides)
    found.square().sum().backward()
    silent = {name for name, part in network.named_parameters() if part.grad is None or not part.grad.abs().max() > 0}
    assert silent == set()


def test_it_predicts_nothing_before_it_has_learnt_anything() -> None:
    found = denoiser(spoken=False)(noise(2, 1, 8, 8), torch.tensor([3, 900]), masks(2, 3, 8, 8), noise(2, 6))
    assert torch.equal(found, torch.zeros(2, 1, 8, 8))


def test_the_same_seed_gives_the_same_bits_in_training_and_in_use() -> None:
    image, time, mask, style = noise(2, 1, 8, 8), torch.tensor([3, 900]), masks(2, 3, 8, 8), noise(2, 6)
    first = denoiser(styled=True)(image, time, mask, style)
    assert torch.equal(denoiser(styled=True)(image, time, mask, style), first)
    assert torch.equal(denoiser(styled=True).eval()(image, time, mask, style), first)


def test_images_of_a_batch_do_not_see_each_other() -> None:
    network, image, time = denoiser(styled=True), noise(3, 1, 8, 8), torch.tensor([3, 500, 900])
    mask, style = masks(3, 3, 8, 8), noise(3, 6)
    alone = network(image[1:2], time[1:2], mask[1:2], style[1:2])
    assert torch.allclose(network(image, time, mask, style)[1:2], alone, atol=1e-5)


@pytest.mark.parametrize(("settings", "sides"), [(FLAT, (6, 10)), (SOLID, (8, 4, 12))])
def test_it_runs_in_mixed_precision(settings: DenoiserSettings, sides: tuple[int, ...]) -> None:
    network, image, time = denoiser(settings, styled=True), noise(2, 1, *sides), torch.tensor([3, 900])
    mask, style = masks(2, settings.labels, *sides), noise(2, 6)
    whole = network(image, time, mask, style)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network(image, time, mask, style)
    mixed.float().square().sum().backward()
    assert float((mixed.float() - whole).detach().abs().mean()) < 0.05 * float(whole.detach().abs().mean())
    # On grids of a few voxels torch's bfloat16 on a CPU leaves gradients of 3D kernels unwritten now and then; mixed
    # precision is used on a GPU alone.
    if settings.dimensions == 2:
        assert all(part.grad is None or torch.isfinite(part.grad).all() for part in network.parameters())


def test_the_mask_enters_the_decoder_alone() -> None:
    network, image, time = denoiser(), noise(1, 1, 16, 16), torch.tensor([400])
    kept: list[list[Tensor]] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        kept[-1].append(output)

    for block in network.encoder:
        block.register_forward_hook(keep)
    outputs = []
    for mask in (masks(1, 3, 16, 16), masks(1, 3, 16, 16, seed=1)):
        kept.append([])
        outputs.append(network(image, time, mask))
    assert len(kept[0]) == len(FLAT.channels)
    assert all(torch.equal(one, other) for one, other in zip(*kept, strict=True))
    assert float((outputs[0] - outputs[1]).detach().abs().mean()) > 0.01


def test_a_mask_acts_where_it_is() -> None:
    """Of the two labels' exchange in one corner, more arrives in that corner than in the opposite one."""
    network, image, time = denoiser(), noise(1, 1, 32, 32), torch.tensor([400])
    labels = torch.zeros(1, 32, 32, dtype=torch.long)
    labels[:, 4:8, 4:8] = 1
    other = torch.where(labels == 1, 2, labels)
    changed = (network(image, time, one_hot(labels, 3)) - network(image, time, one_hot(other, 3))).detach().abs()[0, 0]
    assert float(changed[3:9, 3:9].mean()) > 3 * float(changed[20:, 20:].mean())


def test_a_thin_structure_reaches_the_coarsest_level() -> None:
    network = denoiser(SOLID)
    labels = torch.zeros(1, 8, 8, 8, dtype=torch.long)
    labels[:, 3, 5, 1] = 1  # one voxel, which taking every fourth would miss
    seen: list[Tensor] = []
    network.masks[-1].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    network(noise(1, 1, 8, 8, 8), torch.tensor([400]), one_hot(labels, 2))
    assert float(seen[0][0, 1].max()) == pytest.approx(1 / 64)
    assert torch.allclose(seen[0].sum(dim=1), torch.ones(1, 2, 2, 2))


def test_no_mask_is_not_the_mask_of_background() -> None:
    network, image, time = denoiser(), noise(1, 1, 8, 8), torch.tensor([400])
    background = one_hot(torch.zeros(1, 8, 8, dtype=torch.long), 3)
    assert not torch.allclose(network(image, time, torch.zeros_like(background)), network(image, time, background))


def test_the_time_step_matters() -> None:
    network, image, mask = denoiser(), noise(1, 1, 8, 8), masks(1, 3, 8, 8)
    near, far = (network(image, torch.tensor([time]), mask) for time in (1, 999))
    assert not torch.allclose(near, far, atol=1e-3)


def test_mask_and_style_share_one_instance_normalisation() -> None:
    layer = denoiser(styled=True).decoder[0].first_norm
    feature, mask, style = 3 + 2 * noise(2, 8, 5, 7), noise(2, 16, 5, 7, seed=1), noise(2, 6, seed=2)
    gamma, beta = layer.mask(mask).split(8, dim=1)
    sigma, mu = (half[:, :, None, None] for half in layer.style(style).split(8, dim=1))
    normal = nn.functional.instance_norm(feature)
    assert torch.allclose(layer(feature, mask, None), gamma * normal + beta, atol=1e-5)
    assert torch.allclose(layer(feature, mask, style), (1 + sigma) * (gamma * normal + beta) + mu, atol=1e-5)


def test_fine_detail_goes_past_the_coarse_levels() -> None:
    """With what rises from below silenced, the image still reaches the output by the skip connection."""
    network = denoiser()
    for part in network.up.parameters():
        nn.init.zeros_(part)
    mask, time = masks(1, 3, 8, 8), torch.tensor([400])
    one, other = (network(noise(1, 1, 8, 8, seed=seed), time, mask) for seed in (0, 1))
    assert not torch.allclose(one, other, atol=1e-2)


def test_a_style_is_the_identity_at_the_start_and_then_scales_and_shifts() -> None:
    image, time, mask = noise(1, 1, 8, 8), torch.tensor([400]), masks(1, 3, 8, 8)
    fresh = denoiser()
    assert torch.equal(fresh(image, time, mask, noise(1, 6)), fresh(image, time, mask, noise(1, 6, seed=1)))
    learnt = denoiser(styled=True)
    one, other = (learnt(image, time, mask, noise(1, 6, seed=seed)) for seed in (0, 1))
    assert float((one - other).detach().abs().mean()) > 0.01


def test_without_a_style_its_own_parameter_takes_the_place() -> None:
    network = denoiser(styled=True)
    assert network.null_style is not None
    with torch.no_grad():
        network.null_style += noise(6, seed=3)
    image, time, mask = noise(2, 1, 8, 8), torch.tensor([3, 900]), masks(2, 3, 8, 8)
    left_out = network(image, time, mask)
    assert torch.equal(left_out, network(image, time, mask, network.null_style.expand(2, -1)))
    assert not torch.allclose(left_out, network(image, time, mask, torch.zeros(2, 6)), atol=1e-3)


def test_texture_and_frequency_can_be_left_out() -> None:
    bare = denoiser(dataclasses.replace(FLAT, style=0, frequency=False))
    assert bare.null_style is None
    assert not [name for name, _ in bare.named_parameters() if "style" in name or "gate" in name]
    image, time, mask = noise(1, 1, 8, 8), torch.tensor([400]), masks(1, 3, 8, 8)
    assert bare(image, time, mask).shape == image.shape
    with pytest.raises(ValueError, match="takes no style"):
        bare(image, time, mask, noise(1, 6))


@pytest.mark.parametrize(
    ("image", "mask", "style", "said"),
    [
        ((1, 1, 9, 8), (1, 3, 9, 8), (1, 6), "multiples of 2"),
        ((1, 1, 2, 2), (1, 3, 2, 2), (1, 6), "none of them is longer"),
        ((1, 2, 8, 8), (1, 3, 8, 8), (1, 6), "an image has shape"),
        ((1, 1, 8, 8, 8), (1, 3, 8, 8, 8), (1, 6), "an image has shape"),
        ((1, 1, 8, 8), (1, 2, 8, 8), (1, 6), "a mask has shape"),
        ((1, 1, 8, 8), (1, 3, 4, 4), (1, 6), "a mask has shape"),
        ((1, 1, 8, 8), (1, 3, 8, 8), (1, 5), "styles have shape"),
        ((2, 1, 8, 8), (2, 3, 8, 8), (2, 6), "one time step an image"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    image: tuple[int, ...], mask: tuple[int, ...], style: tuple[int, ...], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        denoiser()(torch.zeros(image), torch.tensor([1]), torch.zeros(mask), torch.zeros(style))


@pytest.mark.parametrize(
    "change",
    [{"dimensions": 4}, {"labels": 1}, {"channels": ()}, {"channels": (6,)}, {"style": -1}, {"mask_channels": 0}],
)
def test_settings_that_cannot_work_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"not|need"):
        dataclasses.replace(FLAT, **change)


def test_it_learns_anatomy_from_the_mask_and_brightness_from_the_style() -> None:
    """From pure noise, where the image says nothing: the mask must say where, and the style how bright."""
    settings = DenoiserSettings(2, 2, channels=(8, 16), style=1, frequency=False)
    network = denoiser(settings, spoken=False)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    time = torch.full((8,), 999)

    def task(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        corner = torch.randint(0, 8, (8, 2), generator=torch.Generator().manual_seed(seed))
        labels = torch.zeros(8, 16, 16, dtype=torch.long)
        for label, (row, column) in zip(labels, corner.tolist(), strict=True):
            label[row : row + 8, column : column + 8] = 1
        style = noise(8, 1, seed=seed + 1000)
        return noise(8, 1, 16, 16, seed=seed + 2000), one_hot(labels, 2), style, (labels * style[:, :, None])[:, None]

    for step in range(80):
        image, mask, style, target = task(step)
        loss = (network(image, time, mask, style) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    image, mask, style, target = task(999)
    with torch.no_grad():
        given = (network(image, time, mask, style) - target).square().mean()
        shuffled = (network(image, time, mask.roll(1, 0), style) - target).square().mean()
        swapped = (network(image, time, mask, style.roll(1, 0)) - target).square().mean()
    assert float(given) < 0.15 * float(target.square().mean())
    assert float(shuffled) > 3 * float(given)
    assert float(swapped) > 3 * float(given)
