"""Shares of a secret, by hand and by brute force."""

import itertools
import secrets

import pytest

from wardround.strategies.secure.shamir import PRIME, join, split


def test_by_hand() -> None:
    # 7 + 5x + 2x² at 1, 2, 3.
    drawn = iter([5, 2])
    shares = split((7).to_bytes(32, "big"), 3, 3, lambda below: next(drawn))
    assert [int.from_bytes(shares[point], "big") for point in (1, 2, 3)] == [14, 25, 40]
    assert int.from_bytes(join(shares), "big") == 7


def test_any_threshold_of_shares_and_no_fewer() -> None:
    secret = secrets.token_bytes(32)
    shares = split(secret, 6, 4)
    for chosen in itertools.combinations(shares, 4):
        assert join({point: shares[point] for point in chosen}) == secret
    assert join(shares) == secret
    fewer = []
    for chosen in itertools.combinations(shares, 3):
        try:
            fewer.append(join({point: shares[point] for point in chosen}))
        except ValueError:
            continue
    assert secret not in fewer


def test_fewer_shares_say_nothing() -> None:
    """For any two shares and any secret there is a polynomial through them: exactly one."""
    shares = split(bytes(32), 3, 3, lambda below: 11)
    for guess in (0, 1, 2**255):
        # Lagrange through (0, guess), (1, …), (2, …) gives a third share that fits the guess.
        first, second = (int.from_bytes(shares[point], "big") for point in (1, 2))
        third = (guess - 3 * first + 3 * second) % PRIME
        forged = {1: shares[1], 2: shares[2], 3: third.to_bytes(33, "big")}
        assert int.from_bytes(join(forged), "big") == guess


def test_the_modulus_is_prime() -> None:
    odd, twos = PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for _ in range(40):  # Miller and Rabin: a composite number passes one with probability 1/4 at most.
        value = pow(2 + secrets.randbelow(PRIME - 4), odd, PRIME)
        assert value in (1, PRIME - 1) or any((value := value * value % PRIME) == PRIME - 1 for _ in range(twos - 1))


def test_all_of_the_largest_secret() -> None:
    assert join(split(b"\xff" * 32, 2, 2)) == b"\xff" * 32


@pytest.mark.parametrize(("count", "threshold"), [(2, 3), (2, 0), (0, 0)])
def test_numbers_that_cannot_work(count: int, threshold: int) -> None:
    with pytest.raises(ValueError, match="threshold"):
        split(bytes(32), count, threshold)


@pytest.mark.parametrize("shares", [{}, {0: bytes(33)}, {1: bytes(32)}, {1: b"\xff" * 33}])
def test_no_shares(shares: dict[int, bytes]) -> None:
    with pytest.raises(ValueError, match="share"):
        join(shares)
