"""DICOMweb for OHIF: requests go on to the one archive that the site's settings name, and nowhere else.

The archive's address comes from site.toml. Of a request only a path of a known form, its query and two headers go on;
the answer comes back as a stream, cut off at a limit, never as a redirect, and never as a kind of content that a
browser would run as a page of ours.
"""

import logging
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Annotated, Literal
from urllib.parse import parse_qsl, urlencode

import httpx
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response, StreamingResponse
from starlette.background import BackgroundTask

from wardround.client.workbench.accounts import Person
from wardround.client.workbench.monai_label.desk import Desk
from wardround.client.workbench.monai_label.replies import Refused

logger = logging.getLogger(__name__)

ANSWER_LIMIT = 4 << 30
STORE_LIMIT = 1 << 30
_PART = r"(?!\.+(?:/|$))[A-Za-z0-9.,_-]{1,128}"
_READ = re.compile(rf"(?:studies|series|instances)(?:/{_PART}){{0,11}}")
_STORE = re.compile(rf"studies(?:/{_PART})?")
_TYPES = re.compile(
    r"application/(?:dicom(?:\+json)?|json|octet-stream)|multipart/related|image/(?:jpeg|png|jp2|jpx|jls|gif)|video/mpeg",
    re.IGNORECASE,
)
_MOST_FIELDS = 100
_PATIENCE = httpx.Timeout(60.0, connect=10.0)

Service = Literal["qido", "wado", "stow"]


@dataclass(frozen=True)
class Archive:
    """Where the site's DICOMweb is.

    Parameters
    ----------
    dicomweb
        Root of QIDO, WADO and STOW.
    user, password
        Of the site's account there; an empty user for none.
    """

    dicomweb: str
    user: str = ""
    password: str = field(default="", repr=False)


def archive_router(desk: Desk, archive: Archive | None) -> APIRouter:
    """The routes; without an archive they answer that there is none."""
    client: httpx.AsyncClient | None = None
    router = APIRouter(prefix="/proxy/dicom", tags=["Others"])
    anybody = Depends(desk.access.require())
    keeper = Depends(desk.access.require("reviewer", "admin"))

    def opened() -> tuple[httpx.AsyncClient, str]:
        nonlocal client
        if archive is None:
            raise Refused(404, "there is no archive", "site.toml names none, or no viewer", "set [[pacs]] and `ohif`")
        if client is None:
            # Neither proxies nor netrc of the environment: the address in site.toml is the whole truth.
            auth = (archive.user, archive.password) if archive.user else None
            client = httpx.AsyncClient(auth=auth, timeout=_PATIENCE, follow_redirects=False, trust_env=False)
        return client, archive.dicomweb.rstrip("/")

    @router.get("/{service}/{path:path}", summary="Search or read the archive", response_class=Response)
    async def read(service: Service, path: str, request: Request, person: Annotated[Person, anybody]) -> Response:
        if not _READ.fullmatch(path):
            raise Refused(404, "there is no such resource of DICOMweb")
        session, root = opened()
        url = f"{root}/{path}{_query(request)}"
        return await _pass(session, session.build_request("GET", url, headers=_headers(request, "accept")))

    @router.post("/{service}/{path:path}", summary="Store into the archive", response_class=Response)
    async def store(service: Service, path: str, request: Request, person: Annotated[Person, keeper]) -> Response:
        if service == "qido" or not _STORE.fullmatch(path):
            raise Refused(404, "there is no such resource of DICOMweb")
        session, root = opened()
        headers = _headers(request, "accept", "content-type")
        return await _pass(
            session, session.build_request("POST", f"{root}/{path}", headers=headers, content=_limited(request))
        )

    return router


async def _pass(session: httpx.AsyncClient, request: httpx.Request) -> Response:
    try:
        answer = await session.send(request, stream=True)
    except httpx.HTTPError as error:
        logger.warning("the archive does not answer: %s", type(error).__name__)
        raise Refused(502, "the archive does not answer", type(error).__name__, "tell the administrator") from error
    content = answer.headers.get("content-type", "")
    problem = ""
    if answer.is_redirect:
        problem = "it wants to send the request elsewhere"
    elif answer.status_code in (401, 403):
        problem = "it does not accept the site's account"
    elif answer.status_code >= 500:
        problem = f"it failed with {answer.status_code}"
    elif answer.status_code < 400 and content and not _TYPES.match(content):
        problem = "its answer is of a kind that DICOMweb does not have"
    elif int(answer.headers.get("content-length", "0")) > ANSWER_LIMIT:
        problem = "its answer is too large"
    if problem:
        await answer.aclose()
        raise Refused(502, "the archive cannot be used", problem, "tell the administrator")
    if answer.status_code >= 400:
        await answer.aclose()
        raise Refused(answer.status_code, "the archive has refused the request")
    headers = {name: answer.headers[name] for name in ("content-type", "content-encoding") if name in answer.headers}
    headers |= {"x-content-type-options": "nosniff", "cache-control": "private, no-store"}
    return StreamingResponse(
        _counted(answer), answer.status_code, headers=headers, background=BackgroundTask(answer.aclose)
    )


async def _counted(answer: httpx.Response) -> AsyncGenerator[bytes, None]:
    seen = 0
    async for chunk in answer.aiter_raw():
        seen += len(chunk)
        if seen > ANSWER_LIMIT:
            raise RuntimeError("an answer of the archive was cut off: it is too large")
        yield chunk


async def _limited(request: Request) -> AsyncGenerator[bytes, None]:
    seen = 0
    async for chunk in request.stream():
        seen += len(chunk)
        if seen > STORE_LIMIT:
            raise Refused(413, "too much to store at once", f"a request may have {STORE_LIMIT >> 20} MiB")
        yield chunk


def _query(request: Request) -> str:
    try:
        fields = parse_qsl(request.url.query, keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError as error:
        raise Refused(400, "the query has too many fields") from error
    return f"?{urlencode(fields)}" if fields else ""


def _headers(request: Request, *names: str) -> dict[str, str]:
    found = {name: request.headers[name] for name in names if name in request.headers}
    return found | {"accept-encoding": "identity"}
