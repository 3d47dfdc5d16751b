"""What a site may say in an error reply: a closed list of words, so that no text of a patient can be one of them.

A coordinator writes such a word into its journal and its log; whatever else an error reply says is dropped. The gate of
a site has the same words with their meaning; a test holds the two lists against each other.
"""

import builtins
import re

from wardround import errors

SITE_ERROR = 100
"""Code of an error reply that the site itself gave; its reason is a word of this module or is not repeated."""

ABSENT_CODES = frozenset(
    {
        "paused",
        "left",
        "leaving",
        "stopped",
        "stopping",
        "busy",
        "timeout",
        "agent-unreachable",
        "restarted",
        "not-received",
        "incomplete",
        "app-crashed",
        "secure-unknown",
    }
)
"""The site could not take part, or its answer was lost on the way. It did nothing wrong and is asked again."""

BLAMED_CODES = frozenset({"app-raised", "internal", "other"})
"""Something failed at the site. With every other code it says no on purpose, which is its right."""

SITE_CODES = (
    ABSENT_CODES
    | BLAMED_CODES
    | frozenset(
        {
            "refused",
            "no-training-cases",
            "bundle-not-approved",
            "bundle-expired",
            "bundle-revoked",
            "bundle-hash",
            "bundle-too-large",
            "bundle-unreadable",
            "bundle-names",
            "bundle-links",
            "bundle-manifest",
            "bundle-code",
            "bundle-shadows",
            "approvals-unreadable",
            "policy-unreadable",
            "kind-not-allowed",
            "plan-invalid",
            "plan-model",
            "plan-supervision",
            "plan-rounds",
            "plan-updates",
            "plan-slices",
            "plan-annotation-rounds",
            "plan-batch",
            "plan-replay",
            "plan-synthesis",
            "plan-synthesis-side",
            "plan-knobs",
            "plan-control",
            "plan-deadline",
            "plan-privacy",
            "budget-spent",
            "budget-unreadable",
            "not-charged",
            "plan-secure",
            "secure-again",
            "secure-forgotten",
            "secure-keys",
            "secure-peer",
            "secure-range",
            "secure-session",
            "secure-set",
            "secure-signatures",
            "secure-too-few",
            "too-large",
            "too-few-cases",
            "integer-changed",
            "malformed",
            "label-error",
            "not-released",
            "ledger-damaged",
            "ledger-not-written",
        }
    )
)
"""Every code that the agent, the gate or the launcher of a site may answer with."""


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()


CLASS_CODES = {
    name: _kebab(name)
    for module in (errors, builtins)
    for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, Exception)
} | {"OutOfMemoryError": "out-of-memory-error"}
"""Names of the error classes that everybody has, and the words that a site's gate makes of them."""

_CLASSES = CLASS_CODES.keys() | set(CLASS_CODES.values())


def known(reason: str | None) -> str:
    """The reason itself if it is a code of a site, or an error class that everybody has; else nothing."""
    return reason if reason is not None and (reason in SITE_CODES or reason in _CLASSES) else ""
