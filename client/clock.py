"""Whether a site's clock goes with the coordinator's.

What a site asks is signed with the time. Where that is off, the coordinator refuses it with 401, as it does for a key
that it does not know, and says no more.
"""

import time
from email.utils import parsedate_to_datetime

import httpx

AHEAD_S, BEHIND_S = 4.0, 240.0
"""A site's clock may be so far ahead of the coordinator's, and so far behind: Flower refuses beyond 5 s and 305 s."""


def skew(date: str, here: float | None = None) -> float | None:
    """Seconds that this machine's clock is ahead of who sent an HTTP header ``Date``; None if that cannot be read.

    Parameters
    ----------
    date
        The header.
    here
        What this machine's clock said when it was written; now, if None.
    """
    try:
        # The header is cut to whole seconds: on average half a second was lost.
        return (time.time() if here is None else here) - (parsedate_to_datetime(date).timestamp() + 0.5)
    except (ValueError, TypeError):
        return None


def fault(skew: float | None) -> str:
    """What is wrong with a clock that is so far ahead; empty if it is well, or not known."""
    if skew is None or -BEHIND_S <= skew <= AHEAD_S:
        return ""
    return f"this machine's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the coordinator's"


def blamed(error: Exception) -> str:
    """What is wrong with the clock if that is why the coordinator refused a request; empty for any other error."""
    if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == httpx.codes.UNAUTHORIZED:
        return fault(skew(error.response.headers.get("date", "")))
    return ""
