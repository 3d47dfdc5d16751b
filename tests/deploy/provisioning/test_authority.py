"""The authority, held against TLS itself: a handshake succeeds where it should and fails where it should."""

import datetime
import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest

from wardround.deploy.provisioning.authority import (
    RENEW_BELOW_DAYS,
    Authority,
    certificate_facts,
    general_name,
    server_certificate_fits,
)
from wardround.errors import AuthRefused, StorageError, UsageError

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ca", "fed.example.org", NOW)


def handshake(tls: Path, authority: bytes, name: str) -> None:
    """Connect to a server with the key and certificate in `tls`, trusting `authority` alone."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tls / "server.crt", tls / "server.key")
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    client.load_verify_locations(cadata=authority.decode())
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            with server.wrap_socket(theirs, server_side=True):
                pass
        except (ssl.SSLError, OSError):
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(ours, server_hostname=name):
            pass
    finally:
        ours.close()
        thread.join()


@pytest.mark.parametrize("name", ["fed.example.org", "10.1.2.3", "localhost", "127.0.0.1"])
def test_a_site_trusts_the_server_under_each_of_its_names(authority: Authority, tmp_path: Path, name: str) -> None:
    facts = authority.issue_server(tmp_path / "tls", ["fed.example.org", "10.1.2.3"], NOW)
    handshake(tmp_path / "tls", authority.certificate, name)
    assert name in facts.names
    assert stat.S_IMODE((tmp_path / "tls" / "server.key").stat().st_mode) == 0o600


def test_a_site_does_not_trust_another_name(authority: Authority, tmp_path: Path) -> None:
    authority.issue_server(tmp_path / "tls", ["fed.example.org"], NOW)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path / "tls", authority.certificate, "other.example.org")


def test_a_site_does_not_trust_another_authority(authority: Authority, tmp_path: Path) -> None:
    authority.issue_server(tmp_path / "tls", ["fed.example.org"], NOW)
    other = Authority.create(tmp_path / "other", "fed.example.org", NOW)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path / "tls", other.certificate, "fed.example.org")


def test_a_site_does_not_trust_an_expired_certificate(tmp_path: Path) -> None:
    past = NOW - 500 * DAY
    authority = Authority.create(tmp_path / "ca", "fed.example.org", past)
    authority.issue_server(tmp_path / "tls", ["fed.example.org"], past)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(tmp_path / "tls", authority.certificate, "fed.example.org")


def test_a_clock_that_is_behind_does_no_harm(authority: Authority, tmp_path: Path) -> None:
    facts = authority.issue_server(tmp_path / "tls", ["fed.example.org"], NOW)
    assert facts.not_before <= NOW - datetime.timedelta(minutes=30)


def test_an_authority_is_made_once(authority: Authority, tmp_path: Path) -> None:
    again = Authority.create(tmp_path / "ca", "fed.example.org", NOW + DAY)
    assert again.certificate == authority.certificate
    assert stat.S_IMODE((tmp_path / "ca" / "ca.key").stat().st_mode) == 0o600


def test_no_certificate_outlives_its_authority(authority: Authority, tmp_path: Path) -> None:
    late = NOW + 3600 * DAY
    facts = authority.issue_server(tmp_path / "tls", ["fed.example.org"], late)
    assert facts.not_after == certificate_facts(authority.certificate).not_after


def test_a_missing_authority_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="coordinator init"):
        Authority(tmp_path)


def test_an_address_fits_however_it_is_spelt(authority: Authority, tmp_path: Path) -> None:
    # Otherwise it would be replaced every hour, and the SuperLink started again for it.
    names = ["FD00:0:0::1"]
    authority.issue_server(tmp_path / "tls", names, NOW)
    assert server_certificate_fits(tmp_path / "tls", names, NOW)
    assert not server_certificate_fits(tmp_path / "tls", ["fd00::2"], NOW)


def test_when_the_servers_certificate_is_replaced(authority: Authority, tmp_path: Path) -> None:
    tls, names = tmp_path / "tls", ["fed.example.org"]
    assert not server_certificate_fits(tls, names, NOW)
    facts = authority.issue_server(tls, names, NOW)
    assert server_certificate_fits(tls, names, NOW)
    assert not server_certificate_fits(tls, [*names, "new.example.org"], NOW)
    assert server_certificate_fits(tls, names, facts.not_after - (RENEW_BELOW_DAYS + 1) * DAY)
    assert not server_certificate_fits(tls, names, facts.not_after - (RENEW_BELOW_DAYS - 1) * DAY)
    # As a crash leaves it that came between the key and the certificate.
    key = (tls / "server.key").read_bytes()
    authority.issue_server(tls, names, NOW)
    (tls / "server.key").write_bytes(key)
    assert not server_certificate_fits(tls, names, NOW)


@pytest.mark.parametrize("name", ["", "a b", "-a.org", "a..b", "*.example.org", "ä.org", "x" * 64, "a_b"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        general_name(name)


def test_what_is_no_certificate_is_refused() -> None:
    with pytest.raises(AuthRefused):
        certificate_facts(b"-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----")


def test_the_fingerprint_is_the_one_that_openssl_shows(authority: Authority) -> None:
    import hashlib

    der = ssl.PEM_cert_to_DER_cert(authority.certificate.decode())
    assert authority.fingerprint.replace(":", "").lower() == hashlib.sha256(der).hexdigest()
