"""Where images arrive that an archive was asked to send by C-MOVE: a storage SCP, for as long as one pull lasts.

It listens on the address by which the archive is reached, takes connections from the archive's address only, and of
these the associations only that name both titles as site.toml does. What arrives is believed in nothing: see
:class:`~wardround.client.cases.dicom.archives.Intake`.
"""

import errno
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from socketserver import BaseServer
from typing import Any

from pydicom.uid import AllTransferSyntaxes, DeflatedExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification
from pynetdicom.transport import ThreadedAssociationServer

from wardround.client.cases.dicom.allowance import Allowance
from wardround.client.cases.dicom.kinds import VOLUME_CLASSES
from wardround.errors import ConnectionFailed, UsageError

IMAGES = tuple(one for one in AllTransferSyntaxes if one != DeflatedExplicitVRLittleEndian)
"""Transfer syntaxes in which images are taken."""
_HANDSHAKE_S = 10.0
_MOST_AT_ONCE = 8


@dataclass(frozen=True)
class Place:
    """Where we listen, under which title, and for whom: address, title, and the port that tells us the way there."""

    port: int
    title: str
    host: str
    caller: str
    caller_port: int


def watched(allowance: Allowance) -> Callable[[evt.Event], None]:
    """A handler of ``EVT_CONN_OPEN`` by which a connection counts, and is cut, as the allowance says."""

    def opened(event: evt.Event) -> None:
        connection = event.assoc.dul.socket
        receive = connection.recv
        allowance.watch(connection.socket)

        def counted(count: int) -> bytearray:
            # So many as the other side says that it will send: before room is made for them.
            allowance.got(count)
            return bytearray(receive(count))

        connection.recv = counted

    return opened


@contextmanager
def reception(
    place: Place, take: Callable[[evt.Event], int], allowance: Allowance, tls: ssl.SSLContext | None
) -> Iterator[None]:
    """Listen as long as the block lasts.

    Parameters
    ----------
    take
        Is given every image, one after the other, and answers with its status.
    tls
        None for none.

    Raises
    ------
    ConnectionFailed
        If the archive's name has no address.
    UsageError
        If the port is taken.
    """
    one_by_one = threading.Lock()

    def take_one(event: evt.Event) -> int:
        with one_by_one:
            return take(event)

    unit = AE(place.title)
    unit.maximum_associations = _MOST_AT_ONCE
    unit.acse_timeout = 30
    unit.dimse_timeout = unit.network_timeout = 60
    unit.require_called_aet = True
    unit.require_calling_aet = [place.caller] if place.caller else []
    unit.add_supported_context(Verification)
    for kind in sorted(VOLUME_CLASSES):
        unit.add_supported_context(kind, list(IMAGES))
    own, callers = _addresses(place)
    try:
        server = unit.make_server(
            (own, place.port),
            ssl_context=tls,
            evt_handlers=[(evt.EVT_CONN_OPEN, watched(allowance)), (evt.EVT_C_STORE, take_one)],
            server_class=_ForOne,
            callers=callers,
        )
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        raise UsageError(
            f"cannot listen on port {place.port}",
            "another process does" if taken else error.strerror or type(error).__name__,
            "give another `move-port` in site.toml, and tell those who run the archive",
        ) from error
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="reception", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.stop()
        thread.join()


class _ForOne(ThreadedAssociationServer):  # type: ignore[misc]
    """Lets nobody in but one archive."""

    daemon_threads = True

    def __init__(self, *args: Any, callers: frozenset[str], **options: Any) -> None:
        self._callers = callers
        super().__init__(*args, **options)

    def get_request(self) -> tuple[socket.socket, Any]:
        """The next connection. An OSError is what the server goes on after."""
        client, address = self.socket.accept()
        try:
            if address[0] not in self._callers:
                raise ConnectionRefusedError(errno.ECONNREFUSED, "not the archive")
            client.settimeout(_HANDSHAKE_S)
            if self.ssl_context is not None:
                client = self.ssl_context.wrap_socket(client, server_side=True)
            client.settimeout(self.ae.network_timeout)
        except OSError:
            client.close()
            raise
        return client, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: what happened names the caller."""

    def stop(self) -> None:
        """Listen no longer; whoever still sends is cut off."""
        # Not ThreadedAssociationServer's own, which looks for it among servers that were started in another way.
        BaseServer.shutdown(self)
        self.server_close()
        for association in self.active_associations:
            association.abort(block=False)


def _addresses(place: Place) -> tuple[str, frozenset[str]]:
    """The address by which we reach the archive, and those from which it may call."""
    try:
        found = socket.getaddrinfo(place.host, place.caller_port, type=socket.SOCK_DGRAM)
        with socket.socket(found[0][0], socket.SOCK_DGRAM) as probe:
            # Sends nothing: it only looks for the way.
            probe.connect(found[0][4])
            own = str(probe.getsockname()[0])
    except OSError:
        raise ConnectionFailed(
            "the archive has no address", "its name is not known, or there is no way to it", "check `host` in site.toml"
        ) from None
    return own, frozenset(str(one[4][0]) for one in found)
