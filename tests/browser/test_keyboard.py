"""The page without a mouse, for eyes that need contrast, and for those who listen to it."""

from collections.abc import Iterator

import numpy as np
import pytest
from browser import chromium
from workbench import FakeStudio, password, workbench
from workbench_page import CONTRASTS, Page, visiting

from wardround.client.annotation.prompts import PointPrompt, ScribblePrompt, SlicePrompt
from wardround.errors import UsageError

AWKWARD = "<img src=x onerror=window.hacked=1>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    path = tmp_path_factory.mktemp("keyboard") / "home"
    with (
        workbench(path, cases=2, studio=FakeStudio, labels=("head", AWKWARD)) as bench,
        chromium() as browser,
        visiting(browser, bench) as page,
    ):
        yield page


def _focused(page: Page) -> str:
    return str(page.ask("(({ id, dataset, tagName }) => id || dataset.case || tagName)(document.activeElement)"))


def test_a_case_is_drawn_with_the_keyboard_alone(page: Page) -> None:
    page.page.goto(page.bench.url)
    page.page.wait_for_selector("#form button:enabled")
    for user, word in (("ann", "not it"), ("ann", password("ann"))):
        page.page.locator("#name").focus()
        page.page.keyboard.press("Control+a")
        page.page.keyboard.type(user)
        page.keys("Tab")
        page.page.keyboard.type(word)
        page.keys("Enter")
        if word == "not it":
            page.until("document.getElementById('wrong').textContent.length > 0")
    page.page.wait_for_selector("body[data-state=ready]", timeout=90_000)

    for _ in range(12):  # Tab alone leads to the list
        page.keys("Tab")
        if _focused(page) == "case-0":
            break
    assert _focused(page) == "case-0"
    outline = page.ask("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "focus is seen"
    page.keys("ArrowDown", "Enter")
    page.opened("case-1")
    start = page.ask("workbench.painter.cursor")
    page.keys("s", "1", "Space", "ArrowRight", "ArrowRight", "ArrowUp", "Space")
    page.steps(1)
    stroke = page.bench.studio.drawn["case-1", "ann"][-1]
    assert isinstance(stroke, ScribblePrompt)
    assert (stroke.labels == 1).sum() == 4
    assert stroke.labels[start[0], start[1]] == 1
    page.keys("p", "Space")
    page.steps(2)
    assert isinstance(page.bench.studio.drawn["case-1", "ann"][-1], PointPrompt)
    page.keys("Enter")
    page.steps(3)
    whole = page.bench.studio.drawn["case-1", "ann"][-1]
    assert isinstance(whole, SlicePrompt)
    assert (whole.labels == 1).sum() == 4
    assert np.isin(whole.labels, (0, 1)).all()
    page.keys("Control+z")
    page.steps(2)

    before = page.ask("workbench.painter.cursor")
    page.keys("PageUp")
    assert page.ask("workbench.painter.cursor") != before
    page.keys("?")
    assert page.page.locator("#keys").is_visible()
    for what in ("Undo", "Suggested slice", "Accept", "Contour"):
        assert what in page.text("#keys-list")
    page.keys("Escape")
    page.keys("Shift+A")
    page.until("!document.getElementById('empty').hidden || workbench.session?.id === 'case-0'")
    assert page.bench.store.label("case-1", "ann") is not None


def test_keys_act_on_the_images_of_a_case_that_was_clicked(page: Page) -> None:
    page.open("case-0")
    assert _focused(page) == "view"
    page.until(lambda: "case-0 is open" in page.text("#said"), "told to whoever listens")
    before = page.ask("workbench.painter.cursor")
    page.keys("PageUp")
    assert page.ask("workbench.painter.cursor") != before
    page.ask("workbench.viewer.zoom(2, workbench.painter.cursor)")
    page.keys("Home")
    assert page.ask("workbench.viewer.nv.scene.pan2Dxyzmm[3]") == 1

    page.page.locator("#filter").focus()
    page.ask("void workbench.worklist.choose('case-1')")
    page.opened("case-1")
    assert _focused(page) == "filter", "whoever went to a field stays there"


def test_text_is_seen_and_named_and_never_code(page: Page) -> None:
    found = page.ask(CONTRASTS)
    assert len(found) > 40
    faint = [(round(ratio, 1), text) for ratio, text in found if ratio < 4.5]
    assert not faint
    assert AWKWARD in page.text("#labels")
    assert page.ask("window.hacked") is None
    nameless = page.ask(
        "[...document.querySelectorAll('button, input, select, canvas')].filter((e) => e.checkVisibility()"
        " && !e.closest('[aria-hidden]') && !e.textContent.trim() && !e.labels?.length"
        " && !e.getAttribute('aria-label') && !e.title).map((e) => e.outerHTML)"
    )
    assert nameless == []
    assert page.ask("document.querySelectorAll('[aria-live=polite], [role=alert]').length") >= 2
    size = page.ask("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    assert size == [1280, 800], "it fits"
    for name in ("list", "panel"):
        spare = page.ask(
            f"(({{ clientWidth, scrollWidth }}) => clientWidth - scrollWidth)(document.getElementById('{name}'))"
        )
        assert spare >= 0, f"nothing is cut off in the {name}"


def test_a_fault_is_told_as_problem_cause_and_fix(page: Page) -> None:
    if page.ask("workbench.session?.id") != "case-0":
        page.open("case-0")
    page.opened("case-0")
    studio = page.bench.studio

    def refuse(*_: object) -> None:
        raise UsageError("the point does not lie in the image", "it was set on another case", "Set it once more")

    studio.draw = refuse
    page.page.locator("#view").focus()
    page.keys("p", "Space")
    page.until("!document.getElementById('failure').hidden")
    del studio.draw
    assert "does not lie in the image" in page.text("#problem").lower()
    assert "another case" in page.text("#cause").lower()
    assert "once more" in page.text("#fix").lower()
    assert page.ask("workbench.session.strokes.length") == 0, "what was refused is shown no longer"
    assert "saved" not in page.text("#said"), "nothing was"
    page.page.click("#failure-close")
    assert not page.page.locator("#failure").is_visible()


def test_a_password_never_gets_into_an_address(page: Page) -> None:
    """Whoever types faster than the script comes: the form does not send itself, and never in an address."""
    context = page.page.context.browser.new_context(java_script_enabled=False)
    other = context.new_page()
    other.goto(page.bench.url + "/login.html")
    other.fill("#name", "ann")
    other.fill("#password", password("ann"))
    other.keyboard.press("Enter")
    other.wait_for_timeout(300)
    assert other.url == page.bench.url + "/login.html"
    assert other.get_attribute("#form", "method") == "post"
    context.close()


def test_whoever_is_signed_out_is_asked_again(page: Page) -> None:
    page.page.click("#leave")
    page.page.wait_for_selector("#form")
    page.page.goto(page.bench.url)
    page.page.wait_for_selector("#form")
