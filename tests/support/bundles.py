"""App bundles to bring to a gate, honest and not, and a clock that stands still."""

import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping

PROJECT = b"""
[project]
name = "rounds"
version = "1.0.0"
description = ""
license = "Apache-2.0"

[tool.flwr.app]
publisher = "wardround"

[tool.flwr.app.components]
serverapp = "wardround.server.app:app"
clientapp = "wardround.client.app:app"

[tool.flwr.app.config]
"""


class Clock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def pack(
    files: Mapping[str, bytes] | None = None,
    *,
    manifest: bytes | None = None,
    change: Callable[[zipfile.ZipFile], None] | None = None,
    compression: int = zipfile.ZIP_DEFLATED,
) -> bytes:
    """A bundle with a true list of its files, unless `manifest` is given; `change` may then add to it what it likes."""
    content = {"pyproject.toml": PROJECT} if files is None else files
    lines = [f"{name},{hashlib.sha256(data).hexdigest()},{len(data) * 8}" for name, data in content.items()]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=compression)
        archive.writestr(
            zipfile.ZipInfo(".info/CONTENT"), "\n".join(lines) if manifest is None else manifest, compression
        )
        if change is not None:
            change(archive)
    return stream.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
