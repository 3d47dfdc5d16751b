"""OHIF under ``/ohif/``: a built viewer that the administrator has put into a folder, served as it is.

A person who opens it without having signed in is sent to our log-in page, which leads back; a script gets its 401.
"""

import mimetypes
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse, RedirectResponse, Response

from wardround.client.workbench.accounts import Person
from wardround.client.workbench.errors import ApiError
from wardround.client.workbench.monai_label.desk import Desk
from wardround.client.workbench.monai_label.replies import Refused

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' 'wasm-unsafe-eval' blob:; "
    "worker-src 'self' blob:; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
"""What OHIF's own scripts need; they reach this server and no other."""
LOGIN = "/login.html"
SERVER_COOKIE = "MONAILABEL_SERVER_URL"
"""In which OHIF's MONAI Label panel looks for its server; else it takes port 8000."""
_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm", ".json": "application/json"}


def ohif_router(desk: Desk, folder: Path | None) -> APIRouter:
    """The route; without a folder it answers that there is none."""
    router = APIRouter(prefix="/ohif", tags=["Others"])
    root = folder.resolve() if folder is not None else None
    signed_in = desk.access.require()

    def visitor(request: Request) -> Person | str:
        """Who is signed in; where a person opens a page in a browser, else, what our log-in page is told."""
        try:
            return signed_in(request)
        except ApiError as error:
            if root is None or error.code not in ("not-signed-in", "change-password") or not _is_page(request):
                raise
            return "change&" if error.code == "change-password" else ""

    # Read by the test that holds every route against its roles.
    visitor.roles = frozenset()  # type: ignore[attr-defined]

    @router.get("/{path:path}", summary="A file of the viewer", response_class=Response)
    def file(path: str, request: Request, person: Annotated[Person | str, Depends(visitor)]) -> Response:
        if isinstance(person, str):
            # Our own page, which goes on to no address but one below /ohif/.
            after = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            return RedirectResponse(f"{LOGIN}?{person}next={quote(after, safe='')}", 303)
        if root is None:
            raise Refused(
                404, "OHIF is not served here", "the site's settings name no folder", "set `ohif` in site.toml"
            )
        found = _find(root, path)
        kind = _TYPES.get(found.suffix) or mimetypes.guess_type(found.name)[0] or "application/octet-stream"
        response = FileResponse(found, media_type=kind, headers={"content-security-policy": POLICY})
        if found.name == "index.html":
            response.headers["cache-control"] = "no-store"
            response.set_cookie(SERVER_COOKIE, quote(str(request.base_url), safe=""), path="/ohif", samesite="strict")
        return response

    return router


def _is_page(request: Request) -> bool:
    """Whether a browser asks for something to show, not for a part of a page."""
    wanted = request.headers.get("sec-fetch-dest", "document")
    last = request.url.path.rpartition("/")[2]
    accepts = "text/html" in request.headers.get("accept", "")
    return "authorization" not in request.headers and wanted == "document" and accepts and "." not in last


def _find(root: Path, path: str) -> Path:
    """The file of `path` below `root`; a path that names a view of the viewer's own is answered with its page."""
    parts = path.split("/")
    missing = Refused(404, "there is no such file")
    if any(part.startswith(".") or "\\" in part or "\0" in part for part in parts):
        raise missing
    try:
        found = root.joinpath(*(part for part in parts if part)).resolve()
        inside, is_file = found.is_relative_to(root), found.is_file()
    except (OSError, ValueError, RuntimeError) as error:
        # A name that no file can have, or links that lead in a circle.
        raise missing from error
    if not inside:
        raise missing
    if is_file:
        return found
    if "." not in parts[-1] and (root / "index.html").is_file():
        return root / "index.html"
    raise missing
