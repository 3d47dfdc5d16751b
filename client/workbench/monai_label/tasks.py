"""Tasks: ``/train`` rehearses on the annotator's own bench; ``/scoring`` and ``/batch`` have nothing to do here.

A model of ours learns while its annotator draws. What a viewer calls training is one more rehearsal of what was
accepted: it changes the annotator's own preview, and nothing that leaves the site.
"""

import time
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends
from fastapi.responses import JSONResponse, Response

from wardround.client.workbench.accounts import Person
from wardround.client.workbench.monai_label.desk import POINTS, Desk
from wardround.client.workbench.monai_label.replies import Refused
from wardround.client.workbench.views import Progress, TrainView

_AT_WORK = ("SUBMITTED", "RUNNING")
_PATIENCE = 600.0


def train_router(desk: Desk) -> APIRouter:
    """Rehearsals."""
    router = APIRouter(prefix="/train", tags=["Train"])
    anybody = Depends(desk.access.require())
    annotator = Depends(desk.access.require("annotator"))

    def begin(user: str, *, wait: bool) -> dict[str, Any]:
        now = desk.studio.training(user)
        if now is not None and now.status in _AT_WORK:
            raise Refused(429, "a rehearsal is running already", "", "wait for it, or stop it")
        desk.studio.train(user)
        if wait:
            desk.studio.wait(user, _PATIENCE)
        view = desk.studio.training(user)
        assert view is not None, "it was begun"
        return task(view)

    @router.get("/", summary="The last rehearsal")
    def status(person: Annotated[Person, anybody], all: bool = False, check_if_running: bool = False) -> Response:
        view = desk.studio.training(person.name)
        if view is None:
            raise Refused(404, "No Train Tasks Found")
        if check_if_running and view.status not in _AT_WORK:
            raise Refused(404, "No Train Tasks are currently Running")
        return JSONResponse([task(view)] if all else task(view))

    @router.post("/", summary="Rehearse")
    def run_all(
        person: Annotated[Person, annotator],
        params: Annotated[dict[str, Any] | None, Body()] = None,
        run_sync: bool = False,
    ) -> dict[str, Any]:
        return {POINTS: {"result": begin(person.name, wait=run_sync), "detail": None}}

    @router.post("/{model}", summary="Rehearse")
    def run(
        model: str,
        person: Annotated[Person, annotator],
        params: Annotated[dict[str, Any] | None, Body()] = None,
        run_sync: bool = False,
        enqueue: bool = False,
    ) -> dict[str, Any]:
        if model != POINTS:
            raise Refused(404, "there is no such trainer", "", f"use {POINTS}")
        return begin(person.name, wait=run_sync)

    @router.delete("/", summary="Stop the rehearsal")
    def stop(person: Annotated[Person, annotator]) -> Response:
        view = desk.studio.training(person.name)
        if view is None or view.status not in _AT_WORK:
            return JSONResponse(None if view is None else task(view))
        desk.studio.stop_training(person.name)
        view = desk.studio.training(person.name)
        assert view is not None, "it was there a moment ago"
        # It ends after the update at hand; a viewer takes the answer for the end.
        return JSONResponse(task(view) | {"status": "STOPPED" if view.status in _AT_WORK else view.status})

    return router


def idle_router(desk: Desk) -> APIRouter:
    """Tasks that viewers may ask for, and that there are none of."""
    router = APIRouter()
    anybody = Depends(desk.access.require())

    def nothing(what: str, why: str) -> Refused:
        return Refused(404, f"No {what} Tasks Found", why)

    unscored = "labels are reviewed by a person"
    unbatched = "a case is predicted when it is opened"

    for path in ("/scoring/", "/scoring/{method}"):

        @router.post(path, tags=["Scoring"], summary="There is nothing to score")
        def score(person: Annotated[Person, anybody]) -> Response:
            raise nothing("Scoring", unscored)

    @router.get("/scoring/", tags=["Scoring"], summary="There is nothing to score")
    def scoring(person: Annotated[Person, anybody]) -> Response:
        raise nothing("Scoring", unscored)

    @router.delete("/scoring/", tags=["Scoring"], summary="There is nothing to stop")
    def unscore(person: Annotated[Person, anybody]) -> Response:
        return JSONResponse(None)

    @router.get("/batch/infer", tags=["Infer"], summary="There is no batch")
    def batch(person: Annotated[Person, anybody]) -> Response:
        raise nothing("Batch Infer", unbatched)

    @router.post("/batch/infer/{model}", tags=["Infer"], summary="There is no batch")
    def begin(model: str, person: Annotated[Person, anybody]) -> Response:
        raise nothing("Batch Infer", unbatched)

    @router.delete("/batch/infer", tags=["Infer"], summary="There is nothing to stop")
    def stop(person: Annotated[Person, anybody]) -> Response:
        return JSONResponse(None)

    return router


def task(view: TrainView) -> dict[str, Any]:
    """A rehearsal as MONAI Label describes a task."""
    # A task that waits has no start yet, and viewers read one.
    begun = view.started if view.started is not None else time.time()
    ended = {} if view.ended is None else {"end_ts": _moment(view.ended)}
    return {
        "id": view.id,
        "status": view.status,
        "request": {"model": POINTS},
        "start_ts": _moment(begun),
        **ended,
        "details": list(view.lines[-20:]) or [view.status],
    }


def train_statistics(progress: Progress, view: TrainView | None) -> dict[str, Any]:
    """What viewers show as a bar. There is no score in it: nobody here knows the truth."""
    seconds = 0.0 if view is None or view.started is None or view.ended is None else view.ended - view.started
    return {
        "total_time": f"{seconds:.0f}",
        "best_metric": 0,
        "train": {},
        "eval": {},
        "epoch": progress.updates_done,
        "total_epochs": progress.updates_done + progress.updates_left,
    }


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
