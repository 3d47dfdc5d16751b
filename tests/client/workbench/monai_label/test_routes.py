"""The routes over HTTP: what they answer, to whom, and what they keep to themselves."""

import http.client
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from played_studio import REACH, SHAPE, oblique, played_workbench
from workbench import Workbench, password

from wardround.client.cases import nifti
from wardround.client.workbench.monai_label import nrrd
from wardround.client.workbench.monai_label.desk import AUTOMATIC, POINTS, SCRIBBLES

CANARY = "Canary^Carla 1970-01-01"
UID = "1.2.826.0.1.3680043.8.498.4711"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    with played_workbench(tmp_path_factory.mktemp("bench") / "home") as running:
        yield running


@pytest.fixture(scope="module")
def ann(bench: Workbench) -> httpx.Client:
    return bench.client("ann")


def infer(client: httpx.Client, model: str = POINTS, params: Any = None, **query: Any) -> httpx.Response:
    text = params if isinstance(params, str) else json.dumps(params or {})
    return client.post(f"/infer/{model}", params=query, files={"params": (None, text)})


def problem(answer: httpx.Response) -> str:
    """What an error says; its form is held as well."""
    said = answer.json()
    assert set(said) == {"detail", "error"}
    assert set(said["error"]) == {"code", "problem", "cause", "fix"}
    return str(said["error"]["problem"])


def test_whether_a_token_is_needed_is_told_to_everybody(bench: Workbench) -> None:
    assert bench.client().get("/auth/").json() == {"enabled": True, "client_id": "wardround", "realm": ""}


def test_a_token_is_given_for_a_password(bench: Workbench) -> None:
    nobody = bench.client()
    form = {"username": "ann", "password": password("ann"), "grant_type": "password"}
    given = nobody.post("/auth/token", data=form).json()
    assert given["token_type"].lower() == "bearer"
    headers = {"authorization": f"{given['token_type']} {given['access_token']}"}
    assert nobody.get("/auth/token/valid", headers=headers).json()["username"] == "ann"
    assert nobody.get("/auth/token/valid").status_code == 401
    assert nobody.post("/auth/token", data=form | {"grant_type": "refresh_token"}).status_code == 400
    assert nobody.post("/auth/token", data=form | {"password": "nothing"}).status_code == 401


@pytest.mark.parametrize("output", [None, "all"])
def test_the_reply_has_two_parts(ann: httpx.Client, output: str | None) -> None:
    query = {"image": "case0"} | ({"output": output} if output else {})
    answer = infer(ann, params={"anterior": [[5, 4, 3]]}, **query)
    assert answer.headers["content-type"].startswith("multipart/form-data; boundary=")
    boundary = answer.headers["content-type"].partition("=")[2].encode()
    _, params, image, end = answer.content.split(b"--" + boundary)
    assert end == b"--\r\n"
    assert b'name="params"' in params
    assert b"filename" not in params
    reply = json.loads(params.partition(b"\r\n\r\n")[2])
    assert reply["label_names"] == {"anterior": 1}, "only what is in the mask: 3D Slicer counts by that"
    assert reply["centroids"] == {"anterior": [5, 4, 3]}
    head, _, mask = image.partition(b"\r\n\r\n")
    assert b'name="image"; filename="' in head
    assert b"application/octet-stream" in head
    assert nrrd.decode(mask.removesuffix(b"\r\n")).volume.array.sum() == (2 * REACH + 1) ** 3


def test_the_image_alone_and_the_parameters_alone(ann: httpx.Client) -> None:
    params = {"posterior": [[5, 4, 3]], "result_extension": ".nii.gz"}
    image = infer(ann, params=params, image="case0", output="image")
    assert image.headers["content-disposition"].startswith("attachment; filename=")
    assert nifti.decode_labels(image.content, None).same_grid(oblique(0))  # type: ignore[arg-type]
    told = infer(ann, params=params, image="case0", output="json").json()
    assert set(told["latencies"]) == {"pre", "infer", "invert", "post", "write", "total", "transform"}


@pytest.mark.parametrize(
    ("model", "params", "query", "status"),
    [
        ("nothing", {}, {"image": "case0"}, 404),
        (POINTS, {}, {}, 400),
        (POINTS, {}, {"image": "nothing"}, 404),
        (POINTS, {}, {"image": "/etc/passwd"}, 404),
        (POINTS, {}, {"image": "../store.sqlite"}, 404),
        (POINTS, {}, {"image": "a\0b"}, 404),
        (POINTS, {}, {"session_id": "nothing"}, 404),
        (POINTS, {}, {"session_id": "../../.."}, 404),
        (POINTS, "no JSON", {"image": "case0"}, 400),
        (POINTS, "[1]", {"image": "case0"}, 400),
        (POINTS, "[" * 100_000, {"image": "case0"}, 400),
        (POINTS, {"anterior": [[99, 0, 0]]}, {"image": "case0"}, 409),
        (POINTS, {"result_extension": "/../x"}, {"image": "case0"}, 400),
        (POINTS, {"result_dtype": "float32"}, {"image": "case0"}, 400),
        (POINTS, {}, {"image": "case0", "output": "dicom_seg"}, 409),
        (POINTS, {}, {"image": "case0", "output": "nothing"}, 422),
        (POINTS, '{"anterior": [[NaN, 0, 0]]}', {"image": "case0"}, 400),
        (POINTS, '{"anterior": [[Infinity, 0, 0]]}', {"image": "case0"}, 400),
        (POINTS, '{"anterior": [[1e300, 0, 0]]}', {"image": "case0"}, 409),
        (POINTS, '{"anterior": [[' + "9" * 400 + ", 0, 0]]}", {"image": "case0"}, 409),
        (POINTS, '{"anterior": [[' + "9" * 5000 + ", 0, 0]]}", {"image": "case0"}, 400),
        (POINTS, {"anterior": [[-1, 0, 0]]}, {"image": "case0"}, 409),
        (POINTS, {"anterior": {"x": 1}}, {"image": "case0"}, 400),
        (POINTS, {"anterior": [[True, 0, 0]]}, {"image": "case0"}, 400),
        (POINTS, {"label": {"x": 1}}, {"image": "case0"}, 400),
        (POINTS, {"label": [1]}, {"image": "case0"}, 400),
        (POINTS, {"roi": ["a"] * 6, "anterior": []}, {"image": "case0"}, 400),
        (POINTS, {"roi": {"x": 1}}, {"image": "case0"}, 400),
        (POINTS, {"result_extension": {"x": 1}}, {"image": "case0"}, 400),
        (POINTS, {"result_dtype": ["uint8"]}, {"image": "case0"}, 400),
        (POINTS, {"x_session": True, "x_layers": [{"x": 1}]}, {"image": "case0"}, 400),
        (POINTS, {"x_session": True, "x_layers": "nothing"}, {"image": "case0"}, 400),
        (SCRIBBLES, {}, {"image": "case0"}, 400),
    ],
)
def test_a_mistake_is_answered_as_json(
    ann: httpx.Client, model: str, params: Any, query: dict[str, str], status: int
) -> None:
    answer = infer(ann, model, params, **query)
    assert answer.status_code == status
    assert problem(answer)
    assert "passwd" not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "more"),
    [
        ("POST", f"/infer/{POINTS}?image=case0", {"json": {"params": "{}"}}),
        ("POST", f"/infer/{POINTS}?image=case0", {"content": b"\xff" * 100}),
        ("POST", f"/infer/{POINTS}?image=case0", {"content": b"x", "headers": {"content-type": "multipart/form-data"}}),
        ("POST", f"/infer/{SCRIBBLES}?image=case0", {"files": {"label": ("x.nii.gz", b"")}}),
        ("POST", f"/infer/{SCRIBBLES}?image=case0", {"files": {"label": ("x.bin", b"123")}}),
        ("POST", f"/infer/{POINTS}", {"files": {"file": ("x", b"nothing")}}),
        ("POST", "/activelearning/first", {"content": b"{", "headers": {"content-type": "application/json"}}),
        ("POST", "/activelearning/first", {"json": [1]}),
        ("POST", f"/train/{POINTS}", {"json": "x"}),
        ("PUT", "/datastore/image", {"json": {}}),
        ("PUT", "/datastore/image", {"files": {"file": ("x", b"\x1f\x8b" * 50)}}),
        ("PUT", "/datastore/label?image=case0", {"files": {"label": ("x", b"NRRD0004\n\n")}}),
        ("PUT", "/datastore/label?image=case0&tag=original", {"files": {"label": ("x", b"")}}),
        ("PUT", "/session/?expiry=" + "9" * 5000, {"files": {"files": ("x", b"y")}}),
        ("GET", "/logs/?lines=NaN", {}),
    ],
)
def test_nonsense_is_refused_with_a_sentence(ann: httpx.Client, method: str, path: str, more: dict[str, Any]) -> None:
    answer = ann.request(method, path, **more)
    assert 400 <= answer.status_code < 500
    assert problem(answer)


def test_nothing_drawn_is_predicted(bench: Workbench, ann: httpx.Client) -> None:
    infer(ann, AUTOMATIC, {"anterior": [[1, 1, 1]]}, image="case0")
    assert bench.studio.inferred[-1] == ((), None)


def test_on_the_bench_only_what_is_new_is_drawn(bench: Workbench) -> None:
    client = bench.client("ben")
    params = {"x_session": True, "anterior": [[2, 2, 2]], "x_layers": ["residual", "proxy"]}
    first = infer(client, params=params, image="case1", output="json").json()
    drawn = len(bench.studio.drawn["case1", "ben"])
    params["anterior"].append([6, 6, 6])  # type: ignore[union-attr]
    second = infer(client, params=params, image="case1", output="json").json()
    again = infer(client, params=params, image="case1", output="json").json()
    assert (drawn, first["x_step"], second["x_step"], again["x_step"]) == (1, 1, 2, 2)
    assert second["x_suggestion"]
    assert set(second["x_effort"]) == {"contour", "strict", "share"}
    assert second["x_proxy"]["shape"] == list(SHAPE)
    assert infer(client, params={"x_session": True, "x_layers": ["no"]}, image="case1").status_code == 400


def test_a_label_belongs_to_who_saved_it(bench: Workbench) -> None:
    image = oblique(1)
    labels = np.zeros(SHAPE, np.uint8)
    labels[2, 3, 4] = 1
    data = nifti.encode(image.with_array(labels))
    ann, ben, rev = (bench.client(name) for name in ("ann", "ben", "rev"))
    said = ann.put("/datastore/label", params={"image": "case1"}, files={"label": (f"{CANARY}.nii.gz", data)})
    assert said.json()["x_state"] == "accepted"
    query = {"label": "case1", "tag": "final"}
    own = ann.get("/datastore/label", params=query)
    assert own.status_code == 200
    assert np.array_equal(nifti.decode_labels(own.content, None).array, labels)  # type: ignore[arg-type]
    assert ben.get("/datastore/label", params=query).status_code == 404
    other = {"label": "case1", "tag": "final-ann"}
    assert ben.get("/datastore/label", params=other).status_code == 404
    assert rev.get("/datastore/label", params=other).content == own.content
    tags = [
        set(one.get("/datastore/", params={"output": "all"}).json()["objects"]["case1"]["labels"])
        for one in (ann, ben, rev)
    ]
    assert tags == [{"final"}, set(), {"final-ann"}]
    assert ann.head("/datastore/label", params={"image": "case1", "tag": "final"}).status_code == 200
    assert ben.head("/datastore/label", params={"image": "case1", "tag": "final"}).status_code == 404
    assert ann.get("/datastore/").json() == {"total": 2, "completed": 1, "label_tags": {"final": 1}}
    assert problem(ann.put("/datastore/label", params={"image": "case1", "tag": "original"}, files={"label": data}))


def test_a_label_on_another_grid_is_not_saved(bench: Workbench, ann: httpx.Client) -> None:
    data = nifti.encode(oblique(0).with_array(np.zeros(SHAPE, np.uint8)))
    answer = ann.put("/datastore/label", params={"image": "case1"}, files={"label": data})
    assert answer.status_code == 422
    assert "grid" in problem(answer)


def test_the_id_of_a_sample_opens_its_image_for_some_minutes(bench: Workbench) -> None:
    """3D Slicer's plug-in loads the image without the token that it has."""
    nobody, ann = bench.client(), bench.client("ann")
    sample = ann.post("/activelearning/first", json={}).json()
    image = nobody.get("/datastore/image", params={"image": sample["id"]})
    assert image.status_code == 200
    assert image.content == ann.get("/datastore/image", params={"image": sample["x_id"]}).content
    case_id, expiry, signature = sample["id"].split("~")
    for forged in (
        case_id,
        f"case1~{expiry}~{signature}",
        f"{case_id}~{int(expiry, 16) + 1:x}~{signature}",
        f"{case_id}~{expiry}~{signature[:-1]}x",
        f"{case_id}~{expiry}~é",
        f"{case_id}~~",
        "~~",
    ):
        assert nobody.get("/datastore/image", params={"image": forged}).status_code == 401, forged
    # It opens nothing else; for those who are signed in it stays an id.
    assert nobody.get("/datastore/image/info", params={"image": sample["id"]}).status_code == 401
    assert nobody.head("/datastore/image", params={"image": sample["id"]}).status_code == 401
    assert infer(nobody, image=sample["id"]).status_code == 401
    assert infer(ann, image=sample["id"], output="image").status_code == 200
    # A browser has its cookie.
    browser = bench.client()
    assert browser.post("/api/v1/login", json={"name": "ann", "password": password("ann")}).status_code == 200
    headers = {"sec-fetch-site": "same-origin"}
    assert browser.post("/activelearning/first", json={}, headers=headers).json()["id"] == case_id


def test_images_are_found_and_checked(ann: httpx.Client) -> None:
    found = ann.get("/datastore/image", params={"image": "case0"})
    assert nifti.decode_image(found.content, None).same_grid(oblique(0))  # type: ignore[arg-type]
    sample = ann.post("/activelearning/first", json={}).json()
    head = {"image": sample["id"], "check_sum": sample["checksum"]}
    assert ann.head("/datastore/image", params=head).status_code == 200
    assert ann.head("/datastore/image", params=head | {"check_sum": "SHA256:00"}).status_code == 404
    assert ann.head("/datastore/image", params={"image": "nothing"}).status_code == 404
    assert ann.get("/datastore/image/info", params={"image": "case0"}).json()["x_shape"] == list(SHAPE)
    assert ann.get("/datastore/", params={"output": "train"}).json() == []


@pytest.mark.parametrize("path", ["/datastore/", "/datastore/image"])
def test_an_upload_keeps_the_name_that_it_was_given_to_nobody(bench: Workbench, path: str) -> None:
    with played_workbench(bench.home.path.parent / path.replace("/", "-")) as own:
        client = own.client("ann")
        files = {"file": (f"{CANARY}.nii.gz", nifti.encode(oblique(7))), "params": (None, "{}")}
        case_id = client.put(path, params={"image": CANARY}, files=files).json()["image"]
        assert case_id in own.store.cases()
        assert "Canary" not in case_id
        for name in (CANARY, case_id):
            assert infer(client, image=name, output="image").status_code == 200
        again = client.put(path, params={"image": CANARY}, files=files)
        assert again.json()["image"] == case_id
        files["file"] = ("x.nii.gz", nifti.encode(oblique(8)))
        assert client.put(path, params={"image": CANARY}, files=files).status_code == 422
        assert client.put(path, params={"image": "y"}, files={"file": ("y", b"nothing")}).status_code == 422


def test_a_session_is_its_owners(bench: Workbench) -> None:
    ann, ben = bench.client("ann"), bench.client("ben")
    image = nifti.encode(oblique(5))
    created = ann.put("/session/", files={"files": (f"{CANARY}.nii.gz", image)}).json()
    path = f"/session/{created['session_id']}"
    assert created["session_info"]["path"] == ""
    assert str(bench.home.path) not in json.dumps(created)
    assert "Canary" not in json.dumps(created)
    assert nifti.decode_image(ann.get(path, params={"image": True}).content, None).same_grid(oblique(5))  # type: ignore[arg-type]
    assert infer(ann, image="", session_id=created["session_id"], output="image").status_code == 200
    for refused in (ben.get(path), ben.delete(path), infer(ben, session_id=created["session_id"])):
        assert refused.status_code == 404
    assert ann.delete(path).status_code == 200
    assert ann.get(path).status_code == 404
    assert ann.get("/session/..%2f..%2fstore").status_code == 404


@pytest.mark.parametrize("kept", ["application/json", "multipart/form-data; boundary=another", "text/plain"])
def test_a_session_is_made_whatever_the_content_type_says(ann: httpx.Client, kept: str) -> None:
    """MONAI Label's client sends the one of the request before."""
    request = ann.build_request("PUT", "/session/", files={"files": ("one.nii.gz", nifti.encode(oblique(5)))})
    body = request.read()
    assert ann.put("/session/", content=body, headers={"content-type": kept}).status_code == 200


@pytest.mark.parametrize(
    "body",
    [b"", b"nothing", b"--x\r\n", b'--x\r\ncontent-disposition: form-data; name="files"\r\n\r\nno file\r\n--x--\r\n'],
)
def test_a_session_needs_a_file(ann: httpx.Client, body: bytes) -> None:
    answer = ann.put("/session/", content=body, headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 400
    assert problem(answer)


def test_a_get_with_the_length_of_another_request_is_answered(bench: Workbench) -> None:
    """MONAI Label's client keeps that header, too, and sends no body."""
    connection = http.client.HTTPConnection(bench.url.removeprefix("http://"), timeout=60)
    headers = {"authorization": f"Bearer {bench.token('ann')}", "content-length": "1234"}
    connection.request("GET", "/info/", headers=headers)
    assert connection.getresponse().status == 200
    connection.close()


def test_training_is_a_task_of_ones_own(bench: Workbench) -> None:
    ann, ben = bench.client("ann"), bench.client("ben")
    assert ann.get("/train/").status_code == 404
    assert ann.delete("/train/").json() is None
    begun = ann.post(f"/train/{POINTS}", json={}).json()
    assert begun["status"] == "RUNNING"
    assert begun["details"]
    assert ann.post(f"/train/{POINTS}", json={}).status_code == 429
    assert ann.get("/train/", params={"check_if_running": True}).json()["id"] == begun["id"]
    assert ben.get("/train/").status_code == 404
    assert ann.delete("/train/").json()["status"] == "STOPPED"
    assert ann.get("/train/", params={"check_if_running": True}).status_code == 404
    assert ann.get("/train/", params={"all": True}).json()[0]["end_ts"]
    # OHIF asks for all trainers at once.
    assert ben.post("/train/", json={POINTS: {}}).json()[POINTS]["detail"] is None
    assert ann.post("/train/nothing", json={}).status_code == 404
    assert ann.post(f"/train/{POINTS}", params={"run_sync": True}).json()["status"] == "DONE"


def test_there_is_nothing_to_score_and_no_batch(ann: httpx.Client) -> None:
    assert ann.get("/scoring/").status_code == 404
    assert ann.post("/scoring/dice", json={}).status_code == 404
    assert ann.get("/batch/infer").status_code == 404
    assert ann.post(f"/batch/infer/{POINTS}", json={}).status_code == 404


def test_the_log_is_for_administrators_and_names_nobody(bench: Workbench) -> None:
    logging.getLogger("wardround.client").setLevel(logging.INFO)
    client = bench.client("ann")
    for answer in (
        infer(client, image=CANARY),
        infer(client, image=UID),
        infer(client, params=f'{{"{CANARY}"', image="case0"),
        infer(client, params={"anterior": CANARY}, image="case0"),
        client.post(f"/activelearning/{CANARY}", json={"client_id": CANARY}),
        client.put("/datastore/label", params={"image": "case0"}, files={"label": (CANARY, CANARY.encode())}),
        client.get("/datastore/label", params={"label": CANARY, "tag": CANARY}),
        client.get(f"/session/{CANARY}"),
        client.put("/session/", files={"files": (CANARY, CANARY.encode())}),
    ):
        assert 400 <= answer.status_code < 500
        assert "Canary" not in answer.text
        assert UID not in answer.text
    assert client.get("/logs/").status_code == 403
    admin = bench.client("adm")
    for query in ({"text": True}, {"html": False, "lines": 0}, {"refresh": 1}):
        log = admin.get("/logs/", params=query)
        assert log.status_code == 200
        assert "/infer/" in log.text
        assert not any(word in log.text for word in ("Canary", UID, "case0", "ann", str(bench.home.path)))
    assert admin.get("/logs/gpu").status_code in (200, 404)


def test_a_reviewer_may_look_and_not_draw_elsewhere(bench: Workbench) -> None:
    """Roles include each other: a reviewer is an annotator as well. Without an account there is nothing."""
    nobody = bench.client()
    for method, path in (
        ("GET", "/info/"),
        ("POST", f"/infer/{POINTS}"),
        ("GET", "/datastore/"),
        ("PUT", "/datastore/label"),
        ("PUT", "/session/"),
        ("GET", "/train/"),
        ("GET", "/logs/"),
        ("GET", "/ohif/"),
        ("GET", "/proxy/dicom/qido/studies"),
    ):
        answer = nobody.request(method, path)
        assert answer.status_code == 401, path
        assert problem(answer)


def test_without_a_viewer_and_an_archive_there_is_none(ann: httpx.Client) -> None:
    for path in ("/ohif/", "/proxy/dicom/qido/studies"):
        answer = ann.get(path)
        assert answer.status_code == 404
        assert problem(answer)


def test_a_raw_label_map_of_ohif(bench: Workbench, ann: httpx.Client) -> None:
    strokes = np.zeros(SHAPE, np.uint8)
    strokes[4, 5, 6] = 1
    params = {"label_info": [{"name": "foreground_scribbles", "id": 1}]}
    answer = ann.post(
        f"/infer/{SCRIBBLES}",
        params={"image": "case0", "output": "image"},
        files={"params": (None, json.dumps(params)), "label": ("label.bin", io.BytesIO(strokes.tobytes(order="F")))},
    )
    assert nrrd.decode(answer.content).volume.array[4, 5, 6] == 1


def test_two_people_with_two_viewers_at_one_case(bench: Workbench) -> None:
    """Each saves a label of their own; none is lost, and only a reviewer sees both."""
    volume = oblique(0)
    for user, value in (("ann", 1), ("ben", 2)):
        label = np.full(volume.shape, value, np.uint8)
        form = {"label": ("x.nrrd", nrrd.encode(volume.with_array(label)))}
        assert bench.client(user).put("/datastore/label", params={"image": "case0"}, files=form).status_code == 200
    for user, value in (("ann", 1), ("ben", 2)):
        kept = bench.client(user).get("/datastore/label", params={"label": "case0"}).content
        assert (nifti.decode_labels(kept, None).array == value).all()  # type: ignore[arg-type]
