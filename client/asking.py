"""What a SuperNode asks the agent of its site: may this run, may this leave, and write down that an error does."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Message

from wardround.client import wire

_ROUND = re.compile(r"[0-9]{1,9}")


@dataclass
class Agent:
    """What the SuperNode asks the agent.

    Parameters
    ----------
    socket
        Where it listens.
    """

    socket: Path

    def admit_app(self, sha256: str, bundle: bytes | None) -> None:
        """Ask whether an app may run here; `bundle` is None where its bytes were shown before.

        Raises
        ------
        GateRefused
            If it may not.
        """
        arrays = {} if bundle is None else {"fab": wire.raw(bundle)}
        wire.ask(self.socket, {"op": "admit-app", "sha256": sha256}, arrays)

    def released(self, content: str, asked: Message) -> bool:
        """Ask whether an answer of that digest was released for such a message as `asked`, and not sent yet."""
        kind = asked.metadata.message_type.partition(".")[0]
        header: dict[str, Any] = {"op": "released", "digest": content, "kind": kind}
        if kind != "query" and _ROUND.fullmatch(asked.metadata.group_id):
            header["round"] = int(asked.metadata.group_id)
        answer, _ = wire.ask(self.socket, header)
        return answer.get("released") is True

    def note_error(self, code: str) -> None:
        """Tell it that an error leaves in place of an answer."""
        wire.ask(self.socket, {"op": "note-error", "code": code})
