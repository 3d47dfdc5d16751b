"""The workbench's page in a real browser, as a person uses it: what a test clicks, draws and reads.

The page's policy forbids ``eval``, and with it Playwright's ``wait_for_function``: :meth:`Page.until` asks instead.
"""

import io
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import matplotlib.image
import numpy as np
import numpy.typing as npt
from workbench import password

PATIENCE_S = 90.0
SIZE = {"width": 1280, "height": 800}
SMALL = {"width": 900, "height": 560}
"""Of a window that a processor without a graphics card fills sooner."""
PLANES = ("axial", "coronal", "sagittal")
# Every piece of text that is seen, with the colours that it is painted in: the ground is the nearest that is opaque.
CONTRASTS = """() => {
  const linear = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const light = (c) => { const [r, g, b] = c.map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const at = node.parentElement;
    if (!node.textContent.trim() || !at.checkVisibility()) continue;
    if (at.closest('option, :disabled, .hidden, .skip-link')) continue;
    let ground = [0, 0, 0];
    for (let up = at; up; up = up.parentElement) {
      const [r, g, b, a = 1] = parse(getComputedStyle(up).backgroundColor);
      if (a === 1) { ground = [r, g, b]; break; }
    }
    const [one, other] = [light(parse(getComputedStyle(at).color)), light(ground)].sort((a, b) => b - a);
    found.push([(one + 0.05) / (other + 0.05), node.textContent.trim()]);
  }
  return found;
}"""


class Served(Protocol):
    """A workbench, wherever it runs: in this process, or in one of its own."""

    @property
    def url(self) -> str: ...


class Page:
    """One person at the page.

    Parameters
    ----------
    page
        Of Playwright.
    bench
        The workbench that serves it.
    """

    def __init__(self, page: Any, bench: Served) -> None:
        self.page, self.bench = page, bench
        self.complaints: list[str] = []
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self._note("error", str(error)))

    def _note(self, kind: str, text: str) -> None:
        # A browser reports every refused request; the page has its own word for it.
        if kind in ("error", "warning") and "Failed to load resource" not in text:
            self.complaints.append(text)

    def ask(self, script: str) -> Any:
        """What an expression is worth in the page."""
        return self.page.evaluate(script)

    def until(self, condition: str | Callable[[], object], told: str = "") -> Any:
        """Wait until an expression, or a function, is true, and return what it is worth."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found = self.ask(condition) if isinstance(condition, str) else condition()
            if found:
                return found
            if time.monotonic() > deadline:
                shown = self.ask("document.getElementById('problem')?.textContent ?? ''")
                raise AssertionError(f"{told or condition} did not come true; {shown!r}; {self.complaints}")
            self.page.wait_for_timeout(30)

    def sign_in(self, user: str, at: str = "/") -> None:
        """Come to the page, type name and password, and wait for the work list."""
        self.page.goto(self.bench.url + at)
        self.page.wait_for_selector("#form button:enabled")
        self.page.fill("#name", user)
        self.page.fill("#password", password(user))
        self.page.keyboard.press("Enter")
        self.page.wait_for_selector("body[data-state=ready]", timeout=PATIENCE_S * 1000)

    def open(self, case_id: str) -> None:
        """Choose a case in the work list."""
        self.page.click(f"#cases button[data-case='{case_id}']")
        self.opened(case_id)

    def opened(self, case_id: str) -> None:
        """Wait until a case is there to be drawn on."""
        self.until(f"workbench.ready === true && workbench.session?.id === '{case_id}'")

    @property
    def answer(self) -> dict[str, Any]:
        """The last answer."""
        found: dict[str, Any] = self.ask("workbench.session.answer")
        return found

    def steps(self, count: int) -> None:
        """Wait until so many steps are answered, and all that was drawn is shown."""
        self.until(f"workbench.session.answer.step === {count} && !workbench.session.queue.busy")

    def layer(self, name: str) -> tuple[int, npt.NDArray[np.uint8]]:
        """Version and box of values of a layer, as the page holds it."""
        found = self.ask(
            f"(() => {{ const l = workbench.painter.layers.get('{name}');"
            " return l ? [l.version, l.box, Array.from(l.values)] : null; })()"
        )
        if found is None:
            return -1, np.zeros((0, 0, 0), dtype=np.uint8)
        version, (i0, i1, j0, j1, k0, k1), values = found
        return version, np.array(values, dtype=np.uint8).reshape((i1 - i0, j1 - j0, k1 - k0), order="F")

    def place(self, plane: str, u: float, v: float) -> tuple[float, float]:
        """Where (u, v) of a plane, in voxels from its edge, lies in the window."""
        box = self.page.locator("#view").bounding_box()
        x, y = self.ask(f"workbench.viewer.tiles().find((t) => t.plane.name === '{plane}').toScreen({u}, {v})")
        return box["x"] + x, box["y"] + y

    def cell(self, plane: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of a plane's part of the images."""
        found = self.ask(f"workbench.viewer.tiles().find((t) => t.plane.name === '{plane}').cell")
        return tuple(found)

    def drag(self, plane: str, *way: tuple[float, float], midway: Callable[[], object] = lambda: None) -> None:
        """Draw along (u, v) points with the mouse; `midway` happens at the last point but one, with the button down."""
        mouse = self.page.mouse
        mouse.move(*self.place(plane, *way[0]))
        mouse.down()
        for point in way[1:-1]:
            mouse.move(*self.place(plane, *point), steps=4)
        midway()
        mouse.move(*self.place(plane, *way[-1]), steps=4)
        mouse.up()

    def keys(self, *names: str) -> None:
        """Press keys, one after the other."""
        for name in names:
            self.page.keyboard.press(name)

    def picture(self, selector: str = "#view") -> npt.NDArray[np.float32]:
        """What is seen, ``[row, column, red green blue]``, 0 … 1."""
        self.page.wait_for_timeout(60)  # two frames: what was asked for is painted by then
        found = matplotlib.image.imread(io.BytesIO(self.page.locator(selector).screenshot()), format="png")
        return np.asarray(found[..., :3], dtype=np.float32)

    def text(self, selector: str) -> str:
        """What is written somewhere."""
        return str(self.page.locator(selector).inner_text())


@contextmanager
def visiting(browser: Any, bench: Served, size: Mapping[str, int] = SIZE) -> Iterator[Page]:
    """Somebody's own window at the page, with cookies of their own; afterwards nothing may have been complained of."""
    with browser.new_context(viewport=dict(size)) as context:
        page = Page(context.new_page(), bench)
        yield page
        assert page.complaints == []
