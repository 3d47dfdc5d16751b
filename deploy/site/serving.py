"""What `wardround site serve` keeps running: agent and workbench in this process, and their children beside it."""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from wardround.client.agent import Agent
from wardround.client.gate.budget import Charge, Method
from wardround.client.gate.gate import Gate
from wardround.client.gate.policy import check_usable, load_policy
from wardround.client.home import SiteHome, only_agent
from wardround.client.live import open_live_site
from wardround.deploy.site.pulled import sweep_pulled
from wardround.processes import Backoff, Keeper, Stamp

log = logging.getLogger(__name__)

STUCK_S = 240.0
"""Seconds without progress after which a SuperNode is started anew; it gives up by itself before."""


def serve(home: SiteHome, *, connect: bool = True) -> None:
    """Run the agent until somebody stops it (SIGTERM, Ctrl-C, or the socket).

    The coordinator need not be there: the SuperNode goes on trying.

    Parameters
    ----------
    home
        Of the site.
    connect
        Whether the SuperNode runs, which dials out to the coordinator.

    Raises
    ------
    UsageError
        If another agent serves this home, its policy cannot be used, or the device is not there.
    ConnectionFailed
        If the workbench's port is taken.
    DataError, StorageError
        If the home or the store cannot be used.
    """
    os.umask(0o077)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        stack.enter_context(only_agent(home))
        policy = load_policy(home.policy)
        if connect:  # Somebody is looking now; later, what is wrong with it would stand in the log only.
            check_usable(policy, home.policy)
        sweep_pulled(home)
        gate = Gate(home.path, accountant=_accountant)
        site = stack.enter_context(open_live_site(home, gate.charge))
        agent = Agent(home, site, gate, uplink=(lambda: _supernode(home)) if connect else None)
        stack.callback(agent.close)
        agent.open()
        if home.settings.status_port:
            stack.enter_context(_page(home))
        if home.workbench.port:
            # It brings a web server and DICOM along, which a site without people does not need.
            from wardround.deploy.site.workbench import workbench

            stack.enter_context(workbench(home, agent))
        try:
            agent.wait()
        except KeyboardInterrupt:
            log.info("asked to stop")


def _accountant(charges: Sequence[Charge], delta: float, method: Method) -> float:
    # Imported here: a site without a privacy budget does not wait for opacus.
    from wardround.client.learning.accountant import epsilon_of

    return epsilon_of(charges, delta, method)


def _supernode(home: SiteHome) -> Keeper:
    alive = Stamp(home.run / "supernode.stamp").fresher_than(STUCK_S)
    return _python(home, "supernode", "wardround.client.supernode", alive=alive, settle=60.0)


def _page(home: SiteHome) -> Keeper:
    return _python(home, "page", "wardround.client.status")


def _python(home: SiteHome, name: str, module: str, **health: Any) -> Keeper:
    return Keeper(
        name,
        [sys.executable, "-m", module, "--home", str(home.path.absolute())],
        log_file=home.logs / f"{name}.log",
        pid_file=home.run / f"{name}.pid",
        backoff=Backoff(most=10.0),
        **health,
    )
