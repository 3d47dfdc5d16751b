"""The way to the archive: to the one that is configured, and to nothing else."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from ct import ct_series
from orthanc import Orthanc, orthanc
from played_studio import played_workbench
from workbench import Workbench

from wardround.client.home import SiteHome
from wardround.client.workbench.monai_label import archive
from wardround.client.workbench.monai_label.archive import Archive

DICOM_JSON = "application/dicom+json"


class PlayedArchive(BaseHTTPRequestHandler):
    """Answers as it is told, and remembers what it was asked."""

    asked: list[tuple[str, str, dict[str, str], bytes]]
    status: int
    answer: dict[str, str]
    content: bytes

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        while self.headers.get("transfer-encoding") == "chunked":
            size = int(self.rfile.readline() or b"0", 16)
            body += self.rfile.read(size)
            self.rfile.readline()
            if not size:
                break
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.asked.append((self.command, self.path, headers, body))
        self.send_response(self.status)
        for name, value in self.answer.items():
            self.send_header(name, value)
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(self.content)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


def named(dicomweb: str, user: str = "") -> str:
    return f'ohif = "viewer"\n[[pacs]]\nname = "archive"\ndicomweb = "{dicomweb}"\n' + (
        f'user = "{user}"\n' if user else ""
    )


def with_password(password: str):
    def prepare(home: SiteHome) -> None:
        home.keys.mkdir(mode=0o700, exist_ok=True)
        home.pacs_password("archive").write_text(f"{password}\n")

    return prepare


@contextmanager
def listening() -> Iterator[tuple[type[PlayedArchive], str]]:
    handler = type("Handler", (PlayedArchive,), {"asked": [], "status": 200, "answer": {}, "content": b"[]"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield handler, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Workbench, type[PlayedArchive]]]:
    with listening() as (handler, url):
        settings = named(f"{url}/dicom-web", "keeper")
        home = tmp_path_factory.mktemp("archive") / "home"
        with played_workbench(home, settings=settings, prepare=with_password("sesame")) as bench:
            yield bench, handler


@pytest.fixture
def told(played: tuple[Workbench, type[PlayedArchive]]) -> type[PlayedArchive]:
    handler = played[1]
    handler.asked.clear()
    handler.status, handler.answer, handler.content = 200, {"content-type": DICOM_JSON}, b"[]"
    return handler


@pytest.fixture(scope="module")
def ann(played: tuple[Workbench, type[PlayedArchive]]) -> httpx.Client:
    return played[0].client("ann")


def test_a_search_goes_on_with_its_query_and_the_sites_own_account(
    ann: httpx.Client, told: type[PlayedArchive]
) -> None:
    answer = ann.get(
        "/proxy/dicom/qido/studies?limit=5&PatientName=A%26B*&includefield=all",
        headers={"accept": DICOM_JSON, "cookie": "a=b", "x-forwarded-for": "1.2.3.4"},
    )
    assert (answer.status_code, answer.json()) == (200, [])
    ((method, path, headers, _),) = told.asked
    assert (method, path) == ("GET", "/dicom-web/studies?limit=5&PatientName=A%26B%2A&includefield=all")
    assert headers["accept"] == DICOM_JSON
    assert headers["authorization"] == httpx.BasicAuth("keeper", "sesame")._auth_header
    assert not {"cookie", "x-forwarded-for"} & headers.keys()


@pytest.mark.parametrize(
    "path",
    [
        "qido/",
        "qido/servers",
        "wado/../servers",
        "wado/studies/../../instances",
        "wado/studies/%2e%2e/%2e%2e/instances",
        "wado/studies/..%2f..%2fsystem",
        "wado/studies//1.2",
        "wado/studies/1.2/%00",
        "wado/studies/1.2%0d%0aHost:x",
        "wado/http://127.0.0.1:1/studies",
        "wado//127.0.0.1:1/studies",
        "wado/@127.0.0.1:1/studies",
        "wado/studies@127.0.0.1",
        "wado/studies/1.2\\..\\..",
        "wado/studies" + "/1" * 12,
        "wado/studies/" + "1" * 129,
        "system/studies",
        "studies",
    ],
)
def test_no_other_path_leads_there(
    played: tuple[Workbench, type[PlayedArchive]], ann: httpx.Client, told: type[PlayedArchive], path: str
) -> None:
    # No client that makes another path of the dots before it sends them.
    connection = http.client.HTTPConnection(played[0].url.removeprefix("http://"), timeout=60)
    headers = {"authorization": ann.headers["authorization"]}
    connection.request("GET", f"/proxy/dicom/{path}", headers=headers)
    status = connection.getresponse().status
    connection.close()
    assert told.asked == []
    assert status in (307, 404, 422)


def test_a_redirect_is_not_followed(ann: httpx.Client, told: type[PlayedArchive]) -> None:
    with listening() as (other, url):
        told.status, told.answer = 302, {"location": f"{url}/dicom-web/studies"}
        answer = ann.get("/proxy/dicom/qido/studies", follow_redirects=False)
        assert answer.status_code == 502
        assert "location" not in answer.headers
        assert other.asked == []


@pytest.mark.parametrize("kind", ["text/html", "image/svg+xml", "text/javascript", "application/pdf"])
def test_what_a_browser_would_run_is_not_passed_on(ann: httpx.Client, told: type[PlayedArchive], kind: str) -> None:
    told.answer, told.content = {"content-type": kind}, b"<script>alert(1)</script>"
    answer = ann.get("/proxy/dicom/wado/studies/1.2/rendered")
    assert answer.status_code == 502
    assert "script" not in answer.text


@pytest.mark.parametrize(("status", "said"), [(401, 502), (403, 502), (500, 502), (404, 404), (400, 400)])
def test_the_archives_errors_are_told_without_its_words(
    ann: httpx.Client, told: type[PlayedArchive], status: int, said: int
) -> None:
    told.status, told.content = status, b"Canary^Carla"
    answer = ann.get("/proxy/dicom/qido/studies")
    assert answer.status_code == said
    assert "Canary" not in answer.text


def test_too_large_an_answer_is_cut_off(
    ann: httpx.Client, told: type[PlayedArchive], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "ANSWER_LIMIT", 1000)
    told.content = bytes(100_000)
    with pytest.raises(httpx.RemoteProtocolError):
        ann.get("/proxy/dicom/wado/studies/1.2")
    told.answer = {"content-type": DICOM_JSON, "content-length": "100000"}
    assert ann.get("/proxy/dicom/wado/studies/1.2").status_code == 502


def test_no_header_of_the_archive_comes_through(ann: httpx.Client, told: type[PlayedArchive]) -> None:
    told.answer = {"content-type": DICOM_JSON, "set-cookie": "wardround=x", "access-control-allow-origin": "*"}
    answer = ann.get("/proxy/dicom/qido/studies")
    assert not {"set-cookie", "access-control-allow-origin"} & set(answer.headers)
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_storing_is_for_reviewers(played: tuple[Workbench, type[PlayedArchive]], told: type[PlayedArchive]) -> None:
    kind = 'multipart/related; type="application/dicom"; boundary=b'
    for user, service, path, status in (
        ("ann", "stow", "studies", 403),
        ("rev", "stow", "studies", 200),
        ("rev", "wado", "studies/1.2", 200),
        ("rev", "qido", "studies", 404),
        ("rev", "stow", "studies/1.2/series", 404),
        ("rev", "stow", "instances", 404),
    ):
        client = played[0].client(user)
        answer = client.post(f"/proxy/dicom/{service}/{path}", content=b"--b--", headers={"content-type": kind})
        assert answer.status_code == status, (user, service, path)
    assert [(one[0], one[1], one[3]) for one in told.asked] == [
        ("POST", "/dicom-web/studies", b"--b--"),
        ("POST", "/dicom-web/studies/1.2", b"--b--"),
    ]
    assert {one[2]["content-type"] for one in told.asked} == {kind}


def test_too_much_to_store_is_refused(
    played: tuple[Workbench, type[PlayedArchive]], told: type[PlayedArchive], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "STORE_LIMIT", 1000)
    answer = played[0].client("rev").post("/proxy/dicom/stow/studies", content=bytes(100_000))
    assert answer.status_code == 413


def test_an_archive_that_is_away(tmp_path: Path) -> None:
    with played_workbench(tmp_path / "home", settings=named("http://127.0.0.1:1/dicom-web")) as bench:
        answer = bench.client("ann").get("/proxy/dicom/qido/studies")
    assert answer.status_code == 502
    assert "127.0.0.1" not in answer.text


def test_without_a_viewer_nobody_gets_there(tmp_path: Path) -> None:
    """An archive that the site imports from is not thereby open to everybody with an account."""
    with listening() as (handler, url):
        settings = named(f"{url}/dicom-web").replace('ohif = "viewer"', "")
        with played_workbench(tmp_path / "home", settings=settings) as bench:
            assert bench.client("adm").get("/proxy/dicom/qido/studies").status_code == 404
        assert handler.asked == []


def test_the_password_is_shown_to_nobody() -> None:
    assert "sesame" not in repr(Archive("http://x", "keeper", "sesame"))


@pytest.fixture(scope="module")
def pacs() -> Iterator[Orthanc]:
    with orthanc() as running:
        yield running


def test_a_real_archive_answers_as_if_it_were_asked_itself(pacs: Orthanc, tmp_path: Path) -> None:
    series = ct_series(shape=(8, 6, 3))
    for file in series.files:
        pacs.upload(file)
    settings = named(pacs.dicomweb, pacs.user)
    with played_workbench(tmp_path / "home", settings=settings, prepare=with_password(pacs.password)) as bench:
        client = bench.client("rev")
        place = f"studies/{series.study}/series/{series.series}"
        for service, path, kind in (
            ("qido", "studies?limit=1", DICOM_JSON),
            ("qido", f"studies/{series.study}/series?includefield=all", DICOM_JSON),
            ("wado", f"{place}/metadata", DICOM_JSON),
        ):
            direct = httpx.get(f"{pacs.dicomweb}/{path}", auth=pacs.auth, headers={"accept": kind}).json()
            through = client.get(f"/proxy/dicom/{service}/{path}", headers={"accept": kind})
            assert through.json() == direct
            assert direct
        whole = client.get(
            f"/proxy/dicom/wado/{place}", headers={"accept": 'multipart/related; type="application/dicom"'}
        )
        assert whole.headers["content-type"].startswith("multipart/related")
        assert whole.content.count(b"DICM") == 3
        new = ct_series(shape=(8, 6, 1))
        body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + new.files[0] + b"\r\n--b--\r\n"
        kind = 'multipart/related; type="application/dicom"; boundary=b'
        stored = client.post(
            "/proxy/dicom/stow/studies", content=body, headers={"content-type": kind, "accept": DICOM_JSON}
        )
        assert stored.status_code == 200
    assert len(pacs.instances()) == 4
