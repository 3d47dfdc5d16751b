"""Makes a coordinator's folder, in an order in which a crash does no harm."""

import datetime
import json
import secrets
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from wardround.deploy.coordinator.bundle import write_bundle
from wardround.deploy.provisioning.authority import Authority, general_name
from wardround.deploy.provisioning.invitation import check_url
from wardround.deploy.provisioning.keys import new_home, private_folder, write_private
from wardround.errors import UsageError
from wardround.files import write_text
from wardround.server.home import CoordinatorHome, CoordinatorSettings

_SETTINGS = """\
# The coordinator of a federation. Restart `wardround coordinator serve` after a change.

[coordinator]
# Host names and addresses under which sites reach it. The server's certificate is made out to them.
names = [{names}]

# What an invitation tells a site to dial.
url = "{url}"

# The public side: only what sites need is served there.
host = {host}
port = {port}

# On 127.0.0.1: for the operator's commands and for what runs here. Never make it reachable from outside.
runtime-port = {runtime_port}

# The coordinator's page; 0 for none.
status-host = "127.0.0.1"
status-port = {status_port}

# Sites that a round needs where a run does not say it.
quorum = {quorum}
"""


def make_home(
    path: Path, names: Sequence[str], url: str | None, settings: Mapping[str, str | int], now: datetime.datetime
) -> tuple[CoordinatorHome, Authority, Path]:
    """Make a coordinator's folder, which only its owner may enter.

    Parameters
    ----------
    path
        The folder; there must be nothing in it, save what an attempt left that was cut off.
    names
        Host names and addresses under which sites reach it.
    url
        What sites dial; by default the first name and the public port.
    settings
        ``host``, ``port``, ``runtime-port``, ``status-port`` and ``quorum``.
    now
        UTC.

    Returns
    -------
    CoordinatorHome, Authority, Path
        The folder, its authority, and the app bundle.

    Raises
    ------
    UsageError
        If a value cannot be used, or the folder is a coordinator's already or holds something else.
    """
    home = CoordinatorHome(path)
    if home.settings_file.exists():
        raise UsageError(
            f"{home.path} is the home of a coordinator already",
            "its authority is what sites trust, and is never overwritten",
            f"change {home.settings_file}, or choose another --home",
        )
    for name in names:
        general_name(name)
    first = f"[{names[0]}]" if ":" in names[0] else names[0]
    text = _SETTINGS.format(
        names=", ".join(json.dumps(name) for name in names),
        url=check_url(url or f"https://{first}:{settings['port']}"),
        host=json.dumps(settings["host"]),
        port=settings["port"],
        runtime_port=settings["runtime-port"],
        status_port=settings["status-port"],
        quorum=settings["quorum"],
    )
    _check(text)
    parts = (home.ca, home.tls, home.operator_token, home.superexec_secret, home.sites, home.runs, home.flwr, home.logs)
    new_home(home.path, {part.name for part in (*parts, home.run, home.bundle)}, "coordinator")
    private_folder(home.path)
    authority = Authority.create(home.ca, names[0], now)
    authority.issue_server(home.tls, names, now)
    for secret in (home.operator_token, home.superexec_secret):
        if not secret.exists():
            write_private(secret, secrets.token_urlsafe(48).encode())
    for folder in (home.sites, home.runs, home.flwr, home.logs, home.run):
        private_folder(folder)
    bundle = write_bundle(home.bundle)
    # Last: it is what says that a coordinator is there. A crash before leaves a folder in which all this can be done.
    write_text(home.settings_file, text)
    return home, authority, bundle


def _check(text: str) -> None:
    try:
        CoordinatorSettings.model_validate(tomllib.loads(text)["coordinator"])
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        where = str(found["loc"][0]) if found["loc"] else "a combination of options"
        raise UsageError(f"{where} cannot be used", found["msg"], "correct the option") from error
