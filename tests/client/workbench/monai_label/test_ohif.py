"""The files of OHIF: those in its folder, and no other."""

from collections.abc import Iterator
from urllib.parse import unquote

import httpx
import pytest
from played_studio import played_workbench
from workbench import Workbench


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    folder = tmp_path_factory.mktemp("viewer")
    viewer = folder / "ohif"
    (viewer / "assets").mkdir(parents=True)
    for name, text in (
        ("ohif/index.html", "the viewer"),
        ("ohif/app.js", "code"),
        ("ohif/x.wasm", "more code"),
        ("ohif/assets/icon.png", "picture"),
        ("ohif/.hidden", "secret"),
        ("outside.txt", "secret"),
    ):
        (folder / name).write_text(text)
    (viewer / "link.txt").symlink_to(folder / "outside.txt")
    (viewer / "linked").symlink_to(folder)
    with played_workbench(tmp_path_factory.mktemp("bench") / "home", settings=f'ohif = "{viewer}"\n') as running:
        yield running


@pytest.fixture(scope="module")
def ann(bench: Workbench) -> httpx.Client:
    return bench.client("ann")


@pytest.mark.parametrize(
    ("path", "text", "kind"),
    [
        ("", "the viewer", "text/html"),
        ("index.html", "the viewer", "text/html"),
        ("monai-label", "the viewer", "text/html"),
        ("viewer/some/view", "the viewer", "text/html"),
        ("app.js", "code", "text/javascript"),
        ("x.wasm", "more code", "application/wasm"),
        ("assets/icon.png", "picture", "image/png"),
    ],
)
def test_a_file_or_the_page(ann: httpx.Client, path: str, text: str, kind: str) -> None:
    answer = ann.get(f"/ohif/{path}")
    assert answer.text == text
    assert answer.headers["content-type"].startswith(kind)
    policy = answer.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert "http" not in policy


@pytest.mark.parametrize(
    "path",
    [
        "../outside.txt",
        "%2e%2e/outside.txt",
        "..%2foutside.txt",
        "assets/..%2f..%2foutside.txt",
        "assets/%2e%2e/%2e%2e/outside.txt",
        "..%5coutside.txt",
        "%2fetc/passwd",
        "/etc/passwd",
        "link.txt",
        "linked/outside.txt",
        ".hidden",
        "a%00.txt",
        "missing.js",
        "x" * 5000 + ".js",
    ],
)
def test_nothing_else(ann: httpx.Client, path: str) -> None:
    answer = ann.get(f"/ohif/{path}")
    assert "secret" not in answer.text
    assert "root:" not in answer.text
    assert answer.status_code in (200, 404)
    assert answer.status_code == 404 or answer.text == "the viewer"


def test_the_page_knows_its_server(ann: httpx.Client, bench: Workbench) -> None:
    """OHIF would look at port 8000 else."""
    cookie = ann.get("/ohif/").headers["set-cookie"]
    assert unquote(cookie.partition("=")[2].partition(";")[0]) == f"{bench.url}/"
    assert "samesite=strict" in cookie.lower()
    assert "set-cookie" not in ann.get("/ohif/app.js").headers


PAGE = {"accept": "text/html,*/*", "sec-fetch-dest": "document"}


def test_only_for_those_who_are_signed_in(bench: Workbench) -> None:
    assert bench.client().get("/ohif/app.js").status_code == 401
    assert bench.client().get("/ohif/viewer?StudyInstanceUIDs=1.2").status_code == 401


@pytest.mark.parametrize("path", ["/ohif/", "/ohif/viewer?StudyInstanceUIDs=1.2&x=%26y", "/ohif//evil.org/?next=//e"])
def test_a_person_is_led_to_our_login_page_and_nowhere_else(bench: Workbench, path: str) -> None:
    answer = bench.client().get(path, headers=PAGE)
    assert answer.status_code == 303
    where, _, query = answer.headers["location"].partition("?next=")
    assert where == "/login.html", "an address without a host stays on this one"
    assert "&" not in query
    assert "/" not in query
    assert unquote(query) == path


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/ohif/app.js", PAGE),
        ("/ohif/", {"accept": "application/json"}),
        ("/ohif/", PAGE | {"sec-fetch-dest": "empty"}),
        ("/ohif/", PAGE | {"authorization": "Bearer wrong"}),
        ("/proxy/dicom/qido/studies", PAGE),
    ],
)
def test_what_is_no_page_gets_its_401(bench: Workbench, path: str, headers: dict[str, str]) -> None:
    answer = bench.client().get(path, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "not-signed-in"
