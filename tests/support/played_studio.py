"""A studio that is played: it answers at once, computes next to nothing, and says what it was asked.

Cases and labels lie in a real store. What was clicked becomes a cube, what was drawn stays as drawn: whoever tests a
protocol sees in the mask which voxel and which label arrived.
"""

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request

from wardround.client.annotation.prompts import (
    UNLABELLED,
    Annotations,
    ExtentPrompt,
    Labels3D,
    PointPrompt,
    Prompt,
    ScribblePrompt,
    SliceRequest,
)
from wardround.client.cases.drawings import Drawing
from wardround.client.cases.store import CaseStore
from wardround.client.cases.volume import Volume
from wardround.client.workbench.errors import ApiError, handle_errors
from wardround.client.workbench.layers import Layer, make_layer
from wardround.client.workbench.monai_label.router import protocol_router
from wardround.client.workbench.views import Answer, CaseView, Inference, Outcome, Progress, TrainView
from wardround.errors import AuthRefused, DataError, UsageError

REACH = 2
PROGRESS = Progress("0123456789ab", "run", 3, False, 5, 2, "idle")


@dataclass(eq=False)
class PlayedStudio:
    """Has the methods of :class:`wardround.client.workbench.studio.Studio` that a protocol calls."""

    store: CaseStore
    labels: tuple[str, ...] = ("anterior", "posterior")
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    drawn: dict[tuple[str, str], Annotations] = field(default_factory=dict)
    tasks: dict[str, TrainView] = field(default_factory=dict)

    def progress(self, user: str) -> Progress:
        return PROGRESS

    def cases(self, user: str) -> tuple[CaseView, ...]:
        return tuple(self.case(case_id, user) for case_id in self.store.cases())

    def case(self, case_id: str, user: str) -> CaseView:
        if case_id not in self.store.cases():
            raise DataError("there is no such case", "", "")
        image = self.image(case_id)
        states = {one.author: one.state for one in self.store.drawings(case_id)}
        mine: Any = states.get(user, "new")
        return CaseView(case_id, image.shape, image.spacing, mine, mine, tuple(sorted(states)), 0.0, "stream")

    def image(self, case_id: str) -> Volume:
        return self.store.image(case_id)

    def next_case(self, user: str, strategy: str = "disagreement") -> str | None:
        left = [case.id for case in self.cases(user) if case.mine == "new"]
        return left[0] if left else None

    def open(self, case_id: str, user: str) -> Answer:
        self.drawn.setdefault((case_id, user), Annotations())
        return self._answer(case_id, user)

    def draw(self, case_id: str, user: str, prompts: Sequence[Prompt], extent: ExtentPrompt | None = None) -> Answer:
        if (case_id, user) not in self.drawn:
            raise UsageError("the case is not open", "", "")
        self.asked.append(("draw", tuple(prompts), extent))
        known = self.drawn[case_id, user]
        self.drawn[case_id, user] = replace(known, extent=extent or known.extent).adding(*prompts)
        return self._answer(case_id, user)

    def layer(self, case_id: str, user: str, name: str, newer_than: int = -1) -> Layer | None:
        known = self.drawn[case_id, user]
        if name == "residual" and not known.points:
            return None
        shape = self.image(case_id).shape
        return make_layer(name, len(known.points), painted(shape, (*known.scribbles, *known.points)))  # type: ignore[arg-type]

    def save_label(self, case_id: str, user: str, labels: Volume) -> Outcome:
        drawing = Drawing(
            case_id=case_id,
            author=user,
            steps=(),
            extent=None,
            undone=(),
            state="accepted",
            source="whole",
            effort_contour=0.0,
            effort_strict=0.0,
            round=0,
            model="",
            seconds=0.0,
            reason="",
        )
        self.store.save_drawing(drawing, labels)
        return Outcome(case_id, "accepted", None, self.next_case(user))

    def infer(
        self, image: Volume | str, user: str, prompts: Sequence[Prompt] = (), extent: ExtentPrompt | None = None
    ) -> Inference:
        self.asked.append(("infer", tuple(prompts), extent))
        shape = self.image(image).shape if isinstance(image, str) else image.shape
        return Inference(painted(shape, prompts), {"load": 1.0, "total": 2.0}, PROGRESS)

    def train(self, user: str) -> str:
        self.tasks[user] = TrainView("6f1f9f4e-0000-4000-8000-000000000000", "RUNNING", 1.0e9, None, ("began",))
        return self.tasks[user].id

    def stop_training(self, user: str) -> None:
        self.tasks[user] = replace(self.tasks[user], status="STOPPED", ended=1.0e9 + 5)

    def training(self, user: str) -> TrainView | None:
        return self.tasks.get(user)

    def wait(self, user: str, timeout_s: float) -> bool:
        if user in self.tasks:
            self.tasks[user] = replace(self.tasks[user], status="DONE", ended=1.0e9 + 5)
        return True

    def _answer(self, case_id: str, user: str) -> Answer:
        known = self.drawn[case_id, user]
        return Answer(
            case_id=case_id,
            step=len(known.points),
            can_undo=bool(known.points),
            can_redo=False,
            suggestion=(SliceRequest(2, 4),),
            effort_contour=7.0,
            effort_strict=8.0,
            effort_share=0.25,
            changed=0.5,
            versions={"proxy": len(known.points)},
            latency_ms={"propagate": 3.0, "total": 4.0},
            progress=PROGRESS,
            annotations=known,
        )


def painted(shape: tuple[int, int, int], prompts: Sequence[Prompt]) -> Labels3D:
    """A cube round every click, strokes as they are, zero elsewhere."""
    mask = np.zeros(shape, dtype=np.uint8)
    for prompt in prompts:
        match prompt:
            case PointPrompt(index=index, label=label):
                mask[tuple(slice(max(at - REACH, 0), at + REACH + 1) for at in index)] = label
            case ScribblePrompt(axis=axis, index=at, labels=labels):
                cut = (slice(None),) * axis + (at,)
                mask[cut] = np.where(labels == UNLABELLED, mask[cut], labels)
    return mask


@dataclass(frozen=True)
class PlayedPerson:
    """An account."""

    name: str
    roles: frozenset[str]


class PlayedAccess:
    """Accounts with a password that is their name, and a token that is ``token-`` and their name."""

    def __init__(self, **roles: tuple[str, ...]) -> None:
        self.people = {name: PlayedPerson(name, frozenset(given)) for name, given in roles.items()}

    def require(self, *roles: str) -> Any:
        def person(request: Request) -> PlayedPerson:
            name = request.headers.get("authorization", "").removeprefix("bearer token-")
            if name not in self.people:
                raise ApiError(401, "not-signed-in", "nobody is signed in")
            if roles and not self.people[name].roles & set(roles):
                raise ApiError(403, "not-allowed", "your account may not do this")
            return self.people[name]

        return person

    def token(self, name: str, password: str) -> str:
        if name not in self.people or password != name:
            raise AuthRefused("name and password do not fit", "", "")
        return f"token-{name}"


def played_workbench(folder: Path, **more: Any) -> tuple[Any, PlayedStudio]:
    """An application with nothing but the protocol, two cases, and accounts ``ann``, ``bob``, ``rev`` and ``adm``."""
    store = CaseStore(folder / "store")
    for number in range(2):
        array = np.random.default_rng(number).normal(size=(12, 10, 8)).astype(np.float32)
        # Oblique and left-handed, with a spacing of 1.5, 2 and 3 mm.
        turn = np.array([[0.8, 0.6, 0], [-0.6, 0.8, 0], [0, 0, -1]])
        affine = np.eye(4)
        affine[:3] = np.column_stack((turn * [1.5, 2, 3], [3, -7, number]))
        store.add_case(f"case{number}", Volume(array, affine))
    studio = PlayedStudio(store)
    access = PlayedAccess(ann=("annotator",), bob=("annotator",), rev=("reviewer",), adm=("admin",))
    app = FastAPI()
    handle_errors(app)
    app.include_router(protocol_router(studio, store, access, folder=folder / "protocol", **more))  # type: ignore[arg-type]
    return app, studio


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an application on a free port of this machine, and say its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive(), "the server ended by itself"
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
