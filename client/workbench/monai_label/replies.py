"""How the protocol answers: an inference as MONAI Label's two-part reply, files, and errors with a 4xx.

MONAI Label answers a mistake with a 500 and text. Its clients show whatever comes with a status other than 200, so that
they can be told plainly, in the form of :mod:`wardround.client.workbench.errors`.
"""

import json
import secrets
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi.responses import Response

from wardround.client.workbench.errors import ApiError

NRRD_TYPE = "application/octet-stream"
NIFTI_TYPE = "application/gzip"
DICOM_TYPE = "application/dicom"


class Refused(ApiError):
    """A request that is answered with a status of its own.

    Parameters
    ----------
    status
        400 … 599.
    problem, cause, fix
        As of every error; they go to the one who asked.
    """

    def __init__(self, status: int, problem: str, cause: str = "", fix: str = "") -> None:
        code = HTTPStatus(status).phrase.lower().replace(" ", "-")
        super().__init__(status, code, problem, cause, fix)


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
    if name.endswith(".dcm"):
        return DICOM_TYPE
    return NIFTI_TYPE if name.endswith(".gz") else NRRD_TYPE
