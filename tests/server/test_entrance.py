"""What knocks is let in by its exact name, read against a limit, and written down."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from wardround.server.audit import REFUSALS_A_MINUTE, AuditTrail
from wardround.server.entrance import KEY_HEADER, PIECE, PUBLIC_LIMITS, SMALL, Entrance, Limits

CALLS = frozenset({("POST", "/v1/fleet/push-object"), ("POST", "/v1/fleet/pull-messages")})


class App:
    """Counts what it is given, and answers 200."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        event = await receive()
        assert not event["more_body"]
        self.bodies.append(event["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"yes"})


def knock(
    folder: Path,
    path: str = "/v1/fleet/push-object",
    *,
    method: str = "POST",
    raw: bytes | None = None,
    query: bytes = b"",
    headers: Sequence[tuple[bytes, bytes]] = (),
    pieces: Sequence[bytes | float] = (b"body",),
    limits: Limits = PUBLIC_LIMITS,
    known: bytes | None = None,
) -> tuple[int, list[bytes], list[dict[str, Any]]]:
    """Status, bodies that the application got, and the audit trail. A number among the pieces is a silence."""
    app, said = App(), []
    trail = AuditTrail(folder / "audit.jsonl")
    rest = list(pieces)

    async def receive() -> dict[str, Any]:
        while rest:
            piece = rest.pop(0)
            if isinstance(piece, bytes):
                return {"type": "http.request", "body": piece, "more_body": bool(rest)}
            await asyncio.sleep(piece)
        return {"type": "http.disconnect"}

    async def send(event: Any) -> None:
        said.append(event)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode() if raw is None else raw,
        "query_string": query,
        "headers": list(headers),
        "client": ("10.0.0.7", 1),
        "state": {},
    }
    is_known = None if known is None else known.__eq__
    asyncio.run(Entrance(app, "public", CALLS, limits, trail, is_known)(scope, receive, send))
    file = folder / "audit.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return said[0]["status"], app.bodies, lines


def test_a_known_call_comes_through_whole(tmp_path: Path) -> None:
    assert knock(tmp_path, pieces=(b"a", b"", b"bc")) == (200, [b"abc"], [])


@pytest.mark.parametrize(
    "case",
    [
        {"path": "/v1/control/start-run"},
        {"path": "/v1/fleet/"},
        {"path": "/v1/fleet/push-object/"},
        {"path": "/v1/fleet/unheard-of"},
        {"path": "//v1/fleet/push-object"},
        {"path": "/V1/fleet/push-object"},
        {"path": "/v1/fleet/../control/start-run"},
        {"path": "/docs", "method": "GET"},
        {"method": "GET"},
        {"raw": b"/v1/fleet%2Fpush-object"},
        {"raw": b"/v1/fleet/push%2dobject"},
        {"query": b"a=b"},
    ],
)
def test_nothing_else_does(tmp_path: Path, case: dict[str, Any]) -> None:
    status, bodies, lines = knock(tmp_path, **case)
    assert (status, bodies) == (404, [])
    assert [line["status"] for line in lines] == [404]


def test_a_path_that_nobody_knows_is_not_written_down_as_it_came(tmp_path: Path) -> None:
    _, _, lines = knock(tmp_path, "/v1/fleet/DOE^JOHN")
    assert "DOE" not in json.dumps(lines)


def test_a_body_that_is_declared_too_large_is_not_waited_for(tmp_path: Path) -> None:
    declared = [(b"content-length", str(10 * 2**30).encode())]
    assert knock(tmp_path, headers=declared, pieces=(60.0,))[:2] == (413, [])


@pytest.mark.parametrize("declared", [b"-1", b"1e3", b"", b"nan"])
def test_a_length_that_is_no_number_is_refused(tmp_path: Path, declared: bytes) -> None:
    assert knock(tmp_path, headers=[(b"content-length", declared)])[0] == 413


def test_a_body_that_grows_too_large_is_cut(tmp_path: Path) -> None:
    limits = Limits({"/v1/fleet/push-object": 10}, 5)
    assert knock(tmp_path, pieces=(b"x" * 10,), limits=limits)[0] == 200
    assert knock(tmp_path, pieces=(b"x" * 6, b"x" * 5, b"x" * 100), limits=limits)[:2] == (413, [])
    assert knock(tmp_path, "/v1/fleet/pull-messages", pieces=(b"x" * 6,), limits=limits)[:2] == (413, [])


def test_who_shows_no_known_key_sends_little(tmp_path: Path) -> None:
    """What a chunk of a model takes in memory is for those who may send one."""
    many = b"x" * (SMALL + 1)
    declared, key = (b"content-length", str(len(many)).encode()), (KEY_HEADER, b"ours")
    assert knock(tmp_path, headers=[declared, key], pieces=(many,), known=b"ours")[0] == 200
    assert knock(tmp_path, headers=[declared, key], pieces=(60.0,), known=b"theirs")[:2] == (401, [])
    assert knock(tmp_path, headers=[declared], pieces=(60.0,), known=b"theirs")[:2] == (401, [])
    undeclared = knock(tmp_path, headers=[key], pieces=(many, b"more"), known=b"ours")
    assert undeclared[:2] == (413, [])
    assert knock(tmp_path, pieces=(b"x" * SMALL,), known=b"theirs")[0] == 200


def answer(folder: Path, body: bytes, taking: float, patience: float) -> tuple[list[bytes], list[dict[str, Any]]]:
    """What a peer gets of an answer, if it needs so long for a piece; and the audit trail."""
    taken: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        async with asyncio.TaskGroup() as group:
            group.create_task(send({"type": "http.response.body", "body": body}))

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(event: Any) -> None:
        if event["type"] == "http.response.body":
            await asyncio.sleep(taking)
            taken.append(event["body"])

    path = "/v1/fleet/pull-messages"
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "headers": [], "state": {}}
    limits, trail = Limits({}, SMALL, patience=patience), AuditTrail(folder / "audit.jsonl")
    asyncio.run(Entrance(app, "public", CALLS, limits, trail)(scope, receive, send))
    file = folder / "audit.jsonl"
    return taken, [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_an_answer_goes_out_piece_by_piece(tmp_path: Path) -> None:
    body = bytes(range(256)) * (3 * PIECE // 256) + b"end"
    taken, lines = answer(tmp_path, body, 0.0, 30.0)
    assert b"".join(taken) == body
    assert max(map(len, taken)) == PIECE
    assert answer(tmp_path, b"", 0.0, 30.0) == ([b""], [])
    assert lines == []


def test_a_reader_that_falls_silent_is_left(tmp_path: Path) -> None:
    taken, lines = answer(tmp_path, b"x" * (3 * PIECE), 60.0, 0.05)
    assert taken == []
    assert [(line["status"], line["sent"]) for line in lines] == [(0, 0)]


def test_a_sender_that_falls_silent_is_cut(tmp_path: Path) -> None:
    assert knock(tmp_path, pieces=(b"x", 30.0, b"y"), limits=Limits({}, 100, patience=0.05))[:2] == (408, [])


def test_a_sender_that_drips_is_cut(tmp_path: Path) -> None:
    limits = Limits({}, 10_000, patience=5, grace=0.05, pace=1000)
    drips: list[bytes | float] = [part for _ in range(100) for part in (b"x", 0.02)]
    assert knock(tmp_path, pieces=drips, limits=limits)[:2] == (408, [])
    brisk: list[bytes | float] = [part for _ in range(5) for part in (b"x" * 1000, 0.03)]
    assert knock(tmp_path, pieces=[*brisk, b"end"], limits=limits)[0] == 200


def test_a_peer_that_goes_away_in_the_middle_reaches_nobody(tmp_path: Path) -> None:
    assert knock(tmp_path, pieces=(b"x", 0.0, b"y", 0.0))[:2] == (400, [])


def test_the_trail_holds_what_was_refused_up_to_a_number(tmp_path: Path) -> None:
    now = 0.0
    trail = AuditTrail(tmp_path / "audit.jsonl", clock=lambda: now)
    for _ in range(REFUSALS_A_MINUTE + 30):
        trail.note(call=None, status=404)
    now = 61.0
    trail.note(call="/v1/control/start-run", status=401)
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert len(lines) == REFUSALS_A_MINUTE + 2
    assert lines[-2]["left-out"] == 30
    assert lines[-1]["status"] == 401


def test_the_trail_leaves_routine_out_unless_it_fails(tmp_path: Path) -> None:
    trail = AuditTrail(tmp_path / "audit.jsonl")
    trail.note(call="/v1/fleet/pull-messages", status=200)
    trail.note(call="/v1/fleet/pull-messages", status=503)
    trail.note(call="/v1/control/start-run", status=200, run="7", node=None)
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(line["call"], line["status"]) for line in lines] == [
        ("/v1/fleet/pull-messages", 503),
        ("/v1/control/start-run", 200),
    ]
    assert lines[1]["run"] == "7"
    assert "node" not in lines[1]


def test_only_its_owner_reads_the_trail_and_a_full_disk_stops_nobody(tmp_path: Path) -> None:
    trail = AuditTrail(tmp_path / "audit.jsonl")
    trail.note(call="/v1/control/start-run", status=200)
    assert (tmp_path / "audit.jsonl").stat().st_mode & 0o077 == 0
    AuditTrail(tmp_path / "absent" / "audit.jsonl").note(call="/v1/control/start-run", status=200)
