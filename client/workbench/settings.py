"""Where the workbench listens, and with which certificate.

Whoever is not on this machine reaches it by TLS only. Where the administrator gives no certificate one is made: it
vouches for nothing by itself, so its fingerprint is printed, to be compared in the browser once.
"""

import datetime
import ipaddress
import os
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from wardround.client.home import SiteHome
from wardround.errors import DataError
from wardround.files import write_bytes

_DAY = datetime.timedelta(days=1)
_VALID = 397 * _DAY
_RENEWED_BELOW = 30 * _DAY
# The clock of a workstation may be behind.
_BACKDATED = _DAY


@dataclass(frozen=True)
class Endpoint:
    """Where the workbench listens.

    Parameters
    ----------
    host, port
        Address and port.
    names
        Host names besides ``localhost`` under which it may be asked for.
    certificate, key
        PEM files; None where it speaks plain HTTP, which it does on this machine only.
    made
        Whether the certificate is one that was made here.
    """

    host: str
    port: int
    names: tuple[str, ...] = ()
    certificate: Path | None = None
    key: Path | None = None
    made: bool = False

    @property
    def url(self) -> str:
        """Under which it is reached from this machine, or from its network."""
        host = {"0.0.0.0": "localhost", "::": "localhost"}.get(self.host, self.host)  # noqa: S104
        return f"{'https' if self.certificate else 'http'}://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, as browsers show it; empty without one."""
        if self.certificate is None:
            return ""
        return _read(self.certificate).fingerprint(hashes.SHA256()).hex(":").upper()


def endpoint(home: SiteHome, now: datetime.datetime | None = None) -> Endpoint:
    """What site.toml says, and a certificate where one is needed: made, or made anew when it expires.

    Parameters
    ----------
    now
        UTC; by default the clock's.

    Raises
    ------
    DataError
        If a certificate and its key are named and cannot be used.
    StorageError
        If one cannot be written.
    """
    place = planned(home)
    if place.made and place.certificate is not None and place.key is not None:
        settings = home.workbench
        names = _names_of(settings.host, settings.names)
        _make(place.certificate, place.key, names, now or datetime.datetime.now(datetime.UTC))
    elif place.certificate is not None and place.key is not None:
        check_pair(place.certificate, place.key)
    return place


def planned(home: SiteHome) -> Endpoint:
    """What site.toml says alone: no certificate is looked at, and none is made."""
    settings = home.workbench
    # A name that it listens on is one to ask for; of an address nobody need be told.
    names = tuple(dict.fromkeys((*settings.names, settings.host)))
    if settings.certificate or settings.key:
        given = (home.path / settings.certificate, home.path / settings.key)
        return Endpoint(settings.host, settings.port, names, *given)
    if _is_this_machine(settings.host):
        return Endpoint(settings.host, settings.port, names)
    made = (home.path / "workbench.crt", home.keys / "workbench.pem")
    return Endpoint(settings.host, settings.port, (*names, socket.gethostname()), *made, made=True)


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _names_of(host: str, names: Sequence[str]) -> list[str]:
    """What the certificate is for; an address that stands for all is none that anybody asks for."""
    found = ["localhost", "127.0.0.1", "::1", socket.gethostname(), host, *names]
    return [name for name in dict.fromkeys(found) if name and name not in ("0.0.0.0", "::")]  # noqa: S104


def _make(certificate: Path, key: Path, names: Sequence[str], now: datetime.datetime) -> None:
    """A key and a certificate for it that says `names`; those that are there are kept as long as they do."""
    if _serves(certificate, key, names, now):
        return
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Wardround workbench")])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(private, hashes.SHA256())
    )
    key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    # A new file of ours can be read by its owner alone.
    write_bytes(key, private.private_bytes(*form))
    write_bytes(certificate, made.public_bytes(serialization.Encoding.PEM))


def _serves(certificate: Path, key: Path, names: Sequence[str], now: datetime.datetime) -> bool:
    try:
        check_pair(certificate, key)
        found = _read(certificate)
        said = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (DataError, x509.ExtensionNotFound):
        return False
    return list(said) == [_general_name(name) for name in names] and found.not_valid_after_utc - now > _RENEWED_BELOW


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _read(certificate: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise _unusable(certificate, error) from error


def check_pair(certificate: Path, key: Path) -> None:
    """See whether a server could use them.

    Raises
    ------
    DataError
        If it could not, with words for why.
    """
    _read(certificate)
    try:
        if os.stat(key).st_mode & 0o077:
            raise DataError(f"the key {key} cannot be used", "others on this machine may read it", f"chmod 600 {key}")
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise _unusable(key, error) from error


def _unusable(path: Path, error: Exception) -> DataError:
    missing = isinstance(error, FileNotFoundError)
    return DataError(
        f"the workbench cannot use {path}",
        "there is no such file" if missing else "it is no PEM file, has a password, or key and certificate differ",
        "correct `certificate` and `key` under [workbench] in site.toml; without both, a certificate is made",
    )
