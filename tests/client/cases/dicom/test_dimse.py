"""DIMSE where it is hard: archives that call back, TLS on both sides, objects without end, and strangers."""

import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from io import BytesIO
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
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelGet, StudyRootQueryRetrieveInformationModelMove

from wardround.client.cases.dicom.allowance import Allowance
from wardround.client.cases.dicom.archives import PullLimits, RemoteSeries, Wanted
from wardround.client.cases.dicom.dimse import Dimse
from wardround.client.cases.dicom.importing import read_series
from wardround.client.cases.dicom.reception import Place, reception
from wardround.client.cases.dicom.register import Register
from wardround.client.cases.dicom.segmentation import Origin, write_seg
from wardround.client.cases.dicom.segments import read_seg
from wardround.client.cases.dicom.series import find_series
from wardround.client.cases.dicom.tls import make_contexts
from wardround.client.home import PacsSettings, SiteHome
from wardround.errors import ConnectionFailed, DataError, StorageError, UsageError, WardroundError

SERIES = ct_series((32, 28, 8))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def remote(series: Series) -> RemoteSeries:
    return RemoteSeries(series.study, series.series, "CT", "", len(series.files))


@contextmanager
def archive(title: str, port: int, *, tls: bool = False, get: bool = True, **more: Any) -> Iterator[Orthanc]:
    """An Orthanc with the series, which knows one site."""
    site = {"AET": title, "Host": "127.0.0.1", "Port": port, "UseDicomTls": tls, "AllowGet": get}
    with orthanc(DicomModalities={"site": site}, **more) as pacs:
        for one in SERIES.files:
            pacs.upload(one)
        yield pacs


def settings(pacs: Orthanc, port: int, **more: Any) -> PacsSettings:
    return PacsSettings(
        name="old", aet=pacs.aet, host="127.0.0.1", dimse_port=pacs.dimse_port, our_aet="NORTH", move_port=port, **more
    )


@pytest.fixture(scope="module")
def called_back() -> Iterator[tuple[Orthanc, int]]:
    """An archive that sends to us what we ask it to move; C-GET it does not know."""
    port = free_port()
    with archive("NORTH", port, get=False, DicomAlwaysAllowGet=False) as pacs:
        yield pacs, port


def test_a_series_comes_by_move_where_the_archive_does_not_know_get(
    called_back: tuple[Orthanc, int], tmp_path: Path
) -> None:
    pacs, port = called_back
    link = Dimse(settings(pacs, port))
    (found,) = link.find(Wanted(series_uid=SERIES.series))
    seen: list[int] = []
    assert link.pull(found, tmp_path, lambda done, _: seen.append(done)) == len(SERIES.files)
    assert seen == list(range(1, len(SERIES.files) + 1))
    with Register(tmp_path / "register") as register:
        image, _ = read_series(register, find_series(tmp_path).volumes[0])
    assert (image.array == SERIES.volume.array).all()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    with pytest.raises(WardroundError):
        Dimse(settings(pacs, 0)).pull(found, tmp_path)


def test_a_title_that_the_archive_does_not_know_is_told(called_back: tuple[Orthanc, int], tmp_path: Path) -> None:
    pacs, port = called_back
    with pytest.raises(DataError, match="refused the images"):
        Dimse(settings(pacs, port).model_copy(update={"our_aet": "SOUTH"})).pull(remote(SERIES), tmp_path)


def test_what_is_too_much_is_given_up_while_it_is_moved(called_back: tuple[Orthanc, int], tmp_path: Path) -> None:
    pacs, port = called_back
    for limits, said in (
        (PullLimits(instances=3), "more than is taken"),
        (PullLimits(object_bytes=1000), "more than is taken"),
        (PullLimits(seconds=-1.0), "did not end in time"),
    ):
        with pytest.raises(WardroundError, match=said):
            Dimse(settings(pacs, port), limits=limits).pull(remote(SERIES), tmp_path)
    assert Dimse(settings(pacs, port)).pull(remote(SERIES), tmp_path) == len(SERIES.files), "and nothing listens on"


def test_a_port_that_is_taken_is_told(called_back: tuple[Orthanc, int], tmp_path: Path) -> None:
    pacs, _ = called_back
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(UsageError, match="cannot listen"):
            Dimse(settings(pacs, other.getsockname()[1])).pull(remote(SERIES), tmp_path)


# --- an archive of ours, which does what no archive should --------------------------------------------------------


@dataclass
class Strange:
    """Answers C-GET and C-MOVE as a test wants; stops sending when it is cut off."""

    get: Any = None
    move: Any = None
    sent: int = 0
    cut: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    def __enter__(self) -> "Strange":
        unit = AE("STRANGE")
        unit.add_supported_context(StudyRootQueryRetrieveInformationModelMove)
        if self.get is not None:
            unit.add_supported_context(StudyRootQueryRetrieveInformationModelGet)
        unit.add_supported_context(CTImageStorage, scu_role=True, scp_role=True)
        handlers = [(evt.EVT_C_GET, lambda event: self.get(self, event))]
        handlers.append((evt.EVT_C_MOVE, lambda event: self.move(self, event)))
        self._server = unit.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        assert self._server is not None
        self.port = self._server.server_address[1]
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self.cut.set()
        self._server.shutdown()

    def send(self, event: Any, data: bytes) -> bool:
        """Bytes as they are; whether they were taken."""
        try:
            event.assoc.dul.socket.socket.sendall(data)
        except OSError:
            self.cut.set()
            return False
        self.sent += len(data)
        return True

    def settings(self, **more: Any) -> PacsSettings:
        return PacsSettings(name="old", aet="STRANGE", host="127.0.0.1", dimse_port=self.port, **more)


def announcement(event: Any) -> tuple[int, bytes]:
    """The message that says that an image follows, and the context it is sent in."""
    (context,) = (one for one in event.assoc.accepted_contexts if one.abstract_syntax == CTImageStorage)
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = CTImageStorage, "1.2.3"
    request.DataSet = BytesIO(b"\0" * 8)
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    pdu = P_DATA_TF()
    pdu.from_primitive(next(iter(message.encode_msg(context.context_id, 16382))))
    return context.context_id, pdu.encode()


def fragment(context: int, size: int = 16376) -> bytes:
    """A piece of an image, which is never the last one."""
    inner = bytes([context, 0]) + b"\0" * size
    value = len(inner).to_bytes(4, "big") + inner
    return b"\x04\0" + len(value).to_bytes(4, "big") + value


MOST = 256 << 20


def endless(strange: Strange, event: Any) -> Iterator[Any]:
    context, first = announcement(event)
    piece = fragment(context)
    strange.send(event, first)
    while strange.sent < MOST and strange.send(event, piece):
        pass
    yield 1
    yield 0xA700, None


def huge(strange: Strange, event: Any) -> Iterator[Any]:
    """One piece that says that it is as long as a piece can be."""
    _, first = announcement(event)
    strange.send(event, first + b"\x04\0" + (0xFFFFFFF0).to_bytes(4, "big"))
    while strange.sent < MOST and strange.send(event, b"\0" * 65536):
        pass
    yield 1
    yield 0xA700, None


def dripping(strange: Strange, event: Any) -> Iterator[Any]:
    context, first = announcement(event)
    strange.send(event, first)
    data = fragment(context, 2000)
    for at in range(len(data)):
        if strange.cut.wait(0.02) or not strange.send(event, data[at : at + 1]):
            break
    yield 1
    yield 0xA700, None


@pytest.mark.parametrize("way", [endless, huge])
def test_an_object_without_end_fills_no_memory(way: Any, tmp_path: Path) -> None:
    with Strange(get=way) as strange:
        with pytest.raises(DataError, match="more than is taken"):
            Dimse(strange.settings(), limits=PullLimits(object_bytes=2 << 20)).pull(remote(SERIES), tmp_path)
        assert strange.cut.wait(30)
        assert strange.sent < 64 << 20


def test_an_archive_that_sends_a_byte_now_and_then_is_given_up(tmp_path: Path) -> None:
    with Strange(get=dripping) as strange:
        with pytest.raises(ConnectionFailed, match="did not end in time"):
            Dimse(strange.settings(), limits=PullLimits(seconds=0.7)).pull(remote(SERIES), tmp_path)
        assert strange.cut.wait(30)
        assert strange.sent < 2000


def test_whoever_knows_no_get_is_told_of_move(tmp_path: Path) -> None:
    with Strange() as strange, pytest.raises(DataError, match="move-port"):
        Dimse(strange.settings()).pull(remote(SERIES), tmp_path)


def calling(
    port: int,
    *,
    title: str = "STRANGE",
    called: str = "NORTH",
    source: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
) -> str:
    """Send an image to us as somebody; what came of it."""
    unit = AE(title)
    unit.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    more = {} if tls is None else {"tls_args": (tls, "127.0.0.1")}
    link = unit.associate("127.0.0.1", port, ae_title=called, bind_address=(source, 0), **more)
    if not link.is_established:
        return "refused"
    status = link.send_c_store(dcmread(BytesIO(SERIES.files[0])))
    link.release()
    return "taken" if status.get("Status") == 0 else "not taken"


def test_nobody_but_the_archive_may_send(tmp_path: Path) -> None:
    port, came = free_port(), {}

    def move(strange: Strange, event: Any) -> Iterator[Any]:
        came["a stranger's address"] = calling(port, source="127.0.0.2")
        came["another title"] = calling(port, title="OTHER")
        came["for another"] = calling(port, called="SOUTH")
        came["the archive"] = calling(port)
        yield None, None

    with Strange(move=move) as strange, pytest.raises(DataError):
        Dimse(strange.settings(our_aet="NORTH", move_port=port)).pull(remote(SERIES), tmp_path)
    assert came == {
        "a stranger's address": "refused",
        "another title": "refused",
        "for another": "refused",
        "the archive": "taken",
    }
    assert len(list(tmp_path.iterdir())) == 1


def test_an_image_that_was_not_asked_for_is_not_taken(tmp_path: Path) -> None:
    port, came = free_port(), {}

    def move(strange: Strange, event: Any) -> Iterator[Any]:
        came["other"] = calling(port)
        yield None, None

    with Strange(move=move) as strange, pytest.raises(DataError, match="not asked for"):
        Dimse(strange.settings(our_aet="NORTH", move_port=port)).pull(
            RemoteSeries(SERIES.study, "1.2.3.4", "CT", "", 1), tmp_path
        )
    assert list(tmp_path.iterdir()) == []


# --- TLS ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Papers:
    """An authority, and certificate and key of one machine."""

    authority: Path
    certificate: Path
    key: Path


def papers(folder: Path, *names: str) -> dict[str, Papers]:
    """Of several machines, all of one authority."""
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)

    def made(name: str, key: Any, issuer: Any, signer: Any) -> Any:
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        own = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        return (
            x509.CertificateBuilder(issuer or subject, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(own, critical=False)
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
            .sign(signer, hashes.SHA256())
        )

    def written(path: Path, data: bytes) -> Path:
        path.touch(0o600)
        path.write_bytes(data)
        return path

    pem = serialization.Encoding.PEM
    root = ec.generate_private_key(ec.SECP256R1())
    authority = made("authority", root, None, root)
    ca = written(folder / "authority.crt", authority.public_bytes(pem))
    found = {}
    for name in names:
        key = ec.generate_private_key(ec.SECP256R1())
        secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        certificate = made(name, key, authority.subject, root).public_bytes(pem)
        found[name] = Papers(ca, written(folder / f"{name}.crt", certificate), written(folder / f"{name}.key", secret))
    return found


def test_everything_over_tls(tmp_path: Path) -> None:
    made = papers(tmp_path / "papers", "archive", "site")
    theirs, ours, port = made["archive"], made["site"], free_port()
    home = SiteHome(tmp_path / "home")
    home.keys.mkdir(parents=True)
    (home.keys / "pacs-old.crt").write_bytes(ours.authority.read_bytes())
    tls = {
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(theirs.certificate),
        "DicomTlsPrivateKey": str(theirs.key),
        "DicomTlsTrustedCertificates": str(theirs.authority),
    }
    with archive("NORTH", port, tls=True, **tls) as pacs:
        shown = {"dimse_tls": True, "certificate": str(ours.certificate), "key": str(ours.key)}
        secure = settings(pacs, port, **shown)
        link = Dimse(secure, tls=make_contexts(secure, home))
        link.echo()
        (found,) = link.find(Wanted(series_uid=SERIES.series))
        for name, one in (("move", secure), ("get", secure.model_copy(update={"move_port": 0}))):
            folder = tmp_path / name
            folder.mkdir()
            assert Dimse(one, tls=make_contexts(one, home)).pull(found, folder) == len(SERIES.files)
        with Register(tmp_path / "register") as register:
            image, source = read_series(register, find_series(tmp_path / "move").volumes[0])
        labels = image.with_array((image.array > 200).astype(np.uint8))
        before = set(pacs.instances())
        link.store(write_seg(source, labels, ["ball"], Origin("MANUAL", "ann", "", 0, datetime(2026, 3, 1))))
        (new,) = set(pacs.instances()) - before
        assert (read_seg(dcmread(BytesIO(pacs.file(new))), image).array == labels.array).all()
        with pytest.raises(ConnectionFailed):
            Dimse(settings(pacs, 0)).echo()
        nobody = settings(pacs, 0, dimse_tls=True)
        with pytest.raises(ConnectionFailed):
            Dimse(nobody, tls=make_contexts(nobody, home)).echo()
        foreign = papers(tmp_path / "foreign", "archive")["archive"]
        other = secure.model_copy(update={"authority": str(foreign.authority)})
        with pytest.raises(ConnectionFailed):
            Dimse(other, tls=make_contexts(other, home)).echo()


def test_a_stranger_without_our_authoritys_certificate_may_not_send(tmp_path: Path) -> None:
    """From the archive's address and with both titles right."""
    made, other = papers(tmp_path / "papers", "archive", "site"), papers(tmp_path / "foreign", "archive")["archive"]
    ours, port, came = made["site"], free_port(), list[bytes]()
    settings = PacsSettings(
        name="old", aet="STRANGE", our_aet="NORTH", host="127.0.0.1", dimse_port=1, dimse_tls=True, move_port=port,
        authority=str(ours.authority), certificate=str(ours.certificate), key=str(ours.key),
    )  # fmt: skip
    place = Place(port, "NORTH", "127.0.0.1", "STRANGE", 1)

    def take(event: evt.Event) -> int:
        came.append(event.encoded_dataset())
        return 0

    def showing(shown: Papers | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(ours.authority))
        if shown is not None:
            context.load_cert_chain(shown.certificate, shown.key)
        return context

    with (
        Allowance(1 << 24, 60) as allowance,
        reception(place, take, allowance, make_contexts(settings, SiteHome(tmp_path / "home")).serving),
    ):
        assert calling(port) == "refused", "without TLS"
        assert calling(port, tls=showing(None)) == "refused", "without a certificate"
        assert calling(port, tls=showing(other)) == "refused", "with one of another authority"
        assert came == []
        assert calling(port, tls=showing(made["archive"])) == "taken"
    assert len(came) == 1


def test_certificates_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    made = papers(tmp_path, "site")["site"]
    home = SiteHome(tmp_path / "home")
    good = PacsSettings(
        name="old", aet="A", host="127.0.0.1", dimse_port=1, dimse_tls=True, move_port=2,
        authority=str(made.authority), certificate=str(made.certificate), key=str(made.key),
    )  # fmt: skip
    contexts = make_contexts(good, home)
    assert contexts.serving.verify_mode is contexts.calling.verify_mode is ssl.CERT_REQUIRED
    assert contexts.calling.check_hostname
    for change, error in (
        ({"key": ""}, UsageError),
        ({"key": "", "certificate": ""}, UsageError),
        ({"authority": ""}, StorageError),
        ({"authority": str(made.key)}, StorageError),
        ({"certificate": str(tmp_path / "none")}, StorageError),
    ):
        with pytest.raises(error):
            make_contexts(good.model_copy(update=change), home)
    made.key.chmod(0o644)
    with pytest.raises(StorageError, match="read by others"):
        make_contexts(good, home)
    with pytest.raises(UsageError):
        Dimse(good)
