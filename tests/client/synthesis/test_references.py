"""An image is never its own reference."""

import numpy as np
import pytest
import torch

from wardround.client.synthesis.pairs import Pair, stacked
from wardround.client.synthesis.references import APART, References, displaced


def slices(*names_and_positions):
    empty = np.zeros((8, 8), dtype=np.uint8)
    return [
        Pair(case_id, np.full((8, 8), number, dtype=np.float32), empty, position)
        for number, (case_id, position) in enumerate(names_and_positions)
    ]


def drawn(pairs, chosen, draws=200):
    """For each chosen pair the numbers of all pairs that were its reference in many draws."""
    references, rng = References(pairs, stacked(pairs)[0]), np.random.default_rng(0)
    found = [set() for _ in chosen]
    for _ in range(draws):
        images, known = references.draw(chosen, rng)
        for own, image, is_known in zip(found, images, known, strict=True):
            if is_known:
                own.add(int(image.unique().item()))
    return found


def test_slice_is_told_all_others_of_its_case_that_are_not_beside_it():
    pairs = slices(("a", 3), ("a", 4), ("b", 3), ("a", 5), ("a", 9), ("b", 8))
    assert APART == 2
    assert drawn(pairs, [0, 1, 3, 2]) == [{3, 4}, {4}, {0, 4}, {5}]


def test_slice_without_such_is_told_another_case():
    pairs = slices(("a", 3), ("a", 4), ("b", 3), ("c", 0))
    assert drawn(pairs, [0, 2]) == [{2, 3}, {0, 1, 3}]


def test_pair_that_is_alone_is_told_nothing():
    pairs = slices(("a", 3), ("a", 4))
    assert drawn(pairs, [0, 1]) == [set(), set()]


@pytest.mark.parametrize("shape", [(8, 8, 8), (12, 16, 9)])
def test_no_voxel_of_a_volume_stays_where_it_was(shape):
    image = torch.arange(float(np.prod(shape))).reshape(1, *shape)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(100):
        part = displaced(image, rng)
        assert part.shape == (1, *(-(-3 * side // 4) for side in shape))
        own = image[tuple(slice(side) for side in part.shape)]
        assert not (part == own).any()
        assert torch.isin(part, image).all()
        seen.add(tuple(part.flatten()[:8].tolist()))
    assert len(seen) > 30


def test_volumes_are_told_of_themselves():
    pairs = [
        Pair(name, np.full((8, 8, 8), n, dtype=np.float32), np.zeros((8, 8, 8), np.uint8))
        for n, name in enumerate("ab")
    ]
    images, known = References(pairs, stacked(pairs)[0]).draw([1, 0], np.random.default_rng(0))
    assert images.shape == (2, 1, 6, 6, 6)
    assert known.all()
    assert [image.unique().item() for image in images] == [1, 0]
