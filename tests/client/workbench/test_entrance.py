"""What every request passes and every answer carries."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from workbench import QUICK

from wardround.client.workbench.access import CLIENT_ADDRESS, Access
from wardround.client.workbench.accounts import Accounts
from wardround.client.workbench.entrance import HEADERS, POLICY, Entrance
from wardround.client.workbench.errors import handle_errors
from wardround.errors import StorageError

WORD = "a few words do well"
SECRET = "DOE^JANE"


class Answered:
    def __init__(self, messages: list[dict[str, Any]]) -> None:
        self.status = messages[0]["status"]
        self.fields = [(name.decode(), value.decode()) for name, value in messages[0]["headers"]]
        self.headers = dict(self.fields)
        self.text = b"".join(message.get("body", b"") for message in messages[1:]).decode()


class Hall:
    """An application behind an entrance; requests are handed to it as a server does."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        accounts = Accounts(folder / "accounts.json", hasher=QUICK)
        accounts.add("ann", WORD, "annotator")
        self.access = Access(accounts, secure=False)
        self.token = self.access.token("ann", WORD)
        self.bodies: list[int] = []
        app = FastAPI(openapi_url=None)
        handle_errors(app)

        @app.get("/things/{name}")
        def thing(name: str) -> str:
            return CLIENT_ADDRESS.get()

        @app.get("/framed")
        def framed() -> Response:
            return PlainTextResponse("", headers={"content-security-policy": "default-src 'self'"})

        @app.get("/bug")
        def bug() -> None:
            raise RuntimeError(SECRET)

        @app.get("/disk")
        def disk() -> None:
            raise StorageError(f"cannot read /data/{SECRET}", "", "")

        async def take(request: Request) -> None:
            self.bodies.append(len(await request.body()))

        for path in ("/api/v1/login", "/auth/token", "/api/v1/draw", "/upload"):
            app.add_api_route(path, take, methods=["POST"])
        app.add_middleware(Entrance, access=self.access, names=["wb.example.org"], **settings)
        self.app = app
        self.received = 0

    def ask(self, path: str, method: str = "GET", *chunks: bytes, **headers: str) -> Answered:
        """Ask with one message a chunk; ``host`` is localhost unless it is given."""
        fields = {"host": "localhost"} | {name.replace("_", "-"): value for name, value in headers.items()}
        route, _, query = path.partition("?")
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": route, "raw_path": route.encode(), "query_string": query.encode(), "root_path": "",
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in fields.items() if value],
            "client": ("10.1.2.3", 4711), "server": ("localhost", 80),
        }  # fmt: skip
        waiting = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
        waiting.append({"type": "http.request", "body": b"", "more_body": False})
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            self.received += 1
            return waiting.pop(0) if waiting else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(self.app(scope, receive, send))
        return Answered(sent)

    def signed(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"}


@pytest.fixture
def hall(tmp_path: Path) -> Hall:
    return Hall(tmp_path)


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8447", "wb.example.org", "127.0.0.1:1", "[::1]:8447", "10.1.2.3"]
)
def test_a_request_for_one_of_our_names_comes_in(hall: Hall, host: str) -> None:
    assert hall.ask("/things/1", host=host).status == 200


@pytest.mark.parametrize("host", ["", "evil.example", "wb.example.org.evil.example", "localhost@evil.example", "a b"])
def test_a_request_for_another_name_does_not(hall: Hall, host: str) -> None:
    answer = hall.ask("/things/1", host=host)
    assert answer.status == 421
    assert "evil" not in answer.text


@pytest.mark.parametrize("path", ["/things/1", "/nowhere", "/bug", "/disk", "/upload"])
def test_every_answer_carries_our_headers(hall: Hall, path: str) -> None:
    for answer in (hall.ask(path), hall.ask(path, "POST"), hall.ask(path, host="evil.example")):
        assert dict(HEADERS).items() <= answer.headers.items()
        assert len(answer.fields) == len({name for name, _ in answer.fields})
        assert not [name for name, _ in answer.fields if name.startswith("access-control")]


def test_the_policy_lets_no_script_run_but_our_files() -> None:
    rules = dict(rule.strip().split(" ", 1) for rule in POLICY.split(";"))
    assert (rules["default-src"], rules["script-src"], rules["frame-ancestors"]) == ("'none'", "'self'", "'none'")
    assert not {"'unsafe-inline'", "'unsafe-eval'", "*", "http:", "https:"} & set(POLICY.replace(";", " ").split())


def test_a_route_may_say_another_policy(hall: Hall) -> None:
    assert hall.ask("/framed").headers["content-security-policy"] == "default-src 'self'"


@pytest.mark.parametrize("secure", [False, True])
def test_browsers_are_told_to_stay_with_tls_where_the_certificate_stays(tmp_path: Path, secure: bool) -> None:
    assert ("strict-transport-security" in Hall(tmp_path, secure=secure).ask("/things/1").headers) == secure


@pytest.mark.parametrize("path", ["/bug", "/disk"])
def test_a_fault_is_an_answer_and_a_line_and_its_text_is_in_neither(
    hall: Hall, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answer = hall.ask(path)
    assert answer.status in (500, 503)
    assert SECRET not in answer.text
    assert SECRET not in caplog.text
    kind, place = {"/bug": ("RuntimeError", "bug"), "/disk": ("StorageError", "disk")}[path]
    (line,) = (one.getMessage() for one in caplog.records if one.name == "wardround.client.workbench.errors")
    assert line.startswith(f"{kind} in ")
    assert f" {place} (test_entrance.py:" in line


def test_one_line_a_request_names_the_route_and_nobody(hall: Hall, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="wardround.client.workbench.entrance")
    hall.ask(f"/things/{SECRET}?name={SECRET}", user_agent=SECRET, **hall.signed())
    hall.ask(f"/{SECRET}")
    hall.ask("/things/1", SECRET)
    hall.ask("/things/1", host=SECRET)
    first, second, third, fourth = (record.getMessage() for record in caplog.records)
    assert first.startswith("GET /things/{name} 200 ")
    assert first.endswith(" ms")
    assert second.startswith("GET - 404 ")
    assert third.startswith("- ")
    assert fourth.startswith("GET - 421 ")
    assert "10.1.2.3" not in caplog.text
    assert "ann" not in caplog.text


def test_the_address_is_known_where_passwords_are_counted(hall: Hall) -> None:
    assert hall.ask("/things/1").text == '"10.1.2.3"'
    assert CLIENT_ADDRESS.get() == ""


@pytest.mark.parametrize("path", ["/upload", "/api/v1/draw", "/nowhere"])
def test_who_is_not_signed_in_sends_no_body(hall: Hall, path: str) -> None:
    assert hall.ask(path, "POST", b"x" * 100).status == 401
    assert (hall.bodies, hall.received) == ([], 0), "a stranger's body was read"


@pytest.mark.parametrize("path", ["/api/v1/login", "/auth/token"])
def test_name_and_password_may_be_sent_by_anybody_and_are_short(hall: Hall, path: str) -> None:
    assert hall.ask(path, "POST", b"x" * 1000).status == 200
    assert hall.ask(path, "POST", b"x", content_length=str(2**20)).status == 413
    assert hall.ask(path, "POST", *[b"x" * 2**14] * 5).status == 413
    assert hall.bodies == [1000]


@pytest.mark.parametrize(("path", "status"), [("/api/v1/draw", 413), ("/upload", 200)])
def test_a_body_has_a_limit_whether_its_length_is_said_or_not(hall: Hall, path: str, status: int) -> None:
    nine = 9 * 2**20
    assert hall.ask(path, "POST", *[b"x" * 2**20] * 9, **hall.signed()).status == status
    assert hall.ask(path, "POST", b"x" * nine, content_length=str(nine), **hall.signed()).status == status
    assert hall.bodies == ([nine] * 2 if status == 200 else [])


@pytest.mark.parametrize("length", ["-1", "1e9", "x", "\xb2", str(2**40)])
def test_a_length_that_is_none_is_refused(hall: Hall, length: str) -> None:
    assert hall.ask("/upload", "POST", b"x", content_length=length, **hall.signed()).status == 413


def test_a_reader_may_carry_the_length_of_an_earlier_request(hall: Hall) -> None:
    """MONAI Label's client does so."""
    assert hall.ask("/things/1", content_length=str(2**40)).status == 200
