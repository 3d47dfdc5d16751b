"""What a site tells in place of an answer: a number of Flower's or its own, and a code of a closed list."""

import logging
from dataclasses import dataclass
from typing import Final

from flwr.app import Error
from flwr.common.constant import ErrorCode

from wardround.client.gate import codes
from wardround.errors import ConnectionFailed, GateRefused

log = logging.getLogger(__name__)

SITE_ERROR = 100
"""Code of an error reply that the site gave on purpose."""
LOST = ErrorCode.CLIENT_APP_CRASHED
"""Code of an error reply for work that was lost on the way: whoever asks again gets an answer."""

RESTARTED: Final = "restarted"
NOT_RECEIVED: Final = "not-received"
INCOMPLETE: Final = "incomplete"
UNREADABLE: Final = "undecodable"
UNREACHABLE: Final = "agent-unreachable"
WITHHELD: Final = "not-released"
INTERNAL: Final = "internal"

_REASONS = {
    ErrorCode.LOAD_CLIENT_APP_EXCEPTION: "app-raised",
    ErrorCode.CLIENT_APP_RAISED_EXCEPTION: "app-raised",
    ErrorCode.CLIENT_APP_CRASHED: "app-crashed",
}
"""What is told where Flower, or the app, gave a text."""


class RefusedHere(GateRefused):
    """What the agent was not asked about, and therefore has not written down."""


@dataclass(frozen=True)
class Reason:
    """What an error reply says, and whether the agent knows of it already."""

    number: int
    code: str
    is_noted: bool = False


def reason_of(error: Exception) -> Reason:
    """What may be told of a failure to take a message."""
    if isinstance(error, GateRefused):
        number = ErrorCode.INVALID_FAB if error.code.startswith("bundle-") else SITE_ERROR
        return Reason(number, codes.safe_code(error.code), is_noted=not isinstance(error, RefusedHere))
    return Reason(LOST, UNREACHABLE if isinstance(error, ConnectionFailed) else NOT_RECEIVED)


def telling(error: Error) -> Reason:
    """What may be told of an app's error, also in the node's log: its text is the app's, and may name a patient."""
    if error.code == SITE_ERROR:
        found = Reason(SITE_ERROR, codes.safe_code(error.reason))
    elif error.code in _REASONS:
        found = Reason(error.code, _REASONS[error.code])
    else:
        found = Reason(SITE_ERROR, codes.OTHER)
    log.error("the app answered with error %d: %s", error.code, found.code)
    return found
