"""Keep a child process alive, and never leave one behind.

A :class:`Keeper` starts one program, starts it again when it ends, and ends it when asked to. The child leads a process
group of its own, dies when its parent does (also when the parent is killed), writes what it says to one bounded log,
and is ended when a question about its health is answered with no: a process that is up and does nothing is worse than
one that is down.

Run as a script, this file is what stands between the two: it asks the kernel to be told of the parent's death and then
becomes the program. That cannot be done between fork and exec of a process with threads.
"""

import ctypes
import errno
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
"""Number of the question to the kernel, from ``linux/prctl.h``."""
SWEEP_PATIENCE = 5.0
"""Seconds that the rest of a process group gets between the two signals."""


@dataclass(frozen=True)
class Backoff:
    """How long a child that ended stays down.

    Parameters
    ----------
    first, most
        Seconds before the first restart, and the most that doubling leads to.
    steady
        A child that ran for so many seconds begins anew with `first`.
    """

    first: float = 0.5
    most: float = 30.0
    steady: float = 60.0

    def after(self, ran: float, before: float | None) -> float:
        """Seconds to wait now, when the child ran for `ran` seconds and the last wait was `before`."""
        if before is None or ran >= self.steady:
            return self.first
        return min(self.most, before * 2)


@dataclass(frozen=True)
class Status:
    """What is known of a kept child.

    Parameters
    ----------
    pid
        None while it is down.
    restarts
        How often it was started again.
    exit_code
        Of its last end, negative for a signal; None as long as it never ended.
    since
        When it last came up or went down, in seconds since the epoch.
    """

    pid: int | None = None
    restarts: int = 0
    exit_code: int | None = None
    since: float = 0.0


class Stamp:
    """A file whose age says when somebody last made progress.

    Parameters
    ----------
    path
        The file; only its time of modification counts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def touch(self) -> None:
        """Say that progress was made now."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch(mode=0o600)

    def age(self) -> float:
        """Seconds since the last progress; infinity if there was none."""
        try:
            return max(0.0, time.time() - self.path.stat().st_mtime)
        except FileNotFoundError:
            return float("inf")

    def fresher_than(self, limit: float) -> Callable[[], bool]:
        """A question for a :class:`Keeper`: was there progress in the last `limit` seconds?"""
        return lambda: self.age() < limit


class Keeper:
    """Keeps one child process alive until :meth:`stop`.

    Parameters
    ----------
    name
        For logs, and for the pid file.
    arguments
        The program and its arguments; a name without a slash is looked for in the child's ``PATH``.
    environment
        All of the child's environment; None hands on ours.
    log_file
        Where its output goes, appended; None hands on our output. It is kept below twice `log_bytes`, with the older
        half beside it under ``.1``.
    pid_file
        Where the child's pid is written while it runs. What a keeper for this file left, because it was killed, is
        ended before the first child is started.
    alive
        Asked every `check_every` seconds once the child is older than `settle`; "no" ends the child, and the next one
        is started.
    grace
        Seconds between SIGTERM and SIGKILL.
    backoff
        How long to wait between an end and the next start.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        log_file: Path | None = None,
        log_bytes: int = 10_000_000,
        pid_file: Path | None = None,
        alive: Callable[[], bool] | None = None,
        check_every: float = 5.0,
        settle: float = 30.0,
        grace: float = 10.0,
        backoff: Backoff | None = None,
    ) -> None:
        self.name = name
        self._arguments = list(arguments)
        self._environment = dict(os.environ if environment is None else environment)
        self._log_file = log_file
        self._log_bytes = log_bytes
        self._pid_file = None if pid_file is None else pid_file.absolute()
        self._alive = alive
        self._check_every = check_every
        self._settle = settle
        self._grace = grace
        self._backoff = backoff or Backoff()
        self._status = Status(since=time.time())
        self._stopping = threading.Event()
        self._wanted = threading.Event()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._thread = threading.Thread(target=self._run, name=f"keeper-{name}", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def status(self) -> Status:
        """What is known now."""
        return self._status

    def start(self) -> None:
        """Start the child and keep it. Returns at once."""
        self._thread.start()

    def restart(self) -> None:
        """End the child; the next one follows without a wait."""
        self._wanted.set()
        self._wake()

    def stop(self) -> None:
        """End the child and keep none. Returns when the child and what is left of its group are gone."""
        self._stopping.set()
        self._wake()
        if self._thread.is_alive():
            self._thread.join()

    def _wake(self) -> None:
        try:
            self._wake_writer.send(b".")
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EBADF):
                raise

    def _run(self) -> None:
        waited: float | None = None
        if self._pid_file is not None:
            # Imported here: as a script, this file has no package around it.
            from wardround import leftovers

            leftovers.end(self._pid_file, SWEEP_PATIENCE)
            self._environment |= leftovers.mark(self._pid_file)
        while not self._stopping.is_set():
            began = time.monotonic()
            self._wanted.clear()
            child = self._spawn()
            if child is not None:
                code = self._attend(child)
                self._note(pid=None, exit_code=code)
                log.info("%s ended with %d", self.name, code)
            if self._stopping.is_set():
                return
            if self._wanted.is_set():
                waited = None
            else:
                waited = self._backoff.after(time.monotonic() - began, waited)
                self._sleep(waited)
            self._note(restarts=self._status.restarts + 1)

    def _spawn(self) -> "subprocess.Popen[bytes] | None":
        stand_in = [sys.executable, "-I", "-S", __file__, str(os.getpid()), *self._arguments]
        try:
            output = self._open_log()
        except OSError as error:
            log.error("cannot write the log of %s (%s)", self.name, error.strerror)
            output = None
        try:
            child = subprocess.Popen(  # noqa: S603 - arguments come from our own code, no shell
                stand_in,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                start_new_session=True,
            )
        except OSError as error:
            log.error("cannot start %s (%s)", self.name, error.strerror)
            return None
        finally:
            if output is not None:
                os.close(output)
        self._note(pid=child.pid)
        self._write_pid(child.pid)
        return child

    def _attend(self, child: "subprocess.Popen[bytes]") -> int:
        """Watch `child` until it ends, by itself or because it has to."""
        began = time.monotonic()
        handle = os.pidfd_open(child.pid)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(handle, selectors.EVENT_READ, "ended")
                selector.register(self._wake_reader, selectors.EVENT_READ, "woken")
                while True:
                    events = {key.data for key, _ in selector.select(self._check_every)}
                    self._drain()
                    if "ended" in events:
                        return self._bury(child)
                    if self._stopping.is_set() or self._wanted.is_set() or self._is_stuck(time.monotonic() - began):
                        return self._end(child, handle)
                    self._trim_log()
        finally:
            os.close(handle)

    def _is_stuck(self, age: float) -> bool:
        if self._alive is None or age < self._settle:
            return False
        try:
            healthy = self._alive()
        except Exception:
            log.exception("the question about the health of %s failed", self.name)
            healthy = False
        if not healthy:
            log.error("%s is up but makes no progress; it is ended and started again", self.name)
        return not healthy

    def _end(self, child: "subprocess.Popen[bytes]", handle: int) -> int:
        with selectors.DefaultSelector() as selector:
            selector.register(handle, selectors.EVENT_READ)
            child.terminate()
            if not selector.select(self._grace):
                log.warning("%s did not end within %g s of SIGTERM", self.name, self._grace)
                child.kill()
                selector.select()
        return self._bury(child)

    def _bury(self, child: "subprocess.Popen[bytes]") -> int:
        """End what `child` left in its group, then reap it: until then its number cannot name another group."""
        deadline = time.monotonic() + SWEEP_PATIENCE
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not _signal_group(child.pid, number):
                break
            while number == signal.SIGTERM and _others_in_group(child.pid) and time.monotonic() < deadline:
                time.sleep(0.05)
        if self._pid_file is not None:
            self._pid_file.unlink(missing_ok=True)
        return child.wait()

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_reader, selectors.EVENT_READ)
            while not self._stopping.is_set() and not self._wanted.is_set():
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                selector.select(left)
                self._drain()

    def _drain(self) -> None:
        try:
            while self._wake_reader.recv(64):
                pass
        except BlockingIOError:
            pass

    def _note(self, **changes: int | None) -> None:
        self._status = replace(self._status, since=time.time(), **changes)  # type: ignore[arg-type]

    def _write_pid(self, pid: int) -> None:
        if self._pid_file is None:
            return
        try:
            self._pid_file.parent.mkdir(parents=True, exist_ok=True)
            self._pid_file.write_text(f"{pid}\n", encoding="utf-8")
        except OSError as error:
            log.error("cannot write the pid of %s (%s)", self.name, error.strerror)

    def _open_log(self) -> int | None:
        if self._log_file is None:
            return None
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        return os.open(self._log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def _trim_log(self) -> None:
        """Move a log that has grown aside. The child holds it open for appending, so it is copied and emptied."""
        if self._log_file is None:
            return
        try:
            if self._log_file.stat().st_size < self._log_bytes:
                return
            older = self._log_file.with_name(self._log_file.name + ".1")
            older.write_bytes(self._log_file.read_bytes())
            older.chmod(0o600)
            os.truncate(self._log_file, 0)
        except OSError as error:
            log.error("cannot trim the log of %s (%s)", self.name, error.strerror)


def _signal_group(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _others_in_group(group: int) -> bool:
    """Whether a process other than the leader, which has ended, is in `group`."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or entry.name == str(group):
            continue
        try:
            fields = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if fields[2] == str(group) and fields[0] not in "ZX":
            return True
    return False


def _become(parent: int, arguments: Sequence[str]) -> None:
    """Turn into `arguments`, with SIGTERM to come when `parent` ends."""
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
        if prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
            sys.exit(f"prctl failed: {os.strerror(ctypes.get_errno())}")
        if os.getppid() != parent:  # it ended before the kernel knew that we care
            sys.exit(1)
    try:
        os.execvp(arguments[0], list(arguments))  # noqa: S606 - that is what this script is for
    except OSError as error:
        sys.exit(f"cannot start {arguments[0]}: {error.strerror}")


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
