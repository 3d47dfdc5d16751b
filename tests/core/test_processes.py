"""A kept child comes back, dies with its parent, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wardround.processes import Backoff, Keeper, Stamp

SWIFT = Backoff(first=0.05, most=0.2, steady=60)
PATIENCE = 30.0
SLEEPER = (sys.executable, "-S", "-c", "import time\nwhile True: time.sleep(60)")


def eventually(question: Callable[[], object], what: str = "it") -> None:
    """Ask until the answer is yes."""
    deadline = time.monotonic() + PATIENCE
    while not question():
        assert time.monotonic() < deadline, f"{what} did not come about"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.fixture
def kept() -> Iterator[Callable[..., Keeper]]:
    """Makes keepers, and stops them at the end."""
    keepers: list[Keeper] = []

    def make(*arguments: str, **options: object) -> Keeper:
        keeper = Keeper("child", arguments, **{"backoff": SWIFT, "check_every": 0.05, **options})  # type: ignore[arg-type]
        keepers.append(keeper)
        keeper.start()
        return keeper

    yield make
    for keeper in keepers:
        keeper.stop()


def pid_of(keeper: Keeper, other_than: int | None = None) -> int:
    """The child's pid, once there is one that is not `other_than`."""
    eventually(lambda: keeper.status.pid not in (None, other_than), "a child")
    assert keeper.status.pid is not None
    return keeper.status.pid


def test_a_killed_child_is_started_again(kept: Callable[..., Keeper]) -> None:
    keeper = kept(*SLEEPER)
    first = pid_of(keeper)
    os.kill(first, signal.SIGKILL)
    second = pid_of(keeper, other_than=first)
    assert is_running(second)
    assert not is_running(first)
    assert keeper.status.restarts == 1
    assert keeper.status.exit_code == -signal.SIGKILL


def test_a_program_that_cannot_be_started_is_tried_again_and_its_reason_is_in_the_log(
    kept: Callable[..., Keeper], tmp_path: Path
) -> None:
    keeper = kept("/no/such/program", log_file=tmp_path / "logs" / "child.log")
    eventually(lambda: keeper.status.restarts >= 2, "a second try")
    assert "cannot start /no/such/program: No such file" in (tmp_path / "logs" / "child.log").read_text()


def test_stop_ends_the_child_and_what_it_started(kept: Callable[..., Keeper], tmp_path: Path) -> None:
    pid_file = tmp_path / "grandchild"
    script = f"sleep 600 & echo $! > {pid_file}; wait"
    keeper = kept("/bin/sh", "-c", script)
    eventually(lambda: pid_file.exists() and pid_file.read_text().strip(), "the grandchild")
    child, grandchild = pid_of(keeper), int(pid_file.read_text())
    keeper.stop()
    assert not is_running(child)
    eventually(lambda: not is_running(grandchild), "the grandchild's end")
    assert keeper.status.pid is None


def test_what_a_killed_child_left_is_ended_before_the_next_one_starts(
    kept: Callable[..., Keeper], tmp_path: Path
) -> None:
    pids = tmp_path / "grandchildren"
    keeper = kept("/bin/sh", "-c", f"sleep 600 & echo $! >> {pids}; wait")
    eventually(lambda: pids.exists() and pids.read_text().strip(), "the first grandchild")
    os.kill(pid_of(keeper), signal.SIGKILL)
    eventually(lambda: len(pids.read_text().split()) == 2, "the second grandchild")
    first, second = map(int, pids.read_text().split())
    assert not is_running(first)
    assert is_running(second)


def test_a_child_that_ignores_sigterm_is_killed(kept: Callable[..., Keeper], tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = f"import signal, time, pathlib\nsignal.signal(15, signal.SIG_IGN)\npathlib.Path({str(ready)!r}).touch()\n"
    keeper = kept(sys.executable, "-S", "-c", code + "while True: time.sleep(60)", grace=0.2)
    eventually(ready.exists, "the child's deafness")
    child = pid_of(keeper)
    keeper.stop()
    assert not is_running(child)
    assert keeper.status.exit_code == -signal.SIGKILL


def test_a_child_without_progress_is_ended_and_started_again(kept: Callable[..., Keeper], tmp_path: Path) -> None:
    stamp = Stamp(tmp_path / "stamp")
    stamp.touch()
    keeper = kept(*SLEEPER, alive=stamp.fresher_than(600), settle=0.1)
    first = pid_of(keeper)
    os.utime(stamp.path, (0, 0))
    second = pid_of(keeper, other_than=first)
    assert not is_running(first)
    stamp.touch()
    assert is_running(second) or pid_of(keeper)


def test_a_question_about_health_that_fails_counts_as_no(kept: Callable[..., Keeper]) -> None:
    asked = []

    def broken() -> bool:
        asked.append(1)
        raise ValueError("no answer")

    keeper = kept(*SLEEPER, alive=broken, settle=0.0)
    eventually(lambda: keeper.status.restarts >= 1, "a restart")
    assert asked


def test_a_stopped_child_is_ended_too(kept: Callable[..., Keeper], tmp_path: Path) -> None:
    """A process that the kernel does not run cannot end itself: its keeper must."""
    stamp = Stamp(tmp_path / "stamp")
    keeper = kept(*SLEEPER, alive=stamp.fresher_than(600), settle=0.1, grace=0.1)
    first = pid_of(keeper)
    os.kill(first, signal.SIGSTOP)
    pid_of(keeper, other_than=first)
    assert not is_running(first)


def test_restart_on_request_waits_for_no_backoff(kept: Callable[..., Keeper]) -> None:
    keeper = kept(*SLEEPER, backoff=Backoff(first=3600, most=3600))
    first = pid_of(keeper)
    keeper.restart()
    assert is_running(pid_of(keeper, other_than=first))


def test_a_child_dies_with_a_killed_parent(tmp_path: Path) -> None:
    pid_file = tmp_path / "child.pid"
    code = (
        "import pathlib, sys, time\nfrom wardround.processes import Keeper\n"
        f"Keeper('child', {SLEEPER!r}, pid_file=pathlib.Path({str(pid_file)!r})).start()\ntime.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        eventually(lambda: pid_file.exists() and pid_file.read_text().strip(), "the child")
        child = int(pid_file.read_text())
        # Until it has become the program, it is still the script that asks to be told of the parent's death.
        eventually(lambda: b"while True" in Path(f"/proc/{child}/cmdline").read_bytes(), "the program")
        assert is_running(child)
    finally:
        parent.kill()
        parent.wait()
    eventually(lambda: not is_running(child), "the child's end")


def test_the_log_is_kept_below_a_size(kept: Callable[..., Keeper], tmp_path: Path) -> None:
    log_file = tmp_path / "child.log"
    keeper = kept(
        "/bin/sh", "-c", "while true; do echo 0123456789; sleep 0.001; done", log_file=log_file, log_bytes=500
    )
    older = tmp_path / "child.log.1"
    eventually(older.exists, "an older log")
    keeper.stop()
    assert older.read_text().startswith("0123456789\n")
    assert log_file.stat().st_mode & 0o077 == 0
    assert older.stat().st_mode & 0o077 == 0


def test_the_pid_file_is_there_while_the_child_is(kept: Callable[..., Keeper], tmp_path: Path) -> None:
    pid_file = tmp_path / "run" / "child.pid"
    keeper = kept(*SLEEPER, pid_file=pid_file)
    eventually(pid_file.exists, "the pid file")
    eventually(lambda: pid_file.read_text() == f"{pid_of(keeper)}\n", "the pid")
    keeper.stop()
    assert not pid_file.exists()


@pytest.mark.parametrize(
    ("ran", "before", "expected"),
    [(0, None, 1), (0, 1, 2), (0, 2, 4), (0, 6, 8), (0, 8, 8), (61, 8, 1), (60, 8, 1), (59, 1, 2)],
)
def test_waits_double_up_to_the_most_and_begin_anew_after_a_steady_run(
    ran: float, before: float | None, expected: float
) -> None:
    assert Backoff(first=1, most=8, steady=60).after(ran, before) == expected


def test_a_stamp_that_was_never_set_is_infinitely_old(tmp_path: Path) -> None:
    stamp = Stamp(tmp_path / "run" / "stamp")
    assert stamp.age() == float("inf")
    assert not stamp.fresher_than(1e9)()
    stamp.touch()
    assert stamp.age() < 60
    assert stamp.fresher_than(60)()
