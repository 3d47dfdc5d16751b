"""The workbench against those who should not get in, those who should not see, and texts that should not be heard.

Every route must stand in :data:`LEAST`, with the least role that may use it: a new one makes a test fail until somebody
has said who it is for.
"""

import http.client
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.routing import APIRoute
from living import SHAPE
from workbench import PEOPLE, FakeStudio, Workbench, password, workbench

from wardround.client.cases.phantoms import draw_phantom
from wardround.client.cases.store import CaseStore
from wardround.client.home import SiteHome
from wardround.client.intake import STORE
from wardround.client.workbench.roster import ROLES
from wardround.client.workbench.server import STATIC
from wardround.errors import StorageError

Method = str
Path_ = str
NOBODY = "nobody"
LEAST: dict[tuple[Method, Path_], str] = {
    ("GET", "/health"): NOBODY,
    ("GET", "/openapi.json"): "annotator",
    ("GET", "/api/v1/entrance"): NOBODY,
    ("GET", "/oidc/start"): NOBODY,
    ("GET", "/oidc/callback"): NOBODY,
    ("POST", "/api/v1/login"): NOBODY,
    ("POST", "/api/v1/logout"): "annotator",
    ("GET", "/api/v1/me"): "annotator",
    ("POST", "/api/v1/password"): "annotator",
    ("GET", "/api/v1/accounts"): "admin",
    ("POST", "/api/v1/accounts"): "admin",
    ("POST", "/api/v1/accounts/{name}/role"): "admin",
    ("POST", "/api/v1/accounts/{name}/disabled"): "admin",
    ("POST", "/api/v1/accounts/{name}/reset"): "admin",
    ("GET", "/api/v1/site"): "annotator",
    ("GET", "/api/v1/cases"): "annotator",
    ("GET", "/api/v1/cases/next"): "annotator",
    ("GET", "/api/v1/cases/{case_id}"): "annotator",
    ("GET", "/api/v1/cases/{case_id}/image"): "annotator",
    ("POST", "/api/v1/cases/{case_id}/open"): "annotator",
    ("POST", "/api/v1/cases/{case_id}/draw"): "annotator",
    ("POST", "/api/v1/cases/{case_id}/undo"): "annotator",
    ("POST", "/api/v1/cases/{case_id}/redo"): "annotator",
    ("GET", "/api/v1/cases/{case_id}/layers/{name}"): "annotator",
    ("POST", "/api/v1/cases/{case_id}/accept"): "annotator",
    ("POST", "/api/v1/cases/{case_id}/skip"): "annotator",
    ("POST", "/api/v1/cases/{case_id}/close"): "annotator",
    ("GET", "/api/v1/cases/{case_id}/labels"): "annotator",
    ("GET", "/api/v1/cases/{case_id}/labels/{author}"): "reviewer",
    ("POST", "/api/v1/cases/{case_id}/labels/{author}/review"): "reviewer",
    ("POST", "/api/v1/cases/{case_id}/export"): "annotator",
    ("GET", "/api/v1/events"): "annotator",
    ("GET", "/auth/"): NOBODY,
    ("POST", "/auth/token"): NOBODY,
    ("GET", "/auth/token/valid"): "annotator",
    ("GET", "/info/"): "annotator",
    ("POST", "/infer/{model}"): "annotator",
    ("POST", "/activelearning/{strategy}"): "annotator",
    ("GET", "/datastore/"): "annotator",
    ("PUT", "/datastore/"): "annotator",
    ("PUT", "/datastore/image"): "annotator",
    ("GET", "/datastore/image"): "annotator",
    ("HEAD", "/datastore/image"): "annotator",
    ("GET", "/datastore/image/info"): "annotator",
    ("PUT", "/datastore/label"): "annotator",
    ("GET", "/datastore/label"): "annotator",
    ("HEAD", "/datastore/label"): "annotator",
    ("GET", "/datastore/label/info"): "annotator",
    ("PUT", "/session/"): "annotator",
    ("GET", "/session/{session_id}"): "annotator",
    ("DELETE", "/session/{session_id}"): "annotator",
    ("GET", "/train/"): "annotator",
    ("POST", "/train/"): "annotator",
    ("DELETE", "/train/"): "annotator",
    ("POST", "/train/{model}"): "annotator",
    ("GET", "/scoring/"): "annotator",
    ("POST", "/scoring/"): "annotator",
    ("DELETE", "/scoring/"): "annotator",
    ("POST", "/scoring/{method}"): "annotator",
    ("GET", "/batch/infer"): "annotator",
    ("DELETE", "/batch/infer"): "annotator",
    ("POST", "/batch/infer/{model}"): "annotator",
    ("GET", "/logs/"): "admin",
    ("GET", "/logs/gpu"): "admin",
    ("GET", "/proxy/dicom/{service}/{path}"): "annotator",
    ("POST", "/proxy/dicom/{service}/{path}"): "reviewer",
    ("GET", "/ohif/{path}"): "annotator",
}
NAMES = {
    "case_id": "case-0", "name": "proxy", "author": "ben", "model": "wardround", "strategy": "random",
    "path": "studies", "session_id": "00000000-0000-4000-8000-000000000000", "method": "dice",
}  # fmt: skip
REFUSED = (401, 403)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    with workbench(tmp_path_factory.mktemp("site") / "home", studio=FakeStudio) as served:
        yield served


def described(bench: Workbench) -> set[tuple[Method, Path_]]:
    """Every route of the OpenAPI document."""
    paths: dict[str, dict[str, Any]] = bench.app.openapi()["paths"]
    return {(method.upper(), path) for path, methods in paths.items() for method in methods}


def routes_of(holder: Any) -> Iterator[APIRoute]:
    """Every route, those of included routers as well."""
    for route in holder.routes:
        if isinstance(route, APIRoute):
            yield route
        elif hasattr(route, "original_router"):
            yield from routes_of(route.original_router)


def status_of(client: httpx.Client, method: Method, path: Path_, **settings: Any) -> int:
    """What a request is answered with; of a stream, when it begins."""
    name = NAMES["case_id"] if path.startswith("/api/") else "studies"
    if "service" in path:
        path = path.replace("{service}", "wado" if method == "GET" else "stow")
    with client.stream(method, path.format(**(NAMES | {"path": name})), **settings) as answer:
        return answer.status_code


def test_somebody_has_said_who_each_route_is_for(bench: Workbench) -> None:
    assert described(bench) == set(LEAST)
    assert [route.path for route in routes_of(bench.app) if not route.include_in_schema] == [], "not in the OpenAPI"


@pytest.mark.parametrize("user", [None, *PEOPLE])
def test_everybody_gets_what_is_theirs_and_nothing_else(bench: Workbench, user: str | None) -> None:
    client = bench.client(user)
    mine = {NOBODY, *(ROLES[: ROLES.index(PEOPLE[user]) + 1] if user else ())}
    wrong = {}
    # Signing out comes last: it ends the session.
    for (method, path), least in sorted(LEAST.items(), key=lambda one: "logout" in one[0][1]):
        if user == "ben" and "{author}" in path and method == "GET":
            continue  # ben's own label
        status = status_of(client, method, path)
        expected = (least in mine) == (status not in REFUSED) and (user is not None or least == NOBODY or status == 401)
        if not expected or status >= 500:
            wrong[method, path] = status
    assert wrong == {}


@pytest.mark.parametrize(
    "headers",
    [{"authorization": "Bearer nonsense"}, {"authorization": "Basic YWRtOmFkbQ=="}, {"cookie": "wardround=nonsense"}],
)
def test_who_shows_something_made_up_is_nobody(bench: Workbench, headers: dict[str, str]) -> None:
    client = bench.client(headers=headers)
    found = {key: status_of(client, *key) for key, least in LEAST.items() if least != NOBODY}
    assert set(found.values()) == {401}, found


def test_a_foreign_page_changes_nothing_on_any_route(bench: Workbench) -> None:
    browser = bench.client()
    signed = browser.post("/api/v1/login", json={"name": "adm", "password": password("adm")})
    assert signed.status_code == 200
    for headers in ({"sec-fetch-site": "cross-site"}, {"origin": "https://evil.example"}, {}):
        changing = [key for key, least in LEAST.items() if least != NOBODY and key[0] not in ("GET", "HEAD")]
        found = {key: status_of(browser, *key, headers=headers) for key in changing}
        assert set(found.values()) == {403}, found
    assert browser.get("/api/v1/me").json()["name"] == "adm"


def test_no_other_site_may_read(bench: Workbench) -> None:
    client = bench.client("ann")
    for method, path in (("GET", "/api/v1/cases"), ("OPTIONS", "/api/v1/cases"), ("OPTIONS", "/info/"), ("GET", "/")):
        asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        answer = client.request(method, path, headers=asked)
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_another_sites_name_pointed_here_is_not_served(bench: Workbench) -> None:
    client = bench.client("ann")
    for path in ("/", "/api/v1/cases", "/info/", "/health"):
        assert client.get(path, headers={"host": "evil.example"}).status_code == 421


@pytest.mark.parametrize(
    "path",
    [
        "/../server.py", "/..%2fserver.py", "/%2e%2e/server.py", "/%2e%2e%2fserver.py", "/..\\server.py",
        "/..%5cserver.py", "//etc/passwd", "/%2fetc/passwd", "/js/../../server.py", "/./../own.py", "/%00",
        "/index.html%00.js", "/%c0%ae%c0%ae/own.py",
        "/ohif/../../../site.toml", "/ohif/%2e%2e/%2e%2e/site.toml", "/ohif/%2fetc%2fpasswd",
        "/datastore/image?image=/etc/passwd", "/datastore/image?image=../../site.toml",
        "/datastore/label?label=..%2f..%2fsite.toml",
        "/session/..%2f..%2fsite.toml?image=true", "/session/%2e%2e?image=true", "/proxy/dicom/..%2f..%2f/site.toml",
        "/api/v1/cases/..%2f..%2fsite.toml/image", "/api/v1/cases/case-0/labels/..%2f..%2fsite.toml",
        "/api/v1/cases/case-0/layers/..%2fproxy",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_what_is_served(bench: Workbench, path: str) -> None:
    """As raw bytes: a library would tidy the path up."""
    port = int(bench.url.rpartition(":")[2])
    for token in (None, bench.token("adm")):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.putrequest("GET", path, skip_accept_encoding=True)
        if token:
            connection.putheader("Authorization", f"Bearer {token}")
        connection.endheaders()
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        assert answer.status in (301, 307, 400, 401, 403, 404, 405, 422), path
        for secret in (b"root:", b"coordinator =", b"def ", str(bench.home.path).encode()):
            assert secret not in content


SCRIPT = "<script>alert(1)</script>"
IMAGE = '"><img src=x onerror=alert(1)>'


def test_a_name_that_is_a_script_never_comes_as_a_page(tmp_path: Path) -> None:
    def prepare(home: SiteHome) -> None:
        image, _ = draw_phantom(np.random.default_rng(7), shape=SHAPE)
        with CaseStore(home.site / STORE) as store:
            store.add_case(IMAGE, image)

    labels = (SCRIPT.replace('"', ""),)
    with workbench(tmp_path / "home", cases=1, studio=FakeStudio, labels=labels, prepare=prepare) as bench:
        client = bench.client("adm")
        quoted = httpx.URL(f"{bench.url}/x").copy_with(path=f"/api/v1/cases/{IMAGE}").raw_path.decode()
        assert client.get(quoted).json()["id"] == IMAGE
        seen = 0
        for (method, path), _ in sorted(LEAST.items(), key=lambda one: "logout" in one[0][1]):
            if path == "/api/v1/events":
                continue
            for name in (IMAGE, SCRIPT):
                filled = re.sub(r"\{\w+\}", lambda _, name=name: str(httpx.URL("http://x/").join(name)), path)
                params = {"image": name, "label": name, "state": name, "newer_than": name}
                answer = client.request(method, filled, params=params)
                assert answer.headers["x-content-type-options"] == "nosniff"
                if SCRIPT in answer.text or IMAGE in answer.text:
                    seen += 1
                    assert "html" not in answer.headers["content-type"], path
        assert seen, "no answer held the name: nothing was looked at"


def test_our_page_writes_no_html_from_what_it_is_told() -> None:
    scripts = [file for file in STATIC.rglob("*.js") if "vendor" not in file.parts]
    pages = list(STATIC.glob("*.html"))
    assert scripts
    assert pages
    for file in scripts:
        found = re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", file.read_text()
        )
        assert found == [], file.name
    for file in pages:
        text = file.read_text()
        assert re.findall(r"<script(?![^>]*\bsrc=)|\son\w+=|javascript:|https?://(?!www\.w3\.org)", text) == [], (
            file.name
        )


CANARIES = {
    "folder": "H-DOE-JANE-1951", "case": "SMITH-JOHN-19510203", "account": "garcia.ana", "wrong account": "rossi.maria",
    "path": "KOWALSKI-JAN", "query": "IVANOV-PJOTR", "agent": "NOVAKOVA-EVA", "body": "YAMADA-TARO",
    "bug": "DUBOIS^PAUL", "file": "MUSTER-ERIKA", "password": "a word of LINDQVIST", "header": "OKAFOR-CHIDI",
}  # fmt: skip


class Clumsy(FakeStudio):
    """Fails, and says more than it should."""

    def redo(self, case_id: str, user: str) -> Any:
        raise RuntimeError(f"PatientName={CANARIES['bug']} of {user} in {case_id}")

    def undo(self, case_id: str, user: str) -> Any:
        raise StorageError(f"cannot read /data/{CANARIES['file']}.nii.gz", "", "")


def test_no_line_of_the_log_names_anybody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def prepare(home: SiteHome) -> None:
        image, _ = draw_phantom(np.random.default_rng(7), shape=SHAPE)
        with CaseStore(home.site / STORE) as store:
            store.add_case(CANARIES["case"], image)

    caplog.set_level(logging.DEBUG)
    with workbench(tmp_path / CANARIES["folder"], cases=1, studio=Clumsy, prepare=prepare) as bench:
        bench.accounts.add(CANARIES["account"], CANARIES["password"], "reviewer")
        token = bench.app.state.access.token(CANARIES["account"], CANARIES["password"])
        headers = {"user-agent": CANARIES["agent"], "x-more": CANARIES["header"]}
        client = bench.client(headers=headers | {"authorization": f"Bearer {token}"})
        replies = []
        for method, path in sorted(set(LEAST) - {("POST", "/api/v1/logout"), ("GET", "/api/v1/events")}):
            filled = path.format(**(NAMES | {"case_id": CANARIES["case"], "service": "wado", "author": "ben"}))
            more: dict[str, Any] = {"params": {"image": CANARIES["case"], "q": CANARIES["query"]}}
            if method in ("POST", "PUT"):
                more["json"] = {"name": CANARIES["body"], "prompts": CANARIES["body"]}
            replies.append(client.request(method, filled, **more))
        case = f"/api/v1/cases/{CANARIES['case']}"
        point = {"prompts": [{"kind": "point", "index": [3, 4, 5], "label": 1}]}
        for step, body in (("open", None), ("draw", point), ("accept", {}), ("undo", None), ("redo", None)):
            replies.append(client.post(f"{case}/{step}", json=body))
        for path in (f"/{CANARIES['path']}", f"/ohif/{CANARIES['path']}", f"/api/v1/{CANARIES['path']}"):
            replies.append(client.get(path))
        for name in (CANARIES["wrong account"], CANARIES["account"]):
            given = {"name": name, "password": CANARIES["body"]}
            replies.append(bench.client(headers=headers).post("/api/v1/login", json=given))
            replies.append(bench.client(headers=headers).post("/auth/token", data={"username": name, "password": "x"}))
        port = int(bench.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=60) as line:
            line.sendall(f"GET\x01{CANARIES['path']} / HTTP/1.1\r\n{CANARIES['header']}\r\n\r\n".encode())
            assert b" 400 " in line.recv(4096)
    # The test's own client writes down what it asks for; it stands where a browser does.
    lines = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    text = "\n".join(logging.Formatter("%(name)s %(message)s").format(record) for record in lines)
    assert text.count("wardround.client.workbench.entrance") > len(LEAST)
    words = [*CANARIES.values(), str(tmp_path), token, "127.0.0.1"]
    assert [word for word in words if word.lower() in text.lower()] == []
    assert {500, 503} <= {reply.status_code for reply in replies}
    hidden = [CANARIES[key] for key in ("folder", "bug", "file", "password", "agent", "header", "body")]
    for reply in replies:
        assert [word for word in (*hidden, str(tmp_path)) if word in reply.text] == []


def test_no_line_of_a_bench_that_learns_names_anybody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With the real studio: what is computed and stored, and what goes wrong there."""
    case, account = CANARIES["case"], CANARIES["account"]

    def prepare(home: SiteHome) -> None:
        image, _ = draw_phantom(np.random.default_rng(7), shape=SHAPE)
        with CaseStore(home.site / STORE) as store:
            store.add_case(case, image)

    caplog.set_level(logging.DEBUG)
    with workbench(tmp_path / CANARIES["folder"], cases=1, prepare=prepare) as bench:
        bench.accounts.add(account, CANARIES["password"], "annotator")
        token = bench.app.state.access.token(account, CANARIES["password"])
        client = bench.client(headers={"authorization": f"Bearer {token}"})
        labels = {"shape": [16, 24], "rle": [[0, 100], [1, 40], [0, 244]]}
        drawn = {"prompts": [{"kind": "slice", "axis": 2, "index": 8, "labels": labels}]}
        for step, body in (("open", None), ("draw", drawn), ("undo", None), ("redo", None), ("accept", {})):
            assert client.post(f"/api/v1/cases/{case}/{step}", json=body).status_code == 200
        assert bench.studio.wait(account, 120)
        for file in (bench.home.site / STORE / "volumes").iterdir():
            file.write_bytes(b"damaged")
        assert client.get(f"/api/v1/cases/{case}/labels/{account}").status_code == 503
    lines = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    text = "\n".join(logging.Formatter("%(name)s %(message)s").format(record) for record in lines)
    assert "StorageError" in text
    assert [word for word in (*CANARIES.values(), str(tmp_path)) if word.lower() in text.lower()] == []
