"""A site's clock beside the coordinator's."""

from email.utils import formatdate

import httpx
import pytest

from wardround.client.clock import blamed, fault, skew

NOON = 1_800_000_000.0


def refusal(status: int, **headers: str) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "https://fed.example.org/v1/fleet/pull-messages")
    return httpx.HTTPStatusError("refused", request=request, response=httpx.Response(status, headers=headers))


def test_the_skew_is_ours_minus_theirs() -> None:
    assert skew(formatdate(NOON, usegmt=True), NOON + 600.5) == pytest.approx(600)
    assert skew(formatdate(NOON, usegmt=True), NOON - 599.5) == pytest.approx(-600)


@pytest.mark.parametrize("date", ["", "noon", "Sun, 99 Foo 2026 00:00:00 GMT"])
def test_a_date_that_cannot_be_read_says_nothing(date: str) -> None:
    assert skew(date) is None
    assert fault(None) == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, ""), (4, ""), (-240, ""), (5, "5 s ahead of"), (600, "600 s ahead of"), (-241, "241 s behind")],
)
def test_a_clock_may_be_behind_by_minutes_and_ahead_by_seconds(seconds: float, words: str) -> None:
    assert fault(seconds) == (words and f"this machine's clock is {words} the coordinator's")


def test_the_clock_is_blamed_for_a_refused_signature_only() -> None:
    long_ago = formatdate(NOON - 10**9, usegmt=True)
    assert "ahead of the coordinator's" in blamed(refusal(401, date=long_ago))
    assert blamed(refusal(403, date=long_ago)) == ""
    assert blamed(refusal(401, date=formatdate(usegmt=True))) == ""
    assert blamed(refusal(401)) == ""
    assert blamed(httpx.ConnectError("refused")) == ""
