"""Our own API under ``/api/v1``, for our own page and for scripts. docs/administrators.md says who may use it.

It is thin: a request becomes a call of the studio or of the store, and the value that they return becomes JSON.
"""

import gzip
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from wardround.client.arrivals import REFERENCE
from wardround.client.cases import nifti
from wardround.client.cases.drawings import REASONS
from wardround.client.cases.store import CaseStore, Verdict
from wardround.client.intake import AUTHOR as LOOP
from wardround.client.workbench import notation, people
from wardround.client.workbench.access import Access
from wardround.client.workbench.accounts import Person
from wardround.client.workbench.errors import ApiError
from wardround.client.workbench.events import Events
from wardround.client.workbench.layers import LayerName
from wardround.client.workbench.studio import Studio
from wardround.client.workbench.views import CaseState, CaseView, Source, Strategy
from wardround.errors import AuthRefused, DataError

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#ffe119", "#f58231", "#42d4f4", "#f032e6", "#bfef45", "#9a6324", "#469990")
"""Of labels 1, 2, …; they begin anew when there are more."""
PREFIX = "/api/v1"
NIFTI = "application/gzip"
_MOST_CASES = 1000
_KEPT_IMAGES = 4
_WORTH_PACKING = 1024

Export = Callable[[str, str], Mapping[str, Any]]
"""Sends an author's label of a case to the archive, and says what was sent."""


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Accepted(_Body):
    """What becomes the label: what the drawings say, or what the model says; `shown` is the version that was seen."""

    source: Source = "proxy"
    shown: int | None = None


class Skipped(_Body):
    """Why a case is put aside."""

    reason: Annotated[str, Field(max_length=32)] = ""


class Reviewed(_Body):
    """What a reviewer says of a label, as it was at `seen`: the `updated` of the list of labels."""

    verdict: Verdict
    reason: Annotated[str, Field(max_length=32)] = ""
    seen: Annotated[str, Field(max_length=64)] | None = None


class Exported(_Body):
    """Whose label is sent; one's own unless it is said."""

    author: Annotated[str, Field(max_length=64)] = ""


def make_router(  # noqa: PLR0915 - one function a route
    studio: Studio,
    store: CaseStore,
    access: Access,
    *,
    site: str,
    review: bool,
    ohif: bool,
    events: Events,
    export: Export | None = None,
) -> APIRouter:
    """All routes.

    Parameters
    ----------
    studio, store
        Of the site.
    access
        Who may come in.
    site
        Its name.
    review
        Whether a label counts only when it was approved.
    ohif
        Whether another viewer is served under ``/ohif/``.
    events
        What is pushed to pages.
    export
        Sends a label to the archive; None where the site knows none.
    """
    router = APIRouter(prefix=PREFIX, tags=["Workbench"])
    images = _Images(studio)
    Annotator = Annotated[Person, Depends(access.require("annotator"))]
    Reviewer = Annotated[Person, Depends(access.require("reviewer"))]

    @router.get("/site", summary="The site, its labels and its model")
    def about(person: Annotator) -> dict[str, Any]:
        labels = [
            {"value": value, "name": name, "colour": COLOURS[(value - 1) % len(COLOURS)]}
            for value, name in enumerate(studio.labels, start=1)
        ]
        return {
            "site": site,
            "labels": labels,
            "progress": notation.progress(studio.progress(person.name)),
            "review": review,
            "reasons": sorted(REASONS - {""}),
            "export": export is not None,
            "ohif": ohif,
            "user": people.as_json(person),
        }

    @router.get("/cases", summary="The work list")
    def cases(
        person: Annotator,
        state: CaseState | None = None,
        offset: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=_MOST_CASES)] = 100,
    ) -> dict[str, Any]:
        found = [one for one in studio.cases(person.name) if state is None or one.state == state]
        return {"cases": [notation.case(one) for one in found[offset : offset + limit]], "total": len(found)}

    @router.get("/cases/next", summary="A case to go on with")
    def next_case(person: Annotator, strategy: Strategy = "disagreement") -> dict[str, Any]:
        return {"id": studio.next_case(person.name, strategy)}

    def known(case_id: str, person: Annotator) -> CaseView:
        """The case that a path names."""
        try:
            return studio.case(case_id, person.name)
        except DataError as error:
            raise ApiError(404, "no-such-case", "there is no such case", "", "look at the work list") from error

    Case = Annotated[CaseView, Depends(known)]

    @router.get("/cases/{case_id}", summary="One case")
    def one_case(case: Case) -> dict[str, Any]:
        return notation.case(case)

    @router.get("/cases/{case_id}/image", summary="Its image, as .nii.gz", response_class=Response)
    def image(request: Request, case: Case) -> Response:
        data, tag = images.get(case.id)
        return _file(request, data, tag, "image.nii.gz")

    @router.post("/cases/{case_id}/open", summary="Lay it on your bench; a draft is resumed")
    def open_case(case: Case, person: Annotator) -> dict[str, Any]:
        return notation.answer(studio.open(case.id, person.name))

    @router.post("/cases/{case_id}/draw", summary="Draw on it", openapi_extra=notation.DRAW_BODY)
    def draw(
        case: Case, person: Annotator, given: Annotated[notation.DrawJson, Depends(notation.drawing)]
    ) -> dict[str, Any]:
        given.check(case.shape)
        prompts, extent = given.values()
        return notation.answer(studio.draw(case.id, person.name, prompts, extent))

    @router.post("/cases/{case_id}/undo", summary="Take the last step back")
    def undo(case: Case, person: Annotator) -> dict[str, Any]:
        return notation.answer(studio.undo(case.id, person.name))

    @router.post("/cases/{case_id}/redo", summary="Draw the step again that was taken back")
    def redo(case: Case, person: Annotator) -> dict[str, Any]:
        return notation.answer(studio.redo(case.id, person.name))

    @router.get("/cases/{case_id}/layers/{name}", summary="An overlay, cut to its box", response_class=Response)
    def layer(request: Request, case: Case, person: Annotator, name: LayerName, newer_than: int = -1) -> Response:
        found = studio.layer(case.id, person.name, name, newer_than)
        if found is None:
            if newer_than >= 0:
                return Response(status_code=304)
            raise ApiError(404, "no-such-layer", "there is nothing to show yet", "nothing was drawn", "draw first")
        headers = {
            "x-wardround-version": str(found.version),
            "x-wardround-box": ",".join(map(str, found.box)),
            "x-wardround-shape": ",".join(map(str, found.shape)),
        }
        return _packed(request, found.wire(), headers)

    @router.post("/cases/{case_id}/accept", summary="Its label is done: store it, and learn from it")
    def accept(case: Case, person: Annotator, given: Accepted) -> Mapping[str, Any]:
        return notation.outcome(studio.accept(case.id, person.name, given.source, given.shown))

    @router.post("/cases/{case_id}/skip", summary="Put it aside")
    def skip(case: Case, person: Annotator, given: Skipped) -> Mapping[str, Any]:
        return notation.outcome(studio.skip(case.id, person.name, _reason(given.reason)))

    @router.post("/cases/{case_id}/close", summary="Take it off your bench; it stays a draft", status_code=204)
    def close(case: Case, person: Annotator) -> Response:
        studio.close(case.id, person.name)
        return Response(status_code=204)

    @router.get("/cases/{case_id}/labels", summary="Its labels: your own, or all for a reviewer")
    def labels(case: Case, person: Annotator) -> dict[str, Any]:
        sees_all = "reviewer" in person.roles
        drawings = {one.author: one for one in store.drawings(case.id)}
        stored = {one.author: one for one in store.labels(case.id) if one.author != REFERENCE}
        authors = sorted({*drawings, *stored} if sees_all else {*drawings, *stored} & {person.name})
        return {"labels": [_label(author, drawings.get(author), stored.get(author)) for author in authors]}

    @router.get("/cases/{case_id}/labels/{author}", summary="A label, as .nii.gz", response_class=Response)
    def label(request: Request, case: Case, person: Annotator, author: str) -> Response:
        _check_own(person, author)
        data = None if author == REFERENCE else store.label_bytes(case.id, author)
        if data is None:
            raise ApiError(404, "no-such-label", "there is no such label", "nobody of that name has accepted one")
        return _file(request, data, _tag(data), "label.nii.gz")

    @router.post("/cases/{case_id}/labels/{author}/review", summary="Approve or reject a label")
    def judge(case: Case, person: Reviewer, author: str, given: Reviewed) -> dict[str, Any]:
        if author == person.name:
            raise ApiError(403, "own-label", "nobody reviews their own label", "", "ask another reviewer")
        store.review(
            case.id, author, by=person.name, verdict=given.verdict, reason=_reason(given.reason), seen=given.seen
        )
        return {"case_id": case.id, "author": author, "state": given.verdict}

    @router.post("/cases/{case_id}/export", summary="Send a label to the archive, as DICOM SEG")
    def send(case: Case, person: Annotator, given: Exported) -> Mapping[str, Any]:
        author = given.author or person.name
        _check_own(person, author)
        if export is None:
            raise ApiError(
                409, "no-archive", "there is nowhere to send the label to", "site.toml names no archive",
                "add a table [[pacs]]",
            )  # fmt: skip
        try:
            return export(case.id, author)
        except AuthRefused as error:  # The archive refuses the site; whoever asks is signed in.
            raise ApiError(502, "archive-refused", error.problem, error.cause, error.fix) from error

    @router.get("/events", summary="What changes, as server-sent events", response_class=Response)
    def stream(request: Request, person: Annotator) -> Response:
        return events.stream(person.name, lambda: access.person(request, quietly=True) is not None)

    return router


class _Images:
    """The last few images as files: a browser asks for one several times."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._files: OrderedDict[str, tuple[bytes, str]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, case_id: str) -> tuple[bytes, str]:
        """The file, and its tag."""
        with self._lock:
            if case_id in self._files:
                self._files.move_to_end(case_id)
                return self._files[case_id]
        data = nifti.encode(self._studio.image(case_id))
        with self._lock:
            self._files[case_id] = data, _tag(data)
            while len(self._files) > _KEPT_IMAGES:
                self._files.popitem(last=False)
            return data, _tag(data)


def _check_own(person: Person, author: str) -> None:
    if author != person.name and "reviewer" not in person.roles:
        raise ApiError(403, "not-yours", "the label is somebody else's", "", "ask a reviewer")


def _reason(reason: str) -> str:
    if reason not in REASONS:
        raise ApiError(
            422, "unknown-reason", "this is no reason that can be kept", "free text may name a patient",
            "choose one of " + ", ".join(sorted(REASONS - {""})),
        )  # fmt: skip
    return reason


def _label(author: str, drawing: Any, label: Any) -> dict[str, Any]:
    """What is known of a label; one that was imported, or that a round of the federation wrote, has no drawing."""
    if drawing is None:
        return {
            "author": author, "state": "learnt" if author == LOOP else "imported",
            "source": "whole", "effort": label.effort, "round": label.round,
            "updated": None, "reviewer": "", "reason": "", "stored": True,
        }  # fmt: skip
    return {
        "author": author,
        "state": drawing.state,
        "source": drawing.source,
        "effort": drawing.effort_contour,
        "round": drawing.round,
        "updated": drawing.updated,
        "reviewer": drawing.reviewer,
        "reason": drawing.reason,
        "stored": label is not None,
    }


def _tag(data: bytes) -> str:
    return f'"{hashlib.sha256(data).hexdigest()[:32]}"'


def _file(request: Request, data: bytes, tag: str, name: str) -> Response:
    """A file that the browser may keep for this person, and asks about every time."""
    headers = {"etag": tag, "cache-control": "private, no-cache", "vary": "cookie, authorization"}
    asked = [one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")]
    if tag in asked:
        return Response(status_code=304, headers=headers)
    headers["content-disposition"] = f'attachment; filename="{name}"'
    return Response(data, media_type=NIFTI, headers=headers)


def _packed(request: Request, data: bytes, headers: dict[str, str]) -> Response:
    headers["vary"] = "accept-encoding"
    accepts = {one.partition(";")[0].strip() for one in request.headers.get("accept-encoding", "").split(",")}
    if "gzip" in accepts and len(data) > _WORTH_PACKING:
        data = gzip.compress(data, compresslevel=1, mtime=0)
        headers["content-encoding"] = "gzip"
    return Response(data, media_type="application/octet-stream", headers=headers)
