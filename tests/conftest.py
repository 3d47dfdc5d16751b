"""What every test shares: one thread for numerical libraries, real images by name, and slow things started once."""

import importlib.util
import os
from pathlib import Path

import hypothesis
import pytest
from planted import Watch

# Before any test imports numpy or torch: results must not depend on the number of cores, and tests run side by side.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
# Flower phones home and looks for updates unless it is told not to, before it is imported.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] = "1"

# No deadline: a shared machine is sometimes slow. Derandomised: a failure must be there again tomorrow.
hypothesis.settings.register_profile("wardround", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("wardround")


def pytest_configure(config: pytest.Config) -> None:
    """Whatever any test logs, no planted name may be in it."""
    config.pluginmanager.register(Watch(config), "canaries")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, with a plain reason."""
    missing = {}
    folder = os.environ.get("WARDROUND_DATA", "")
    if not folder:
        missing["data"] = "WARDROUND_DATA names no folder with real images"
    elif not Path(folder).is_dir():
        missing["data"] = f"WARDROUND_DATA={folder} is not a folder"
    if importlib.util.find_spec("ray") is None:
        missing["ray"] = "the `ray` extra is not installed"
    for item in items:
        for marker, reason in missing.items():
            if marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The folder that holds ``pyproject.toml`` and the rooms."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with real images that ``WARDROUND_DATA`` names. Mark the test with ``data``."""
    return Path(os.environ["WARDROUND_DATA"])
