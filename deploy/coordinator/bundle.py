"""The app bundle: an order form without code.

Flower hands every site the app of a run. Ours names what the sites have installed, and nothing else: no module, no
settings of a run. It is therefore the same for every run of one version of Wardround, byte for byte, and a site that
has approved it once has approved it until the next version.
"""

import hashlib
import io
import zipfile
from pathlib import Path

from wardround import __version__
from wardround.files import write_bytes

RUN_FOLDER = "run-folder"
"""The one key of the run configuration: the coordinator's folder of the run, which means nothing to a site."""

_DATE = (2024, 1, 1, 0, 0, 0)

_PYPROJECT = f"""\
# A run of Wardround. It brings no code: coordinator and sites run what they have installed.

[project]
name = "wardround"
version = "{__version__}"
description = "Federated online learning for 3D medical images"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "wardround"

[tool.flwr.app.components]
serverapp = "wardround.server.app:app"
clientapp = "wardround.client.app:app"

[tool.flwr.app.config]
{RUN_FOLDER} = ""
"""


def build_bundle() -> bytes:
    """The bundle of this version, the same bytes on every machine.

    Entries are stored and not compressed, in a fixed order and with a fixed date: what a compressor makes of them
    differs from one to the next.
    """
    content = _PYPROJECT.encode()
    manifest = f"pyproject.toml,{hashlib.sha256(content).hexdigest()},{len(content) * 8}"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (("pyproject.toml", content), (".info/CONTENT", manifest.encode())):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    return stream.getvalue()


def digest(bundle: bytes) -> str:
    """What sites know a bundle by: SHA-256, in hexadecimal."""
    return hashlib.sha256(bundle).hexdigest()


def write_bundle(folder: Path) -> Path:
    """Put the bundle where it can be looked at: ``pyproject.toml`` and ``<sha256>.fab``. Returns the latter."""
    bundle = build_bundle()
    path = folder / f"{digest(bundle)}.fab"
    write_bytes(folder / "pyproject.toml", _PYPROJECT.encode())
    write_bytes(path, bundle)
    return path
