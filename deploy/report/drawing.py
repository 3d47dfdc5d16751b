"""What every page of ours has in common: its figures for light and dark paper, as files and in the page itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from wardround import files
from wardround.deploy.report.theme import DARK, LIGHT, Sketch, Theme, png, styled

FILE_NAME = "report.html"


@dataclass(frozen=True)
class Drawing:
    """A finished figure.

    Attributes
    ----------
    name
        Stem of its file.
    title, caption, alt
        Plain text: heading, what to see, and the same for those who cannot see it.
    png
        The picture.
    """

    name: str
    title: str
    caption: str
    alt: str
    png: bytes


Drawings = Mapping[str, Drawing]
Makers = Mapping[str, Callable[[Theme], Sketch | None]]
"""What draws each figure of a page, by name; None where the run holds nothing for it."""


def draw_all(makers: Makers, theme: Theme) -> dict[str, Drawing]:
    """Draw every figure that the run has data for, in the order of `makers`."""
    drawings = {}
    for name, make in makers.items():
        with styled(theme):
            sketch = make(theme)
            if sketch is not None:
                drawings[name] = Drawing(name, sketch.title, sketch.caption, sketch.alt, png(sketch.figure, sketch.dpi))
    return drawings


def write_page(folder: Path, makers: Makers, render: Callable[[Drawings, Drawings], str]) -> Path:
    """Write `figures/*.png` and, after them, the page that shows them.

    Parameters
    ----------
    folder
        Where they go.
    makers
        Of the figures.
    render
        Makes the page of the figures drawn for light and for dark paper.

    Returns
    -------
    Path
        The page. It replaces an older one atomically.

    Raises
    ------
    StorageError
        If the disk is full or the folder is not writable.
    """
    light, dark = draw_all(makers, LIGHT), draw_all(makers, DARK)
    for drawings, suffix in ((light, ""), (dark, "-dark")):
        for name, drawing in drawings.items():
            files.write_bytes(folder / "figures" / f"{name}{suffix}.png", drawing.png)
    page = folder / FILE_NAME
    files.write_text(page, render(light, dark))
    return page
