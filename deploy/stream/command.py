"""`wardround stream`: its options."""

from typing import Annotated, Any

import typer

from wardround.deploy import options
from wardround.deploy.launch import launch

PHANTOM_SITES, PHANTOM_CASES, PHANTOM_TESTS = 3, 18, 9
"""What a stream of phantoms has where nothing else is said."""


def stream(  # noqa: PLR0917 - one parameter an option
    context: typer.Context,
    data: options.Data = None,
    sites: Annotated[
        str | None,
        typer.Option(
            help="Which case is from where: a .json file, 'natural', 'even:K' or 'dirichlet:K:alpha'. "
            "For phantoms: how many."
        ),
    ] = None,
    arms: Annotated[
        str | None,
        typer.Option(
            help="Arms by name, any of proxy, dense, slices-only, scribbles, points, crf, attentive, random, even, "
            "information, residual, residual-sampled, no-replay, random-subset, reservoir, class-balanced, "
            "most-interfered (default: proxy,dense,slices-only)."
        ),
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(help="An arm of your own, as NAME:field=value,field=value of the plan. May be repeated."),
    ] = None,
    budgets: Annotated[str, typer.Option(help="Slices drawn on a case; each arm is run with each.")] = "4,8",
    order: Annotated[str, typer.Option(help="'shuffled', or 'by-site': one site after the other.")] = "shuffled",
    cases: Annotated[int | None, typer.Option(help="At most so many streamed cases (phantoms: 18).")] = None,
    tests: Annotated[int | None, typer.Option(help="At most so many test cases (phantoms: 9).")] = None,
    test_fraction: options.TestFraction = 0.25,
    shift: options.Shift = 1.0,
    shape: options.Shape = "32,40,32",
    chunks: Annotated[int, typer.Option(help="Memory is rehearsed so many times, evenly over the stream.")] = 8,
    seeds: options.Seeds = "0",
    model: options.Model = None,
    plan: options.Plan = None,
    strokes: options.Strokes = "expert",
    evaluate_every: Annotated[
        int, typer.Option(help="Score test cases after every so many chunks too; 0: by the final model only.")
    ] = 0,
    device: options.Device = "auto",
    jobs: options.Jobs = None,
    out: options.Out = None,
    resume: options.Resume = None,
) -> None:
    """Run one site over a stream of cases under several arms, and draw Dice against effort.

    Without any option: drawn phantoms, in about two minutes.
    """
    from wardround.deploy.stream.arms import named_arms, split_definition
    from wardround.deploy.stream.settings import StreamSettings, stream_settings_from

    def settings() -> StreamSettings:
        named = arms if arms is not None else "proxy,dense,slices-only" if not arm else ""
        wanted: dict[str, Any] = dict(named_arms(options.names(named)))
        for definition in arm or ():
            name, fields = split_definition(definition)
            wanted[name] = options.pairs(fields, f"--arm {name}:")
        values: dict[str, Any] = {
            "arms": wanted,
            "budgets": options.numbers(budgets, "--budgets"),
            "order": order,
            "chunks": chunks,
            "cases": cases,
            "tests": tests,
            "seeds": options.numbers(seeds, "--seeds"),
            "plan": options.pairs(plan, "--plan") | ({"model": model} if model is not None else {}),
            "strokes": strokes,
            "evaluate_every": evaluate_every,
            "device": device,
        }
        if data is None:
            drawn = options.phantoms(sites, None, None, shift, shape)
            count = drawn.setdefault("sites", PHANTOM_SITES)
            values["cases"] = cases if cases is not None else PHANTOM_CASES
            values["tests"] = tests if tests is not None else PHANTOM_TESTS
            each = {name: -(-max(1, values[name]) // max(1, count)) for name in ("cases", "tests")}
            values["phantoms"] = drawn | each
        else:
            values |= options.data_set(data, sites, test_fraction)
        return stream_settings_from(values)

    launch(context, StreamSettings, settings, out=out, resume=resume, jobs=jobs)
