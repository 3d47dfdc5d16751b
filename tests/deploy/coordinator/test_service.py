"""`wardround coordinator serve` with everything that it starts: real processes, TLS, keys and tokens."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from deployment import eventually, free_ports

from wardround.deploy.cli import run as command_line
from wardround.deploy.coordinator import runs
from wardround.deploy.coordinator.bundle import build_bundle
from wardround.deploy.coordinator.control import Control
from wardround.deploy.coordinator.registry import Registry
from wardround.deploy.coordinator.service import environment, only_one, renew_certificate, shown_certificate
from wardround.deploy.provisioning import make_enrolment, make_node_key, read_invitation
from wardround.deploy.provisioning.authority import certificate_facts
from wardround.deploy.provisioning.keys import public_key_pem
from wardround.errors import AuthRefused, ConnectionFailed, UsageError
from wardround.server.home import CoordinatorHome


class Served:
    """A coordinator's home, and the process that serves it."""

    def __init__(self, home: CoordinatorHome) -> None:
        self.home = home
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "wardround.deploy.cli", "coordinator", "serve", "--home", str(self.home.path)]
        with (self.home.path / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        eventually(self.answers, "a SuperLink that answers")

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.home.path / "serve.log").read_text()
        try:
            with Control(self.home) as control:
                control.nodes()
        except ConnectionFailed:
            return False
        return True

    def children(self) -> list[psutil.Process]:
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def pid(self, name: str) -> int:
        return int((self.home.run / f"{name}.pid").read_text())

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)


def gone(processes: list[psutil.Process]) -> bool:
    return not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    path = tmp_path_factory.mktemp("served") / "c"
    public, runtime = free_ports(2)
    arguments = ["--home", str(path), "--name", "localhost", "--host", "127.0.0.1", "--status-port", "0"]
    arguments += ["--port", str(public), "--runtime-port", str(runtime)]
    assert command_line(["coordinator", "init", *arguments]) == 0
    served = Served(CoordinatorHome(path))
    served.start()
    yield served
    if served.process is not None and served.process.poll() is None:
        served.end()


def enrol(served: Served, folder: Path, site: str) -> int:
    """Invite and enrol a site through the command line; returns the exit code of the enrolment."""
    invitation, enrolment = folder / "invitation.json", folder / "enrolment.json"
    home = ["--home", str(served.home.path)]
    assert command_line(["coordinator", "invite", site, "--out", str(invitation), "--renew", *home]) == 0
    enrolment.write_bytes(make_enrolment(read_invitation(invitation), make_node_key(folder / "keys")))
    return command_line(["coordinator", "enrol", str(enrolment), *home])


def test_an_enrolled_site_may_connect_at_once(
    served: Served, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert enrol(served, tmp_path, "north") == 0
    assert "may connect" in capfd.readouterr().out
    with Control(served.home) as control:
        (node,) = [node for node in control.nodes() if node.name == "north"]
    assert node.status == "registered"
    assert node.id == Registry(served.home.sites).get("north").node_id
    assert command_line(["coordinator", "status", "--home", str(served.home.path)]) == 0
    assert "serving at" in capfd.readouterr().out


def test_an_evicted_site_is_cut_off_and_its_key_is_burnt(served: Served, tmp_path: Path) -> None:
    assert enrol(served, tmp_path, "south") == 0
    assert command_line(["coordinator", "evict", "south", "--home", str(served.home.path)]) == 0
    with Control(served.home) as control:
        eventually(
            lambda: not [n for n in control.nodes() if n.name == "south" and n.status != "unregistered"],
            "the end of a node",
        )
        with pytest.raises(AuthRefused, match="evicted"):
            control.register("south", public_key_pem(make_node_key(tmp_path / "keys").public))


def test_a_key_is_registered_once(served: Served, tmp_path: Path) -> None:
    key = public_key_pem(make_node_key(tmp_path).public)
    with Control(served.home) as control:
        node = control.register("twice", key)
        assert control.register("twice", key) == node
        control.unregister(node)
        control.unregister(node)


def test_who_has_another_token_is_refused(served: Served, tmp_path: Path) -> None:
    other = CoordinatorHome(tmp_path)
    (tmp_path / "ca").mkdir()
    for name in ("coordinator.toml", "ca/ca.crt"):
        (tmp_path / name).write_bytes((served.home.path / name).read_bytes())
    other.operator_token.write_text("x" * 64)
    with Control(other) as control, pytest.raises(AuthRefused, match="token"):
        control.nodes()


def test_a_run_is_started_listed_and_stopped(served: Served, tmp_path: Path) -> None:
    with Control(served.home) as control:
        number = control.start_run(build_bundle(), str(tmp_path))
        found = control.run(number)
        assert found is not None
        assert found.folder == str(tmp_path)
        assert not found.finished
        assert number in [one.id for one in control.runs()]
        control.stop_run(number)
        control.stop_run(number)
        found = control.run(number)
        assert found is not None
        assert (found.finished, found.outcome) == (True, "stopped")
        assert control.run(12345) is None


def test_a_run_without_sites_ends_by_its_deadline_and_says_so(
    served: Served, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "lonely", "--rounds", "1", "--quorum", "1", "--deadline", "1", "--setting", "retries=0"]
    assert command_line(["coordinator", *arguments, "--home", str(served.home.path)]) == 6
    err = capfd.readouterr().err
    assert "--resume" in err
    assert runs.find(served.home, "lonely").state.phase == "failed"


def test_a_superlink_that_was_killed_comes_back(served: Served) -> None:
    before = served.pid("superlink")
    os.kill(before, signal.SIGKILL)
    eventually(lambda: (served.home.run / "superlink.pid").exists() and served.pid("superlink") != before, "another")
    eventually(served.answers, "a SuperLink that answers again")


def test_a_certificate_that_was_renewed_is_shown_at_once(served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    before, superlink = shown_certificate(served.home), served.pid("superlink")
    assert before is not None
    assert command_line(["coordinator", "renew", "--home", str(served.home.path)]) == 0
    assert "it is shown from now on" in capfd.readouterr().out
    after = shown_certificate(served.home)
    assert after is not None
    assert after.fingerprint != before.fingerprint
    assert served.pid("superlink") != superlink
    # What trusted the authority trusts the new certificate.
    eventually(served.answers, "a SuperLink that answers with it")


def test_another_one_does_not_serve_beside(served: Served) -> None:
    with pytest.raises(UsageError, match="already"), only_one(served.home):
        pass


def test_a_killed_coordinator_leaves_no_process_and_goes_on(served: Served) -> None:
    children = served.children()
    assert len(children) >= 2
    known = Registry(served.home.sites).get("north").node_id
    assert served.end(signal.SIGKILL) == -signal.SIGKILL
    eventually(lambda: gone(children), "the end of every child")
    served.start()
    with Control(served.home) as control:
        assert known in [node.id for node in control.nodes()]


def test_it_ends_when_it_is_told_to(served: Served) -> None:
    children = served.children()
    assert served.end() == 0
    assert gone(children)
    with pytest.raises(ConnectionFailed, match="coordinator serve"), Control(served.home) as control:
        control.nodes()


def test_a_certificate_is_renewed_when_it_has_to_be(served: Served) -> None:
    assert not renew_certificate(served.home)
    served.home.server_certificate.unlink()
    assert renew_certificate(served.home)
    assert not renew_certificate(served.home)


def test_names_that_were_added_since_are_certified(tmp_path: Path) -> None:
    """Also by a process that began before they were, and for which the old names would do."""
    assert command_line(["coordinator", "init", "--home", str(tmp_path / "c"), "--name", "a.example.org"]) == 0
    home = CoordinatorHome(tmp_path / "c")
    assert home.settings.names == ("a.example.org",)
    text = home.settings_file.read_text()
    home.settings_file.write_text(text.replace('["a.example.org"]', '["b.example.org"]'))
    assert renew_certificate(home)
    assert "b.example.org" in certificate_facts(home.server_certificate.read_bytes()).names
    assert not renew_certificate(home)


def test_children_see_no_way_out(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_SUPERGRID_API_URL", "https://example.org")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.org:3128")
    seen = environment(served.home)
    assert "example.org" not in " ".join(seen.values())
    assert seen["NO_PROXY"] == "127.0.0.1,localhost"
    assert seen["FLWR_HOME"] == str(served.home.flwr)
