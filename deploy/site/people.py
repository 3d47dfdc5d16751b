"""`wardround site account`: who may use the workbench. A password comes from a prompt or a pipe, never as an option."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from wardround.client.home import SiteHome
from wardround.client.workbench.accounts import Accounts
from wardround.client.workbench.roster import Role
from wardround.errors import Interrupted, UsageError

app = typer.Typer(
    name="account",
    help="Say who may use the workbench, and as what.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Home = Annotated[Path, typer.Option("--home", envvar="WARDROUND_SITE", help="The site's folder.", show_default=True)]
_HOME = Path("site")
Name = Annotated[str, typer.Argument(help="Of the account: lower-case letters, digits and . _ -; no patient's.")]
RoleOption = Annotated[
    Role,
    typer.Option(help="annotator draws; reviewer also sees and judges all labels; admin also trains and sees the log."),
]


@app.command()
def add(name: Name, home: Home = _HOME, role: RoleOption = "annotator") -> None:
    """Make an account. It may sign in at once."""
    accounts = _accounts(home)
    accounts.add(name, _password(), role)
    _say(f"{name} may sign in as {role}")


@app.command("list")
def listing(home: Home = _HOME) -> None:
    """Show all accounts: their roles, whose passwords they have, and which are disabled."""
    found = _accounts(home).views()
    if not found:
        _say("nobody has an account")
        return
    table = Table("account", "role", "password", "", box=None)
    for one in found:
        password = "hospital's" if one.source == "oidc" else "one-time" if one.one_time else "own"
        table.add_row(one.name, one.role, password, "disabled" if one.disabled else "")
    Console(width=80, highlight=False).print(table)


@app.command()
def remove(
    name: Name, home: Home = _HOME, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False
) -> None:
    """Take an account away. Its sessions end; what was drawn under its name stays."""
    accounts = _accounts(home)
    if not yes and not typer.confirm(f"Remove the account {name}?"):
        raise Interrupted("the account stays", "you said no", "")
    accounts.remove(name)
    _say(f"{name} may sign in no longer")


@app.command()
def disable(name: Name, home: Home = _HOME) -> None:
    """Let an account sign in no longer, also by the hospital's service. Its sessions end; what it drew stays."""
    _accounts(home).set_disabled(name, True)
    _say(f"{name} may sign in no longer")


@app.command()
def enable(name: Name, home: Home = _HOME) -> None:
    """Let a disabled account sign in again."""
    _accounts(home).set_disabled(name, False)
    _say(f"{name} may sign in again")


@app.command()
def password(name: Name, home: Home = _HOME) -> None:
    """Set another password. Sessions of the account end."""
    accounts = _accounts(home)
    accounts.set_password(name, _password())
    _say(f"{name} has a new password")


@app.command("role")
def change_role(name: Name, role: Annotated[Role, typer.Argument()], home: Home = _HOME) -> None:
    """Give an account another role. Its sessions end."""
    _accounts(home).set_role(name, role)
    _say(f"{name} is {role} now")


def _accounts(home: Path) -> Accounts:
    place = SiteHome(home.absolute())
    _ = place.settings  # a folder that is no home is no place for accounts
    return Accounts(place.accounts)


def _password(ask: Callable[..., str] = typer.prompt) -> str:
    """From a terminal twice, unseen; from a pipe its first line."""
    if sys.stdin.isatty():
        given: str = ask("Password", hide_input=True, confirmation_prompt=True)
        return given
    line = sys.stdin.readline().removesuffix("\n").removesuffix("\r")
    if not line:
        raise UsageError("no password was given", "nothing came through the pipe", "type it, or pipe one line")
    return line


def _say(text: str) -> None:
    Console(soft_wrap=True, highlight=False, emoji=False, markup=False).print(text)
