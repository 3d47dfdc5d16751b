"""When something breaks while a person draws: the line, the session, the server, a second window.

Whatever happens, what was drawn is neither lost nor drawn twice, the page says what is the matter, and goes on.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium
from workbench import FakeStudio, Workbench, password, workbench
from workbench_page import SMALL, Page, visiting

DRAW = "**/api/v1/cases/*/draw"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    path = tmp_path_factory.mktemp("robust") / "home"
    with workbench(path, cases=6, studio=FakeStudio) as found:
        yield found


def _drawn(bench: Workbench, case_id: str) -> int:
    return len(bench.studio.drawn.get((case_id, "ann"), ()))


def _end_sessions(bench: Workbench) -> None:
    """As a server does that is started anew: it knows nobody."""
    access = bench.app.state.access
    with access._lock:
        access._sessions.clear()


def _sign_in_again(page: Page) -> None:
    page.page.wait_for_selector("#again[open]", timeout=90_000)
    page.page.fill("#again-password", password("ann"))
    page.keys("Enter")
    page.until("!document.getElementById('again').open")


def test_a_stroke_outlives_a_lost_line(bench: Workbench, browser: Any) -> None:
    with visiting(browser, bench, SMALL) as page:
        page.sign_in("ann")
        page.open("case-0")
        page.page.context.set_offline(True)
        page.drag("axial", (4.5, 8.5), (9.5, 8.5))
        page.until("!document.getElementById('lost').hidden")
        page.drag("axial", (4.5, 12.5), (9.5, 12.5))
        page.until("document.getElementById('lost-text').textContent.includes('2 drawings wait')")
        assert _drawn(bench, "case-0") == 0
        assert page.ask("workbench.painter.waiting.length") == 2, "what was drawn stays to be seen"
        page.page.context.set_offline(False)
        page.steps(2)
        page.until("document.getElementById('lost').hidden")
        assert _drawn(bench, "case-0") == 2
        rows = [int(np.argwhere(one.labels == 1)[0][1]) for one in bench.studio.drawn["case-0", "ann"]]
        assert len(set(rows)) == 2, "in the order in which they were drawn, each once"


def test_a_stroke_whose_answer_was_lost_is_not_drawn_twice(bench: Workbench, browser: Any) -> None:
    with visiting(browser, bench, SMALL) as page:
        page.sign_in("ann")
        page.open("case-1")
        lost = []

        def swallow(route: Any) -> None:
            route.fetch()  # It is heard …
            lost.append(route.request.url)
            route.abort("connectionreset")  # … and the answer never comes.

        page.page.route(DRAW, swallow, times=1)
        page.drag("axial", (4.5, 8.5), (9.5, 8.5))
        page.steps(1)
        assert len(lost) == 1
        assert _drawn(bench, "case-1") == 1
        page.until("workbench.painter.layers.has('proxy')")
        page.drag("axial", (4.5, 10.5), (9.5, 10.5))
        page.steps(2)
        assert _drawn(bench, "case-1") == 2


def test_a_stroke_outlives_the_session(bench: Workbench, browser: Any) -> None:
    with visiting(browser, bench, SMALL) as page:
        page.sign_in("ann")
        page.open("case-2")

        def end() -> None:
            _end_sessions(bench)
            page.until("workbench.connection._dialog !== null")
            assert not page.ask("document.getElementById('again').open"), "nobody is asked in the middle of a stroke"

        page.drag("axial", (4.5, 8.5), (6.5, 8.5), (9.5, 8.5), midway=end)
        page.page.wait_for_selector("#again[open]", timeout=90_000)
        assert page.text("#again-name") == "ann"
        page.page.fill("#again-password", "not it")
        page.keys("Enter")
        page.until("document.getElementById('again-wrong').textContent.length > 0")
        _sign_in_again(page)
        page.steps(1)
        assert _drawn(bench, "case-2") == 1


def test_what_one_person_draws_is_not_anothers_who_signed_in_meanwhile(bench: Workbench, browser: Any) -> None:
    """Two people at one workstation: the cookie of the browser is the other's by the time the stroke is sent."""
    with visiting(browser, bench, SMALL) as page:
        page.sign_in("ann")
        page.open("case-2")
        before = _drawn(bench, "case-2")
        given = {"name": "ben", "password": password("ben")}

        def sign_in() -> None:
            assert page.page.context.request.post(bench.url + "/api/v1/login", data=given).ok

        page.drag("axial", (4.5, 10.5), (6.5, 10.5), (9.5, 10.5), midway=sign_in)
        _sign_in_again(page)
        page.until(lambda: _drawn(bench, "case-2") == before + 1)
        assert ("case-2", "ben") not in bench.studio.drawn


@pytest.mark.long
def test_a_second_window_takes_the_case_and_gives_it_back(bench: Workbench, browser: Any) -> None:
    with visiting(browser, bench, SMALL) as page:
        page.sign_in("ann")
        page.open("case-3")
        page.drag("axial", (4.5, 8.5), (9.5, 8.5))
        page.steps(1)
        other = Page(page.page.context.new_page(), bench)
        other.page.goto(bench.url + "/#case-4")
        other.page.wait_for_selector("body[data-state=ready]", timeout=90_000)
        other.opened("case-4")
        assert bench.studio.opened["ann"] == "case-4"
        page.page.bring_to_front()
        page.drag("axial", (4.5, 10.5), (9.5, 10.5))
        page.steps(2)
        assert _drawn(bench, "case-3") == 2
        assert _drawn(bench, "case-4") == 0
        assert "open here again" in page.text("#said") or "Answered" in page.text("#said")
        other.page.bring_to_front()
        other.drag("axial", (4.5, 10.5), (9.5, 10.5))
        other.steps(1)
        assert _drawn(bench, "case-4") == 1
        assert other.complaints == []
        other.page.close()


@pytest.mark.long
def test_an_acceptance_whose_answer_was_lost_is_one(bench: Workbench, browser: Any) -> None:
    with visiting(browser, bench, SMALL) as page:
        page.sign_in("ann")
        page.open("case-5")
        page.drag("axial", (4.5, 8.5), (9.5, 8.5))
        page.steps(1)

        def swallow(route: Any) -> None:
            route.fetch()
            route.abort("connectionreset")

        page.page.route("**/api/v1/cases/*/accept", swallow, times=1)
        page.keys("Shift+A")
        page.until("workbench.session?.id !== 'case-5'")
        assert bench.store.drawing("case-5", "ann").state == "accepted"
        asked = [one for one in bench.studio.asked if one == ("open", "case-5", "ann")]
        assert len(asked) == 1, "it was not opened once more"


@pytest.mark.long
def test_a_real_bench_is_started_anew_while_a_case_is_open(tmp_path: Path, browser: Any) -> None:
    """Nobody is signed in any more, no case is open, and the model has forgotten what it did not keep."""
    with (
        workbench(tmp_path / "home", cases=1) as bench,
        visiting(browser, bench, SMALL) as page,
    ):
        page.sign_in("ann")
        page.open("case-0")
        page.drag("axial", (4.5, 8.5), (10.5, 8.5))
        page.steps(1)
        before, drawn = page.layer("drawn")
        bench.studio.close("case-0", "ann")  # as after a start: the draft lies in the store, and on no desk
        _end_sessions(bench)
        _sign_in_again(page)
        page.drag("axial", (4.5, 12.5), (10.5, 12.5))
        page.steps(2)
        page.until(lambda: page.layer("drawn")[0] > before)
        assert (page.layer("drawn")[1] > 0).sum() > (drawn > 0).sum()
        page.keys("z")
        page.steps(1)
        page.until(lambda: (page.layer("drawn")[1] > 0).sum() == (drawn > 0).sum())
        record = bench.store.drawing("case-0", "ann")
        assert record is not None
        assert len(record.steps) == 1


@pytest.mark.long
def test_the_model_learns_while_somebody_draws(tmp_path: Path, browser: Any) -> None:
    with workbench(tmp_path / "home", cases=1) as bench, visiting(browser, bench, SMALL) as page:
        page.sign_in("ann")
        page.open("case-0")
        page.keys("m")
        page.until("workbench.painter.layers.has('prediction')")
        first = page.layer("prediction")[0]
        for step, row in enumerate((6.5, 8.5, 10.5, 12.5, 14.5)):
            page.drag("axial", (4.5, row), (10.5, row))  # nobody waits for an answer, or for the model
            page.until(f"workbench.session.answer.step + workbench.session.strokes.length >= {step + 1}")
        page.steps(5)
        page.until(lambda: page.layer("prediction")[0] > first)
        drawn = page.layer("drawn")[1]
        assert ((drawn == 2).sum(axis=(0, 2)) > 0).sum() == 5, "five strokes, all of them"
        page.until(lambda: "learnt" in page.text("#progress").lower())
