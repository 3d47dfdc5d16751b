"""Processes that die in the middle of something: forked, and killed before a chosen line of code.

A script that forks is run by :func:`told_by` as a process of its own: a fork of the tests' process would inherit its
threads and their locks.
"""

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any


def told_by(script: Path, *arguments: object) -> Any:
    """Run a script, which may import what is in this folder; the JSON that it prints."""
    command = [sys.executable, str(script), *map(str, arguments)]
    surroundings = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *_inherited()])}
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500, env=surroundings)
    assert (answer.returncode, answer.stderr) == (0, ""), answer.stderr[-3000:]
    return json.loads(answer.stdout)


def _inherited() -> list[str]:
    return [path for path in [os.environ.get("PYTHONPATH", "")] if path]


def forked(work: Callable[[], object]) -> int:
    """Run `work` in a process of its own; its wait status."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    return os.waitpid(child, 0)[1]


def die_at_line(number: int, modules: Iterable[ModuleType]) -> None:
    """From now on, die by SIGKILL before the line of that number, from 0 on, that code of `modules` executes."""
    sources = {module.__file__ for module in modules}
    left = number

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in sources:
            return None
        if event == "line":
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        return trace

    sys.settrace(trace)
