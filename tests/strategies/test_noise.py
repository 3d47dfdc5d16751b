"""Randomness that privacy rests on."""

import numpy as np
import pytest

from wardround.strategies.noise import Noise


@pytest.mark.parametrize("key", [None, b"a key"])
def test_normal_numbers_have_the_moments_and_tails_of_normal_ones(key: bytes | None) -> None:
    found = Noise(key).normal((300, 1000))
    assert found.shape == (300, 1000)
    assert found.mean() == pytest.approx(0, abs=0.01)
    assert found.std() == pytest.approx(1, abs=0.01)
    assert (found**4).mean() == pytest.approx(3, abs=0.1)
    assert (np.abs(found) > 3).mean() == pytest.approx(0.0027, abs=0.0006)
    assert np.corrcoef(found.ravel()[:-1], found.ravel()[1:])[0, 1] == pytest.approx(0, abs=0.01)


def test_uniform_numbers_fill_the_unit_interval_and_touch_neither_end() -> None:
    found = Noise(b"a key").uniform(200_000)
    assert 0 < found.min() < 1e-4
    assert 1 - 1e-4 < found.max() < 1
    assert np.histogram(found, 10, (0, 1))[0] == pytest.approx(np.full(10, 20_000), rel=0.03)


def test_a_key_repeats_and_goes_on_without_handing_anything_out_twice() -> None:
    one, other = Noise(b"a key"), Noise(b"a key")
    first = one.normal((70_000,))
    assert np.array_equal(first, other.normal((70_000,)))
    assert not np.intersect1d(first, one.normal((70_000,))).size
    assert not np.intersect1d(first, Noise(b"another").normal((70_000,))).size


def test_nobody_can_repeat_what_has_no_key() -> None:
    assert not np.intersect1d(Noise().normal((1000,)), Noise().normal((1000,))).size


def test_odd_counts_shapes_without_axes_and_nothing_at_all() -> None:
    noise = Noise(b"a key")
    assert noise.normal(()).shape == ()
    assert noise.normal((0, 3)).shape == (0, 3)
    assert noise.normal((3,)).shape == (3,)
    assert noise.normal((2**18 + 1,)).shape == (2**18 + 1,)
