"""Checks of a site's workbench: what it is served with, whether it answers, and the archives that it talks to.

Nothing is made or changed: a certificate that is missing is made by the agent when it starts.
"""

import datetime
import http.client
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from wardround.client.cases.dicom.archives import Wanted, read_password
from wardround.client.cases.dicom.dimse import Dimse
from wardround.client.cases.dicom.export import open_archive
from wardround.client.home import PacsSettings, SiteHome
from wardround.client.workbench.accounts import Accounts
from wardround.client.workbench.provider import Provider, SignInRefused
from wardround.client.workbench.server import STATIC
from wardround.client.workbench.settings import Endpoint, check_pair, planned
from wardround.client.workbench.signing import OidcSettings
from wardround.deploy.doctor import machine
from wardround.deploy.doctor.finding import Finding, bad, good, of_error
from wardround.deploy.provisioning.authority import CertificateFacts, as_certified, certificate_facts
from wardround.errors import WardroundError
from wardround.files import is_locked
from wardround.pages import count, is_for

_PATIENCE_S = 10.0
# A study that no archive has: whether it answers can be seen without anything of a patient coming here.
_NOBODY = Wanted(study_uid="2.25.0")
_SOON_DAYS = 30.0
# Of a page's own files: what begins elsewhere, or within the page, is none.
_USED = re.compile(r"""<(?:script|link)\b[^>]*?\b(?:src|href)=["']?([^"'\s>]+)""", re.IGNORECASE)
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|//|#", re.IGNORECASE)


def workbench(home: SiteHome) -> Iterator[Finding]:
    """Check the workbench of a site and its archives, one thing after the other; its settings can be read."""
    if not home.workbench.port:
        yield good("workbench", "none: site.toml names no port for it")
    else:
        place = planned(home)
        yield _page(STATIC)
        if home.workbench.ohif:
            yield _viewer(home.path / home.workbench.ohif)
        yield _accounts(home)
        if home.workbench.oidc is not None:
            yield _sign_in(home, home.workbench.oidc, place)
        if place.certificate is not None:
            yield _certificate(place)
        yield _port(home, place)
    for archive in home.pacs:
        yield _archive(home, archive)


def _page(folder: Path) -> Finding:
    missing = _missing(folder)
    if not missing:
        return good("page", "there")
    return bad(
        "page",
        "the workbench has no page, or not all of it",
        f"{missing[0]} is not in the installed package",
        "install Wardround again, from a wheel that is whole",
    )


def _viewer(folder: Path) -> Finding:
    missing = _missing(folder)
    if not missing:
        return good("OHIF", "there")
    return bad(
        "OHIF",
        f"the viewer in {folder} is not whole",
        f"{missing[0]} is not there",
        "copy the whole folder of a built viewer again, or set `ohif` in site.toml to the folder with its index.html",
    )


def _missing(folder: Path) -> list[str]:
    """What a page's folder lacks of what the page itself names."""
    try:
        text = (folder / "index.html").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ["index.html"]
    # A viewer names its files by the address that it is served under.
    named = [path.partition("?")[0].removeprefix("/ohif/").lstrip("/") for path in _USED.findall(text) if _is_own(path)]
    return [path for path in named if path and not (folder / path).is_file()]


def _is_own(path: str) -> bool:
    return _ELSEWHERE.match(path) is None


def _accounts(home: SiteHome) -> Finding:
    try:
        found = Accounts(home.accounts).listing()
    except WardroundError as error:
        return of_error("accounts", error)
    if not found:
        return bad(
            "accounts",
            "nobody can sign in at the workbench",
            "there is no account, and there are no default ones",
            f"make one: wardround site account add NAME --home {home.path}",
        )
    closed = machine.private("accounts", [home.accounts])
    return good("accounts", count(len(found), "account")) if closed.ok else closed


def _sign_in(home: SiteHome, of: OidcSettings, place: Endpoint) -> Finding:
    """Whether people could sign in with the hospital's service; it is asked for what it says to everybody."""
    name = "sign-in service"
    asked = [(b"host", urlsplit(of.url).netloc.encode())]
    if not is_for({"headers": asked}, {"localhost", *(one.lower() for one in place.names)}):
        return bad(
            name,
            f"the workbench is not served under {of.url}",
            "the host of `url` is none of its names, so whoever comes back from the service is turned away",
            "add the host to `names` under [workbench], or correct `url` under [workbench.oidc]",
        )
    if not (of.roles.annotator or of.roles.reviewer or of.roles.admin):
        return bad(
            name,
            "nobody can sign in with it",
            "no group has a role",
            "name the service's groups under [workbench.oidc.roles]",
        )
    try:
        secret = read_password(home.oidc_secret)
        with closing(Provider(of, secret, home.path / of.ca if of.ca else None)) as service:
            service.check()
    except SignInRefused as error:
        return bad(
            name,
            f"the sign-in service at {of.issuer} cannot be used",
            error.why,
            "compare `issuer` and `ca` under [workbench.oidc] with what the service says of itself, and see whether "
            "this machine reaches it; local accounts work meanwhile",
        )
    except WardroundError as error:
        return of_error(name, error)
    return good(name, "answers" if secret else f"answers; {home.oidc_secret} is not there: a public client")


def _certificate(place: Endpoint) -> Finding:
    """Whether people's browsers can believe it; a certificate that is made is seen to by the agent."""
    certificate, key = place.certificate, place.key
    assert certificate is not None
    assert key is not None
    if place.made and not certificate.exists():
        return good("certificate", "it is made when the agent starts")
    try:
        check_pair(certificate, key)
        facts = certificate_facts(certificate.read_bytes())
    except WardroundError as error:
        return of_error("certificate", error)
    now = datetime.datetime.now(datetime.UTC)
    if facts.not_before > now:
        return bad(
            "certificate",
            "the workbench's certificate is not valid yet",
            f"it is valid from {facts.not_before:%Y-%m-%d %H:%M} UTC on",
            "set the clock of this machine (NTP), or use another certificate",
        )
    if (days := facts.days_left(now)) < _SOON_DAYS:
        return bad(
            "certificate",
            "the workbench's certificate " + ("has expired" if days < 0 else "expires soon"),
            f"it is valid until {facts.not_after:%Y-%m-%d}",
            "restart `wardround site serve`: it makes another"
            if place.made
            else "ask whoever issued it for another, put it in its place, and restart `wardround site serve`",
        )
    return _for_its_names(place, facts)


def _for_its_names(place: Endpoint, facts: CertificateFacts) -> Finding:
    asked = [name for name in place.names if name not in ("0.0.0.0", "::")]  # noqa: S104 - they stand for all
    other = [] if place.made else [name for name in asked if not _says(facts, name)]
    if other:
        return bad(
            "certificate",
            f"the workbench's certificate is not made out to {other[0]}",
            f"it is made out to {', '.join(facts.names) or 'no name'}",
            "ask for one with that name, or correct `host` and `names` under [workbench] in site.toml",
        )
    return good("certificate", f"until {facts.not_after:%Y-%m-%d}, {facts.fingerprint[:23]}…")


def _says(facts: CertificateFacts, name: str) -> bool:
    try:
        name = as_certified(name)
    except WardroundError:
        return False
    # A certificate for *.example.org is one for a.example.org, and not for a.b.example.org.
    return name in facts.names or f"*.{name.partition('.')[2]}" in facts.names


def _port(home: SiteHome, place: Endpoint) -> Finding:
    try:
        serves = is_locked(home.lock)
    except WardroundError as error:
        return of_error("workbench", error)
    where = f"{place.host}:{place.port}"
    if serves:
        return _answering(place, where)
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_STREAM)) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind((place.host, place.port))
        except OSError as error:
            return bad(
                "workbench",
                f"the workbench could not listen on {where}",
                (error.strerror or type(error).__name__).lower(),
                "end what uses the port (ss -ltnp says what it is), or correct `host` and `port` under [workbench]",
            )
    return good("workbench", f"nothing listens on {where} yet, as the agent is not at work")


def _answering(place: Endpoint, where: str) -> Finding:
    """Ask as a browser would. It is this machine that is asked: the very certificate is looked at, not its issuer."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(place.host, place.host)  # noqa: S104
    try:
        with closing(_connection(place, host)) as connection:
            connection.request("GET", "/health", headers={"host": "localhost"})
            line = connection.sock
            shown = line.getpeercert(binary_form=True) if isinstance(line, ssl.SSLSocket) else None
            healthy = connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException) as error:
        return bad(
            "workbench",
            f"the agent is at work, and its workbench does not answer on {where}",
            getattr(error, "strerror", None) or type(error).__name__,
            f"a change of site.toml counts from the next start on: restart `wardround site serve`; its log says more, "
            f"and so does {'TLS' if place.certificate is not None else 'the port'} of whatever else listens there",
        )
    if not healthy:
        return bad(
            "workbench",
            f"what answers on {where} is not the workbench",
            "it does not say that it is well",
            "end what uses the port, or choose another `port` under [workbench] in site.toml",
        )
    if place.certificate is not None and shown != ssl.PEM_cert_to_DER_cert(_first(place.certificate)):
        return bad(
            "workbench",
            "the workbench shows another certificate than the one on disk",
            "that was renewed after the start, or something else listens there",
            "restart `wardround site serve`",
        )
    return good("workbench", f"answers at {place.url}")


def _connection(place: Endpoint, host: str) -> http.client.HTTPConnection:
    if place.certificate is None:
        return http.client.HTTPConnection(host, place.port, timeout=_PATIENCE_S)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(host, place.port, timeout=_PATIENCE_S, context=context)


def _first(certificate: Path) -> str:
    text = certificate.read_text(encoding="ascii", errors="replace")
    end = "-----END CERTIFICATE-----"
    return text[text.find("-----BEGIN CERTIFICATE-----") :].partition(end)[0] + end


def _archive(home: SiteHome, settings: PacsSettings) -> Finding:
    name = f"archive {settings.name}"
    try:
        if settings.user and not read_password(home.pacs_password(settings.name)):
            return bad(
                name,
                f"the password of {settings.user} is not there",
                f"{home.pacs_password(settings.name)} is missing or empty",
                "write it into that file, and chmod 600",
            )
        with closing(open_archive(home, settings)) as archive:
            if isinstance(archive, Dimse):
                archive.echo()
            else:
                archive.find(_NOBODY)
    except WardroundError as error:
        return of_error(name, error)
    return good(name, "answers")
