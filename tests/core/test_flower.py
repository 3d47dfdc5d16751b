"""A Flower process is told to keep quiet, whatever the environment that it inherits says."""

import subprocess
import sys
from pathlib import Path

from wardround.flower import environment, without_proxy

NOISY = {
    "FLWR_TELEMETRY_ENABLED": "1",
    "FLWR_OIDC_ENABLED": "1",
    "FLWR_INTERNAL_GRPC_FLEET_API": "1",
    "HTTPS_PROXY": "http://proxy:3128",
    "no_proxy": "localhost",
    "PATH": "/usr/bin",
}


def test_what_flower_inherits_is_replaced(tmp_path: Path) -> None:
    quiet = environment(tmp_path, NOISY)
    assert quiet["FLWR_TELEMETRY_ENABLED"] == "0"
    assert quiet["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert quiet["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert quiet["FLWR_HOME"] == str(tmp_path)
    assert "FLWR_OIDC_ENABLED" not in quiet
    assert "FLWR_INTERNAL_GRPC_FLEET_API" not in quiet
    assert quiet["PATH"].split(":") == [str(Path(sys.executable).parent), "/usr/bin"]
    assert quiet["HTTPS_PROXY"] == "http://proxy:3128"


def test_who_speaks_to_this_machine_only_knows_no_proxy(tmp_path: Path) -> None:
    assert not [name for name in without_proxy(environment(tmp_path, NOISY)) if "proxy" in name.lower()]


def test_flower_listens(tmp_path: Path) -> None:
    code = (
        "from flwr.supercore import telemetry, constant, update_check, utils\n"
        "print(telemetry.FLWR_TELEMETRY_ENABLED, constant.FLWR_SUPERGRID_API_URL, utils.get_flwr_home())"
    )
    told = environment(tmp_path)
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=told)
    assert answer.stdout.split() == ["0", "https://127.0.0.1:9", str(tmp_path)]
