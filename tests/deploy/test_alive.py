"""The quick question whether a site or a coordinator is alive."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wardround.deploy.alive import STALE_S, coordinator_is_alive, main, site_is_alive
from wardround.server.home import hold


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path


def test_nothing_runs(home: Path) -> None:
    assert not site_is_alive(home)
    assert not coordinator_is_alive(home)
    assert main(["site", str(home)]) == main(["coordinator", str(home / "gone")]) == 1


def test_a_site(home: Path) -> None:
    stamp = home / "run" / "supernode.stamp"
    with hold(home / "run" / "agent.lock"):
        assert site_is_alive(home), "a paused site has no SuperNode"
        (home / "run" / "supernode.pid").write_text("1")
        assert site_is_alive(home), "it has just been started"
        stamp.touch()
        assert main(["site", str(home)]) == 0
        old = time.time() - STALE_S - 1
        os.utime(stamp, (old, old))
        assert not site_is_alive(home)
        # A killed agent leaves the number of its SuperNode behind; after `leave` there is none to wait for.
        (home / "state.json").write_text('{"participation": "left"}')
        assert site_is_alive(home)
        (home / "state.json").write_text("rubbish")
        assert not site_is_alive(home)
    stamp.touch()
    assert not site_is_alive(home)


def test_a_coordinator(home: Path) -> None:
    pid = home / "run" / "superlink.pid"
    with hold(home / "run" / "serve.lock"):
        assert not coordinator_is_alive(home)
        pid.write_text(f"{os.getpid()}\n")
        assert main(["coordinator", str(home)]) == 0
        pid.write_text("rubbish")
        assert not coordinator_is_alive(home)


def test_it_imports_nothing_heavy() -> None:
    """It is asked twice a minute."""
    code = "import sys, wardround.deploy.alive; print(*{name.partition('.')[0] for name in sys.modules})"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not {"torch", "flwr", "numpy", "pydantic", "rich"} & set(answer.stdout.split())


def test_doctor_and_it_agree_on_what_is_stale() -> None:
    from wardround.deploy.doctor import site

    assert site.STALE_S == STALE_S
