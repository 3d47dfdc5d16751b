"""A run contacts nobody: every process that it starts is watched by an audit hook of the interpreter."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

# Loaded by every Python process below, spawned workers included, before any of its own code.
WATCH = """
import os, socket, sys

def watch(event, arguments):
    if event == "socket.getaddrinfo" or (
        event == "socket.connect" and arguments[0].family in (socket.AF_INET, socket.AF_INET6)
    ):
        with open(os.environ["EGRESS_LOG"], "a") as log:
            log.write(f"{os.getpid()} {event} {arguments[-1] if event == 'socket.connect' else arguments[0]}\\n")

sys.addaudithook(watch)
with open(os.environ["EGRESS_LOG"] + ".watched", "a") as log:
    log.write(f"{os.getpid()}\\n")
"""

SMALL = shlex.split(
    "simulate --sites 2 --cases 1 --tests 1 --rounds 1 --shape 24,24,24 --plan updates-per-case=2 --out run"
)


def watched(command: list[str], folder: Path) -> tuple[str, int]:
    """Run a command and return what it tried to reach, and how many processes were watched."""
    (folder / "hook").mkdir()
    (folder / "hook" / "sitecustomize.py").write_text(WATCH)
    log = folder / "egress.log"
    # As a user has it: nothing is switched off from outside.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FLWR_", "RAY_"))}
    environment |= {"PYTHONPATH": str(folder / "hook"), "EGRESS_LOG": str(log), "HOME": str(folder)}
    answer = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    processes = set((folder / "egress.log.watched").read_text().split())
    return (log.read_text() if log.exists() else ""), len(processes)


def test_a_simulation_contacts_nobody(tmp_path: Path) -> None:
    reached, processes = watched([sys.executable, "-m", "wardround.deploy.cli", *SMALL], tmp_path)
    assert (tmp_path / "run" / "report.html").exists()
    assert processes > 1  # The run has a worker of its own, which was watched as well.
    assert reached == ""


@pytest.mark.parametrize(
    "code",
    [
        "import socket\ntry: socket.create_connection(('127.0.0.1', 9), 1)\nexcept OSError: pass",
        "import urllib.request\ntry: urllib.request.urlopen('http://localhost:9', timeout=1)\nexcept OSError: pass",
    ],
)
def test_the_watch_sees_a_connection(code: str, tmp_path: Path) -> None:
    reached, _ = watched([sys.executable, "-c", code], tmp_path)
    assert reached != ""
