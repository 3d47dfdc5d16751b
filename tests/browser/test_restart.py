"""A site's process is ended and started while a case is open in a browser: nothing that was drawn is lost."""

from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from browser import chromium
from deployment import eventually, free_ports
from living import agent_process
from workbench import home_to_serve, password
from workbench_page import SMALL, visiting

from wardround.client.cases.store import CaseStore
from wardround.client.intake import STORE


@dataclass(frozen=True)
class Served:
    """A site that `wardround site serve` runs in a process of its own."""

    url: str

    def is_up(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health").status_code == 200
        except httpx.TransportError:
            return False


@pytest.mark.long
def test_a_case_outlives_the_process_that_serves_it(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    home = home_to_serve(tmp_path / "home", f"port = {port}", cases=1)
    bench = Served(f"http://127.0.0.1:{port}")
    with chromium() as browser, visiting(browser, bench, SMALL) as page:
        with agent_process(home):
            eventually(bench.is_up, "the workbench")
            page.sign_in("ann")
            page.open("case-0")
            page.drag("axial", (4.5, 8.5), (10.5, 8.5))
            page.steps(1)
            page.until("workbench.painter.layers.has('drawn')")
            first = int((page.layer("drawn")[1] == 2).sum())
        # Nobody serves now. What is drawn waits in the page.
        page.until("!document.getElementById('lost').hidden")
        page.drag("axial", (4.5, 12.5), (10.5, 12.5))
        page.keys("2")
        page.drag("axial", (4.5, 15.5), (10.5, 15.5))
        page.until("document.getElementById('lost-text').textContent.includes('2 drawings wait')")
        with agent_process(home):
            eventually(bench.is_up, "the workbench, once more")
            page.page.wait_for_selector("#again[open]", timeout=90_000)
            page.page.fill("#again-password", password("ann"))
            page.keys("Enter")
            page.steps(3)
            page.until("document.getElementById('lost').hidden")
            page.until(lambda: set(np.unique(page.layer("drawn")[1])) >= {2, 3})
            assert int((page.layer("drawn")[1] == 2).sum()) == 2 * first, (
                "what was answered before is there, and one more"
            )
            page.keys("Shift+A")
            page.until("workbench.session === null")
    with CaseStore(home.site / STORE) as store:
        record, label = store.drawing("case-0", "ann"), store.label("case-0", "ann")
    assert record is not None
    assert (record.state, len(record.steps)) == ("accepted", 3), "each stroke once, in spite of all"
    assert label is not None
    assert {1, 2} <= set(np.unique(label.array))
