"""Other people's software for conformance tests: MONAI Label as it is on PyPI, in a folder of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

MONAI_LABEL = "monailabel==0.8.5"


@pytest.fixture(scope="session")
def monai_label(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Path:
    """A folder to put on PYTHONPATH: MONAI Label without what it depends on, and the one package that its client needs.

    Mark the test with ``network``.
    """
    if sys.version_info >= (3, 13):
        pytest.skip("MONAI Label's client needs the module `cgi`, which Python 3.13 no longer has")
    folder = tmp_path_factory.mktemp("monai-label")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", str(folder)]
    for wanted in (
        ["--no-deps", "--only-binary", ":all:", MONAI_LABEL],
        ["--only-binary", ":all:", "--constraint", str(checkout / "constraints.txt"), "requests"],
    ):
        done = subprocess.run([*pip, *wanted], capture_output=True, text=True, check=False, timeout=300)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            pytest.skip(f"{wanted[-1]} cannot be installed here: {reason}")
    return folder
