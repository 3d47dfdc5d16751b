"""What a generator has beside its weights, as named arrays: moments of its optimisers, and the cases it has seen."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wardround.models.weights import Arrays


def optimiser_arrays(optimiser: torch.optim.Optimizer) -> Arrays:
    """A copy of what `optimiser` has gathered, empty before its first step; rates are not part of it.

    Returns
    -------
    dict
        ``<number of the parameter>/<name>``, such as ``0/exp_avg``, in the order in which it was given its parameters.
    """
    return {
        f"{index}/{key}": value.detach().cpu().numpy().copy()
        for index, moments in optimiser.state_dict()["state"].items()
        for key, value in moments.items()
    }


def load_optimiser(optimiser: torch.optim.Optimizer, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Restore what :func:`optimiser_arrays` returned; what `optimiser` had gathered itself is forgotten."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, array in arrays.items():
        index, key = name.split("/", 1)
        state.setdefault(int(index), {})[key] = torch.from_numpy(np.array(array))
    optimiser.load_state_dict(optimiser.state_dict() | {"state": state})


def names_array(names: Iterable[str]) -> npt.NDArray[np.uint8]:
    """A set of names as bytes of JSON, sorted, so that it can lie beside arrays."""
    return np.frombuffer(json.dumps(sorted(set(names))).encode(), dtype=np.uint8).copy()


def names_of(array: npt.NDArray[Any]) -> frozenset[str]:
    """The names whose :func:`names_array` this is."""
    return frozenset(json.loads(array.tobytes()))
