"""The checks of a coordinator on a real folder, with one fault each."""

import datetime
import json
import socket
import sqlite3
import time
from pathlib import Path

import pytest
from deployment import eventually, is_up, make_coordinator, superlink
from lines import DAY, now

from wardround.deploy.doctor import Finding, coordinator_doctor
from wardround.deploy.provisioning.authority import Authority
from wardround.server.home import CoordinatorHome, hold


@pytest.fixture
def home(tmp_path: Path) -> CoordinatorHome:
    """As `init` leaves it."""
    made = make_coordinator(tmp_path / "coordinator")
    for path in (made.operator_token, made.superexec_secret):
        path.chmod(0o600)
    return made


def findings(home: CoordinatorHome) -> dict[str, Finding]:
    found = list(coordinator_doctor(home.path))
    assert all(finding.cause and finding.fix for finding in found if not finding.ok)
    return {finding.name: finding for finding in found}


def test_a_coordinator_that_was_only_set_up(home: CoordinatorHome) -> None:
    assert {name for name, finding in findings(home).items() if not finding.ok} == {"coordinator"}


def test_a_folder_that_is_no_coordinators(tmp_path: Path) -> None:
    (finding,) = coordinator_doctor(tmp_path)
    assert not finding.ok


@pytest.mark.parametrize("name", ["operator.token", "superexec.secret", "tls/server.key", "ca/ca.key"])
def test_a_secret_that_others_can_read(home: CoordinatorHome, name: str) -> None:
    (home.path / name).chmod(0o644)
    found = findings(home)["private files"]
    assert name in found.problem
    (home.path / name).unlink()
    assert not findings(home)["private files"].ok


def issue(home: CoordinatorHome, at: datetime.datetime, names: tuple[str, ...] = ("localhost",)) -> None:
    Authority(home.ca).issue_server(home.tls, list(names), at)


@pytest.mark.parametrize(("age", "said"), [(500, "has expired"), (390, "expires in")])
def test_a_certificate_near_its_end(home: CoordinatorHome, age: int, said: str) -> None:
    issue(home, now() - age * DAY)
    found = findings(home)["certificate"]
    assert said in found.problem
    assert "wardround coordinator renew" in found.fix


def test_a_certificate_for_other_names(home: CoordinatorHome) -> None:
    text = home.settings_file.read_text().replace('names = ["localhost"]', 'names = ["fed.example.org"]')
    home.settings_file.write_text(text)
    assert "fed.example.org" in findings(CoordinatorHome(home.path))["certificate"].problem


def test_an_authority_near_its_end(tmp_path: Path, home: CoordinatorHome) -> None:
    Authority.create(tmp_path / "old", "test", now() - 3600 * DAY)
    home.ca_certificate.write_bytes((tmp_path / "old" / "ca.crt").read_bytes())
    assert "expires in" in findings(home)["authority"].problem


def test_a_database_under_lock(home: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a backup tool holds it that does not know SQLite."""
    monkeypatch.setattr("wardround.deploy.doctor.coordinator._LOCKED_S", 0.2)
    sqlite3.connect(home.database).execute("CREATE TABLE t (x)").connection.close()
    assert findings(home)["database"].ok
    with sqlite3.connect(home.database, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        found = findings(home)["database"]
        other.execute("ROLLBACK")
    other.close()
    assert "another program holds a lock" in found.cause
    assert findings(home)["database"].ok


def test_looking_leaves_the_database_as_it_is(home: CoordinatorHome) -> None:
    sqlite3.connect(home.database).execute("CREATE TABLE t (x)").connection.close()
    before = home.database.read_bytes()
    findings(home)
    assert home.database.read_bytes() == before


def test_a_database_that_is_damaged(home: CoordinatorHome) -> None:
    home.database.write_bytes(b"x" * 5000)
    assert not findings(home)["database"].ok


def test_a_port_that_is_taken(home: CoordinatorHome) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", home.settings.runtime_port))
        taken.listen()
        assert "runtime-port" in findings(home)["ports"].problem


def add_site(home: CoordinatorHome, seen: float) -> None:
    home.sites.mkdir(exist_ok=True)
    (home.sites / "north.json").write_text(json.dumps({"name": "north", "state": "registered", "node-id": "5"}))
    with sqlite3.connect(home.database) as database:
        database.execute(
            "CREATE TABLE node (node_id INTEGER, status TEXT, online_until REAL, last_activated_at TEXT,"
            " last_deactivated_at TEXT)"
        )
        database.execute("INSERT INTO node VALUES (5, 'offline', ?, NULL, NULL)", (seen,))
    database.close()


@pytest.mark.parametrize(("age", "ok"), [(60, True), (7200, False)])
def test_a_site_that_is_silent(home: CoordinatorHome, age: float, ok: bool) -> None:
    add_site(home, time.time() - age)
    with hold(home.serve_lock):
        found = findings(home)["sites"]
    assert found.ok == ok
    assert ok or "north (2 hours ago)" in found.cause


def test_a_journal_that_is_damaged(home: CoordinatorHome) -> None:
    folder = home.runs / "first" / "rounds" / "00001"
    folder.mkdir(parents=True)
    (folder / "round.json").write_text("{")
    assert "run first" in findings(home)["journals"].problem


def test_with_a_superlink(home: CoordinatorHome) -> None:
    """Its port is tried, and a SuperExec that is missing is missed."""
    with hold(home.serve_lock), superlink(home):
        eventually(lambda: is_up(home), "the SuperLink")
        found = findings(home)
        assert found["port"].ok, found["port"]
        assert found["SuperLink"].ok
        assert not found["SuperExec"].ok
        assert found["database"].ok
