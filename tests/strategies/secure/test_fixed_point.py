"""Updates as whole numbers of a ring, by hand, and their bound."""

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from wardround.errors import GateRefused, PlanError
from wardround.strategies.contract import Weights
from wardround.strategies.secure.fixed_point import SCALARS, Scale, decode, encode, length

SCALE = Scale(bits=20, clip=8.0, examples=65536)
GIVEN: Weights = {
    "w": np.array([1.0, -2.0], np.float32),
    "count": np.array(5, np.int64),
    "flag": np.array([True, False]),
}


def moved(change: float, step: int = 0, flag: bool = True) -> Weights:
    return {"w": GIVEN["w"] + np.float32(change), "count": GIVEN["count"] + step, "flag": np.array([flag, False])}


def test_by_hand() -> None:
    words = encode(moved(0.5, 2), GIVEN, {"num-examples": 3.0}, SCALE)
    assert words[:5].view(np.int64).tolist() == [3 * 2**19, 3 * 2**19, 6, 0, 0]
    assert words[5] == 3
    assert not words[6:].any()
    assert len(words) == length(GIVEN) == 5 + 1 + 2 * len(SCALARS)


def test_a_weighted_mean_by_hand() -> None:
    # (1·(+1) + 3·(−1)) / 4 = −0.5; the counter (1·2 + 3·6) / 4 = 5 further; three of four have the flag off.
    one = encode(moved(1, 2), GIVEN, {"num-examples": 1, "loss": 0.25}, SCALE)
    other = encode(moved(-1, 6, flag=False), GIVEN, {"num-examples": 3, "loss": 0.5, "cases": 2.0}, SCALE)
    width = SCALE.width(2)
    found = decode((one + other) & np.uint64(2 ** (8 * width) - 1), GIVEN, SCALE, 2, width)
    assert found.examples == 4
    assert found.mean["w"].tolist() == [0.5, -2.5]
    assert found.mean["count"] == 10
    assert found.mean["count"].shape == ()
    assert found.mean["flag"].tolist() == [0.25, 0.0]
    assert found.totals == {"loss": (0.75, 2), "cases": (2.0, 1)}


@settings(max_examples=60, deadline=None)
@drawn(
    st.lists(
        st.tuples(st.integers(1, 65536), st.lists(st.floats(-8, 8), min_size=3, max_size=3)), min_size=1, max_size=50
    ),
    st.integers(8, 24),
)
def test_the_documented_bound(sites: list[tuple[int, list[float]]], bits: int) -> None:
    scale = Scale(bits, 8.0, 65536)
    given: Weights = {"w": np.zeros(3)}
    width = scale.width(len(sites))
    total = sum(encode({"w": np.array(w)}, given, {"num-examples": n}, scale) for n, w in sites)
    found = decode(total & np.uint64(2 ** (8 * width) - 1), given, scale, len(sites), width)
    examples = np.array([n for n, _ in sites], np.float64)
    mean = (examples[:, None] * np.array([w for _, w in sites])).sum(0) / examples.sum()
    assert np.abs(found.mean["w"] - mean).max() <= 2.0 ** -(bits + 1) * (1 + 1e-6)


@pytest.mark.parametrize("extreme", [8.0, -8.0])
def test_the_ring_holds_the_largest_sum(extreme: float) -> None:
    given: Weights = {"w": np.zeros(1)}
    for sites in (1, 3, 50):
        width = SCALE.width(sites)
        one = encode({"w": np.array([extreme])}, given, {"num-examples": 65536}, SCALE)
        total = one * np.uint64(sites) & np.uint64(2 ** (8 * width) - 1)
        assert decode(total, given, SCALE, sites, width).mean["w"] == extreme
    # A byte less would not do.
    assert 2 ** (8 * (SCALE.width(50) - 1) - 1) <= 50 * 65536 * 8 * 2**20


@pytest.mark.parametrize(
    ("weights", "metrics"),
    [
        (moved(8.001), {"num-examples": 1}),
        (moved(float("nan")), {"num-examples": 1}),
        (moved(0, 2**24), {"num-examples": 1}),
        (moved(0), {"num-examples": 65537}),
        (moved(0), {"num-examples": 0}),
        (moved(0), {"num-examples": 1.5}),
    ],
)
def test_nothing_is_cut_off(weights: Weights, metrics: dict[str, float]) -> None:
    with pytest.raises(GateRefused) as caught:
        encode(weights, GIVEN, metrics, SCALE)
    assert caught.value.code == "secure-range"


def test_scalars_that_cannot_be_summed_are_left_out() -> None:
    huge = {"num-examples": 1, "loss": float("nan"), "cases": 1e9, "updates": [1.0, 2.0]}
    assert not encode(moved(0), GIVEN, huge, SCALE)[6:].any()


@pytest.mark.parametrize("examples", [0, 1, 2 * 65536 + 1])
def test_a_sum_that_says_it_has_too_few_or_too_many_examples(examples: int) -> None:
    words = np.zeros(length(GIVEN), np.uint64)
    words[5] = examples
    with pytest.raises(ValueError, match="examples"):
        decode(words, GIVEN, SCALE, 2, SCALE.width(2))


def test_a_sum_beyond_what_sites_may_change() -> None:
    words = encode(moved(8.0), GIVEN, {"num-examples": 2}, SCALE)
    words[0] += np.uint64(2**40)
    with pytest.raises(ValueError, match="further"):
        decode(words, GIVEN, SCALE, 1, SCALE.width(50))


def test_no_ring_is_wide_enough() -> None:
    with pytest.raises(PlanError, match="8 bytes"):
        Scale(40, 1000.0, 10**6).width(50)
