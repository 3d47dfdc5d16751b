"""One application on one port: what is mounted, TLS, and how it begins and ends."""

import json
import re
import socket
import ssl
import threading
from pathlib import Path

import httpx
import pytest
from workbench import FakeStudio, password, workbench

from wardround.client.workbench.access import COOKIE
from wardround.client.workbench.server import Server
from wardround.client.workbench.settings import Endpoint, endpoint
from wardround.errors import ConnectionFailed


def test_page_api_protocol_and_health_are_in_one_place(tmp_path: Path) -> None:
    with workbench(tmp_path / "home", studio=FakeStudio) as bench:
        stranger, ann = bench.client(), bench.client("ann")
        assert stranger.get("/health").text == "ok\n"
        for path in ("/", "/login.html"):
            page = stranger.get(path)
            assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
            assert page.headers["cache-control"] == "no-cache"
            again = stranger.get(path, headers={"if-none-match": page.headers["etag"]})
            assert again.status_code == 304
        assert ann.get("/info/").json()["labels"] == ["anterior", "posterior"]
        assert ann.get("/api/v1/site").json()["site"] == "north"
        assert "/info/" in ann.get("/openapi.json").json()["paths"]
        assert stranger.get("/openapi.json").status_code == 401
        assert {stranger.get(path).status_code for path in ("/docs", "/redoc")} == {404}


def test_a_build_without_a_page_says_so(tmp_path: Path) -> None:
    with workbench(tmp_path / "home", studio=FakeStudio, static=tmp_path / "nowhere") as bench:
        assert "no page" in bench.client().get("/").text


def test_tls_with_the_certificate_that_was_made(tmp_path: Path) -> None:
    with workbench(tmp_path / "home", studio=FakeStudio, settings='host = "0.0.0.0"') as bench:
        trust = ssl.create_default_context(cafile=endpoint(bench.home).certificate)
        browser = bench.client(verify=trust)
        answer = browser.post("/api/v1/login", json={"name": "ann", "password": password("ann")})
        assert answer.status_code == 200
        assert "secure" in answer.headers["set-cookie"].lower()
        assert COOKIE in browser.cookies
        assert browser.get("/api/v1/me").json()["name"] == "ann"
        assert "strict-transport-security" not in answer.headers, "a certificate of our own changes every year"
        old = ssl.create_default_context(cafile=endpoint(bench.home).certificate)
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        with pytest.raises(httpx.ConnectError):
            bench.client(verify=old).get("/health")
        with pytest.raises(httpx.TransportError):
            bench.client(base_url=bench.url.replace("https", "http")).get("/health")


def test_a_port_that_is_taken_is_said_before_anything_is_served(tmp_path: Path) -> None:
    with workbench(tmp_path / "home", studio=FakeStudio) as bench, socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConnectionFailed, match=f"127.0.0.1:{port}") as refused:
            Server(bench.app, Endpoint("127.0.0.1", port))
        assert "site.toml" in refused.value.fix


def test_it_ends_while_pages_are_open_and_leaves_no_thread(tmp_path: Path) -> None:
    with workbench(tmp_path / "home", studio=FakeStudio) as bench:
        client = bench.client("ann")
        with client.stream("GET", "/api/v1/events") as stream:
            next(stream.iter_lines())
        assert "workbench" in {thread.name for thread in threading.enumerate()}
    assert "workbench" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{bench.url}/health")


def test_what_may_be_drawn_is_described(tmp_path: Path) -> None:
    with workbench(tmp_path / "home", studio=FakeStudio) as bench:
        said = bench.client("ann").get("/openapi.json").json()
    body = said["paths"]["/api/v1/cases/{case_id}/draw"]["post"]["requestBody"]["content"]["application/json"]
    schemas = said["components"]["schemas"]
    drawing = schemas[body["schema"]["$ref"].rpartition("/")[2]]
    assert set(drawing["properties"]) == {"prompts", "extent"}
    text = json.dumps(said)
    for name in re.findall(r'"#/components/schemas/([^"]+)"', text):
        assert name in schemas
    assert "#/$defs" not in text
    assert {"PointJson", "EraseJson", "DrawnJson", "PlaneJson", "ExtentJson"} <= set(schemas)
