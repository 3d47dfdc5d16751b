"""Nothing that a killed keeper left outlives the next one for the same pid file."""

import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from wardround.processes import Backoff, Keeper

PATIENCE = 30.0
SLEEPER = (sys.executable, "-S", "-c", "import time\nwhile True: time.sleep(60)")


def eventually(question: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not question():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_what_a_killed_keeper_left_is_ended_by_the_next(tmp_path: Path) -> None:
    pid_file, orphan_file = tmp_path / "child.pid", tmp_path / "orphan"
    # It ignores the signals that a polite end sends, as one that hangs in its own handler does.
    orphan = f"trap '' TERM INT; echo $$ > {orphan_file}; sleep 600"
    child = ["sh", "-c", f"setsid sh -c {shlex.quote(orphan)} & wait"]
    script = (
        "import pathlib, time\nfrom wardround.processes import Keeper\n"
        f"Keeper('child', {child!r}, pid_file=pathlib.Path({str(pid_file)!r})).start()\ntime.sleep(600)"
    )
    killed = subprocess.Popen([sys.executable, "-c", script])
    eventually(lambda: orphan_file.exists() and orphan_file.read_text().strip())
    number = int(orphan_file.read_text())
    # As long as its keeper lives, another one leaves it alone.
    with Keeper("child", SLEEPER, pid_file=pid_file) as second:
        eventually(lambda: second.status.pid)
        assert is_running(number)
    killed.kill()
    killed.wait()
    assert is_running(number)
    with Keeper("child", SLEEPER, pid_file=pid_file, backoff=Backoff(first=0.05)) as third:
        eventually(lambda: third.status.pid)
        assert not is_running(number)
