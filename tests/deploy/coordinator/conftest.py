"""A coordinator's folder and a run in it."""

from pathlib import Path

import pytest
from coordinating import NOW, SETTINGS, FlowerStub

from wardround.deploy.coordinator import runs
from wardround.server.home import CoordinatorHome


@pytest.fixture
def home(tmp_path: Path) -> CoordinatorHome:
    path = tmp_path / "coordinator"
    path.mkdir()
    (path / "coordinator.toml").write_text(
        '[coordinator]\nnames = ["localhost"]\nurl = "https://localhost:23900"\nport = 23900\nruntime-port = 23901\n'
        "status-port = 0\n"
    )
    return CoordinatorHome(path)


@pytest.fixture
def flower() -> FlowerStub:
    return FlowerStub()


@pytest.fixture
def run(home: CoordinatorHome) -> runs.Run:
    return runs.create(home, "study", SETTINGS, NOW)
