"""From the options of a command to an experiment that runs: new or taken up again, with its errors explained."""

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

from wardround.deploy.preparation import Settings, stored_settings
from wardround.deploy.settings import changed_settings
from wardround.errors import UsageError

_NOT_OF_THE_EXPERIMENT = frozenset({"context", "jobs", "resume"})


def launch(
    context: typer.Context,
    kind: type[Settings],
    read_options: Callable[[], Settings],
    *,
    out: Path | None,
    resume: Path | None,
    jobs: int | None,
) -> None:
    """Start the experiment that the options describe, or go on with the one in `resume`, and report it.

    Parameters
    ----------
    context
        Tells which options were given.
    kind
        Of the command's experiments.
    read_options
        Makes settings of the options.
    out, resume, jobs
        The options of that name.

    Raises
    ------
    UsageError
        If the options do not fit together, or not to the experiment in `resume`.
    typer.Exit
        If runs failed, with the first one's exit code.
    """
    from wardround.deploy.experiment import run_experiment
    from wardround.deploy.preparation import check, claim

    terminal = console()
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source is not None and source.name != "DEFAULT"}
    if resume is not None and out is not None:
        raise UsageError("--resume and --out exclude each other", "an experiment stays where it is", "leave out --out")
    if resume is None:
        settings = read_options()
    else:
        settings = _stored(resume, kind, read_options if given - _NOT_OF_THE_EXPERIMENT else None)
    jobs = jobs if jobs is not None else default_jobs()
    if jobs < 1:
        raise UsageError(f"--jobs {jobs} cannot work", "at least one run must run", "give a number from 1 up")
    if getattr(settings, "engine", "") == "ray":
        from wardround.deploy.ray_engine import require_ray

        require_ray()
    if resume is None:
        folder = out if out is not None else _free_folder()
        check(settings)
        claim(folder, settings, shlex.join(["wardround", *sys.argv[1:]]))
        terminal.print(f"experiment in {folder}, seeds {', '.join(map(str, settings.seeds))}", highlight=False)
    else:
        folder = resume
    failures = run_experiment(folder, settings, jobs=jobs, console=terminal)
    for failure in failures:
        explain(failure.problem, failure.cause, failure.fix, title=failure.run)
    if failures:
        raise typer.Exit(failures[0].exit_code)


def _stored(folder: Path, kind: type[Settings], read_options: Callable[[], Settings] | None) -> Settings:
    """The settings of the experiment in `folder`, which must be those of the options, where there are any."""
    stored = stored_settings(folder)
    if not isinstance(stored, kind):
        raise UsageError(
            f"{folder} was started with `wardround {stored.command}`",
            "each command goes on with its own experiments",
            f"go on with `wardround {stored.command} --resume {folder}`",
        )
    if read_options is not None and (changed := changed_settings(stored, read_options())):
        raise UsageError(
            f"{folder} was started with other settings",
            f"these differ: {', '.join(changed)}",
            "give --resume alone, or start a new experiment with --out",
        )
    return stored


def console() -> Console:
    """The terminal, or wide lines where the output goes to a file or a log."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=160)


def explain(problem: str, cause: str, fix: str, title: str = "problem") -> None:
    """Print what went wrong, why and what to do, on standard error."""
    terminal = Console(stderr=True, soft_wrap=True, highlight=False)
    terminal.print(f"[bold red]{escape(title)}[/]  {escape(problem)}")
    if cause:
        terminal.print(f"[bold]cause[/]    {escape(cause)}")
    if fix:
        terminal.print(f"[bold green]fix[/]      {escape(fix)}")


def default_jobs() -> int:
    """One run a core, as long as each has a gigabyte of the memory that is free; limits of a container count."""
    import psutil

    cores: float = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory: float = psutil.virtual_memory().available
    quota = _control_group("cpu.max").split()
    if len(quota) == 2 and quota[0].isdecimal():
        cores = min(cores, int(quota[0]) / int(quota[1]))
    if (limit := _control_group("memory.max")).isdecimal():
        memory = min(memory, int(limit) - int(_control_group("memory.current") or 0))
    return max(1, min(round(cores), int(memory / 1e9)))


def _control_group(name: str) -> str:
    """A value of this container's control group (Linux, version 2); empty where there is none."""
    try:
        return (Path("/sys/fs/cgroup") / name).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _free_folder() -> Path:
    """`wardround-run`, or the first such name with a number that is free."""
    number = 1
    while (folder := Path("wardround-run" if number == 1 else f"wardround-run-{number}")).exists():
        number += 1
    return folder
