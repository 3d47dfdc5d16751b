"""Whoever opens the viewer without a session signs in on our page and comes back, and is led to no other site."""

from pathlib import Path

from browser import chromium
from deployment import free_ports
from oidc import issuer
from played_studio import played_workbench
from workbench import password

from wardround.client.home import SiteHome

VIEW = "/ohif/viewer?StudyInstanceUIDs=1.2&x=%26"


def test_from_the_viewer_to_the_login_page_and_back(tmp_path: Path) -> None:
    viewer = tmp_path / "ohif"
    viewer.mkdir()
    (viewer / "index.html").write_text("<!doctype html><title>viewer</title>")
    with played_workbench(tmp_path / "home", settings=f'ohif = "{viewer}"\n') as bench, chromium() as browser:
        for start, end in (
            (VIEW, VIEW),
            ("/login.html?next=https%3A%2F%2Fexample.org%2Fohif%2F", "/"),
            ("/login.html?next=%2F%2Fexample.org%2Fohif%2F", "/"),
            ("/login.html?next=%2F%5Cexample.org%2Fohif%2F", "/"),
            ("/login.html?next=%2Fohif%2F..%2Fapi%2Fv1%2Fsite", "/"),
            ("/login.html?next=javascript%3Aalert(1)", "/"),
        ):
            page = browser.new_context().new_page()
            page.goto(bench.url + start)
            page.locator("#name").fill("ann")
            page.locator("#password").fill(password("ann"))
            page.locator("#form button:enabled").click()
            page.wait_for_url(bench.url + end)
            if end == VIEW:
                assert page.title() == "viewer"
                # With a cookie that the first request did not carry, nobody is asked again.
                page.goto(f"{bench.url}/login.html?next=%2Fohif%2F")
                page.wait_for_url(f"{bench.url}/ohif/")
            page.context.close()


def test_from_the_viewer_to_the_hospitals_own_service_and_back(tmp_path: Path) -> None:
    viewer = tmp_path / "ohif"
    viewer.mkdir()
    (viewer / "index.html").write_text("<!doctype html><title>viewer</title>")
    (port,) = free_ports(1)
    with issuer() as service, chromium() as browser:
        service.put("eva", preferred_username="eva", groups=["doctors"])
        lines = (
            f'ohif = "{viewer}"', "[workbench.oidc]", f'issuer = "{service.url}"', 'client-id = "wardround"',
            f'url = "http://localhost:{port}"', "[workbench.oidc.roles]", 'annotator = ["doctors"]',
        )  # fmt: skip

        def keep_secret(home: SiteHome) -> None:
            home.keys.mkdir(exist_ok=True)
            home.oidc_secret.write_text("a secret of two")
            home.oidc_secret.chmod(0o600)

        with played_workbench(tmp_path / "home", settings="\n".join(lines), port=port, prepare=keep_secret):
            page = browser.new_context().new_page()
            page.goto(f"http://localhost:{port}{VIEW}")
            page.locator("#elsewhere").click()
            page.wait_for_url(f"{service.url}/**")
            page.locator("input[name=sub]").fill("eva")
            page.locator("input[name=sub]").press("Enter")
            page.wait_for_url(f"http://localhost:{port}{VIEW}")
            assert page.title() == "viewer"
            page.context.close()
