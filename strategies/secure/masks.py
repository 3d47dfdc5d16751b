"""Masks: numbers of the ring that look random to everybody but the two who can make them, and cancel in the sum.

Two sites agree on a secret by X25519 (RFC 7748) and make a key of it by HKDF with SHA-256 (RFC 5869). The keystream of
ChaCha20 (RFC 8439) under that key is the mask. Each key is used once, for one purpose: what it is for stands in the
HKDF's info.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from wardround.strategies.secure.fixed_point import Words

KEY_BYTES = 32

_PIECE = 2**17
_NONCE = bytes(16)
"""A key makes one keystream only."""


@dataclass(frozen=True, repr=False)
class Pair:
    """A private key and its public half, 32 bytes each."""

    private: bytes
    public: bytes

    @classmethod
    def fresh(cls) -> "Pair":
        """From the operating system's randomness."""
        return cls.of(X25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def of(cls, private: bytes) -> "Pair":
        """The pair of a private key."""
        public = X25519PrivateKey.from_private_bytes(private).public_key()
        return cls(private, public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw))


def agree(private: bytes, public: bytes, session: bytes, purpose: str) -> bytes:
    """The key that two sites share for one purpose in one session: the same from either side.

    Raises
    ------
    ValueError
        If the public key is one with which everybody would agree on the same.
    """
    secret = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    return derive(secret, session, purpose)


def derive(secret: bytes, session: bytes, purpose: str) -> bytes:
    """32 bytes made of a secret for one purpose in one session."""
    info = b"wardround secure " + purpose.encode()
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=session, info=info).derive(secret)


def add_masks(words: Words, keys: Iterable[tuple[bytes, int]], width: int) -> None:
    """Add masks to numbers, in place.

    Parameters
    ----------
    words
        (n,).
    keys
        Of each mask its key, and 1 to add it or −1 to take it away.
    width
        Bytes of a number, 1 … 8.
    """
    streams = [(_stream(key), sign) for key, sign in keys]
    zeros = bytes(_PIECE * width)
    padded = np.zeros((_PIECE, 8), np.uint8)
    for start in range(0, len(words), _PIECE):
        piece = words[start : start + _PIECE]
        for stream, sign in streams:
            drawn = np.frombuffer(stream.update(zeros[: len(piece) * width]), np.uint8)
            padded[: len(piece), :width] = drawn.reshape(-1, width)
            mask = padded.view("<u8")[: len(piece), 0]
            if sign > 0:
                np.add(piece, mask, out=piece)
            else:
                np.subtract(piece, mask, out=piece)


def pack(words: Words, width: int) -> bytes:
    """Numbers as they travel: the lower `width` bytes of each, the lowest first."""
    return words.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :width].tobytes()


def unpack(data: bytes, width: int) -> Words:
    """What :func:`pack` packed.

    Raises
    ------
    ValueError
        If it is no whole number of numbers.
    """
    padded = np.zeros((len(data) // width, 8), np.uint8)
    padded[:, :width] = np.frombuffer(data, np.uint8).reshape(-1, width)
    return padded.view("<u8").ravel().astype(np.uint64)


def _stream(key: bytes) -> CipherContext:
    return Cipher(ChaCha20(key, _NONCE), mode=None).encryptor()
