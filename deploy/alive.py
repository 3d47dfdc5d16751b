"""Whether a site or a coordinator is alive: the quick question that a container or a service manager asks every minute.

::

    python -m wardround.deploy.alive site HOME
    python -m wardround.deploy.alive coordinator HOME

It looks at locks, process numbers and stamps, asks nobody, and imports nothing heavy. The exit code is 0 for alive and
1 for not. What is wrong, `doctor` says.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from wardround.errors import StorageError
from wardround.files import is_locked

STALE_S = 180.0
"""A SuperNode that has not stamped for so long is stuck."""


def site_is_alive(home: Path) -> bool:
    """Whether an agent is at work and, if one was started, its SuperNode is not stuck."""
    if not _is_held(home / "run" / "agent.lock"):
        return False
    stamp = home / "run" / "supernode.stamp"
    if not (home / "run" / "supernode.pid").exists() or _has_left(home / "state.json"):
        return True  # about to be started again, or not wanted: a killed agent may have left its number behind
    try:
        return time.time() - stamp.stat().st_mtime < STALE_S
    except FileNotFoundError:
        return True


def coordinator_is_alive(home: Path) -> bool:
    """Whether a coordinator serves and its SuperLink runs."""
    return _is_held(home / "run" / "serve.lock") and _runs(home / "run" / "superlink.pid")


def _is_held(lock: Path) -> bool:
    try:
        return is_locked(lock)
    except StorageError:
        return False


def _has_left(state: Path) -> bool:
    try:
        return bool(json.loads(state.read_text(encoding="utf-8"))["participation"] == "left")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _runs(pid_file: Path) -> bool:
    try:
        os.kill(int(pid_file.read_text(encoding="utf-8")), 0)
    except PermissionError:
        return True
    except (OSError, ValueError, OverflowError):
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer with an exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m wardround.deploy.alive", description="Say whether it is alive, by exit code."
    )
    parser.add_argument("side", choices=("site", "coordinator"))
    parser.add_argument("home", type=Path)
    given = parser.parse_args(arguments)
    alive = site_is_alive if given.side == "site" else coordinator_is_alive
    return 0 if alive(given.home) else 1


if __name__ == "__main__":
    sys.exit(main())
