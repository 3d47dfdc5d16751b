"""A multipart form whose header may be of another request.

MONAI Label's client keeps the headers of one request for the next as soon as it has a token. Its session upload, which
is made by another library, then carries the content type of the request before: JSON, or a form with another boundary.
The boundary that counts is the one that the body begins with.
"""

from collections.abc import AsyncGenerator

from fastapi import Request
from python_multipart.exceptions import FormParserError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from wardround.client.workbench.monai_label.replies import Refused

_LONGEST = 200


async def files_of(request: Request, name: str, limit: int, most: int) -> list[bytes]:
    """The files of a form that are called `name`.

    Parameters
    ----------
    limit
        Bytes of the whole form.
    most
        Files that it may have.

    Raises
    ------
    Refused
        With 400, if the body is no form, or holds no such file.
    """
    stream = request.stream()
    first = b""
    async for chunk in stream:
        first += chunk
        if b"\r\n" in first or len(first) > _LONGEST:
            break
    boundary, found, _ = first[:_LONGEST].partition(b"\r\n")
    if not found or not boundary.startswith(b"--"):
        raise Refused(400, "the body is no form", "it begins with no boundary", "send multipart/form-data")

    async def body() -> AsyncGenerator[bytes, None]:
        seen = len(first)
        yield first
        async for chunk in stream:
            seen += len(chunk)
            if seen > limit:
                raise Refused(413, "the file is too large", f"it may have {limit >> 20} MiB")
            yield chunk

    content_type = f"multipart/form-data; boundary={boundary[2:].decode('latin-1')}"
    try:
        form = await MultiPartParser(Headers({"content-type": content_type}), body(), max_files=most).parse()
    except (MultiPartException, FormParserError) as error:
        raise Refused(400, "the form cannot be read", "it is damaged or cut short", "send it again") from error
    try:
        files = [await one.read() for one in form.getlist(name) if isinstance(one, UploadFile)]
    finally:
        await form.close()
    if not files:
        raise Refused(400, "the form holds no file", f"it has no part called `{name}` with a file name", "")
    return files
