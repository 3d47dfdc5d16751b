"""A site's own page: what it says of the ledger, that it changes nothing, and that nothing leaves its place."""

import fcntl
import hashlib
import json
import os
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from reading import Page, complaints

from wardround import pages
from wardround.client import status
from wardround.client.gate.ledger import Ledger
from wardround.client.gate.policy import POLICY_TEMPLATE
from wardround.client.home import SETTINGS_TEMPLATE, SiteHome
from wardround.client.overview import MOST_LINES, read_site
from wardround.client.status import create_app
from wardround.errors import DataError, UsageError

DAY = 86_400.0
HOSTILE = ("<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "{{7*7}}", "\u202eevil\x00")


def digest(value: object) -> str:
    return hashlib.sha256(str(value).encode()).hexdigest()


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    """A site's home as `wardround site init` leaves it, without keys."""
    (tmp_path / "run").mkdir()
    (tmp_path / "site.toml").write_text(
        SETTINGS_TEMPLATE.format(name="charite", coordinator="https://fed.example.org:8443")
    )
    (tmp_path / "policy.toml").write_text(POLICY_TEMPLATE)
    return SiteHome(tmp_path)


def fill(home: SiteHome, rounds: int, now: float | None = None) -> Ledger:
    """One round a day: weights come in, an update is released and sent; the last one is refused."""
    moment = [(time.time() if now is None else now) - rounds * DAY]
    ledger = Ledger(home.ledger, lambda: moment[0])
    ledger.append(direction="in", kind="app", verdict="allowed", code="admitted", bytes=500, sha256=digest("app"))
    for number in range(1, rounds + 1):
        about = {"run": "heart", "round": number, "plan": digest("plan")}
        ledger.append(
            direction="in", kind="train", verdict="allowed", code="admitted", bytes=1000, sha256=digest(number), **about
        )
        out = {"direction": "out", "kind": "train", "bytes": 2000, "sha256": digest(-number), "cases": 7, **about}
        if number == rounds:
            ledger.append(**out, verdict="refused", code="norm")
        else:
            ledger.append(**out, verdict="allowed", code="released")
            ledger.append(**out, verdict="allowed", code="sent")
        moment[0] += DAY
    return ledger


def page_of(home: SiteHome, path: str = "/") -> str:
    answer = TestClient(pages.Guard(create_app(home.path)), base_url="http://localhost").get(path)
    assert answer.status_code == 200, answer.text
    return answer.text


def metrics_of(home: SiteHome) -> dict[tuple[str, ...], float]:
    samples = [s for family in text_string_to_metric_families(page_of(home, "/metrics")) for s in family.samples]
    return {(s.name, *(s.labels[name] for name in sorted(s.labels))): s.value for s in samples}


def test_a_new_site(home: SiteHome) -> None:
    html = page_of(home)
    assert complaints(html) == []
    text = Page(html).text
    for part in (
        "charite",
        "Nothing has left yet.",
        "Nothing has been refused.",
        "the agent is not running",
        "min-cases",
    ):
        assert part in text, part


def test_what_left_and_when(home: SiteHome) -> None:
    fill(home, 5)
    html = page_of(home)
    assert complaints(html) == []
    text = Page(html).text
    for part in ("8 kB", "in 4 messages", "round 5", "whole", "the weights moved further than the policy allows"):
        assert part in text, part
    assert digest(-4) in html
    assert digest(-5)[:12] not in html.split('id="refused"')[0]


def test_what_was_checked_but_never_sent_did_not_leave(home: SiteHome) -> None:
    Ledger(home.ledger).append(
        direction="out", kind="train", verdict="allowed", code="released", bytes=9, sha256=digest(1)
    )
    assert "Nothing has left yet." in Page(page_of(home)).text


def test_totals_count_more_than_is_shown(home: SiteHome) -> None:
    fill(home, MOST_LINES + 21)
    view = read_site(home)
    assert len(view.account.sent) == MOST_LINES
    assert view.account.sum_of(code="sent").sent == MOST_LINES + 20
    assert view.account.sent[0].round == MOST_LINES + 20
    assert f"The latest {MOST_LINES} of {MOST_LINES + 20}" in Page(page_of(home)).text


def test_a_new_line_is_seen(home: SiteHome) -> None:
    ledger = fill(home, 2)
    assert metrics_of(home)["wardround_ledger_lines",] == 6
    ledger.append(direction="in", kind="query", verdict="allowed", code="admitted")
    assert metrics_of(home)["wardround_ledger_lines",] == 7


def test_a_ledger_that_was_changed_is_called_out(home: SiteHome) -> None:
    fill(home, 3)
    home.ledger.write_bytes(home.ledger.read_bytes().replace(b'"bytes":2000', b'"bytes":2001', 1))
    html = page_of(home)
    assert complaints(html) == []
    text = Page(html).text
    assert "damaged" in text
    assert "the ledger is not whole at line 3: it was changed" in text
    assert metrics_of(home)["wardround_ledger_valid",] == 0


def test_looking_writes_nothing(home: SiteHome) -> None:
    fill(home, 2)
    with home.ledger.open("ab") as stream:
        stream.write(b'{"torn')
    before = {path: path.read_bytes() for path in home.path.rglob("*") if path.is_file()}
    page_of(home)
    page_of(home, "/metrics")
    assert {path: path.read_bytes() for path in home.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("how", "said"),
    [("paused", "rounds go on without it"), ("left", "has left"), ("active", "the agent is not running")],
)
def test_whether_it_takes_part(home: SiteHome, how: str, said: str) -> None:
    home.participate(how)  # type: ignore[arg-type]
    assert said in Page(page_of(home)).text
    assert metrics_of(home)["wardround_site_state", how] == 1


def test_an_agent_at_work_is_seen(home: SiteHome) -> None:
    handle = os.open(home.lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert "the agent is at work" in Page(page_of(home)).text
    os.close(handle)
    assert metrics_of(home)["wardround_agent_up",] == 0


def add_bundle(home: SiteHome, **changes: object) -> None:
    now = time.time()
    entry = {"sha256": "ab" * 32, "name": "lab/app 1.0", "flags": [], "state": "pending", "seen": now, **changes}
    home.approvals.write_text(json.dumps({"format": 1, "bundles": [entry]}))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, "waits for you"),
        ({"state": "approved", "decided": 1.0, "expires": 4e9, "by": "ann"}, "approved"),
        ({"state": "approved", "decided": 1.0, "expires": 2.0, "by": "ann"}, "expired"),
        ({"state": "revoked", "decided": 1.0, "by": "ann"}, "revoked"),
    ],
)
def test_bundles(home: SiteHome, changes: dict[str, object], word: str) -> None:
    add_bundle(home, **changes)
    html = page_of(home)
    assert complaints(html) == []
    assert word in Page(html).text
    assert metrics_of(home)["wardround_bundles_waiting",] == float(word == "waits for you")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text(home: SiteHome, name: str) -> None:
    """The name of a bundle is the coordinator's; that of a policy's model the administrator's."""
    add_bundle(home, name=name, by=name)
    html = page_of(home)
    assert complaints(html) == []
    assert pages.printable(name) in "".join(Page(html).words)


@pytest.mark.parametrize("file", ["site.toml", "policy.toml", "approvals.json", "state.json", "ledger.head"])
@pytest.mark.parametrize("content", [b"", b"<script>", b"\xff\xfe", b"["], ids=range(4))
def test_a_damaged_file_leaves_the_rest(home: SiteHome, file: str, content: bytes) -> None:
    fill(home, 2)
    (home.path / file).write_bytes(content)
    html = page_of(home)
    assert complaints(html) == []
    assert "What came in" in Page(html).text
    if (file, content) != ("policy.toml", b""):
        assert "Look into this" in html


def test_metrics_tell_of_no_case(home: SiteHome) -> None:
    fill(home, 3)
    found = metrics_of(home)
    assert found["wardround_messages_total", "sent", "out", "train", "allowed"] == 2
    assert found["wardround_message_bytes_total", "sent", "out", "train", "allowed"] == 4000
    assert found["wardround_messages_total", "norm", "out", "train", "refused"] == 1
    assert found["wardround_round",] == 3
    assert not [name for name in found if "case" in name[0]]


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/ledger.jsonl", "/keys/node", "/%2e%2e/site.toml"])
def test_there_is_nothing_else(home: SiteHome, path: str) -> None:
    client = TestClient(pages.Guard(create_app(home.path)), base_url="http://localhost")
    assert client.get(path).status_code == 404


def test_without_a_port_there_is_no_page(home: SiteHome) -> None:
    with pytest.raises(UsageError, match="no port"):
        status.serve(home.path)
    assert status.main(["--home", str(home.path)]) == UsageError.exit_code


def test_a_folder_that_is_no_sites(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        status.serve(tmp_path)
