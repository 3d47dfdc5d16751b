"""Several people at one case: an annotator sees nobody else's label, a reviewer sees all and judges."""

from pathlib import Path

import pytest
from browser import chromium
from workbench import FakeStudio, workbench
from workbench_page import visiting

from wardround.client.arrivals import IMPORTED
from wardround.client.intake import AUTHOR as LOOP


@pytest.mark.long
def test_a_reviewer_sees_and_judges_what_others_drew(tmp_path: Path) -> None:
    with workbench(tmp_path / "home", cases=1, studio=FakeStudio, review=True) as bench, chromium() as browser:
        for user, row in (("ann", 8.5), ("ben", 12.5)):
            with visiting(browser, bench) as page:
                page.sign_in(user)
                page.open("case-0")
                page.drag("axial", (4.5, row), (9.5, row))
                page.steps(1)
                assert not page.page.locator("#review").is_visible(), "an annotator is shown nobody's label"
                page.page.click("#accept")
                page.until(lambda user=user: bench.store.label("case-0", user) is not None)
        labels = bench.store.label("case-0", "ann")
        bench.store.save_label("case-0", labels, author=LOOP, round=3, effort=12.0)
        with visiting(browser, bench) as page:
            page.sign_in("rev")
            page.open("case-0")
            page.until("document.querySelectorAll('#reviewed li').length >= 4")
            for author, state, words in (
                (LOOP, "learnt", "made by round 3 of the federation · 12 px drawn"),
                (IMPORTED, "imported", "came with the image"),
                ("ann", "accepted", "label so far · "),
            ):
                row = page.page.locator("#reviewed > li").filter(has=page.page.get_by_text(author, exact=True))
                assert row.locator(".state").inner_text() == state
                assert words in row.inner_text()
                assert row.get_by_role("button", name="Approve").count() == int(state == "accepted")
            ann, ben = (page.page.locator("#reviewed > li").filter(has_text=user) for user in ("ann", "ben"))
            ann.get_by_role("button", name="Show").click()
            page.until("workbench.painter.layers.has('reviewed')")
            _, values = page.layer("reviewed")
            assert (values == bench.store.label("case-0", "ann").array).all()
            ann.get_by_role("button", name="Approve").click()
            page.until(lambda: bench.store.drawing("case-0", "ann").state == "approved")
            page.until("document.querySelectorAll('#reviewed .approved').length === 1")
            ben.get_by_role("combobox").select_option("incomplete")
            ben.get_by_role("button", name="Reject").click()
            page.until(lambda: bench.store.drawing("case-0", "ben").state == "rejected")
            page.until(lambda: "approved" in page.text("#cases button"))
