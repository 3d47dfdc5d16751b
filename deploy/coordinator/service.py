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
from wardround.deploy.provisioning.authority import (
    Authority,
    CertificateFacts,
    certificate_facts,
    server_certificate_fits,
)
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
        shown = _written(home)
        write_bundle(home.bundle)
        # Flower keeps unpacked apps for ever, and takes one that a crash left half unpacked for a whole one.
        shutil.rmtree(home.flwr / "apps", ignore_errors=True)
        with Control(home) as control, ExitStack() as children:
            link = superlink(home)
            for keeper in [link, superexec(home), *status_page(home)]:
                children.enter_context(keeper)
            _attend(home, control, link, shown, stop, ready)


def _attend(  # noqa: PLR0917
    home: CoordinatorHome,
    control: Control,
    link: Keeper,
    shown: tuple[int, int],
    stop: threading.Event,
    ready: Callable[[], None],
) -> None:
    keeper = RunKeeper(home, control, build_bundle())
    admission = Admission(Registry(home.sites), control)
    quiet_until = time.monotonic() + _QUIET_S
    certificate_due = time.monotonic() + _CERTIFICATE_EVERY_S
    said_ready = False

    def admit() -> None:
        nonlocal said_ready
        admission.step()
        if not said_ready:
            said_ready = True
            ready()

    def look_at_certificate() -> None:
        nonlocal certificate_due, shown
        if time.monotonic() >= certificate_due or _written(home) != shown:
            certificate_due = time.monotonic() + _CERTIFICATE_EVERY_S
            renew_certificate(home)
            if (found := _written(home)) != shown:
                # A SuperLink reads its certificate once, when it starts.
                shown = found
                link.restart()

    while not stop.is_set():
        rest = _STEP_S
        for duty in (look_at_certificate, admit, keeper.step):
            try:
                duty()
            except (ConnectionFailed, AuthRefused) as error:
                # While it starts, or is started again, it cannot be asked: that is worth a word only when it lasts.
                if time.monotonic() >= quiet_until:
                    log.warning("%s", error)
                    quiet_until = time.monotonic() + _QUIET_S
                break
            except WardroundError as error:
                # A full disk, a damaged file: the others go on, and so does this one when it is repaired.
                log.error("%s", error)
                rest = _STEP_S * 10
        stop.wait(rest)


def renew_certificate(home: CoordinatorHome) -> bool:
    """Replace the server's certificate where it is about to expire or does not fit. Returns whether it was."""
    # Read again: the names may have been changed since this process began.
    names = CoordinatorHome(home.path).settings.names
    if server_certificate_fits(home.tls, names, datetime.datetime.now(datetime.UTC)):
        return False
    issue_certificate(home)
    return True


def issue_certificate(home: CoordinatorHome) -> CertificateFacts:
    """Make the server's key and certificate anew. Who serves takes them up; sites go on trusting the same authority.

    A crash between key and certificate leaves two that do not fit, and the next look makes them anew.

    Raises
    ------
    StorageError
        If the authority's key is not there, or nothing can be written.
    """
    names = CoordinatorHome(home.path).settings.names
    facts = Authority(home.ca).issue_server(home.tls, names, datetime.datetime.now(datetime.UTC))
    log.info("a new certificate for %s, valid until %s", ", ".join(facts.names), f"{facts.not_after:%Y-%m-%d}")
    return facts


def shown_certificate(home: CoordinatorHome) -> CertificateFacts | None:
    """The certificate that the SuperLink shows at the moment; None while it does not answer."""
    try:
        pem = ssl.get_server_certificate(("127.0.0.1", home.settings.runtime_port), timeout=5)
    except (OSError, ValueError):
        return None
    return certificate_facts(pem.encode())


def _written(home: CoordinatorHome) -> tuple[int, int]:
    """Another value whenever somebody has written the server's certificate, which comes behind its key."""
    try:
        status = home.server_certificate.stat()
    except FileNotFoundError:
        return (0, 0)
    return status.st_mtime_ns, status.st_ino


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
