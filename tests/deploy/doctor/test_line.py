"""Each fault on the way to a coordinator is a real one here, and is told from the others."""

import datetime
import socket
from pathlib import Path

import pytest
from lines import DAY, HangUp, Plain, Silent, certificate, fleet, now, proxy, serving

from wardround.deploy.doctor import line, trust
from wardround.deploy.doctor.line import Broken, Proxy, Target

GOOD = fleet(1)


@pytest.fixture(autouse=True)
def _no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "http_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(line, "PATIENCE_S", 5.0)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An authority and a certificate for localhost."""
    return certificate(tmp_path / "ours")


def ca(folder: Path) -> Path:
    return folder / "ca" / "ca.crt"


def break_of(target: Target, authority: Path) -> Broken:
    with pytest.raises(Broken) as found, trust.secure(target, authority):
        pass
    assert found.value.cause
    assert found.value.fix
    return found.value


def test_nothing_is_wrong(home: Path) -> None:
    with serving(GOOD, home / "tls") as port, trust.secure(Target("localhost", port), ca(home)) as secured:
        assert secured.version() in ("TLSv1.2", "TLSv1.3")


def test_a_name_that_nobody_knows() -> None:
    with pytest.raises(Broken) as found:
        line.resolve(Target("coordinator.invalid", 443))
    assert found.value.step == "name"
    assert "coordinator.invalid is not known" in found.value.problem


def test_the_name_of_the_proxy_counts_where_there_is_one() -> None:
    with pytest.raises(Broken, match=r"proxy\.invalid"):
        line.resolve(Target("coordinator.invalid", 443, Proxy("proxy.invalid", 3128)))
    assert line.resolve(Target("coordinator.invalid", 443, Proxy("127.0.0.1", 3128))) == "127.0.0.1"


def test_a_port_where_nothing_listens(home: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found = break_of(Target("127.0.0.1", free.getsockname()[1]), ca(home))
    assert found.step == "connection"
    assert "nothing listens" in found.cause


def test_a_firewall_that_drops(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full backlog leaves a connection unanswered, as a firewall does that drops packets."""
    monkeypatch.setattr(line, "PATIENCE_S", 1.0)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        waiting = []
        for _ in range(4):
            caller = socket.socket()
            caller.setblocking(False)
            caller.connect_ex(deaf.getsockname())
            waiting.append(caller)
        found = break_of(Target("127.0.0.1", deaf.getsockname()[1]), ca(home))
        for caller in waiting:
            caller.close()
    assert found.step == "connection"
    assert "firewall drops" in found.cause


def test_a_port_without_tls(home: Path) -> None:
    with serving(Plain) as port:
        found = break_of(Target("localhost", port), ca(home))
    assert found.step == "TLS"
    assert "does not speak TLS" in found.problem


def test_a_port_that_says_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "PATIENCE_S", 0.5)
    with serving(Silent) as port:
        found = break_of(Target("localhost", port), ca(home))
    assert "then says nothing" in found.problem


def test_a_port_that_hangs_up(home: Path) -> None:
    with serving(HangUp) as port:
        found = break_of(Target("localhost", port), ca(home))
    assert "comes about" in found.problem


def test_a_certificate_that_has_expired(tmp_path: Path) -> None:
    old = certificate(tmp_path / "old", at=now() - 800 * DAY)
    with serving(GOOD, old / "tls") as port:
        found = break_of(Target("localhost", port), ca(old))
    assert "has expired on" in found.problem


def test_a_certificate_of_the_future(tmp_path: Path) -> None:
    """What a site sees whose clock stands at the epoch."""
    new = certificate(tmp_path / "new", at=now() + 30 * DAY)
    with serving(GOOD, new / "tls") as port:
        found = break_of(Target("localhost", port), ca(new))
    assert "not valid yet" in found.problem
    assert "clock" in found.cause


def test_a_certificate_for_another_name(tmp_path: Path) -> None:
    other = certificate(tmp_path / "other", host="fed.example.org")
    with serving(GOOD, other / "tls", "127.0.0.2") as port:
        found = break_of(Target("127.0.0.2", port), ca(other))
    assert "not made out to 127.0.0.2" in found.problem
    assert "fed.example.org" in found.cause


def test_another_authority(home: Path, tmp_path: Path) -> None:
    other = certificate(tmp_path / "other", name="Somebody Else")
    with serving(GOOD, other / "tls") as port:
        found = break_of(Target("localhost", port), ca(home))
    assert "does not come from the coordinator's authority" in found.problem
    assert "Somebody Else" in found.cause


def test_another_authority_of_the_same_name(home: Path, tmp_path: Path) -> None:
    again = certificate(tmp_path / "again")
    with serving(GOOD, again / "tls") as port:
        found = break_of(Target("localhost", port), ca(home))
    assert "another authority with the same name" in found.problem
    assert "telephone" in found.fix


@pytest.mark.parametrize("content", [b"", b"no certificate"])
def test_an_authority_that_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ca.crt").write_bytes(content)
    found = break_of(Target("localhost", 1), tmp_path / "ca.crt")
    assert "cannot be read" in found.problem


def test_a_way_through_a_proxy(home: Path) -> None:
    handler, seen = proxy()
    with serving(GOOD, home / "tls") as port, serving(handler) as proxy_port:
        way = Proxy("127.0.0.1", proxy_port, "ann:secret")
        with trust.secure(Target("localhost", port, way), ca(home)):
            pass
    assert seen[0].startswith(f"CONNECT localhost:{port} HTTP/1.1\r\n".encode())
    assert b"Proxy-Authorization: Basic YW5uOnNlY3JldA==" in seen[0]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "wants a name and a password (HTTP 407)"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "its rules forbid this address"),
        (b"HTTP/1.0 502 Bad Gateway\r\n\r\n", "cannot reach the coordinator itself"),
        (b"HTTP/1.1 418 Teapot\r\n\r\n", "it refused"),
        (b"220 mail.example.org ESMTP\r\n\r\n", "is not HTTP"),
        (b"", "is not HTTP"),
    ],
)
def test_a_proxy_that_does_not_let_through(home: Path, answer: bytes, said: str) -> None:
    handler, _ = proxy(answer)
    with serving(handler) as port:
        found = break_of(Target("localhost", 443, Proxy("127.0.0.1", port)), ca(home))
    assert found.step == "proxy"
    assert said in found.cause


def test_a_proxy_that_is_not_there(home: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found = break_of(Target("localhost", 443, Proxy("127.0.0.1", free.getsockname()[1])), ca(home))
    assert found.step == "proxy"


def test_a_proxy_that_opens_the_encryption(home: Path, tmp_path: Path) -> None:
    inspector = certificate(tmp_path / "inspector", name="ACME Web Gateway")
    with serving(GOOD, inspector / "tls") as inside:
        handler, _ = proxy(to=lambda target: inside)
        with serving(handler) as port:
            found = break_of(Target("localhost", 443, Proxy("127.0.0.1", port)), ca(home))
    assert "opens the encrypted connection" in found.problem
    assert "ACME Web Gateway" in found.cause
    assert "exempt localhost:443" in found.fix


def test_a_firewall_that_opens_the_encryption(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a proxy, but with an authority that was put among those of this machine."""
    inspector = certificate(tmp_path / "inspector", name="ACME Firewall")
    monkeypatch.setenv("SSL_CERT_FILE", str(ca(inspector)))
    with serving(GOOD, inspector / "tls") as port:
        found = break_of(Target("localhost", port), ca(home))
    assert "opens the encrypted connection" in found.problem


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://proxy:3128"}, Proxy("proxy", 3128)),
        ({"HTTPS_PROXY": "proxy:3128"}, Proxy("proxy", 3128)),
        ({"HTTPS_PROXY": "http://a:b%40c@proxy:3128/"}, Proxy("proxy", 3128, "a:b@c")),
        ({"ALL_PROXY": "http://proxy"}, Proxy("proxy", 80)),
        ({"HTTP_PROXY": "http://proxy:1"}, None),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "other,.example.org"}, None),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "other"}, Proxy("proxy", 3128)),
    ],
)
def test_the_proxy_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: Proxy | None
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Target.of("https://fed.example.org:8443") == Target("fed.example.org", 8443, expected)


@pytest.mark.parametrize("value", ["socks5://proxy:1080", "http://", "http://proxy:x", "https://proxy:443"])
def test_a_proxy_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", value)
    with pytest.raises(Broken, match="cannot be used"):
        Target.of("https://fed.example.org:8443")


def test_times_are_told_in_utc(tmp_path: Path) -> None:
    made = certificate(tmp_path / "a", at=datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC))
    with serving(GOOD, made / "tls") as port:
        seen = trust.shown(Target("localhost", port))
    assert seen is not None
    assert seen.not_before == "2026-01-31 11:00 UTC"
