"""One real hospital in a real federation: agent, SuperNode and courier as processes, TLS, a key, an approved bundle.

Only the ServerApp is played by the test, which asks and compares with a site that is called directly.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from deployment import eventually, node_status
from hospital import Hospital, hospital
from living import START, answers, lasting, make_home, plan, same

from wardround.client.app import SITE_ERROR
from wardround.client.gate.ledger import Ledger
from wardround.client.live import open_live_site
from wardround.deploy.coordinator.bundle import build_bundle, digest
from wardround.strategies.contract import ARRAYS, METRICS, weights_from_record


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    with hospital(tmp_path_factory.mktemp("site")) as found:
        yield found


def test_a_round_over_the_network_is_the_round_of_a_site_that_is_called(site: Hospital, tmp_path: Path) -> None:
    reply = site.ask("train", plan())
    assert not reply.has_error(), reply.error
    with open_live_site(make_home(tmp_path / "twin")) as twin:
        expected = twin.train(plan(), START)
        scores = twin.evaluate(plan(), START)
    assert same(weights_from_record(reply.content.array_records[ARRAYS]), expected.weights)
    assert lasting(reply.content.metric_records[METRICS]) == lasting(expected.metrics)
    assert dict(site.ask("evaluate", plan()).content.metric_records[METRICS]) == scores
    lines = [
        (line.kind, line.code) for line in Ledger(site.home.ledger).entries() if line.kind in ("train", "evaluate")
    ]
    assert lines == [(kind, code) for kind in ("train", "evaluate") for code in ("admitted", "released", "sent")]
    assert Ledger(site.home.ledger).verify().ok
    apps = {(line.sha256, line.code) for line in Ledger(site.home.ledger).entries() if line.kind == "app"}
    assert apps == {(digest(build_bundle()), code) for code in ("approved", "admitted")}


def test_a_site_that_pauses_says_so_and_nothing_else(site: Hospital) -> None:
    assert site.typed("pause") == 0
    reply = site.ask("train", plan(2))
    assert (reply.error.code, reply.error.reason) == (SITE_ERROR, "paused")
    assert site.typed("resume") == 0
    assert not site.ask("query.status", plan(2)).has_error()


def test_a_site_that_leaves_goes_offline_and_comes_back_when_it_wants(site: Hospital) -> None:
    assert site.typed("leave", "--yes") == 0
    eventually(lambda: node_status(site.coordinator, site.node) != "online", "the leave")
    assert answers(site.home)
    assert site.typed("resume") == 0
    eventually(lambda: node_status(site.coordinator, site.node) == "online", "the return")
