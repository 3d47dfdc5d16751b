"""The `wardround` command.

Errors are printed as problem, cause and fix on standard error; the exit code says which kind it was (see
:mod:`wardround.errors`). A traceback is never the answer to a user's mistake.
"""

import errno
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from wardround import __version__
from wardround.deploy import options
from wardround.deploy.compare.command import compare
from wardround.deploy.coordinator.command import app as coordinator
from wardround.deploy.launch import console, explain, launch
from wardround.deploy.site.command import app as site
from wardround.deploy.stream.command import stream
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
    data: options.Data = None,
    sites: options.Sites = None,
    cases: options.Cases = None,
    tests: options.Tests = None,
    test_fraction: options.TestFraction = 0.25,
    shift: options.Shift = 1.0,
    shape: options.Shape = "40,48,40",
    rounds: Annotated[int, typer.Option(help="Rounds of the federation.")] = 5,
    strategy: Annotated[
        str,
        typer.Option(
            help="How weights are combined, and what stays at sites: fedavg, fedprox, fedadam, fedyogi, fedavgm, "
            "fedmedian, fedtrimmedavg, krum, fedbuff, fedbn, fedper, fedrep, scaffold, fednova, moon, ditto, apfl "
            "or dpfedavg (central privacy)."
        ),
    ] = "fedavg",
    strategy_option: Annotated[
        list[str] | None, typer.Option(help="A setting of the strategy, as name=value. May be repeated.")
    ] = None,
    weighting: Annotated[
        str, typer.Option(help="How much a site counts: examples, equal, effort, trust, worst-site, afl or qffl.")
    ] = "examples",
    weighting_option: Annotated[
        list[str] | None, typer.Option(help="A setting of the weighting, as name=value. May be repeated.")
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(help="Arms beside the federation: any of dense,local,pooled,slices-only (phantoms: dense,local)."),
    ] = None,
    slow: options.Slow = None,
    seeds: options.Seeds = "0",
    effort: Annotated[int | None, typer.Option(help="Slices that are drawn on each case.")] = None,
    prompts: Annotated[
        str | None, typer.Option(help="What annotators are asked for: slices, scribbles or points (slices).")
    ] = None,
    site_prompts: Annotated[
        str | None,
        typer.Option(help="Sites that give another kind of label, as north=points,south=dense (or slices, scribbles)."),
    ] = None,
    strokes: options.Strokes = "expert",
    model: options.Model = None,
    augment: Annotated[
        str | None, typer.Option(help="none, strong, or pairs that a generator makes beside it: medsad, genseg.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="What is rehearsed: kept cases (reservoir), made pairs (generative), or both.")
    ] = None,
    distill: Annotated[
        str | None, typer.Option(help="What keeps the network from forgetting: off, lwf, certain, msmt.")
    ] = None,
    secure: Annotated[
        bool, typer.Option("--secure", help="Secure aggregation: the coordinator learns the sum of the updates only.")
    ] = False,
    codec: Annotated[
        str | None, typer.Option(help="How weights travel: none, lossless, fp16, bf16, int8, topk (none).")
    ] = None,
    privacy: Annotated[
        str | None,
        typer.Option(
            help="Whom noise protects: none; record, every case of a site; central, every site as a whole (none). "
            "Settings are fields of the plan, or of the strategy dpfedavg, such as noise_multiplier."
        ),
    ] = None,
    plan: options.Plan = None,
    engine: Annotated[str, typer.Option(help="'inprocess', or 'ray' for Flower's simulation engine.")] = "inprocess",
    device: options.Device = "auto",
    jobs: options.Jobs = None,
    out: options.Out = None,
    resume: options.Resume = None,
) -> None:
    """Run a federation of simulated sites and write its report.

    Without any option: three hospitals with drawn phantoms, in a few minutes.
    """
    from wardround.deploy import presets
    from wardround.deploy.settings import SimulationSettings, settings_from

    def settings() -> SimulationSettings:
        values: dict[str, Any] = {
            "rounds": rounds,
            "strategy": presets.strategy_under(privacy, strategy),
            "strategy_options": options.pairs(strategy_option, "--strategy-option"),
            "weighting": weighting,
            "weighting_options": options.pairs(weighting_option, "--weighting-option"),
            # What somebody says of a single field goes before what a name stands for.
            "plan": presets.preset(presets.AUGMENT, augment, "--augment")
            | presets.preset(presets.MEMORY, memory, "--memory")
            | presets.preset(presets.DISTILL, distill, "--distill")
            | presets.preset(presets.CODEC, codec, "--codec")
            | presets.preset(presets.PRIVACY, privacy, "--privacy")
            | options.pairs(plan, "--plan")
            | ({"slices_per_case": effort} if effort is not None else {})
            | ({"model": model} if model is not None else {})
            | ({"prompts": prompts} if prompts is not None else {})
            | ({"secure": True} if secure else {}),
            "site_prompts": options.pairs(options.names(site_prompts or ""), "--site-prompts", names=True),
            "slow": options.pairs(options.names(slow or ""), "--slow", names=True),
            "strokes": strokes,
            "arms": ("federated", *_others(compare if compare is not None else "dense,local" if data is None else "")),
            "seeds": options.numbers(seeds, "--seeds"),
            "engine": engine,
            "device": device,
        }
        values |= options.dealt_cases(data, sites, (cases, tests), test_fraction, (shift, shape))
        return settings_from(values)

    launch(context, SimulationSettings, settings, out=out, resume=resume, jobs=jobs)


app.command()(stream)
app.command()(compare)
app.add_typer(coordinator, name="coordinator")
app.add_typer(site, name="site")


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Folder of an experiment.")]) -> None:
    """Write the report of an experiment again, also of one that is not finished."""
    from wardround.deploy.experiment import show
    from wardround.deploy.preparation import stored_settings

    stored_settings(folder)
    show(folder, console())


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
    values = {
        "sites": sites,
        "cases": cases,
        "tests": tests,
        "shift": shift,
        "shape": options.shape(shape),
        "seed": seed,
    }
    settings = settings_from({"phantoms": values})
    assert settings.phantoms is not None
    if folder.exists():
        folder.rmdir()
    write_phantoms(folder, settings.phantoms)
    console().print(f"{sites} sites with {cases} training and {tests} test cases each in {folder}", highlight=False)


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
        explain(error.problem, error.cause, error.fix)
        return error.exit_code
    except OSError as error:
        logging.getLogger(__name__).info("an operation on a file failed", exc_info=True)
        if error.errno not in _OF_THE_DISK:
            explain(
                f"cannot use {error.filename or 'a file'}", error.strerror or type(error).__name__, "check the path"
            )
            return StorageError.exit_code
        translated = storage_error(error, Path(str(error.filename or "a file")))
        explain(translated.problem, translated.cause, translated.fix)
        return translated.exit_code
    except ClickException as error:
        explain(error.format_message(), "the command line does not fit", "see `wardround --help`")
        return UsageError.exit_code
    except (Abort, KeyboardInterrupt):
        explain("stopped", "Ctrl-C", "an experiment goes on with --resume and its folder")
        return Interrupted.exit_code
    return result if isinstance(result, int) else 0


def _others(compare: str) -> list[str]:
    return [name for name in options.names(compare) if name != "federated"]


if __name__ == "__main__":
    main()
