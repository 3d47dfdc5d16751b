"""One real hospital in a real federation: agent, SuperNode and courier as processes, TLS, a key, an approved bundle.

Only the ServerApp is played by the test, which asks and compares with a site that is called directly.
"""

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from deployment import (
    answer_to,
    ask,
    eventually,
    is_up,
    lead,
    make_coordinator,
    node_status,
    register,
    submit,
    superlink,
)
from flwr.app import Message, RecordDict
from flwr.superlink.grid.http_grid import HttpGrid
from living import AGENTS, START, answers, arrive, lasting, make_home, plan, same

from wardround.client.app import SITE_ERROR
from wardround.client.gate.ledger import Ledger
from wardround.client.gate.policy import POLICY_TEMPLATE
from wardround.client.home import SiteHome
from wardround.client.live import open_live_site
from wardround.deploy.cli import run
from wardround.deploy.coordinator.bundle import build_bundle, digest
from wardround.deploy.provisioning import Authority, make_invitation
from wardround.deploy.site.serving import serve
from wardround.server.home import CoordinatorHome
from wardround.strategies.contract import ARRAYS, METRICS, PLAN, weights_from_record, weights_to_record
from wardround.strategies.plan import RoundPlan


@dataclass(frozen=True)
class Hospital:
    """A site whose node is online, and the run that the test leads."""

    coordinator: CoordinatorHome
    home: SiteHome
    node: int
    grid: HttpGrid

    def ask(self, kind: str, settings: RoundPlan) -> Message:
        content = RecordDict({ARRAYS: weights_to_record(START), PLAN: settings.to_record()})
        return answer_to(self.grid, ask(self.grid, self.node, kind, content), 300)

    def typed(self, *words: str) -> int:
        return run(["site", words[0], *words[1:], "--home", str(self.home.path)])


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    folder = tmp_path_factory.mktemp("site")
    coordinator = make_coordinator(folder / "C")
    now = datetime.datetime.now(datetime.UTC)
    invitation = folder / "north.invitation.json"
    invitation.write_bytes(make_invitation(Authority(coordinator.ca), coordinator.settings.url, "north", now, 14)[1])
    home = SiteHome(folder / "H")
    assert run(["site", "init", str(invitation), "--home", str(home.path)]) == 0
    home.policy.write_text(POLICY_TEMPLATE.replace("min-cases = 5", "min-cases = 1"))
    text = home.settings_file.read_text().replace('device = "auto"', 'device = "cpu"')
    home.settings_file.write_text(text.replace("cases-per-round = 20", "cases-per-round = 2"))
    arrive(home, 0, 1)
    arrive(home, 100, role="test")
    with superlink(coordinator):
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
                yield Hospital(coordinator, home, node, grid)
        finally:
            process.terminate()
            process.join(60)
    assert process.exitcode == 0
    assert not answers(home)


def test_a_round_over_the_network_is_the_round_of_a_site_that_is_called(hospital: Hospital, tmp_path: Path) -> None:
    reply = hospital.ask("train", plan())
    assert not reply.has_error(), reply.error
    with open_live_site(make_home(tmp_path / "twin")) as twin:
        expected = twin.train(plan(), START)
        scores = twin.evaluate(plan(), START)
    assert same(weights_from_record(reply.content.array_records[ARRAYS]), expected.weights)
    assert lasting(reply.content.metric_records[METRICS]) == lasting(expected.metrics)
    assert dict(hospital.ask("evaluate", plan()).content.metric_records[METRICS]) == scores
    lines = [
        (line.kind, line.code) for line in Ledger(hospital.home.ledger).entries() if line.kind in ("train", "evaluate")
    ]
    assert lines == [(kind, code) for kind in ("train", "evaluate") for code in ("admitted", "released", "sent")]
    assert Ledger(hospital.home.ledger).verify().ok
    apps = {(line.sha256, line.code) for line in Ledger(hospital.home.ledger).entries() if line.kind == "app"}
    assert apps == {(digest(build_bundle()), "admitted")}


def test_a_site_that_pauses_says_so_and_nothing_else(hospital: Hospital) -> None:
    assert hospital.typed("pause") == 0
    reply = hospital.ask("train", plan(2))
    assert (reply.error.code, reply.error.reason) == (SITE_ERROR, "paused")
    assert hospital.typed("resume") == 0
    assert not hospital.ask("query.status", plan(2)).has_error()


def test_a_site_that_leaves_goes_offline_and_comes_back_when_it_wants(hospital: Hospital) -> None:
    assert hospital.typed("leave", "--yes") == 0
    eventually(lambda: node_status(hospital.coordinator, hospital.node) != "online", "the leave")
    assert answers(hospital.home)
    assert hospital.typed("resume") == 0
    eventually(lambda: node_status(hospital.coordinator, hospital.node) == "online", "the return")
