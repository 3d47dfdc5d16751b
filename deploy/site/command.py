"""`wardround site`: its commands and their options."""

import getpass
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

from wardround.client.home import Participation, SiteHome
from wardround.deploy.site import people
from wardround.errors import ConnectionFailed, Interrupted, StorageError, UsageError

if TYPE_CHECKING:
    from wardround.client.intake import NewCase

app = typer.Typer(
    name="site",
    help="Take part in a federation: join it, serve it, bring cases, see what left.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(people.app)

Home = Annotated[Path, typer.Option("--home", envvar="WARDROUND_SITE", help="The site's folder.", show_default=True)]
_HOME = Path("site")
Overlap = Annotated[
    Literal["refuse", "lowest", "highest"],
    typer.Option(help="Of a DICOM label: what a voxel in two of its structures becomes."),
]

_SETTLE_S = 150.0
"""Seconds to wait until a running step has ended; the agent itself waits a little less."""


@app.command()
def init(
    invitation: Annotated[Path, typer.Argument(help="The file that the coordinator sent.")],
    home: Home = _HOME,
    new_key: Annotated[
        bool, typer.Option("--new-key", help="Make another key; the old one is kept beside it.")
    ] = False,
) -> None:
    """Join a federation: make the site's folder, its key, and the answer to the invitation."""
    from wardround.deploy.provisioning import make_node_key, read_invitation
    from wardround.deploy.provisioning.keys import fingerprint
    from wardround.deploy.site.joining import join

    found = read_invitation(invitation)
    place, answer = join(home, found, new_key=new_key)
    terminal = _console()
    terminal.print(f"site {found.site} of {found.coordinator} in {escape(str(place.path))}")
    terminal.print(f"compare on the telephone; if the coordinator says another one, stop here:\n  {found.fingerprint}")
    terminal.print(f"send back to the coordinator (it holds no secret of yours):\n  {escape(str(answer))}")
    own = fingerprint(make_node_key(place.keys).public)
    terminal.print(f"your own key, which the coordinator must have received so:\n  {own}")
    terminal.print(f"read and set your limits before you serve:\n  {escape(str(place.policy))}")


@app.command()
def serve(
    home: Home = _HOME,
    connect: Annotated[
        bool, typer.Option("--connect/--no-connect", help="Whether to dial out to the coordinator.")
    ] = True,
) -> None:
    """Serve the site until Ctrl-C or SIGTERM: agent, and the connection to the coordinator."""
    from wardround.deploy.site.serving import serve as serve_home

    logging.getLogger("wardround").setLevel(logging.INFO)
    serve_home(_home(home), connect=connect)


@app.command("import")
def bring(  # noqa: PLR0917 - one parameter an option
    source: Annotated[
        Path,
        typer.Argument(help="A NIfTI image, a folder with dataset.json, or DICOM: a folder, zip or file."),
    ],
    home: Home = _HOME,
    label: Annotated[Path | None, typer.Option(help="Its label: NIfTI, DICOM SEG or RT Structure Set.")] = None,
    name: Annotated[str | None, typer.Option("--id", help="Id of the case [default: name of the file].")] = None,
    case: Annotated[list[str] | None, typer.Option(help="Of a data set: only this case. May be repeated.")] = None,
    test: Annotated[bool, typer.Option("--test", help="Hold back: score models on it, never learn from it.")] = False,
    uneven: Annotated[
        Literal["refuse", "resample"], typer.Option(help="Of DICOM: what to do with slices at uneven distances.")
    ] = "refuse",
    tilt: Annotated[
        Literal["refuse", "resample"], typer.Option(help="Of DICOM: what to do with slices of a tilted gantry.")
    ] = "refuse",
    overlap: Overlap = "refuse",
) -> None:
    """Take cases into the site's store; the next round learns from them. A second time changes nothing."""
    from wardround.client.cases.store import CaseStore
    from wardround.client.intake import STORE, import_case
    from wardround.client.removal import finish_removal
    from wardround.deploy.site.bringing import holds_dicom, import_dicom
    from wardround.deploy.site.pulled import sweep_pulled

    place = _home(home)
    sweep_pulled(place)
    if holds_dicom(source):
        if name is not None or case:
            raise UsageError(
                "--id and --case are not for DICOM", "its cases get ids that say nothing", "leave them out"
            )
        role: Literal["stream", "test"] = "test" if test else "stream"
        import_dicom(place, source, _console(), role=role, label=label, uneven=uneven, tilt=tilt, overlap=overlap)
        return
    cases = _cases(source, label, name, case)
    with CaseStore(place.site / STORE) as store:
        finish_removal(place, store)  # Before the same case comes anew, which must not be what is removed.
        imported = [import_case(store, found, "test" if test else "stream") for found in cases]
    new, classes = sum(one.new for one in imported), max((one.classes for one in imported), default=0)
    unlabelled = sum(found.label is None for found in cases)
    kind = "to be tested on" if test else "to learn from"
    _console().print(f"{new} new of {len(cases)} cases {kind}")
    if classes:
        _console().print(f"labels go up to {classes - 1}: a run that knows them has --labels {classes} or more")
    if unlabelled:
        _console().print(f"{unlabelled} have no label: they wait until it is imported, or somebody draws on them")


@app.command()
def remove(
    case: Annotated[str, typer.Argument(help="Id of the case.")],
    home: Home = _HOME,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Take a case out of the store with its labels and drawings. What rounds have learnt from it stays learnt."""
    from wardround.client.cases.store import CaseStore
    from wardround.client.intake import STORE
    from wardround.client.removal import remove_case

    place = _home(home)
    with CaseStore(place.site / STORE) as store:
        if case in store.cases():
            count = len(store.labels(case))
            _console().print(f"case {case} has {count} labels, and drawings by {len(store.drawings(case))} people")
            if not yes and not typer.confirm("Remove it for good?"):
                raise Interrupted("the case was not removed", "you said no", "")
        remove_case(place, store, case)
    _console().print(f"case {case} is removed")
    _console().print("what rounds have learnt from it stays learnt, but none rehearses it any more")


@app.command()
def deidentify(  # noqa: PLR0917 - one parameter an option
    source: Annotated[Path, typer.Argument(help="A folder, zip or file of DICOM.")],
    target: Annotated[Path, typer.Argument(help="A new folder for the copies.")],
    home: Home = _HOME,
    retain: Annotated[list[str] | None, typer.Option(help="uids, device, institution or patient; repeatable.")] = None,
    dates: Annotated[Literal["remove", "shift", "keep"], typer.Option(help="Of a patient, all alike.")] = "remove",
    words: Annotated[bool, typer.Option("--clean-descriptors", help="Keep known words of descriptions.")] = False,
) -> None:
    """Copy images without what names a patient, by DICOM PS3.15 Annex E. The site's register knows who they are."""
    from wardround.deploy.site.bringing import copy_without_patient

    copy_without_patient(_home(home), source, target, _console(), retain=retain or (), dates=dates, words=words)


@app.command()
def pull(  # noqa: PLR0917 - one parameter an option
    home: Home = _HOME,
    pacs: Annotated[str | None, typer.Option(help="Name of the archive in site.toml [default: the first].")] = None,
    series: Annotated[str | None, typer.Option(help="UID of a series to import.")] = None,
    study: Annotated[str | None, typer.Option(help="UID of a study: import its CT, MR and PET.")] = None,
    find: Annotated[
        list[str] | None,
        typer.Option(help="Only list series: patient=, accession=, modality= or date=VALUE. May be repeated."),
    ] = None,
    label: Annotated[Path | None, typer.Option(help="Its label: NIfTI, DICOM SEG or RT Structure Set.")] = None,
    test: Annotated[bool, typer.Option("--test", help="Hold back: score models on it, never learn from it.")] = False,
    uneven: Annotated[
        Literal["refuse", "resample"], typer.Option(help="What to do with slices at uneven distances.")
    ] = "refuse",
    tilt: Annotated[
        Literal["refuse", "resample"], typer.Option(help="What to do with slices of a tilted gantry.")
    ] = "refuse",
    overlap: Overlap = "refuse",
) -> None:
    """Take a series or a study from an archive of site.toml, or list what it has."""
    from wardround.deploy.site import archive

    if (series is not None) + (study is not None) + bool(find) != 1:
        raise UsageError("say what to take", "one of --series, --study and --find is needed", "give one of them")
    if find:
        archive.search(_home(home), _console(), pacs, find)
        return
    role: Literal["stream", "test"] = "test" if test else "stream"
    archive.pull(_home(home), _console(), pacs, series, study, role, label, uneven, tilt, overlap)


@app.command()
def export(
    case: Annotated[str, typer.Argument(help="Id of the case.")],
    home: Home = _HOME,
    author: Annotated[str | None, typer.Option(help="Whose label [default: the only one there is].")] = None,
    to: Annotated[
        str | None, typer.Option(help="An archive of site.toml, or a new file .dcm [default: the first archive].")
    ] = None,
) -> None:
    """Give an accepted label back as DICOM SEG, on the series that its case came from."""
    from wardround.deploy.site import archive

    archive.export(_home(home), _console(), case, author, to)


@app.command()
def status(home: Home = _HOME, as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Show whether the site takes part, what runs, and what left last."""
    from wardround.client import wire

    place = _home(home)
    try:
        about: dict[str, Any] = {"serving": True, **wire.ask(place.socket, {"op": "info"})[0]}
        del about["op"]
    except ConnectionFailed:
        about = {"serving": False, "site": place.settings.name, "participation": place.participation}
    about["coordinator"] = place.settings.coordinator
    about["sent"] = _last_sent(place)
    if as_json:
        _console().print_json(data=about)
        return
    for line in _described(about):
        _console().print(line)


@app.command()
def pause(home: Home = _HOME) -> None:
    """Take part in no round from now on. A step that runs ends first; the coordinator is told."""
    _participate(home, "paused")


@app.command()
def resume(home: Home = _HOME) -> None:
    """Take part again."""
    _participate(home, "active")


@app.command()
def leave(
    home: Home = _HOME,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Leave the federation: disconnect, and stay so over restarts. Nothing at the site is removed."""
    if not yes and not typer.confirm("Leave the federation?"):
        raise Interrupted("the site did not leave", "you said no", "")
    _participate(home, "left")


@app.command()
def audit(  # noqa: PLR0917 - one parameter an option
    home: Home = _HOME,
    verify: Annotated[bool, typer.Option("--verify", help="Check the whole chain.")] = False,
    head: Annotated[str | None, typer.Option(help="With --verify: a hash noted earlier, which must be in it.")] = None,
    last: Annotated[int, typer.Option(help="Show so many lines, from the end; 0 for all.", min=0)] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    set_aside: Annotated[
        bool, typer.Option("--set-aside", help="Keep a damaged ledger under another name and begin a new one.")
    ] = False,
) -> None:
    """Show what came in and what left, line by line; every refusal, too."""
    from wardround.client.gate.ledger import Ledger
    from wardround.deploy.site.audit import entries_table, last_entries

    place = _home(home)
    ledger = Ledger(place.ledger)
    terminal = _console()
    if set_aside:
        terminal.print(f"the old ledger is kept in {escape(str(ledger.set_aside()))}")
        return
    if head is not None and not verify:
        raise UsageError("--head needs --verify", "it says what the check shall look for", "add --verify")
    if verify:
        found = ledger.verify(head)
        if not found.ok:
            raise StorageError(
                f"the ledger {place.ledger} is damaged",
                f"{found.problem}; the first {found.count} lines are good",
                "find out who or what changed it; `--set-aside` keeps it and begins a new one",
            )
        terminal.print(f"{found.count} lines, all as they were written; the last one's hash is\n  {found.head}")
        return
    entries = last_entries(ledger, last)
    if as_json:
        for entry in entries:
            typer.echo(entry.model_dump_json())
        return
    terminal.print(entries_table(entries) if entries else "nothing came in and nothing left yet")


@app.command()
def privacy(home: Home = _HOME, as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Show what the site's cases have spent of their privacy, and what the policy allows."""
    from wardround.client.gate.policy import load_policy
    from wardround.deploy.site.privacy import described, runs_table, spending

    place = _home(home)
    about = spending(place, load_policy(place.policy))
    if as_json:
        _console().print_json(data=about)
        return
    _console().print(described(about))
    if about["runs"]:
        _console().print(runs_table(about["runs"]))


@app.command()
def approve(  # noqa: PLR0917 - one parameter an option
    bundle: Annotated[str | None, typer.Argument(help="SHA-256 of a bundle, or its beginning.")] = None,
    home: Home = _HOME,
    show: Annotated[bool, typer.Option("--show", help="Only show it, against the one approved last.")] = False,
    revoke: Annotated[bool, typer.Option("--revoke", help="It may run no longer.")] = False,
    file: Annotated[Path | None, typer.Option(help="Take a bundle from this file, before anybody asked.")] = None,
    by: Annotated[str | None, typer.Option(help="Who decides [default: your user name].")] = None,
    days: Annotated[int | None, typer.Option(help="For so long [default: of the policy].", min=1)] = None,
    with_code: Annotated[bool, typer.Option("--with-code", help="Also if it brings code of its own.")] = False,
) -> None:
    """List app bundles, look at one, let it run or forbid it."""
    from wardround.client.gate.approvals import Approvals
    from wardround.deploy.site.audit import bundles_table

    approvals = Approvals(_home(home).path)
    terminal = _console()
    if file is not None:
        bundle = approvals.keep(_read(file)).sha256
    if bundle is None:
        known = approvals.listing()
        terminal.print(bundles_table(known) if known else "no bundle is known: the coordinator has not asked yet")
        return
    found = approvals.find(bundle)
    terminal.print(approvals.diff(found.sha256), markup=False)
    if show:
        return
    name = by if by is not None else _user()
    if revoke:
        approvals.revoke(found.sha256, name)
        terminal.print("it may run no longer")
        return
    approvals.approve(found.sha256, name, days=days, with_code=with_code)
    terminal.print(f"it may run from now on, approved by {escape(name)}")


@app.command("export-model")
def export_model(
    folder: Annotated[Path, typer.Argument(help="Where to write it; must not be there yet.")],
    home: Home = _HOME,
) -> None:
    """Export the latest global model as a MONAI Bundle, which `python -m monai.bundle run` runs."""
    from wardround.client.learning.latest import LatestModel, weights_digest
    from wardround.models.bundle import Origin, write_bundle

    place = _home(home)
    found = LatestModel(place.site / "model").read()
    if found is None:
        raise UsageError("there is no model to export", "the site took part in no round yet", "wait for a round")
    plan, weights = found
    names = place.workbench.labels
    if len(names) != plan.labels - 1:
        names = tuple(f"label {number}" for number in range(1, plan.labels))
    write_bundle(folder, plan.model, names, weights, Origin(plan.run, plan.round, weights_digest(weights)))
    _console().print(f"the model after round {plan.round} of run {escape(plan.run)} is in {escape(str(folder))}")


@app.command()
def doctor(home: Home = _HOME) -> None:
    """Look for what can go wrong at a site: clock, network, TLS, key, disk, store, ledger."""
    from wardround.deploy.doctor import show, site_doctor

    show(site_doctor(home))


def _participate(path: Path, how: Participation) -> None:
    """Tell the agent; where none runs, write it down for the next one."""
    from wardround.client import wire
    from wardround.client.home import only_agent

    place = _home(path)
    operation: dict[Participation, Literal["pause", "resume", "leave"]] = {
        "paused": "pause", "active": "resume", "left": "leave",
    }  # fmt: skip
    said = {"paused": "is paused", "active": "takes part", "left": "has left"}[how]
    terminal = _console()
    try:
        answer, _ = wire.ask(place.socket, {"op": operation[how]}, timeout=_SETTLE_S)
    except ConnectionFailed:
        with only_agent(place):
            place.participate(how)
        terminal.print(f"site {place.settings.name} {said} (no agent runs)")
        return
    terminal.print(f"site {place.settings.name} {said}")
    if not answer["settled"]:
        terminal.print("a step is still running; it ends at its next batch")


def _cases(source: Path, label: Path | None, name: str | None, only: list[str] | None) -> "list[NewCase]":
    from wardround.client.intake import NewCase, cases_of

    if source.is_dir():
        if label is not None or name is not None:
            raise UsageError("--label and --id are for one image", f"{source} is a folder", "leave them out")
        return cases_of(source, only or ())
    if only:
        raise UsageError("--case is for a data set", f"{source} is no folder", "give the data set's folder")
    return [NewCase(name or source.name.removesuffix(".gz").removesuffix(".nii"), source, label)]


def _last_sent(place: SiteHome) -> dict[str, Any] | None:
    from wardround.client.gate import codes
    from wardround.client.gate.ledger import Ledger

    sent = None
    for entry in Ledger(place.ledger).entries():
        if entry.code == codes.SENT:
            sent = entry
    return None if sent is None else sent.model_dump(include={"time", "kind", "run", "round", "bytes", "sha256"})


def _described(about: dict[str, Any]) -> list[str]:
    said = {"active": "takes part", "paused": "is paused", "left": "has left the federation"}
    lines = [f"site {about['site']} of {about['coordinator']} {said[about['participation']]}"]
    if not about["serving"]:
        lines.append("agent    not running: start it with `wardround site serve`")
    else:
        lines.append(f"agent    running, process {about['pid']}, version {about['version']}")
        uplink = about["uplink"]
        lines.append(
            "uplink   none"
            if uplink is None
            else f"uplink   process {uplink['pid'] or 'is starting'}, started again {about['restarts']} times"
        )
        work = about["running"]
        lines.append(f"work     {work['kind']} of run {work['run']}, round {work['round']}" if work else "work     –")
        counts = about["counts"]
        lines.append(f"cases    {counts['cases']:.0f} held, {counts['seen']:.0f} learnt from in this run")
    sent = about["sent"]
    lines.append(
        f"sent     {sent['kind']} of run {sent['run']}, round {sent['round']}: {sent['bytes']} bytes at {sent['time']}"
        if sent
        else "sent     nothing yet"
    )
    return [escape(line) for line in lines]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:
        raise UsageError("nobody knows who decides", "this user has no name on this machine", "give --by") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}", error.strerror or type(error).__name__, "check the path") from error


def _home(path: Path) -> SiteHome:
    """The home, if it is one."""
    place = SiteHome(path.absolute())
    _ = place.settings
    return place


def _console() -> Console:
    """The terminal, or wide lines where the output goes to a file or a log. Of a fingerprint, `:AB:` is no emoji."""
    terminal = Console(soft_wrap=True, highlight=False, emoji=False)
    return terminal if terminal.is_terminal else Console(width=200, soft_wrap=True, highlight=False, emoji=False)
