"""The catalogue: every network that a plan may name.

All of them normalise per instance, never per batch: a batch of one, differential privacy and averaging between
hospitals each break batch statistics.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from monai.networks.nets import UNet
from torch import nn

from wardround.errors import UsageError
from wardround.models.attention import attend_after


@dataclass(frozen=True)
class Architecture:
    """What the catalogue knows of a network before it is built.

    Parameters
    ----------
    dimensions
        2 or 3 spatial axes.
    channels
        Feature channels of every resolution level, finest first.
    stride
        Spatial sizes of the input must be a multiple of this.
    residual_units
        Residual units a level.
    attention
        The encoder level, 0 the finest, that ends in spatial self-attention; None for none.
    affine
        Whether normalisation learns a scale and an offset for each channel: what a site keeps for itself under FedBN.
    """

    dimensions: int
    channels: tuple[int, ...]
    residual_units: int
    attention: int | None = None
    affine: bool = False

    @property
    def stride(self) -> int:
        """Spatial sizes of the input must be a multiple of this."""
        return int(2 ** (len(self.channels) - 1))


_ARCHITECTURES = {
    "unet3d-small": Architecture(3, (8, 16, 32, 64), 1),
    "unet3d": Architecture(3, (16, 32, 64, 128, 256), 2),
    "unet2d-small": Architecture(2, (16, 32, 64, 96), 1),
    "unet2d": Architecture(2, (32, 64, 128, 256, 512), 2),
    "unet3d-small-attention": Architecture(3, (8, 16, 32, 64), 1, attention=1),
    "unet3d-attention": Architecture(3, (16, 32, 64, 128, 256), 2, attention=1),
    "unet2d-small-attention": Architecture(2, (16, 32, 64, 96), 1, attention=1),
    # Four voxels a token: a slice of 256² has 64², which all attend to all, as in AttenScribble.
    "unet2d-attention": Architecture(2, (32, 64, 128, 256, 512), 2, attention=1),
    "unet3d-small-affine": Architecture(3, (8, 16, 32, 64), 1, affine=True),
    "unet3d-affine": Architecture(3, (16, 32, 64, 128, 256), 2, affine=True),
    "unet2d-small-affine": Architecture(2, (16, 32, 64, 96), 1, affine=True),
    "unet2d-affine": Architecture(2, (32, 64, 128, 256, 512), 2, affine=True),
}


def names() -> tuple[str, ...]:
    """Every name that :func:`build` knows."""
    return tuple(_ARCHITECTURES)


def architecture(name: str) -> Architecture:
    """What the catalogue knows of `name`.

    Raises
    ------
    UsageError
        If there is no such network.
    """
    try:
        return _ARCHITECTURES[name]
    except KeyError:
        raise UsageError(
            f"there is no network called {name!r}",
            "the catalogue does not hold it",
            f"choose one of {', '.join(names())}",
        ) from None


def build(name: str, labels: int, seed: int) -> nn.Module:
    """Build a network with freshly drawn weights.

    Parameters
    ----------
    name
        One of :func:`names`.
    labels
        Number of classes including background, at least 2.
    seed
        Fixes the weights; the global random state of torch is left as it was.

    Returns
    -------
    torch.nn.Module
        Maps images ``[N, 1, I, J, K]`` (``[N, 1, I, J]`` for the 2D twins), float32 with zero mean and unit variance,
        to logits ``[N, labels, I, J, K]``. Spatial sizes are multiples of :attr:`Architecture.stride`.
    """
    spec = architecture(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = UNet(
            spatial_dims=spec.dimensions,
            in_channels=1,
            out_channels=labels,
            channels=spec.channels,
            strides=(2,) * (len(spec.channels) - 1),
            num_res_units=spec.residual_units,
            norm=("instance", {"affine": spec.affine}),
        )
        if spec.attention is not None:
            attend_after(network, spec.attention, spec.dimensions, spec.channels[spec.attention])
        return network


def feature_modules(network: nn.Module) -> dict[str, nn.Module]:
    """Name the stages of a catalogue network whose outputs are multi-scale features.

    Returns
    -------
    dict
        ``encoder.0`` … (finest first, each halving the resolution), ``bottleneck``, and ``decoder.0`` … (finest
        first, at the resolution of the input of the encoder stage with that number).
    """
    stages: dict[str, nn.Module] = {}
    block = network.model  # MONAI nests: Sequential(down, SkipConnection(next level), up)
    level = 0
    while isinstance(block, nn.Sequential) and len(block) == 3 and hasattr(block[1], "submodule"):
        stages[f"encoder.{level}"] = block[0]
        stages[f"decoder.{level}"] = block[2]
        block = block[1].submodule
        level += 1
    assert isinstance(block, nn.Module)
    stages["bottleneck"] = block
    return stages


class Features:
    """Records named features, and what they were made from, while a network runs, as a context manager.

    Examples
    --------
    >>> network = build("unet3d-small", labels=3, seed=0)
    >>> with Features(network, "encoder.0", "bottleneck") as features:
    ...     logits = network(torch.zeros(1, 1, 16, 16, 16))
    >>> tuple(features["encoder.0"].shape)
    (1, 8, 8, 8, 8)
    """

    def __init__(self, network: nn.Module, *stages: str) -> None:
        self._modules = feature_modules(network)
        unknown = sorted(set(stages) - set(self._modules))
        if unknown:
            raise UsageError(
                f"this network has no stage called {unknown[0]!r}",
                "stages are named by their resolution level",
                f"choose from {', '.join(sorted(self._modules))}",
            )
        self._stages = stages or tuple(self._modules)
        self._outputs: dict[str, torch.Tensor] = {}
        self._inputs: dict[str, torch.Tensor] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> "Features":
        for stage in self._stages:
            self._handles.append(self._modules[stage].register_forward_hook(self._keep(stage)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __getitem__(self, stage: str) -> torch.Tensor:
        return self._outputs[stage]

    def entered(self, stage: str) -> torch.Tensor:
        """What `stage` was given."""
        return self._inputs[stage]

    def _keep(self, stage: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            self._inputs[stage], self._outputs[stage] = inputs[0], output

        return hook
