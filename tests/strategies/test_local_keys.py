"""Which arrays stay at a site: by patterns over their names."""

import pytest

from wardround.errors import PlanError
from wardround.models.catalogue import build
from wardround.strategies.local_keys import HEAD, NORMALISATION, matches, staying


@pytest.mark.parametrize(
    ("name", "pattern", "found"),
    [
        ("model.2.0.conv.weight", "model.2.*", True),
        ("model.1.submodule.2.0.conv.weight", "model.2.*", False),
        ("model.0.adn.N.weight", "*.adn.*", True),
        ("model.0.adn.N.weight", "*.adn", False),
        ("conv.weight", "conv.weigh?", True),
        ("conv.weight", "CONV.weight", False),
    ],
)
def test_a_pattern_is_the_whole_of_a_name(name: str, pattern: str, found: bool) -> None:
    assert matches(name, [pattern]) is found


def test_without_patterns_everything_travels() -> None:
    assert staying(["a", "b"], ()) == frozenset()


@pytest.mark.parametrize(("patterns", "why"), [(("c*",), "no array"), (("*",), "every array"), (("a", "b"), "every")])
def test_patterns_that_leave_nothing_to_do_are_named(patterns: tuple[str, ...], why: str) -> None:
    with pytest.raises(PlanError, match=why):
        staying(["a", "b"], patterns)


def test_fedbn_keeps_what_normalises_and_what_comes_right_after() -> None:
    affine = staying(build("unet3d-small-affine", 2, 0).state_dict(), NORMALISATION)
    norms = {name for name in affine if ".adn.N." in name}
    assert len(norms) == 2 * 9, "a scale and an offset for each of nine normalisations"
    assert {name.rpartition(".adn.")[2] for name in affine} == {"N.weight", "N.bias", "A.weight"}
    plain = staying(build("unet3d-small", 2, 0).state_dict(), NORMALISATION)
    assert plain == affine - norms
    attentive = staying(build("unet3d-small-attention", 2, 0).state_dict(), NORMALISATION)
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in attentive} == {"A", "norm", "mlp_norm", "last_norm"}


@pytest.mark.parametrize("name", ["unet3d-small", "unet2d-affine", "unet3d-small-attention"])
def test_fedpers_head_ends_in_the_labels_and_is_small(name: str) -> None:
    arrays = build(name, 5, 0).state_dict()
    found = staying(arrays, HEAD)
    last = list(arrays)[-1]
    assert last in found
    assert arrays[last].shape[0] == 5
    assert sum(arrays[each].numel() for each in found) < 0.2 * sum(array.numel() for array in arrays.values())
