"""What the keeper of a process left behind because it was killed.

A kept child dies with its keeper (:mod:`wardround.processes`), but not what that child had started: Flower's couriers
watch their parent, and may hang in the handler of the signal by which they mean to end. All of them inherit a variable
that says who keeps them and for which pid file. The next keeper for the same file looks for it.
"""

import logging
import os
import signal
import time
from pathlib import Path

log = logging.getLogger(__name__)

MARK = "WARDROUND_KEEPER"
"""The variable."""


def mark(pid_file: Path) -> dict[str, str]:
    """The variable by which what we start for that pid file is known."""
    return {MARK: f"{_identity(os.getpid())} {pid_file}"}


def end(pid_file: Path, patience: float) -> None:
    """End what keepers for that pid file left that are no more; SIGKILL follows SIGTERM after `patience` seconds."""
    deadline = time.monotonic() + patience
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not (left := _find(pid_file)):
            return
        log.warning("a keeper that was killed left %d processes; they are ended", len(left))
        for pid in left:
            _signal(pid, number)
        while number == signal.SIGTERM and _find(pid_file) and time.monotonic() < deadline:
            time.sleep(0.1)


def _find(pid_file: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # It has ended, or is somebody else's.
            continue
        for variable in variables:
            name, _, value = variable.decode(errors="replace").partition("=")
            keeper, _, file = value.partition(" ")
            if name == MARK and file == str(pid_file) and not _is_alive(keeper):
                found.append(int(entry.name))
    return found


def _identity(pid: int) -> str:
    """Names a process for ever: its number, and when it started."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return f"{pid}:{fields[19]}"


def _is_alive(identity: str) -> bool:
    try:
        return _identity(int(identity.partition(":")[0])) == identity
    except (OSError, ValueError):
        return False


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError) as error:
        log.debug("process %d: %s", pid, error.strerror)
