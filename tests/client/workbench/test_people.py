"""Accounts over HTTP: one's own password, and what an administrator does without a shell."""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from workbench import FakeStudio, Workbench, password, workbench

from wardround.client.workbench import access, notation
from wardround.client.workbench.accounts import Accounts

OURS = {"sec-fetch-site": "same-origin"}
NEW = "quite another few words"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Workbench]:
    with workbench(tmp_path / "home", studio=FakeStudio) as found:
        yield found


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def signed_in(bench: Workbench, name: str, word: str) -> httpx.Client:
    browser = bench.client(headers=OURS)
    assert browser.post("/api/v1/login", json={"name": name, "password": word}).status_code == 200
    return browser


def test_a_person_chooses_another_password_and_only_this_session_goes_on(bench: Workbench) -> None:
    here, elsewhere = (signed_in(bench, "ann", password("ann")) for _ in range(2))
    viewer = bench.client("ann")
    ben = bench.client("ben")
    for old, new, expected in (
        ("wrong", NEW, (403, "wrong-password")),
        (password("ann"), "short", (409, "not-possible")),
        (password("ann"), password("ann"), (409, "not-possible")),
    ):
        assert code(here.post("/api/v1/password", json={"old": old, "new": new})) == expected
    assert elsewhere.get("/api/v1/me").status_code == 200
    assert here.post("/api/v1/password", json={"old": password("ann"), "new": NEW}).status_code == 204
    assert here.get("/api/v1/cases").status_code == 200
    assert [one.get("/api/v1/me").status_code for one in (elsewhere, viewer, ben)] == [401, 401, 200]
    stranger = bench.client(headers=OURS)
    assert code(stranger.post("/api/v1/login", json={"name": "ann", "password": password("ann")}))[0] == 401
    signed_in(bench, "ann", NEW)


def test_wrong_old_passwords_are_borne_as_seldom_as_at_the_door(bench: Workbench) -> None:
    browser = signed_in(bench, "ann", password("ann"))
    wrong = {"old": "a guess", "new": NEW}
    assert {code(browser.post("/api/v1/password", json=wrong)) for _ in range(5)} == {(403, "wrong-password")}
    answer = browser.post("/api/v1/password", json={"old": password("ann"), "new": NEW})
    assert code(answer) == (429, "too-many-tries")
    assert int(answer.headers["retry-after"]) > 0


def test_a_one_time_password_is_good_for_choosing_another_and_nothing_else(bench: Workbench) -> None:
    made = bench.client("adm").post("/api/v1/accounts", json={"name": "eva", "role": "reviewer"})
    assert made.status_code == 201
    once = made.json().pop("password")
    expected = {"name": "eva", "role": "reviewer", "disabled": False, "one_time": True, "source": "local"}
    assert made.json() == expected | {"password": once}
    eva = signed_in(bench, "eva", once)
    assert eva.get("/api/v1/me").json()["change_password"] is True
    token = bench.app.state.access.token("eva", once)
    viewer = bench.client(headers={"authorization": f"Bearer {token}"})
    for client in (eva, viewer):
        for path in ("/api/v1/cases", "/api/v1/site", "/info/", "/openapi.json", "/datastore/"):
            answer = client.get(path)
            assert answer.status_code == 403, path
            assert answer.json()["error"]["code"] == "change-password"
    assert eva.post("/api/v1/password", json={"old": once, "new": NEW}).status_code == 204
    assert eva.get("/api/v1/me").json() == {
        "name": "eva", "roles": ["annotator", "reviewer"], "change_password": False,
    }  # fmt: skip
    assert eva.get("/api/v1/cases").status_code == 200
    assert viewer.get("/api/v1/me").status_code == 401


def test_a_one_time_password_does_not_wait_for_ever(tmp_path: Path) -> None:
    now = [1e9]
    accounts = Accounts(tmp_path / "accounts.json", clock=lambda: now[0])
    once = accounts.invite("eva", "annotator")
    assert accounts.verify("eva", once)[0].must_change
    now[0] += 48 * 3600 + 1
    with pytest.raises(Exception, match="do not fit"):
        accounts.verify("eva", once)
    assert accounts.verify("eva", accounts.reset("eva"))[0].must_change


def test_an_administrator_needs_no_shell(bench: Workbench) -> None:
    adm, ann = bench.client("adm"), bench.client("ann")
    found = {one["name"]: one for one in adm.get("/api/v1/accounts").json()["accounts"]}
    assert found["rev"] == {"name": "rev", "role": "reviewer", "disabled": False, "one_time": False, "source": "local"}
    assert adm.post("/api/v1/accounts/ann/role", json={"role": "reviewer"}).json()["role"] == "reviewer"
    assert ann.get("/api/v1/me").status_code == 401, "a session with the old role goes on"
    ann = bench.client("ann")
    assert ann.get("/api/v1/me").json()["roles"] == ["annotator", "reviewer"]
    assert adm.post("/api/v1/accounts/ann/disabled", json={"disabled": True}).json()["disabled"] is True
    assert ann.get("/api/v1/me").status_code == 401
    refused = bench.client(headers=OURS).post("/api/v1/login", json={"name": "ann", "password": password("ann")})
    assert code(refused) == (401, "not-signed-in")
    assert adm.post("/api/v1/accounts/ann/disabled", json={"disabled": False}).json()["disabled"] is False
    assert ann.get("/api/v1/me").status_code == 401, "a session from before comes to life again"
    signed_in(bench, "ann", password("ann"))
    once = adm.post("/api/v1/accounts/ann/reset").json()["password"]
    assert signed_in(bench, "ann", once).get("/api/v1/me").json()["change_password"] is True


def test_nobody_locks_themselves_out_and_mistakes_are_said(bench: Workbench) -> None:
    adm = bench.client("adm")
    for what, body in (("role", {"role": "annotator"}), ("disabled", {"disabled": True}), ("reset", {})):
        assert code(adm.post(f"/api/v1/accounts/adm/{what}", json=body)) == (409, "own-account")
        assert code(adm.post(f"/api/v1/accounts/nobody/{what}", json=body)) == (404, "no-such-account")
    assert code(adm.post("/api/v1/accounts", json={"name": "ann"})) == (409, "not-possible")
    assert code(adm.post("/api/v1/accounts", json={"name": "imported"})) == (409, "not-possible")
    assert code(adm.post("/api/v1/accounts", json={"name": "eva", "role": "god"})) == (422, "not-understood")
    assert signed_in(bench, "adm", password("adm")).get("/api/v1/accounts").status_code == 200


def test_no_answer_holds_a_hash(bench: Workbench) -> None:
    adm = bench.client("adm")
    answers = [
        adm.get("/api/v1/accounts"), adm.post("/api/v1/accounts", json={"name": "eva"}),
        adm.post("/api/v1/accounts/ann/role", json={"role": "admin"}), adm.post("/api/v1/accounts/ben/reset"),
        adm.post("/api/v1/accounts/rev/disabled", json={"disabled": True}), adm.get("/api/v1/accounts"),
    ]  # fmt: skip
    kept = json.loads(bench.home.accounts.read_text())["accounts"]
    for answer in answers:
        assert answer.status_code in (200, 201)
        assert answer.headers["cache-control"] == "no-store"
        assert "argon2" not in answer.text
        assert not [one for one in kept.values() if one["hash"] in answer.text or one["serial"] in answer.text]


def test_guesses_leave_threads_for_those_who_draw(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many passwords are looked at, each takes as long as it likes, and a stroke goes through."""
    ann = bench.client("ann", timeout=30)
    let_go, begun = threading.Event(), threading.Semaphore(0)

    def slow(*args: Any) -> Any:
        begun.release()
        let_go.wait(60)
        raise AssertionError

    monkeypatch.setattr(Accounts, "verify", slow)
    port = int(bench.url.rpartition(":")[2])
    lines = []
    try:
        for index in range(60):
            path, kind = ("/api/v1/login", "application/json") if index % 2 else (
                "/auth/token", "application/x-www-form-urlencoded",
            )  # fmt: skip
            body = '{"name":"ann","password":"x"}' if index % 2 else "username=ann&password=x"
            line = socket.create_connection(("127.0.0.1", port), timeout=60)
            line.sendall(
                f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {kind}\r\n"
                f"content-length: {len(body)}\r\n\r\n{body}".encode()
            )
            lines.append(line)
        assert all(begun.acquire(timeout=30) for _ in range(access.PASSWORDS_AT_ONCE))
        assert ann.get("/api/v1/cases").status_code == 200
        assert not begun.acquire(blocking=False), "more are looked at than should be at once"
    finally:
        let_go.set()
        for line in lines:
            line.close()


@pytest.mark.parametrize(
    ("path", "most"),
    [("/api/v1/cases/case-0/draw", 1 << 20), ("/api/v1/cases/case-0/accept", 1 << 16), ("/api/v1/password", 1 << 16)],
)
def test_a_body_is_as_long_as_its_route_needs(bench: Workbench, path: str, most: int) -> None:
    ann = bench.client("ann")
    for body in (b" " * (most + 1), iter([b"[" * most, b"[" * 9])):
        assert ann.post(path, content=body, headers={"content-type": "application/json"}).status_code == 413
    deep = ann.post(path, content=b"[" * most, headers={"content-type": "application/json"})
    assert deep.status_code in (400, 422)
    assert ann.get("/api/v1/me").status_code == 200


def test_a_drawing_is_read_where_it_holds_nobody_up(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    original = notation.DrawJson.model_validate_json

    def read(data: bytes) -> Any:
        threads.append(threading.current_thread().name)
        return original(data)

    monkeypatch.setattr(notation.DrawJson, "model_validate_json", read)
    ann = bench.client("ann")
    ann.post("/api/v1/cases/case-0/open")
    drawn = {"prompts": [{"kind": "point", "index": [3, 4, 5], "label": 1}]}
    assert ann.post("/api/v1/cases/case-0/draw", json=drawn).status_code == 200
    json_ = {"content-type": "application/json"}
    broken = ann.post("/api/v1/cases/case-0/draw", content=b"{", headers=json_)
    assert code(broken) == (422, "not-understood")
    assert len(threads) == 2
    assert "workbench" not in threads, "the thread that answers everybody"
