"""Start the SuperNode of a site: ``python -m wardround.client.supernode --home FOLDER``.

It dials out to the coordinator and to nobody else, through ``HTTPS_PROXY`` where that is set. It is Flower's own, with
four changes, each where Flower looks a name up at run time (`tests/contract/test_flower.py` says so when one moves):

* what comes in and goes out passes `client/crossing.py`;
* heartbeats go out every five seconds, and one that fails does not end the thread that sends them;
* progress is stamped, and a process that makes none ends itself: one that does nothing would do so for ever;
* apps are started by a process that has to show a secret, so that nobody else on this machine can take a task.

The agent starts it and keeps it alive. Whatever ends the loop ends the process.
"""

import argparse
import fcntl
import logging
import os
import secrets
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from wardround.client.home import SiteHome
from wardround.errors import StorageError, WardroundError, for_log
from wardround.files import sweep, write_text
from wardround.flower import become_quiet, environment, replace, without_proxy
from wardround.processes import Backoff, Keeper, Stamp

log = logging.getLogger(__name__)

STAMP = "supernode.stamp"
"""In the folder ``run`` of a site: when the SuperNode last made progress, or had a reason to wait."""
STALE = 180.0
"""Seconds without progress after which the process ends itself. One attempt to reach the coordinator takes up to 90."""
BEAT = 0.2
"""Of the 25 seconds that Flower's heartbeats are apart at most: one about every five seconds."""
TASK_POLL = "0.2"
"""Seconds between two looks for a task: how long a message waits before its app is started."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until told to end, or until the loop does; the exit code is that of the error, if there is one."""
    parser = argparse.ArgumentParser(prog="python -m wardround.client.supernode", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="the site's folder")
    home = SiteHome(parser.parse_args(arguments).home.absolute())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    os.umask(0o077)
    try:
        for folder in (home.flwr, home.logs, home.run):
            folder.mkdir(parents=True, exist_ok=True)
        become_quiet(home.flwr)
        lock = _lock(home)
        serve(home)
        lock.close()
    except WardroundError as error:
        log.error("%s", error)
        return error.exit_code
    return 1  # it should have gone on


def serve(home: SiteHome) -> None:
    """Take messages and send answers. Returns only when Flower's loop ends."""
    for talkative in ("httpx", "alembic"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    # Flower is imported here, when its environment is set.
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.supernode.cli.flower_supernode import SuperNodeLifespanConfig, _start_supernode_http_api
    from flwr.supernode.nodestate import NodeStateFactory
    from flwr.supernode.start_client_internal import start_client_internal

    # Flower's logger has a terminal of its own.
    stock = logging.getLogger("flwr")
    stock.handlers.clear()
    stock.setLevel(logging.INFO)

    stamp = Stamp(home.run / STAMP)
    install(home, stamp)
    # An app that was unpacked by half when the machine went down would be used as it is.
    shutil.rmtree(home.flwr / "apps", ignore_errors=True)
    port = _free_port()
    secret = home.run / "superexec.secret"
    write_text(secret, secrets.token_urlsafe(32))
    key = _read_key(home)
    config = SuperNodeLifespanConfig(
        server_address=_address(home.settings.coordinator),
        root_certificates=home.ca.read_bytes(),
        insecure=False,
        authentication_keys=(key, key.public_key()),
        max_retries=None,
        max_wait_time=None,
        node_config={"site": home.settings.name, "agent": str(home.socket)},
        isolation="process",
        runtime_certificates=None,
        runtime_root_certificates_path=None,
        health_server_address=None,
        trusted_entities=None,
        superexec_auth_secret=secret.read_bytes(),
        runtime_dependency_install=False,
        host="127.0.0.1",
        port=port,
        runtime_ssl_certfile=None,
        runtime_ssl_keyfile=None,
    )
    states = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
    stamp.touch()
    threading.Thread(target=_watch, args=(stamp,), name="watchdog", daemon=True).start()
    server, _ = _start_supernode_http_api(config, states)
    superexec = _superexec(home, port, secret)
    superexec.start()
    try:
        start_client_internal(
            state_factory=states,
            server_address=config.server_address,
            node_config=config.node_config,
            root_certificates=config.root_certificates,
            insecure=False,
            authentication_keys=config.authentication_keys,
            isolation=config.isolation,
            runtime_api_address=f"{config.host}:{port}",
            superexec_auth_secret=config.superexec_auth_secret,
            runtime_dependency_install=False,
        )
    finally:
        superexec.stop()
        server.should_exit = True


def install(home: SiteHome, stamp: Stamp) -> None:
    """Put what this site wants in Flower's place."""
    from flwr.supercore import heartbeat
    from flwr.supernode import fleet_http_connection as connection
    from flwr.supernode import start_client_internal as internal

    from wardround.client.asking import Agent
    from wardround.client.crossing import Crossing
    from wardround.client.open_messages import OpenMessages

    notes = home.run / "open"
    notes.mkdir(exist_ok=True)
    sweep(notes)
    crossing = Crossing(Agent(home.socket), OpenMessages(notes), stamp)
    replace(internal, "_pull_and_store_message", crossing.pull_and_store_message)
    replace(internal, "_push_messages", crossing.push_messages)
    replace(heartbeat, "HEARTBEAT_BASE_MULTIPLIER", BEAT)

    def sender(beat: Callable[[], bool]) -> Any:
        return make_sender(_tolerant(beat))

    make_sender = replace(connection, "HeartbeatSender", sender)

    def invoker() -> Any:
        made = make_invoker()
        noted, judged = made.on_backoff, made.should_giveup

        def on_backoff(state: Any) -> None:
            stamp.touch()  # the coordinator is away: a reason to wait
            if noted is not None:
                noted(state)

        def should_giveup(error: Exception) -> bool:
            _tell_the_time(error)
            return judged is not None and bool(judged(error))

        made.on_backoff = on_backoff
        made.should_giveup = should_giveup
        return made

    make_invoker = replace(connection, "make_simple_http_retry_invoker", invoker)


def _tolerant(beat: Callable[[], bool]) -> Callable[[], bool]:
    """A heartbeat whose failure is tried again. Flower's thread would end, and the node be offline for good."""

    import httpx

    def attempt() -> bool:
        try:
            return beat()
        except (httpx.HTTPError, RuntimeError, ValueError) as error:
            log.error("a heartbeat failed (%s)", type(error).__name__)
            _tell_the_time(error)
            return False

    return attempt


def _tell_the_time(error: Exception) -> None:
    """Say so where a clock is why a request was refused: Flower says 401, and ends the process."""

    from wardround.client.clock import blamed

    if problem := blamed(error):
        log.error("%s, which refuses what is signed with such a time: set the clock (NTP)", problem)


def _watch(stamp: Stamp) -> None:
    """End the process when the stamp has become too old. Whoever keeps it alive starts another."""
    while stamp.age() < STALE:
        time.sleep(STALE / 60)
    log.critical("no progress for %g s: this process ends", STALE)
    os._exit(70)


def _superexec(home: SiteHome, port: int, secret: Path) -> Keeper:
    """Flower's starter of apps. It and they speak to this machine only."""
    return Keeper(
        "superexec",
        [
            "flower-superexec",
            "--insecure",
            "--runtime-api-address",
            f"127.0.0.1:{port}",
            "--superexec-auth-secret-file",
            str(secret),
        ],
        environment={**without_proxy(environment(home.flwr)), "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": TASK_POLL},
        log_file=home.logs / "superexec.log",
        pid_file=home.run / "superexec.pid",
        grace=3.0,
        backoff=Backoff(first=0.5, most=10.0),
    )


def _lock(home: SiteHome) -> Any:
    handle = (home.run / "supernode.lock").open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StorageError(
            f"cannot serve {home.path}", "another SuperNode serves it", "end that one, or use it as it is"
        ) from None
    return handle


def _read_key(home: SiteHome) -> Any:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    try:
        key = load_ssh_private_key(home.node_key.read_bytes(), None)
    except (OSError, ValueError) as error:
        raise StorageError(
            f"cannot read {home.node_key}", type(error).__name__, "run `wardround site doctor`, or take it from a copy"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StorageError(f"cannot use {home.node_key}", "it is no key on a NIST curve", "make a site's key anew")
    return key


def _address(url: str) -> str:
    """Host and port of the coordinator's address, as Flower wants them."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{host}:{parts.port or 443}"


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


if __name__ == "__main__":
    code = 1
    try:
        code = main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException as error:  # noqa: BLE001 - whatever it is, the process ends
        log.critical("the SuperNode ends: %s", for_log(error))
    finally:
        logging.shutdown()
        # Threads of Flower's that never end must not keep a process that has nothing left to do.
        os._exit(code)
