"""Secrets in shares: any `threshold` of them give the secret back, fewer give nothing (Shamir 1979).

A secret is 32 bytes, read as a number. Shares are values of a random polynomial of degree threshold − 1 over the
integers modulo :data:`PRIME`, whose value at 0 is the secret, at the points 1, 2, …
"""

import secrets
from collections.abc import Callable, Mapping

PRIME = 2**256 + 297
"""The smallest prime above all secrets."""
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(
    secret: bytes, count: int, threshold: int, draw: Callable[[int], int] = secrets.randbelow
) -> dict[int, bytes]:
    """Shares of a secret.

    Parameters
    ----------
    secret
        32 bytes.
    count
        How many shares.
    threshold
        How many of them give the secret, 1 … `count`.
    draw
        A uniform number from 0 up to, and without, its argument.

    Returns
    -------
    dict
        The point of each share, 1 … `count`, to its 33 bytes.

    Raises
    ------
    ValueError
        If the numbers cannot work.
    """
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= count:
        raise ValueError("a secret has 32 bytes, and the threshold is from 1 up to the number of shares")
    coefficients = [int.from_bytes(secret, "big"), *(draw(PRIME) for _ in range(threshold - 1))]
    return {point: _value(coefficients, point).to_bytes(SHARE_BYTES, "big") for point in range(1, count + 1)}


def join(shares: Mapping[int, bytes]) -> bytes:
    """The secret behind shares; all that are given are used, so that too few or false ones give another number.

    Raises
    ------
    ValueError
        If a share is none, or what they give is no secret.
    """
    numbers = {point: int.from_bytes(share, "big") for point, share in shares.items()}
    if not numbers or min(numbers) < 1:
        raise ValueError("shares lie at points from 1 up")
    if any(len(share) != SHARE_BYTES for share in shares.values()) or max(numbers.values()) >= PRIME:
        raise ValueError("a share has 33 bytes and is smaller than the prime")
    secret = 0
    for point, number in numbers.items():
        above, below = 1, 1
        for other in numbers:
            if other != point:
                above = above * other % PRIME
                below = below * (other - point) % PRIME
        secret = (secret + number * above * pow(below, -1, PRIME)) % PRIME
    if secret >= 2 ** (8 * SECRET_BYTES):
        raise ValueError("these shares give no secret")
    return secret.to_bytes(SECRET_BYTES, "big")


def _value(coefficients: list[int], point: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % PRIME
    return value
