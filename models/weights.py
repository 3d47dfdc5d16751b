"""Weights of a network as named arrays, and as safetensors on disk."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import nn

from wardround.errors import PlanError, StorageError
from wardround.files import write_bytes

Arrays = dict[str, npt.NDArray[np.generic]]

OPERATORS = "generator.operators"
"""The array that travels beside a network's weights where a plan has the operators of sites' generators shared."""

CONTROL = "control."
"""Begins the names of arrays that travel beside a network's weights and steer how sites learn: those of SCAFFOLD have
the name of a parameter behind it."""

STEPS = f"{CONTROL}steps"
"""``[1]``, float32: how many steps a site took, in the plan's unit, where changes are normalised by them (FedNova)."""


def weights_of(network: nn.Module) -> Arrays:
    """Copy every parameter and buffer of `network` into host memory, by its name in the state dictionary."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in network.state_dict().items()}


def network_weights(weights: Mapping[str, npt.NDArray[np.generic]]) -> Arrays:
    """Those of `weights` that are a network's: all but :data:`OPERATORS` and :data:`CONTROL`. Not copied."""
    return {name: array for name, array in weights.items() if name != OPERATORS and not name.startswith(CONTROL)}


def load_weights(network: nn.Module, weights: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Overwrite all parameters and buffers of `network`; what travels beside a network's weights is not for it.

    Raises
    ------
    PlanError
        If names or shapes are not exactly those of the network; nothing is then changed.
    """
    own = network.state_dict()
    weights = network_weights(weights)
    wrong = sorted(set(own) ^ set(weights)) or sorted(n for n in own if tuple(own[n].shape) != weights[n].shape)
    if wrong:
        raise PlanError(
            f"the weights do not fit the network (first: {wrong[0]})",
            "they were made by another network or for another number of labels",
            "use the model and the labels that the run was started with",
        )
    network.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in weights.items()})


def save_arrays(path: Path, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Write named arrays as one safetensors file, atomically."""
    write_bytes(path, save({name: np.asarray(array, order="C") for name, array in arrays.items()}))


def load_arrays(path: Path) -> Arrays:
    """Read named arrays from a safetensors file.

    Raises
    ------
    StorageError
        If the file is missing or damaged.
    """
    try:
        return dict(load(path.read_bytes()))
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"cannot read the weights in {path}", type(error).__name__, "restore the file, or start from another round"
        ) from error
