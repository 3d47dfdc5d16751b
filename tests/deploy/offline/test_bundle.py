"""A bundle of small wheels: made, checked, broken in many ways, and installed without network."""

import base64
import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from wardround.deploy.offline.__main__ import main
from wardround.deploy.offline.bundle import build, finish, verify
from wardround.deploy.offline.sbom import bill_of_materials
from wardround.deploy.offline.wheels import read_wheels
from wardround.errors import DataError, StorageError, UsageError


def make_wheel(
    folder: Path, name: str, version: str, *, headers: str = "", files: dict[str, str] | None = None
) -> Path:
    """A wheel of one module that holds its version, built by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    about = f"{name}-{version}.dist-info"
    content = {
        f"{name}.py": f"version = {version!r}\n",
        f"{about}/METADATA": f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{headers}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        **(files or {}),
    }
    record = ""
    for path, text in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text.encode())}\n"
    content[f"{about}/RECORD"] = record + f"{about}/RECORD,,\n"
    target = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w") as archive:
        for path, text in content.items():
            archive.writestr(path, text)
    return target


ENTRY = "wardround-0.1.0.dist-info/entry_points.txt"
COMMAND = "[console_scripts]\nwardround = wardround:main\n"
MODULE = "import sys, helper\ndef main():\n    print('wardround with helper', helper.version)\n"


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A wheel that stands in for Wardround's, with a command."""
    return make_wheel(
        tmp_path / "ours",
        "wardround",
        "0.1.0",
        headers="License-Expression: Apache-2.0\nRequires-Dist: helper>=1\nRequires-Dist: absent; extra == 'x'\n",
        files={"wardround.py": MODULE, ENTRY: COMMAND},
    )


@pytest.fixture
def bundle(tmp_path: Path, ours: Path) -> Path:
    """Made by pip from an index that is a folder."""
    index = tmp_path / "index"
    make_wheel(index, "helper", "1.5", headers="Classifier: License :: OSI Approved :: MIT License\n")
    make_wheel(index, "helper", "2.0", headers="License: BSD\n")
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("helper==1.5\n")
    build(tmp_path / "bundle", ours, constraints, ["--no-index", "--find-links", str(index)])
    return tmp_path / "bundle"


def test_the_tested_version_is_taken(bundle: Path) -> None:
    lines = (bundle / "requirements.txt").read_text().splitlines()
    assert [line.split(" ")[0] for line in lines] == ["helper==1.5", "wardround==0.1.0"]
    wheel = bundle / "packages" / "helper-1.5-py3-none-any.whl"
    assert f"--hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}" in lines[0]


def test_it_brings_its_deployment_files(bundle: Path) -> None:
    for name in ("systemd/wardround-site.service", "compose/site.yaml", "docker/Dockerfile", "helm/site/Chart.yaml"):
        assert (bundle / "deploy" / name).is_file()


def test_a_bundle_verifies(bundle: Path) -> None:
    assert verify(bundle) == hashlib.sha256((bundle / "SHA256SUMS").read_bytes()).hexdigest()
    assert main(["verify", str(bundle)]) == 0


def test_the_sums_are_those_of_sha256sum(bundle: Path) -> None:
    command = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(command, cwd=bundle, check=False, timeout=60).returncode == 0


def _append(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"x")


def _other_wheel(bundle: Path) -> None:
    make_wheel(bundle / "packages", "evil", "1.0")


DAMAGE = {
    "a wheel changed": lambda bundle: _append(bundle / "packages" / "helper-1.5-py3-none-any.whl"),
    "a wheel more": _other_wheel,
    "a wheel less": lambda bundle: (bundle / "packages" / "helper-1.5-py3-none-any.whl").unlink(),
    "the list changed": lambda bundle: _append(bundle / "requirements.txt"),
    "a unit changed": lambda bundle: _append(bundle / "deploy" / "systemd" / "wardround-site.service"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_and_nothing_is_installed(bundle: Path, tmp_path: Path, damage: str) -> None:
    DAMAGE[damage](bundle)
    with pytest.raises(DataError):
        verify(bundle)
    assert main(["verify", str(bundle)]) == DataError.exit_code
    answer = install(bundle, tmp_path / "env")
    assert answer.returncode != 0
    assert not (tmp_path / "env").exists()


def install(bundle: Path, target: Path) -> "subprocess.CompletedProcess[str]":
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "PIP_CONFIG_FILE": "/dev/null"}
    command = ["sh", str(bundle / "install.sh"), str(target)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def test_it_installs_without_network(bundle: Path, tmp_path: Path) -> None:
    answer = install(bundle, tmp_path / "env")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == "wardround with helper 1.5\n"


def test_the_bill_of_materials(bundle: Path) -> None:
    bill = json.loads((bundle / "sbom.cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.6", 1)
    assert bill["metadata"]["component"]["name"] == "wardround"
    assert bill["metadata"]["component"]["licenses"] == [{"expression": "Apache-2.0"}]
    (helper,) = bill["components"]
    assert helper["purl"] == "pkg:pypi/helper@1.5"
    assert helper["licenses"] == [{"license": {"name": "MIT License"}}]
    assert len(helper["hashes"][0]["content"]) == 64
    assert {entry["ref"]: entry["dependsOn"] for entry in bill["dependencies"]} == {
        "pkg:pypi/helper@1.5": [],
        "pkg:pypi/wardround@0.1.0": ["pkg:pypi/helper@1.5"],
    }
    assert bill["serialNumber"].startswith("urn:uuid:")


def test_the_same_wheels_make_the_same_bill(bundle: Path) -> None:
    first = (bundle / "sbom.cdx.json").read_text()
    assert bill_of_materials(read_wheels(bundle / "packages")) == first
    finish(bundle)
    assert (bundle / "sbom.cdx.json").read_text() == first


def test_a_licence_text_is_no_name(tmp_path: Path) -> None:
    make_wheel(tmp_path, "long", "1", headers="License: Copyright somebody\n        and a page of text\n")
    make_wheel(tmp_path, "odd", "1", headers="License-Expression: <script>\n")
    assert [wheel.licence for wheel in read_wheels(tmp_path)] == ["", ""]


def test_what_is_no_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thing-1.0.tar.gz").write_bytes(b"sources")
    with pytest.raises(DataError, match="is no wheel"):
        read_wheels(tmp_path)


def test_one_distribution_twice_is_refused(tmp_path: Path) -> None:
    make_wheel(tmp_path, "one", "1")
    make_wheel(tmp_path, "one", "2")
    with pytest.raises(DataError, match="twice"):
        read_wheels(tmp_path)


def test_a_package_that_cannot_be_had(tmp_path: Path, ours: Path) -> None:
    (tmp_path / "none").mkdir()
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("")
    with pytest.raises(DataError, match="could not fetch"):
        build(tmp_path / "out", ours, constraints, ["--no-index", "--find-links", str(tmp_path / "none")])


def test_a_folder_that_is_not_empty(tmp_path: Path, ours: Path) -> None:
    with pytest.raises(UsageError, match="not empty"):
        build(ours.parent, ours, tmp_path / "constraints.txt")


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        verify(tmp_path)
