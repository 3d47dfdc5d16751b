"""Start the SuperLink of a coordinator: ``python -m wardround.server.superlink --home FOLDER``.

It listens twice. The public port serves the Fleet API to sites and nothing else; a port of this machine serves every
API to the operator, who shows a token, and to the apps that run here, which show a secret. Both speak TLS with the
certificate that sites trust, so that nobody who takes a port while it is free is told a secret.

Flower's habits of phoning home, looking for updates and installing packages for an app are off before it is imported.
"""

import argparse
import asyncio
import logging
import os
import resource
import signal
import sys
from base64 import b64decode
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wardround import __version__
from wardround.errors import StorageError, WardroundError
from wardround.flower import become_quiet
from wardround.server.home import CoordinatorHome, hold

log = logging.getLogger(__name__)

GRACE = 3.0
"""Seconds that answers under way get when it is told to end."""
OPEN_FILES = 65536
"""Enough for the connections of both listeners and for those that have not said a word yet."""


async def serve(home: CoordinatorHome) -> None:
    """Serve both ports until SIGTERM or SIGINT.

    Raises
    ------
    ConnectionFailed
        If a port is taken.
    """
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # Flower is imported here, when its environment is set.
    import flwr

    from wardround.server.audit import AuditTrail
    from wardround.server.entrance import INNER_LIMITS, PUBLIC_LIMITS, Entrance
    from wardround.server.link import EVERY_CALL, FLEET_CALLS, application
    from wardround.server.listener import bind, listener

    # Flower's logger has a terminal of its own and tells every query.
    stock = logging.getLogger("flwr")
    stock.handlers.clear()
    stock.setLevel(logging.INFO)

    settings = home.settings
    sockets = [bind("127.0.0.1", settings.runtime_port), bind(settings.host, settings.port)]
    trail = AuditTrail(home.logs / "audit.jsonl")
    app = application(home)
    headers = {"wardround-version": __version__, "flwr-package-version": flwr.__version__}
    certificate, key = str(home.server_certificate), str(home.server_key)
    # One of them tells the application that it starts and ends; it must be the one that is ready first.
    listeners = [
        listener(
            Entrance(app, "inner", EVERY_CALL, INNER_LIMITS, trail),
            certificate=certificate,
            key=key,
            headers=headers,
            lifespan=True,
        ),
        listener(
            Entrance(app, "public", FLEET_CALLS, PUBLIC_LIMITS, trail, registered_keys(app)),
            certificate=certificate,
            key=key,
            headers=headers,
            lifespan=False,
        ),
    ]

    loop = asyncio.get_running_loop()

    def end() -> None:
        for one in listeners:
            one.should_exit = True
        # A peer that does not read does not say goodbye either.
        loop.call_later(GRACE, leave)

    def leave() -> None:
        for one in listeners:
            one.force_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    log.info("public on %s:%d, inner on 127.0.0.1:%d", settings.host, settings.port, settings.runtime_port)
    try:
        async with asyncio.TaskGroup() as group:
            for one, taken in zip(listeners, sockets, strict=True):
                # One of two is no SuperLink: whoever keeps it going must see that it has ended.
                group.create_task(one.serve(sockets=[taken])).add_done_callback(lambda _: end())
    finally:
        end()


def registered_keys(app: Any) -> Callable[[bytes], bool]:
    """Whether a key, in base64, is that of a site. Where the database cannot be asked, it is for the app to say so."""
    from sqlalchemy.exc import SQLAlchemyError

    def is_known(shown: bytes) -> bool:
        try:
            key = b64decode(shown, validate=True)
            return app.state.linkstate_factory.state().get_node_id_by_public_key(key) is not None
        except ValueError:
            return False
        except SQLAlchemyError:
            return True

    return is_known


def allow_connections() -> None:
    """Each connection is an open file, and often only 1024 are granted: take more where this user may."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if most == resource.RLIM_INFINITY else min(OPEN_FILES, most)
    if now != resource.RLIM_INFINITY and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until told to end; the exit code is that of the error, if there is one."""
    parser = argparse.ArgumentParser(prog="python -m wardround.server.superlink", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="the coordinator's folder")
    home = CoordinatorHome(parser.parse_args(arguments).home)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    os.umask(0o077)
    allow_connections()
    try:
        become_quiet(home.flwr)
        for folder in (home.flwr, home.logs, home.run):
            folder.mkdir(parents=True, exist_ok=True)
        with hold(home.run / "superlink.lock") as ours:
            if not ours:
                raise StorageError(
                    f"cannot serve {home.path}", "another SuperLink serves it", "end that one, or use it as it is"
                )
            asyncio.run(serve(home))
    except WardroundError as error:
        log.error("%s", error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
