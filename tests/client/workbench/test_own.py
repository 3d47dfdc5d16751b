"""Our own API, over HTTP, with a studio that is played: what each route takes and gives."""

import asyncio
import gzip
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
from deployment import eventually
from workbench import FakeStudio, Workbench, password, workbench

from wardround.client.cases.nifti import decode_image, decode_labels
from wardround.client.workbench.access import COOKIE
from wardround.client.workbench.events import EACH, Events
from wardround.client.workbench.studio import Studio
from wardround.client.workbench.views import Progress
from wardround.errors import AuthRefused, ConnectionFailed

OURS = {"sec-fetch-site": "same-origin"}
POINT = {"prompts": [{"kind": "point", "index": [3, 4, 5], "label": 1}]}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Workbench]:
    with workbench(tmp_path / "home", cases=3, tests=1, studio=FakeStudio, review=True) as served:
        yield served


def code(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of an error, which says its problem as well."""
    found = answer.json()
    assert set(found["error"]) == {"code", "problem", "cause", "fix"}
    assert found["error"]["problem"] == found["detail"] != ""
    return answer.status_code, found["error"]["code"]


def accept(client: httpx.Client, case: str) -> None:
    assert client.post(f"/api/v1/cases/{case}/open").status_code == 200
    assert client.post(f"/api/v1/cases/{case}/draw", json=POINT).status_code == 200
    assert client.post(f"/api/v1/cases/{case}/accept", json={}).json()["state"] == "accepted"


def test_a_browser_signs_in_works_and_signs_out(bench: Workbench) -> None:
    browser = bench.client(headers=OURS)
    assert code(browser.get("/api/v1/me")) == (401, "not-signed-in")
    answer = browser.post("/api/v1/login", json={"name": "rev", "password": password("rev")})
    assert answer.json() == {"name": "rev", "roles": ["annotator", "reviewer"], "change_password": False}
    assert browser.get("/api/v1/me").json()["name"] == "rev"
    assert browser.post("/api/v1/cases/case-0/open").status_code == 200
    assert browser.post("/api/v1/logout").status_code == 204
    assert COOKIE not in browser.cookies
    assert code(browser.get("/api/v1/me")) == (401, "not-signed-in")


def test_a_wrong_password_is_refused_and_soon_has_to_wait(bench: Workbench) -> None:
    browser = bench.client(headers=OURS)
    wrong = {"name": "ann", "password": "wrong wrong wrong"}
    assert [code(browser.post("/api/v1/login", json=wrong)) for _ in range(5)] == [(401, "not-signed-in")] * 5
    answer = browser.post("/api/v1/login", json={"name": "ann", "password": password("ann")})
    assert code(answer) == (429, "too-many-tries")
    assert int(answer.headers["retry-after"]) >= 1
    assert browser.post("/api/v1/login", json={"name": "ben", "password": password("ben")}).status_code == 200


def test_the_site_says_what_a_page_needs(bench: Workbench) -> None:
    found = bench.client("ann").get("/api/v1/site").json()
    assert found["site"] == "north"
    assert [(one["value"], one["name"]) for one in found["labels"]] == [(1, "anterior"), (2, "posterior")]
    assert len({one["colour"] for one in found["labels"]}) == 2
    assert (found["review"], found["export"], found["user"]["name"]) == (True, False, "ann")
    assert set(found["progress"]) == {
        "model", "run", "round", "learning", "updates_done", "updates_left", "federation",
    }  # fmt: skip
    assert "unsure" in found["reasons"]


def test_the_work_list_is_cut_and_filtered(bench: Workbench) -> None:
    client = bench.client("ann")
    accept(client, "case-1")
    whole = client.get("/api/v1/cases").json()
    assert ([one["id"] for one in whole["cases"]], whole["total"]) == (["case-0", "case-1", "case-2"], 3)
    part = client.get("/api/v1/cases", params={"offset": 1, "limit": 1}).json()
    assert ([one["id"] for one in part["cases"]], part["total"]) == (["case-1"], 3)
    new = client.get("/api/v1/cases", params={"state": "new"}).json()
    assert ([one["id"] for one in new["cases"]], new["total"]) == (["case-0", "case-2"], 2)
    assert client.get("/api/v1/cases/case-1").json()["mine"] == "accepted"
    assert client.get("/api/v1/cases/next").json() == {"id": "case-0"}
    for wrong in ({"state": "lost"}, {"limit": 0}, {"limit": 10**6}, {"offset": -1}):
        assert code(client.get("/api/v1/cases", params=wrong)) == (422, "not-understood")
    assert code(client.get("/api/v1/cases/next", params={"strategy": "best"})) == (422, "not-understood")


def test_an_image_is_sent_once_and_stays_private(bench: Workbench) -> None:
    client = bench.client("ann")
    answer = client.get("/api/v1/cases/case-0/image")
    image = decode_image(answer.content, Path("image.nii.gz"))
    np.testing.assert_array_equal(image.array, bench.store.image("case-0").array)
    np.testing.assert_allclose(image.affine, bench.store.image("case-0").affine, atol=1e-5)
    assert answer.headers["cache-control"] == "private, no-cache"
    again = client.get("/api/v1/cases/case-0/image", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = client.get("/api/v1/cases/case-1/image", headers={"if-none-match": answer.headers["etag"]})
    assert other.status_code == 200


def test_a_drawing_is_answered_with_what_is_drawn(bench: Workbench) -> None:
    client = bench.client("ann")
    assert code(client.post("/api/v1/cases/case-0/draw", json=POINT)) == (409, "not-possible")
    opened = client.post("/api/v1/cases/case-0/open").json()
    assert (opened["step"], opened["drawn"], opened["extent"]) == (0, [], None)
    extent = {"lower": [1, 1, 1], "upper": [9, 9, 9]}
    found = client.post("/api/v1/cases/case-0/draw", json=POINT | {"extent": extent}).json()
    assert (found["drawn"], found["extent"]) == (POINT["prompts"], extent)
    assert set(found) == {
        "case_id", "step", "can_undo", "can_redo", "suggestion", "effort_contour", "effort_strict", "effort_share",
        "changed", "versions", "latency_ms", "progress", "drawn", "extent", "prompts", "points",
    }  # fmt: skip
    assert (found["prompts"], found["points"]) == ("slices", {"complete": [], "begun": None})
    assert found["suggestion"] == [{"axis": 2, "index": 8}]
    assert client.post("/api/v1/cases/case-0/undo").json()["drawn"] == []
    assert client.post("/api/v1/cases/case-0/redo").json()["drawn"] == POINT["prompts"]
    assert client.post("/api/v1/cases/case-0/close").status_code == 204
    assert code(client.post("/api/v1/cases/case-0/undo")) == (409, "not-possible")


def test_a_layer_travels_cut_raw_and_once(bench: Workbench) -> None:
    client = bench.client("ann")
    client.post("/api/v1/cases/case-0/open")
    path = "/api/v1/cases/case-0/layers/proxy"
    assert code(client.get(path)) == (404, "no-such-layer")
    plane = np.full((16, 24), 255, dtype=np.uint8)
    plane[2:5, 3:9] = [[1, 2, 1, 2, 2, 1]] * 3
    plane[3, 3] = 2
    labels = {"shape": [16, 24], "rle": [[int(value), 1] for value in plane.ravel()]}
    prompts = [{"kind": "scribble", "axis": 2, "index": 7, "labels": labels}]
    version = client.post("/api/v1/cases/case-0/draw", json={"prompts": prompts}).json()["versions"]["proxy"]
    answer = client.get(path)
    assert answer.headers["x-wardround-version"] == str(version)
    assert answer.headers["x-wardround-shape"] == "16,24,16"
    i0, i1, j0, j1, k0, k1 = map(int, answer.headers["x-wardround-box"].split(","))
    values = np.frombuffer(answer.content, dtype=np.uint8).reshape((i1 - i0, j1 - j0, k1 - k0), order="F")
    whole = np.zeros((16, 24, 16), dtype=np.uint8)
    whole[i0:i1, j0:j1, k0:k1] = values
    np.testing.assert_array_equal(whole[:, :, 7], np.where(plane == 255, 0, plane))
    assert whole.sum() == whole[:, :, 7].sum()
    assert client.get(path, params={"newer_than": version}).status_code == 304
    assert client.get(path, params={"newer_than": version - 1}).status_code == 200
    assert code(client.get("/api/v1/cases/case-0/layers/truth")) == (422, "not-understood")


def test_a_large_layer_is_packed_for_those_who_can_unpack_it(bench: Workbench) -> None:
    client = bench.client("ann")
    client.post("/api/v1/cases/case-0/open")
    labels = {"shape": [16, 24], "rle": [[1, 16 * 24]]}
    prompts = [{"kind": "slice", "axis": 2, "index": index, "labels": labels} for index in range(8)]
    client.post("/api/v1/cases/case-0/draw", json={"prompts": prompts})
    path = "/api/v1/cases/case-0/layers/proxy"
    with client.stream("GET", path, headers={"accept-encoding": "gzip, br"}) as answer:
        packed = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == "gzip"
    plain = client.get(path, headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert len(packed) < len(plain.content) == 16 * 24 * 8
    assert gzip.decompress(packed) == plain.content


def test_an_accepted_label_is_in_the_store(bench: Workbench) -> None:
    client = bench.client("ann")
    accept(client, "case-0")
    (line,) = client.get("/api/v1/cases/case-0/labels").json()["labels"]
    assert (line["author"], line["state"], line["stored"]) == ("ann", "accepted", True)
    answer = client.get("/api/v1/cases/case-0/labels/ann")
    labels = decode_labels(answer.content, Path("label.nii.gz"))
    assert labels.array[3, 4, 5] == 1
    assert (labels.array != 0).sum() == 1
    assert code(client.get("/api/v1/cases/case-1/labels/ann")) == (404, "no-such-label")
    assert code(client.post("/api/v1/cases/case-0/accept", json={"source": "thin air"})) == (422, "not-understood")


def test_a_label_that_a_round_wrote_is_no_imported_one(bench: Workbench) -> None:
    label = bench.store.label("case-0", "imported")
    assert label is not None
    bench.store.save_label("case-0", label, "wardround", 1, 0.0)
    found = bench.client("rev").get("/api/v1/cases/case-0/labels").json()["labels"]
    assert {one["author"]: one["state"] for one in found} == {"imported": "imported", "wardround": "learnt"}


def test_everybody_sees_their_own_label_and_a_reviewer_all(bench: Workbench) -> None:
    ann, ben, rev = (bench.client(user) for user in ("ann", "ben", "rev"))
    accept(ann, "case-0")
    accept(ben, "case-0")
    authors = {
        client: [one["author"] for one in client.get("/api/v1/cases/case-0/labels").json()["labels"]]
        for client in (ann, ben, rev)
    }
    assert authors == {ann: ["ann"], ben: ["ben"], rev: ["ann", "ben", "imported"]}
    assert code(ann.get("/api/v1/cases/case-0/labels/ben")) == (403, "not-yours")
    assert code(ann.get("/api/v1/cases/case-0/labels/imported")) == (403, "not-yours")
    assert rev.get("/api/v1/cases/case-0/labels/ben").status_code == 200
    assert rev.get("/api/v1/cases/case-0/labels/imported").status_code == 200


def test_the_truth_of_a_test_case_is_for_nobody(bench: Workbench) -> None:
    rev = bench.client("rev")
    (case,) = bench.store.cases("test")
    assert bench.store.label(case, "reference") is not None
    assert rev.get(f"/api/v1/cases/{case}/labels").json()["labels"] == []
    assert code(rev.get(f"/api/v1/cases/{case}/labels/reference")) == (404, "no-such-label")


def test_a_reviewer_judges_the_labels_of_others(bench: Workbench) -> None:
    ann, rev = bench.client("ann"), bench.client("rev")
    accept(ann, "case-0")
    accept(rev, "case-1")
    path = "/api/v1/cases/case-0/labels/ann/review"
    assert code(ann.post(path, json={"verdict": "approved"})) == (403, "not-allowed")
    wrong = rev.post(path, json={"verdict": "rejected", "reason": "Mr Doe moved"})
    assert code(wrong) == (422, "unknown-reason")
    assert "Doe" not in wrong.text
    assert rev.post(path, json={"verdict": "rejected", "reason": "inaccurate"}).status_code == 200
    (line,) = ann.get("/api/v1/cases/case-0/labels").json()["labels"]
    assert (line["state"], line["reason"], line["reviewer"]) == ("rejected", "inaccurate", "rev")
    assert rev.post(path, json={"verdict": "approved"}).json()["state"] == "approved"
    assert code(rev.post(path, json={"verdict": "approved", "seen": line["updated"]})) == (409, "not-possible")
    own = "/api/v1/cases/case-1/labels/rev/review"
    assert code(rev.post(own, json={"verdict": "approved"})) == (403, "own-label")
    assert bench.client("adm").post(own, json={"verdict": "approved"}).status_code == 200
    nothing = rev.post("/api/v1/cases/case-2/labels/ann/review", json={"verdict": "approved"})
    assert code(nothing) == (409, "not-possible")


def test_a_case_is_skipped_for_a_reason_of_the_list(bench: Workbench) -> None:
    client = bench.client("ann")
    client.post("/api/v1/cases/case-0/open")
    assert code(client.post("/api/v1/cases/case-0/skip", json={"reason": "free text"})) == (422, "unknown-reason")
    found = client.post("/api/v1/cases/case-0/skip", json={"reason": "unsure"}).json()
    assert found == {"case_id": "case-0", "state": "skipped", "kept": None, "next": "case-1"}


def test_a_case_that_there_is_not_is_not_found(bench: Workbench) -> None:
    client = bench.client("ann")
    for case in ("case-9", "..%2Fcase-0", "%2e%2e", "case-0%00", "%2Fetc%2Fpasswd", "..%5Ccase-0", "case-0/../case-9"):
        for method, path in (("GET", ""), ("GET", "/image"), ("POST", "/open"), ("GET", "/labels")):
            assert client.request(method, f"/api/v1/cases/{case}{path}").status_code in (404, 405), case
    assert bench.studio.asked == []


def test_a_plane_of_another_image_is_refused_before_it_is_unpacked(bench: Workbench) -> None:
    client = bench.client("ann")
    client.post("/api/v1/cases/case-0/open")
    huge = {"shape": [4096, 4096], "rle": [[0, 4096 * 4096]]}
    prompts = [{"kind": "slice", "axis": 2, "index": 0, "labels": huge}] * 256
    assert code(client.post("/api/v1/cases/case-0/draw", json={"prompts": prompts})) == (409, "not-possible")


def test_a_body_that_is_no_drawing_is_refused_and_not_repeated(bench: Workbench) -> None:
    client = bench.client("ann")
    client.post("/api/v1/cases/case-0/open")
    bodies = (
        b"{", b"[]", b"null", b'{"prompts": 3}', b"\xff\xfe", b"[" * 100_000, b'"DOE"', b'{"DOE": "JANE"}',
        b'{"prompts": [{"kind": "DOE"}]}', b'{"prompts": [{"kind": "point", "index": "DOE", "label": 1}]}',
    )  # fmt: skip
    for body in bodies:
        headers = {"content-type": "application/json"}
        answer = client.post("/api/v1/cases/case-0/draw", content=body, headers=headers)
        assert code(answer)[0] in (400, 422)
        assert "DOE" not in answer.text


def test_a_form_is_no_json(bench: Workbench) -> None:
    """A page elsewhere may send a form without being asked; JSON it may not."""
    text = json.dumps(POINT)
    client = bench.client("ann")
    client.post("/api/v1/cases/case-0/open")
    answer = client.post("/api/v1/cases/case-0/draw", content=text, headers={"content-type": "text/plain"})
    assert code(answer) == (422, "not-understood")


def test_what_is_sent_to_the_archive_is_ones_own_or_a_reviewers_choice(tmp_path: Path) -> None:
    sent: list[tuple[str, str]] = []

    def export(case_id: str, author: str) -> dict[str, Any]:
        if case_id == "case-1":
            raise ConnectionFailed("the archive does not answer", "", "start it")
        if case_id == "case-2":
            raise AuthRefused("the archive does not accept the site's account", "", "look at its password")
        sent.append((case_id, author))
        return {"instances": 1}

    with workbench(tmp_path / "home", cases=3, studio=FakeStudio, export=export) as bench:
        ann, rev = bench.client("ann"), bench.client("rev")
        assert ann.get("/api/v1/site").json()["export"] is True
        assert ann.post("/api/v1/cases/case-0/export", json={}).json() == {"instances": 1}
        assert code(ann.post("/api/v1/cases/case-0/export", json={"author": "ben"})) == (403, "not-yours")
        assert rev.post("/api/v1/cases/case-0/export", json={"author": "ben"}).status_code == 200
        assert sent == [("case-0", "ann"), ("case-0", "ben")]
        assert code(ann.post("/api/v1/cases/case-1/export", json={})) == (502, "archive-not-reached")
        assert code(ann.post("/api/v1/cases/case-2/export", json={})) == (502, "archive-refused"), "not signed out"


def test_without_an_archive_nothing_is_sent(bench: Workbench) -> None:
    assert code(bench.client("ann").post("/api/v1/cases/case-0/export", json={})) == (409, "no-archive")


def test_the_page_is_told_of_every_change(bench: Workbench) -> None:
    client = bench.client("ann")
    with client.stream("GET", "/api/v1/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = (line for line in stream.iter_lines() if line.startswith("data: "))
        first = json.loads(next(lines).removeprefix("data: "))["progress"]
        client.post("/api/v1/cases/case-0/open")
        second = json.loads(next(lines).removeprefix("data: "))["progress"]
    assert second["updates_done"] == first["updates_done"] + 1


def test_a_stream_of_changes_ends_with_its_session(bench: Workbench) -> None:
    with bench.client("ann").stream("GET", "/api/v1/events") as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        bench.accounts.remove("ann")
        assert [line for line in lines if line.startswith("data: ")] == []


def test_nobody_opens_pages_without_end(bench: Workbench) -> None:
    client = bench.client("ann", timeout=20)
    with ExitStack() as stack:
        pages = [stack.enter_context(client.stream("GET", "/api/v1/events")) for _ in range(EACH)]
        lines = [page.iter_lines() for page in pages]
        assert all(next(line).startswith("data: ") for line in lines)
        with client.stream("GET", "/api/v1/events") as one_more:
            assert one_more.status_code == 429
        with bench.client("ben").stream("GET", "/api/v1/events") as other:
            assert other.status_code == 200

    def opens() -> bool:
        with client.stream("GET", "/api/v1/events") as again:
            return again.status_code == 200

    eventually(opens, "room for a page")


def test_pages_that_are_opened_at_once_are_no_more_than_there_may_be() -> None:
    class Still:
        def wait_for_change(self, user: str, seen: int, timeout_s: float) -> int:
            return seen + 1

        def progress(self, user: str) -> Progress:
            return Progress("", "", 0, False, 0, 0, "idle")

    async def begun() -> int:
        events = Events(cast(Studio, Still()))
        # All are let in before the first has begun.
        streams = [events.stream("ann", lambda: True).body_iterator for _ in range(EACH + 3)]
        first = [await anext(aiter(one), None) for one in streams]
        events.end()
        return sum(one is not None for one in first)

    assert asyncio.run(begun()) == EACH
