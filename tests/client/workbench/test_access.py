"""Sessions: how they begin, and everything that ends them; and whose pages a browser's cookie is taken from."""

from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Request, Response
from starlette.testclient import TestClient
from workbench import QUICK

from wardround.client.workbench.access import (
    COOKIE,
    IDLE_S,
    OLDEST_S,
    SESSIONS_EACH,
    TOKEN_IDLE_S,
    WHOSE,
    Access,
    is_own_page,
)
from wardround.client.workbench.accounts import Accounts, Person
from wardround.client.workbench.errors import handle_errors

WORD = "a few words do well"
OURS = {"sec-fetch-site": "same-origin"}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Door:
    """An application with one readable and one changing route for each role."""

    def __init__(self, folder: Path, *, secure: bool = False) -> None:
        self.clock = Clock()
        self.accounts = Accounts(folder / "accounts.json", hasher=QUICK)
        self.accounts.add("ann", WORD, "annotator")
        self.accounts.add("rev", WORD, "reviewer")
        self.access = Access(self.accounts, secure=secure, clock=self.clock)
        app = FastAPI()
        handle_errors(app)

        @app.post("/login")
        def login(request: Request, response: Response, name: str) -> str:
            return self.access.sign_in(request, response, name, WORD).name

        @app.post("/logout", dependencies=[Depends(self.access.require())])
        def logout(request: Request, response: Response) -> None:
            self.access.sign_out(request, response)

        @app.post("/password")
        def password(request: Request, person: Annotated[Person, Depends(self.access.require())]) -> None:
            self.access.change_password(request, person, WORD, f"{WORD} indeed")

        @app.api_route("/anyone", methods=["GET", "POST"], dependencies=[Depends(self.access.require())])
        def anyone() -> None:
            return None

        @app.get("/review", dependencies=[Depends(self.access.require("reviewer"))])
        def review() -> None:
            return None

        self.app = app

    def browser(self) -> TestClient:
        return TestClient(self.app, base_url="https://localhost")


@pytest.fixture
def door(tmp_path: Path) -> Door:
    return Door(tmp_path)


def signed_in(door: Door, name: str = "ann") -> TestClient:
    browser = door.browser()
    assert browser.post(f"/login?name={name}", headers=OURS).status_code == 200
    return browser


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.mark.parametrize("secure", [False, True])
def test_the_cookie_is_for_our_page_alone(tmp_path: Path, secure: bool) -> None:
    said = Door(tmp_path, secure=secure).browser().post("/login?name=ann").headers["set-cookie"].lower()
    assert {"httponly", "samesite=strict", "path=/"} <= set(said.split("; "))
    assert ("secure" in said.split("; ")) == secure
    assert "domain" not in said


def test_nobody_is_let_in_without_a_session(door: Door) -> None:
    answer = door.browser().get("/anyone")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer "},
        {"authorization": "Bearer nonsense"},
        {"authorization": "Basic YW5uOng="},
        {"cookie": f"{COOKIE}="},
        {"cookie": f"{COOKIE}=nonsense"},
    ],
)
def test_a_made_up_token_is_nobody(door: Door, headers: dict[str, str]) -> None:
    assert door.browser().get("/anyone", headers=headers).status_code == 401


def test_who_shows_a_wrong_token_is_not_known_by_the_cookie(door: Door) -> None:
    browser = signed_in(door)
    assert browser.get("/anyone").status_code == 200
    assert browser.get("/anyone", headers=bearer("nonsense")).status_code == 401


def test_a_role_that_is_missing_is_said(door: Door) -> None:
    assert signed_in(door, "ann").get("/review").status_code == 403
    assert signed_in(door, "rev").get("/review").status_code == 200


@pytest.mark.parametrize(("step", "lives"), [(IDLE_S - 1, True), (IDLE_S, False)])
def test_an_idle_session_ends(door: Door, step: float, lives: bool) -> None:
    browser = signed_in(door)
    for _ in range(2):
        door.clock.now += step
        assert (browser.get("/anyone").status_code == 200) == lives


def test_a_busy_session_ends_as_well(door: Door) -> None:
    browser = signed_in(door)
    while door.clock.now + IDLE_S / 2 < OLDEST_S:
        door.clock.now += IDLE_S / 2
        assert browser.get("/anyone").status_code == 200
    door.clock.now = OLDEST_S
    assert browser.get("/anyone").status_code == 401


def test_a_token_ends_when_idle(door: Door) -> None:
    token = door.access.token("ann", WORD)
    door.clock.now += TOKEN_IDLE_S - 1
    assert door.browser().get("/anyone", headers=bearer(token)).status_code == 200
    door.clock.now += TOKEN_IDLE_S
    assert door.browser().get("/anyone", headers=bearer(token)).status_code == 401


def test_a_page_that_asks_by_itself_does_not_keep_its_session_alive(door: Door) -> None:
    token = door.access.token("ann", WORD)
    request = Request({"type": "http", "method": "GET", "headers": [(b"authorization", f"Bearer {token}".encode())]})
    door.clock.now += TOKEN_IDLE_S - 1
    assert door.access.person(request, quietly=True) is not None
    door.clock.now += 1
    assert door.access.person(request, quietly=True) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda accounts: accounts.set_password("ann", "another few words"),
        lambda accounts: accounts.set_role("ann", "reviewer"),
        lambda accounts: accounts.remove("ann"),
    ],
)
def test_a_change_of_the_account_ends_its_sessions_and_no_others(door: Door, change: object) -> None:
    browser, other, token = signed_in(door), signed_in(door, "rev"), door.access.token("ann", WORD)
    assert callable(change)
    change(door.accounts)
    assert browser.get("/anyone").status_code == 401
    assert browser.get("/anyone", headers=bearer(token)).status_code == 401
    assert other.get("/anyone").status_code == 200


def test_signing_out_ends_the_session_at_the_server(door: Door) -> None:
    browser = signed_in(door)
    cookie = browser.cookies[COOKIE]
    assert browser.post("/logout", headers=OURS).status_code == 200
    assert COOKIE not in browser.cookies
    assert door.browser().get("/anyone", headers={"cookie": f"{COOKIE}={cookie}"}).status_code == 401


def test_a_planted_cookie_is_worth_nothing_after_signing_in(door: Door) -> None:
    planted = signed_in(door, "rev").cookies[COOKIE]
    browser = door.browser()
    browser.cookies.set(COOKIE, planted)
    answer = browser.post("/login?name=ann", headers=OURS)
    assert planted not in answer.headers["set-cookie"], "the session would be the attacker's"
    assert door.browser().get("/anyone", headers={"cookie": f"{COOKIE}={planted}"}).status_code == 401


def test_two_sessions_never_share_a_token(door: Door) -> None:
    tokens = {door.access.token("ann", WORD) for _ in range(SESSIONS_EACH)}
    assert len(tokens) == SESSIONS_EACH
    assert min(map(len, tokens)) >= 40


def test_the_session_idle_for_longest_makes_room(door: Door) -> None:
    first = door.access.token("ann", WORD)
    others = []
    for _ in range(SESSIONS_EACH):
        door.clock.now += 1
        others.append(door.access.token("ann", WORD))
    browser = door.browser()
    assert browser.get("/anyone", headers=bearer(first)).status_code == 401
    assert {browser.get("/anyone", headers=bearer(token)).status_code for token in others} == {200}


def test_what_one_persons_page_sends_never_becomes_anothers(door: Door) -> None:
    """Two people share a browser, and so its cookie: the page of the first is still open."""
    browser = signed_in(door, "rev")
    for method in ("GET", "POST"):
        answer = browser.request(method, "/anyone", headers=OURS | {WHOSE: "ann"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "not-signed-in")
        assert "somebody else" in answer.json()["error"]["problem"]
        assert browser.request(method, "/anyone", headers=OURS | {WHOSE: "rev"}).status_code == 200
    token = bearer(door.access.token("ann", WORD))
    assert browser.get("/anyone", headers=token | {WHOSE: "rev"}).status_code == 401


def test_what_the_page_asks_while_its_password_changes_is_answered(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = signed_in(door)
    real = door.accounts.change_password

    def and_asks(*given: Any, **more: Any) -> None:
        real(*given, **more)
        assert browser.get("/anyone").status_code == 200, "the page's own session has ended"

    monkeypatch.setattr(door.accounts, "change_password", and_asks)
    assert browser.post("/password", headers=OURS).status_code == 200
    assert browser.get("/anyone").status_code == 200


def test_tokens_are_not_kept_as_they_are(door: Door) -> None:
    token = door.access.token("ann", WORD)
    assert token not in repr(vars(door.access))


FOREIGN: list[dict[str, str]] = [
    {"sec-fetch-site": "cross-site", "origin": "https://evil.example"},
    {"sec-fetch-site": "same-site", "origin": "https://other.localhost"},
    {"sec-fetch-site": "none"},
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": ""},
    {"origin": "https://localhost.evil.example"},
    {"origin": "https://localhost:8000"},
    {"origin": "file://localhost"},
    {"origin": "https://evil.example/localhost"},
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_a_foreign_page_changes_nothing_with_our_cookie(door: Door, headers: dict[str, str]) -> None:
    assert signed_in(door).post("/anyone", headers=headers).status_code == 403


@pytest.mark.parametrize("headers", FOREIGN)
def test_a_foreign_page_signs_nobody_in(door: Door, headers: dict[str, str]) -> None:
    answer = door.browser().post("/login?name=ann", headers=headers)
    assert (answer.status_code, "set-cookie" in answer.headers) == (403, False)


@pytest.mark.parametrize("headers", [OURS, {"origin": "https://localhost"}, OURS | {"origin": "https://localhost"}])
def test_our_own_page_does(door: Door, headers: dict[str, str]) -> None:
    assert signed_in(door).post("/anyone", headers=headers).status_code == 200


def test_a_cookie_without_a_word_about_the_page_changes_nothing(door: Door) -> None:
    assert signed_in(door).post("/anyone").status_code == 403


def test_a_bearer_token_says_by_itself_that_it_is_meant(door: Door) -> None:
    token = door.access.token("ann", WORD)
    assert door.browser().post("/anyone", headers=bearer(token)).status_code == 200


def test_the_port_is_part_of_where_a_page_comes_from() -> None:
    assert is_own_page({"host": "10.0.0.1:8447", "origin": "https://10.0.0.1:8447"}, required=True)
    assert not is_own_page({"host": "10.0.0.1:8447", "origin": "https://10.0.0.1"}, required=False)


def test_a_role_that_there_is_not_is_a_mistake_of_ours(door: Door) -> None:
    with pytest.raises(ValueError, match="root"):
        door.access.require("root")
