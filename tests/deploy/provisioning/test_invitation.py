import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from wardround.deploy.provisioning import (
    Authority,
    make_enrolment,
    make_invitation,
    make_node_key,
    read_enrolment,
    read_invitation,
)
from wardround.deploy.provisioning.invitation import check_site_name, check_url
from wardround.errors import AuthRefused, DataError, UsageError, WardroundError

NOW = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.UTC)
URL = "https://fed.example.org:8443"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ca", "fed.example.org", NOW)


@pytest.fixture
def invitation(authority: Authority, tmp_path: Path) -> Path:
    path = tmp_path / "invitation.json"
    path.write_bytes(make_invitation(authority, URL, "north", NOW)[1])
    return path


@pytest.fixture
def enrolment(invitation: Path, tmp_path: Path) -> Path:
    path = tmp_path / "enrolment.json"
    path.write_bytes(make_enrolment(read_invitation(invitation, NOW), make_node_key(tmp_path / "keys")))
    return path


def change(path: Path, kind: str, **fields: object) -> None:
    content: dict[str, Any] = json.loads(path.read_text())
    content[f"wardround-{kind}"] |= {name.replace("_", "-"): value for name, value in fields.items()}
    path.write_text(json.dumps(content))


def test_an_invitation_says_all_that_a_site_needs(authority: Authority, invitation: Path) -> None:
    read = read_invitation(invitation, NOW)
    assert (read.coordinator, read.site) == (URL, "north")
    assert read.ca_certificate == authority.certificate
    assert read.fingerprint == authority.fingerprint
    assert read.expires == NOW + datetime.timedelta(days=14)


def test_each_invitation_has_its_own_token(authority: Authority) -> None:
    first, again = (make_invitation(authority, URL, "north", NOW)[0] for _ in range(2))
    assert first.token != again.token
    assert len(first.token) >= 32


@pytest.mark.parametrize(
    ("name", "value"),
    [("coordinator", "https://evil.example.org:8443"), ("site", "south"), ("token", "x"), ("fingerprint", "AA")],
)
def test_a_changed_invitation_is_refused(invitation: Path, name: str, value: str) -> None:
    change(invitation, "invitation", **{name: value})
    with pytest.raises(AuthRefused, match="not genuine"):
        read_invitation(invitation, NOW)


def test_another_authority_cannot_be_put_into_an_invitation(invitation: Path, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other", "fed.example.org", NOW)
    change(invitation, "invitation", ca_certificate=other.certificate.decode(), fingerprint=other.fingerprint)
    with pytest.raises(AuthRefused, match="not genuine"):
        read_invitation(invitation, NOW)


def test_an_invitation_expires(invitation: Path) -> None:
    last = NOW + datetime.timedelta(days=14)
    read_invitation(invitation, last)
    with pytest.raises(AuthRefused, match="expired"):
        read_invitation(invitation, last + datetime.timedelta(seconds=1))


def test_an_enrolment_holds_the_public_half_and_the_token(invitation: Path, enrolment: Path, tmp_path: Path) -> None:
    read = read_enrolment(enrolment)
    assert read.site == "north"
    assert read.public_key == make_node_key(tmp_path / "keys").public
    assert read.answers(read_invitation(invitation, NOW).token_digest)
    assert not read.answers("")
    assert "PRIVATE" not in enrolment.read_text()


@pytest.mark.parametrize(("name", "value"), [("site", "south"), ("token", "x")])
def test_a_changed_enrolment_is_refused(enrolment: Path, name: str, value: str) -> None:
    change(enrolment, "enrolment", **{name: value})
    with pytest.raises(AuthRefused, match="not genuine"):
        read_enrolment(enrolment)


def test_nobody_can_enrol_a_key_that_they_do_not_hold(enrolment: Path, tmp_path: Path) -> None:
    change(enrolment, "enrolment", public_key=make_node_key(tmp_path / "other").public)
    with pytest.raises(AuthRefused, match="not genuine"):
        read_enrolment(enrolment)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "null",
        "{}",
        '{"wardround-invitation": 1, "signature": ""}',
        '{"wardround-invitation": {"format": 1}, "signature": ""}',
        '{"wardround-invitation": {"format": 1}, "signature": "%"}',
        '{"wardround-invitation": {"format": 9}, "signature": ""}',
        "[" * 5000,
        " " * 70_000,
    ],
)
def test_what_is_no_invitation_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(DataError):
        read_invitation(path, NOW)
    with pytest.raises(DataError):
        read_enrolment(path)


def test_an_enrolment_is_no_invitation(invitation: Path, enrolment: Path) -> None:
    with pytest.raises(DataError):
        read_invitation(enrolment, NOW)
    with pytest.raises(DataError):
        read_enrolment(invitation)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("coordinator", "http://fed.example.org:80"),
        ("site", "../north"),
        ("expires", "2026-11-21T12:00:00"),
        ("expires", "never"),
        ("token", 5),
        ("ca_certificate", "nothing"),
    ],
)
def test_a_field_that_cannot_be_used_is_refused(invitation: Path, name: str, value: object) -> None:
    change(invitation, "invitation", **{name: value})
    with pytest.raises(WardroundError):
        read_invitation(invitation, NOW)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_invitation(tmp_path / "absent", NOW)


@pytest.mark.parametrize("name", ["", ".", "../a", "a/b", "-a", "a b", "ä", "a" * 65])
def test_names_that_are_no_folder_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        check_site_name(name)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "fed.example.org:8443",
        "http://a:1",
        "https://a",
        "https://a:b",
        "https://a:1/x",
        "https://u@a:1",
        "https://[",
        'https://a"b:1',
        "https://a\\:1",
        "https://a b:1",
    ],
)
def test_addresses_that_are_none_are_refused(url: str) -> None:
    with pytest.raises(UsageError):
        check_url(url)


@pytest.mark.parametrize("url", ["https://10.0.0.1:8443", "https://[fe80::1]:8443", "https://a.b:8443/"])
def test_addresses_are_accepted(url: str) -> None:
    assert check_url(url) == url.rstrip("/")
