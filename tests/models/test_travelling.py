"""What travels in a run."""

import numpy as np

from wardround.models.catalogue import build
from wardround.models.travelling import travelling
from wardround.models.weights import CONTROL, OPERATORS, network_weights, weights_of


def test_it_is_the_network_in_its_order_less_what_stays() -> None:
    whole = weights_of(build("unet3d-small", 3, 7))
    assert list(travelling("unet3d-small", 3, 7)) == list(whole)
    last = list(whole)[-1]
    found = travelling("unet3d-small", 3, 7, staying=lambda names: {name for name in names if name == last})
    assert list(found) == list(whole)[:-1]
    assert all(np.array_equal(whole[name], array) for name, array in found.items())


def test_what_travels_beside_a_network_is_told_from_it() -> None:
    found = travelling("unet3d-small", 3, 7, operators=True)
    assert list(found)[-1] == OPERATORS
    found[f"{CONTROL}model.0.conv.unit0.conv.weight"] = np.zeros(3)
    assert list(network_weights(found)) == list(weights_of(build("unet3d-small", 3, 7)))
