"""The coordinator's own certificate authority: one certificate for sites to trust, and the server's beneath it.

Sites reach one server that they were told about in person; no public authority has a say in that. The authority's
certificate travels in the invitation, and its fingerprint can be compared on the telephone.
"""

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from wardround.deploy.provisioning.keys import CURVE, private_folder, read_private_key, write_private, write_public
from wardround.errors import AuthRefused, StorageError, UsageError

_DAY = datetime.timedelta(days=1)
_AUTHORITY_DAYS = 3650
_SERVER_DAYS = 397
# The clock of a site may be behind: a certificate that is only just valid would look as if it came from the future.
_BACKDATED = datetime.timedelta(hours=1)

RENEW_BELOW_DAYS = 30
"""A server certificate that is valid for less is replaced."""


@dataclass(frozen=True)
class CertificateFacts:
    """What a certificate says.

    Parameters
    ----------
    subject
        Its common name.
    names
        Host names and addresses that it is valid for.
    not_before, not_after
        When it is valid, UTC.
    fingerprint
        SHA-256, as pairs of hexadecimal digits with colons.
    """

    subject: str
    names: tuple[str, ...]
    not_before: datetime.datetime
    not_after: datetime.datetime
    fingerprint: str

    def days_left(self, now: datetime.datetime) -> float:
        """Days until it expires; negative where it has."""
        return (self.not_after - now) / _DAY


def certificate_facts(pem: bytes) -> CertificateFacts:
    """Read the first certificate in `pem`.

    Raises
    ------
    AuthRefused
        If it holds none.
    """
    certificate = _load(pem)
    names: list[str] = []
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = alternative.get_values_for_type(x509.DNSName)
        names += [str(address) for address in alternative.get_values_for_type(x509.IPAddress)]
    except x509.ExtensionNotFound:
        pass
    subject = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return CertificateFacts(
        subject=str(subject[0].value) if subject else "",
        names=tuple(names),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(":").upper(),
    )


def public_key_of(pem: bytes) -> ec.EllipticCurvePublicKey:
    """The public key in a certificate.

    Raises
    ------
    AuthRefused
        If there is no certificate, or its key is of another kind than ours.
    """
    key = _load(pem).public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise AuthRefused("the certificate cannot be used", "its key is on no NIST curve", "ask for another invitation")
    return key


def _load(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise AuthRefused("the certificate cannot be used", "it is damaged", "ask for it again") from error


class Authority:
    """A key that signs: the certificate of the coordinator's server, and invitations.

    Parameters
    ----------
    folder
        Holds ``ca.key``, which is private, and ``ca.crt``.

    Raises
    ------
    StorageError
        If there is none, or its key can be read by others.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self.certificate = (folder / "ca.crt").read_bytes()
        except OSError as error:
            raise StorageError(
                f"{folder} holds no authority", error.strerror or "", "run `wardround coordinator init`"
            ) from error
        self._key = read_private_key(folder / "ca.key")

    @classmethod
    def create(cls, folder: Path, name: str, now: datetime.datetime) -> "Authority":
        """Make a new authority. One that is there is kept: sites trust it already.

        Parameters
        ----------
        folder
            Made where it does not exist.
        name
            Of the coordinator; part of the certificate.
        now
            UTC.
        """
        private_folder(folder)
        if (folder / "ca.crt").exists():
            return cls(folder)
        key = ec.generate_private_key(CURVE())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Wardround authority of {name}"[:64])])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATED)
            .not_valid_after(now + _AUTHORITY_DAYS * _DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA384())
        )
        # The certificate comes last: it is what says that an authority is there.
        write_private(folder / "ca.key", _pem(key))
        write_public(folder / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM))
        return cls(folder)

    @property
    def fingerprint(self) -> str:
        """Of the certificate."""
        return certificate_facts(self.certificate).fingerprint

    def sign(self, message: bytes) -> bytes:
        """Sign a message: ECDSA with SHA-384."""
        return self._key.sign(message, ec.ECDSA(hashes.SHA384()))

    def issue_server(
        self, folder: Path, names: Sequence[str], now: datetime.datetime, *, days: float = _SERVER_DAYS
    ) -> CertificateFacts:
        """Write a new key and certificate for the coordinator's server: ``server.key`` and ``server.crt``.

        Parameters
        ----------
        folder
            Where to.
        names
            Host names and addresses under which sites reach it; the loop-back ones are added.
        now
            UTC.
        days
            How long it is valid; at most as long as the authority.

        Raises
        ------
        UsageError
            If a name is none.
        """
        private_folder(folder)
        authority = _load(self.certificate)
        key = ec.generate_private_key(CURVE())
        every = list(dict.fromkeys([*names, "localhost", "127.0.0.1"]))
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, every[0][:64])]))
            .issuer_name(authority.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATED)
            .not_valid_after(min(now + days * _DAY, authority.not_valid_after_utc))
            .add_extension(x509.SubjectAlternativeName([general_name(name) for name in every]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA384())
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        write_private(folder / "server.key", _pem(key))
        write_public(folder / "server.crt", pem)
        return certificate_facts(pem)


def server_certificate_fits(folder: Path, names: Sequence[str], now: datetime.datetime) -> bool:
    """Whether the server's key and certificate in `folder` belong together, are valid long enough and name every name.

    A crash while they were replaced may have left one of each: then they do not fit.

    Raises
    ------
    UsageError
        If a name is none.
    """
    wanted = {as_certified(name) for name in names}
    try:
        pem = (folder / "server.crt").read_bytes()
        key = read_private_key(folder / "server.key")
        facts = certificate_facts(pem)
        same = public_key_of(pem) == key.public_key()
    except (OSError, StorageError, AuthRefused):
        return False
    return same and facts.days_left(now) >= RENEW_BELOW_DAYS and wanted <= set(facts.names)


def as_certified(name: str) -> str:
    """A host name or an address as :class:`CertificateFacts` spells it: one address has more than one spelling.

    Raises
    ------
    UsageError
        If it is neither.
    """
    return str(general_name(name).value)


def general_name(name: str) -> x509.GeneralName:
    """A host name or an address, as certificates write it.

    Raises
    ------
    UsageError
        If it is neither.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    labels = name.split(".")
    if len(name) > 253 or not all(
        0 < len(label) <= 63 and label.isascii() and label.replace("-", "a").isalnum() and label.strip("-") == label
        for label in labels
    ):
        raise UsageError(
            f"{name!r} is no host name", "letters, digits, hyphens and dots make one", "give a name or an address"
        )
    return x509.DNSName(name)


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
