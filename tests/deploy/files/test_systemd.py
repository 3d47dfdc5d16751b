"""The units, as systemd itself reads them."""

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "deploy" / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
SYSTEMD = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(SYSTEMD is None, reason="systemd-analyze is not installed")


@pytest.fixture
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The unit with a program that is there in place of ours."""
    source: Path = request.param
    copy = tmp_path / source.name
    copy.write_text(source.read_text().replace("/opt/wardround/bin/wardround", "/bin/true"))
    drop_ins = source.with_name(source.name + ".d")
    if drop_ins.is_dir():
        shutil.copytree(drop_ins, tmp_path / drop_ins.name)
    return copy


def analyse(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False, timeout=120)


def test_both_sides_have_one() -> None:
    assert [unit.name for unit in UNITS] == ["wardround-coordinator.service", "wardround-site.service"]


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, indirect=True, ids=lambda path: path.stem)
def test_systemd_understands_every_line(unit: Path) -> None:
    answer = analyse("verify", "--man=no", str(unit))
    assert answer.returncode == 0
    assert answer.stderr == ""


@needs_systemd
def test_a_line_that_systemd_does_not_understand_is_found(tmp_path: Path) -> None:
    """That the test above can fail."""
    unit = tmp_path / "wrong.service"
    unit.write_text("[Service]\nExecStart=/bin/true\nProtectSytem=strict\n")
    assert "ProtectSytem" in analyse("verify", "--man=no", str(unit)).stderr


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, indirect=True, ids=lambda path: path.stem)
def test_exposure_is_low(unit: Path) -> None:
    """At most 2.0 of 10; what is left is the network, and memory that may be executed, which torch needs."""
    answer = analyse("security", "--offline=true", "--threshold=20", "--no-pager", str(unit))
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_what_both_need(path: Path) -> None:
    parser = configparser.RawConfigParser(strict=False, allow_no_value=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path)
    service = parser["Service"]
    assert service["User"] == "wardround"
    assert service["Restart"] == "always"
    assert service["ProtectSystem"] == "strict"
    assert service["UMask"] == "0077"
    side = path.stem.removeprefix("wardround-")
    assert service["ExecStart"] == f"/opt/wardround/bin/wardround {side} serve --home /var/lib/wardround/{side}"


def test_the_gpu_is_the_only_device() -> None:
    text = (FOLDER / "wardround-site.service.d" / "gpu.conf").read_text()
    allowed = re.findall(r"^DeviceAllow=(\S+)", text, re.MULTILINE)
    assert "DevicePolicy=closed" in text
    assert allowed
    assert all(device.startswith("char-nvidia") for device in allowed)


def test_the_user_of_the_units_is_made() -> None:
    assert re.search(r"^u wardround ", (FOLDER / "wardround.sysusers.conf").read_text(), re.MULTILINE)
