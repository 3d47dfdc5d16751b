"""The coordinator's page: what it shows of a folder, that it changes nothing, and that nothing leaves its place."""

import json
import math
import sqlite3
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from reading import Page, complaints

from wardround import pages
from wardround.errors import ConnectionFailed, DataError
from wardround.server import curves, status
from wardround.server.home import CoordinatorHome, hold
from wardround.server.journal import Evaluation, Journal, RoundRecord, SiteReport
from wardround.server.overview import read_overview
from wardround.server.records import LateReport, Standing
from wardround.server.spool import OpenRound
from wardround.server.status import create_app
from wardround.strategies.contract import weights_to_record

NOW = 1_800_000_000.0
HOSTILE = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "</title></table><svg onload=alert(1)>",
    "{{7*7}}{% raw %}",
    "javascript:alert(1)//",
    "\u202egnp.exe\x00\x1b[31m",
    "é" * 300,
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A coordinator's folder without sites and runs."""
    for name in ("sites", "runs", "run"):
        (tmp_path / name).mkdir()
    settings = '[coordinator]\nnames = ["fed.example.org"]\nurl = "https://fed.example.org:8443"\n'
    (tmp_path / "coordinator.toml").write_text(settings)
    return tmp_path


def add_site(home: Path, name: str, state: str = "registered", node: int | None = None) -> None:
    number = len(list((home / "sites").iterdir()))
    body = {"name": name, "state": state, "node-id": None if node is None else str(node)}
    (home / "sites" / f"{number}.json").write_text(json.dumps(body))


def add_nodes(home: Path, *rows: tuple[int, str, float]) -> None:
    with sqlite3.connect(home / "superlink.db") as database:
        database.execute(
            "CREATE TABLE node (node_id INTEGER, status TEXT, online_until REAL, last_activated_at TEXT,"
            " last_deactivated_at TEXT)"
        )
        database.executemany("INSERT INTO node VALUES (?, ?, ?, NULL, NULL)", rows)
    database.close()


def add_run(home: Path, name: str, rounds: int = 0, sites: tuple[str, ...] = ("a", "b"), **state: object) -> Path:
    folder = home / "runs" / name
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps({"state": "running", "attempts": 1, **state}))
    (folder / "request.json").write_text(json.dumps({"name": name, "settings": {"rounds": 10}}))
    with Journal(folder) as journal:
        for number in range(1, rounds + 1):
            reports = {site: SiteReport({"loss": 1 / number}, 1000, 2000, 30.0) for site in sites}
            out = {"refused": {"c<i>": "not-finite"}, "missing": {"d": "<u>deadline"}} if number == rounds else {}
            record = RoundRecord(number, "0" * 64, reports, seconds={"roster": 1.0, "sites": 2.0}, **out)  # type: ignore[arg-type]
            journal.write(record, {"w": np.zeros(1, np.float32)}, {})
            journal.write_evaluation(number, Evaluation({site: {"dice": 0.1 * number} for site in sites}))
    return folder


def page_of(home: Path, path: str = "/") -> str:
    answer = TestClient(pages.Guard(create_app(home)), base_url="http://localhost").get(path)
    assert answer.status_code == 200, answer.text
    return answer.text


def metrics_of(home: Path) -> dict[tuple[str, ...], float]:
    """Every sample, by name and label values in order of the labels' names."""
    text = page_of(home, "/metrics")
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(s.name, *(s.labels[name] for name in sorted(s.labels))): s.value for s in samples}


def test_an_empty_coordinator(home: Path) -> None:
    html = page_of(home)
    assert complaints(html) == []
    text = Page(html).text
    assert "No site has been invited yet." in text
    assert "No run has been started yet." in text
    assert "Not serving" in text


def test_a_run_is_shown(home: Path) -> None:
    add_site(home, "a", node=2**64 - 5)
    add_site(home, "b", node=7)
    add_nodes(home, (-5, "online", 4e9), (7, "online", 5.0))
    add_run(home, "first", 3)
    with hold(CoordinatorHome(home).serve_lock):
        html = page_of(home)
    assert complaints(html) == []
    text = Page(html).text
    for part in (
        "Serving",
        "1 of 2",
        "3 of 10",
        "Curves of first",
        "c<i>: not-finite",
        "d: <u>deadline",
        "0.3",
        "6 kB",
    ):
        assert part in text, part
    assert "site b was last seen" in text
    assert len([svg for svg in Page(html).attributes("svg") if svg.get("role") == "img"]) == 3


def test_who_is_online_comes_from_the_database(home: Path) -> None:
    for name, state, node in (
        ("on", "registered", 1),
        ("late", "registered", 2),
        ("gone", "evicted", 3),
        ("new", "invited", None),
    ):
        add_site(home, name, state, node)
    add_nodes(home, (1, "online", NOW + 1), (2, "online", NOW - 1), (3, "online", NOW + 1))
    view = read_overview(CoordinatorHome(home), NOW)
    assert {site.name: site.online for site in view.sites} == {"on": True, "late": False, "gone": False, "new": False}
    assert view.online == 1
    assert {site.name: site.seen for site in view.sites}["late"] == NOW - 1


def test_the_database_is_not_written(home: Path) -> None:
    add_site(home, "a", node=1)
    add_nodes(home, (1, "online", 4e9))
    before = (home / "superlink.db").read_bytes()
    page_of(home)
    assert (home / "superlink.db").read_bytes() == before


def test_a_database_that_cannot_be_read_leaves_the_rest(home: Path) -> None:
    add_site(home, "a", node=1)
    add_run(home, "first", 1)
    (home / "superlink.db").write_bytes(b"no database at all")
    text = Page(page_of(home)).text
    assert "? of 1" in text
    assert "nobody knows who is online" in text
    assert "Rounds of first" in text


def test_flowers_own_database_has_what_is_read(tmp_path: Path) -> None:
    """The table is Flower's and may change with its version."""
    from flwr.supercore.state.schema.linkstate_models import Node

    columns = set(Node.__table__.columns.keys())
    assert Node.__tablename__ == "node"
    assert {"node_id", "status", "online_until", "last_activated_at", "last_deactivated_at"} <= columns


@pytest.mark.parametrize(
    "name", ["state.json", "request.json", "rounds/00002/round.json", "rounds/00001/evaluation.json"]
)
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"sites": 3}', b"[" * 100_000], ids=range(6))
def test_a_damaged_file_leaves_the_rest(home: Path, name: str, content: bytes) -> None:
    add_run(home, "good", 2)
    folder = add_run(home, "bad", 2)
    (folder / name).write_bytes(content)
    html = page_of(home, "/runs/bad")
    assert complaints(html) == []
    assert "good" in Page(html).text
    assert metrics_of(home)["wardround_run_rounds_closed", "good"] == 2


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text(home: Path, name: str) -> None:
    """A site's name, metrics, codes and reasons come from outside: none may become a tag or a template."""
    add_site(home, name, node=1)
    add_site(home, "known", name, node=2)
    folder = add_run(home, "first", reason=name, state="failed")
    with Journal(folder) as journal:
        report = SiteReport({"loss": 0.5, name: 1.0}, 1, 1, 1.0)
        record = RoundRecord(1, name, {name: report, "b": report}, {name: name}, {"x": name}, {name: 1.0})
        journal.write(record, {"w": np.zeros(1, np.float32)}, {})
        journal.write_evaluation(1, Evaluation({name: {"dice": 0.5}}, {name: name}))
    html = page_of(home)
    assert complaints(html) == []
    shown = "".join(Page(html).words)
    assert pages.printable(name) in shown
    assert not any(sign in html for sign in "\x00\x1b\u202e")
    assert metrics_of(home)["wardround_site_rounds_total", "combined", "first", name] == 1


def test_a_run_with_an_odd_name_has_a_link_that_leads_there(home: Path) -> None:
    add_run(home, 'a&b=c?d#e "<i>', 1)
    html = page_of(home)
    assert complaints(html) == []
    (link,) = [str(a["href"]) for a in Page(html).attributes("a") if str(a["href"]).startswith("/runs/")]
    assert "Rounds of a&b=c?d#e" in Page(page_of(home, link)).text


@pytest.mark.parametrize("path", ["/runs/none", "/runs/%2e%2e%2fsites", "/docs", "/openapi.json", "/nowhere"])
def test_there_is_nothing_else(home: Path, path: str) -> None:
    client = TestClient(pages.Guard(create_app(home)), base_url="http://localhost")
    assert client.get(path).status_code == 404


@pytest.mark.parametrize("refresh", ["1", "x", "<script>", "99999"])
def test_renewing_takes_only_a_sensible_time(home: Path, refresh: str) -> None:
    client = TestClient(pages.Guard(create_app(home)), base_url="http://localhost")
    assert client.get("/", params={"refresh": refresh}).status_code == 422
    assert '<meta http-equiv="refresh" content="30">' in client.get("/?refresh=30").text


def test_the_run_that_matters_most_comes_first(home: Path) -> None:
    for name, state in (("done", "finished"), ("next", "queued"), ("now", "running")):
        add_run(home, name, state=state, updated=f"2026-01-0{len(name) - 2}T00:00:00+00:00")
    assert [run.name for run in read_overview(CoordinatorHome(home)).runs] == ["now", "next", "done"]


def test_a_round_that_was_rolled_back_is_read_again(home: Path) -> None:
    folder = add_run(home, "first", 2)
    view = read_overview(CoordinatorHome(home)).runs[0]
    assert view.last is not None
    path = folder / "rounds" / "00002" / "round.json"
    body = json.loads(path.read_text())
    path.write_text(json.dumps({**body, "sites": {}}))
    again = read_overview(CoordinatorHome(home)).runs[0]
    assert again.last is not None
    assert (len(view.last.sites), len(again.last.sites)) == (2, 0)


def test_quarantine_and_late_replies_are_shown(home: Path) -> None:
    folder = add_run(home, "first")
    report = SiteReport({"loss": 0.5}, 1, 1, 1.0)
    with Journal(folder) as journal:
        standing = {"bad": Standing(3, until=2), "back": Standing(1, until=1)}
        late = {"slow": LateReport(1, 0.5, "", report)}
        record = RoundRecord(1, "", {"a": report}, {"bad": "norm"}, late=late, standing=standing)
        journal.write(record, {"w": np.zeros(1, np.float32)}, {})
    text = Page(page_of(home)).text
    assert "In quarantine 1 bad" in text
    assert "bad: norm, slow: late for round 1, weight 0.5" in text
    assert metrics_of(home)["wardround_site_quarantined", "first", "bad"] == 1


def accept(spool: OpenRound, site: str, round_: int) -> None:
    weights = {"w": np.zeros(1, np.float32)}
    assert spool.accept(site, round_, 1.0, weights_to_record(weights), weights, SiteReport({}, 1, 1, 1.0))


def test_the_open_round_is_shown(home: Path) -> None:
    """Attempt, who was asked, who has answered, who is waited for, and what became of the attempt before."""
    spool = OpenRound(add_run(home, "first", 2), 3, "start")
    assert "nobody was asked yet" in Page(page_of(home)).text
    spool.begin_attempt(["a", "b", "<i>"])
    accept(spool, "a", 3)
    # Asked for in the round before: it is kept, and is no answer to this round.
    accept(spool, "b", 2)
    html = page_of(home)
    assert complaints(html) == []
    text = Page(html).text
    assert "Open round of first Round 3 of 10, attempt 1, asked" in text
    assert "1 of 3 have answered, waited for: <i>, b." in text
    assert "a answered" in text
    assert "b waited for" in text
    found = metrics_of(home)
    assert found["wardround_open_round_sites", "accepted", "first"] == 1
    assert found["wardround_open_round_sites", "waited-for", "first"] == 2

    spool.give_up_attempt({"b": "not-finite"}, {"<i>": "timeout"})
    text = Page(page_of(home)).text
    assert "attempt 1 was given up" in text
    assert "<i> not asked timeout" in text
    assert "b not asked not-finite" in text
    assert "waited for:" not in text

    spool.begin_attempt(["a", "b"])
    text = Page(page_of(home)).text
    assert "attempt 2, asked" in text
    assert "1 of 2 have answered, waited for: b." in text
    assert "b waited for not-finite" in text


def test_a_round_that_was_closed_is_open_no_more(home: Path) -> None:
    """A coordinator that was killed behind the closing leaves its updates until it is started again."""
    folder = add_run(home, "first", 2)
    OpenRound(folder, 2, "start").begin_attempt(["a"])
    assert read_overview(CoordinatorHome(home)).runs[0].open is None
    assert "Open round" not in Page(page_of(home)).text
    assert ("wardround_open_round_sites", "accepted", "first") not in metrics_of(home)


def test_a_run_that_failed_says_so_beside_its_open_round(home: Path) -> None:
    spool = OpenRound(add_run(home, "first", state="failed"), 1, "start")
    spool.begin_attempt(["a"])
    spool.give_up_attempt({}, {"a": "offline"})
    assert "kept for the next one. The run is failed." in Page(page_of(home)).text


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"asked": 3}', b'{"missing": 1, "refused": 2}'], ids=range(7)
)
def test_a_damaged_attempt_leaves_the_rest(home: Path, content: bytes) -> None:
    folder = add_run(home, "first", 2)
    OpenRound(folder, 3, "start").begin_attempt(["a"])
    (folder / "open" / "00003" / "attempt-0001.json").write_bytes(content)
    assert "Rounds of first" in Page(page_of(home)).text


def test_metrics(home: Path) -> None:
    add_site(home, "a", node=1)
    add_nodes(home, (1, "online", 4e9))
    add_run(home, "first", 3, attempts=2)
    found = metrics_of(home)
    assert found["wardround_site_online", "a"] == 1
    assert found["wardround_run_rounds_closed", "first"] == 3
    assert found["wardround_run_attempts_total", "first"] == 2
    assert found["wardround_site_bytes_total", "down", "first", "a"] == 3000
    assert found["wardround_site_bytes_total", "up", "first", "a"] == 6000
    assert found["wardround_site_rounds_total", "refused", "first", "c<i>"] == 1
    assert found["wardround_site_dice", "first", "a"] == pytest.approx(0.3)
    assert found["wardround_run_phase_seconds", "roster", "first"] == 1.0


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.61, 0.83), (-3.0, 4.0), (1e-9, 2e-9), (1e6, 1e6 + 1), (5.0, 5.0), (0.0, 1e300)]
)
def test_ticks_cover_what_is_drawn(low: float, high: float) -> None:
    ticks = curves.nice_ticks(low, high)
    assert ticks == sorted(set(ticks))
    assert 2 <= len(ticks) <= 7
    assert ticks[0] <= low
    assert ticks[-1] >= high


def test_a_line_has_a_gap_where_a_site_was_left_out() -> None:
    records = [
        RoundRecord(
            number,
            "",
            {
                "b": SiteReport({"loss": 2.0}, 0, 0, 1.0),
                **({} if number == 3 else {"a": SiteReport({"loss": 1.0 * number}, 0, 0, 1.0)}),
            },
        )
        for number in range(1, 6)
    ]
    loss = next(curve for curve in curves.curves_of(records) if curve.title == "Loss in training")
    line = next(line for line in loss.lines if line.site == "a")
    assert len(line.pieces) == 2
    assert len(line.dots) == 4
    assert math.isnan(line.values[2])


def test_sites_keep_their_colour_from_chart_to_chart() -> None:
    report = SiteReport({"loss": 1.0}, 0, 0, 1.0)
    sites = {f"s{number:02d}": report for number in range(30)}
    scores = Evaluation({name: {"dice": 0.5} for name in list(sites)[5:]})
    drawn = curves.curves_of([RoundRecord(1, "", sites, evaluation=scores)])
    looks = [{line.site: (line.hue, line.dash) for line in curve.lines} for curve in drawn]
    assert all(look.items() <= looks[-1].items() for look in looks)
    assert len({looks[-1][name] for name in list(sites)[:24]}) == 24


def test_values_that_no_chart_can_show_are_left_out(home: Path) -> None:
    report = SiteReport({"loss": math.inf, "dice": [1.0]}, 0, 0, 0.0)
    drawn = curves.curves_of([RoundRecord(1, "", {"a": report}, evaluation=Evaluation({"a": {"dice": math.nan}}))])
    assert [curve.title for curve in drawn] == ["Time until the reply"]


def test_it_is_served(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a real server, on the loopback interface, without saying what serves it."""
    servers: list[uvicorn.Server] = []
    original = uvicorn.Server.startup

    async def startup(self: uvicorn.Server, sockets: None = None) -> None:
        await original(self, sockets)
        servers.append(self)
        ready.set()

    ready = threading.Event()
    monkeypatch.setattr(uvicorn.Server, "startup", startup)
    thread = threading.Thread(target=lambda: status.serve(home, port=0), daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        (address,) = {socket.getsockname() for server in servers[0].servers for socket in server.sockets}
        assert address[0] == "127.0.0.1"
        answer = httpx.get(f"http://localhost:{address[1]}/", trust_env=False)
        assert answer.status_code == 200
        assert "server" not in answer.headers
        assert "content-security-policy" in answer.headers
        refused = httpx.get(f"http://localhost:{address[1]}/", headers={"host": "evil.example"}, trust_env=False)
        assert refused.status_code == 421
    finally:
        servers[0].should_exit = True
        thread.join(30)


def test_a_port_that_is_taken_is_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConnectionFailed, match="cannot be served"):
            status.serve(home, port=port)
        assert status.main(["--home", str(home), "--port", str(port)]) == ConnectionFailed.exit_code


def test_a_folder_that_is_no_coordinators(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        status.serve(tmp_path)
    assert status.main(["--home", str(tmp_path)]) == DataError.exit_code
