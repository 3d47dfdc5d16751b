"""`wardround coordinator`: its commands and their options."""

import datetime
import logging
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from wardround.deploy import options
from wardround.errors import ConnectionFailed, UsageError, WardroundError
from wardround.files import write_bytes

if TYPE_CHECKING:
    from wardround.deploy.coordinator.registry import Member
    from wardround.deploy.coordinator.runs import Run
    from wardround.server.home import CoordinatorHome

app = typer.Typer(
    name="coordinator",
    help="Lead a federation: invite sites, serve them, run rounds.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Home = Annotated[
    Path,
    typer.Option("--home", envvar="WARDROUND_COORDINATOR", help="The coordinator's folder.", show_default=True),
]
_HOME = Path("coordinator")
_RunName = Annotated[str, typer.Argument(metavar="RUN", help="Name of the run.")]

_PATIENCE_S = 30.0
_LOOK_S = 0.2


@app.command()
def init(  # noqa: PLR0917 - one parameter an option
    name: Annotated[
        list[str], typer.Option("--name", help="Host name or address under which sites reach it. May be repeated.")
    ],
    home: Home = _HOME,
    port: Annotated[int, typer.Option(help="Public port, for sites.")] = 8443,
    runtime_port: Annotated[int, typer.Option(help="Port on 127.0.0.1 for operator and apps.")] = 8444,
    status_port: Annotated[int, typer.Option(help="Port of the coordinator's page; 0 for none.")] = 8445,
    host: Annotated[str, typer.Option(help="Address that the public port listens on.")] = "0.0.0.0",  # noqa: S104
    url: Annotated[
        str | None, typer.Option(help="What sites dial, where it is not https://NAME:PORT of the first name.")
    ] = None,
    quorum: Annotated[int, typer.Option(help="Sites that a round needs where a run does not say it.")] = 2,
) -> None:
    """Make a coordinator's folder: settings, authority, server certificate, operator's token."""
    from wardround.deploy.coordinator.setup import make_home

    given: dict[str, str | int] = {
        "host": host,
        "port": port,
        "runtime-port": runtime_port,
        "status-port": status_port,
        "quorum": quorum,
    }
    place, authority, bundle = make_home(home, name, url, given, _now())
    terminal = _console()
    terminal.print(f"coordinator in {place.path}")
    terminal.print(f"fingerprint of its authority, to be compared on the telephone:\n  {authority.fingerprint}")
    terminal.print(f"app bundle that sites will be asked to approve:\n  {bundle.stem}")


@app.command()
def invite(
    site: Annotated[str, typer.Argument(help="Name of the site.")],
    home: Home = _HOME,
    out: Annotated[Path | None, typer.Option(help="The file to write [default: SITE.invitation.json].")] = None,
    days: Annotated[float, typer.Option(help="It is good for so long.", min=0.01, max=365)] = 14,
    renew: Annotated[bool, typer.Option("--renew", help="For a site that has enrolled and makes a new key.")] = False,
) -> None:
    """Write an invitation: one small file to be sent to a site."""
    from wardround.deploy.coordinator.registry import Registry
    from wardround.deploy.provisioning import Authority, make_invitation

    place = _home(home)
    target = out if out is not None else Path(f"{site}.invitation.json")
    if target.exists():
        raise UsageError(f"{target} exists", "nothing is ever overwritten", "move it away, or give another --out")
    authority = Authority(place.ca)
    invitation, content = make_invitation(authority, place.settings.url, site, _now(), days)
    Registry(place.sites).invite(invitation, _now(), renew=renew)
    write_bytes(target, content)
    terminal = _console()
    terminal.print(f"invitation for {site} in {target}, good until {invitation.expires:%Y-%m-%d %H:%M} UTC")
    terminal.print(f"send it, and let the site compare the fingerprint on the telephone:\n  {authority.fingerprint}")


@app.command()
def enrol(
    file: Annotated[Path, typer.Argument(help="What the site sent back: enrolment.json.")],
    home: Home = _HOME,
) -> None:
    """Take a site in that answered its invitation."""
    from wardround.deploy.coordinator.registry import Registry
    from wardround.deploy.provisioning import read_enrolment

    place = _home(home)
    registry = Registry(place.sites)
    member = registry.enrol(read_enrolment(file), _now())
    terminal = _console()
    terminal.print(f"its key, to be compared on the telephone; if it is another one there, evict it:\n  {_key(member)}")
    if not place.is_serving():
        terminal.print(f"site {member.name} has enrolled; it may connect as soon as `wardround coordinator serve` runs")
        return
    deadline = time.monotonic() + _PATIENCE_S
    while (found := registry.get(member.name)).state == "enrolled":
        if time.monotonic() > deadline:
            raise ConnectionFailed(
                f"site {member.name} has enrolled, but the SuperLink was not told yet",
                f"it did not answer within {_PATIENCE_S:.0f} s",
                "look into logs/superlink.log; it is told as soon as it answers",
            )
        time.sleep(_LOOK_S)
    terminal.print(f"site {found.name} may connect (node {found.node_id})")


@app.command()
def evict(
    site: Annotated[str, typer.Argument(help="Name of the site.")],
    home: Home = _HOME,
) -> None:
    """Let a site take part no more. Its key is good for nothing from now on."""
    from wardround.deploy.coordinator.registry import Registry

    place = _home(home)
    member = Registry(place.sites).evict(site, _now())
    when = "at once" if place.is_serving() else "as soon as `wardround coordinator serve` runs"
    _console().print(f"site {member.name} is evicted: it is cut off {when}")


@app.command()
def renew(home: Home = _HOME) -> None:
    """Make the server's key and certificate anew, from the same authority. Sites need nothing for it."""
    from wardround.deploy.coordinator.service import issue_certificate, shown_certificate

    place = _home(home)
    facts = issue_certificate(place)
    terminal = _console()
    terminal.print(f"a new certificate for {', '.join(facts.names)}, valid until {facts.not_after:%Y-%m-%d}")
    if not place.is_serving():
        terminal.print("it is shown as soon as `wardround coordinator serve` runs")
        return
    terminal.print("the SuperLink starts again, to show it; sites come back by themselves, and runs go on")
    deadline = time.monotonic() + _PATIENCE_S * 4
    while (shown := shown_certificate(place)) is None or shown.fingerprint != facts.fingerprint:
        if time.monotonic() > deadline or not place.is_serving():
            raise ConnectionFailed(
                "the new certificate is on the disk, but is not shown yet",
                "the SuperLink did not start again",
                "look into logs/superlink.log, and restart `wardround coordinator serve`",
            )
        time.sleep(_LOOK_S)
    terminal.print("it is shown from now on")


@app.command()
def serve(home: Home = _HOME) -> None:
    """Serve sites and keep runs going, until Ctrl-C or SIGTERM."""
    from wardround.deploy.coordinator.service import serve as serve_home

    place = _home(home)
    logging.getLogger("wardround").setLevel(logging.INFO)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    settings = place.settings
    terminal = _console()
    serve_home(
        place,
        stop,
        ready=lambda: terminal.print(
            f"serving sites at {settings.url}"
            + (f", page at http://{settings.status_host}:{settings.status_port}" if settings.status_port else "")
        ),
    )


@app.command()
def run(  # noqa: PLR0917 - one parameter an option
    context: typer.Context,
    name: _RunName,
    home: Home = _HOME,
    rounds: Annotated[int, typer.Option(help="Rounds of the run.", min=1)] = 10,
    model: Annotated[str, typer.Option(help="Network, by its name in the catalogue.")] = "unet3d-small",
    labels: Annotated[int, typer.Option(help="Number of classes, background included.", min=2)] = 3,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn at random.", min=0)] = 0,
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
    quorum: Annotated[
        int | None, typer.Option(help="Sites that a round needs [default: of the coordinator].", min=1)
    ] = None,
    deadline: Annotated[float, typer.Option(help="Seconds to wait for sites and for their replies.")] = 3600.0,
    evaluate_every: Annotated[
        int, typer.Option(help="Score test cases after every so many rounds too; 0: after the last only.", min=0)
    ] = 0,
    plan: Annotated[
        list[str] | None, typer.Option(help="Any field of the round's plan, as name=value. May be repeated.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option(help="Any other setting of the round loop, as name=value. May be repeated.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Ask for it, and do not watch.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped or failed.")] = False,
) -> None:
    """Ask for a run of the federation, and watch it."""
    from wardround.deploy.coordinator import runs
    from wardround.deploy.coordinator.asking import run_settings
    from wardround.deploy.coordinator.follow import follow

    place = _home(home)
    terminal = _console()
    if resume:
        _only(context, "name", "home", "detach", "resume")
        found = runs.find(place, name)
        # Not wanted, and not over: it was stopped while nobody served, and would be ended by whoever does.
        over = found.phase in ("failed", "stopped") or (found.phase == "finished" and not found.complete)
        if over or not found.request.wanted:
            found = found.ask(wanted=True)
    else:
        settings = run_settings(
            place.run_folder(name),
            {
                "run": name,
                "rounds": rounds,
                "model": model,
                "labels": labels,
                "seed": seed,
                "deadline-s": deadline,
                "strategy": strategy,
                "weighting": weighting,
                "quorum": place.settings.quorum if quorum is None else quorum,
                "evaluate-every": evaluate_every,
            },
            plan=options.pairs(plan, "--plan"),
            loop=options.pairs(setting, "--setting"),
            strategy=options.pairs(strategy_option, "--strategy-option"),
            weighting=options.pairs(weighting_option, "--weighting-option"),
        )
        found = runs.create(place, name, settings, _now())
    serving = place.is_serving()
    terminal.print(f"run {name} in {found.folder}")
    if detach or not serving:
        if not serving:
            terminal.print("it begins as soon as `wardround coordinator serve` runs")
        return
    follow(place, name, terminal, seen=len(found.rounds()))


@app.command()
def stop(name: _RunName, home: Home = _HOME) -> None:
    """Stop a run. Rounds that were closed stay; `run --resume` goes on behind them."""
    from wardround.deploy.coordinator import runs

    place = _home(home)
    found = runs.find(place, name)
    if found.phase in runs.OVER:
        raise UsageError(f"run {name} is {found.phase}", "there is nothing to stop", "leave it")
    asked = found.ask(wanted=False)
    terminal = _console()
    if not place.is_serving():
        terminal.print(f"run {name} will not go on when `wardround coordinator serve` runs")
        return
    deadline = time.monotonic() + _PATIENCE_S * 4
    while (now := runs.find(place, name)).state.wish < asked.request.wish:
        if time.monotonic() > deadline or not place.is_serving():
            raise ConnectionFailed(
                f"run {name} was told to stop, and has not yet",
                "the coordinator did not get to it",
                "look at `wardround coordinator status`, and into logs/",
            )
        time.sleep(_LOOK_S)
    terminal.print(f"run {name} is {now.state.phase} after {len(now.rounds())} rounds")


@app.command()
def status(home: Home = _HOME) -> None:
    """Show who takes part and how far the runs are."""
    from wardround.deploy.coordinator import runs
    from wardround.deploy.coordinator.follow import mean_dice
    from wardround.deploy.coordinator.registry import Registry

    place = _home(home)
    terminal = _console()
    nodes, problem = _nodes(place)
    terminal.print(f"coordinator in {place.path}: {problem or 'serving at ' + place.settings.url}")
    sites = Table("site", "state", "connection", "since", title="sites", title_justify="left")
    for member in Registry(place.sites).members():
        since = (member.times or {}).get(f"{member.state}-at", "")
        online = nodes.get(member.node_id, "unknown") if member.node_id is not None and not problem else "–"
        sites.add_row(member.name, member.state, online, since)
    terminal.print(sites if sites.row_count else "no site was invited yet")
    table = Table("run", "state", "rounds", "Dice", "why", title="runs", title_justify="left")
    for found in runs.all_runs(place):
        closed = found.rounds()
        scores = [dice for record in closed if (dice := mean_dice(record)) is not None]
        table.add_row(
            found.name,
            found.phase,
            f"{len(closed)} of {found.request.rounds}{_open(found)}",
            f"{scores[-1]:.3f}" if scores else "–",
            found.state.reason,
        )
    terminal.print(table if table.row_count else "no run was asked for yet")


@app.command()
def doctor(home: Home = _HOME) -> None:
    """Look for what can go wrong at a coordinator: certificates, ports, database, disk, time, silent sites."""
    from wardround.deploy.doctor import coordinator_doctor, show

    show(coordinator_doctor(home))


@app.command()
def export(
    name: _RunName,
    out: Annotated[Path, typer.Argument(help="New folder for weights and card.")],
    home: Home = _HOME,
    round: Annotated[int | None, typer.Option(help="After this round [default: the last].", min=1)] = None,
) -> None:
    """Write the global model: weights as safetensors, and a card that says where they come from."""
    from wardround.deploy.coordinator import results, runs

    results.export(runs.find(_home(home), name), out, round, _now())
    _console().print(f"weights and card of run {name} in {out}")


@app.command()
def rollback(
    name: _RunName,
    round: Annotated[int, typer.Argument(help="The last round to keep.", min=1)],
    home: Home = _HOME,
) -> None:
    """Let a run begin again behind a former round; what came after it is kept beside the journal."""
    from wardround.deploy.coordinator import results, runs

    results.roll_back(runs.find(_home(home), name), round)
    terminal = _console()
    terminal.print(f"run {name} stands after round {round}; go on with `wardround coordinator run {name} --resume`")


def _console() -> Console:
    """The terminal, or wide lines where the output goes to a file or a log."""
    # No markup: fingerprints hold `:AB:` and paths hold brackets, and both would come out as something else.
    width = None if sys.stdout.isatty() else 160
    return Console(width=width, soft_wrap=True, highlight=False, emoji=False, markup=False)


def _key(member: "Member") -> str:
    from wardround.deploy.provisioning.keys import fingerprint

    return fingerprint(member.public_key)


def _home(path: Path) -> "CoordinatorHome":
    from wardround.server.home import CoordinatorHome

    place = CoordinatorHome(path)
    _ = place.settings
    return place


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _open(run: "Run") -> str:
    """How many sites have answered in the round that is open, if one is."""
    from wardround.server.spool import read_open

    view = read_open(run.folder)
    return f", in round {view.round} {len(view.answered)} of {len(view.asked)} answered" if view and view.asked else ""


def _nodes(place: "CoordinatorHome") -> tuple[dict[int, str], str]:
    """State of each node, and why it is not known."""
    from wardround.deploy.coordinator.control import Control

    if not place.is_serving():
        return {}, "not serving"
    try:
        with Control(place) as control:
            return {node.id: node.status for node in control.nodes()}, ""
    except WardroundError as error:
        return {}, f"{error.problem} ({error.cause})"


def _only(context: typer.Context, *allowed: str) -> None:
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    if others := sorted(given - set(allowed)):
        option = others[0].replace("_", "-")
        raise UsageError(
            f"--{option} does not fit to --resume", "a run goes on with the settings that it began with", "leave it out"
        )
