"""Masks: against the standards' own vectors, and that they cancel."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from wardround.strategies.secure.masks import Pair, add_masks, agree, derive, pack, unpack

SESSION = bytes(range(32))


def test_both_sides_agree_and_nobody_else() -> None:
    one, other, third = Pair.fresh(), Pair.fresh(), Pair.fresh()
    key = agree(one.private, other.public, SESSION, "pair")
    assert key == agree(other.private, one.public, SESSION, "pair")
    assert len({key, agree(third.private, one.public, SESSION, "pair")}) == 2
    assert key != agree(one.private, other.public, SESSION, "seal")
    assert key != agree(one.private, other.public, bytes(32), "pair")
    assert Pair.of(one.private) == one


def test_agreement_is_x25519_and_hkdf() -> None:
    one, other = Pair.fresh(), Pair.fresh()
    secret = X25519PrivateKey.from_private_bytes(one.private).exchange(X25519PublicKey.from_public_bytes(other.public))
    assert agree(one.private, other.public, SESSION, "pair") == derive(secret, SESSION, "pair")


def test_hkdf_by_hand() -> None:
    import hmac

    # RFC 5869 with one block: extract, then HMAC(info || 1).
    extracted = hmac.digest(SESSION, b"secret", "sha256")
    assert derive(b"secret", SESSION, "pair") == hmac.digest(extracted, b"wardround secure pair\x01", "sha256")


def test_a_key_with_which_everybody_agrees_is_none() -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the library's own text
        agree(Pair.fresh().private, bytes(32), SESSION, "pair")


def test_the_mask_is_the_keystream_of_chacha20() -> None:
    # RFC 8439, appendix A.1, test vector 1: key, nonce and counter of zeros.
    words = np.zeros(2, np.uint64)
    add_masks(words, [(bytes(32), 1)], 8)
    assert words.astype("<u8").tobytes().hex() == "76b8e0ada0f13d90405d6ae55386bd28"


@pytest.mark.parametrize("width", [4, 5, 6, 7, 8])
def test_masks_cancel_in_any_width_and_beyond_one_piece(width: int) -> None:
    count = 2**17 + 3
    rng = np.random.default_rng(1)
    plain = rng.integers(0, 2**20, count, dtype=np.uint64)
    words = plain.copy()
    add_masks(words, [(b"a" * 32, 1), (b"b" * 32, -1)], width)
    hidden = unpack(pack(words, width), width)
    assert len(pack(words, width)) == count * width
    assert np.mean(hidden == plain) < 1e-3
    add_masks(hidden, [(b"b" * 32, 1), (b"a" * 32, -1)], width)
    assert np.array_equal(unpack(pack(hidden, width), width), plain)


def test_a_mask_is_uniform_over_the_ring() -> None:
    words = np.zeros(2**16, np.uint64)
    add_masks(words, [(b"k" * 32, 1)], 5)
    packed = np.frombuffer(pack(words, 5), np.uint8).reshape(-1, 5)
    for place in range(5):
        counts = np.bincount(packed[:, place], minlength=256)
        # χ² with 255 degrees of freedom: mean 255, standard deviation 22.6.
        assert ((counts - 256) ** 2 / 256).sum() < 400


def test_bytes_that_are_no_numbers() -> None:
    with pytest.raises(ValueError, match="reshape"):
        unpack(bytes(11), 5)
