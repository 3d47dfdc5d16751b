"""`wardround coordinator serve`: the SuperLink, what runs apps for it, the page, and the keeping of runs.

One process stands over the others and ends with all of them. What it knows lies on disk: killed at any moment and
started again, it goes on.
"""

import datetime
import importlib.util
import logging
import shutil
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from wardround import flower
from wardround.deploy.coordinator.admission import Admission
from wardround.deploy.coordinator.bundle import build_bundle, write_bundle
from wardround.deploy.coordinator.control import Control
from wardround.deploy.coordinator.keeper import RunKeeper
from wardround.deploy.coordinator.registry import Registry
from wardround.deploy.provisioning.authority import Authority, server_certificate_fits
from wardround.errors import AuthRefused, ConnectionFailed, UsageError, WardroundError
from wardround.processes import Backoff, Keeper
from wardround.server.home import CoordinatorHome, hold

log = logging.getLogger(__name__)

_STATUS = "wardround.server.status"
_STEP_S = 1.0
_CERTIFICATE_EVERY_S = 3600.0
# A SuperLink that aggregates or vacuums may be slow to answer; one that is stuck never does.
_STUCK_S = 90.0
_QUIET_S = 60.0


@contextmanager
def only_one(home: CoordinatorHome) -> Iterator[None]:
    """Hold the lock of the one process that serves.

    Raises
    ------
    UsageError
        If another one holds it.
    """
    with hold(home.serve_lock) as ours:
        if not ours:
            raise UsageError(
                f"a coordinator serves {home.path} already", "one is enough", "stop the other one, or use it as it is"
            )
        yield


def serve(home: CoordinatorHome, stop: threading.Event, *, ready: Callable[[], None] = lambda: None) -> None:
    """Serve until `stop` is set.

    Parameters
    ----------
    home
        As `init` made it.
    stop
        Set by whoever ends it.
    ready
        Called once, when the SuperLink answers.

    Raises
    ------
    UsageError
        If it is served already.
    StorageError
        If something that `init` made is missing.
    """
    with only_one(home):
        renew_certificate(home)
        write_bundle(home.bundle)
        # Flower keeps unpacked apps for ever, and takes one that a crash left half unpacked for a whole one.
        shutil.rmtree(home.flwr / "apps", ignore_errors=True)
        with Control(home) as control, ExitStack() as children:
            link = superlink(home)
            for keeper in [link, superexec(home), *status_page(home)]:
                children.enter_context(keeper)
            _attend(home, control, link, stop, ready)


def _attend(
    home: CoordinatorHome, control: Control, link: Keeper, stop: threading.Event, ready: Callable[[], None]
) -> None:
    keeper = RunKeeper(home, control, build_bundle())
    admission = Admission(Registry(home.sites), control)
    quiet_until = time.monotonic() + _QUIET_S
    certificate_due = time.monotonic() + _CERTIFICATE_EVERY_S
    said_ready = False
    while not stop.is_set():
        try:
            admission.step()
            if not said_ready:
                said_ready = True
                ready()
            keeper.step()
            if time.monotonic() >= certificate_due:
                certificate_due = time.monotonic() + _CERTIFICATE_EVERY_S
                if renew_certificate(home):
                    link.restart()
        except (ConnectionFailed, AuthRefused) as error:
            # While it starts, or is started again, it cannot be asked: that is worth a word only when it lasts.
            if time.monotonic() >= quiet_until:
                log.warning("%s", error)
                quiet_until = time.monotonic() + _QUIET_S
        except WardroundError as error:
            # A full disk, a damaged file: the others go on, and so does this one when it is repaired.
            log.error("%s", error)
            stop.wait(_STEP_S * 10)
        stop.wait(_STEP_S)


def renew_certificate(home: CoordinatorHome) -> bool:
    """Replace the server's certificate where it is about to expire or does not fit. Returns whether it was."""
    now = datetime.datetime.now(datetime.UTC)
    if server_certificate_fits(home.tls, home.settings.names, now):
        return False
    facts = Authority(home.ca).issue_server(home.tls, home.settings.names, now)
    log.info("a new certificate for %s, valid until %s", ", ".join(facts.names), f"{facts.not_after:%Y-%m-%d}")
    return True


def superlink(home: CoordinatorHome) -> Keeper:
    """The SuperLink, not started yet."""
    return Keeper(
        "superlink",
        [sys.executable, "-m", "wardround.server.superlink", "--home", str(home.path)],
        environment=environment(home),
        log_file=home.logs / "superlink.log",
        pid_file=home.run / "superlink.pid",
        alive=_Answers(home),
        settle=_STUCK_S,
        backoff=Backoff(first=0.5, most=5.0),
    )


def superexec(home: CoordinatorHome) -> Keeper:
    """Flower's SuperExec, which starts a process for each app; not started yet."""
    return Keeper(
        "superexec",
        [
            str(Path(sys.executable).with_name("flower-superexec")),
            *("--runtime-api-address", home.runtime_address),
            *("--root-certificates", str(home.ca_certificate)),
            *("--superexec-auth-secret-file", str(home.superexec_secret)),
        ],
        environment=environment(home),
        log_file=home.logs / "superexec.log",
        pid_file=home.run / "superexec.pid",
        backoff=Backoff(first=0.5, most=5.0),
    )


def status_page(home: CoordinatorHome) -> list[Keeper]:
    """The coordinator's page, if it is wanted and installed."""
    if not home.settings.status_port or importlib.util.find_spec(_STATUS) is None:
        return []
    return [
        Keeper(
            "status",
            [sys.executable, "-m", _STATUS, "--home", str(home.path)],
            environment=environment(home),
            log_file=home.logs / "status.log",
            pid_file=home.run / "status.pid",
        )
    ]


def environment(home: CoordinatorHome) -> dict[str, str]:
    """What child processes see: nothing that leads them out of this machine."""
    quiet = flower.environment(home.flwr)
    return flower.without_proxy(quiet) | {
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }


class _Answers:
    """Whether the SuperLink has answered in the last while."""

    def __init__(self, home: CoordinatorHome) -> None:
        self._url = f"https://{home.runtime_address}/health"
        self._authority = home.ca_certificate
        self._last = time.monotonic()

    def __call__(self) -> bool:
        try:
            trust = ssl.create_default_context(cafile=str(self._authority))
            httpx.get(self._url, verify=trust, trust_env=False, timeout=5)
        except (httpx.TransportError, OSError):
            if time.monotonic() - self._last < _STUCK_S:
                return True
            self._last = time.monotonic()
            return False
        self._last = time.monotonic()
        return True
