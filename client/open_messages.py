"""Messages that a SuperNode took and has not answered: what a killed one left open is answered by the next."""

import hashlib
import logging
from pathlib import Path

from flwr.app import Message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage

from wardround.errors import StorageError, for_log
from wardround.files import write_bytes

log = logging.getLogger(__name__)


class OpenMessages:
    """Messages that were taken and not answered yet: in memory, and on the disk for the next process.

    Parameters
    ----------
    folder
        One file a message: its metadata, no content.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, Message] = {}

    def add(self, message: Message) -> None:
        """Write down that `message` was taken."""
        name = message.metadata.message_id
        self._open[name] = message
        try:
            write_bytes(self._path(name), message_to_proto(message).SerializeToString())
        except StorageError as error:
            # It is worked on nevertheless. Only a kill of this process would now leave it without an answer.
            log.error("%s", error)

    def strike(self, name: str) -> None:
        """Its answer is away, or nobody waits for one any more."""
        self._open.pop(name, None)
        self._path(name).unlink(missing_ok=True)

    def find(self, name: str) -> Message | None:
        """The message of that name, if it is open."""
        return self._open.get(name)

    def read(self) -> list[Message]:
        """What a former process left open; from now on it is open here."""
        for path in sorted(self._folder.glob("*.pb")):
            try:
                message = message_from_proto(ProtoMessage.FromString(path.read_bytes()))
            except Exception as error:  # noqa: BLE001
                # Written by us and renamed into place: only a failing disk leads here. Nobody can be answered then.
                log.error("a note of an open message cannot be read; it is dropped: %s", for_log(error))
                path.unlink(missing_ok=True)
            else:
                self._open[message.metadata.message_id] = message
        return list(self._open.values())

    def _path(self, name: str) -> Path:
        # Names come from the coordinator; those of files do not.
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()}.pb"
