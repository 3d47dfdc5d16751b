"""TLS for DIMSE: whom we believe, and what we show. Both sides have a certificate, both are checked (PS3.15, B.9)."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from wardround.client.home import PacsSettings, SiteHome
from wardround.errors import StorageError, UsageError


@dataclass(frozen=True)
class Contexts:
    """For connections that we open, and for those that the archive opens to us."""

    calling: ssl.SSLContext
    serving: ssl.SSLContext


def make_contexts(settings: PacsSettings, home: SiteHome) -> Contexts:
    """What the settings of an archive say: `authority`, `certificate` and `key`.

    Raises
    ------
    StorageError
        If a file cannot be used, or others may read the key.
    UsageError
        If there is a certificate without a key, or none while `move-port` needs one.
    """
    authority = _path(home, settings.authority) if settings.authority else home.keys / f"pacs-{settings.name}.crt"
    if bool(settings.certificate) != bool(settings.key) or (settings.move_port and not settings.certificate):
        raise UsageError(
            f"the archive {settings.name} cannot be spoken with by TLS",
            "a certificate has its key, and who listens on `move-port` has both",
            "set `certificate` and `key` in its table of site.toml",
        )
    calling, serving = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Whoever connects to us shows a certificate of the same authority.
    serving.verify_mode = ssl.CERT_REQUIRED
    for context in (calling, serving):
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_verify_locations(authority)
        except (OSError, ValueError) as error:
            raise _unusable(authority, "of the archive's authority", error) from None
        if settings.certificate:
            _show(context, _path(home, settings.certificate), _path(home, settings.key))
    return Contexts(calling, serving)


def _show(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    try:
        if key.stat().st_mode & 0o077:
            raise StorageError(f"{key} can be read by others", "a key must be its owner's only", f"chmod 600 {key}")
        # Without a password nobody is asked for one.
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:
        raise _unusable(certificate, "or its key, of this site", error) from None


def _unusable(path: Path, whose: str, error: Exception) -> StorageError:
    return StorageError(
        f"cannot use the certificate {path}, {whose}",
        (error.strerror if isinstance(error, OSError) else "") or type(error).__name__,
        "give the path of a PEM file",
    )


def _path(home: SiteHome, name: str) -> Path:
    return home.path / name
