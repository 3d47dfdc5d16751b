"""A whole experiment: every arm under every seed, several at once, with progress, and one report at the end.

Each run has a process of its own: its memory is measured alone, and what kills it kills nothing else. Workers tell
their progress through a pipe each; a worker that is killed in the middle of a word cannot block another.
"""

import contextlib
import fcntl
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable

from wardround.deploy.collection import collect
from wardround.deploy.dealing import ArmRun
from wardround.deploy.imagined import keep_imagined
from wardround.deploy.preparation import Settings, prepare
from wardround.deploy.privacy import privacy_lines
from wardround.errors import Interrupted, StorageError, UsageError, WardroundError
from wardround.files import storage_error

logger = logging.getLogger(__name__)

LOG = "run.log"
# How long a stopped worker may take to reach the next point at which it can be taken up again.
_GRACE_S = 30.0


@dataclass(frozen=True)
class Failure:
    """Why a run did not end."""

    run: str
    problem: str
    cause: str
    fix: str
    exit_code: int


def run_experiment(out: Path, settings: Settings, *, jobs: int, console: Console) -> Sequence[Failure]:
    """Prepare, run and report the experiment in `out`, going on from whatever is there.

    Parameters
    ----------
    out
        The experiment's folder, claimed for these settings.
    jobs
        Runs at once.
    console
        Where progress and the tables go.

    Returns
    -------
    sequence of Failure
        The runs that did not end; the others are in the report.

    Raises
    ------
    Interrupted
        After Ctrl-C; everything on disk can be resumed.
    WardroundError
        If the data cannot be prepared.
    """
    with _only_one(out):
        started = time.time()
        try:
            with _bars(console) as bars:
                runs = _prepare(out, settings, bars)
                failures = _run_all(runs, jobs, bars, console)
        except KeyboardInterrupt:
            raise Interrupted(
                "stopped", "Ctrl-C", f"go on with `wardround {settings.command} --resume {out}`: nothing is lost"
            ) from None
        logger.info("experiment in %s took %.0f s", out, time.time() - started)
        if len(failures) < len(runs):
            show(out, console)
        return failures


def show(out: Path, console: Console) -> None:
    """Write results.json and the report, and print the main tables.

    Raises
    ------
    DataError
        If no run has closed a round yet.
    """
    # Imported here: matplotlib takes a second that no other command should pay.
    from wardround.deploy.compare.page import write_compare_report
    from wardround.deploy.compare.tables import compare_table
    from wardround.deploy.report.page import write_report
    from wardround.deploy.report.results import load_results, save_results
    from wardround.deploy.report.tables import arm_table, drawing_table, site_table
    from wardround.deploy.stream.page import write_stream_report
    from wardround.deploy.stream.tables import stream_tables

    save_results(collect(out), out)
    results = load_results(out)
    if results.kind == "stream":
        page = write_stream_report(out)
        tables = stream_tables(results)
    elif results.kind == "compare":
        page = write_compare_report(out)
        tables = {"strategies over seeds and sites": compare_table(results)}
    else:
        keep_imagined(out)
        page = write_report(out)
        tables = {"test cases of all sites": arm_table(results), "by site": site_table(results)}
        if (drawn := drawing_table(results)).rows:
            tables["what was drawn on a case"] = drawn
    for title, table in tables.items():
        printed = RichTable(*table.headers, title=title, title_justify="left")
        for row in table.rows:
            printed.add_row(*row)
        console.print(printed)
    for line in privacy_lines(out):
        console.print(line, highlight=False)
    console.print(f"report: {page}")


def _prepare(out: Path, settings: Settings, bars: Progress) -> tuple[ArmRun, ...]:
    bar = bars.add_task("preparing", total=None, detail="")

    def report(what: str, done: int, total: int) -> None:
        bars.update(bar, description=what, completed=done, total=total)

    runs = prepare(out, settings, report)
    bars.remove_task(bar)
    return runs


def _run_all(runs: Sequence[ArmRun], jobs: int, bars: Progress, console: Console) -> list[Failure]:
    waiting = list(reversed(runs))
    whole = bars.add_task("all runs", total=len(waiting), detail="") if len(waiting) > 1 else None
    running: dict[Connection, _Worker] = {}
    failures: list[Failure] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                worker = _Worker.start(waiting.pop(), bars, console)
                running[worker.pipe] = worker
            for ready in wait(list(running), timeout=1.0):
                assert isinstance(ready, Connection)
                if running[ready].heard():
                    continue
                worker = running.pop(ready)
                if (failure := worker.ended()) is not None:
                    failures.append(failure)
                    console.print(f"[bold red]{failure.run} failed[/]: {failure.problem}", highlight=False)
                if whole is not None:
                    bars.advance(whole)
    finally:
        _stop_all(list(running.values()), console)
    return failures


def _stop_all(workers: Sequence["_Worker"], console: Console) -> None:
    """Ask every worker to stop at the next step; whoever does not, or a second Ctrl-C, is ended at once."""
    if not workers:
        return
    try:
        for worker in workers:
            worker.ask_to_stop()
        with contextlib.suppress(KeyboardInterrupt):
            console.print("stopping at the next step; Ctrl-C again to stop at once")
            deadline = time.monotonic() + _GRACE_S
            for worker in workers:
                while worker.process.is_alive() and time.monotonic() < deadline:
                    worker.drain()
                    worker.process.join(0.05)
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.join()


class _Worker:
    """A process at work on one run, and its bar."""

    def __init__(self, run: ArmRun, process: SpawnProcess, pipe: Connection, bars: Progress, bar: TaskID) -> None:
        self.run = run
        self.process = process
        self.pipe = pipe
        self._bars = bars
        self._bar = bar
        self._failure: Failure | None = None
        self._finished = False

    @classmethod
    def start(cls, run: ArmRun, bars: Progress, console: Console) -> "_Worker":
        """Start a process that runs `run`."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(str(run.folder), theirs), name=run.name, daemon=True)
        with _single_threaded(), _no_interrupts():
            process.start()
        theirs.close()
        bar = bars.add_task(run.name, total=1.0, detail="starting")
        if not console.is_terminal:
            console.print(f"{run.name}: started")
        return cls(run, process, ours, bars, bar)

    def heard(self) -> bool:
        """Take one message; False when there will be no more."""
        try:
            kind, content = self.pipe.recv()
        except (EOFError, OSError):
            return False
        if kind == "progress":
            dice = "" if content.dice is None else f", Dice {content.dice:.2f}"
            detail = f"{content.phase} {content.site}, round {content.round}/{content.rounds}{dice}"
            self._bars.update(self._bar, completed=content.fraction, detail=detail)
        elif kind == "failure":
            self._failure = content
        else:
            self._finished = True
        return True

    def ask_to_stop(self) -> None:
        """Whatever is sent to a worker means stop."""
        with contextlib.suppress(OSError):
            self.pipe.send(None)

    def drain(self) -> None:
        """Throw away what the worker says: one that waits for a full pipe would never stop.

        Read as bytes, since Ctrl-C may have come in the middle of a message.
        """
        with contextlib.suppress(OSError):
            while self.pipe.poll(0.1) and os.read(self.pipe.fileno(), 65536):
                pass

    def ended(self) -> Failure | None:
        """Wait for the process's end; why it failed, or None."""
        self.process.join()
        self.pipe.close()
        if self._finished:
            self._bars.update(self._bar, completed=1.0, detail="done")
            if not self._bars.console.is_terminal:
                self._bars.console.print(f"{self.run.name}: done")
            return None
        self._bars.update(self._bar, detail="[red]failed")
        return self._failure or Failure(
            self.run.name,
            f"its process ended with code {self.process.exitcode}",
            "it was killed, most often for want of memory",
            "resume with fewer --jobs",
            1,
        )


def _work(folder: str, pipe: Connection) -> None:
    """A worker's main function."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    path = Path(folder)
    _log_to(path / LOG)

    def failed(problem: str, cause: str, fix: str, code: int) -> None:
        pipe.send(("failure", Failure(path.name, problem, cause, fix, code)))

    try:
        import torch

        from wardround.deploy.simulation import run_arm

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        run_arm(path, listen=lambda progress: pipe.send(("progress", progress)), stop=pipe.poll)
        pipe.send(("done", None))
    except WardroundError as error:
        logger.exception("%s failed", path.name)
        failed(error.problem, error.cause, error.fix, error.exit_code)
    except OSError as error:
        logger.exception("%s failed", path.name)
        translated = storage_error(error, Path(error.filename) if isinstance(error.filename, str) else path)
        failed(translated.problem, translated.cause, translated.fix, StorageError.exit_code)
    except Exception as error:
        logger.exception("%s failed", path.name)
        cause = f"{type(error).__name__}: {error}"
        failed("an unexpected error", cause, f"the traceback is in {path / LOG}; please report it", 1)


def _log_to(path: Path) -> None:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    flower = logging.getLogger("flwr")
    flower.handlers.clear()
    flower.setLevel(logging.INFO)
    flower.propagate = True


def _die_with_parent() -> None:
    """End this process at once when its parent is gone: nobody would ever stop it."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _single_threaded() -> Iterator[None]:
    """Let a child start with one thread for its arithmetic: more would compete, and change the sums' last bits."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    """Let a child inherit that Ctrl-C is not for it: the parent tells it to stop."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def _only_one(out: Path) -> Iterator[None]:
    with (out / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"{out} is in use", "another `wardround` is running there", "wait for it, or stop it"
            ) from None
        yield


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}", style="dim"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
