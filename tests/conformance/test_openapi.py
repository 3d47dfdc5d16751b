"""Our OpenAPI holds what 3D Slicer's plug-in and OHIF v3 call of a MONAI Label server 0.8.5, with its parameters.

The table was taken from the source of that server, with the routes that it hides from its own description although
these clients call them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from played_studio import played_workbench

NOTHING: frozenset[str] = frozenset()
# Method, path, parameters in path and query, fields of the body's form; "json" where the body is JSON.
CALLED: tuple[tuple[str, str, frozenset[str], frozenset[str] | str], ...] = (
    ("get", "/auth/", NOTHING, NOTHING),
    ("post", "/auth/token", NOTHING, frozenset({"username", "password", "grant_type"})),
    ("get", "/auth/token/valid", NOTHING, NOTHING),
    ("get", "/info/", NOTHING, NOTHING),
    ("post", "/activelearning/{strategy}", frozenset({"strategy"}), "json"),
    ("get", "/datastore/", frozenset({"output"}), NOTHING),
    ("put", "/datastore/", frozenset({"image"}), frozenset({"params", "file"})),
    ("put", "/datastore/image", frozenset({"image"}), frozenset({"params", "file"})),
    ("get", "/datastore/image", frozenset({"image"}), NOTHING),
    ("head", "/datastore/image", frozenset({"image", "check_sum"}), NOTHING),
    ("get", "/datastore/image/info", frozenset({"image"}), NOTHING),
    ("put", "/datastore/label", frozenset({"image", "tag"}), frozenset({"params", "label"})),
    ("get", "/datastore/label", frozenset({"label", "tag"}), NOTHING),
    ("head", "/datastore/label", frozenset({"image", "tag"}), NOTHING),
    ("get", "/datastore/label/info", frozenset({"label", "tag"}), NOTHING),
    ("put", "/session/", frozenset({"expiry"}), frozenset({"files"})),
    ("get", "/session/{session_id}", frozenset({"session_id", "update_ts", "image"}), NOTHING),
    ("delete", "/session/{session_id}", frozenset({"session_id"}), NOTHING),
    (
        "post",
        "/infer/{model}",
        frozenset({"model", "image", "session_id", "output"}),
        frozenset({"params", "file", "label"}),
    ),
    ("get", "/train/", frozenset({"all", "check_if_running"}), NOTHING),
    ("post", "/train/", frozenset({"run_sync"}), "json"),
    ("post", "/train/{model}", frozenset({"model", "run_sync", "enqueue"}), "json"),
    ("delete", "/train/", NOTHING, NOTHING),
    ("get", "/scoring/", NOTHING, NOTHING),
    ("post", "/scoring/{method}", NOTHING, NOTHING),
    ("get", "/batch/infer", NOTHING, NOTHING),
    ("post", "/batch/infer/{model}", frozenset({"model"}), NOTHING),
    ("get", "/logs/", frozenset({"lines", "html", "text", "refresh"}), NOTHING),
    ("get", "/logs/gpu", NOTHING, NOTHING),
    ("get", "/ohif/{path}", frozenset({"path"}), NOTHING),
    ("get", "/proxy/dicom/{service}/{path}", frozenset({"service", "path"}), NOTHING),
    ("post", "/proxy/dicom/{service}/{path}", frozenset({"service", "path"}), NOTHING),
)


@pytest.fixture(scope="module")
def description(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    with played_workbench(tmp_path_factory.mktemp("bench") / "home") as bench:
        yield bench.client("ann").get("/openapi.json").json()


@pytest.mark.parametrize(("method", "path", "parameters", "body"), CALLED, ids=[" ".join(one[:2]) for one in CALLED])
def test_a_call_of_these_clients_is_there(
    description: dict[str, Any], method: str, path: str, parameters: frozenset[str], body: frozenset[str] | str
) -> None:
    operation = description["paths"][path][method]
    assert parameters <= {one["name"] for one in operation.get("parameters", ())}
    for one in operation.get("parameters", ()):
        if one["name"] not in parameters:
            assert not one.get("required"), f"these clients do not send {one['name']}"
    if not body:
        return
    content = operation["requestBody"]["content"]
    if isinstance(body, str):
        assert "application/json" in content
        assert not operation["requestBody"].get("required"), "these clients may send nothing"
        return
    (form,) = content.values()
    schema = form["schema"]
    if "$ref" in schema:
        schema = description["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    assert body <= schema["properties"].keys()
    assert set(schema.get("required", ())) <= body


def test_the_description_is_for_those_who_are_signed_in(tmp_path: Path) -> None:
    with played_workbench(tmp_path / "home") as bench:
        assert bench.client().get("/openapi.json").status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        "/infer/wsi/{model}",
        "/model/{model}",
        "/model/info/{model}",
        "/datastore/updatelabelinfo",
        "/datastore/dataset",
        "/reload",
    ],
)
def test_what_removes_replaces_or_hands_out_all_is_not_there(description: dict[str, Any], path: str) -> None:
    """As docs/viewers.md says."""
    assert path not in description["paths"]
    for place in ("/datastore/", "/datastore/image", "/datastore/label"):
        assert "delete" not in description["paths"][place]
    for place in ("/datastore/image/info", "/datastore/label/info"):
        assert "put" not in description["paths"][place]
