"""The look of our pages, and the guard before those that are served."""

import math
import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from wardround import pages
from wardround.pages import Guard


def guarded(*names: str, host: str = "localhost") -> TestClient:
    app = FastAPI()

    @app.get("/")
    def page() -> str:
        return "inside"

    return TestClient(Guard(app, names), base_url=f"http://{host}", raise_server_exceptions=True)


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8445", "127.0.0.1:8445", "[::1]:8445", "10.1.2.3", "LOCALHOST."]
)
def test_our_own_names_and_addresses_pass(host: str) -> None:
    assert guarded().get("/", headers={"host": host}).text == '"inside"'


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "", "[localhost]x", "127.0.0.1@evil.example", "a b"],
)
def test_a_foreign_name_is_refused(host: str) -> None:
    """DNS rebinding: a web site's own name that is pointed to this machine."""
    answer = guarded().get("/", headers={"host": host})
    assert answer.status_code == 421
    assert "inside" not in answer.text


def test_a_name_that_was_given_passes() -> None:
    assert guarded("Fed.Example.org").get("/", headers={"host": "fed.example.org:80"}).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "FOO"])
def test_only_reading_is_allowed(method: str) -> None:
    answer = guarded().request(method, "/")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(("path", "host"), [("/", "localhost"), ("/nowhere", "localhost"), ("/", "evil.example")])
def test_every_answer_carries_the_headers(path: str, host: str) -> None:
    headers = guarded().get(path, headers={"host": host}).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "script-src" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"


def test_text_is_escaped_and_printable() -> None:
    assert pages.text("<b a='\"'>&\u202e\x00") == "&lt;b a=&#x27;&quot;&#x27;&gt;&amp;\ufffd\ufffd"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "just now"), (45, "45 seconds ago"), (60, "1 minute ago"), (7300, "2 hours ago"), (2e5, "2 days ago")],
)
def test_how_long_ago(seconds: float, text: str) -> None:
    assert pages.ago(seconds) == text


def test_what_is_not_known_is_a_dash() -> None:
    assert {pages.ago(math.nan), pages.moment(math.nan), pages.number(math.nan), pages.size(math.nan)} == {"–"}
    assert pages.ago(-5) == "in the future"
    assert pages.moment(0) == "1970-01-01 00:00 UTC"


def test_the_style_sheet_loads_nothing() -> None:
    assert "url(" not in pages.style()
    assert "@import" not in pages.style()


def _luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(sign * 2 for sign in digits) if len(digits) == 3 else digits
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    """WCAG 2.2, between 1 and 21."""
    light, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_of_black_and_white() -> None:
    assert contrast("#000", "#fff") == pytest.approx(21)


@pytest.mark.parametrize("palette", [0, 1], ids=["light", "dark"])
def test_texts_can_be_read(palette: int) -> None:
    """At least 4.5 for texts and 3 for lines of charts (WCAG 2.2, level AA), on every ground that they stand on."""
    found = re.findall(r":root\{([^}]*--paper[^}]*)\}", pages.style())
    colours = dict(re.findall(r"--(\w+):\s*(#[0-9a-f]+)", found[palette]))
    for ground in ("paper", "card", "tint"):
        for ink in ("ink", "muted", "accent", "good", "bad"):
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    hues = re.findall(r"\.s\d\{color:(#[0-9a-f]+)\}", pages.style())
    half = len(hues) // 2
    assert half == 6
    for hue in hues[palette * half : (palette + 1) * half]:
        assert contrast(hue, colours["card"]) >= 3, hue
