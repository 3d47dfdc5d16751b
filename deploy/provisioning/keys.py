"""Key files: what is private is written for its owner's eyes only, and a site's key never leaves the site."""

import os
import stat
from base64 import b64decode, b64encode
from collections.abc import Collection
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from wardround.errors import AuthRefused, StorageError, UsageError
from wardround.files import PREFIX, storage_error, write_bytes

CURVE = ec.SECP384R1
"""NIST P-384: one of the curves that Flower accepts for a node, and good enough for an authority."""

_OF_THE_DISK = "lost+found"
"""In the root of a volume of its own."""


def private_folder(path: Path) -> Path:
    """Make a folder that only its owner may enter, and return it.

    Raises
    ------
    StorageError
        If it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o700)
    except OSError as error:
        raise storage_error(error, path) from error
    return path


def new_home(path: Path, ours: Collection[str], what: str) -> None:
    """Make sure that a home can be made at `path`: nothing is there, or no more than an attempt that was cut off left.

    Parameters
    ----------
    path
        A folder, which need not exist. It will be closed to everybody but its owner, so it must be nobody else's.
    ours
        Names of what a home holds.
    what
        Whose home, for the message.

    Raises
    ------
    UsageError
        If something else is there.
    """
    if not path.exists():
        return
    # A cut may leave a file under the name that it has while it is written.
    if not path.is_dir() or not all(
        file.name in {*ours, _OF_THE_DISK} or file.name.startswith(PREFIX) for file in path.iterdir()
    ):
        raise UsageError(
            f"{path} is not empty", f"the home of a {what} is a folder of its own", "choose another --home"
        )


def write_private(path: Path, data: bytes) -> None:
    """Replace a file that only its owner may read, atomically and durably."""
    # A temporary file is made with 0600, and a rename keeps it so: there is no moment at which others can read it.
    write_bytes(path, data)


def write_public(path: Path, data: bytes) -> None:
    """Replace a file that everybody may read."""
    write_bytes(path, data)
    path.chmod(0o644)


def read_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a private key, in OpenSSH format or PEM, without a passphrase.

    Raises
    ------
    StorageError
        If it cannot be read, or others than its owner can.
    """
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(
            f"the private key {path} cannot be read", error.strerror or "", "restore it from your backup"
        ) from error
    if mode & 0o077:
        raise StorageError(
            f"the private key {path} can be read by others", f"its mode is {mode:o}", f"run chmod 600 {path}"
        )
    load = serialization.load_ssh_private_key if b"OPENSSH PRIVATE KEY" in data else serialization.load_pem_private_key
    try:
        key = load(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_key(path) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _no_key(path)
    return key


def _no_key(path: Path) -> StorageError:
    return StorageError(
        f"the private key {path} cannot be used",
        "it is damaged, has a passphrase or is of another kind than a NIST curve",
        "restore it from your backup",
    )


@dataclass(frozen=True)
class NodeKey:
    """The key by which a site proves who it is.

    Parameters
    ----------
    path
        Of the private half; the public one lies beside it and ends in ``.pub``.
    public
        The public half, as one line in OpenSSH's format.
    """

    path: Path
    public: str

    def sign(self, message: bytes) -> bytes:
        """Sign with the private half: ECDSA with SHA-384."""
        return read_private_key(self.path).sign(message, ec.ECDSA(hashes.SHA384()))


def make_node_key(folder: Path) -> NodeKey:
    """Make a site's key pair in `folder`: ``node`` and ``node.pub``. One that is there already is kept.

    Raises
    ------
    StorageError
        If the folder cannot be written, or the key that is there cannot be used.
    """
    private_folder(folder)
    path = folder / "node"
    if path.exists():
        key = read_private_key(path)
    else:
        key = ec.generate_private_key(CURVE())
        write_private(
            path,
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
            ),
        )
    public = _openssh(key.public_key())
    # Written again each time: a crash between the two files would leave the public half missing for ever.
    write_public(path.with_suffix(".pub"), public.encode() + b"\n")
    return NodeKey(path, public)


def read_public_key(line: str) -> ec.EllipticCurvePublicKey:
    """Read a public key on a NIST curve from a line in OpenSSH's format.

    Raises
    ------
    AuthRefused
        If it is none.
    """
    try:
        key = serialization.load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise AuthRefused(
            "the public key cannot be used",
            "it is no key on a NIST curve in OpenSSH's format",
            "make the site's key with `wardround site init`",
        )
    return key


def fingerprint(line: str) -> str:
    """Of a public key in OpenSSH's format, as ``ssh-keygen -l`` shows it: to be compared on the telephone.

    Raises
    ------
    AuthRefused
        If it is none.
    """
    read_public_key(line)
    return "SHA256:" + b64encode(sha256(b64decode(line.split()[1])).digest()).decode().rstrip("=")


def public_key_pem(line: str) -> bytes:
    """The same key as Flower registers it: PEM, SubjectPublicKeyInfo."""
    return read_public_key(line).public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def is_signed(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    """Whether `signature` over `message` was made with the private half of `key`."""
    try:
        key.verify(signature, message, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return False
    return True


def _openssh(key: ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
