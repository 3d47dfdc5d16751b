"""The checks of a workbench: on a real home, with the real server on its port, and a real archive if there is one."""

import datetime
import shutil
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from deployment import free_ports, make_coordinator, make_site
from oidc import issuer
from orthanc import orthanc
from workbench import QUICK, FakeStudio, password, workbench

from wardround.client.home import SiteHome
from wardround.client.workbench import settings
from wardround.client.workbench.accounts import Accounts
from wardround.client.workbench.settings import endpoint
from wardround.deploy.doctor import Finding
from wardround.deploy.doctor import workbench as checks
from wardround.server.home import hold

NOW = datetime.datetime.now(datetime.UTC)
SHARED = 'host = "0.0.0.0"'
GIVEN = 'certificate = "tls/server.crt"\nkey = "tls/server.key"'


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_coordinator(tmp_path_factory.mktemp("coordinator") / "C").path


@pytest.fixture
def home(tmp_path: Path, coordinator: Path) -> SiteHome:
    """A site with a workbench that nobody has started, and one account."""
    from wardround.server.home import CoordinatorHome

    site = make_site(tmp_path / "site", "north", CoordinatorHome(coordinator))
    Accounts(site.accounts, hasher=QUICK).add("ann", password("ann"), "annotator")
    return with_settings(site)


def with_settings(home: SiteHome, text: str = "", port: int = 0) -> SiteHome:
    """The home with other settings of its workbench."""
    site, _, _ = home.settings_file.read_text().partition("[workbench]")
    home.settings_file.write_text(f"{site}[workbench]\nport = {port or free_ports(1)[0]}\n{text}\n")
    return SiteHome(home.path)


def findings(home: SiteHome) -> dict[str, Finding]:
    before = {path: path.stat().st_mtime_ns for path in home.path.rglob("*")}
    found = list(checks.workbench(home))
    assert all(finding.cause and finding.fix for finding in found if not finding.ok)
    assert {path: path.stat().st_mtime_ns for path in home.path.rglob("*")} == before, "it changes nothing"
    return {finding.name: finding for finding in found}


def problems(home: SiteHome) -> dict[str, str]:
    return {name: f"{found.problem}: {found.cause}" for name, found in findings(home).items() if not found.ok}


def give(home: SiteHome, name: str = "bench.example.org", made: datetime.datetime = NOW) -> None:
    """A certificate of the hospital's own authority."""
    folder = home.path / "tls"
    folder.mkdir()
    settings._make(folder / "server.crt", folder / "server.key", [name, "*.ward.org"], made)


def test_a_site_without_one(home: SiteHome) -> None:
    home.settings_file.write_text(home.settings_file.read_text().partition("[workbench]")[0])
    assert findings(SiteHome(home.path)).keys() == {"workbench"}
    assert problems(SiteHome(home.path)) == {}


def test_one_that_is_not_started(home: SiteHome) -> None:
    assert findings(home).keys() == {"page", "accounts", "workbench"}
    assert problems(home) == {}
    shared = with_settings(home, SHARED)
    assert findings(shared)["certificate"].note == "it is made when the agent starts"
    endpoint(shared)
    assert findings(shared)["certificate"].ok


def test_a_port_that_something_else_has(home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        taken = with_settings(home, port=other.getsockname()[1])
        assert "could not listen" in problems(taken)["workbench"]
        with hold(home.lock):  # An agent is at work, and this is not its workbench.
            monkeypatch.setattr(checks, "_PATIENCE_S", 0.2)
            assert "does not answer" in problems(taken)["workbench"]


def test_nobody_has_an_account(home: SiteHome) -> None:
    home.accounts.unlink()
    assert "nobody can sign in" in problems(home)["accounts"]


def test_accounts_that_others_can_read(home: SiteHome) -> None:
    home.accounts.chmod(0o644)
    assert "can be read by others" in problems(home)["accounts"]
    home.accounts.write_text("{")
    assert "accounts" in problems(home)


def test_a_certificate_that_was_given(home: SiteHome) -> None:
    fits = with_settings(home, f'{SHARED}\n{GIVEN}\nnames = ["bench.example.org", "a.ward.org"]')
    assert "no such file" in problems(fits)["certificate"]
    give(home)
    assert problems(fits) == {}
    (home.path / "tls" / "server.key").chmod(0o640)
    assert "others on this machine may read it" in problems(fits)["certificate"]


@pytest.mark.parametrize(
    ("names", "age", "problem"),
    [
        ('["bench.example.org", "b.a.ward.org"]', 0, "not made out to b.a.ward.org"),
        ('["bench.example.org"]', 400, "has expired"),
        ('["bench.example.org"]', 380, "expires soon"),
        ('["bench.example.org"]', -10, "not valid yet"),
    ],
)
def test_a_certificate_that_no_browser_takes(home: SiteHome, names: str, age: int, problem: str) -> None:
    give(home, made=NOW - datetime.timedelta(days=age))
    assert problem in problems(with_settings(home, f"{SHARED}\n{GIVEN}\nnames = {names}"))["certificate"]


def test_a_key_without_its_certificate(home: SiteHome) -> None:
    """Half of what TLS needs is no reason to do without."""
    give(home)
    assert "certificate" in problems(with_settings(home, f'{SHARED}\nkey = "tls/server.key"'))


def test_a_page_that_is_not_whole(home: SiteHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    static = tmp_path / "static"
    shutil.copytree(checks.STATIC, static)
    monkeypatch.setattr(checks, "STATIC", static)
    assert findings(home)["page"].ok
    (static / "style.css").unlink()
    assert "style.css" in problems(home)["page"]
    (static / "index.html").unlink()
    assert "index.html" in problems(home)["page"]


def test_a_viewer_that_is_not_whole(home: SiteHome) -> None:
    named = with_settings(home, 'ohif = "ohif"')
    assert "index.html" in problems(named)["OHIF"]
    folder = home.path / "ohif"
    folder.mkdir()
    (folder / "index.html").write_text('<script defer src="/ohif/app.bundle.js?v=1"></script><link href="https://x/y">')
    assert "app.bundle.js" in problems(named)["OHIF"]
    (folder / "app.bundle.js").touch()
    assert problems(named) == {}


@pytest.fixture(scope="module", params=["", SHARED], ids=["http", "https"])
def served(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[SiteHome]:
    """The home of a workbench that is served, its port in site.toml, and an agent's lock held."""
    path = tmp_path_factory.mktemp("served") / "home"
    with workbench(path, cases=1, settings=request.param, studio=FakeStudio) as bench:
        port = urlsplit(bench.url).port
        assert port
        with hold(bench.home.lock):
            yield with_settings(bench.home, request.param, port)


def test_one_that_answers(served: SiteHome) -> None:
    assert problems(served) == {}
    assert findings(served)["workbench"].note.startswith("answers at http")


def test_one_that_shows_another_certificate_than_that_on_disk(served: SiteHome) -> None:
    place = endpoint(served)
    if place.certificate is None:
        pytest.skip("it is served without one")
    before = {path: path.read_bytes() for path in (place.certificate, place.key) if path}
    place.certificate.unlink()
    endpoint(served)
    assert "another certificate" in problems(served)["workbench"]
    for path, content in before.items():
        path.write_bytes(content)


def test_an_archive_that_is_not_there(home: SiteHome) -> None:
    (port,) = free_ports(1)
    table = f'[[pacs]]\nname = "main"\ndicomweb = "http://127.0.0.1:{port}/dicom-web"\nuser = "keeper"'
    named = with_settings(home, table)
    assert "password of keeper is not there" in problems(named)["archive main"]
    secret = home.pacs_password("main")
    secret.write_text("a")
    secret.chmod(0o644)
    assert "can be read by others" in problems(named)["archive main"]
    secret.chmod(0o600)
    assert "archive main" in problems(named)
    older = with_settings(home, f'[[pacs]]\nname = "old"\naet = "A"\nhost = "127.0.0.1"\ndimse-port = {port}')
    assert "archive old" in problems(older)


def test_archives_that_answer(home: SiteHome) -> None:
    with orthanc() as pacs:
        tables = (
            f'[[pacs]]\nname = "web"\ndicomweb = "{pacs.dicomweb}"\nuser = "{pacs.user}"\n'
            f'[[pacs]]\nname = "dimse"\naet = "{pacs.aet}"\nhost = "127.0.0.1"\ndimse-port = {pacs.dimse_port}'
        )
        home.pacs_password("web").write_text(pacs.password)
        home.pacs_password("web").chmod(0o600)
        assert problems(with_settings(home, tables)) == {}
        home.pacs_password("web").write_text("another")
        assert set(problems(with_settings(home, tables))) == {"archive web"}


def with_service(
    home: SiteHome, of: str, *more: str, url: str = "http://localhost:9", roles: str = "doctors"
) -> SiteHome:
    """The home with a sign-in service."""
    table = [f'issuer = "{of}"', 'client-id = "wardround"', f'url = "{url}"', *more]
    groups = f'annotator = ["{roles}"]' if roles else ""
    return with_settings(home, "\n".join(["[workbench.oidc]", *table, "[workbench.oidc.roles]", groups]))


def test_a_sign_in_service(home: SiteHome) -> None:
    with issuer() as service:
        named = with_service(home, service.url)
        assert problems(named) == {}
        assert "a public client" in findings(named)["sign-in service"].note
        home.oidc_secret.parent.mkdir(exist_ok=True)
        home.oidc_secret.write_text("a canary of two\n")
        home.oidc_secret.chmod(0o640)
        assert "can be read by others" in problems(named)["sign-in service"]
        home.oidc_secret.chmod(0o600)
        assert findings(named)["sign-in service"].note == "answers"
        service.change = lambda path, said: {} if path == "/jwks" else said
        assert "keys" in problems(named)["sign-in service"]
        service.change = lambda path, said: said | {"token_endpoint": "https://evil.example/token"}
        assert "token_endpoint" in problems(named)["sign-in service"]
        service.change = None
        assert "calls itself otherwise" in problems(with_service(home, f"{service.url}/"))["sign-in service"]
        asked = len(service.asked)
        elsewhere = with_service(home, service.url, url="https://bench.example.org")
        assert "not served under https://bench.example.org" in problems(elsewhere)["sign-in service"]
        assert "no group has a role" in problems(with_service(home, service.url, roles=""))["sign-in service"]
        assert len(service.asked) == asked, "what site.toml says wrong is said without asking"
    assert "does not answer" in problems(named)["sign-in service"]
    assert "authority" in problems(with_service(home, service.url, 'ca = "none.crt"'))["sign-in service"]
