"""Accounts from the page: one's own password, and for administrators who may come in."""

from collections.abc import Iterator
from typing import Any

import pytest
from browser import chromium
from workbench import FakeStudio, Workbench, password, workbench
from workbench_page import SMALL, visiting


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    with workbench(tmp_path_factory.mktemp("account") / "home", cases=1, studio=FakeStudio) as found:
        yield found


def test_a_person_changes_their_password_and_sees_no_accounts(bench: Workbench, browser: Any) -> None:
    fresh = "a longer one that nobody knows 7"
    with visiting(browser, bench, SMALL) as page:
        page.sign_in("ben")
        page.page.click("#person")
        assert not page.page.locator("#accounts").is_visible()
        for old, again, told in (
            (password("ben"), "something else", "same way twice"),
            ("not it at all", fresh, "password"),
            (password("ben"), fresh, "was changed"),
        ):
            page.page.fill("#account-old", old)
            page.page.fill("#account-fresh", fresh)
            page.page.fill("#account-repeated", again)
            page.page.click("#account-password button")
            page.until(lambda told=told: told in page.text("#account-told"))
        assert bench.accounts.verify("ben", fresh)[0].name == "ben"
        page.keys("Escape")
        page.open("case-0")


@pytest.mark.long
def test_an_administrator_lets_somebody_in_who_takes_a_password_of_their_own(bench: Workbench, browser: Any) -> None:
    with visiting(browser, bench, SMALL) as page:
        page.sign_in("adm")
        page.page.click("#person")
        page.page.fill("#account-name", "eve")
        page.page.select_option("#account-role", "reviewer")
        page.page.click("#account-new button")
        page.page.wait_for_selector("#account-told code")
        once = page.text("#account-told code")
        row = page.page.locator("#account-rows tr").filter(has_text="eve")
        assert "one-time" in row.inner_text()
        assert page.page.locator("select[aria-label='Role of adm']").is_disabled(), "nobody shuts themselves out"
    with visiting(browser, bench, SMALL) as page:
        page.page.goto(bench.url)
        page.page.wait_for_selector("#form button:enabled")
        page.page.fill("#name", "eve")
        page.page.fill("#password", once)
        page.keys("Enter")
        page.page.wait_for_selector("#change:not([hidden])")
        page.page.goto(bench.url)  # Nobody comes in with it.
        page.page.wait_for_selector("#change:not([hidden])", timeout=90_000)
        page.page.fill("#old", once)
        for field in ("#fresh", "#repeated"):
            page.page.fill(field, "words that only eve knows 4")
        page.page.click("#change button")
        page.page.wait_for_selector("body[data-state=ready]", timeout=90_000)
        assert "eve · reviewer" in page.text("#person")
    with visiting(browser, bench, SMALL) as page:
        page.sign_in("adm")
        page.page.click("#person")
        page.page.click("button[aria-label='Disable eve']")
        page.page.wait_for_selector("button[aria-label='Enable eve']")
        assert "disabled" in page.page.locator("#account-rows tr").filter(has_text="eve").inner_text()


def test_a_refused_sign_in_elsewhere_is_told_and_never_printed_from_the_address(bench: Workbench, browser: Any) -> None:
    with visiting(browser, bench, SMALL) as page:
        for code, told in (("no-role", "no role here"), ("<b>made-up</b>", "could not be signed in")):
            page.page.goto(f"{bench.url}/login.html?refused={code}")
            page.until(lambda told=told: told in page.text("#wrong"))
            assert "made-up" not in page.text("body")
