"""The folder of a live site: what lies where, its settings, whether it takes part, and who serves it.

::

    H/
        site.toml            settings: name, coordinator, device, annotator; the workbench; archives
        policy.toml          what may come in and go out
        keys/node            the site's private key; node.pub beside it
        keys/pacs-NAME       password of an archive; pacs-NAME.crt, whom its certificate comes from
        keys/oidc-secret     secret of the workbench at the hospital's sign-in service
        keys/workbench.pem   key of the workbench's own certificate, workbench.crt
        accounts.json        who may use the workbench, with hashes of their passwords
        coordinator.crt      certificate of the coordinator's authority
        approvals.json       which app bundles may run here; the bundles themselves in bundles/
        ledger.jsonl         what came in and what left
        secure.json          keys of other sites, and which sums with them were made known
        state.json           whether the site takes part; absent as long as it always has
        site/                cases, labels, memory and snapshots
        run/                 sockets and locks of running processes
        flwr/, logs/         Flower's own folder, log files

Whoever needs only a path or a name reads this module: it imports nothing heavy.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wardround.client.workbench.signing import OidcSettings
from wardround.errors import DataError, StorageError, UsageError
from wardround.files import lock_alone, read_settings, write_text

Participation = Literal["active", "paused", "left"]

_TABLE = ConfigDict(
    frozen=True, extra="forbid", alias_generator=lambda name: name.replace("_", "-"), validate_by_name=True
)


class SiteSettings(BaseModel):
    """The table ``[site]`` of site.toml; names are written with dashes there.

    Parameters
    ----------
    name
        As the coordinator knows the site.
    coordinator
        ``https://host:port``.
    device
        ``auto``, ``cpu`` or ``cuda``.
    annotator
        Who draws: ``labels`` answers from labels that were imported with the cases.
    status_port
        Where the site's own page listens on 127.0.0.1; 0 for nowhere.
    cases_per_round
        How many of the cases that have arrived one round takes at most.
    """

    model_config = _TABLE

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    coordinator: Annotated[str, Field(pattern=r"^https://[^\s/?#@]+$")]
    device: Literal["auto", "cpu", "cuda"] = "auto"
    annotator: Literal["labels"] = "labels"
    status_port: Annotated[int, Field(ge=0, le=65535)] = 0
    cases_per_round: Annotated[int, Field(ge=1)] = 20


class WorkbenchSettings(BaseModel):
    """The table ``[workbench]`` of site.toml.

    Parameters
    ----------
    port
        Where people reach the workbench; 0 for nowhere.
    host
        The address that it listens on. One that others reach is served with TLS only.
    names
        Host names besides ``localhost`` under which it may be asked for.
    certificate, key
        PEM files for TLS, absolute or below the home. Empty: where TLS is needed, one is made.
    labels
        Names of labels 1, 2, …; those that are not named are called by their number.
    model
        The network to draw with until the site has seen a round of the federation.
    review
        Whether a label counts only when a reviewer has approved it.
    ohif
        Folder of a built OHIF viewer, absolute or below the home, to be served under ``/ohif/``; empty for none.
    oidc
        The hospital's own sign-in service; None for none.
    """

    model_config = _TABLE

    port: Annotated[int, Field(ge=0, le=65535)] = 0
    host: Annotated[str, Field(pattern=r"^[A-Za-z0-9.:_-]{1,255}$")] = "127.0.0.1"
    names: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,253}$")], ...] = ()
    certificate: str = ""
    key: str = ""
    labels: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,64}$")], ...], Field(max_length=254)
    ] = ()
    model: str = "unet3d-small"
    review: bool = False
    ohif: str = ""
    oidc: OidcSettings | None = None


class PacsSettings(BaseModel):
    """One table ``[[pacs]]`` of site.toml: an archive that this site may talk to. There is no other.

    Parameters
    ----------
    name
        How it is called in commands; its password lies in ``keys/pacs-NAME``.
    dicomweb
        Root of QIDO, WADO and STOW; empty where it speaks DIMSE only.
    user
        For DICOMweb; empty for none.
    aet, host, dimse_port
        For DIMSE: its title, address and port; port 0 where it speaks DICOMweb only.
    our_aet
        The title that this site calls itself by.
    move_port
        Where this site listens while it pulls by C-MOVE; 0 to pull by C-GET, where nothing listens.
    dimse_tls
        Whether DIMSE is encrypted, both ways.
    authority, certificate, key
        For that: PEM files of the authority that the archive's certificate comes from, and of the site's own
        certificate and key; relative to the home. Without an authority, ``keys/pacs-NAME.crt``.
    """

    model_config = _TABLE

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    dicomweb: Annotated[str, Field(pattern=r"^(https?://[^\s/?#@]+(/[^\s?#@]*)?)?$")] = ""
    user: str = ""
    aet: Annotated[str, Field(pattern=r"^[\x20-\x5b\x5d-\x7e]{0,16}$")] = ""
    host: Annotated[str, Field(pattern=r"^[A-Za-z0-9.:_-]{0,255}$")] = ""
    dimse_port: Annotated[int, Field(ge=0, le=65535)] = 0
    our_aet: Annotated[str, Field(pattern=r"^[\x21-\x5b\x5d-\x7e]{1,16}$")] = "WARDROUND"
    move_port: Annotated[int, Field(ge=0, le=65535)] = 0
    dimse_tls: bool = False
    authority: str = ""
    certificate: str = ""
    key: str = ""


class _File(BaseModel):
    """All of site.toml."""

    model_config = _TABLE

    site: SiteSettings
    workbench: WorkbenchSettings = WorkbenchSettings()
    pacs: tuple[PacsSettings, ...] = ()


SETTINGS_TEMPLATE = """\
# One hospital of a federation. Names are fixed by the invitation; restart `wardround site serve` after a change.

[site]
name = "{name}"
coordinator = "{coordinator}"

# Where it computes: "auto" takes a GPU if there is one; "cpu" or "cuda" insist.
device = "auto"

# Who draws. "labels" answers from the labels that were imported with the cases.
annotator = "labels"

# How many of the cases that have arrived one round takes at most. The others wait for the next round.
cases-per-round = 20

# Port of the site's own page on 127.0.0.1; 0 for none.
status-port = 0

# Where people draw: `wardround site account add` says who. See docs/administrators.md.
[workbench]
# Port of the workbench; 0 for none.
port = 0
# An address that others reach is served with TLS: with `certificate` and `key`, or with a certificate that is made.
host = "127.0.0.1"
# Names of labels 1, 2, …
labels = []
# Whether a label counts only when a reviewer has approved it.
review = false

# An archive of images; its password goes into keys/pacs-archive.
# [[pacs]]
# name = "archive"
# dicomweb = "https://pacs.example.org/dicom-web"
# user = "wardround"
"""


@dataclass(frozen=True)
class SiteHome:
    """The paths of a live site below `path`."""

    path: Path

    @property
    def settings_file(self) -> Path:
        """Name, coordinator, device."""
        return self.path / "site.toml"

    @property
    def policy(self) -> Path:
        """What may come in and go out."""
        return self.path / "policy.toml"

    @property
    def keys(self) -> Path:
        """Folder of the site's key pair."""
        return self.path / "keys"

    @property
    def node_key(self) -> Path:
        """The private key with which the site proves who it is."""
        return self.keys / "node"

    @property
    def ca(self) -> Path:
        """Certificate of the authority that the coordinator's certificate must come from."""
        return self.path / "coordinator.crt"

    @property
    def approvals(self) -> Path:
        """Which app bundles may run here."""
        return self.path / "approvals.json"

    @property
    def bundles(self) -> Path:
        """App bundles by their SHA-256."""
        return self.path / "bundles"

    @property
    def ledger(self) -> Path:
        """What came in and what left."""
        return self.path / "ledger.jsonl"

    @property
    def secure(self) -> Path:
        """Keys of other sites, and which sums with them were made known."""
        return self.path / "secure.json"

    @property
    def state(self) -> Path:
        """Whether the site takes part."""
        return self.path / "state.json"

    @property
    def site(self) -> Path:
        """Cases, labels, memory and snapshots."""
        return self.path / "site"

    @property
    def run(self) -> Path:
        """Sockets and locks of running processes."""
        return self.path / "run"

    @property
    def socket(self) -> Path:
        """Where the agent listens."""
        return self.run / "agent.sock"

    @property
    def lock(self) -> Path:
        """Held by the one agent that serves this home."""
        return self.run / "agent.lock"

    @property
    def flwr(self) -> Path:
        """Flower's own folder."""
        return self.path / "flwr"

    @property
    def logs(self) -> Path:
        """Log files of the agent's child processes."""
        return self.path / "logs"

    @property
    def accounts(self) -> Path:
        """Who may use the workbench."""
        return self.path / "accounts.json"

    @property
    def settings(self) -> SiteSettings:
        """The table ``[site]`` of site.toml.

        Raises
        ------
        DataError
            If there is no such file, or any of it cannot be read.
        """
        return self._file.site

    @property
    def workbench(self) -> WorkbenchSettings:
        """The table ``[workbench]``; raises as :attr:`settings`."""
        return self._file.workbench

    @property
    def pacs(self) -> tuple[PacsSettings, ...]:
        """The tables ``[[pacs]]``; raises as :attr:`settings`."""
        return self._file.pacs

    @property
    def oidc_secret(self) -> Path:
        """Where the secret of the workbench at the hospital's sign-in service lies."""
        return self.keys / "oidc-secret"

    def pacs_password(self, name: str) -> Path:
        """Where the password of an archive lies."""
        return self.keys / f"pacs-{name}"

    @cached_property
    def _file(self) -> _File:
        content = read_settings(self.settings_file, "a site", "wardround site init")
        try:
            found = _File.model_validate({"site": {}} | content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "site"
            raise DataError(
                f"{self.settings_file} cannot be used", f"{field}: {first['msg']}", "correct that line"
            ) from error
        names = [archive.name for archive in found.pacs]
        if len(names) > len(set(names)):
            raise DataError(f"{self.settings_file} cannot be used", "two archives have one name", "rename one of them")
        return found

    @property
    def participation(self) -> Participation:
        """Whether the site takes part: it does unless somebody paused it or left.

        Raises
        ------
        StorageError
            If state.json is damaged: a site that may have left must not go on because nobody can read it.
        """
        try:
            found = json.loads(self.state.read_text(encoding="utf-8"))["participation"]
            if found not in get_args(Participation):
                raise ValueError(found)
        except FileNotFoundError:
            return "active"
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"cannot read {self.state}",
                f"the file is damaged ({type(error).__name__})",
                "say again what you want: `wardround site pause`, `resume` or `leave`",
            ) from error
        participation: Participation = found
        return participation

    def participate(self, how: Participation) -> None:
        """Write down, durably, whether the site takes part."""
        write_text(self.state, json.dumps({"participation": how}))


@contextmanager
def only_agent(home: SiteHome) -> Iterator[None]:
    """Hold a home: two agents that trained and wrote one ledger would mix what they do.

    Raises
    ------
    UsageError
        If another agent serves it.
    """
    home.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.run.chmod(0o700)
    lock = os.open(home.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            lock_alone(lock)
        except BlockingIOError:
            raise UsageError(
                f"{home.path} is served already", "another agent runs there", "stop it first, or use that one"
            ) from None
        yield
    finally:
        os.close(lock)
