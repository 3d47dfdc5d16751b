"""How the protocol answers: errors as JSON with a 4xx, and an inference as MONAI Label's two-part reply.

MONAI Label answers a mistake with a 500 and text. Its clients show whatever comes with a status other than 200, so
that they can be told plainly: ``{"detail": "problem: cause. What to do", "error": {...}}``.
"""

import json
import logging
import secrets
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute

from wardround.errors import AuthRefused, DataError, StorageError, UsageError, WardroundError

logger = logging.getLogger(__name__)

NRRD_TYPE = "application/octet-stream"
NIFTI_TYPE = "application/gzip"


class Refused(WardroundError):
    """A request that is answered with a status of its own.

    Parameters
    ----------
    status
        400 … 599.
    problem, cause, fix
        As of every error; they go to the one who asked.
    """

    def __init__(self, status: int, problem: str, cause: str = "", fix: str = "") -> None:
        super().__init__(problem, cause, fix)
        self.status = status


class ProtocolRoute(APIRoute):
    """A route whose errors are JSON, and leave nothing in the log by which anybody could be known."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own handler with our answers to errors."""
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except HTTPException as error:
                return refusal(error.status_code, str(error.detail), headers=error.headers)
            except RequestValidationError as error:
                fields = sorted({".".join(str(part) for part in one["loc"]) for one in error.errors()})
                return refusal(422, "the request cannot be read", f"missing or unusable: {', '.join(fields)}")
            except WardroundError as error:
                status = status_of(error)
                if status >= 500 and not isinstance(error, Refused):
                    # Its text may name a file of the site.
                    logger.error("a viewer's request failed: %s", type(error).__name__)
                    return refusal(status, "the site could not answer", type(error).__name__, "tell its administrator")
                return refusal(status, error.problem, error.cause, error.fix)

        return answer


def status_of(error: WardroundError) -> int:
    """The HTTP status that an error of ours is answered with."""
    match error:
        case Refused():
            return error.status
        case UsageError():
            return 400
        case DataError():
            return 422
        case AuthRefused():
            return 401
        case StorageError():
            return 507
    return 500


def refusal(
    status: int, problem: str, cause: str = "", fix: str = "", headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error as a reply."""
    detail = problem + (f": {cause}" if cause else "") + (f". {fix[:1].upper()}{fix[1:]}" if fix else "")
    error = {"code": str(status), "problem": problem, "cause": cause, "fix": fix}
    return JSONResponse({"detail": detail, "error": error}, status, headers=dict(headers or {}))


def two_parts(params: Mapping[str, Any], mask: bytes, name: str) -> Response:
    """MONAI Label's reply to an inference: ``params`` as JSON, and the mask in the only part with a file name."""
    boundary = secrets.token_hex(16)
    body = b"".join(
        (
            f'--{boundary}\r\nContent-Disposition: form-data; name="params"\r\n'.encode(),
            b"Content-Type: application/json\r\n\r\n",
            json.dumps(params).encode(),
            f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'.encode(),
            f"Content-Type: {media_type(name)}\r\n\r\n".encode(),
            mask,
            f"\r\n--{boundary}--\r\n".encode(),
        )
    )
    return Response(body, media_type=f"multipart/form-data; boundary={boundary}")


def attachment(data: bytes, name: str) -> Response:
    """A file to save."""
    return Response(
        data, media_type=media_type(name), headers={"content-disposition": f'attachment; filename="{name}"'}
    )


def media_type(name: str) -> str:
    """Of a file that we send."""
    return NIFTI_TYPE if name.endswith(".gz") else NRRD_TYPE
