"""What a check found, and how findings are told."""

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape

from wardround.errors import DoctorFailed, WardroundError
from wardround.pages import count, printable


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Parameters
    ----------
    name
        What was checked, in a word or two.
    ok
        Whether it is as it should be.
    problem, cause, fix
        What is wrong, why, and what to do; empty where nothing is.
    note
        What was found where nothing is wrong.
    """

    name: str
    ok: bool
    problem: str = ""
    cause: str = ""
    fix: str = ""
    note: str = ""


def good(name: str, note: str = "") -> Finding:
    """Nothing is wrong."""
    return Finding(name, True, note=note)


def bad(name: str, problem: str, cause: str, fix: str) -> Finding:
    """Something is."""
    return Finding(name, False, problem, cause, fix)


def of_error(name: str, error: WardroundError) -> Finding:
    """An error that a check came upon, as its finding."""
    return bad(name, error.problem, error.cause, error.fix)


def show(findings: Iterable[Finding], console: Console | None = None) -> None:
    """Print every finding as it comes.

    Raises
    ------
    DoctorFailed
        If something is wrong.
    """
    console = console or Console(soft_wrap=True, highlight=False, emoji=False)
    told = []
    for finding in findings:
        told.append(finding)
        if finding.ok:
            console.print(f"[green]✓[/] [bold]{_safe(finding.name)}[/]  {_safe(finding.note)}".rstrip())
            continue
        console.print(f"[red]✗[/] [bold]{_safe(finding.name)}[/]  {_safe(finding.problem)}")
        for word, text in (("cause", finding.cause), ("fix", finding.fix)):
            if text:
                console.print(f"    [bold]{word:<6}[/]{_safe(text)}")
    failed = [finding.name for finding in told if not finding.ok]
    if failed:
        raise DoctorFailed(
            f"{count(len(failed), 'check')} of {len(told)} failed",
            ", ".join(failed),
            "see the fixes above, the first one first: later checks may have failed because of it",
        )


def _safe(text: str) -> str:
    """A peer chooses part of some texts: nothing of it may reach the terminal as a command."""
    return escape(printable(text))
