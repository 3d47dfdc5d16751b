"""With the hospital's own account from the login page to the work list, and from there into the viewer."""

from pathlib import Path

import pytest
from browser import chromium
from deployment import free_ports
from oidc import issuer
from workbench import FakeStudio, workbench
from workbench_page import SMALL, visiting

from wardround.client.home import SiteHome

PATIENCE = 90_000


def secret(home: SiteHome) -> None:
    home.keys.mkdir(exist_ok=True)
    home.oidc_secret.write_text("a secret of two\n")
    home.oidc_secret.chmod(0o600)


@pytest.mark.long
def test_a_hospital_account_leads_to_the_cases_and_into_the_viewer(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    viewer = tmp_path / "ohif"
    viewer.mkdir()
    (viewer / "index.html").write_text("<!doctype html><title>viewer</title>")
    with issuer() as service:
        service.put("eva", preferred_username="eva", groups=["doctors"])
        service.put("cook", preferred_username="cook", groups=["kitchen"])
        # By name the service is another site than the workbench by number: a strict cookie does not come along.
        settings = f"""ohif = "{viewer}"
[workbench.oidc]
issuer = "{service.url}"
client-id = "wardround"
url = "http://127.0.0.1:{port}"
title = "Hospital account"
passwords = false
[workbench.oidc.roles]
reviewer = ["doctors"]
"""
        more = {"cases": 1, "studio": FakeStudio, "settings": settings, "prepare": secret, "port": port}
        with (
            workbench(tmp_path / "home", **more) as bench,
            chromium() as browser,
            visiting(browser, bench, SMALL) as page,
        ):
            page.page.goto(bench.url)
            way = page.page.get_by_role("link", name="Sign in with Hospital account")
            way.wait_for(timeout=PATIENCE)
            assert not page.page.locator("#password").is_visible(), "passwords are good for nothing here"
            way.click()
            page.page.wait_for_url(f"{service.url}/**")
            page.page.locator("input[name=sub]").first.fill("cook")
            page.keys("Enter")
            page.until(lambda: "no role here" in page.text("#wrong"))
            page.page.get_by_role("link", name="Sign in with Hospital account").click()
            page.page.locator("input[name=sub]").first.fill("eva")
            page.keys("Enter")
            page.page.wait_for_selector("body[data-state=ready]", timeout=PATIENCE)
            assert "eva · reviewer" in page.text("#person")
            page.page.goto(bench.url)
            page.page.wait_for_selector("body[data-state=ready]", timeout=PATIENCE)
            with page.page.context.expect_page() as opened:
                page.page.get_by_role("link", name="OHIF").click()
            opened.value.wait_for_url(f"{bench.url}/ohif/")
            assert opened.value.title() == "viewer"
            assert opened.value.evaluate("opener") is None
            page.page.click("#leave")
            page.page.wait_for_selector("#other:not([hidden])", timeout=PATIENCE)
            page.page.goto(bench.url)
            page.page.wait_for_url(f"{bench.url}/login.html*")
