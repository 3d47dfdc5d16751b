"""The checks of a site as a whole: on a real home, with a real SuperLink at the other end of the line."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from deployment import eventually, is_up, make_coordinator, make_site, node_status, register, superlink

from wardround.client import wire
from wardround.client.gate.ledger import Ledger
from wardround.client.gate.policy import POLICY_TEMPLATE
from wardround.client.home import SiteHome
from wardround.deploy.doctor import Finding, site_doctor
from wardround.processes import Stamp
from wardround.server.home import hold


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SiteHome:
    """A site whose coordinator is not running."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    site = make_site(tmp_path / "site", "north", make_coordinator(tmp_path / "coordinator"))
    site.policy.write_text(POLICY_TEMPLATE)
    return site


def findings(home: SiteHome) -> dict[str, Finding]:
    found = list(site_doctor(home.path))
    assert all(finding.cause and finding.fix for finding in found if not finding.ok)
    return {finding.name: finding for finding in found}


def problems(home: SiteHome) -> set[str]:
    return {name for name, finding in findings(home).items() if not finding.ok}


def test_a_site_that_was_only_set_up(home: SiteHome) -> None:
    """No agent, and nobody at the other end: all else is well."""
    assert problems(home) == {"agent", "connection"}


def test_a_folder_that_is_no_site(tmp_path: Path) -> None:
    (finding,) = site_doctor(tmp_path)
    assert not finding.ok
    assert "site.toml" in finding.cause


@pytest.mark.parametrize(
    ("file", "content", "name"),
    [
        ("policy.toml", b"min-cases = -1", "policy"),
        ("approvals.json", b"{", "bundles"),
        ("coordinator.crt", b"", "authority"),
        ("keys/node", b"no key", "private key"),
        ("state.json", b"?", "agent"),
        ("ledger.jsonl", b"{}\n", "ledger"),
    ],
)
def test_a_file_that_is_damaged(home: SiteHome, file: str, content: bytes, name: str) -> None:
    path = home.path / file
    path.write_bytes(content)
    path.chmod(0o600)
    assert name in problems(home)


def test_secure_aggregation_with_whoever_comes(home: SiteHome) -> None:
    text = POLICY_TEMPLATE.replace("require-secure = false", "require-secure = true")
    home.policy.write_text(text)
    assert "secure-peers" in findings(home)["policy"].cause
    home.policy.write_text(text.replace("secure-peers = {}", f'secure-peers = {{ south = "SHA256:{"a" * 43}" }}'))
    assert "policy" not in problems(home)


def test_what_was_noted_of_secure_aggregation(home: SiteHome) -> None:
    home.secure.write_text('{"sites": {"south": "SHA256:a"}, "noted": 1}')
    Ledger(home.ledger).append(direction="none", kind="train", verdict="allowed", code="secure-noted")
    assert findings(home)["secure aggregation"].note.startswith("1 site known")
    home.secure.unlink()
    assert "secure.json knows of 0 changes" in findings(home)["secure aggregation"].problem


def test_a_key_that_others_can_read(home: SiteHome) -> None:
    home.node_key.chmod(0o644)
    assert "can be read by others" in findings(home)["private key"].problem


def test_a_bundle_that_waits(home: SiteHome) -> None:
    entry = {"sha256": "ab" * 32, "name": "lab/app 1.0", "flags": [], "state": "pending", "seen": time.time()}
    home.approvals.write_text(json.dumps({"format": 1, "bundles": [entry]}))
    assert "1 app bundle waits" in findings(home)["bundles"].problem


def test_a_ledger_that_was_changed(home: SiteHome) -> None:
    ledger = Ledger(home.ledger)
    for _ in range(3):
        ledger.append(direction="in", kind="query", verdict="allowed", code="admitted")
    home.ledger.write_bytes(home.ledger.read_bytes().replace(b"query", b"train", 1))
    assert "from line 1 on" in findings(home)["ledger"].problem


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
def test_the_device(home: SiteHome, device: str) -> None:
    import torch

    home.settings_file.write_text(home.settings_file.read_text().replace('device = "auto"', f'device = "{device}"'))
    fresh = SiteHome(home.path)
    assert ("device" in problems(fresh)) == (device == "cuda" and not torch.cuda.is_available())


@pytest.fixture
def agent(home: SiteHome) -> Iterator[dict[str, object]]:
    """Something that answers as an agent does, and a SuperNode that has just stamped."""
    about: dict[str, object] = {"op": "ok", "running": None}
    with hold(home.lock) as ours, closing(socket.socket(socket.AF_UNIX)) as listener:
        assert ours
        listener.bind(str(home.socket))
        listener.listen()

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    wire.receive(connection)
                    wire.send(connection, about)

        threading.Thread(target=answer, daemon=True).start()
        (home.run / "supernode.pid").write_text(f"{os.getpid()}\n")
        Stamp(home.run / "supernode.stamp").touch()
        yield about


def test_an_agent_at_work(home: SiteHome, agent: dict[str, object]) -> None:
    agent["running"] = "train"
    home.participate("paused")
    found = findings(home)
    assert found["agent"].note == "at work, paused, busy with train"
    assert found["SuperNode"].ok


def test_a_supernode_that_is_stuck(home: SiteHome, agent: dict[str, object]) -> None:
    old = time.time() - 1000
    os.utime(home.run / "supernode.stamp", (old, old))
    assert "is stuck" in findings(home)["SuperNode"].problem


def test_a_supernode_that_is_gone(home: SiteHome, agent: dict[str, object]) -> None:
    (home.run / "supernode.pid").write_text("999999999\n")
    assert "is not running" in findings(home)["SuperNode"].problem


def test_an_agent_that_does_not_answer(home: SiteHome) -> None:
    with hold(home.lock):
        assert "does not answer" in findings(home)["agent"].problem


def test_with_a_superlink(tmp_path: Path, home: SiteHome) -> None:
    """The key is not known, then it is; and asking changes nothing there."""
    from wardround.server.home import CoordinatorHome

    coordinator = CoordinatorHome(tmp_path / "coordinator")
    with superlink(coordinator):
        eventually(lambda: is_up(coordinator), "the SuperLink")
        found = findings(home)
        assert "does not know this site's key" in found["key"].problem
        assert all(found[name].ok for name in ("name", "connection", "TLS", "clock", "versions"))
        node = register(coordinator, home)
        before = node_status(coordinator, node)
        assert findings(home)["key"].ok
        assert node_status(coordinator, node) == before == "registered"
