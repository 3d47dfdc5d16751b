import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, uses_nist_ec_curve

from wardround.deploy.provisioning.keys import (
    fingerprint,
    is_signed,
    make_node_key,
    private_folder,
    public_key_pem,
    read_private_key,
    read_public_key,
)
from wardround.errors import AuthRefused, StorageError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_only_the_owner_can_read_what_is_private(tmp_path: Path) -> None:
    key = make_node_key(tmp_path / "keys")
    assert mode(tmp_path / "keys") == 0o700
    assert mode(key.path) == 0o600
    assert b"OPENSSH PRIVATE KEY" in key.path.read_bytes()
    assert key.path.with_suffix(".pub").read_text() == key.public + "\n"


def test_flower_accepts_the_public_half(tmp_path: Path) -> None:
    pem = public_key_pem(make_node_key(tmp_path).public)
    assert uses_nist_ec_curve(bytes_to_public_key(pem))


def test_a_key_is_made_once(tmp_path: Path) -> None:
    first = make_node_key(tmp_path)
    # As a crash between the two files leaves it.
    (tmp_path / "node.pub").unlink()
    again = make_node_key(tmp_path)
    assert again == first
    assert (tmp_path / "node.pub").exists()


def test_each_site_has_another_key(tmp_path: Path) -> None:
    assert make_node_key(tmp_path / "a").public != make_node_key(tmp_path / "b").public


def test_a_signature_fits_one_message_and_one_key(tmp_path: Path) -> None:
    key, other = make_node_key(tmp_path / "a"), make_node_key(tmp_path / "b")
    signature = key.sign(b"message")
    assert is_signed(read_public_key(key.public), signature, b"message")
    assert not is_signed(read_public_key(key.public), signature, b"massage")
    assert not is_signed(read_public_key(other.public), signature, b"message")
    assert not is_signed(read_public_key(key.public), b"", b"message")


def test_a_private_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    key = make_node_key(tmp_path)
    key.path.chmod(0o640)
    with pytest.raises(StorageError, match="chmod 600"):
        read_private_key(key.path)


def test_what_is_no_private_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node"
    path.touch(mode=0o600)
    with pytest.raises(StorageError, match="cannot be used"):
        read_private_key(path)
    path.write_bytes(
        ed25519.Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
    )
    with pytest.raises(StorageError, match="cannot be used"):
        read_private_key(path)
    with pytest.raises(StorageError, match="cannot be read"):
        read_private_key(tmp_path / "absent")


@pytest.mark.parametrize(
    "line",
    ["", "ssh-ed25519 AAAA", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPTj4tJmqOk4ZWPtQK/9DDDx5B0b4x1vFVT2RFwE7Wzp"],
)
def test_what_is_no_public_key_on_a_nist_curve_is_refused(line: str) -> None:
    with pytest.raises(AuthRefused):
        read_public_key(line)


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        private_folder(tmp_path / "file")


def test_openssh_reads_the_key(tmp_path: Path) -> None:
    key = make_node_key(tmp_path)
    try:
        answer = subprocess.run(["ssh-keygen", "-y", "-f", str(key.path)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("ssh-keygen is not installed")
    assert answer.stdout.split()[:2] == key.public.split()


def test_the_fingerprint_is_the_one_that_openssh_shows(tmp_path: Path) -> None:
    key = make_node_key(tmp_path)
    assert fingerprint(key.public) == fingerprint(f"{key.public} somebody@somewhere")
    with pytest.raises(AuthRefused):
        fingerprint("ssh-rsa AAAA")
    try:
        answer = subprocess.run(
            ["ssh-keygen", "-l", "-f", str(key.path) + ".pub"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("ssh-keygen is not installed")
    assert fingerprint(key.public) in answer.stdout.split()
