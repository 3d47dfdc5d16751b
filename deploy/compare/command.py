"""`wardround compare`: its options."""

from typing import Annotated, Any

import typer

from wardround.deploy import options
from wardround.deploy.launch import launch
from wardround.errors import UsageError

_STRATEGIES = "fedavg,fedprox,fedadam,fedtrimmedavg"


def compare(  # noqa: PLR0917 - one parameter an option
    context: typer.Context,
    data: options.Data = None,
    sites: options.Sites = None,
    strategies: Annotated[
        str | None, typer.Option(help=f"Strategies of the catalogue (default: {_STRATEGIES}).")
    ] = None,
    weightings: Annotated[
        str | None, typer.Option(help="fedavg under these rules too: equal, effort, trust, worst-site, afl or qffl.")
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            help="An arm of your own, as NAME:strategy=…,weighting=…,option=value; what is no option is a field of "
            "the plan. May be repeated."
        ),
    ] = None,
    beside: Annotated[str, typer.Option(help="Any of pooled, local, dense.")] = "pooled,local",
    cases: options.Cases = None,
    tests: options.Tests = None,
    test_fraction: options.TestFraction = 0.25,
    shift: options.Shift = 2.0,
    shape: options.Shape = "32,40,32",
    rounds: Annotated[int, typer.Option(help="Rounds of every federation.")] = 5,
    slow: options.Slow = None,
    seeds: options.Seeds = "0,1,2",
    model: options.Model = None,
    plan: options.Plan = None,
    strokes: options.Strokes = "expert",
    device: options.Device = "auto",
    jobs: options.Jobs = None,
    out: options.Out = None,
    resume: options.Resume = None,
) -> None:
    """Run strategies over the same seeds and sites, and put them into one table and one picture.

    Without any option: three hospitals with drawn phantoms whose scanners differ much.
    """
    from wardround.deploy.compare.settings import CompareSettings, compare_settings_from, named_arms, own_arm
    from wardround.deploy.stream.arms import split_definition

    def settings() -> CompareSettings:
        default = "" if arm or weightings is not None else _STRATEGIES
        named = named_arms(
            options.names(strategies if strategies is not None else default), options.names(weightings or "")
        )
        for definition in arm or ():
            name, fields = split_definition(definition)
            if name in named:
                raise UsageError(
                    f"there are two arms called {name}", "their results could not be told apart", "rename the --arm"
                )
            named[name] = own_arm(options.pairs(fields, f"--arm {name}:"))
        values: dict[str, Any] = {
            "arms": named,
            "beside": tuple(options.names(beside)),
            "rounds": rounds,
            "slow": options.pairs(options.names(slow or ""), "--slow", names=True),
            "seeds": options.numbers(seeds, "--seeds"),
            "plan": options.pairs(plan, "--plan") | ({"model": model} if model is not None else {}),
            "strokes": strokes,
            "device": device,
        }
        values |= options.dealt_cases(data, sites, (cases, tests), test_fraction, (shift, shape))
        return compare_settings_from(values)

    launch(context, CompareSettings, settings, out=out, resume=resume, jobs=jobs)
