"""The reasons that the ledger and a coordinator may be told, as a closed list.

A code says which check failed and nothing about what was checked. Text from outside can therefore not travel in one:
whatever is not on the list becomes :data:`OTHER`.
"""

from typing import get_args

from wardround.strategies import validation
from wardround.strategies.codes import CLASS_CODES

OTHER = "other"
"""Stands for a code that is not on the list."""

ADMITTED = "admitted"
"""A message, or a bundle, came in."""
RELEASED = "released"
"""An answer was checked and may leave, once."""
SENT = "sent"
"""A released answer was handed over to be sent."""

CHARGED = "charged"
"""Steps were charged to the privacy budget; they are taken now."""

NOTED = "secure-noted"
"""What must outlast a restart of secure aggregation was written into the site's book of it."""

APPROVED = "approved"
"""Somebody at the site let a bundle run."""
REVOKED = "revoked"
"""Somebody at the site took that back."""

_BUNDLE = {
    "bundle-not-approved": "nobody has approved this bundle",
    "bundle-expired": "the approval of this bundle is over",
    "bundle-revoked": "the approval of this bundle was taken back",
    "bundle-hash": "the bundle is not the one that was named",
    "bundle-too-large": "the bundle, or what it unpacks to, is too large",
    "bundle-unreadable": "the bundle is not a plain archive",
    "bundle-names": "a name in the bundle leads elsewhere, is odd or stands twice",
    "bundle-links": "the bundle holds something that is not a plain file",
    "bundle-manifest": "the bundle's own list of its files is not true",
    "bundle-code": "the bundle brings code, and was not approved with it",
    "bundle-shadows": "the bundle brings a package that would replace an installed one",
    "approvals-unreadable": "the site's list of approvals cannot be read",
}
_PLAN = {
    "plan-invalid": "the plan is not one of this version",
    "plan-model": "the policy does not name the plan's model",
    "plan-supervision": "the policy does not allow this kind of supervision",
    "plan-rounds": "the plan asks for more rounds than the policy allows",
    "plan-updates": "the plan asks for more updates a case than the policy allows",
    "plan-slices": "the plan asks for more drawn slices a case than the policy allows",
    "plan-annotation-rounds": "the plan asks for more annotation rounds than the policy allows",
    "plan-batch": "the plan asks for larger batches than the policy allows",
    "plan-replay": "the plan asks to keep more cases than the policy allows",
    "plan-synthesis": "the plan asks for more steps of a generator than the policy allows",
    "plan-synthesis-side": "the plan asks for a finer grid of a generator than the policy allows",
    "plan-knobs": "the plan has a generator's settings travel, which the policy does not allow",
    "plan-control": "the plan has mean gradients travel, which the policy does not allow",
    "plan-deadline": "the plan's deadline is longer than the policy allows",
    "kind-not-allowed": "the policy does not allow this kind of message",
    "policy-unreadable": "the site's policy cannot be read, or contradicts itself",
}
_CONTENT = {
    "too-large": "the arrays are larger than the policy allows",
    "names": "arrays are missing or unknown, or their names are odd",
    "shape": "an array has another shape",
    "dtype": "an array has another type of number",
    "encoding": "an array's bytes are not what it declares",
    "not-finite": "an array holds NaN or infinity",
    "missing-record": "a record is missing",
    "extra-record": "there is a record that nobody asked for",
    "metric": "a metric is not on the list, or its value is out of range",
    "num-examples": "the number of examples is missing or is not that of the cases",
    "norm": "the weights moved further than the policy allows",
    "integer-changed": "an array of integers changed",
    "too-few-cases": "fewer cases than the policy asks for stand behind it",
    "undecodable": "it cannot be read at all",
    "malformed": "it is not built as agreed",
    "not-released": "it was not released, was changed since, or was sent already",
}
_SECURE = {
    "plan-secure": "the policy lets updates leave only under secure aggregation",
    "secure-forgotten": "what the site noted of secure aggregation is missing, damaged or older than its ledger",
    "secure-again": "the site was asked something else before in this secure aggregation",
    "secure-keys": "keys or shares of another site are not what they should be",
    "secure-peer": "another site is unknown, or has another key than it is known by",
    "secure-range": "the update does not fit into the numbers of secure aggregation",
    "secure-session": "this secure aggregation is not the one that the site takes part in",
    "secure-set": "a sum over other sites was made known in this round",
    "secure-signatures": "not enough other sites agree on who is in the sum",
    "secure-too-few": "too few sites are left for a sum",
    "secure-unknown": "the site holds no update for this secure aggregation, as after a restart",
}
_PRIVACY = {
    "plan-privacy": "the policy has a privacy budget, and the plan does not keep cases private",
    "budget-spent": "the steps would cost more than is left of the privacy budget",
    "budget-unreadable": "what was spent of the privacy budget is not known",
    "not-charged": "the round was not charged to the privacy budget",
}
_LEDGER = {
    "torn-line-dropped": "the last line was torn by a crash and was dropped",
    "set-aside": "the ledger before this one was set aside",
    "ledger-damaged": "the ledger is not whole",
    "ledger-not-written": "the ledger cannot be written",
}
_SITE = {
    "refused": "refused",
    "paused": "the site is paused",
    "leaving": "the site has left",
    "busy": "the site is busy",
    "stopped": "the agent was stopped",
    "timeout": "it took too long",
    "agent-unreachable": "the agent does not answer",
    "restarted": "the SuperNode was started again before it answered",
    "not-received": "a message came, and parts of it did not",
    "incomplete": "the courier ended while it handed its answer over",
    "app-raised": "the courier failed",
    "app-crashed": "the courier's process ended",
    "no-training-cases": "there is nothing to learn from",
    "label-error": "a label at the site holds structures that the plan does not know",
    "error-reply": "the answer was an error",
    "internal": "something failed at the site; its log says what",
    OTHER: "a reason that is not on the list",
}

MEANING = {
    ADMITTED: "came in",
    RELEASED: "checked; may leave, once",
    SENT: "handed over to be sent",
    CHARGED: "steps were charged to the privacy budget",
    NOTED: "keys of other sites, or a sum that is about to be made known, were written into secure.json",
    APPROVED: "somebody at the site let this bundle run",
    REVOKED: "somebody at the site took the approval of this bundle back",
    **_BUNDLE,
    **_PLAN,
    **_CONTENT,
    **_SECURE,
    **_PRIVACY,
    **_LEDGER,
    **_SITE,
}
"""Every code, with what it means."""


CODES = frozenset(MEANING) | frozenset(get_args(validation.Code)) | frozenset(CLASS_CODES.values())
"""What may stand in the ledger: the keys of :data:`MEANING`, and names of error classes such as ``data-error``."""


def safe_code(code: object) -> str:
    """The code itself if it is on the list, the code of an error class for its name, and otherwise :data:`OTHER`.

    Examples
    --------
    >>> safe_code("paused"), safe_code("DataError"), safe_code("cannot read /data/DOE_JOHN.nii.gz")
    ('paused', 'data-error', 'other')
    """
    if not isinstance(code, str):
        return OTHER
    return code if code in CODES else CLASS_CODES.get(code, OTHER)


def describe(code: str) -> str:
    """What a code means, in one phrase; the code itself where it is the name of an error class."""
    return MEANING.get(code, code)
