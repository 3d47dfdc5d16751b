"""Archives: a real Orthanc by DICOMweb and by DIMSE, and one that means harm."""

import ipaddress
import json
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from ct import Series, ct_series
from orthanc import Orthanc, orthanc
from pydicom import dcmread

from wardround.client.cases.dicom.archives import PullLimits, RemoteSeries, Wanted, checked_uid, read_password
from wardround.client.cases.dicom.dimse import Dimse
from wardround.client.cases.dicom.importing import import_series, read_series
from wardround.client.cases.dicom.pacs import Pacs
from wardround.client.cases.dicom.register import Register
from wardround.client.cases.dicom.segmentation import Origin, write_seg
from wardround.client.cases.dicom.segments import read_seg
from wardround.client.cases.dicom.series import find_series
from wardround.client.cases.store import CaseStore
from wardround.client.home import PacsSettings
from wardround.errors import AuthRefused, ConnectionFailed, DataError, StorageError, UsageError, WardroundError


@pytest.fixture(scope="module")
def archive() -> Iterator[tuple[Orthanc, Series]]:
    """An Orthanc with a small CT."""
    with orthanc() as pacs:
        series = ct_series((32, 28, 8))
        for one in series.files:
            pacs.upload(one)
        yield pacs, series


def settings(pacs: Orthanc) -> PacsSettings:
    return PacsSettings(
        name="archive", dicomweb=pacs.dicomweb, user=pacs.user, aet=pacs.aet, host="127.0.0.1",
        dimse_port=pacs.dimse_port,
    )  # fmt: skip


def opened(pacs: Orthanc, way: str, **options: Any) -> Pacs | Dimse:
    return Pacs(settings(pacs), pacs.password, **options) if way == "web" else Dimse(settings(pacs), **options)


WAYS = pytest.mark.parametrize("way", ["web", "dimse"])


@WAYS
def test_a_series_is_found_pulled_and_imported(archive: tuple[Orthanc, Series], way: str, tmp_path: Path) -> None:
    pacs, series = archive
    speaking = opened(pacs, way)
    (found,) = speaking.find(Wanted(series_uid=series.series))
    assert (found.study_uid, found.modality) == (series.study, "CT")
    assert {one.series_uid for one in speaking.find(Wanted(patient_id="4711", modality="CT"))} == {series.series}
    assert speaking.find(Wanted(patient_id="nobody")) == ()
    folder = tmp_path / "pulled"
    folder.mkdir()
    seen: list[int] = []
    assert speaking.pull(found, folder, lambda done, _: seen.append(done)) == len(series.files)
    assert seen == list(range(1, len(series.files) + 1))
    assert not [path for path in folder.iterdir() if series.series in path.name]
    with Register(tmp_path / "register") as register, CaseStore(tmp_path / "store") as store:
        (volume,) = find_series(folder).volumes
        case_id = import_series(store, register, volume)
        assert (store.image(case_id).array == series.volume.array).all()
    speaking.close()


@WAYS
def test_a_segmentation_is_kept_and_can_be_read_again(
    archive: tuple[Orthanc, Series], way: str, tmp_path: Path
) -> None:
    pacs, series = archive
    for number, one in enumerate(series.files):
        (tmp_path / f"{number}").write_bytes(one)
    with Register(tmp_path / "register") as register:
        image, source = read_series(register, find_series(tmp_path).volumes[0])
    labels = image.with_array((image.array > 200).astype(np.uint8) * (2 if way == "web" else 1))
    seg = write_seg(source, labels, ["ball"], _origin(way))
    before = set(pacs.instances())
    speaking = opened(pacs, way)
    speaking.store(seg)
    (new,) = set(pacs.instances()) - before
    path = tmp_path / "back.dcm"
    path.write_bytes(pacs.file(new))
    assert (read_seg(dcmread(path), image).array == labels.array).all()
    speaking.store(seg)
    assert len(pacs.instances()) == len(before) + 1


def _origin(author: str) -> Origin:
    return Origin(made="SEMIAUTOMATIC", author=author, model="ab", round=1, when=datetime(2026, 3, 1))


def test_the_archive_answers_an_echo(archive: tuple[Orthanc, Series]) -> None:
    pacs, _ = archive
    Dimse(settings(pacs)).echo()
    with pytest.raises(ConnectionFailed):
        Dimse(settings(pacs).model_copy(update={"dimse_port": 1})).echo()


@WAYS
def test_what_is_too_large_or_too_slow_is_given_up(archive: tuple[Orthanc, Series], way: str, tmp_path: Path) -> None:
    pacs, series = archive
    (found,) = opened(pacs, way).find(Wanted(series_uid=series.series))
    for limits, error in (
        (PullLimits(total_bytes=5000), DataError),
        (PullLimits(instances=3), DataError),
        (PullLimits(seconds=-1.0), ConnectionFailed),
    ):
        with pytest.raises(error):
            opened(pacs, way, limits=limits).pull(found, tmp_path)


def test_a_wrong_password_is_told_from_a_wrong_address(archive: tuple[Orthanc, Series]) -> None:
    pacs, _ = archive
    with pytest.raises(AuthRefused):
        Pacs(settings(pacs), "wrong").find(Wanted())
    with pytest.raises(ConnectionFailed):
        Pacs(settings(pacs).model_copy(update={"dicomweb": "http://127.0.0.1:1/dicom-web"})).find(Wanted())


@pytest.mark.parametrize("uid", ["../../etc/passwd", "1.2/../3", "1..2", "1", "1.2?x", "1.2\n", "1." + "2" * 64, "9.1"])
def test_what_is_no_uid_never_reaches_an_address_or_a_path(uid: str) -> None:
    with pytest.raises(UsageError) as refused:
        checked_uid(uid)
    assert uid not in str(refused.value).replace("64", "")
    with pytest.raises(UsageError):
        Wanted(series_uid=uid)


# --- an archive that means harm ----------------------------------------------------------------------------------

CANARY = "1.2.3.777.4711"
"""A UID that must be in no message."""
Reply = tuple[int, dict[str, str], bytes]


class Hostile:
    """Answers everything in one way, and remembers who asked for what."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, headers, body = outer.reply
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.root = f"http://127.0.0.1:{self.server.server_address[1]}/dicom-web"

    def __enter__(self) -> "Hostile":
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def multipart(*parts: bytes) -> Reply:
    body = b"".join(b"--x\r\nContent-Type: application/dicom\r\n\r\n" + part + b"\r\n" for part in parts) + b"--x--"
    return 200, {"Content-Type": 'multipart/related; type="application/dicom"; boundary=x'}, body


def asking(root: str, **limits: Any) -> Pacs:
    return Pacs(PacsSettings(name="archive", dicomweb=root), limits=PullLimits(**limits))


WANTED = RemoteSeries("1.2.3", CANARY, "CT", "", 2)
CT_FILES = ct_series((8, 8, 2)).files
JSON = {"Content-Type": "application/dicom+json"}
BAD_PULLS: dict[str, Reply] = {
    "a redirect": (302, {"Location": "http://127.0.0.1:9/secret"}, b""),
    "a redirect for good": (308, {"Location": "/elsewhere"}, b""),
    "a web page": (200, {"Content-Type": "text/html"}, b"<script>"),
    "an entity bomb": (200, {"Content-Type": "application/dicom+xml"}, b"<!DOCTYPE x [<!ENTITY a 'b'>]><x>&a;</x>"),
    "no DICOM": multipart(b"GIF89a" * 100),
    "another series": multipart(*CT_FILES),
    "nothing": multipart(),
    "too much": multipart(b"\0" * 3_000_000),
    "compressed too much": (200, JSON | {"Content-Encoding": "gzip"}, b"\x1f\x8b" + b"\0" * 50),
    "less than it says": (200, multipart()[1] | {"Content-Length": "100000"}, multipart(CT_FILES[0])[2]),
    "a failure": (500, {}, CANARY.encode()),
    "a refusal": (404, {}, CANARY.encode()),
    "no kind at all": (200, {}, CT_FILES[0]),
    "bad JSON": (200, JSON, b"[{"),
}


SAID = {
    "a redirect": "redirects are not followed",
    "a redirect for good": "redirects are not followed",
    "a web page": "not of a kind of DICOMweb",
    "an entity bomb": "not of a kind of DICOMweb",
    "another series": "not asked for",
    "too much": "more than is taken",
    "compressed too much": "packed, which nobody asked for",
}
"""In the error, so that it is the right one."""


@pytest.mark.parametrize("what", BAD_PULLS)
def test_a_hostile_answer_to_a_pull_is_an_error_that_says_nothing(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Hostile(BAD_PULLS[what]) as server, pytest.raises(WardroundError) as refused:
        asking(server.root, total_bytes=200_000).pull(WANTED, tmp_path)
    assert SAID.get(what, "") in str(refused.value)
    assert len(server.asked) == 1, "no second request, least of all elsewhere"
    assert CANARY not in str(refused.value) + caplog.text
    assert "127.0.0.1" not in str(refused.value) + caplog.text


class Dripping(Hostile):
    """Sends a byte now and then, of headers or of images, until it is cut off."""

    def __init__(self, what: str) -> None:
        super().__init__(multipart(*CT_FILES))
        self.dripped, self.cut, outer = 0, threading.Event(), self

        def drip(stream: Any, data: bytes) -> None:
            for at in range(len(data)):
                if outer.cut.wait(0.02):
                    return
                try:
                    stream.write(data[at : at + 1])
                except OSError:
                    outer.cut.set()
                outer.dripped += 1

        def do_GET(handler: Any) -> None:
            status, headers, body = outer.reply
            if what == "headers":
                drip(handler.wfile, b"HTTP/1.1 200 OK\r\nX: " + b"a" * 2000)
                return
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name, value)
            if what == "images":
                handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            drip(handler.wfile, body)

        self.server.RequestHandlerClass.do_GET = do_GET  # type: ignore[attr-defined]


@pytest.mark.parametrize("what", ["headers", "images", "images of unknown length"])
def test_an_archive_that_sends_a_byte_now_and_then_is_given_up(what: str, tmp_path: Path) -> None:
    with Dripping(what) as server:
        with pytest.raises(ConnectionFailed, match="did not end in time"):
            asking(server.root, seconds=0.7).pull(WANTED, tmp_path)
        assert server.cut.wait(30)
        assert server.dripped < 1000


def test_one_object_is_bounded_apart_from_all(tmp_path: Path) -> None:
    made = ct_series((64, 64, 24))
    wanted = RemoteSeries(made.study, made.series, "CT", "", 24)
    with Hostile(multipart(*made.files)) as server:
        assert asking(server.root, object_bytes=100_000).pull(wanted, tmp_path) == 24
        with pytest.raises(DataError, match="more than is taken"):
            asking(server.root, object_bytes=5000).pull(wanted, tmp_path)


def test_a_part_of_a_series_is_not_the_series(tmp_path: Path) -> None:
    made = ct_series((8, 8, 2))
    with Hostile(multipart(*made.files)) as server:
        assert asking(server.root).pull(RemoteSeries(made.study, made.series, "CT", "", 2), tmp_path) == 2
        with pytest.raises(DataError, match="2 of 3 images"):
            asking(server.root).pull(RemoteSeries(made.study, made.series, "CT", "", 3), tmp_path)


def test_an_answer_names_no_address_that_is_called() -> None:
    answer = {
        "0020000D": {"vr": "UI", "Value": ["1.2.3"]},
        "0020000E": {"vr": "UI", "Value": ["1.2.4"]},
        "00081190": {"vr": "UR", "Value": ["http://127.0.0.1:9/secret"]},
        "00400275": {"vr": "SQ", "BulkDataURI": "http://127.0.0.1:9/secret"},
    }
    evil = answer | {"0020000E": {"vr": "UI", "Value": ["../../x"]}}
    with Hostile((200, JSON, json.dumps([answer, evil]).encode())) as server:
        found = asking(server.root).find(Wanted())
    assert [one.series_uid for one in found] == ["1.2.4"]
    assert len(server.asked) == 1


def _sequence(tag: str, inner: str, kind: str, value: object) -> bytes:
    return json.dumps({tag: {"vr": "SQ", "Value": [{inner: {"vr": kind, "Value": [value]}}]}}).encode()


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((200, JSON, b"{}"), "does not say that it did"),
        ((200, JSON, _sequence("00081198", "00081197", "US", 272)), "0x0110"),
        ((200, JSON, _sequence("00081199", "00081155", "UI", "1.2")), "does not say that it did"),
        ((409, JSON, b"{}"), "answered 409"),
        ((200, {}, b""), "does not say that it did"),
    ],
)
def test_a_segmentation_counts_as_kept_only_if_the_archive_says_so(reply: Reply, said: str, tmp_path: Path) -> None:
    with Hostile(reply) as server, pytest.raises(DataError, match="did not keep") as refused:
        asking(server.root).store(_small_seg(tmp_path))
    assert said in str(refused.value)


def _small_seg(folder: Path) -> Any:
    for number, one in enumerate(ct_series((8, 8, 4)).files):
        (folder / f"{number}").write_bytes(one)
    with Register(folder / "register") as register:
        image, source = read_series(register, find_series(folder).volumes[0])
    return write_seg(source, image.with_array((image.array > 200).astype(np.uint8)), [], _origin("ann"))


def test_neither_proxies_nor_passwords_of_the_environment_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with Hostile((200, JSON, b"[]")) as server:
        assert asking(server.root).find(Wanted()) == ()


def test_tls_is_verified(tmp_path: Path) -> None:
    certificate = _own_certificate(tmp_path)
    with Hostile((200, JSON, b"[]")) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.server.socket = context.wrap_socket(server.server.socket, server_side=True)
        settings = PacsSettings(name="archive", dicomweb=server.root.replace("http:", "https:"))
        with pytest.raises(ConnectionFailed, match="certificate"):
            Pacs(settings).find(Wanted())
        assert server.asked == []
        assert Pacs(settings, certificate=certificate).find(Wanted()) == ()


def _own_certificate(folder: Path) -> Path:
    """Certificate and key of 127.0.0.1 that nobody has signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "archive")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "archive.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return path


def test_a_password_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "pacs-archive"
    assert read_password(path) == ""
    path.write_text("secret\n")
    path.chmod(0o644)
    with pytest.raises(StorageError) as refused:
        read_password(path)
    assert "secret" not in str(refused.value)
    path.chmod(0o600)
    assert read_password(path) == "secret"
