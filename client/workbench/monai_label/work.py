"""What there is to do and what was done: the next sample, the datastore, and sessions for images that are no cases.

What MONAI Label's clients call is here. What removes or renames cases is not: that is done at the site.
"""

import hashlib
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, File, Form, Request, UploadFile
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from wardround.client.workbench.accounts import Person
from wardround.client.workbench.monai_label import drawn, uploads
from wardround.client.workbench.monai_label.desk import UPLOAD_LIMIT, Desk, params_of, series_fields
from wardround.client.workbench.monai_label.forms import files_of
from wardround.client.workbench.monai_label.inference import is_raw, read_upload
from wardround.client.workbench.monai_label.replies import Refused, attachment
from wardround.client.workbench.monai_label.series import MOST_FILES, is_dicom, read_dicom
from wardround.client.workbench.monai_label.sessions import Session
from wardround.client.workbench.views import STRATEGIES, CaseView, Strategy

FINAL = "final"
"""The tag of the label that the one who asks has saved; a reviewer reads others' as ``final-<account>``."""
_CLOSED = ("accepted", "approved", "rejected")
_FILES = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {"files": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            }
        },
    }
}


def sample_router(desk: Desk) -> APIRouter:
    """The next case."""
    router = APIRouter(prefix="/activelearning", tags=["ActiveLearning"])
    anybody = Depends(desk.access.require())

    @router.post("/{strategy}", summary="The next case to draw on")
    def sample(
        strategy: str,
        request: Request,
        person: Annotated[Person, anybody],
        params: Annotated[dict[str, Any] | None, Body()] = None,
    ) -> dict[str, Any]:
        case_id = desk.studio.next_case(person.name, checked_strategy(strategy))
        if case_id is None:
            return {}
        return {
            # A browser shows its cookie with every request; a program may load the image without its token.
            "id": desk.ticketed(case_id) if "authorization" in request.headers else case_id,
            "x_id": case_id,
            "weight": 1,
            "path": "",
            "ts": int(time.time()),
            "name": f"{case_id}.nii.gz",
            "checksum": _checksum(desk.image_file(case_id)),
            **series_fields(desk.register, case_id),
        }

    return router


def datastore_router(desk: Desk) -> APIRouter:
    """Images and labels."""
    router = APIRouter(prefix="/datastore", tags=["Datastore"])
    anybody = Depends(desk.access.require())
    annotator = Depends(desk.access.require("annotator"))

    @router.get("/", summary="What there is")
    def datastore(
        person: Annotated[Person, anybody], output: Literal["stats", "all", "train"] | None = None
    ) -> Response:
        cases = desk.studio.cases(person.name)
        if output == "train":
            # Pairs of paths on the server: we name none.
            return JSONResponse([])
        if output == "all":
            return JSONResponse(
                {
                    "name": "wardround",
                    "description": "",
                    "images_dir": "",
                    "labels_dir": "",
                    "objects": {case.id: _object(case, _tags(case, person)) for case in cases},
                }
            )
        return JSONResponse(statistics(cases))

    @router.put("/", summary="Send an image")
    @router.put("/image", summary="Send an image")
    def add_image(
        person: Annotated[Person, annotator],
        file: Annotated[UploadFile, File()],
        image: str | None = None,
        params: Annotated[str, Form()] = "{}",
    ) -> dict[str, str]:
        params_of(params)
        data = read_upload(file)
        volume = uploads.read_image(data)
        if image and image in desk.store.cases():
            case_id = image
        else:
            case_id = desk.upload_id(image or hashlib.sha256(data).hexdigest())
        desk.store.add_case(case_id, volume)
        return {"image": case_id}

    signed_in = desk.access.require()

    def reader(request: Request) -> Person | None:
        """Who is signed in; nobody where the id itself opens the image."""
        known = desk.ticket(request.query_params.get("image", ""))
        return None if known is not None and known[1] else signed_in(request)

    # Read by the test that holds every route against its roles.
    reader.roles = frozenset()  # type: ignore[attr-defined]

    @router.get("/image", summary="An image", response_class=Response)
    def image_file(person: Annotated[Person | None, Depends(reader)], image: str) -> Response:
        known = desk.ticket(image)
        case_id = known[0] if known is not None else desk.case(image, person.name if person else "").id
        return attachment(desk.image_file(case_id), f"{case_id}.nii.gz")

    @router.head("/image", summary="Whether there is such an image")
    def has_image(person: Annotated[Person, anybody], image: str, check_sum: str | None = None) -> dict[str, str]:
        case_id = desk.case(image, person.name).id
        if check_sum is not None and check_sum.lower() != _checksum(desk.image_file(case_id)).lower():
            raise Refused(404, "the image has another content")
        return {}

    @router.get("/image/info", summary="What is known of an image")
    def image_info(person: Annotated[Person, anybody], image: str) -> dict[str, Any]:
        case = desk.case(image, person.name)
        return {"name": f"{case.id}.nii.gz", **_info(case), **series_fields(desk.register, case.id)}

    @router.put("/label", summary="Accept a finished label")
    def save_label(
        person: Annotated[Person, annotator],
        image: str,
        label: Annotated[UploadFile, File()],
        params: Annotated[str, Form()] = "{}",
        tag: str = FINAL,
    ) -> dict[str, Any]:
        if tag not in (FINAL, ""):
            raise Refused(400, "labels are saved as final only", "a model's own are not kept", f"use `{FINAL}`")
        given = params_of(params)
        case = desk.case(image, person.name)
        volume = desk.studio.image(case.id)
        sent = uploads.read_labels(read_upload(label), volume, raw=is_raw(label))
        labels = drawn.renumbered(given, sent, desk.studio.labels)
        outcome = desk.studio.save_label(case.id, person.name, volume.with_array(labels))
        return {
            "image": image,
            "label": case.id,
            "x_state": outcome.state,
            "x_kept": outcome.kept,
            "x_next": outcome.next,
        }

    @router.get("/label", summary="A label", response_class=Response)
    def label_file(person: Annotated[Person, anybody], label: str, tag: str = FINAL) -> Response:
        case = desk.case(label, person.name)
        return attachment(_label(desk, case, person, tag), f"{case.id}.nii.gz")

    @router.head("/label", summary="Whether there is such a label")
    def has_label(person: Annotated[Person, anybody], image: str, tag: str = FINAL) -> dict[str, str]:
        _label(desk, desk.case(image, person.name), person, tag)
        return {}

    @router.get("/label/info", summary="What is known of a label")
    def label_info(person: Annotated[Person, anybody], label: str, tag: str = FINAL) -> dict[str, Any]:
        case = desk.case(label, person.name)
        _label(desk, case, person, tag)
        return {"name": f"{case.id}.nii.gz", "label_info": _label_info(desk), **_info(case)}

    return router


def session_router(desk: Desk) -> APIRouter:
    """Images that are no cases."""
    router = APIRouter(prefix="/session", tags=["Session"])
    anybody = Depends(desk.access.require())

    @router.put("/", summary="Send an image for a session", openapi_extra=_FILES)
    async def create(
        request: Request, person: Annotated[Person, anybody], expiry: int = 0, uncompress: bool = False
    ) -> dict[str, Any]:
        sent = await files_of(request, "files", UPLOAD_LIMIT, MOST_FILES)

        def keep() -> Session:
            # An archive is told by its first bytes, whatever `uncompress` says.
            image = read_dicom(sent, desk.sessions.folder) if is_dicom(sent) else uploads.read_image(sent[0])
            return desk.sessions.create(person.name, image, expiry)

        session = await run_in_threadpool(keep)
        return {"session_id": session.id, "session_info": session.info()}

    @router.get("/{session_id}", summary="A session")
    def session(
        session_id: str, person: Annotated[Person, anybody], update_ts: bool = False, image: bool = False
    ) -> Response:
        found = desk.sessions.get(session_id, person.name, touch=update_ts)
        if image:
            return attachment(desk.sessions.file(found), "image.nii.gz")
        return JSONResponse(found.info())

    @router.delete("/{session_id}", summary="End a session")
    def remove(session_id: str, person: Annotated[Person, anybody]) -> dict[str, Any]:
        return desk.sessions.remove(session_id, person.name).info()

    return router


def checked_strategy(name: str) -> Strategy:
    """`name`, if cases can be chosen that way."""
    for strategy in STRATEGIES:
        if strategy == name:
            return strategy
    raise Refused(404, "there is no such strategy", "", f"use {', '.join(STRATEGIES)}")


def statistics(cases: tuple[CaseView, ...]) -> dict[str, Any]:
    """How many cases there are, and how many the one who asks has finished."""
    done = sum(case.mine in _CLOSED for case in cases)
    return {"total": len(cases), "completed": done, "label_tags": {FINAL: done} if done else {}}


def _tags(case: CaseView, person: Person) -> tuple[str, ...]:
    own = (FINAL,) if case.mine in _CLOSED else ()
    if "reviewer" not in person.roles:
        return own
    return own + tuple(f"{FINAL}-{author}" for author in case.authors if author != person.name)


def _object(case: CaseView, tags: tuple[str, ...]) -> dict[str, Any]:
    image = {"ext": ".nii.gz", "info": {"name": f"{case.id}.nii.gz", **_info(case)}}
    return {"image": image, "labels": {tag: {"ext": ".nii.gz", "info": {"name": f"{case.id}.nii.gz"}} for tag in tags}}


def _info(case: CaseView) -> dict[str, Any]:
    return {"x_state": case.state, "x_mine": case.mine, "x_effort": case.effort, "x_shape": list(case.shape)}


def _label(desk: Desk, case: CaseView, person: Person, tag: str) -> bytes:
    """The bytes of a label that `person` may read."""
    author = person.name if tag in (FINAL, "") else tag.removeprefix(f"{FINAL}-")
    allowed = author == person.name or "reviewer" in person.roles
    data = desk.store.label_bytes(case.id, author) if allowed else None
    if data is None:
        raise Refused(404, "there is no such label", "it was not saved, or is somebody else's")
    return data


def _label_info(desk: Desk) -> list[dict[str, Any]]:
    return [{"name": name, "idx": value} for value, name in enumerate(desk.studio.labels, 1)]


def _checksum(data: bytes) -> str:
    return f"SHA256:{hashlib.sha256(data).hexdigest()}"
