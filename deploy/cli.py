"""The `wardround` command.

Errors are printed as problem, cause and fix on standard error; the exit code says which kind it was (see
:mod:`wardround.errors`). A traceback is never the answer to a user's mistake.
"""

import errno
import logging
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from wardround import __version__
from wardround.errors import Interrupted, StorageError, UsageError, WardroundError
from wardround.files import storage_error

# Flower reports its use and looks for updates over the network unless it is told not to before it is imported.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

app = typer.Typer(
    name="wardround",
    help="Hospitals that learn together from a few strokes, while every image stays where it was taken.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"wardround {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and end.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log to standard error.")] = False,
) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, format="%(levelname)s %(name)s: %(message)s")


@app.command()
def simulate(  # noqa: PLR0917 - one parameter an option
    context: typer.Context,
    data: Annotated[
        Path | None, typer.Option(help="Folder of a data set with dataset.json. Without it, phantoms are drawn.")
    ] = None,
    sites: Annotated[
        str | None,
        typer.Option(
            help="Who has which case: a .json file, 'natural', 'even:K' or 'dirichlet:K:alpha'. For phantoms: how many."
        ),
    ] = None,
    cases: Annotated[int | None, typer.Option(help="At most so many streamed cases a site (phantoms: 10).")] = None,
    tests: Annotated[int | None, typer.Option(help="At most so many test cases a site (phantoms: 4).")] = None,
    test_fraction: Annotated[float, typer.Option(help="Share of subjects to test on if the split names none.")] = 0.25,
    shift: Annotated[float, typer.Option(help="Phantoms: how far the sites' scanners differ.")] = 1.0,
    shape: Annotated[str, typer.Option(help="Phantoms: voxels along each axis.")] = "40,48,40",
    rounds: Annotated[int, typer.Option(help="Rounds of the federation.")] = 5,
    strategy: Annotated[
        str, typer.Option(help="fedavg, fedprox, fedadam, fedyogi, fedavgm, fedmedian, fedtrimmedavg or krum.")
    ] = "fedavg",
    strategy_option: Annotated[
        list[str] | None, typer.Option(help="A setting of the strategy, as name=value. May be repeated.")
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(help="Arms beside the federation: any of dense,local,pooled,slices-only (phantoms: dense,local)."),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Every arm is run once for each of these.")] = "0",
    effort: Annotated[int | None, typer.Option(help="Slices that are drawn on each case.")] = None,
    model: Annotated[str | None, typer.Option(help="Network, by its name in the catalogue.")] = None,
    plan: Annotated[
        list[str] | None, typer.Option(help="Any field of the round's plan, as name=value. May be repeated.")
    ] = None,
    engine: Annotated[str, typer.Option(help="'inprocess', or 'ray' for Flower's simulation engine.")] = "inprocess",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    jobs: Annotated[int | None, typer.Option(help="Runs at once; by default one a core, if memory allows.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the experiment; must be new or empty.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the experiment in this folder.")] = None,
) -> None:
    """Run a federation of simulated sites and write its report.

    Without any option: three hospitals with drawn phantoms, in a few minutes.
    """
    from wardround.deploy.experiment import run_experiment
    from wardround.deploy.preparation import check, claim, stored_settings
    from wardround.deploy.settings import changed_settings, settings_from

    console = _console()
    given = {name for name in context.params if context.get_parameter_source(name) is not None}
    given = {name for name in given if context.get_parameter_source(name).name != "DEFAULT"}  # type: ignore[union-attr]
    free = {"context", "jobs", "resume"}
    if resume is not None and out is not None:
        raise UsageError("--resume and --out exclude each other", "an experiment stays where it is", "leave out --out")
    if resume is None or given - free:
        values: dict[str, Any] = {
            "rounds": rounds,
            "strategy": strategy,
            "strategy_options": _pairs(strategy_option, "--strategy-option"),
            "plan": _pairs(plan, "--plan")
            | ({"slices_per_case": effort} if effort is not None else {})
            | ({"model": model} if model is not None else {}),
            "arms": ("federated", *_names(compare if compare is not None else "dense,local" if data is None else "")),
            "seeds": _numbers(seeds, "--seeds"),
            "engine": engine,
            "device": device,
        }
        values |= (
            _phantom_values(sites, cases, tests, shift, shape)
            if data is None
            else _data_values(data, sites, cases, tests, test_fraction)
        )
        settings = settings_from(values)
        if resume is not None:
            stored = stored_settings(resume)
            if changed := changed_settings(stored, settings):
                raise UsageError(
                    f"{resume} was started with other settings",
                    f"these differ: {', '.join(changed)}",
                    "give --resume alone, or start a new experiment with --out",
                )
    else:
        settings = stored_settings(resume)
    jobs = jobs if jobs is not None else _default_jobs()
    if jobs < 1:
        raise UsageError(f"--jobs {jobs} cannot work", "at least one run must run", "give a number from 1 up")
    if settings.engine == "ray":
        from wardround.deploy.ray_engine import require_ray

        require_ray()
    if resume is None:
        folder = out if out is not None else _free_folder()
        check(settings)
        claim(folder, settings, _command())
        console.print(f"experiment in {folder}, seeds {', '.join(map(str, settings.seeds))}", highlight=False)
    else:
        folder = resume
    failures = run_experiment(folder, settings, jobs=jobs, console=console)
    for failure in failures:
        _explain(failure.problem, failure.cause, failure.fix, title=failure.run)
    if failures:
        raise typer.Exit(failures[0].exit_code)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Folder of an experiment.")]) -> None:
    """Write the report of an experiment again, also of one that is not finished."""
    from wardround.deploy.experiment import show
    from wardround.deploy.preparation import stored_settings

    stored_settings(folder)
    show(folder, _console())


@app.command()
def phantoms(  # noqa: PLR0917 - one parameter an option
    folder: Annotated[Path, typer.Argument(help="New folder for the data set.")],
    sites: Annotated[int, typer.Option(help="Number of sites.")] = 3,
    cases: Annotated[int, typer.Option(help="Training cases a site.")] = 10,
    tests: Annotated[int, typer.Option(help="Test cases a site.")] = 4,
    shift: Annotated[float, typer.Option(help="How far the sites' scanners differ.")] = 1.0,
    shape: Annotated[str, typer.Option(help="Voxels along each axis.")] = "40,48,40",
    seed: Annotated[int, typer.Option(help="Of the drawing.")] = 0,
) -> None:
    """Draw a data set of phantoms with dataset.json, manifest.csv and split.json."""
    from wardround.deploy.preparation import write_phantoms
    from wardround.deploy.settings import settings_from

    if folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty", "a data set is never overwritten", "choose another folder")
    values = {"sites": sites, "cases": cases, "tests": tests, "shift": shift, "shape": _shape(shape), "seed": seed}
    settings = settings_from({"phantoms": values})
    assert settings.phantoms is not None
    if folder.exists():
        folder.rmdir()
    write_phantoms(folder, settings.phantoms)
    _console().print(f"{sites} sites with {cases} training and {tests} test cases each in {folder}", highlight=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with the exit code that the error tree documents."""
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Run the command line.

    Returns
    -------
    int
        The exit code.
    """
    from click.exceptions import Abort, ClickException

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        result = typer.main.get_command(app).main(arguments, prog_name="wardround", standalone_mode=False)
    except WardroundError as error:
        _explain(error.problem, error.cause, error.fix)
        return error.exit_code
    except OSError as error:
        logging.getLogger(__name__).info("an operation on a file failed", exc_info=True)
        if error.errno not in _OF_THE_DISK:
            _explain(
                f"cannot use {error.filename or 'a file'}", error.strerror or type(error).__name__, "check the path"
            )
            return StorageError.exit_code
        translated = storage_error(error, Path(str(error.filename or "a file")))
        _explain(translated.problem, translated.cause, translated.fix)
        return translated.exit_code
    except ClickException as error:
        _explain(error.format_message(), "the command line does not fit", "see `wardround --help`")
        return UsageError.exit_code
    except (Abort, KeyboardInterrupt):
        _explain("stopped", "Ctrl-C", "an experiment goes on with `wardround simulate --resume DIR`")
        return Interrupted.exit_code
    return result if isinstance(result, int) else 0


def _console() -> Console:
    """The terminal, or wide lines where the output goes to a file or a log."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def _explain(problem: str, cause: str, fix: str, title: str = "problem") -> None:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"[bold red]{escape(title)}[/]  {escape(problem)}")
    if cause:
        console.print(f"[bold]cause[/]    {escape(cause)}")
    if fix:
        console.print(f"[bold green]fix[/]      {escape(fix)}")


def _phantom_values(
    sites: str | None, cases: int | None, tests: int | None, shift: float, shape: str
) -> dict[str, Any]:
    if sites is not None and not sites.isdecimal():
        raise UsageError(
            f"--sites {sites} needs --data", "phantoms are drawn for a number of sites", "give --data, or a number"
        )
    values: dict[str, Any] = {"shift": shift, "shape": _shape(shape)}
    for name, value in (("sites", sites), ("cases", cases), ("tests", tests)):
        if value is not None:
            values[name] = int(value)
    return {"phantoms": values}


def _data_values(
    data: Path, sites: str | None, cases: int | None, tests: int | None, test_fraction: float
) -> dict[str, Any]:
    if sites is None:
        sites = "split.json" if (data / "split.json").is_file() else "natural"
    return {
        "data": data.resolve(),
        "sites": sites,
        "cases_per_site": cases,
        "tests_per_site": tests,
        "test_fraction": test_fraction,
    }


def _names(text: str) -> list[str]:
    return [name for part in text.split(",") if (name := part.strip()) and name != "federated"]


def _numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text} is not understood", "numbers with commas are", "for example 0,1,2") from None


def _shape(text: str) -> tuple[int, ...]:
    numbers = _numbers(text.replace("x", ","), "--shape")
    if len(numbers) != 3:
        raise UsageError(f"--shape {text} is not understood", "a volume has three sides", "for example 40,48,40")
    return numbers


def _pairs(items: Sequence[str] | None, option: str) -> dict[str, Any]:
    """Parse ``name=value``: a number where it looks like one, true and false, three numbers, else text."""
    pairs: dict[str, Any] = {}
    for item in items or ():
        name, equals, value = item.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise UsageError(f"{option} {item} is not understood", "it has no name and value", "write name=value")
        pairs[name.strip().replace("-", "_")] = _value(value.strip())
    return pairs


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    parts = text.split(",")
    for kind in (int, float):
        try:
            numbers = tuple(kind(part) for part in parts)
        except ValueError:
            continue
        return numbers if len(numbers) > 1 else numbers[0]
    return text


def _default_jobs() -> int:
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
        return (Path("/sys/fs/cgroup") / name).read_text().strip()
    except OSError:
        return ""


def _free_folder() -> Path:
    """`wardround-run`, or the first such name with a number that is free."""
    number = 1
    while (folder := Path("wardround-run" if number == 1 else f"wardround-run-{number}")).exists():
        number += 1
    return folder


def _command() -> str:
    return shlex.join(["wardround", *sys.argv[1:]])


if __name__ == "__main__":
    main()
