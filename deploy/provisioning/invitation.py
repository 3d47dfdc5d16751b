"""How a site joins: the coordinator invites, the site answers with the public half of a key that it made itself.

An invitation is one small file: where the coordinator is, which certificate to trust, the site's name and a token that
is good for one enrolment. It is signed by the coordinator's authority, so that nobody can change it on its way. An
enrolment is the file that comes back: public key, token, and a signature by the private half, which proves that
whoever sent the file holds it.
"""

import base64
import datetime
import hmac
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from wardround.deploy.provisioning.authority import Authority, certificate_facts, public_key_of
from wardround.deploy.provisioning.keys import NodeKey, is_signed, read_public_key
from wardround.errors import AuthRefused, DataError, UsageError

_FORMAT = 1
_LARGEST = 65536
_HOST_AND_PORT = re.compile(r"[A-Za-z0-9._%:\[\]-]+")
_SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

DEFAULT_DAYS = 14.0
"""An invitation is good for so long."""


@dataclass(frozen=True)
class Invitation:
    """What a site needs to know to join.

    Parameters
    ----------
    coordinator
        ``https://host:port``.
    ca_certificate
        PEM; the only authority that the site will trust.
    site
        The name under which the site takes part.
    token
        Good for one enrolment.
    expires
        UTC.
    """

    coordinator: str
    ca_certificate: bytes
    site: str
    token: str
    expires: datetime.datetime

    @property
    def fingerprint(self) -> str:
        """Of the authority's certificate: to be compared with what the coordinator says on the telephone."""
        return certificate_facts(self.ca_certificate).fingerprint

    @property
    def token_digest(self) -> str:
        """What the coordinator keeps of the token."""
        return token_digest(self.token)


@dataclass(frozen=True)
class Enrolment:
    """A site's answer to an invitation. Reading one checks that its sender holds the private key.

    Parameters
    ----------
    site
        Name.
    public_key
        One line in OpenSSH's format.
    token
        Of the invitation.
    """

    site: str
    public_key: str
    token: str

    def answers(self, digest: str) -> bool:
        """Whether it holds the token that `digest` was kept of."""
        return hmac.compare_digest(token_digest(self.token), digest)


def token_digest(token: str) -> str:
    """SHA-256 of a token, in hexadecimal."""
    return sha256(token.encode()).hexdigest()


def check_site_name(name: str) -> str:
    """Return `name` if a site can be called so.

    Raises
    ------
    UsageError
        If not.
    """
    if not _SITE_NAME.fullmatch(name):
        raise UsageError(
            f"a site cannot be called {name!r}",
            "a name has up to 64 letters, digits, dots, hyphens and underscores, and begins with a letter or a digit",
            "choose another name",
        )
    return name


def check_url(url: str) -> str:
    """Return the coordinator's address without a trailing slash.

    Raises
    ------
    UsageError
        If it is not ``https://host:port``.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme == "https" and parts.hostname and parts.port and parts.path in ("", "/")
        # It is written into a settings file, between quotes.
        good = good and _HOST_AND_PORT.fullmatch(parts.netloc) is not None
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment or parts.username is not None:
        raise UsageError(f"{url!r} is no address of a coordinator", "it is not https://host:port", "correct it")
    return f"https://{parts.netloc}"


def make_invitation(
    authority: Authority, coordinator: str, site: str, now: datetime.datetime, days: float = DEFAULT_DAYS
) -> tuple[Invitation, bytes]:
    """Invite a site.

    Returns
    -------
    Invitation, bytes
        The invitation, and the file to send.

    Raises
    ------
    UsageError
        If name or address cannot be used.
    """
    invitation = Invitation(
        coordinator=check_url(coordinator),
        ca_certificate=authority.certificate,
        site=check_site_name(site),
        token=secrets.token_urlsafe(24),
        expires=(now + datetime.timedelta(days=days)).replace(microsecond=0),
    )
    body = {
        "format": _FORMAT,
        "coordinator": invitation.coordinator,
        "site": invitation.site,
        "token": invitation.token,
        "expires": invitation.expires.isoformat(),
        "fingerprint": invitation.fingerprint,
        "ca-certificate": invitation.ca_certificate.decode(),
    }
    return invitation, _seal(body, "invitation", authority.sign(_message(body, "invitation")))


def read_invitation(path: Path, now: datetime.datetime | None = None) -> Invitation:
    """Read an invitation that was received.

    Parameters
    ----------
    path
        The file.
    now
        UTC; by default the clock's. An invitation that has expired is refused.

    Raises
    ------
    DataError
        If the file is no invitation.
    AuthRefused
        If it was changed after it was signed, or has expired.
    """
    body, signature = _open(path, "invitation")
    try:
        invitation = Invitation(
            coordinator=check_url(_text(body, "coordinator")),
            ca_certificate=_text(body, "ca-certificate").encode(),
            site=check_site_name(_text(body, "site")),
            token=_text(body, "token"),
            expires=_moment(_text(body, "expires")),
        )
    except (UsageError, ValueError) as error:
        raise _damaged(path, "invitation") from error
    good = is_signed(public_key_of(invitation.ca_certificate), signature, _message(body, "invitation"))
    if not good or _text(body, "fingerprint") != invitation.fingerprint:
        raise AuthRefused(
            f"the invitation {path} is not genuine",
            "it was changed after the coordinator signed it",
            "ask the coordinator for a new one, and compare the fingerprint on the telephone",
        )
    _not_expired(invitation.expires, now, f"the invitation {path}")
    return invitation


def make_enrolment(invitation: Invitation, key: NodeKey) -> bytes:
    """The file by which a site answers an invitation; only the public half of its key is in it."""
    body = {"format": _FORMAT, "site": invitation.site, "public-key": key.public, "token": invitation.token}
    return _seal(body, "enrolment", key.sign(_message(body, "enrolment")))


def read_enrolment(path: Path) -> Enrolment:
    """Read an enrolment, and check that whoever made it holds the private key.

    Raises
    ------
    DataError
        If the file is no enrolment.
    AuthRefused
        If the proof is wrong, or the key of a kind that cannot be used.
    """
    body, signature = _open(path, "enrolment")
    try:
        enrolment = Enrolment(check_site_name(_text(body, "site")), _text(body, "public-key"), _text(body, "token"))
    except UsageError as error:
        raise _damaged(path, "enrolment") from error
    if not is_signed(read_public_key(enrolment.public_key), signature, _message(body, "enrolment")):
        raise AuthRefused(
            f"the enrolment {path} is not genuine",
            "it was not signed with the private half of the key in it",
            "let the site run `wardround site init` again",
        )
    return enrolment


def _not_expired(expires: datetime.datetime, now: datetime.datetime | None, what: str) -> None:
    if (now or datetime.datetime.now(datetime.UTC)) > expires:
        raise AuthRefused(
            f"{what} has expired",
            f"it was good until {expires:%Y-%m-%d %H:%M} UTC",
            "ask for a new one, and look whether this machine's clock is right",
        )


def _message(body: Mapping[str, object], kind: str) -> bytes:
    """What is signed. The kind stands in front, so that no signature can be used for another kind of file."""
    return f"wardround {kind} {_FORMAT}\n".encode() + json.dumps(body, sort_keys=True).encode()


def _seal(body: Mapping[str, object], kind: str, signature: bytes) -> bytes:
    content = {f"wardround-{kind}": body, "signature": base64.b64encode(signature).decode()}
    return json.dumps(content, indent=1).encode() + b"\n"


def _open(path: Path, kind: str) -> tuple[dict[str, Any], bytes]:
    try:
        with path.open("rb") as stream:
            data = stream.read(_LARGEST + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read", error.strerror or "", "check the path") from error
    try:
        if len(data) > _LARGEST:
            raise ValueError
        content = json.loads(data)
        body, signature = content[f"wardround-{kind}"], base64.b64decode(content["signature"], validate=True)
        if not isinstance(body, dict):
            raise TypeError
        found = body.get("format")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, kind) from error
    if found != _FORMAT:
        raise DataError(
            f"{path} has format {found!r}", "another version of Wardround made it", "use the same version at both ends"
        )
    return body, signature


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise DataError(f"the file has no {name}", "it is damaged or of another kind", "ask for it again")
    return value


def _moment(text: str) -> datetime.datetime:
    moment = datetime.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(text)
    return moment


def _damaged(path: Path, kind: str) -> DataError:
    return DataError(f"{path} is no {kind}", "it is damaged or of another kind", "ask for it again")
