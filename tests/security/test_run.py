"""What a run lets out: whom its processes contact, watched by an audit hook, and who can read its files."""

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
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
    "simulate --sites 2 --cases 1 --tests 1 --rounds 1 --compare federated"
    " --shape 24,24,24 --plan updates-per-case=2 --out run"
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


@dataclass(frozen=True)
class Run:
    """A small simulation under watch: its folder, what it tried to reach, how many processes were watched."""

    folder: Path
    reached: str
    processes: int


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("watched")
    reached, processes = watched([sys.executable, "-m", "wardround.deploy.cli", *SMALL], folder)
    return Run(folder / "run", reached, processes)


def test_a_simulation_contacts_nobody(run: Run) -> None:
    assert (run.folder / "report.html").exists()
    assert run.processes > 1  # The run has a worker of its own, which was watched as well.
    assert run.reached == ""


def test_images_labels_weights_and_scores_are_for_the_user_alone(run: Run) -> None:
    """A file is open to others only if its own mode and that of every folder above it says so."""
    open_to_others = {
        file.relative_to(run.folder)
        for file in run.folder.rglob("*")
        if file.is_file() and file.stat().st_mode & 0o044
        if all(folder.stat().st_mode & 0o011 for folder in _above(file, run))
    }
    assert {file for file in open_to_others if (run.folder / file).stat().st_size and file.name != "run.log"} == set()


def _above(file: Path, run: Run) -> list[Path]:
    return [folder for folder in file.parents if folder.is_relative_to(run.folder)]


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
