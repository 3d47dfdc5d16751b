"""What travels in a run: the arrays of a network, less those that stay at each site, and those that travel beside it.

Both ends ask here: the coordinator for the weights before the first round, and a site's gate for what it may be sent.
"""

from collections.abc import Callable, Collection

import numpy as np

from wardround.models.catalogue import architecture, build
from wardround.models.searched import SearchedGenerator, SearchedSettings
from wardround.models.weights import CONTROL, OPERATORS, STEPS, Arrays, weights_of


def travelling(
    model: str,
    labels: int,
    seed: int,
    *,
    operators: bool = False,
    control: bool = False,
    steps: bool = False,
    staying: Callable[[Collection[str]], Collection[str]] = lambda names: (),
) -> Arrays:
    """The arrays that travel, as they are before the first round.

    Parameters
    ----------
    model, labels, seed
        As in :func:`wardround.models.catalogue.build`.
    operators
        Whether the operators of sites' generators travel with the network.
    control
        Whether a control variate for each parameter does: zeros.
    steps
        Whether the number of steps does: zero.
    staying
        Names of a network's arrays → those that stay at each site.

    Returns
    -------
    dict
        The network's in its own order, then what travels beside it.

    Raises
    ------
    UsageError
        If there is no such network.
    """
    built = build(model, labels, seed)
    network = weights_of(built)
    kept = staying(network.keys())
    arrays = {name: array for name, array in network.items() if name not in kept}
    if operators:
        settings = SearchedSettings(architecture(model).dimensions, labels)
        arrays[OPERATORS] = SearchedGenerator(settings, seed).architecture.detach().numpy()
    if control:
        travelled = [name for name, _ in built.named_parameters() if name in arrays]
        arrays |= {f"{CONTROL}{name}": np.zeros_like(arrays[name]) for name in travelled}
    if steps:
        arrays[STEPS] = np.zeros(1, np.float32)
    return arrays
