"""Where the workbench listens, and with which certificate."""

import datetime
import ipaddress
import socket
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509

from wardround.client.home import SETTINGS_TEMPLATE, SiteHome
from wardround.client.workbench.settings import Endpoint, endpoint
from wardround.errors import DataError

NOW = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)


def home(folder: Path, *lines: str) -> SiteHome:
    text = SETTINGS_TEMPLATE.format(name="north", coordinator="https://localhost:1").partition("[workbench]")[0]
    (folder / "site.toml").write_text("\n".join([text, "[workbench]", "port = 8447", *lines]))
    return SiteHome(folder)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.53"])
def test_on_this_machine_it_needs_no_certificate(tmp_path: Path, host: str) -> None:
    place = endpoint(home(tmp_path, f'host = "{host}"'))
    assert (place.certificate, place.made, place.fingerprint) == (None, False, "")
    assert place.url == f"http://{f'[{host}]' if ':' in host else host}:8447"


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "::", "workbench.example.org"])
def test_whoever_comes_from_elsewhere_comes_by_tls(tmp_path: Path, host: str) -> None:
    place = endpoint(home(tmp_path, f'host = "{host}"', 'names = ["wb.example.org"]'))
    assert place.made
    assert place.url.startswith("https://")
    assert place.certificate is not None
    assert place.key is not None
    said = x509.load_pem_x509_certificate(place.certificate.read_bytes()).extensions
    names = said.get_extension_for_class(x509.SubjectAlternativeName).value
    dns, addresses = names.get_values_for_type(x509.DNSName), names.get_values_for_type(x509.IPAddress)
    assert {"localhost", "wb.example.org", socket.gethostname()} <= set(dns)
    assert ipaddress.ip_address("127.0.0.1") in addresses
    assert host in (*dns, *map(str, addresses)) or host in ("0.0.0.0", "::")
    assert stat.S_IMODE(place.key.stat().st_mode) == 0o600
    assert {"wb.example.org", socket.gethostname()} <= set(place.names)
    assert len(place.fingerprint) == 32 * 3 - 1


def test_a_certificate_that_was_made_stays_until_it_expires_or_says_other_names(tmp_path: Path) -> None:
    place = home(tmp_path, 'host = "0.0.0.0"')
    first = endpoint(place, NOW).fingerprint
    assert endpoint(place, NOW + 300 * DAY).fingerprint == first
    renewed = endpoint(place, NOW + 380 * DAY).fingerprint
    assert renewed != first
    assert endpoint(home(tmp_path, 'host = "10.0.0.1"'), NOW + 381 * DAY).fingerprint != renewed


@pytest.mark.parametrize("damaged", ["workbench.crt", "keys/workbench.pem"])
def test_a_damaged_certificate_is_made_anew(tmp_path: Path, damaged: str) -> None:
    place = home(tmp_path, 'host = "0.0.0.0"')
    first = endpoint(place).fingerprint
    (tmp_path / damaged).write_text("nothing")
    found = endpoint(place)
    assert found.fingerprint != first
    _loads(found)


def _given(folder: Path) -> tuple[Path, Path]:
    """A certificate from elsewhere."""
    other = folder / "other"
    other.mkdir()
    made = endpoint(home(other, 'host = "0.0.0.0"'))
    assert made.certificate is not None
    assert made.key is not None
    return made.certificate, made.key


def _loads(place: Endpoint) -> None:
    assert place.certificate is not None
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(place.certificate, place.key)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_certificate_that_is_given_is_used(tmp_path: Path, host: str) -> None:
    certificate, key = _given(tmp_path)
    lines = (f'host = "{host}"', f'certificate = "{certificate}"', 'key = "other/keys/workbench.pem"')
    place = endpoint(home(tmp_path, *lines))
    assert (place.certificate, place.key, place.made) == (certificate, key, False)
    assert not (tmp_path / "workbench.crt").exists()
    _loads(place)


@pytest.mark.parametrize("wrong", ["missing", "no key", "swapped", "readable", "other"])
def test_a_certificate_that_cannot_be_used_is_said_at_once(tmp_path: Path, wrong: str) -> None:
    certificate, key = map(str, _given(tmp_path))
    match wrong:
        case "missing":
            certificate = "gone.crt"
        case "no key":
            key = ""
        case "swapped":
            certificate, key = key, certificate
        case "readable":
            Path(key).chmod(0o644)
        case "other":
            second = tmp_path / "second"
            second.mkdir()
            key = str(_given(second)[1])
    with pytest.raises(DataError):
        endpoint(home(tmp_path, f'certificate = "{certificate}"', f'key = "{key}"'))


def test_a_name_that_it_listens_on_is_one_to_ask_for(tmp_path: Path) -> None:
    place = endpoint(home(tmp_path, 'host = "wb.example.org"'))
    assert "wb.example.org" in place.names
    assert "wb.example.org" in place.url
