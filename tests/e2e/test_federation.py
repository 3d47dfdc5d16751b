"""A federation as hospitals run it: every part a real process, TLS and keys on, started by the commands of the manuals.

What it learns is held against `wardround simulate` with the same plan and the same cases: to the last bit. Most of it
learns from phantoms; the whole way through firewalls is gone once more with real images.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import namespaces
import pytest
from deployment import eventually
from federation import PATIENCE_S, Federation, Reference, Where, local_options, simulate, simulate_on

from wardround.client.gate.ledger import Ledger
from wardround.deploy.coordinator.runs import OVER
from wardround.server.overview import scalar

SITES, ROUNDS = 3, 2
HUB, NORTH, SOUTH, PROXY = "10.77.0.2", "10.77.0.11", "10.77.0.12", "10.77.0.3"
PROXY_INSIDE, EAST = "10.78.0.1", "10.78.0.2"
PUBLIC, INNER, PROXY_PORT = 8443, 8444, 3128


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return simulate(tmp_path_factory.mktemp("reference") / "out", sites=SITES, rounds=ROUNDS)


def check_equal(federation: Federation, run: str) -> None:
    """The federation learnt what the simulation learnt, and scored it the same."""
    for number in range(1, federation.reference.plan["rounds"] + 1):
        assert federation.weights(run, number) == federation.reference.weights(number)
    for ours, theirs in zip(federation.rounds(run), federation.reference.rounds(), strict=True):
        assert (ours.refused, ours.missing) == ({}, {})
        assert list(ours.sites) == list(theirs.sites) == federation.reference.sites
        if theirs.evaluation is not None:
            assert ours.evaluation is not None
            assert ours.evaluation.sites == theirs.evaluation.sites


def check_ledgers(federation: Federation, run: str) -> None:
    """Each site's ledger holds together, and names the very bytes that the journal of the coordinator names."""
    for name, home in federation.sites.items():
        federation.site(name, "audit", "--verify")
        entries = [entry for entry in Ledger(home.ledger).entries() if entry.verdict == "allowed"]
        left = {entry.round: entry.sha256 for entry in entries if (entry.direction, entry.kind) == ("out", "train")}
        assert left == {record.round: record.sites[name].digest for record in federation.rounds(run)}
        assert [entry.kind for entry in entries if entry.direction == "out"].count("evaluate") >= 1


def test_on_one_machine(reference: Reference, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    federation = Federation(tmp_path, reference, local_options())
    with federation.serving():
        federation.run("first")
        capfd.readouterr()
        federation.coordinator("status")
        shown = capfd.readouterr().out
        assert shown.count("online") == SITES
        assert f"{ROUNDS} of {ROUNDS}" in shown
    check_equal(federation, "first")
    check_ledgers(federation, "first")
    federation.coordinator("export", "first", str(tmp_path / "model"))
    assert (tmp_path / "model" / "model.safetensors").exists()


@pytest.mark.long
def test_with_a_codec(tmp_path: Path) -> None:
    """Changes in 255 steps up, half precision down, and error feedback between the rounds."""
    reference = simulate(tmp_path / "reference", "--codec", "int8", sites=2, rounds=ROUNDS)
    federation = Federation(tmp_path, reference, local_options())
    with federation.serving():
        federation.run("small")
    check_equal(federation, "small")
    check_ledgers(federation, "small")
    whole = len(federation.weights("small", ROUNDS))
    for record in federation.rounds("small"):
        assert all(
            report.bytes_up < 0.3 * whole and report.bytes_down < 0.4 * whole for report in record.sites.values()
        )


@pytest.mark.long
def test_a_killed_coordinator_and_a_killed_site_change_nothing(reference: Reference, tmp_path: Path) -> None:
    federation = Federation(tmp_path, reference, local_options())
    with federation.serving():
        federation.run("shaken", "--detach")
        opened = federation.home.run_folder("shaken") / "open"
        eventually(lambda: any(opened.glob("*/*.npz")), "a first update", PATIENCE_S)
        federation.end("coordinator", signal.SIGKILL)
        eventually(lambda: federation.rounds("shaken"), "the first round", PATIENCE_S)
        federation.end(reference.sites[0], signal.SIGKILL)
        eventually(lambda: federation.state("shaken").phase in OVER, "the end of the run", 2 * PATIENCE_S)
    assert federation.state("shaken").phase == "finished", federation.state("shaken").state.reason
    check_equal(federation, "shaken")
    check_ledgers(federation, "shaken")


@pytest.mark.long
def test_a_stopped_run_goes_on_and_ends_the_same(
    reference: Reference, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    federation = Federation(tmp_path, reference, local_options())
    with federation.serving():
        federation.run("halting", "--detach")
        eventually(lambda: federation.rounds("halting"), "the first round", PATIENCE_S)
        federation.coordinator("stop", "halting")
        assert federation.state("halting").phase == "stopped"
        assert len(federation.rounds("halting")) < ROUNDS
        federation.coordinator("run", "halting", "--resume")
    check_equal(federation, "halting")


@contextmanager
def proxy(host: namespaces.Host, log: Path) -> Iterator[None]:
    """A CONNECT proxy on `host` that writes each request into `log`."""
    script = Path(__file__).parents[1] / "support" / "proxy.py"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*host.prefix, sys.executable, str(script), PROXY_INSIDE, str(PROXY_PORT)],
            stderr=stream,
            start_new_session=True,
        )
    try:
        yield
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def hosts() -> None:
    """Skip where no hosts can be made."""
    if why_not := namespaces.why_not():
        pytest.skip(why_not)


@pytest.mark.usefixtures("hosts")
def test_across_firewalls(reference: Reference, tmp_path: Path) -> None:
    run_across_firewalls(reference, tmp_path)


@pytest.mark.long
@pytest.mark.data
@pytest.mark.usefixtures("hosts")
def test_hippocampi_across_firewalls(data_folder: Path, tmp_path: Path) -> None:
    """Real images, two cases a site and round, and the whole plan as users have it."""
    if not (data_folder / "hippocampus" / "dataset.json").is_file():
        pytest.skip("WARDROUND_DATA has no folder `hippocampus`")
    reference = simulate_on(
        data_folder / "hippocampus", tmp_path / "reference", sites=SITES, rounds=ROUNDS, cases=2, tests=2
    )
    federation = run_across_firewalls(reference, tmp_path)
    # It learns: what leaves the sites is not what came in.
    last = federation.rounds("far")[-1]
    assert federation.weights("far", 1) != federation.weights("far", ROUNDS)
    assert last.evaluation is not None
    assert all(scalar(scores, "dice") > 0.1 for scores in last.evaluation.sites.values()), last.evaluation.sites


def run_across_firewalls(reference: Reference, tmp_path: Path) -> Federation:
    """Three sites on hosts of their own that nobody can dial, one behind a proxy, learn what a simulation learnt."""
    options = ["--name", HUB, "--port", str(PUBLIC), "--runtime-port", str(INNER)]
    federation = Federation(tmp_path, reference, options)
    names = reference.sites
    with namespaces.switch(f"wr{os.getpid()}") as switch:
        hub, north, south = (
            switch.host(name, f"{ip}/24") for name, ip in (("hub", HUB), ("north", NORTH), ("south", SOUTH))
        )
        outlet, east = switch.host("proxy", f"{PROXY}/24"), switch.host("east")
        switch.cable(outlet, "inner", f"{PROXY_INSIDE}/24", east, "outer", f"{EAST}/24")
        # The hosts do reach each other, so that what follows is the walls' doing.
        assert hub.reaches(NORTH, 22) == hub.reaches(SOUTH, 22) == outlet.reaches(EAST, 22) == "refused"
        for site in (north, south, east):
            site.wall()
        assert hub.reaches(NORTH, 22) == hub.reaches(SOUTH, 22) == outlet.reaches(EAST, 22) == "silence"
        assert east.reaches(HUB, PUBLIC) == "unreachable"
        way_out = f"http://{PROXY_INSIDE}:{PROXY_PORT}"
        # Both, as an administrator would set them: what stays on the machine must not go there.
        behind = Where(east.prefix, {"HTTPS_PROXY": way_out, "HTTP_PROXY": way_out, "https_proxy": way_out})
        places = dict(zip(names, (Where(north.prefix), Where(south.prefix), behind), strict=True))
        with proxy(outlet, tmp_path / "proxy.log"), federation.serving(Where(hub.prefix), places):
            eventually(lambda: north.reaches(HUB, PUBLIC) == "open", "the public port", PATIENCE_S)
            # The operator's side is for the coordinator's own machine.
            assert north.reaches(HUB, INNER) == "refused"
            federation.run("far")
            assert hub.reaches(NORTH, 22) == "silence"
        asked = (tmp_path / "proxy.log").read_text().split("\n")
    assert {line.split(" HTTP/")[0] for line in asked if line} == {f"CONNECT {HUB}:{PUBLIC}"}
    check_equal(federation, "far")
    check_ledgers(federation, "far")
    return federation
