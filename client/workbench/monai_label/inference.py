"""``POST /infer/{model}``: clicks or scribbles in, a mask on the very grid of the image out.

A request is answered from what it holds, as MONAI Label does: every viewer sends all clicks of the case each time. With
the parameter ``x_session`` what is new in the request is drawn on the annotator's bench instead: the model learns from
it behind, and the reply says what the bench knows (``x_suggestion``, ``x_effort``, and the layers of ``x_layers``).

With ``output=dicom_seg`` the mask comes as a DICOM segmentation of the series that the case came from. It says who the
patient is, as the series does. It is given only where OHIF is served, whose users can read that in the archive.
"""

import base64
import secrets
import time
import zlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, File, Form, Request, UploadFile
from fastapi.responses import JSONResponse, Response

from wardround.client.annotation.prompts import Annotations, Labels3D, PointPrompt, Prompt, ScribblePrompt
from wardround.client.cases import nifti
from wardround.client.cases.volume import Volume
from wardround.client.workbench.accounts import Person
from wardround.client.workbench.layers import LAYERS, Layer
from wardround.client.workbench.monai_label import drawn, nrrd, uploads
from wardround.client.workbench.monai_label.desk import (
    AUTOMATIC,
    SCRIBBLES,
    UPLOAD_LIMIT,
    Desk,
    checked_model,
    params_of,
)
from wardround.client.workbench.monai_label.drawn import Drawn
from wardround.client.workbench.monai_label.replies import Refused, attachment, two_parts
from wardround.client.workbench.monai_label.series import check_series, segmentation
from wardround.client.workbench.views import Answer, Progress

Output = Literal["image", "json", "all", "dicom_seg"]
FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
EXTENSIONS = (".nrrd", ".nii.gz", ".nii")


def inference_router(desk: Desk) -> APIRouter:
    """The route."""
    router = APIRouter(prefix="/infer", tags=["Infer"])
    anybody = Depends(desk.access.require())

    @router.post("/{model}", summary="Segment an image", response_class=Response)
    def infer(
        *,
        request: Request,
        model: str,
        person: Annotated[Person, anybody],
        image: str = "",
        session_id: str = "",
        output: Output | None = None,
        params: Annotated[str, Form()] = "{}",
        file: Annotated[UploadFile | None, File()] = None,
        label: Annotated[UploadFile | None, File()] = None,
    ) -> Response:
        _check_form(request)
        checked_model(model)
        given = params_of(params)
        extension = _extension(given)
        began = time.perf_counter()
        case_id, volume = _image(desk, person.name, image, session_id, file)
        if output == "dicom_seg":
            check_series(desk, case_id)
        asked = _drawing(model, given, desk.studio.labels, volume, label)
        if given.get("x_session") and model != AUTOMATIC:
            if case_id is None:
                raise Refused(400, "`x_session` needs a case", "an image was sent with the request", "name the case")
            if not person.roles & {"annotator"}:
                raise Refused(403, "the account may not draw", "it is no annotator's")
            labels, extras = _on_bench(desk, case_id, person.name, asked, given)
        else:
            labels, extras = _stateless(desk, case_id or volume, person.name, asked)
        labels, names = _selected(model, given, labels, desk.studio.labels)
        loaded = time.perf_counter()
        if output == "dicom_seg" and case_id is not None:
            seg = segmentation(desk, case_id, volume.with_array(labels), tuple(names), person.name, drawn=asked.any)
            return attachment(seg, f"mask-{secrets.token_hex(8)}.dcm")
        mask = _encoded(volume.with_array(labels), extension, compress=bool(given.get("result_compress")))
        ended = time.perf_counter()
        reply = _params(names, labels, extras, loaded - began, ended - loaded)
        if output == "json":
            return JSONResponse(reply)
        # A client keeps it under this name, next to those before.
        name = f"mask-{secrets.token_hex(8)}{extension}"
        return attachment(mask, name) if output == "image" else two_parts(reply, mask, name)

    return router


def read_upload(upload: UploadFile) -> bytes:
    """What was sent as one part of a form, if it is not too large."""
    data = upload.file.read(UPLOAD_LIMIT + 1)
    if len(data) > UPLOAD_LIMIT:
        raise Refused(413, "the file is too large", f"it may have {UPLOAD_LIMIT >> 20} MiB")
    return data


def is_raw(upload: UploadFile) -> bool:
    """Whether a label part is bare bytes, as OHIF sends them."""
    return (upload.filename or "").endswith(".bin")


def _check_form(request: Request) -> None:
    """Refuse what would be taken for a request without parameters: its clicks would be missing from the mask."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    empty = "transfer-encoding" not in request.headers and request.headers.get("content-length", "0") == "0"
    if not empty and kind not in FORMS:
        raise Refused(415, "the body is no form", "its parameters are not read", "send multipart/form-data")


def _image(desk: Desk, user: str, image: str, session_id: str, file: UploadFile | None) -> tuple[str | None, Volume]:
    if session_id:
        return None, desk.sessions.image(desk.sessions.get(session_id, user))
    if file is not None:
        return None, uploads.read_image(read_upload(file))
    if not image:
        raise Refused(400, "a request needs an image", "neither image, file nor session was given", "name the image")
    case_id = desk.case(image, user).id
    return case_id, desk.studio.image(case_id)


def _drawing(
    model: str, params: Mapping[str, Any], labels: tuple[str, ...], image: Volume, label: UploadFile | None
) -> Drawn:
    if model == AUTOMATIC:
        return Drawn(())
    prompts: tuple[Prompt, ...] = drawn.clicks(params, labels)
    if model == SCRIBBLES:
        if label is None:
            raise Refused(400, "a scribble model needs scribbles", "no part is called `label`", "draw some")
        sent = uploads.read_labels(read_upload(label), image, raw=is_raw(label))
        prompts = (*drawn.scribbles(params, sent, labels), *prompts)
    extent = drawn.region(params, image.shape)
    asked = Annotations(extent=extent).adding(*prompts)
    asked.checked(image.shape, len(labels) + 1)
    return Drawn(prompts, extent)


def _stateless(desk: Desk, image: str | Volume, user: str, request: Drawn) -> tuple[Labels3D, dict[str, Any]]:
    region = {} if request.extent is None else {"extent": request.extent}
    found = desk.studio.infer(image, user, request.prompts, **region)
    return found.labels, {"x_latency_ms": dict(found.latency_ms), "x_progress": progress_fields(found.progress)}


def _on_bench(
    desk: Desk, case_id: str, user: str, request: Drawn, params: Mapping[str, Any]
) -> tuple[Labels3D, dict[str, Any]]:
    studio = desk.studio
    answer = studio.open(case_id, user)
    new = _not_yet(request.prompts, answer.annotations)
    extent = request.extent if request.extent != answer.annotations.extent else None
    if new or extent is not None:
        answer = studio.draw(case_id, user, new, extent)
    layer = studio.layer(case_id, user, "proxy" if answer.step else "prediction")
    assert layer is not None, "an open case has a prediction, and one that was drawn on a proxy"
    extras = _bench_fields(answer)
    wanted = params.get("x_layers", [])
    for name in wanted if isinstance(wanted, list) else [wanted]:
        if name not in LAYERS:
            raise Refused(400, "there is no such layer", "", f"use {', '.join(LAYERS)}")
        extras[f"x_{name}"] = _layer_fields(studio.layer(case_id, user, name))
    return layer.whole(), extras


def _not_yet(prompts: tuple[Prompt, ...], annotations: Annotations) -> tuple[Prompt, ...]:
    """The prompts that are not among what was drawn: a viewer sends the old ones with the new ones."""
    points = {(point.index, point.label) for point in annotations.points}
    strokes = [(stroke.axis, stroke.index, stroke.labels) for stroke in annotations.scribbles]

    def known(prompt: Prompt) -> bool:
        match prompt:
            case PointPrompt():
                return (prompt.index, prompt.label) in points
            case ScribblePrompt():
                return any(
                    (axis, index) == (prompt.axis, prompt.index) and np.array_equal(labels, prompt.labels)
                    for axis, index, labels in strokes
                )
        return False

    return tuple(prompt for prompt in prompts if not known(prompt))


def _selected(
    model: str, params: Mapping[str, Any], labels: Labels3D, names: tuple[str, ...]
) -> tuple[Labels3D, dict[str, int]]:
    """All labels; or the one that a scribble client draws, as 1: it puts the reply into that segment."""
    selected = params.get("selected_label_name")
    if model != SCRIBBLES or not selected:
        return labels, {name: value for value, name in enumerate(names, 1)}
    return (labels == drawn.value_of(selected, names)).astype(np.uint8), {selected: 1}


def _extension(params: Mapping[str, Any]) -> str:
    extension = params.get("result_extension") or EXTENSIONS[0]
    if extension not in EXTENSIONS:
        raise Refused(400, "masks are not written in that format", "", f"use {', '.join(EXTENSIONS)}")
    if params.get("result_dtype", "uint8") not in ("uint8", None):
        raise Refused(400, "masks have one byte a voxel", "`result_dtype` asks for another type", "use uint8")
    return str(extension)


def _encoded(mask: Volume, extension: str, *, compress: bool) -> bytes:
    if extension == ".nrrd":
        return nrrd.encode(mask, compress=compress)
    return nifti.encode(mask, compress=extension.endswith(".gz"))


def _params(
    names: Mapping[str, int], labels: Labels3D, extras: Mapping[str, Any], infer: float, write: float
) -> dict[str, Any]:
    centroids = {}
    for name, value in names.items():
        found = np.argwhere(labels == value)
        if found.size:
            centroids[name] = [int(at) for at in np.rint(found.mean(axis=0))]
    # 3D Slicer gives these names to the numbers that are in the mask, one after the other.
    names = {name: value for name, value in names.items() if name in centroids}
    latencies = {"pre": 0.0, "infer": infer, "invert": 0.0, "post": 0.0, "write": write, "total": infer + write}
    return {
        "label_names": dict(names),
        "latencies": {name: round(value, 4) for name, value in latencies.items()} | {"transform": {}},
        "centroids": centroids,
        **extras,
    }


def _bench_fields(answer: Answer) -> dict[str, Any]:
    return {
        "x_step": answer.step,
        "x_suggestion": [{"axis": one.axis, "index": one.index} for one in answer.suggestion],
        "x_effort": {
            "contour": answer.effort_contour,
            "strict": answer.effort_strict,
            "share": answer.effort_share,
        },
        "x_changed": answer.changed,
        "x_versions": dict(answer.versions),
        "x_latency_ms": dict(answer.latency_ms),
        "x_progress": progress_fields(answer.progress),
    }


def progress_fields(progress: Progress) -> dict[str, Any]:
    """What the model behind the reply is and does."""
    return {
        "model": progress.model,
        "run": progress.run,
        "round": progress.round,
        "learning": progress.learning,
        "updates_done": progress.updates_done,
        "updates_left": progress.updates_left,
        "federation": progress.federation,
    }


def _layer_fields(layer: Layer | None) -> dict[str, Any] | None:
    """A layer as JSON: its bytes are x fastest, deflated (zlib) and in base64."""
    if layer is None:
        return None
    return {
        "version": layer.version,
        "shape": list(layer.shape),
        "box": list(layer.box),
        "encoding": "zlib+base64",
        "data": base64.b64encode(zlib.compress(layer.wire(), 1)).decode("ascii"),
    }
