"""Errors as a client of the workbench sees them: JSON with problem, cause and fix, and nobody's name.

::

    {"error": {"code": "no-such-case", "problem": "…", "cause": "…", "fix": "…"}, "detail": "…"}

What went wrong at the site itself (a damaged file, a full disk, a bug) is not described: its text may hold a path. The
log has the name of the error's class and the lines that led to it, and never its text.
"""

import logging
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from wardround.client.workbench.patience import TooManyTries
from wardround.errors import (
    AuthRefused,
    ConnectionFailed,
    DataError,
    StorageError,
    UsageError,
    WardroundError,
    without_text,
)

log = logging.getLogger(__name__)

_PATH = re.compile(r"(?<![\w.:/])/[^\s'\",;:]+")
"""A path of this machine in a text, which is nobody's business."""
_OURS: tuple[tuple[type[WardroundError], int, str], ...] = (
    (TooManyTries, 429, "too-many-tries"),
    (AuthRefused, 401, "not-signed-in"),
    (UsageError, 409, "not-possible"),
    (DataError, 422, "not-usable"),
    (ConnectionFailed, 502, "archive-not-reached"),
)


class ApiError(WardroundError):
    """A request that is refused.

    Parameters
    ----------
    status
        Of HTTP.
    code
        For programs: lower case, with hyphens.
    headers
        Of the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        problem: str,
        cause: str = "",
        fix: str = "",
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(problem, cause, fix)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})


def body(code: str, problem: str, cause: str = "", fix: str = "") -> dict[str, Any]:
    """What an error says. ``detail`` is where clients of other servers look."""
    problem, cause, fix = (_PATH.sub("a file", text) for text in (problem, cause, fix))
    return {"error": {"code": code, "problem": problem, "cause": cause, "fix": fix}, "detail": problem}


def answer(error: WardroundError) -> JSONResponse:
    """What the client is told of an error of ours."""
    if isinstance(error, ApiError):
        return _json(error.status, body(error.code, error.problem, error.cause, error.fix), error.headers)
    for kind, status, code in _OURS:
        if isinstance(error, kind):
            headers = {"retry-after": str(error.seconds)} if isinstance(error, TooManyTries) else {}
            return _json(status, body(code, error.problem, error.cause, error.fix), headers)
    note(error)
    if isinstance(error, StorageError):
        return _json(
            503,
            body("storage", "the site cannot read or write its files", "", "tell your administrator, who has a log"),
        )
    return failed()


def failed() -> JSONResponse:
    """What the client is told of a fault of ours."""
    return _json(500, body("failed", "the workbench failed", "", "try again; tell your administrator, who has a log"))


def note(error: BaseException) -> None:
    """Write down that something failed, and where: the text of an error, ours too, may name a patient."""
    log.error("%s", without_text(error))


def handle_errors(app: FastAPI) -> None:
    """Let `app` answer every error in this form."""

    @app.exception_handler(WardroundError)
    def ours(request: Request, error: WardroundError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(HTTPException)
    def of_http(request: Request, error: HTTPException) -> JSONResponse:
        phrase = HTTPStatus(error.status_code).phrase
        return _json(error.status_code, body(phrase.lower().replace(" ", "-"), phrase), error.headers)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # Where, and what is expected there; never what was sent.
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:1])
        text = body("not-understood", "the request cannot be understood", f"{where}: {first['type']}", "correct it")
        return _json(422, text)


def _json(status: int, content: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(dict(content), status_code=status, headers=dict(headers or {}))
