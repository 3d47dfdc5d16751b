"""What the service is and who may use it: ``/info/``, ``/auth/`` and ``/logs/``."""

import logging
import shutil
import subprocess
from collections import deque
from functools import cache
from html import escape
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form
from fastapi.responses import HTMLResponse, PlainTextResponse, Response

from wardround import __version__
from wardround.client.workbench.accounts import Person
from wardround.client.workbench.monai_label.desk import AUTOMATIC, POINTS, SCRIBBLES, Desk
from wardround.client.workbench.monai_label.inference import progress_fields
from wardround.client.workbench.monai_label.replies import Refused
from wardround.client.workbench.monai_label.tasks import train_statistics
from wardround.client.workbench.monai_label.work import statistics
from wardround.client.workbench.views import STRATEGIES

_DESCRIPTIONS = {
    POINTS: "Learns from your clicks: send them all, and get the mask that agrees with them",
    SCRIBBLES: "Learns from your strokes: foreground_scribbles and background_scribbles",
    AUTOMATIC: "What the model says of an image on which nothing was drawn",
}
_TYPES = {POINTS: "deepedit", SCRIBBLES: "scribbles", AUTOMATIC: "segmentation"}
_STRATEGIES = {
    "disagreement": "The case on which model and drawings disagree most",
    "random": "Any case",
    "first": "The case that arrived first",
}
LINES = 2000


class LogLines(logging.Handler):
    """The last lines of our own log, kept in memory for the administrator's viewer."""

    def __init__(self, lines: int = LINES) -> None:
        super().__init__(logging.INFO)
        self.lines: deque[str] = deque(maxlen=lines)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line; no traceback, which may show a value."""
        bare = logging.makeLogRecord({**record.__dict__, "exc_info": None, "exc_text": None, "stack_info": None})
        self.lines.append(self.format(bare))

    def last(self, lines: int) -> list[str]:
        """The last `lines` lines, oldest first; all that are kept for 0."""
        self.acquire()
        try:
            kept = list(self.lines)
        finally:
            self.release()
        return kept[-lines:] if lines > 0 else kept


@cache
def log_lines() -> LogLines:
    """The lines of this process."""
    kept = LogLines()
    logging.getLogger("wardround").addHandler(kept)
    return kept


def info_router(desk: Desk) -> APIRouter:
    """What there is: models, labels, strategies."""
    router = APIRouter(prefix="/info", tags=["App"])

    @router.get("/", summary="Models, labels and strategies")
    def info(person: Annotated[Person, Depends(desk.access.require())]) -> dict[str, Any]:
        studio = desk.studio
        labels = {name: value for value, name in enumerate(studio.labels, 1)}
        progress = studio.progress(person.name)
        bench: dict[str, Any] = {"x_session": False}
        return {
            "name": "Wardround",
            "description": "Segmentation that learns while you draw",
            "version": __version__,
            "labels": list(studio.labels),
            "models": {
                name: {
                    "type": _TYPES[name],
                    "labels": labels,
                    "dimension": 3,
                    "description": description,
                    "config": {} if name == AUTOMATIC else bench,
                }
                for name, description in _DESCRIPTIONS.items()
            },
            "trainers": {POINTS: {"description": "Rehearses the cases that you have accepted", "config": {}}},
            "strategies": {name: {"description": _STRATEGIES[name]} for name in STRATEGIES},
            "scoring": {},
            "train_stats": {POINTS: train_statistics(progress, studio.training(person.name))},
            "datastore": statistics(studio.cases(person.name)),
            "x_progress": progress_fields(progress),
        }

    return router


def auth_router(desk: Desk) -> APIRouter:
    """Tokens for viewers that are no browsers."""
    router = APIRouter(prefix="/auth", tags=["Auth"])

    @router.get("/", summary="Whether a token is needed")
    def enabled() -> dict[str, Any]:
        return {"enabled": True, "client_id": "wardround", "realm": ""}

    @router.post("/token", summary="A token for an account")
    async def token(
        username: Annotated[str, Form()],
        password: Annotated[str, Form()],
        grant_type: Annotated[str, Form()] = "password",
    ) -> dict[str, str]:
        if grant_type != "password":
            raise Refused(400, "tokens are given for a name and a password only")
        token = await desk.access.in_turn(desk.access.token, username, password)
        return {"access_token": token, "token_type": "bearer"}

    @router.get("/token/valid", summary="Whether a token is still good")
    def valid(person: Annotated[Person, Depends(desk.access.require())]) -> dict[str, Any]:
        return {"username": person.name, "email": None, "name": None, "roles": sorted(person.roles)}

    return router


def log_router(desk: Desk, log: LogLines) -> APIRouter:
    """The log, which names no patient and no annotator."""
    router = APIRouter(prefix="/logs", tags=["Others"])
    admin = Depends(desk.access.require("admin"))

    @router.get("/", summary="The last lines of the log", response_class=Response)
    def lines(
        person: Annotated[Person, admin], lines: int = 300, html: bool = True, text: bool = False, refresh: int = 0
    ) -> Response:
        kept = log.last(lines)
        if text or not html:
            return PlainTextResponse("".join(f"{line}\n" for line in kept))
        headers = {"refresh": str(max(refresh, 3))} if refresh > 0 else {}
        return HTMLResponse(
            f"<!doctype html><title>Log</title><pre>{escape(chr(10).join(kept))}</pre>", headers=headers
        )

    @router.get("/gpu", summary="What nvidia-smi says", response_class=Response)
    def gpu(person: Annotated[Person, admin]) -> Response:
        tool = shutil.which("nvidia-smi")
        if tool is None:
            raise Refused(404, "there is no nvidia-smi", "the site computes without a GPU of NVIDIA's")
        try:
            told = subprocess.run([tool], capture_output=True, text=True, timeout=20, check=False)  # noqa: S603
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Refused(503, "nvidia-smi does not answer") from error
        return PlainTextResponse(told.stdout)

    return router
