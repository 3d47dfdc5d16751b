"""Who a site is to the others: an elliptic-curve key, which signs; the one with which its SuperNode proves who it is.

Signatures are ECDSA with SHA-384. What is signed begins with its purpose, so that none can stand for another kind, nor
for anything that the same key signs elsewhere.
"""

from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


@dataclass(frozen=True)
class Identity:
    """A site's long-lived key.

    Parameters
    ----------
    public
        Its public half: DER, SubjectPublicKeyInfo.
    sign
        Signs with its private half.
    """

    public: bytes
    sign: Callable[[bytes], bytes]


def identity_of(key: ec.EllipticCurvePrivateKey) -> Identity:
    """The identity that a private key makes."""
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return Identity(public, lambda message: key.sign(message, ec.ECDSA(hashes.SHA384())))


def new_identity() -> Identity:
    """One that lasts as long as it is in memory: for simulated sites."""
    return identity_of(ec.generate_private_key(ec.SECP384R1()))


def signed(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `signature` over `message` was made by whom `public` belongs to."""
    try:
        key = serialization.load_der_public_key(public)
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return False
        key.verify(signature, message, ec.ECDSA(hashes.SHA384()))
    except (ValueError, UnsupportedAlgorithm, InvalidSignature):
        return False
    return True


def fingerprint(public: bytes) -> str:
    """Of a public key, as ``ssh-keygen -l`` shows it.

    Raises
    ------
    ValueError
        If it is no key on a NIST curve.
    """
    try:
        key = serialization.load_der_public_key(public)
    except UnsupportedAlgorithm as error:
        raise ValueError("it is no key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("it is no key on a curve")
    line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return "SHA256:" + b64encode(sha256(b64decode(line.split()[1])).digest()).decode().rstrip("=")
