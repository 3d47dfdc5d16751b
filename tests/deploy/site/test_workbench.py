"""`wardround site serve` with a workbench: a person draws on a real bench, in the agent's own process."""

import socket
import ssl
from pathlib import Path

import httpx
import pytest
from deployment import eventually, free_ports
from living import agent_process
from workbench import home_to_serve, password

from wardround.client.cases.store import CaseStore
from wardround.client.home import only_agent
from wardround.client.intake import STORE
from wardround.deploy.cli import run
from wardround.errors import ConnectionFailed

OURS = {"sec-fetch-site": "same-origin"}


def test_a_person_signs_in_draws_and_accepts_beside_the_agent(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    home = home_to_serve(tmp_path / "home", f"port = {port}", 'host = "0.0.0.0"')
    with agent_process(home):
        # Up as soon as the agent has made its certificate, which is after it has begun to listen for commands.
        eventually((home.path / "workbench.crt").exists, "the certificate")
        trust = ssl.create_default_context(cafile=home.path / "workbench.crt")
        with httpx.Client(base_url=f"https://localhost:{port}", verify=trust, headers=OURS, timeout=120) as browser:

            def is_up() -> bool:
                try:
                    return browser.get("/health").status_code == 200
                except httpx.TransportError:
                    return False

            eventually(is_up, "the workbench")
            signed = browser.post("/api/v1/login", json={"name": "ann", "password": password("ann")})
            assert signed.json() == {"name": "ann", "roles": ["annotator"], "change_password": False}
            case = browser.get("/api/v1/cases/next").json()["id"]
            opened = browser.post(f"/api/v1/cases/{case}/open").json()
            (axis, index) = (opened["suggestion"][0][name] for name in ("axis", "index"))
            assert (axis in range(3), index >= 0) == (True, True)
            labels = {"shape": [16, 24], "rle": [[0, 100], [1, 40], [0, 244]]}
            drawn = {"prompts": [{"kind": "slice", "axis": 2, "index": 8, "labels": labels}]}
            answer = browser.post(f"/api/v1/cases/{case}/draw", json=drawn).json()
            assert answer["drawn"] == drawn["prompts"]
            proxy = browser.get(f"/api/v1/cases/{case}/layers/proxy")
            assert int(proxy.headers["x-wardround-version"]) == answer["versions"]["proxy"]
            assert max(proxy.content) == 1
            assert browser.post(f"/api/v1/cases/{case}/accept", json={}).json()["state"] == "accepted"
    with CaseStore(home.site / STORE) as store:
        found = store.label(case, "ann")
        assert found is not None
        assert (found.array[:, :, 8].ravel()[100:140] == 1).all()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"https://localhost:{port}/health", verify=False)


def test_a_port_that_is_taken_ends_the_agent_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # What belongs to a process of its own.
    monkeypatch.setattr("wardround.deploy.site.serving.os.umask", lambda mask: mask)
    monkeypatch.setattr("wardround.deploy.site.serving.signal.signal", lambda *_: None)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        home = home_to_serve(tmp_path / "home", f"port = {port}")
        assert run(["site", "serve", "--no-connect", "--home", str(home.path)]) == ConnectionFailed.exit_code
    assert f"127.0.0.1:{port}" in capsys.readouterr().err
    with only_agent(home):
        pass  # Nothing of it is left that holds the home.
