"""The folder of a coordinator: what lies where, and its settings.

::

    C/
        coordinator.toml     settings
        ca/, tls/            the authority, and the server's key and certificate
        operator.token       who shows it may order the SuperLink about
        superexec.secret     who shows it may run apps for the SuperLink
        superlink.db         the SuperLink's own state
        sites/<name>.json    who takes part
        bundle/              the app bundle that sites approve
        runs/<run>/          what was asked for, how far it is, and the journal
        flwr/, logs/, run/   Flower's own folder, log files, and locks of running processes
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wardround.errors import DataError, UsageError
from wardround.files import is_locked, lock_alone, read_settings, storage_error

Port = Annotated[int, Field(ge=1, le=65535)]

_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+:@-]{0,127}")


class CoordinatorSettings(BaseModel):
    """The table ``[coordinator]`` of coordinator.toml; names are written with dashes there.

    Parameters
    ----------
    names
        Host names and addresses under which sites reach the coordinator; the server's certificate is made out to them.
    url
        ``https://host:port``: what an invitation says. It differs from host and port behind a port forwarding.
    host, port
        Where the public side listens: only the Fleet API, for sites.
    runtime_port
        On 127.0.0.1: every API, for the operator's commands and for the apps that run here.
    status_host, status_port
        Where the coordinator's page listens; 0 for nowhere.
    quorum
        Sites that a round needs where a run does not say it.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=lambda name: name.replace("_", "-"), validate_by_name=True
    )

    names: Annotated[tuple[str, ...], Field(min_length=1)]
    url: Annotated[str, Field(pattern=r"^https://[^\s/?#@]+$")]
    host: str = "0.0.0.0"  # noqa: S104 - sites come from outside; the port serves nothing but the Fleet API
    port: Port = 8443
    runtime_port: Port = 8444
    status_host: str = "127.0.0.1"
    status_port: Annotated[int, Field(ge=0, le=65535)] = 8445
    quorum: Annotated[int, Field(ge=1)] = 2

    @model_validator(mode="after")
    def _ports_differ(self) -> "CoordinatorSettings":
        ports = [port for port in (self.port, self.runtime_port, self.status_port) if port]
        if len(set(ports)) != len(ports):
            raise ValueError("port, runtime-port and status-port must differ")
        return self


@dataclass(frozen=True)
class CoordinatorHome:
    """The paths of a coordinator below `path`, which is absolute."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", self.path.absolute())

    @property
    def settings_file(self) -> Path:
        """Names, ports, quorum."""
        return self.path / "coordinator.toml"

    @property
    def ca(self) -> Path:
        """Folder of the authority."""
        return self.path / "ca"

    @property
    def ca_certificate(self) -> Path:
        """What sites trust, and the operator's commands too."""
        return self.ca / "ca.crt"

    @property
    def tls(self) -> Path:
        """Folder of ``server.key`` and ``server.crt``."""
        return self.path / "tls"

    @property
    def server_key(self) -> Path:
        """The server's private key."""
        return self.tls / "server.key"

    @property
    def server_certificate(self) -> Path:
        """The server's certificate."""
        return self.tls / "server.crt"

    @property
    def operator_token(self) -> Path:
        """Who shows it may order the SuperLink about."""
        return self.path / "operator.token"

    @property
    def superexec_secret(self) -> Path:
        """Who shows it may run apps for the SuperLink."""
        return self.path / "superexec.secret"

    @property
    def database(self) -> Path:
        """The SuperLink's state."""
        return self.path / "superlink.db"

    @property
    def sites(self) -> Path:
        """Who takes part."""
        return self.path / "sites"

    @property
    def bundle(self) -> Path:
        """The app bundle that sites approve."""
        return self.path / "bundle"

    @property
    def runs(self) -> Path:
        """One folder a run."""
        return self.path / "runs"

    @property
    def flwr(self) -> Path:
        """Flower's own folder."""
        return self.path / "flwr"

    @property
    def logs(self) -> Path:
        """Log files."""
        return self.path / "logs"

    @property
    def run(self) -> Path:
        """Locks and process numbers."""
        return self.path / "run"

    @property
    def serve_lock(self) -> Path:
        """Held while the coordinator serves."""
        return self.run / "serve.lock"

    @property
    def runtime_address(self) -> str:
        """Where every API is served, to this machine only."""
        return f"127.0.0.1:{self.settings.runtime_port}"

    def run_folder(self, name: str) -> Path:
        """The folder of a run.

        Raises
        ------
        UsageError
            If a run cannot be called so.
        """
        if not _RUN_NAME.fullmatch(name):
            raise UsageError(
                f"a run cannot be called {name!r}",
                "a name has letters, digits and ._=+:@- in it, and begins with a letter or a digit",
                "choose another name",
            )
        return self.runs / name

    @cached_property
    def settings(self) -> CoordinatorSettings:
        """What coordinator.toml says.

        Raises
        ------
        DataError
            If there is none, or it cannot be used.
        """
        content = read_settings(self.settings_file, "a coordinator", "wardround coordinator init")
        try:
            return CoordinatorSettings.model_validate(content.get("coordinator", {}))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = str(first["loc"][0]) if first["loc"] else "coordinator"
            raise DataError(
                f"{self.settings_file} cannot be used", f"{field}: {first['msg']}", "correct that line"
            ) from error

    def is_serving(self) -> bool:
        """Whether a `wardround coordinator serve` is at work here."""
        return is_locked(self.serve_lock)


@contextmanager
def hold(path: Path) -> Iterator[bool]:
    """Hold the lock file `path` if nobody else does.

    Yields
    ------
    bool
        Whether we hold it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise storage_error(error, path) from error
    try:
        try:
            lock_alone(handle)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)
