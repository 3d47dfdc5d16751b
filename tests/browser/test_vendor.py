"""What others wrote and we serve is what they published, and is shipped with its licence."""

import hashlib
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

STATIC = Path(__file__).parents[2] / "client" / "workbench" / "static"
VENDOR = STATIC / "vendor"


def test_the_bundle_is_the_one_that_was_published() -> None:
    told = (VENDOR / "README.md").read_text()
    bundles = sorted(VENDOR.glob("*.js"))
    assert [bundle.name for bundle in bundles] == ["niivue-0.69.0.umd.js"]
    digest = hashlib.sha256(bundles[0].read_bytes()).hexdigest()
    assert digest == "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
    assert digest in told
    assert "BSD 2-Clause License" in told
    assert "Redistributions in binary form" in told
    assert bundles[0].name in (STATIC / "index.html").read_text()


def test_the_page_is_shipped() -> None:
    project = tomllib.loads((STATIC.parents[2] / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["wardround.client.workbench"]
    for file in (file for file in STATIC.rglob("*") if file.is_file()):
        name = file.relative_to(STATIC.parent).as_posix()
        assert any(fnmatch(name, pattern.replace("**/", "")) for pattern in patterns), name


def test_nothing_comes_from_elsewhere_and_nothing_is_written_as_html() -> None:
    ours = [file for file in STATIC.rglob("*") if file.is_file() and file.parent != VENDOR]
    assert len(ours) > 15
    for file in ours:
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//cdn|@import", text), file.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
        if file.suffix == ".html":
            assert not re.search(r"<script(?![^>]*\ssrc=)|\son[a-z]+=|\sstyle=|<style", text), file.name
        assert not re.search(r"localStorage|sessionStorage|indexedDB", text), file.name
