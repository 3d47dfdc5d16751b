"""Whether the other end of a line is the coordinator, and if not, who it seems to be.

The coordinator's certificate must come from the authority that the invitation brought; no public authority counts.
"""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from wardround.deploy.doctor.line import Broken, Target, connect

# Numbers of OpenSSL (X509_V_ERR_…): what was wrong with a certificate.
_NOT_YET_VALID, _EXPIRED, _WRONG_NAME, _WRONG_ADDRESS = 9, 10, 62, 64
_UNKNOWN_ISSUER = (2, 18, 19, 20, 21)
_BAD_SIGNATURE = 7


@contextmanager
def secure(target: Target, authority: Path) -> Iterator[ssl.SSLSocket]:
    """A connection whose other end has proved to be the coordinator.

    Raises
    ------
    Broken
        If it has not.
    """
    try:
        context = ssl.create_default_context(cafile=str(authority))
    except (OSError, ssl.SSLError) as error:
        raise Broken(
            "TLS",
            f"the certificate of the coordinator's authority cannot be read: {authority}",
            type(error).__name__,
            "take it from the invitation again",
        ) from error
    with connect(target) as plain:
        try:
            secured = context.wrap_socket(plain, server_hostname=target.host)
        except ssl.SSLCertVerificationError as error:
            raise _distrusted(target, authority, error) from error
        except (OSError, ValueError) as error:
            raise _no_tls(target, error) from error
        with secured:
            yield secured


def _no_tls(target: Target, error: Exception) -> Broken:
    reason = str(getattr(error, "reason", "") or "")
    if reason in (
        "WRONG_VERSION_NUMBER",
        "HTTP_REQUEST",
        "UNKNOWN_PROTOCOL",
        "RECORD_LAYER_FAILURE",
        "PACKET_LENGTH_TOO_LONG",
    ):
        return Broken(
            "TLS",
            f"{target} does not speak TLS",
            "what listens there answers in plain text: another service, or a proxy's error page",
            "check the port in site.toml; ask the coordinator's operator for the right address",
        )
    if isinstance(error, TimeoutError):
        return Broken(
            "TLS",
            f"{target} accepts the connection and then says nothing",
            "something on the way takes connections without passing them on, or another service listens there",
            "check the port; ask the network team whether connections are inspected",
        )
    said = reason.replace("_", " ").lower() or getattr(error, "strerror", None) or "it hung up"
    return Broken(
        "TLS",
        f"no TLS connection with {target} comes about",
        f"{said}; something on the way may cut it off, or it is another service",
        "check the port; ask the network team whether connections are inspected or filtered",
    )


@dataclass(frozen=True)
class Shown:
    """What a server's certificate says of itself, unchecked."""

    issuer: str
    issuer_name: x509.Name
    names: tuple[str, ...]
    not_before: str
    not_after: str


def shown(target: Target) -> Shown | None:
    """Look at the certificate without believing it; nothing is sent over that connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with connect(target) as plain, context.wrap_socket(plain, server_hostname=target.host) as secured:
            der = secured.getpeercert(binary_form=True)
        certificate = x509.load_der_x509_certificate(der or b"")
        names: list[str] = []
        try:
            alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            names = [*alternative.get_values_for_type(x509.DNSName)]
            names += [str(address) for address in alternative.get_values_for_type(x509.IPAddress)]
        except x509.ExtensionNotFound:
            pass
    except (Broken, OSError, ValueError):
        return None
    return Shown(
        common_name(certificate.issuer),
        certificate.issuer,
        tuple(names),
        f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC",
        f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
    )


def common_name(name: x509.Name) -> str:
    """How a party calls itself."""
    for kind in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME):
        found = name.get_attributes_for_oid(kind)
        if found:
            return str(found[0].value)
    return "somebody without a name"


def _distrusted(target: Target, authority: Path, error: ssl.SSLCertVerificationError) -> Broken:
    seen, code = shown(target), error.verify_code
    if code == _EXPIRED:
        return Broken(
            "TLS",
            f"the coordinator's certificate has expired{f' on {seen.not_after}' if seen else ''}",
            "it was not renewed, or the clock of this machine is ahead",
            "compare this machine's clock; then ask the coordinator's operator to run `wardround coordinator renew`",
        )
    if code == _NOT_YET_VALID:
        return Broken(
            "TLS",
            f"the coordinator's certificate is not valid yet{f', only from {seen.not_before}' if seen else ''}",
            "the clock of this machine is behind",
            "set the clock (NTP)",
        )
    if code in (_WRONG_NAME, _WRONG_ADDRESS):
        return Broken(
            "TLS",
            f"the certificate is not made out to {target.host}",
            f"it is made out to {', '.join(seen.names) if seen and seen.names else 'other names'}",
            "use one of these names in site.toml, or ask the operator to add this one to `names` in coordinator.toml "
            "and to run `wardround coordinator renew`",
        )
    if code in (*_UNKNOWN_ISSUER, _BAD_SIGNATURE):
        return _foreign(target, authority, seen)
    return Broken(
        "TLS",
        "the coordinator's certificate is not accepted",
        error.verify_message or "unknown",
        "ask the coordinator's operator; do not go on",
    )


def _foreign(target: Target, authority: Path, seen: Shown | None) -> Broken:
    ours = x509.load_pem_x509_certificate(authority.read_bytes()).subject
    if seen is not None and seen.issuer_name == ours:
        return Broken(
            "TLS",
            "the coordinator shows a certificate of another authority with the same name",
            "the coordinator was set up anew, or somebody takes its place",
            "ask the operator on the telephone for the authority's fingerprint; if it was changed on purpose, ask for "
            "a new invitation",
        )
    issuer = seen.issuer if seen is not None else "somebody else"
    if target.proxy is not None or _is_public(target):
        return Broken(
            "TLS",
            "somebody on the way opens the encrypted connection",
            f"the certificate was issued by {issuer}, not by the coordinator's authority: a proxy or firewall inspects "
            "TLS",
            f"ask the network team to exempt {target} from TLS inspection; weights would be readable there",
        )
    return Broken(
        "TLS",
        f"the certificate of {target} does not come from the coordinator's authority",
        f"it was issued by {issuer}: a firewall that inspects TLS, another server, or another coordinator than that of "
        "the invitation",
        "check the address; ask the network team about TLS inspection; compare the authority's fingerprint with the "
        "operator",
    )


def _is_public(target: Target) -> bool:
    """Whether this machine's own list of authorities accepts it: as one does into which that of a proxy was put."""
    try:
        context = ssl.create_default_context()
        with connect(target) as plain, context.wrap_socket(plain, server_hostname=target.host):
            return True
    except (Broken, OSError, ValueError):
        return False
