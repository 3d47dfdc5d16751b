"""The words that a coordinator repeats: those that a site's gate may say, and no others."""

from collections.abc import Callable

import pytest
from flwr.app import Error, Message

from wardround.client.gate import codes as gate
from wardround.strategies.codes import ABSENT_CODES, SITE_CODES, known
from wardround.strategies.contract import Weights
from wardround.strategies.validation import RefusedReply, ReplyLimits, absence, check_reply

Reply = Callable[..., Message]

# These go into the ledger only, or name a check of a reply that both sides know.
NEVER_SENT = {gate.ADMITTED, gate.RELEASED, gate.SENT, gate.CHARGED, gate.NOTED, gate.APPROVED, gate.REVOKED} | {
    "torn-line-dropped",
    "set-aside",
    "error-reply",
}
CHECKS = {"names", "shape", "dtype", "encoding", "not-finite", "metric", "norm", "num-examples", "undecodable"} | {
    "missing-record",
    "extra-record",
}


def test_what_a_gate_may_say_is_known_here() -> None:
    assert set(gate.MEANING) - NEVER_SENT - CHECKS <= SITE_CODES


@pytest.mark.parametrize(
    "reason", ["paused", "plan-model", "DataError", "ValueError", "OutOfMemoryError", "data-error"]
)
def test_known(reason: str) -> None:
    assert known(reason) == reason


@pytest.mark.parametrize("reason", [None, "", "john-doe", "JOHN_DOE", "JohnDoe", "paused ", "ValueError: JOHN DOE"])
def test_unknown(reason: str | None) -> None:
    assert known(reason) == ""


def refusal(message: Message, weights: Weights) -> RefusedReply:
    with pytest.raises(RefusedReply) as refused:
        check_reply(message, weights, ReplyLimits())
    return refused.value


@pytest.mark.parametrize(
    ("error", "site_code", "blameless"),
    [
        (Error(100, "plan-model"), "plan-model", True),
        (Error(7, "bundle-not-approved"), "bundle-not-approved", True),
        (Error(100, "internal"), "internal", False),
        (Error(2, "app-raised"), "app-raised", False),
        (Error(100, "DataError"), "", False),
        (Error(100, gate.safe_code("DataError")), "", False),
        (Error(100, gate.safe_code("NoTrainingCases")), "no-training-cases", True),
        (Error(100, gate.safe_code("LabelError")), "label-error", True),
        (Error(100, "john-doe"), "", False),
        (Error(5, "Node Unavailable"), "", True),
        (Error(8, "no such word"), "", True),
    ],
)
def test_who_is_to_blame(reply: Reply, weights: Weights, error: Error, site_code: str, blameless: bool) -> None:
    refused = refusal(reply(error=error), weights)
    assert (refused.code, refused.site_code, refused.blameless) == ("error-reply", site_code, blameless)
    assert "doe" not in str(refused)


def test_absence(reply: Reply) -> None:
    assert {absence(reply(error=Error(100, code))) for code in ABSENT_CODES} == ABSENT_CODES
    assert absence(reply(error=Error(8, "app-crashed"))) == "app-crashed"
    assert absence(reply(error=Error(100, "plan-model"))) == ""
    assert absence(reply()) == ""
