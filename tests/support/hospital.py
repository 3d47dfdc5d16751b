"""One real hospital in a real federation: agent, SuperNode and courier as processes, TLS, a key, an approved bundle.

Only the ServerApp is played by the test, which asks what it likes.
"""

import datetime
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from deployment import (
    answer_to,
    ask,
    eventually,
    free_ports,
    is_up,
    lead,
    make_coordinator,
    node_status,
    register,
    submit,
    superlink,
)
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.superlink.grid.http_grid import HttpGrid
from living import AGENTS, START, answers, arrive
from wiretap import Wiretap, wiretap

from wardround.client.gate.policy import POLICY_TEMPLATE
from wardround.client.home import SiteHome
from wardround.deploy.cli import run
from wardround.deploy.coordinator.bundle import build_bundle
from wardround.deploy.provisioning import Authority, make_invitation
from wardround.deploy.site.serving import serve
from wardround.server.home import CoordinatorHome
from wardround.strategies.contract import ARRAYS, PLAN, weights_to_record
from wardround.strategies.parcel import unwrap, wrap
from wardround.strategies.plan import RoundPlan

PATIENCE_S = 300.0


@dataclass(frozen=True)
class Hospital:
    """A site whose node is online, and the run that the test leads.

    Parameters
    ----------
    tap
        Hears the line between site and coordinator, if the site dials it.
    """

    coordinator: CoordinatorHome
    home: SiteHome
    node: int
    grid: HttpGrid
    tap: Wiretap | None = None

    def ask(self, kind: str, settings: RoundPlan, arrays: ArrayRecord | None = None) -> Message:
        """Ask the site, by default to go on from the weights at the start."""
        arrays = weights_to_record(START) if arrays is None else arrays
        return self.send(kind, RecordDict({ARRAYS: arrays, PLAN: settings.to_record()}), round=settings.round)

    def send(self, kind: str, content: RecordDict, grid: HttpGrid | None = None, *, round: int = 1) -> Message:
        """Send the site any content, in this run or in another one; weights travel as the real ServerApp sends them."""
        grid = grid or self.grid
        reply = answer_to(grid, ask(grid, self.node, kind, wrap(content), round=round), PATIENCE_S)
        if reply.has_content():
            reply.content = unwrap(reply.content)
        return reply

    def typed(self, *words: str) -> int:
        """What an administrator types; the exit code."""
        return run(["site", words[0], *words[1:], "--home", str(self.home.path)])


def _phantoms(home: SiteHome) -> None:
    arrive(home, 0, 1)
    arrive(home, 100, role="test")


@contextmanager
def hospital(
    folder: Path,
    *,
    name: str = "H",
    cases: Callable[[SiteHome], None] = _phantoms,
    tapped: bool = False,
) -> Iterator[Hospital]:
    """A hospital that is there as long as the block lasts.

    Parameters
    ----------
    folder
        Where all of it lives.
    name
        Of the folder of the site.
    cases
        Brings them.
    tapped
        Whether somebody listens on the line.
    """
    with ExitStack() as stack:
        coordinator = make_coordinator(folder / "C")
        url, tap = coordinator.settings.url, None
        if tapped:
            (port,) = free_ports(1)
            url, tap = f"https://localhost:{port}", stack.enter_context(wiretap(coordinator, port, folder / "tap"))
        now = datetime.datetime.now(datetime.UTC)
        invitation = folder / "north.invitation.json"
        invitation.write_bytes(make_invitation(Authority(coordinator.ca), url, "north", now, 14)[1])
        home = SiteHome(folder / name)
        assert run(["site", "init", str(invitation), "--home", str(home.path)]) == 0
        home.policy.write_text(POLICY_TEMPLATE.replace("min-cases = 5", "min-cases = 1"))
        text = home.settings_file.read_text().replace('device = "auto"', 'device = "cpu"')
        home.settings_file.write_text(text.replace("cases-per-round = 20", "cases-per-round = 2"))
        cases(home)
        stack.enter_context(superlink(coordinator))
        eventually(lambda: is_up(coordinator), "the SuperLink")
        node = register(coordinator, home)
        # Before the coordinator has asked for anything, an administrator has looked at what it will ask.
        bundle = folder / "bundle.fab"
        bundle.write_bytes(build_bundle())
        assert run(["site", "approve", "--file", str(bundle), "--home", str(home.path)]) == 0
        process = AGENTS.Process(target=serve, args=(home,))
        process.start()
        try:
            eventually(lambda: node_status(coordinator, node) == "online", "the node")
            submit(coordinator, bundle.read_bytes())
            with lead(coordinator) as grid:
                yield Hospital(coordinator, home, node, grid, tap)
        finally:
            process.terminate()
            process.join(60)
    assert process.exitcode == 0
    assert not answers(home)
