"""The command line as a user starts it: processes that are waited for, and that no test leaves behind."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Whatever is started meanwhile hears Ctrl-C, as from a terminal.

    A shell without a terminal starts what it puts behind (`pytest &`) with SIGINT ignored, and a child inherits that.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class CommandLine:
    """Starts `wardround` with some arguments, each time as a process in a group of its own."""

    # Of a hanging process; a machine that is busy with other things may need minutes for what takes ten seconds.
    PATIENCE_S = 900.0

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        with listening():
            process = subprocess.Popen(
                [sys.executable, "-m", "wardround.deploy.cli", *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def finish(self, process: "subprocess.Popen[str]") -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        out, err = process.communicate(timeout=self.PATIENCE_S)
        return process.returncode, out, err

    def run(self, *arguments: str) -> str:
        """What a command that must succeed prints."""
        code, out, err = self.finish(self.start(*arguments))
        assert code == 0, err
        return out

    def wait_until(self, happened: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
        """Wait for something that `process` does while it runs."""
        deadline = time.monotonic() + self.PATIENCE_S
        while not happened():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def end(self) -> None:
        """Kill what still runs."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.communicate()
        self._started.clear()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A process is given up before the test that waits for it."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(2 * CommandLine.PATIENCE_S))


@pytest.fixture(scope="session")
def command_line() -> Iterator[CommandLine]:
    started = CommandLine()
    yield started
    started.end()


@pytest.fixture(autouse=True)
def _leaves_no_process(command_line: CommandLine) -> Iterator[None]:
    """A test that fails half-way must not leave its run behind: the workers end with it."""
    yield
    command_line.end()
