import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

from flwr.cli.config_utils import get_fab_config
from flwr.cli.install import install_from_fab

from wardround.deploy.coordinator.bundle import RUN_FOLDER, build_bundle, digest, write_bundle


def test_it_is_the_same_bytes_every_time() -> None:
    code = "from wardround.deploy.coordinator.bundle import *; print(digest(build_bundle()))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == digest(build_bundle()) == hashlib.sha256(build_bundle()).hexdigest()


def test_it_brings_no_code() -> None:
    with zipfile.ZipFile(io.BytesIO(build_bundle())) as archive:
        assert archive.namelist() == ["pyproject.toml", ".info/CONTENT"]
        # What a compressor makes of an entry differs from one machine to the next.
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}


def test_flower_installs_it_and_finds_our_apps(tmp_path: Path) -> None:
    config = get_fab_config(build_bundle())["tool"]["flwr"]["app"]
    assert config["config"] == {RUN_FOLDER: ""}
    assert config["components"] == {
        "serverapp": "wardround.server.app:app",
        "clientapp": "wardround.client.app:app",
    }
    installed = install_from_fab(build_bundle(), tmp_path)
    assert [path.name for path in installed.iterdir()] == ["pyproject.toml"]


def test_the_apps_that_it_names_exist() -> None:
    import wardround.client.app
    import wardround.server.app

    assert wardround.server.app.app is not None
    assert wardround.client.app.app is not None


def test_it_can_be_looked_at(tmp_path: Path) -> None:
    path = write_bundle(tmp_path)
    assert path.read_bytes() == build_bundle()
    assert path.stem == digest(build_bundle())
    with zipfile.ZipFile(path) as archive:
        assert archive.read("pyproject.toml") == (tmp_path / "pyproject.toml").read_bytes()
