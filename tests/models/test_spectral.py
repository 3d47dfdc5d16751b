"""The frequency gate: where it starts, what it computes, that it knows no resolution, and that it learns."""

import numpy as np
import pytest
import torch
from torch import Tensor

from wardround.models.spectral import BASES, FrequencyGate, radius

GRIDS = [(8, 6), (7, 9), (6, 4, 8), (3, 5, 7)]
TIME = 5


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def learnt(dimensions: int, channels: int = 3, amplitude: float = 0.5) -> FrequencyGate:
    """A gate that has left its start."""
    gate = FrequencyGate(channels, dimensions, TIME)
    with torch.no_grad():
        gate.amplitude += amplitude * noise(*gate.amplitude.shape, seed=1)
        gate.heights.weight += 0.5 * noise(*gate.heights.weight.shape, seed=2)
        gate.heights.bias += 0.5 * noise(*gate.heights.bias.shape, seed=3)
    return gate


@pytest.mark.parametrize("grid", GRIDS)
def test_radius_is_the_distance_from_zero_frequency_in_cycles_per_voxel(grid: tuple[int, ...]) -> None:
    found = radius(grid)
    assert found.shape == (*grid[:-1], grid[-1] // 2 + 1)
    for index in np.ndindex(*found.shape):
        cycles = [min(number, side - number) / side for number, side in zip(index, grid, strict=True)]
        assert float(found[index]) == pytest.approx(np.linalg.norm(cycles), abs=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_it_starts_as_the_identity_bit_for_bit(grid: tuple[int, ...]) -> None:
    gate, feature = FrequencyGate(3, len(grid), TIME), noise(2, 3, *grid)
    time = noise(2, TIME, seed=4)
    assert torch.equal(gate(feature, time), feature)
    spectrum = torch.fft.rfftn(feature, dim=tuple(range(2, feature.dim())), norm="ortho")
    assert torch.equal(gate.gate(spectrum, grid, time), torch.ones(spectrum.shape))
    assert not torch.equal(learnt(len(grid))(feature, time), feature)


@pytest.mark.parametrize("grid", GRIDS)
def test_it_is_what_the_formula_says_on_the_whole_spectrum(grid: tuple[int, ...]) -> None:
    gate, feature, time = learnt(len(grid)).double(), noise(2, 3, *grid).double(), noise(2, TIME, seed=4).double()
    axes = tuple(range(1, len(grid) + 1))
    expected = torch.empty_like(feature)
    heights = gate.heights(time).reshape(2, 3, BASES)
    spacing = 0.5 * len(grid) ** 0.5 / (BASES - 1)
    for sample in range(2):
        spectrum = np.fft.fftn(feature[sample].numpy(), axes=axes, norm="ortho")
        exponent = np.zeros(spectrum.shape)
        for index in np.ndindex(*grid):
            cycles = [min(number, side - number) / side for number, side in zip(index, grid, strict=True)]
            bumps = np.exp(-0.5 * ((np.linalg.norm(cycles) - spacing * np.arange(BASES)) / spacing) ** 2)
            own = np.log1p(np.abs(spectrum[(slice(None), *index)]))
            exponent[(slice(None), *index)] = (
                gate.amplitude.detach().numpy() @ own + heights[sample].detach().numpy() @ bumps
            )
        gated = np.fft.ifftn(spectrum * 2 / (1 + np.exp(-exponent)), axes=axes, norm="ortho")
        assert np.abs(gated.imag).max() < 1e-12
        expected[sample] = torch.from_numpy(gated.real)
    assert torch.allclose(gate(feature, time), expected, atol=1e-6)


def test_one_wave_passes_alike_on_every_grid() -> None:
    gate, time = learnt(2, channels=1, amplitude=0), noise(1, TIME, seed=4)
    gains = []
    for side in (16, 24, 48):
        across = torch.arange(side, dtype=torch.float32)
        wave = torch.cos(2 * torch.pi * across / 8).expand(1, 1, side, side)
        passed = gate(wave, time)
        gains.append(float(passed[0, 0, 0, 0]))
        assert torch.allclose(passed, gains[-1] * wave, atol=1e-5)
    assert abs(gains[0] - 1) > 0.05
    assert gains[1] == pytest.approx(gains[0], rel=1e-5)
    assert gains[2] == pytest.approx(gains[0], rel=1e-5)


def test_phases_stay_and_the_gate_keeps_its_range() -> None:
    gate, feature, time = learnt(2, amplitude=3), noise(1, 3, 8, 8), noise(1, TIME, seed=4)
    spectrum = torch.fft.rfftn(feature, dim=(2, 3), norm="ortho")
    after = torch.fft.rfftn(gate(feature, time), dim=(2, 3), norm="ortho")
    opened = gate.gate(spectrum, (8, 8), time)
    assert 0 <= float(opened.min()) < 0.5
    assert 1.5 < float(opened.max()) <= 2
    seen = (spectrum.abs() > 0.1) & (opened > 0.1)
    assert torch.allclose((after / spectrum)[seen], opened[seen].to(after.dtype), atol=1e-4)


def test_the_time_step_moves_it() -> None:
    gate, feature = learnt(2), noise(1, 3, 8, 8)
    assert not torch.allclose(gate(feature, noise(1, TIME, seed=4)), gate(feature, noise(1, TIME, seed=5)), atol=1e-3)


def test_an_empty_feature_has_finite_gradients() -> None:
    gate, feature = learnt(2), torch.zeros(1, 3, 8, 8, requires_grad=True)
    gate(feature, noise(1, TIME)).square().sum().backward()
    assert all(torch.isfinite(part.grad).all() for part in (feature, *gate.parameters()) if part.grad is not None)


def test_it_learns_to_weaken_one_band_and_to_strengthen_another() -> None:
    gate, time = FrequencyGate(1, 2, TIME), torch.ones(8, TIME)
    distance = radius((16, 16))
    wanted = torch.where(distance < 0.2, 0.5, torch.where(distance > 0.4, 1.5, 1.0))
    optimiser = torch.optim.Adam(gate.parameters(), lr=0.05)
    for step in range(80):
        feature = noise(8, 1, 16, 16, seed=step)
        spectrum = torch.fft.rfftn(feature, dim=(2, 3), norm="ortho")
        target = torch.fft.irfftn(wanted * spectrum, s=(16, 16), dim=(2, 3), norm="ortho")
        loss = (gate(feature, time) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    spectrum = torch.fft.rfftn(noise(8, 1, 16, 16, seed=99), dim=(2, 3), norm="ortho")
    opened = gate.gate(spectrum, (16, 16), time)[:, 0]
    assert float(opened[:, distance < 0.15].mean()) < 0.7
    assert float(opened[:, distance > 0.45].mean()) > 1.3
