"""The Compose files: read by Docker's own parser where it is installed, and held against our rules everywhere."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from wardround import __version__

FOLDER = Path(__file__).resolve().parents[3] / "deploy" / "compose"
SIDES = ("coordinator", "site")
OURS = {"/var/lib/wardround"}


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return content


def services() -> list[Any]:
    return [
        pytest.param(name, service, id=f"{name}-{key}")
        for name in SIDES
        for key, service in read(name)["services"].items()
    ]


@pytest.mark.skipif(shutil.which("docker") is None, reason="the docker command is not installed")
@pytest.mark.parametrize("name", SIDES)
def test_docker_reads_it(tmp_path: Path, name: str) -> None:
    """`docker stack config` checks a file against its schema without a daemon; it knows no project name."""
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines(keepends=True)
    copy = tmp_path / "compose.yaml"
    copy.write_text("".join(line for line in lines if not line.startswith("name:")))
    command = ["docker", "stack", "config", "--compose-file", str(copy)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert answer.returncode == 0, answer.stderr
    assert set(yaml.safe_load(answer.stdout)["services"]) == set(read(name)["services"])


@pytest.mark.parametrize(("name", "service"), services())
def test_every_service_is_confined(name: str, service: dict[str, Any]) -> None:
    assert service["user"] == "10001:10001"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "network_mode", "pid", "ipc", "cap_add", "devices"} & service.keys()
    targets = {volume.split(":")[1] for volume in service["volumes"]}
    assert targets == OURS, "no folder of the machine, and no socket of Docker"
    assert f":{__version__}}}" in service["image"]


@pytest.mark.parametrize("name", SIDES)
def test_the_page_cannot_write_and_is_for_this_machine(name: str) -> None:
    page = read(name)["services"]["page"]
    assert all(volume.endswith(":ro") for volume in page["volumes"])
    assert all(port.startswith("127.0.0.1:") for port in page["ports"])
    module = page["entrypoint"][-1]
    assert module == f"wardround.{'server' if name == 'coordinator' else 'client'}.status"


def test_a_site_lets_nobody_in() -> None:
    assert "ports" not in read("site")["services"]["site"]


def test_a_coordinator_opens_one_port() -> None:
    assert read("coordinator")["services"]["coordinator"]["ports"] == ["8443:8443"]


def test_the_gpu_is_asked_for_and_nothing_else() -> None:
    (device,) = read("site.gpu")["services"]["site"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert read("site.gpu").keys() == {"services"}


def test_the_workbench_is_published_at_a_chosen_address_only() -> None:
    """Without one Compose stops: an address that is left out would be every address."""
    content = read("site.workbench")
    (port,) = content["services"]["site"].pop("ports")
    assert re.fullmatch(r"\$\{WARDROUND_WORKBENCH_ADDRESS:\?[^}]+\}:8447:8447", port)
    assert content == {"services": {"site": {}}}


@pytest.mark.parametrize("name", SIDES)
def test_every_volume_and_network_is_declared(name: str) -> None:
    content = read(name)
    used = {volume.split(":")[0] for service in content["services"].values() for volume in service["volumes"]}
    assert used == content["volumes"].keys()
    joined = {network for service in content["services"].values() for network in service["networks"]}
    assert joined == content["networks"].keys()
