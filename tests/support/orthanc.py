"""A real PACS for tests: Orthanc with its DICOMweb plugin, on free ports, in a folder of its own.

::

    with orthanc() as pacs:
        pacs.upload(dataset_file.read_bytes())
        httpx.get(f"{pacs.dicomweb}/series", auth=pacs.auth)

Orthanc 1.10 listens on every address, whatever it is told: it turns away who comes from another machine, and wants a
password from everybody. Where it is not installed the test is skipped and says so.
"""

import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

BINARY = Path("/usr/sbin/Orthanc")
PLUGINS = tuple(
    Path(folder) / "libOrthancDicomWeb.so" for folder in ("/usr/share/orthanc/plugins", "/usr/lib/orthanc/plugins")
)
READY_WITHIN = 60.0


@dataclass(frozen=True)
class Orthanc:
    """A PACS that runs.

    Parameters
    ----------
    http_port, dimse_port
        Where it listens on 127.0.0.1.
    user, password
        Its only account.
    aet
        Its application entity title.
    folder
        Its storage, configuration and log (``orthanc.log``).
    """

    http_port: int
    dimse_port: int
    user: str
    password: str
    aet: str
    folder: Path

    @property
    def url(self) -> str:
        """Root of its own REST interface."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def dicomweb(self) -> str:
        """Root of QIDO, WADO and STOW, as ``[[pacs]] dicomweb`` names it."""
        return f"{self.url}/dicom-web"

    @property
    def auth(self) -> tuple[str, str]:
        """User and password, as httpx and requests take them."""
        return self.user, self.password

    def upload(self, instance: bytes) -> str:
        """Store one DICOM file (with preamble) and return Orthanc's own id of it."""
        answer = httpx.post(f"{self.url}/instances", content=instance, auth=self.auth, timeout=60)
        answer.raise_for_status()
        return str(answer.json()["ID"])

    def instances(self) -> list[str]:
        """Orthanc's own ids of everything that it holds."""
        answer = httpx.get(f"{self.url}/instances", auth=self.auth, timeout=60)
        answer.raise_for_status()
        return [str(name) for name in answer.json()]

    def file(self, instance: str) -> bytes:
        """The DICOM file of one of :meth:`instances`."""
        answer = httpx.get(f"{self.url}/instances/{instance}/file", auth=self.auth, timeout=60)
        answer.raise_for_status()
        return answer.content

    @property
    def log(self) -> str:
        """What it has said so far."""
        return (self.folder / "orthanc.log").read_text(errors="replace")


def why_not() -> str:
    """Why no Orthanc can be started here; empty where one can."""
    if not BINARY.exists():
        return "Orthanc is not installed (Debian: apt install orthanc)"
    if not any(plugin.exists() for plugin in PLUGINS):
        return "Orthanc's DICOMweb plugin is not installed (Debian: apt install orthanc-dicomweb)"
    return ""


@contextmanager
def orthanc(**settings: Any) -> Iterator[Orthanc]:
    """A PACS with empty storage that runs as long as the block lasts.

    Parameters
    ----------
    settings
        More of Orthanc's own settings, such as ``DicomModalities={"SITE": ["SITE", "127.0.0.1", 11112]}``; they
        replace the ones that are made here.
    """
    reason = why_not()
    if reason:
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="orthanc-"))
    http_port, dimse_port = _free_ports()
    pacs = Orthanc(http_port, dimse_port, "keeper", "not-a-secret-of-anybody", "ORTHANC", folder)
    configuration = {
        "Name": "archive",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": http_port,
        "DicomPort": dimse_port,
        "DicomAet": pacs.aet,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {pacs.user: pacs.password},
        "DicomAlwaysAllowEcho": True,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
        "DicomAlwaysAllowMove": True,
        "DicomCheckCalledAet": False,
        "HttpThreadsCount": 8,
        "Plugins": [str(next(plugin for plugin in PLUGINS if plugin.exists()))],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "StudiesMetadata": "Full", "SeriesMetadata": "Full"},
    } | settings
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(
            [BINARY, folder / "orthanc.json"], cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        _wait(pacs, process)
        yield pacs
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def _wait(pacs: Orthanc, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_WITHIN
    while time.monotonic() < deadline:
        assert process.poll() is None, f"Orthanc ended by itself:\n{pacs.log[-2000:]}"
        try:
            if httpx.get(f"{pacs.dicomweb}/studies", auth=pacs.auth, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"Orthanc was not ready within {READY_WITHIN:.0f} s:\n{pacs.log[-2000:]}")
