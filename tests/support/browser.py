"""A real browser for tests: Debian's Chromium without a screen, with WebGL 2 computed by the processor."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BINARY = Path("/usr/bin/chromium")
ARGUMENTS = (
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--use-gl=angle",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
)


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser (of ``playwright.sync_api``) that runs as long as the block lasts; skips where there is none."""
    if not BINARY.exists():
        pytest.skip("Chromium is not installed (Debian: apt install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as session:
        browser = session.chromium.launch(executable_path=str(BINARY), args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()
